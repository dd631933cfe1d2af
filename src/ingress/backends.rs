//! The backends' door: any AMQP client publishes with standard properties; the routing key is the target.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep_until, Instant};

use super::read;
use super::settled::{Again, Desk, Ending, Taken};
use crate::bus::{Bus, Delivery};
use crate::clock::Now;
use crate::metrics::{Door, Metrics};
use crate::protocol::message::{Message, Settlement};
use crate::router::Router;

/// What could not be settled or answered for now is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Steps that wait to be tried again: more than any prefetch window, so that there is always room.
const AGAIN_MAX: usize = 65_536;

/// What the door is opened with.
pub struct BackendsDoor {
    pub router: Arc<Router>,
    pub bus: Arc<dyn Bus>,
    pub metrics: Arc<Metrics>,
    /// What every queue of the gateway begins with.
    pub own_prefix: Arc<str>,
    pub message_bytes_max: usize,
}

/// Works off the ingress queue until it is closed. Messages are accepted in their order, and each is acknowledged when
/// it is settled and its backend has been answered.
pub async fn run(door: BackendsDoor, mut inbox: mpsc::Receiver<Delivery>) {
    let (again, mut failed) = mpsc::channel(AGAIN_MAX);
    let BackendsDoor { router, bus, metrics, own_prefix, message_bytes_max } = door;
    let desk = Desk { bus, metrics, own_prefix, again, window: Arc::default() };
    // All wait equally long, so that the oldest is always due first.
    let mut waiting: VecDeque<(Instant, Again)> = VecDeque::new();
    loop {
        let due = waiting.front().map(|(at, _)| *at);
        tokio::select! {
            delivery = inbox.recv() => {
                let Some(delivery) = delivery else { return };
                let read = read::ingress(&delivery, message_bytes_max, Now::read());
                let taken = desk.window.take(delivery);
                router.set_ingress_pressed(desk.window.is_pressed());
                match read {
                    Ok(message) => accept(&router, &desk, message, taken),
                    Err(reason) => desk.finish(Ending::unreadable(taken, reason)),
                }
            }
            Some(step) = failed.recv() => waiting.push_back((Instant::now() + RETRY_AFTER, step)),
            () = async { if let Some(at) = due { sleep_until(at).await } }, if due.is_some() => {
                match waiting.pop_front() {
                    Some((_, Again::Accept(message, taken))) => accept(&router, &desk, *message, taken),
                    Some((_, Again::Finish(ending))) => desk.finish(ending),
                    None => {}
                }
            }
        }
    }
}

fn accept(router: &Arc<Router>, desk: &Desk, message: Message, taken: Taken) {
    // The channel is gone: the broker hands the message out again, and a second copy of the work must not go on.
    if taken.delivery.ack.is_void() {
        return;
    }
    #[cfg(feature = "sabotage")]
    let taken = match crate::sabotage::is("ack-early") {
        true => taken.ack_early(),
        false => taken,
    };
    // What could not be settled may still have reached its receiver: whatever comes of a second try says so.
    let retry = Message { redelivered: true, ..message.clone() };
    let desk = desk.clone();
    let settle = move |settlement: Settlement| {
        desk.metrics.settled(Door::Ingress, settlement.outcome());
        // Once its time is over another try could only hide that it may have been shown.
        let is_over = retry.is_expired(std::time::Instant::now());
        if matches!(&settlement, Settlement::Failed(error) if error.code.retry() && !is_over) {
            // Not settled, so it stays. Not handed back either: a queue may count how often that happens, and
            // throw the message away. The prefetch window bounds how many wait like this.
            return desk.try_again(Again::Accept(Box::new(retry), taken));
        }
        desk.finish(Ending::settled(taken, &retry.id, &settlement));
    };
    router.accept(message, Box::new(settle));
}
