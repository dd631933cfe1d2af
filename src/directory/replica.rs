//! The replica of one peer's set: merging its deltas, comparing it with heartbeats, repairing it by snapshots.
//!
//! A replica that may be wrong still serves as a hint while it is being repaired.

use std::collections::BTreeMap;
use std::time::Duration;

use super::gossip::{Delta, Snapshot};
use super::key::{Fingerprint, Key, KeySet};
use crate::ids::Incarnation;

/// A snapshot that does not come, or does not help, is asked for again after this long.
pub const REPAIR_RETRY: Duration = Duration::from_secs(1);
/// Most keys of deltas that are kept for what a snapshot does not hold yet; beyond it the oldest delta is
/// forgotten, and the snapshot may have to be asked for again.
const RECENT_KEYS_MAX: usize = 50_000;

#[derive(Debug)]
pub struct Replica {
    incarnation: Incarnation,
    /// The newest delta that is merged.
    seq: u64,
    keys: KeySet,
    /// When the last snapshot was asked for.
    asked_at: Option<Duration>,
    /// `None` while the replica is known to be right.
    repair: Option<Repair>,
}

#[derive(Debug)]
struct Repair {
    /// When to ask for a snapshot.
    ask_at: Duration,
    /// The deltas since the doubt arose, by seq. A snapshot overtakes some of them or is overtaken, since it
    /// comes through another queue.
    recent: BTreeMap<u64, Delta>,
    recent_keys: usize,
    assembly: Option<Assembly>,
}

/// The parts of one snapshot, as far as they are here.
#[derive(Debug)]
struct Assembly {
    seq: u64,
    have: Vec<bool>,
    missing: usize,
    keys: KeySet,
}

impl Replica {
    /// A new node has published no delta: its empty set at seq 0 is known to be right.
    pub fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, seq: 0, keys: KeySet::default(), asked_at: None, repair: None }
    }

    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
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

    pub fn synced(&self) -> bool {
        self.repair.is_none()
    }

    #[cfg(test)]
    pub fn state(&self) -> (u64, Fingerprint) {
        (self.seq, self.keys.fingerprint())
    }

    /// The replica may be wrong. The peer's next heartbeat settles it; failing that, a snapshot is asked for at
    /// `ask_at`.
    pub fn doubt(&mut self, ask_at: Duration) {
        // No two requests in less than the retry time, whatever gives rise to them.
        let ask_at = self.asked_at.map_or(ask_at, |asked| ask_at.max(asked + REPAIR_RETRY));
        match &mut self.repair {
            Some(repair) => repair.ask_at = repair.ask_at.min(ask_at),
            None => {
                let (recent, recent_keys, assembly) = (BTreeMap::new(), 0, None);
                self.repair = Some(Repair { ask_at, recent, recent_keys, assembly });
            }
        }
    }

    /// Whether a snapshot is to be asked for now. Saying so counts as asking.
    pub fn ask(&mut self, now: Duration) -> bool {
        match &mut self.repair {
            Some(repair) if repair.ask_at <= now => {
                repair.ask_at = now + REPAIR_RETRY;
                // Another snapshot of the same seq may be cut into other parts: never mix the two.
                repair.assembly = None;
                self.asked_at = Some(now);
                true
            }
            _ => false,
        }
    }

    pub fn merge(&mut self, delta: Delta, now: Duration) {
        let next = self.seq.saturating_add(1);
        if delta.seq > next {
            self.doubt(now);
        }
        if delta.seq >= next {
            self.seq = delta.seq;
            apply(&mut self.keys, &delta);
        }
        // An older one is a duplicate, or it went astray: then there is a doubt, and a snapshot may need it.
        if let Some(repair) = &mut self.repair {
            repair.keep(delta);
        }
    }

    /// The peer's set at `seq` is as `fingerprint` says.
    pub fn compare(&mut self, seq: u64, fingerprint: Fingerprint, now: Duration) {
        if seq < self.seq {
            return;
        }
        if fingerprint == self.keys.fingerprint() {
            // Deltas that were lost did not change anything in sum, or there was none.
            self.seq = seq;
            self.repair = None;
        } else {
            self.doubt(now);
        }
    }

    pub fn assemble(&mut self, part: Snapshot, now: Duration) {
        let Some(repair) = &mut self.repair else { return };
        // Parts are coming: asking again would only start it over.
        repair.ask_at = now + REPAIR_RETRY;
        if repair.assembly.as_ref().is_none_or(|assembly| assembly.seq < part.seq) {
            repair.assembly = Some(Assembly::new(part.seq, part.parts));
        }
        let complete = repair.assembly.as_mut().is_some_and(|assembly| assembly.put(&part));
        if !complete {
            return;
        }
        let Some(Assembly { mut keys, seq: mut reached, .. }) = repair.assembly.take() else { return };
        let mut unbroken = true;
        for (&seq, delta) in repair.recent.range(reached.saturating_add(1)..) {
            unbroken &= seq == reached.saturating_add(1);
            reached = seq;
            apply(&mut keys, delta);
        }
        // The snapshot with all that is known to have come after it is the best hint in any case.
        self.keys = keys;
        if unbroken && reached >= self.seq {
            self.seq = reached;
            self.repair = None;
        }
    }
}

fn apply(keys: &mut KeySet, delta: &Delta) {
    for &key in &delta.joined {
        keys.insert(key);
    }
    for &key in &delta.left {
        keys.remove(key);
    }
}

impl Repair {
    fn keep(&mut self, delta: Delta) {
        self.recent_keys += delta.joined.len() + delta.left.len();
        if let Some(same) = self.recent.insert(delta.seq, delta) {
            self.recent_keys -= same.joined.len() + same.left.len();
        }
        while self.recent_keys > RECENT_KEYS_MAX {
            let Some((_, oldest)) = self.recent.pop_first() else { return };
            self.recent_keys -= oldest.joined.len() + oldest.left.len();
        }
    }
}

impl Assembly {
    fn new(seq: u64, parts: u32) -> Self {
        let have = vec![false; parts as usize];
        Self { seq, missing: have.len(), have, keys: KeySet::default() }
    }

    /// Whether the snapshot is complete now.
    fn put(&mut self, part: &Snapshot) -> bool {
        if part.seq != self.seq || part.parts as usize != self.have.len() {
            return false;
        }
        let Some(have) = self.have.get_mut(part.part as usize) else { return false };
        if !std::mem::replace(have, true) {
            self.missing -= 1;
            for &key in &part.keys {
                self.keys.insert(key);
            }
        }
        self.missing == 0
    }
}
