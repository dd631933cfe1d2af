//! A token bucket for each key: for users, whatever door they come through, and for addresses.
//!
//! Strangers choose the keys, so the table is bounded and its hasher seeded. A full bucket is the same as none, so that
//! only those who did something lately take room.
//!
//! Locks: a shard's mutex is held for one access, and nothing is called meanwhile but the removal of full buckets.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::bucket::{Bucket, Pace};

const SHARDS: usize = 32;
/// Full buckets are removed when a shard has twice as many as after the last time, and at least so many.
const SWEEP_MIN: usize = 64;

#[derive(Debug)]
pub struct Rates<K> {
    /// `None`: nobody is limited.
    pace: Option<Pace>,
    /// Buckets of a shard that are not full. Overflow policy: other keys get no token.
    shard_max: usize,
    began: Instant,
    hasher: RandomState,
    shards: Box<[Mutex<Shard<K>>]>,
}

#[derive(Debug)]
struct Shard<K> {
    buckets: HashMap<K, Bucket>,
    sweep_at: usize,
}

impl<K: Clone + Eq + Hash> Rates<K> {
    /// For `keys_max` keys at the same time.
    pub fn new(pace: Option<Pace>, keys_max: usize) -> Self {
        let shard = || Mutex::new(Shard { buckets: HashMap::new(), sweep_at: SWEEP_MIN });
        Self {
            pace,
            shard_max: keys_max.div_ceil(SHARDS),
            began: Instant::now(),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }

    /// Whether there is a token, which stays.
    pub fn has_one(&self, key: &K, now: Instant) -> bool {
        let Some(pace) = self.pace else { return true };
        let now_ms = now.saturating_duration_since(self.began).as_millis() as u64;
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        let shard = self.shards[at].lock().unwrap_or_else(PoisonError::into_inner);
        shard.buckets.get(key).is_none_or(|bucket| bucket.take(pace, 1, now_ms).is_some())
    }

    /// Takes so many tokens, or none and `false` if there are not enough.
    pub fn take(&self, key: &K, tokens: u32, now: Instant) -> bool {
        let Some(pace) = self.pace else { return true };
        let now_ms = now.saturating_duration_since(self.began).as_millis() as u64;
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        let mut shard = self.shards[at].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = shard.buckets.get_mut(key) {
            let left = bucket.take(pace, tokens, now_ms);
            *bucket = left.unwrap_or(*bucket);
            return left.is_some();
        }
        let Some(left) = Bucket::FULL.take(pace, tokens, now_ms) else { return false };
        if shard.buckets.len() >= shard.sweep_at.min(self.shard_max) {
            shard.buckets.retain(|_, bucket| !bucket.is_full(now_ms));
            shard.sweep_at = (shard.buckets.len() * 2).max(SWEEP_MIN);
            if shard.buckets.len() >= self.shard_max {
                return false;
            }
        }
        shard.buckets.insert(key.clone(), left);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RateLimit;
    use std::num::NonZeroU32;
    use std::time::Duration;

    fn rates(keys_max: usize) -> Rates<String> {
        let rate = RateLimit { per_second: NonZeroU32::new(10).unwrap(), burst: NonZeroU32::new(3).unwrap() };
        Rates::new(Some(rate.into()), keys_max)
    }

    fn kept(rates: &Rates<String>) -> usize {
        rates.shards.iter().map(|shard| shard.lock().unwrap().buckets.len()).sum()
    }

    #[test]
    fn each_key_has_a_bucket() {
        let rates = rates(100);
        let (alice, bob) = ("alice".to_owned(), "bob".to_owned());
        let now = Instant::now();
        let taken: Vec<bool> = (0..4).map(|_| rates.take(&alice, 1, now)).collect();
        assert_eq!(taken, [true, true, true, false]);
        assert!(rates.take(&bob, 1, now), "another one's flood costs nobody else");
        assert!(!rates.take(&alice, 1, now + Duration::from_millis(98)));
        assert!(rates.take(&alice, 1, now + Duration::from_millis(201)));
        assert!(Rates::new(None, 0).take(&alice, 1, now));
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let rates = rates(1 << 20);
        let now = Instant::now();
        for at in 0..20_000 {
            assert!(rates.take(&format!("user{at}"), 1, now + Duration::from_millis(at)));
        }
        assert!(kept(&rates) < 2 * SHARDS * SWEEP_MIN, "{}", kept(&rates));
    }

    #[test]
    fn more_keys_than_there_is_room_for_get_nothing_until_others_are_full() {
        let rates = rates(1_000);
        let now = Instant::now();
        let granted = (0..10_000).filter(|at| rates.take(&format!("user{at}"), 1, now)).count();
        assert!(kept(&rates) <= 1_000 + SHARDS && granted == kept(&rates), "{granted}, {}", kept(&rates));
        assert!(rates.take(&"late".to_owned(), 1, now + Duration::from_secs(1)));
    }
}
