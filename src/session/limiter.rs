//! Which requests of a session are granted, which are refused, and when it is closed. Pure.

use crate::budgets::{Bucket, Pace};

/// Tokens that may be refused before a session is closed with 4101. One is forgiven every ten seconds: slow enough to
/// reach the limit at any rate above the allowed one, fast enough that rare mistakes of a long session do not add up.
const REFUSALS: Pace = Pace::new(10_000_000_000, 1_000);

/// What a session may still ask for, and be refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    requests: Bucket,
    refusals: Bucket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    Refused,
    /// Refused so often that the session must be closed.
    Close,
}

impl Allowance {
    pub(super) const FULL: Self = Self { requests: Bucket::FULL, refusals: Bucket::FULL };

    /// Asks for so many tokens of the session, and then of its user; `now_ms` is on the worker's clock.
    pub(super) fn ask(
        self,
        pace: Pace,
        tokens: u32,
        now_ms: u64,
        may_user: impl FnOnce() -> bool,
    ) -> (Self, Verdict) {
        if let Some(requests) = self.requests.take(pace, tokens, now_ms).filter(|_| may_user()) {
            return (Self { requests, ..self }, Verdict::Granted);
        }
        match self.refusals.take(REFUSALS, tokens, now_ms) {
            Some(refusals) => (Self { refusals, ..self }, Verdict::Refused),
            None => (self, Verdict::Close),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 requests a second, 200 at once.
    const PACE: Pace = Pace::new(10_000_000, 200);

    /// When a client that asks this often is closed.
    fn closed_after_ms(requests_per_second: u64, user_has: u32) -> Option<u64> {
        let (mut allowance, mut user_has) = (Allowance::FULL, user_has);
        for request in 0..requests_per_second * 600 {
            let now_ms = request * 1_000 / requests_per_second;
            let may_user = || {
                let may = user_has > 0;
                user_has = user_has.saturating_sub(1);
                may
            };
            let (left, verdict) = allowance.ask(PACE, 1, now_ms, may_user);
            if verdict == Verdict::Close {
                return Some(now_ms);
            }
            allowance = left;
        }
        None
    }

    #[test]
    fn a_session_above_its_rate_is_closed_whatever_the_rate() {
        for rate in [105, 110, 150, 200, 1_000, 10_000, 100_000] {
            let excess = rate - 100;
            // A thousand refusals, and the burst before the first of them.
            let expected_ms = 1_200 * 1_000 / excess;
            let closed_ms = closed_after_ms(rate, u32::MAX).expect("closed");
            assert!(closed_ms <= expected_ms + expected_ms / 20 + 10, "{rate}/s: after {closed_ms} ms");
        }
        assert_eq!(closed_after_ms(100, u32::MAX), None);
        assert_eq!(closed_after_ms(50, u32::MAX), None);
    }

    #[test]
    fn what_other_sessions_of_the_user_have_used_up_is_refused_here_as_well() {
        assert_eq!(Allowance::FULL.ask(PACE, 1, 0, || false).1, Verdict::Refused);
        let closed_ms = closed_after_ms(90, 0).expect("closed");
        assert!((10_000..13_000).contains(&closed_ms), "{closed_ms}");
    }
}
