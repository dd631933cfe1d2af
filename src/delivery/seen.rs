//! The ids that sessions of this node have taken lately, so that a repeat is answered but not shown twice. Pure.
//!
//! What is remembered is bounded in time and in number: ten minutes, and [`GENERATIONS`] × [`GENERATION_MAX`] messages.
//! Which of the two comes first depends on the rate: up to 4,000 messages a second it is the ten minutes, at 20,000 a
//! second it is 105 seconds at least.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_128;

use crate::delivery::envelope::Scope;
use crate::ids::MessageId;
use crate::protocol::target::Target;

/// Parts of the memory; the oldest is forgotten as a whole.
const GENERATIONS: usize = 8;
/// Messages of one part. All of it takes about 100 MB when full.
const GENERATION_MAX: usize = 300_000;
/// How long one part is added to: all parts but the newest are older than ten minutes together.
const GENERATION_AGE: Duration = Duration::from_secs(86);

/// One sender's message for one target, as a 128-bit hash: two senders may choose the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeenKey([u64; 2]);

impl SeenKey {
    pub fn new(scope: Scope, id: &MessageId, target: &Target) -> Self {
        let mut text = Vec::with_capacity(96);
        text.extend_from_slice(&scope.0.to_be_bytes());
        text.extend_from_slice(id.as_str().as_bytes());
        // Not part of any message id, so that two pairs never read the same.
        text.push(0);
        text.extend_from_slice(target.to_string().as_bytes());
        let hash = xxh3_128(&text);
        // The two halves: a u128 would make each entry a third larger by its alignment.
        Self([hash as u64, (hash >> 64) as u64])
    }
}

type Generation = HashMap<SeenKey, u32, RandomState>;

/// How many sessions took each message. Hashed with a random seed, since the ids are strangers' words.
#[derive(Debug)]
pub struct Seen {
    /// The newest first.
    generations: VecDeque<Generation>,
    newest_since: Instant,
    hasher: RandomState,
}

impl Seen {
    pub fn new(now: Instant) -> Self {
        let hasher = RandomState::new();
        let generations = VecDeque::from([Generation::with_hasher(hasher.clone())]);
        Self { generations, newest_since: now, hasher }
    }

    pub fn get(&self, key: SeenKey) -> Option<u32> {
        self.generations.iter().find_map(|generation| generation.get(&key).copied())
    }

    pub fn note(&mut self, key: SeenKey, sessions: u32, now: Instant) {
        self.rotate(now);
        if let Some(newest) = self.generations.front_mut() {
            newest.insert(key, sessions);
        }
    }

    /// Begins a new part when the newest is full or old enough; to be called now and then also without messages.
    pub fn rotate(&mut self, now: Instant) {
        let is_full = self.generations.front().is_some_and(|newest| newest.len() >= GENERATION_MAX);
        if !is_full && now.saturating_duration_since(self.newest_since) < GENERATION_AGE {
            return;
        }
        self.generations.push_front(Generation::with_hasher(self.hasher.clone()));
        self.generations.truncate(GENERATIONS);
        self.newest_since = now;
    }

    pub fn len(&self) -> usize {
        self.generations.iter().map(Generation::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> SeenKey {
        SeenKey::new(Scope(0), &MessageId::new(&format!("m{n}")).unwrap(), &Target::Broadcast)
    }

    #[test]
    fn ten_minutes_are_remembered_and_not_for_ever() {
        let start = Instant::now();
        let mut seen = Seen::new(start);
        seen.note(key(1), 3, start);
        for second in 0..=600 {
            seen.rotate(start + Duration::from_secs(second));
            assert_eq!(seen.get(key(1)), Some(3), "after {second} s");
        }
        for second in 600..1_000 {
            seen.rotate(start + Duration::from_secs(second));
        }
        assert!(seen.get(key(1)).is_none() && seen.is_empty());
    }

    #[test]
    fn a_high_rate_is_remembered_for_the_stated_time() {
        let start = Instant::now();
        let mut seen = Seen::new(start);
        // 20,000 a second for 105 s.
        let count = 20_000 * 105;
        for n in 0..count {
            seen.note(SeenKey([n as u64, 0]), 1, start + Duration::from_micros(50 * n as u64));
        }
        assert!(seen.get(SeenKey([0, 0])).is_some());
        assert!(seen.len() <= GENERATIONS * GENERATION_MAX);
    }
}
