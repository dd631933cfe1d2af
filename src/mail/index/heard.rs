//! Which batches of each node have been merged, so that a repeated batch counts once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::Life;

/// Batches back from the newest that are told apart. A node has fewer than this unconfirmed.
pub const WINDOW: u64 = 128;
/// A node that was silent for so long is forgotten: nothing of it is repeated any more.
const KEPT: Duration = Duration::from_secs(3600);

struct Window {
    newest: u64,
    /// Bit `n`: batch `newest - n` is merged.
    merged: u128,
    at: Instant,
}

#[derive(Default)]
pub struct Heard {
    lives: HashMap<Life, Window>,
}

impl Heard {
    /// Whether the batch is to be merged. What is older than the window counts as merged.
    pub fn admit(&mut self, life: Life, seq: u64, now: Instant) -> bool {
        if !self.lives.contains_key(&life) {
            self.lives.retain(|_, window| now.saturating_duration_since(window.at) < KEPT);
        }
        // Of a life that was not known, earlier batches may still be repeated; there is none before the first.
        let none_before = u32::try_from(seq).ok().and_then(|seq| u128::MAX.checked_shl(seq)).unwrap_or(0);
        let unheard = Window { newest: seq, merged: none_before, at: now };
        let window = self.lives.entry(life).or_insert(unheard);
        window.at = now;
        if seq > window.newest {
            let ahead = u32::try_from(seq - window.newest).unwrap_or(u32::MAX);
            window.merged = window.merged.checked_shl(ahead).unwrap_or(0) | 1;
            window.newest = seq;
            return true;
        }
        let back = window.newest - seq;
        if back >= WINDOW {
            return false;
        }
        let is_new = window.merged & (1 << back) == 0;
        window.merged |= 1 << back;
        is_new
    }

    /// For each life, the last batch up to which all are merged, as far as the window tells.
    pub fn covers(&self) -> Vec<(Life, u64)> {
        let up_to = |window: &Window| match window.merged {
            u128::MAX => window.newest,
            merged => window.newest.saturating_sub(u64::from(128 - (!merged).leading_zeros())),
        };
        self.lives.iter().map(|(life, window)| (*life, up_to(window))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_batch_counts_once_and_a_gap_is_not_covered() {
        let (now, life) = (Instant::now(), Life(1));
        let mut heard = Heard::default();
        assert!(heard.admit(life, 5, now) && !heard.admit(life, 5, now));
        assert_eq!(heard.covers(), [(life, 0)]);
        (1..5)
            .for_each(|earlier| assert!(heard.admit(life, earlier, now) && !heard.admit(life, earlier, now)));
        assert_eq!(heard.covers(), [(life, 5)]);
        assert!(heard.admit(life, 8, now));
        assert_eq!(heard.covers(), [(life, 5)]);
        assert!(heard.admit(life, 7, now) && !heard.admit(life, 7, now));
        assert_eq!(heard.covers(), [(life, 5)]);
        assert!(heard.admit(life, 6, now));
        assert_eq!(heard.covers(), [(life, 8)]);
        assert!(heard.admit(life, 8 + 500, now) && !heard.admit(life, 9, now));
        heard.admit(Life(2), 1, now + KEPT * 2);
        assert_eq!(heard.covers(), [(Life(2), 1)]);
    }
}
