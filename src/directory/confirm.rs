//! Which of this node's joins the live peers have merged: what the reply to a subscription waits for. Pure.
//!
//! A delta with a key that is waited for asks its receivers for a word, and each peer answers with the seq that it has
//! merged. A peer that has missed an earlier delta knows so from the gap, and tells everyone until that is repaired; so
//! its word for the later one is enough.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::key::{Key, KeyHash};
use crate::ids::{Incarnation, NodeId};

/// Longest wait for the peers: one that is dead but not yet known to be must not hold up a subscriber for longer.
pub const CONFIRM_MAX: Duration = Duration::from_secs(1);

/// By this the caller knows what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitId(u64);

#[derive(Debug)]
struct Wait {
    key: Key,
    /// The delta that must be merged; `None`: it has not been published yet.
    seq: Option<u64>,
    /// The peers that have not said that they merged it.
    missing: Vec<NodeId>,
    deadline: Duration,
}

/// What a peer has been asked for and has not answered.
#[derive(Debug)]
struct Asked {
    incarnation: Incarnation,
    seq: u64,
    at: Duration,
}

#[derive(Debug, Default)]
pub struct Confirms {
    next: u64,
    /// In the order of their deadlines, since all wait equally long.
    waits: BTreeMap<WaitId, Wait>,
    /// Waits for a delta that has not been published.
    unpublished: HashMap<Key, Vec<WaitId>, KeyHash>,
    asked: BTreeMap<NodeId, Asked>,
    /// The set is being told from the beginning: every delta asks, since some of its keys were confirmed before.
    is_anew: bool,
}

impl Confirms {
    /// Waits until the peers know of a key that this node has. `is_pending`: it stands in no delta yet. `None`: there
    /// is nothing to wait for.
    pub fn wait(&mut self, key: Key, is_pending: bool, has_peers: bool, now: Duration) -> Option<WaitId> {
        let mut missing = Vec::new();
        let mut seq = None;
        if !is_pending {
            let recent = self.asked.iter().filter(|(_, asked)| now < asked.at + CONFIRM_MAX);
            for (node, asked) in recent {
                missing.push(node.clone());
                seq = seq.max(Some(asked.seq));
            }
        }
        if if is_pending { !has_peers } else { missing.is_empty() } {
            return None;
        }
        let id = WaitId(self.next);
        self.next += 1;
        if is_pending {
            self.unpublished.entry(key).or_default().push(id);
        }
        self.waits.insert(id, Wait { key, seq, missing, deadline: now + CONFIRM_MAX });
        Some(id)
    }

    /// A delta is published. Whether it is to ask `peers` for their word.
    pub fn published<'a>(
        &mut self,
        seq: u64,
        joined: &[Key],
        peers: impl Iterator<Item = (&'a NodeId, Incarnation)> + Clone,
        now: Duration,
    ) -> bool {
        let mut asks = self.is_anew;
        if !self.unpublished.is_empty() {
            for key in joined {
                for id in self.unpublished.remove(key).into_iter().flatten() {
                    let Some(wait) = self.waits.get_mut(&id) else { continue };
                    wait.seq = Some(seq);
                    wait.missing = peers.clone().map(|(node, _)| node.clone()).collect();
                    asks = true;
                }
            }
        }
        if asks {
            for (node, incarnation) in peers {
                self.asked.insert(node.clone(), Asked { incarnation, seq, at: now });
            }
        }
        asks
    }

    /// The whole set has been told.
    pub fn all_published(&mut self) {
        self.is_anew = false;
    }

    /// The peer has merged the delta `seq`. Returns what has been waited for long enough.
    pub fn merged(&mut self, node: &NodeId, incarnation: Incarnation, seq: u64) -> Vec<WaitId> {
        if self.asked.get(node).is_some_and(|asked| asked.incarnation == incarnation && asked.seq <= seq) {
            self.asked.remove(node);
        }
        self.without(node, |wait| wait.seq.is_some_and(|of| of <= seq))
    }

    /// The peer, or that incarnation of it, is gone.
    pub fn gone(&mut self, node: &NodeId) -> Vec<WaitId> {
        self.asked.remove(node);
        self.without(node, |wait| wait.seq.is_some())
    }

    fn without(&mut self, node: &NodeId, applies: impl Fn(&Wait) -> bool) -> Vec<WaitId> {
        let mut done = Vec::new();
        for (id, wait) in self.waits.iter_mut().filter(|(_, wait)| applies(wait)) {
            wait.missing.retain(|missing| missing != node);
            if wait.missing.is_empty() {
                done.push(*id);
            }
        }
        self.forget(&done);
        done
    }

