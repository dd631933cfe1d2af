//! One reading of a box: attach, read rounds, wait until the users here have taken their mail, close.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout_at, Instant};

use super::round::Round;
use super::{News, Readings, Want, CLEAN_AFTER, WANT_KIND};
use crate::bus::{Attach, BoxEvent, BoxMail, BoxNumber, BoxReader, Destination, Lane, Properties, Publish};
use crate::clock;
use crate::ids::{UserId, UserKey};
use crate::router::Router;

/// How long a box is left alone that another node reads. That node is asked for it, and most often gives it at once.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long a box is left alone that could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(250);
/// How long after a reading the next begins for users who have not taken what they were handed.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);
/// How long a box is left to the node that asked for it: several of its tries.
const YIELD_PAUSE: Duration = Duration::from_millis(150);
/// A box is held for so long at most while its users take their mail: a broker before 4.3 ends a channel that leaves
/// a delivery unacknowledged for 30 minutes.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// A reading in which nothing arrives for so long has stalled.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// How a reading ended.
enum Ended {
    Done,
    /// Another node wants the box: it goes first.
    Yielded,
    Busy,
    Unreachable,
    /// The link was lost meanwhile: what was acknowledged may lie in the box again.
    Interrupted,
}

pub(super) async fn read(readings: Readings, router: Arc<Router>, number: BoxNumber, news: Arc<News>) {
    let users: HashSet<UserId> = readings.take_users(number);
    let ended = attach(&readings, &router, number, &news, &users).await;
    if matches!(ended, Ended::Interrupted) {
        router.mail().interrupted(number);
    }
    let was_read = matches!(ended, Ended::Done | Ended::Yielded);
    let is_urgent = |user: &UserId| router.mail_wanted(user).is_some();
    // Mail that was taken after its reading had ended is acknowledged by the next one: it is due until there was one.
    let again: HashSet<UserId> = users.into_iter().filter(|user| !was_read || is_urgent(user)).collect();
    if matches!(ended, Ended::Yielded) {
        readings.leave_alone(number, YIELD_PAUSE);
    }
    let pause = match ended {
        _ if !again.iter().any(is_urgent) => CLEAN_AFTER,
        Ended::Done | Ended::Yielded => AGAIN_PAUSE,
        Ended::Busy => BUSY_PAUSE.mul_f64(1.0 + rand::random::<f64>()),
        Ended::Unreachable | Ended::Interrupted => UNREACHABLE_PAUSE,
    };
    readings.finish(number, again, pause);
}

async fn attach(
    readings: &Readings,
    router: &Arc<Router>,
    number: BoxNumber,
    news: &News,
    users: &HashSet<UserId>,
) -> Ended {
    // Never closed: these belong to the readings' own handle.
    let (Ok(held), Ok(turn)) = (readings.shared.held.acquire().await, readings.shared.rounds.acquire().await)
    else {
        return Ended::Unreachable;
    };
    let covers = covered(router, users);
    let round = Round::new(users.iter().cloned());
    let began = router.mail().reading_began(number);
    let reader = match router.bus().attach_box(number, round.keys()).await {
        Ok(Attach::Reading(reader)) => reader,
        Ok(Attach::Missing) => {
            router.mail().exact(began, Vec::new());
            covers.into_iter().for_each(|(user, covers)| router.mail_read(&user, Vec::new(), covers));
            return Ended::Done;
        }
        Ok(Attach::Busy) => {
            // Nothing waits for what has only to be acknowledged.
            if !covers.is_empty() {
                ask_for(router, number);
            }
            return Ended::Busy;
        }
        Err(_) => return Ended::Unreachable,
    };
    let mut reading = Reading { router: router.clone(), reader, round, covers };
    if !reading.read_round().await {
        reading.give_back();
        return Ended::Interrupted;
    }
    router.mail().exact(began, reading.round.take_found());
    drop(turn);
    let ended = reading.hold(readings, number, news).await;
    drop(held);
    ended
}

/// The notices that a round which begins now covers.
fn covered(router: &Router, users: &HashSet<UserId>) -> Vec<(UserId, u32)> {
    let wanted = |user: &UserId| Some((user.clone(), router.mail_wanted(user)?));
    users.iter().filter_map(wanted).collect()
}

fn ask_for(router: &Router, number: BoxNumber) {
    let want = Want { number: number.0, from: router.node().clone() };
    let properties = Properties {
        kind: Some(WANT_KIND.to_owned()),
        content_type: Some("application/json".to_owned()),
        persistent: Some(false),
        ..Properties::default()
    };
    // A plain struct cannot fail to serialize.
    let body: Bytes = serde_json::to_vec(&want).unwrap_or_default().into();
    let publish = Publish { to: Destination::Control, properties, body, order_key: 0, lane: Lane::Urgent };
    // It is asked for again at each refusal.
    router.bus().publish(publish, Box::new(|_| ()));
}

