//! Events on their way to the broker, in order. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::event::Event;
use crate::ids::NodeId;

/// Events that wait at most, besides the parts of snapshots. Overflow policy: all are dropped, and a snapshot follows.
pub const EVENTS_MAX: usize = 10_000;
/// Events that the broker has not confirmed yet.
const WINDOW: usize = 64;
/// After an event that was not confirmed.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Which event an answer of the broker is about. One from before a [`Outbox::clear`] is about none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    generation: u64,
    number: u64,
}

#[derive(Debug)]
struct Item {
    event: Event,
    body: Bytes,
    is_confirmed: bool,
}

#[derive(Debug, Default)]
pub struct Outbox {
    generation: u64,
    items: VecDeque<Item>,
    /// The number of the first item.
    first: u64,
    /// How many of the items were sent, and how many of these have no answer.
    sent: usize,
    open: usize,
    has_failed: bool,
    not_before: Duration,
}

impl Outbox {
    /// `false`: too many wait, and it was not taken.
    #[must_use]
    pub fn push(&mut self, event: Event, by: &NodeId) -> bool {
        if self.items.len() >= EVENTS_MAX {
            return false;
        }
        self.push_beyond(event, by);
        true
    }

    /// A part of a snapshot.
    pub fn push_beyond(&mut self, event: Event, by: &NodeId) {
        let body = event.to_json(by);
        self.items.push_back(Item { event, body, is_confirmed: false });
    }

    pub fn clear(&mut self) {
        *self = Self { generation: self.generation + 1, ..Self::default() };
    }

    /// The next event to be sent now.
    pub fn next(&mut self, now: Duration) -> Option<(Sent, Event, Bytes)> {
        if self.has_failed || self.open >= WINDOW || now < self.not_before {
            return None;
        }
        let item = self.items.get(self.sent)?;
        let sent = Sent { generation: self.generation, number: self.first + self.sent as u64 };
        self.sent += 1;
        self.open += 1;
        Some((sent, item.event.clone(), item.body.clone()))
    }

    /// What was not confirmed is sent again, and all after it too: a newer event must not end up before an older one.
    pub fn answered(&mut self, sent: Sent, is_confirmed: bool, now: Duration) {
        if sent.generation != self.generation {
            return;
        }
        self.open = self.open.saturating_sub(1);
        self.has_failed |= !is_confirmed;
        let at = sent.number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(item) = at.and_then(|at| self.items.get_mut(at)) {
            item.is_confirmed = is_confirmed;
        }
        while self.sent > 0 && self.items.front().is_some_and(|item| item.is_confirmed) {
            self.items.pop_front();
            self.first += 1;
            self.sent -= 1;
        }
        if self.has_failed && self.open == 0 {
            (self.has_failed, self.sent, self.not_before) = (false, 0, now + AGAIN_AFTER);
            self.items.iter_mut().for_each(|item| item.is_confirmed = false);
        }
    }

    /// When something may be sent, if nothing happens before.
    pub fn due(&self) -> Option<Duration> {
        let has_more = !self.has_failed && self.open < WINDOW && self.sent < self.items.len();
        has_more.then_some(self.not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    const NOW: Duration = Duration::from_secs(1);

    fn event(number: usize) -> Event {
        Event::UserOnline { user: UserId::new(&number.to_string()).unwrap() }
    }

    fn node() -> NodeId {
        NodeId::new("n").unwrap()
    }

    #[test]
    fn what_follows_a_failure_is_sent_again_in_order() {
        let mut outbox = Outbox::default();
        for number in 0..5 {
            assert!(outbox.push(event(number), &node()));
        }
        let sent: Vec<_> = std::iter::from_fn(|| outbox.next(NOW)).collect();
        assert_eq!(sent.len(), 5);
        for (at, is_confirmed) in [(0, true), (2, true), (1, false), (4, true)] {
            outbox.answered(sent[at].0, is_confirmed, NOW);
            assert!(outbox.next(NOW + AGAIN_AFTER).is_none(), "one is still open");
        }
        outbox.answered(sent[3].0, true, NOW);
        assert_eq!(outbox.due(), Some(NOW + AGAIN_AFTER));
        assert!(outbox.next(NOW).is_none());
        let again: Vec<_> = std::iter::from_fn(|| outbox.next(NOW + AGAIN_AFTER)).collect();
        assert_eq!(again.iter().map(|of| of.1.clone()).collect::<Vec<_>>(), [1, 2, 3, 4].map(event));
        again.iter().for_each(|of| outbox.answered(of.0, true, NOW));
        assert!(outbox.items.is_empty() && outbox.due().is_none());
    }

    #[test]
    fn it_is_bounded_and_answers_from_before_it_was_cleared_mean_nothing() {
        let mut outbox = Outbox::default();
        assert!((0..EVENTS_MAX).all(|number| outbox.push(event(number), &node())));
        assert!(!outbox.push(event(0), &node()));
        let (sent, ..) = outbox.next(NOW).unwrap();
        outbox.clear();
        outbox.push_beyond(event(7), &node());
        outbox.answered(sent, true, NOW);
        assert_eq!(outbox.next(NOW).unwrap().1, event(7));
        for _ in 0..WINDOW + 10 {
            assert!(outbox.push(event(0), &node()));
        }
        assert_eq!(std::iter::from_fn(|| outbox.next(NOW)).count(), WINDOW - 1);
    }
}
