//! How much users may publish over HTTP: the budget of a socket, kept for each user of this node.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::config::RateLimit;
use crate::ids::UserId;

/// Users whose bucket is not full. Overflow policy: further users are refused as `rate_limited`.
const USERS_MAX: usize = 1 << 20;
/// Full buckets are swept out when there are twice as many as after the last sweep, and at least so many.
const SWEEP_MIN: usize = 1024;

#[derive(Debug)]
pub struct UserRates {
    rate: Option<RateLimit>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// A full bucket is the same as none. The hasher is seeded: users choose their names.
    by_user: HashMap<UserId, Bucket>,
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    fn refilled(self, rate: RateLimit, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        (self.tokens + passed * f64::from(rate.per_second.get())).min(f64::from(rate.burst.get()))
    }
}

impl UserRates {
    /// Without a rate nobody is limited.
    pub fn new(rate: Option<RateLimit>) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes the token for one message; `false` if there is none.
    pub(super) fn take(&self, user: &UserId, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.by_user.get_mut(user) {
            let tokens = bucket.refilled(rate, now);
            let taken = tokens >= 1.0;
            *bucket = Bucket { tokens: if taken { tokens - 1.0 } else { tokens }, filled_at: now };
            return taken;
        }
        buckets.sweep(rate, now);
        if buckets.by_user.len() >= USERS_MAX {
            return false;
        }
        let tokens = f64::from(rate.burst.get()) - 1.0;
        buckets.by_user.insert(user.clone(), Bucket { tokens, filled_at: now });
        true
    }
}

impl Buckets {
    fn sweep(&mut self, rate: RateLimit, now: Instant) {
        if self.by_user.len() >= self.sweep_at.max(SWEEP_MIN) {
            let full = f64::from(rate.burst.get());
            self.by_user.retain(|_, bucket| bucket.refilled(rate, now) < full);
            self.sweep_at = self.by_user.len() * 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::time::Duration;

    fn rate() -> RateLimit {
        RateLimit { per_second: NonZeroU32::new(10).unwrap(), burst: NonZeroU32::new(3).unwrap() }
    }

    #[test]
    fn each_user_has_a_bucket() {
        let rates = UserRates::new(Some(rate()));
        let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
        let now = Instant::now();
        let taken: Vec<bool> = (0..4).map(|_| rates.take(&alice, now)).collect();
        assert_eq!(taken, [true, true, true, false]);
        assert!(rates.take(&bob, now), "another user's flood costs nobody else");
        assert!(!rates.take(&alice, now + Duration::from_millis(99)));
        assert!(rates.take(&alice, now + Duration::from_millis(200)));
        assert!(UserRates::new(None).take(&alice, now));
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let rates = UserRates::new(Some(rate()));
        let now = Instant::now();
        for at in 0..SWEEP_MIN * 4 {
            let user = UserId::new(&format!("user{at}")).unwrap();
            assert!(rates.take(&user, now + Duration::from_millis(at as u64)));
        }
        assert!(rates.buckets.lock().unwrap().by_user.len() < SWEEP_MIN * 2);
    }
}