    /// This node no longer has the key: there is nothing to tell.
    pub fn left(&mut self, key: Key) -> Vec<WaitId> {
        let done = self.unpublished.remove(&key).unwrap_or_default();
        self.forget(&done);
        done
    }

    /// The waits whose time is over, and those for which nobody is left to answer.
    pub fn expire(&mut self, now: Duration) -> Vec<WaitId> {
        let is_over = |wait: &Wait| wait.deadline <= now || wait.seq.is_some() && wait.missing.is_empty();
        let done: Vec<_> = self.waits.iter().filter(|(_, wait)| is_over(wait)).map(|(id, _)| *id).collect();
        for id in &done {
            let key = self.waits.get(id).map(|wait| wait.key);
            if let Some(ids) = key.and_then(|key| self.unpublished.get_mut(&key)) {
                ids.retain(|other| other != id);
            }
        }
        self.unpublished.retain(|_, ids| !ids.is_empty());
        self.forget(&done);
        done
    }

    fn forget(&mut self, done: &[WaitId]) {
        for id in done {
            self.waits.remove(id);
        }
    }

    pub fn due(&self) -> Option<Duration> {
        self.waits.first_key_value().map(|(_, wait)| wait.deadline)
    }

    /// A new incarnation tells its whole set again: what was asked for is void.
    pub fn begin_anew(&mut self) {
        self.asked.clear();
        self.is_anew = true;
        for (id, wait) in &mut self.waits {
            if wait.seq.take().is_some() {
                wait.missing.clear();
                self.unpublished.entry(wait.key).or_default().push(*id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(9);

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn key(n: u64) -> Key {
        Key::for_test(n)
    }

    const INC: Incarnation = Incarnation::from_u128(1);

    fn publish(confirms: &mut Confirms, seq: u64, keys: &[u64], peers: &[NodeId]) -> bool {
        let keys: Vec<_> = keys.iter().map(|n| key(*n)).collect();
        confirms.published(seq, &keys, peers.iter().map(|peer| (peer, INC)), NOW)
    }

    #[test]
    fn all_peers_of_the_moment_must_have_merged_it() {
        let mut confirms = Confirms::default();
        let peers = [node("a"), node("b")];
        let wait = confirms.wait(key(1), true, true, NOW).unwrap();
        assert!(!publish(&mut confirms, 1, &[2], &peers), "nobody waits for that key");
        assert!(publish(&mut confirms, 2, &[1], &peers));
        assert!(confirms.merged(&peers[0], INC, 1).is_empty(), "an earlier one");
        assert!(confirms.merged(&peers[0], INC, 2).is_empty());
        // A second subscriber waits for those who have not answered.
        let second = confirms.wait(key(1), false, true, NOW).unwrap();
        assert_eq!(confirms.merged(&peers[1], INC, 3), [wait, second], "a later one says the same");
        assert_eq!(confirms.wait(key(1), false, true, NOW), None, "all know it");
        assert_eq!(confirms.due(), None);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut confirms = Confirms::default();
        assert_eq!(confirms.wait(key(1), true, false, NOW), None, "alone");
        let peers = [node("a"), node("b")];
        let first = confirms.wait(key(1), true, true, NOW).unwrap();
        publish(&mut confirms, 1, &[1], &peers);
        assert!(confirms.gone(&peers[0]).is_empty());
        assert_eq!(confirms.gone(&peers[1]), [first]);
        let left = confirms.wait(key(2), true, true, NOW).unwrap();
        assert_eq!(confirms.left(key(2)), [left]);
        let silent = confirms.wait(key(3), true, true, NOW).unwrap();
        publish(&mut confirms, 2, &[3], &peers);
        assert_eq!(confirms.due(), Some(NOW + CONFIRM_MAX));
        assert_eq!(confirms.expire(NOW + CONFIRM_MAX), [silent]);
        let next = confirms.wait(key(3), false, true, NOW + CONFIRM_MAX);
        assert_eq!(next, None, "a peer that does not answer costs one wait");
    }

    #[test]
    fn a_new_incarnation_asks_again() {
        let mut confirms = Confirms::default();
        let peers = [node("a")];
        let wait = confirms.wait(key(1), true, true, NOW).unwrap();
        publish(&mut confirms, 7, &[1], &peers);
        confirms.begin_anew();
        assert!(confirms.merged(&peers[0], INC, 7).is_empty());
        assert!(publish(&mut confirms, 1, &[1, 2], &peers));
        let second = confirms.wait(key(2), false, true, NOW).unwrap();
        assert_eq!(confirms.merged(&peers[0], INC, 1), [wait, second]);
        confirms.all_published();
        assert!(!publish(&mut confirms, 2, &[3], &peers));
    }
}
