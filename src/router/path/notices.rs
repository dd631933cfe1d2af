//! Notices of mail in the target's box: which of them a reading has covered, and when the box is read again.

use std::time::{Duration, Instant};

/// A user who has yet to take what there is, and takes nothing for so long, has the box read all the same.
const MORE_AFTER: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Notices {
    /// Heard, and covered by the last round of reading.
    wanted: u32,
    covered: u32,
    /// Since when further mail is known to lie in the box while the user has yet to take what there is.
    more_since: Option<Instant>,
}

impl Notices {
    /// The box is to be read now.
    pub(super) fn want(&mut self) {
        self.more_since = None;
        self.wanted = self.wanted.wrapping_add(1);
    }

    /// It is to be read when the user has taken what there is: one reading for all that is told meanwhile.
    pub(super) fn want_later(&mut self, now: Instant) {
        self.more_since.get_or_insert(now);
    }

    /// Whether the time for that has come.
    pub(super) fn is_more_due(&self, has_room: bool, now: Instant) -> bool {
        let is_due = |since: Instant| has_room || now >= since + MORE_AFTER;
        self.are_covered() && self.more_since.is_some_and(is_due)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.more_since.map(|since| since + MORE_AFTER).filter(|_| self.are_covered())
    }

    /// A round of reading that covers so many has ended.
    pub(super) fn cover(&mut self, covers: u32) {
        self.covered = covers;
    }

    /// Nobody is left to read for.
    pub(super) fn void(&mut self) {
        self.covered = self.wanted;
        self.more_since = None;
    }

    /// Nothing has to be read before what is newer.
    pub(super) fn are_covered(&self) -> bool {
        self.wanted == self.covered
    }

    pub(super) fn are_none(&self) -> bool {
        self.are_covered() && self.more_since.is_none()
    }

    pub(super) fn wanted(&self) -> Option<u32> {
        (!self.are_covered()).then_some(self.wanted)
    }

    pub(super) fn covered(&self) -> u32 {
        self.covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_wait_waits_for_room_and_not_for_ever() {
        let (mut notices, now) = (Notices::default(), Instant::now());
        notices.want();
        notices.want_later(now);
        assert!(!notices.is_more_due(true, now), "a round is under way");
        notices.cover(1);
        assert!(notices.is_more_due(true, now) && !notices.is_more_due(false, now));
        assert_eq!(notices.due(), Some(now + MORE_AFTER));
        assert!(notices.is_more_due(false, now + MORE_AFTER) && !notices.are_none());
        notices.want();
        assert_eq!((notices.wanted(), notices.due()), (Some(2), None));
        notices.void();
        assert!(notices.are_none());
    }
}
