//! A token bucket of eight bytes: how many publishes a session may make. Pure.

use crate::config::RateLimit;

#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f32,
    /// Milliseconds on the worker's clock.
    filled_at: u32,
}

impl Bucket {
    pub(super) fn full(rate: Option<RateLimit>, now: u32) -> Self {
        Self { tokens: rate.map_or(0.0, |rate| rate.burst.get() as f32), filled_at: now }
    }

    /// Takes a token; `None` if there is none. Without a rate there always is one.
    pub(super) fn take(mut self, rate: Option<RateLimit>, now: u32) -> Option<Self> {
        let Some(rate) = rate else { return Some(self) };
        let passed_s = now.wrapping_sub(self.filled_at) as f32 / 1000.0;
        let refilled = self.tokens + passed_s * rate.per_second.get() as f32;
        self.tokens = refilled.min(rate.burst.get() as f32);
        self.filled_at = now;
        (self.tokens >= 1.0).then_some(Self { tokens: self.tokens - 1.0, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn bursts_then_refills_exactly() {
        let rate =
            Some(RateLimit { per_second: NonZeroU32::new(10).unwrap(), burst: NonZeroU32::new(3).unwrap() });
        let mut bucket = Bucket::full(rate, 0);
        for _ in 0..3 {
            bucket = bucket.take(rate, 0).unwrap();
        }
        assert!(bucket.take(rate, 99).is_none());
        assert!(bucket.take(rate, 100).is_some());
        let mut later = bucket.take(rate, 100_000).unwrap();
        for _ in 0..2 {
            later = later.take(rate, 100_000).unwrap();
        }
        assert!(later.take(rate, 100_000).is_none(), "never more than the burst");
        assert!(Bucket::full(None, 0).take(None, 0).is_some());
    }
}