struct Reading {
    router: Arc<Router>,
    reader: BoxReader,
    round: Round,
    covers: Vec<(UserId, u32)>,
}

impl Reading {
    /// Reads to the end of the round and hands over what it brought. `false`: the reading has ended.
    async fn read_round(&mut self) -> bool {
        loop {
            let deadline = Instant::now() + STALLED_AFTER;
            match timeout_at(deadline, self.reader.events.recv()).await {
                Ok(Some(BoxEvent::Mail(mail))) => self.take(mail),
                Ok(Some(BoxEvent::RoundEnd { abandoned })) => {
                    self.hand_over(&abandoned);
                    return true;
                }
                Ok(None) | Err(_) => return false,
            }
        }
    }

    fn take(&mut self, mail: BoxMail) {
        let now = clock::Now::read().instant;
        if let Err((mail, error)) = self.round.add(mail, now) {
            // Only nodes write to boxes; it would be found again for ever.
            tracing::error!(%error, "dead-lettered something from a box that is no mail");
            self.router.dead_letter_mail(mail, &error.to_string());
        }
    }

    fn hand_over(&mut self, abandoned: &[crate::bus::Abandoned]) {
        for (user, brought) in self.round.end(abandoned) {
            let wanted = self.covers.iter().find(|(covered, _)| *covered == user).map(|(_, covers)| *covers);
            // With more in the box than was kept the barrier stays closed.
            let covers = match wanted {
                Some(covers) if brought.more => covers.wrapping_sub(1),
                Some(covers) => covers,
                None if brought.mail.is_empty() => continue,
                None => self.router.mail_covered(&user),
            };
            self.router.mail_read(&user, brought.mail, covers);
        }
    }

    /// Waits until the users have taken their mail; reads on for them meanwhile. Ends when another node wants the box.
    async fn hold(mut self, readings: &Readings, number: BoxNumber, news: &News) -> Ended {
        let until = Instant::now() + HOLD_MAX;
        loop {
            let users: Vec<UserId> = self.round.users().cloned().collect();
            // What was shown and not taken has to go back before it can be read again, and the marker has to stay behind it.
            let is_untaken = users.iter().any(|user| self.router.has_untaken_mail(user));
            let is_done = !is_untaken && !users.iter().any(|user| self.router.holds_mail(user));
            let is_wanted = news.wanted_elsewhere.load(Ordering::Relaxed) || Instant::now() >= until;
            let asked = readings.take_users(number);
            let others = asked.iter().any(|user| !self.round.serves(user));
            if is_done && asked.is_empty() {
                return if self.reader.close_cleanly().await { Ended::Done } else { Ended::Interrupted };
            }
            if is_wanted || others || is_untaken {
                readings.desks().entry(number).or_default().users.extend(asked);
                return match self.close_early(is_done).await {
                    false => Ended::Interrupted,
                    true if is_wanted => Ended::Yielded,
                    true => Ended::Done,
                };
            }
            if !asked.is_empty() {
                self.covers = covered(&self.router, &asked);
                if !self.reader.new_round(self.round.keys()).await || !self.read_round().await {
                    self.give_back();
                    return Ended::Interrupted;
                }
                continue;
            }
            tokio::select! {
                () = news.changed.notified() => {}
                event = self.reader.events.recv() => match event {
                    Some(BoxEvent::Mail(mail)) => self.take(mail),
                    // The end of a round that nobody waits for.
                    Some(BoxEvent::RoundEnd { abandoned }) => self.hand_over(&abandoned),
                    None => {
                        self.give_back();
                        return Ended::Interrupted;
                    }
                },
                // A session that ends without taking its mail acknowledges nothing: look again.
                () = sleep(AGAIN_PAUSE) => {}
            }
        }
    }

    /// `false`: interrupted.
    async fn close_early(self, is_done: bool) -> bool {
        let Self { router, reader, round, .. } = self;
        let carried_out = match is_done {
            true => reader.close_cleanly().await,
            false => reader.close_leaving_marker().await,
        };
        give_back(&router, &round);
        carried_out
    }

    fn give_back(&self) {
        give_back(&self.router, &self.round);
    }
}

/// What was not acknowledged lies in the box again.
fn give_back(router: &Router, round: &Round) {
    round.users().for_each(|user| router.mail_given_back(user));
}

/// Mail of users who are here and were not read for: a hint was lost.
pub(super) fn remind(router: &Router, found: &[(UserKey, u32, u64)]) {
    for (key, ..) in found {
        router.mail_for(*key);
    }
}
