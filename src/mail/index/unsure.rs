//! Boxes out of which another node said lately that it took mail: its acknowledgements are lost if it dies before they
//! reach the broker, and the mail lies there although nobody counts it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::bus::BoxNumber;
use crate::ids::NodeId;

/// An acknowledgement is with the broker after so long, or its link is known to be lost.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// At most one entry for each box.
#[derive(Default)]
pub struct Unsure {
    taken: HashMap<BoxNumber, Instant>,
}

impl Unsure {
    pub fn note_taken(&mut self, number: BoxNumber, now: Instant) {
        self.taken.insert(number, now);
    }

    pub fn lately(&mut self, now: Instant) -> Vec<BoxNumber> {
        self.taken.retain(|_, at| now.saturating_duration_since(*at) < UNDER_WAY);
        self.taken.keys().copied().collect()
    }
}

/// Rendezvous hashing: of all live nodes the one whose hash with the box is the highest.
pub fn is_responsible(own: &NodeId, live: &[NodeId], number: BoxNumber) -> bool {
    let weight = |node: &NodeId| xxh3_64_with_seed(node.as_str().as_bytes(), u64::from(number.0));
    let mine = weight(own);
    live.iter().all(|node| (weight(node), node) <= (mine, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_long_ago_is_sure() {
        let (mut unsure, now) = (Unsure::default(), Instant::now());
        unsure.note_taken(BoxNumber(1), now);
        unsure.note_taken(BoxNumber(2), now + UNDER_WAY / 2);
        let mut lately = unsure.lately(now + UNDER_WAY / 2);
        lately.sort_unstable();
        assert_eq!(lately, [BoxNumber(1), BoxNumber(2)]);
        assert_eq!(unsure.lately(now + UNDER_WAY), [BoxNumber(2)]);
        assert_eq!(unsure.lately(now + UNDER_WAY * 2), []);
    }
}
