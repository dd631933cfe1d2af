//! Boxes: durable queues that each hold the mail of many users, and what a node gets when it reads one.
//!
//! A box is read by one node at a time (an exclusive consumer). The reader gets everything that lies in the box, in
//! order, and acknowledges only the mail of users whom it serves. Ending the reading gives back all the rest, in its
//! place, in one step of the broker: the next reader is refused or sees all of it.
//!
//! A reading goes in *rounds*. Each round begins with a *marker* that the reader publishes into the box; it names the
//! users for whom the reader may hand out mail, and comes back behind all mail that lay there before. A marker is
//! acknowledged only at a clean end, so a marker of another reader says: mail before me, of the users whom I name,
//! may have been shown already. Nothing rests on a clock.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{AckToken, Properties};
use crate::ids::UserKey;

/// One box, by its number below the configured number of boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BoxNumber(pub u32);

impl BoxNumber {
    /// The box that holds the mail of a user: the same on every node that has the same number of boxes.
    pub fn of(user: UserKey, boxes: NonZeroU32) -> Self {
        // The remainder is below a u32.
        Self((user.0 % u64::from(boxes.get())) as u32)
    }
}

/// How many boxes there are and how long mail lies in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxSettings {
    /// Part of the queues' names: another number is another set of boxes.
    pub boxes: NonZeroU32,
    /// Older mail is dropped by the broker; a message's own `expiration` may make it less.
    pub ttl: Duration,
}

impl BoxSettings {
    /// At 1,024 boxes 300,000 mails are some 300 in each, which are read in about 15 ms; the queues themselves take
    /// the broker some 50 MB.
    pub const BOXES_DEFAULT: NonZeroU32 = NonZeroU32::MIN.saturating_add(1023);
}

impl Default for BoxSettings {
    fn default() -> Self {
        Self { boxes: Self::BOXES_DEFAULT, ttl: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// What comes of asking to read a box.
#[derive(Debug)]
pub enum Attach {
    /// There is no such box: nobody has ever had mail in it.
    Missing,
    /// Another node reads it. After the sudden death of that node this lasts until the broker misses its heartbeats.
    Busy,
    Reading(BoxReader),
}

/// The box cannot be asked: no link, or no answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the box cannot be reached")]
pub struct BoxError;

/// One message in a box, as its reader gets it.
#[derive(Debug)]
pub struct BoxMail {
    /// Counts the mail of this reading, from 1.
    pub number: u64,
    pub properties: Properties,
    pub body: Bytes,
    /// The broker handed it to a reader before, which need not mean that anybody was shown it.
    pub redelivered: bool,
    /// Acknowledging removes the mail from the box. Dropping the token leaves it there: it goes back when the reading
    /// ends, and not sooner.
    pub ack: AckToken,
}

/// A marker that a reader left behind: it did not end cleanly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// The number of the last mail before the marker.
    pub behind: u64,
    /// Mail of these users, before the marker and redelivered, may have been shown.
    pub users: Vec<UserKey>,
}

/// What a reader is told.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every event is a mail")]
pub enum BoxEvent {
    Mail(BoxMail),
    /// The marker of a round came back: all mail that lay in the box when the round began has been handed over.
    RoundEnd {
        abandoned: Vec<Abandoned>,
    },
}

/// What a reader asks for.
#[derive(Debug)]
pub enum BoxRequest {
    /// Publish a new marker that names these users, in place of the last one.
    NewRound(Vec<UserKey>),
    /// End the reading and remove the marker: whatever was shown has been acknowledged.
    CloseCleanly,
}

/// A box that this node reads. Dropping it ends the reading and leaves the marker in the box.
#[derive(Debug)]
pub struct BoxReader {
    /// In order. `None`: the reading has ended, by request or because the link was lost.
    pub events: mpsc::Receiver<BoxEvent>,
    requests: mpsc::Sender<BoxRequest>,
    carried_out: Arc<AtomicBool>,
}

/// The ends of a reading that the task behind it holds.
#[derive(Debug)]
pub(super) struct BoxTask {
    /// Dropped last: who sees the end of the events may read again.
    pub events: mpsc::Sender<BoxEvent>,
    pub requests: mpsc::Receiver<BoxRequest>,
    /// To be set before the end if the broker has carried out every acknowledgement that a token took.
    pub carried_out: Arc<AtomicBool>,
}

/// Requests on their way to the task that reads: a reader waits for the end of a round before it asks for another.
const REQUESTS_MAX: usize = 4;
/// Events on their way to the reader; the task waits when they are not taken.
const EVENTS_MAX: usize = 1024;

impl BoxReader {
    /// The reader, and what the task behind it holds.
    pub(super) fn new() -> (Self, BoxTask) {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let carried_out = Arc::new(AtomicBool::new(false));
        let task = BoxTask { events: sender, requests: receiver, carried_out: carried_out.clone() };
        (Self { events, requests, carried_out }, task)
    }

    /// Begins another round. `false`: the reading has ended.
    pub async fn new_round(&self, users: Vec<UserKey>) -> bool {
        self.requests.send(BoxRequest::NewRound(users)).await.is_ok()
    }

    /// Ends the reading and leaves the marker: something that was shown is not acknowledged. Returns when the broker has
    /// taken back what was not acknowledged. `false`: the link was lost, and what was acknowledged may lie in the box
    /// again.
    pub async fn close_leaving_marker(self) -> bool {
        let Self { mut events, requests, carried_out } = self;
        drop(requests);
        while events.recv().await.is_some() {}
        carried_out.load(Ordering::Acquire)
    }

    /// Ends the reading, removes the marker, and waits until the broker has taken back what was not acknowledged.
    /// `false` as above.
    pub async fn close_cleanly(mut self) -> bool {
        if self.requests.send(BoxRequest::CloseCleanly).await.is_ok() {
            // Not closed from here: a closed channel ends before its sender has.
            while self.events.recv().await.is_some() {}
        }
        self.carried_out.load(Ordering::Acquire)
    }
}

/// Whether mail that the broker marks as redelivered may have been shown, given the markers that were found.
pub fn may_have_been_shown(mail: u64, user: UserKey, abandoned: &[Abandoned]) -> bool {
    abandoned.iter().any(|marker| mail <= marker.behind && marker.users.contains(&user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_users_before_the_marker_may_have_seen_their_mail() {
        let left = [Abandoned { behind: 3, users: vec![UserKey(1)] }];
        assert!(may_have_been_shown(3, UserKey(1), &left));
        assert!(!may_have_been_shown(4, UserKey(1), &left));
        assert!(!may_have_been_shown(1, UserKey(2), &left));
    }

    #[test]
    fn every_user_has_one_box() {
        let boxes = NonZeroU32::new(8).unwrap();
        assert_eq!(BoxNumber::of(UserKey(17), boxes), BoxNumber(1));
        assert_eq!(BoxSettings::BOXES_DEFAULT.get(), 1024);
    }
}
