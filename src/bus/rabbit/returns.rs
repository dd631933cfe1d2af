//! Which publish a returned message belongs to, when many are in flight.
//!
//! The broker returns an unroutable message before it confirms it. The client library keeps returned messages
//! in a line and hands the oldest to whichever confirm completes next, so a confirm often carries the return
//! of another publish. Each publish that may come back therefore has our own number in a header, and a publish
//! is decided only when its return cannot be on its way any more:
//!
//! - its confirm carried nothing: the line was empty, so its own return, if any, was carried by a confirm that
//!   completed before and that a full look at all completed confirms shows;
//! - its confirm carried another's return: its own may still wait in the line, but each confirm that completes
//!   takes one out, so it has come out when all confirms that were then outstanding have completed.

use std::collections::{BTreeSet, HashSet};

use crate::bus::Outcome;

#[derive(Debug, Default)]
pub struct Returns {
    /// Sent and not yet confirmed.
    outstanding: BTreeSet<u64>,
    last_sent: u64,
    returned: HashSet<u64>,
    undecided: Vec<Undecided>,
}

#[derive(Debug)]
struct Undecided {
    sequence: u64,
    outcome: Outcome,
    /// To be decided when no publish up to this one is outstanding.
    horizon: u64,
}

impl Returns {
    /// Sequences are handed in ascending.
    pub fn sent(&mut self, sequence: u64) {
        self.outstanding.insert(sequence);
        self.last_sent = sequence;
    }

    /// A confirm completed. `carried` is the number of the returned message that came with it. Answers at once
    /// for what cannot be returned; the rest is decided by [`Returns::decide`].
    pub fn confirmed(
        &mut self,
        sequence: u64,
        outcome: Outcome,
        carried: Option<u64>,
        mandatory: bool,
    ) -> Option<Outcome> {
        self.outstanding.remove(&sequence);
        self.returned.extend(carried);
        if !mandatory {
            return Some(outcome);
        }
        let horizon = if carried.is_some() { self.last_sent } else { 0 };
        self.undecided.push(Undecided { sequence, outcome, horizon });
        None
    }

    /// To be called only after a look at all completed confirms that found none which is not known here.
    pub fn decide(&mut self, mut answer: impl FnMut(u64, Outcome)) {
        let oldest = self.outstanding.first().copied().unwrap_or(u64::MAX);
        let returned = &mut self.returned;
        self.undecided.retain(|publish| {
            if returned.remove(&publish.sequence) {
                answer(publish.sequence, Outcome::Unroutable);
            } else if oldest > publish.horizon {
                answer(publish.sequence, publish.outcome);
            } else {
                return true;
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    /// The line of returned messages inside the client library, and the confirms that it has completed.
    #[derive(Default)]
    struct Library {
        line: VecDeque<u64>,
        completed: Vec<(u64, Option<u64>)>,
    }

    impl Library {
        fn complete(&mut self, sequence: u64) {
            let carried = self.line.pop_front();
            self.completed.push((sequence, carried));
        }
    }

    proptest! {
        /// Publishes in rounds; the broker returns in order, confirms in any order with gaps, and the lane looks
        /// at completed confirms in any order and at any moment, also in the middle of a multiple confirm.
        #[test]
        fn every_return_finds_its_publish(
            routable in prop::collection::vec(any::<bool>(), 1..80),
            shuffle in prop::collection::vec(any::<u32>(), 80),
            chunk in 1..9usize,
            look in prop::collection::vec(any::<bool>(), 80),
        ) {
            let mut library = Library::default();
            let mut returns = Returns::default();
            let mut decided = BTreeMap::new();
            let mut unconfirmed: Vec<u64> = vec![];
            let looking = |library: &mut Library, returns: &mut Returns, decided: &mut BTreeMap<u64, Outcome>| {
                let mut seen = std::mem::take(&mut library.completed);
                seen.sort_by_key(|(sequence, _)| shuffle[*sequence as usize % 80]);
                for (sequence, carried) in seen {
                    returns.confirmed(sequence, Outcome::Confirmed, carried, true);
                }
                returns.decide(|sequence, outcome| assert!(decided.insert(sequence, outcome).is_none()));
            };
            let kinds = routable.clone();
            for (at, routable) in routable.iter().enumerate() {
                let sequence = at as u64 + 1;
                returns.sent(sequence);
                if !routable {
                    library.line.push_back(sequence);
                }
                unconfirmed.push(sequence);
                if unconfirmed.len() >= chunk {
                    unconfirmed.sort_by_key(|s| shuffle[(*s as usize * 7) % 80]);
                    // A routable publish may be confirmed much later; an unroutable one is confirmed at once.
                    let mut late = vec![];
                    for s in unconfirmed.drain(..) {
                        if kinds[s as usize - 1] && look[s as usize % 80] {
                            late.push(s);
                            continue;
                        }
                        library.complete(s);
                        if look[(s as usize * 3) % 80] {
                            looking(&mut library, &mut returns, &mut decided);
                        }
                    }
                    unconfirmed = late;
                }
            }
            for s in unconfirmed.drain(..) {
                library.complete(s);
            }
            looking(&mut library, &mut returns, &mut decided);
            for (at, routable) in routable.iter().enumerate() {
                let wanted = if *routable { Outcome::Confirmed } else { Outcome::Unroutable };
                prop_assert_eq!(decided.get(&(at as u64 + 1)), Some(&wanted), "publish {}", at + 1);
            }
            prop_assert!(returns.returned.is_empty());
        }
    }
}
