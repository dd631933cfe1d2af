//! Reads boxes that nobody asked for: those that a fresh node knows nothing of, and those that were not read for long.
//!
//! It mends what a lost hint or an expired mail leaves wrong in the mail index.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reader::remind;
use super::round::Round;
use crate::bus::{Attach, BoxEvent, BoxNumber};
use crate::router::Router;

/// Between two looks for something to do.
const IDLE: Duration = Duration::from_secs(1);
/// Between two boxes: at least so long, since users who wait for their mail go first.
const BETWEEN: Duration = Duration::from_millis(2);
/// And at least so many times as long as the last one took, so that all nodes together leave most of the time of a slow
/// broker, one that has just started for example, to deposits and to readings that users wait for.
const BETWEEN_TIMES: u32 = 3;
/// And not longer, whatever the last one took.
const BETWEEN_MAX: Duration = Duration::from_millis(500);
/// A box that another node reads is left for later.
const BUSY: Duration = Duration::from_millis(50);

/// Runs for ever.
pub async fn sweep(router: Arc<Router>) {
    loop {
        let due = router
            .mail()
            .next_unread_box()
            .or_else(|| router.mail().next_due_box(Instant::now(), &router.live_nodes_and_this()));
        let began = Instant::now();
        let pause = match due {
            None => IDLE,
            Some(number) => match look_into(&router, number).await {
                true => (began.elapsed() * BETWEEN_TIMES).clamp(BETWEEN, BETWEEN_MAX),
                false => BUSY,
            },
        };
        tokio::time::sleep(pause).await;
    }
}

/// Counts what is in a box. `false`: it could not be read now.
async fn look_into(router: &Arc<Router>, number: BoxNumber) -> bool {
    let began = router.mail().reading_began(number);
    let mut reader = match router.bus().attach_box(number, Vec::new()).await {
        Ok(Attach::Reading(reader)) => reader,
        Ok(Attach::Missing) => {
            router.mail().exact(began, Vec::new());
            return true;
        }
        Ok(Attach::Busy) | Err(_) => return false,
    };
    let mut round = Round::new([]);
    loop {
        match reader.events.recv().await {
            Some(BoxEvent::Mail(mail)) => {
                if let Err((mail, error)) = round.add(mail, Instant::now()) {
                    router.dead_letter_mail(mail, &error.to_string());
                }
            }
            Some(BoxEvent::RoundEnd { .. }) => break,
            None => return false,
        }
    }
    let found = round.take_found();
    remind(router, &found);
    router.mail().exact(began, found);
    reader.close_cleanly().await;
    true
}
