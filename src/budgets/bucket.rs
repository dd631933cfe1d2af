//! Token buckets of eight bytes. Pure.

use crate::config::RateLimit;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Nanoseconds until a token has come back.
    token_ns: u64,
    burst: u32,
}

impl Pace {
    pub const fn new(token_ns: u64, burst: u32) -> Self {
        Self { token_ns, burst }
    }
}

impl From<RateLimit> for Pace {
    fn from(rate: RateLimit) -> Self {
        Self { token_ns: 1_000_000_000 / u64::from(rate.per_second.get()), burst: rate.burst.get() }
    }
}

/// The generic cell rate algorithm (ITU-T I.371 annex A): the moment at which the bucket will be full again, in
/// nanoseconds on the caller's clock. Integers only, so that no refill is lost to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    pub const FULL: Self = Self { full_at_ns: 0 };

    /// Takes so many tokens, or none if there are not enough. `now_ms` is on the caller's clock.
    pub fn take(self, pace: Pace, tokens: u32, now_ms: u64) -> Option<Self> {
        let now_ns = now_ms * 1_000_000;
        let full_at_ns = self.full_at_ns.max(now_ns) + pace.token_ns * u64::from(tokens);
        (full_at_ns - now_ns <= pace.token_ns * u64::from(pace.burst)).then_some(Self { full_at_ns })
    }

    pub fn is_full(self, now_ms: u64) -> bool {
        self.full_at_ns <= now_ms * 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn pace(per_second: u32, burst: u32) -> Pace {
        let number = |number| NonZeroU32::new(number).unwrap();
        RateLimit { per_second: number(per_second), burst: number(burst) }.into()
    }

    #[test]
    fn bursts_then_refills_exactly() {
        let pace = pace(10, 3);
        let mut bucket = Bucket::FULL;
        for _ in 0..3 {
            bucket = bucket.take(pace, 1, 0).unwrap();
        }
        assert!(bucket.take(pace, 1, 99).is_none());
        assert!(bucket.take(pace, 1, 100).is_some());
        assert!(bucket.take(pace, 2, 100).is_none(), "all or none");
        let later = bucket.take(pace, 3, 100_000).unwrap();
        assert!(later.take(pace, 1, 100_000).is_none(), "never more than the burst");
    }

    #[test]
    fn no_refill_is_lost_at_a_low_rate_and_a_large_burst() {
        let pace = pace(1, 1_000_000);
        let mut bucket = Bucket::FULL.take(pace, 1_000_000, 0).unwrap();
        for second in 1..=1_000u64 {
            bucket = bucket.take(pace, 1, second * 1_000).unwrap();
            assert!(bucket.take(pace, 1, second * 1_000 + 999).is_none());
        }
    }
}
