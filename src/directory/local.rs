//! This node's own keys, and which of them have been published.

use std::collections::HashMap;
use std::time::Duration;

use super::gossip::DELTA_KEYS_MAX;
use super::key::{Fingerprint, Key, KeyHash, KeySet};

/// A change waits this long so that several changes share a delta.
pub const BATCH_WAIT: Duration = Duration::from_millis(20);

/// The keys of one delta.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    pub seq: u64,
    pub joined: Vec<Key>,
    pub left: Vec<Key>,
}

#[derive(Debug, Default)]
pub struct Local {
    keys: KeySet,
    /// How `keys` differs from what is published: true = joined since, false = left since. A key that goes the
    /// one way and back is in here no longer.
    pending: HashMap<Key, bool, KeyHash>,
    /// The set that follows from the deltas up to `seq`.
    published: Fingerprint,
    seq: u64,
    /// When `pending` is to be cut into deltas.
    due: Option<Duration>,
}

impl Local {
    /// Whether the next cut is now due at another time than before, so that a sleeper must be woken.
    pub fn join(&mut self, key: Key, now: Duration) -> bool {
        self.keys.insert(key) && self.change(key, true, now)
    }

    /// As for [`join`](Self::join).
    pub fn leave(&mut self, key: Key, now: Duration) -> bool {
        self.keys.remove(key) && self.change(key, false, now)
    }

    fn change(&mut self, key: Key, joined: bool, now: Duration) -> bool {
        // Each key goes in and out by turns, so a second change before the cut undoes the first.
        if self.pending.remove(&key).is_none() {
            self.pending.insert(key, joined);
        }
        let due = match self.pending.len() {
            0 => None,
            n if n >= DELTA_KEYS_MAX => Some(self.due.map_or(now, |due| due.min(now))),
            _ => Some(self.due.unwrap_or(now + BATCH_WAIT)),
        };
        let earlier = due.is_some_and(|due| self.due.is_none_or(|before| due < before));
        self.due = due;
        earlier
    }

    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The next delta, if it is time for one. Called again until `None`.
    pub fn cut(&mut self, now: Duration) -> Option<Cut> {
        if self.due? > now {
            return None;
        }
        self.seq += 1;
        let mut cut = Cut { seq: self.seq, joined: Vec::new(), left: Vec::new() };
        for (key, joined) in self.pending.extract_if(|_, _| true).take(DELTA_KEYS_MAX) {
            if joined {
                self.published.add(key);
                cut.joined.push(key);
            } else {
                self.published.remove(key);
                cut.left.push(key);
            }
        }
        if self.pending.is_empty() {
            self.due = None;
            // A burst of joins leaves a large table.
            self.pending.shrink_to(DELTA_KEYS_MAX);
        }
        Some(cut)
    }

    /// Whether the key is here and stands in no delta yet.
    pub fn is_pending(&self, key: Key) -> bool {
        self.pending.get(&key) == Some(&true)
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn contains(&self, key: Key) -> bool {
        self.keys.contains(key)
    }

    pub fn all(&self) -> impl Iterator<Item = Key> + '_ {
        self.keys.iter()
    }

    pub fn count(&self) -> usize {
        self.keys.count()
    }

    /// The set that the others should have once they have merged the delta [`seq`](Self::seq).
    pub fn published(&self) -> Fingerprint {
        self.published
    }

    pub fn published_keys(&self) -> Vec<Key> {
        let told = self.keys.iter().filter(|key| !self.pending.contains_key(key));
        let not_yet_untold = self.pending.iter().filter(|(_, joined)| !**joined).map(|(key, _)| *key);
        told.chain(not_yet_untold).collect()
    }

    /// A new incarnation begins with an empty set at seq 0; the whole set follows as deltas.
    pub fn begin_anew(&mut self, now: Duration) {
        self.seq = 0;
        self.published = Fingerprint::default();
        self.pending.clear();
        self.pending.extend(self.keys.iter().map(|key| (key, true)));
        self.due = (!self.pending.is_empty()).then_some(now);
    }

    #[cfg(test)]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1);

    fn key(n: u64) -> Key {
        Key::for_test(n)
    }

    #[test]
    fn changes_wait_for_company() {
        let mut local = Local::default();
        assert!(local.join(key(1), START), "the first change sets the clock");
        assert!(!local.join(key(2), START + BATCH_WAIT / 2));
        assert_eq!(local.cut(START + BATCH_WAIT / 2), None);
        let mut cut = local.cut(START + BATCH_WAIT).unwrap();
        cut.joined.sort();
        let mut both = vec![key(1), key(2)];
        both.sort();
        assert_eq!(cut, Cut { seq: 1, joined: both, left: vec![] });
        assert_eq!(local.published(), local.keys().fingerprint());
        assert_eq!(local.cut(START + BATCH_WAIT * 9), None);
    }

    #[test]
    fn there_and_back_within_a_batch_is_nothing() {
        let mut local = Local::default();
        local.join(key(1), START);
        local.leave(key(1), START);
        assert_eq!((local.due(), local.cut(START * 2)), (None, None));
        local.join(key(1), START);
        assert_eq!(local.cut(START * 2).unwrap().joined, [key(1)]);
        local.leave(key(1), START);
        local.join(key(1), START);
        assert_eq!(local.cut(START * 2), None);
        local.leave(key(1), START);
        local.join(key(1), START);
        local.leave(key(1), START);
        assert_eq!(local.cut(START * 2).unwrap().left, [key(1)]);
        assert_eq!(local.published(), Fingerprint::default());
    }

    #[test]
    fn a_full_batch_goes_at_once_and_the_rest_follows() {
        let mut local = Local::default();
        for n in 0..1_500 {
            let woken = local.join(key(n), START);
            assert_eq!(woken, n == 0 || n == 999, "{n}");
        }
        assert_eq!(local.cut(START).unwrap().joined.len(), 1_000);
        assert_eq!(local.published().count, 1_000);
        assert_eq!(local.published_keys().len(), 1_000);
        let rest = local.cut(START).unwrap();
        assert_eq!((rest.seq, rest.joined.len()), (2, 500));
        assert_eq!(local.cut(START), None);
    }

    #[test]
    fn published_keys_are_those_that_the_deltas_add_up_to() {
        let mut local = Local::default();
        local.join(key(1), START);
        local.join(key(2), START);
        local.cut(START * 2);
        local.leave(key(1), START);
        local.join(key(3), START);
        let mut told = KeySet::default();
        for key in local.published_keys() {
            told.insert(key);
        }
        assert_eq!(told.fingerprint(), local.published());
        assert!(told.contains(key(1)) && !told.contains(key(3)));
    }

    #[test]
    fn a_new_incarnation_tells_everything_again() {
        let mut local = Local::default();
        local.join(key(1), START);
        local.cut(START * 2);
        local.leave(key(1), START);
        local.join(key(2), START);
        local.begin_anew(START);
        assert_eq!(local.cut(START), Some(Cut { seq: 1, joined: vec![key(2)], left: vec![] }));
    }
}
