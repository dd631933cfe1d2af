//! The shutdown of a node as its sessions see it: closed one after the other, spread over a time. Pure.

use crate::session::deadlines::elapsed;

/// Sessions that are still to be closed, in an order that has nothing to do with their age, so that a cluster does not
/// get all the sessions of one service or page at the same moment.
#[derive(Debug)]
pub(super) struct Drain {
    counters: Vec<u64>,
    began: u32,
    spread_ms: u32,
    total: usize,
}

impl Drain {
    pub(super) fn new(mut counters: Vec<u64>, spread_ms: u32, now: u32) -> Self {
        for at in (1..counters.len()).rev() {
            counters.swap(at, rand::random_range(0..=at));
        }
        Self { total: counters.len(), counters, began: now, spread_ms }
    }

    /// Takes out the sessions whose turn has come.
    pub(super) fn due(&mut self, now: u32) -> Vec<u64> {
        let passed = u64::from(elapsed(self.began, now).min(self.spread_ms));
        let closed = match passed >= u64::from(self.spread_ms) {
            true => self.total,
            false => (self.total as u64 * passed / u64::from(self.spread_ms)) as usize,
        };
        self.counters.split_off((self.total - closed).min(self.counters.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_spread_over_the_time_and_all_are_closed() {
        let mut drain = Drain::new((0..1_000).collect(), 2_000, u32::MAX - 500);
        let mut closed = Vec::new();
        for ms in (0..=2_000).step_by(100) {
            closed.extend(drain.due((u32::MAX - 500).wrapping_add(ms)));
            assert_eq!(closed.len(), ms as usize / 2);
        }
        assert_ne!(closed, (0..1_000).rev().collect::<Vec<_>>(), "not by age");
        closed.sort_unstable();
        assert_eq!(closed, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_time_all_are_closed_at_once() {
        assert_eq!(Drain::new(vec![1, 2], 0, 7).due(7).len(), 2);
        assert!(Drain::new(Vec::new(), 0, 7).due(7).is_empty());
    }
}
