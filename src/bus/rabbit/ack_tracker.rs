//! Which acknowledgements to send: as few as possible, and never one that the broker does not expect.

use std::collections::BTreeMap;

use crate::bus::Verdict;

/// One channel's deliveries, from the first unsettled tag on. The broker numbers them 1, 2, 3 and so on.
#[derive(Debug, Default)]
pub struct AckTracker {
    /// Every tag up to here is settled, at the broker or by the next [`AckTracker::multiple`].
    prefix: u64,
    /// The last acknowledged tag of the prefix that the broker has not been told; it covers those before it.
    unsent: Option<u64>,
    /// Settled tags beyond the prefix, and whether the broker knows.
    beyond: BTreeMap<u64, State>,
    /// How many of `beyond` are unsent.
    singles: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unsent,
    Sent,
}

impl AckTracker {
    /// Takes a verdict. A requeue is to be sent by the caller, at once and for this tag alone.
    pub fn settle(&mut self, tag: u64, verdict: Verdict) {
        let state = match verdict {
            Verdict::Ack => State::Unsent,
            Verdict::Requeue => State::Sent,
        };
        self.beyond.insert(tag, state);
        self.singles += usize::from(state == State::Unsent);
        while let Some(state) = self.beyond.remove(&(self.prefix + 1)) {
            self.prefix += 1;
            if state == State::Unsent {
                self.singles -= 1;
                self.unsent = Some(self.prefix);
            }
        }
    }

    /// The tag to acknowledge with `multiple`, if there is news. It is always one that the broker waits for:
    /// it refuses even a multiple acknowledgement whose own tag is settled.
    pub fn multiple(&mut self) -> Option<u64> {
        self.unsent.take()
    }

    pub fn has_singles(&self) -> bool {
        self.singles > 0
    }

    /// The tags to acknowledge one by one, because an earlier delivery still takes its time.
    pub fn single(&mut self) -> Vec<u64> {
        self.singles = 0;
        let unsent = self.beyond.iter_mut().filter(|(_, state)| **state == State::Unsent);
        unsent
            .map(|(tag, state)| {
                *state = State::Sent;
                *tag
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// What the broker does with acknowledgements.
    struct Broker {
        unsettled: BTreeSet<u64>,
        acked: BTreeSet<u64>,
    }

    impl Broker {
        fn ack(&mut self, tag: u64, multiple: bool) {
            assert!(self.unsettled.contains(&tag), "unknown delivery tag {tag}");
            let settled: Vec<u64> =
                self.unsettled.iter().copied().filter(|t| *t == tag || (multiple && *t < tag)).collect();
            for tag in settled {
                self.unsettled.remove(&tag);
                self.acked.insert(tag);
            }
        }
    }

    proptest! {
        #[test]
        fn the_broker_learns_each_verdict_and_nothing_else(
            steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0..4u8), 1..300)
        ) {
            let count = steps.len() as u64;
            let mut open: Vec<u64> = (1..=count).collect();
            let mut broker = Broker { unsettled: (1..=count).collect(), acked: BTreeSet::new() };
            let mut tracker = AckTracker::default();
            let mut wanted = BTreeSet::new();
            for (pick, ack, flush) in steps {
                let tag = open.remove(pick.index(open.len()));
                tracker.settle(tag, if ack { Verdict::Ack } else { Verdict::Requeue });
                if ack {
                    wanted.insert(tag);
                } else {
                    prop_assert!(broker.unsettled.remove(&tag));
                }
                if flush & 1 != 0 {
                    if let Some(tag) = tracker.multiple() {
                        broker.ack(tag, true);
                    }
                }
                if flush & 2 != 0 {
                    tracker.single().into_iter().for_each(|tag| broker.ack(tag, false));
                }
                prop_assert!(broker.acked.is_subset(&wanted));
            }
            if let Some(tag) = tracker.multiple() {
                broker.ack(tag, true);
            }
            prop_assert!(!tracker.has_singles());
            prop_assert!(tracker.single().is_empty());
            prop_assert_eq!(broker.acked, wanted);
            prop_assert!(broker.unsettled.is_empty());
            prop_assert!(tracker.beyond.is_empty());
        }
    }
}
