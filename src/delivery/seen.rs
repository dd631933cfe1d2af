//! The ids that this node has delivered lately, so that a repeat is answered but not shown twice. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_128;

use crate::delivery::envelope::Scope;
use crate::ids::MessageId;
use crate::protocol::target::Target;

/// One sender's message for one target, as a 128-bit hash: two senders may choose the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeenKey(u128);

impl SeenKey {
    pub fn new(scope: Scope, id: &MessageId, target: &Target) -> Self {
        let mut text = Vec::with_capacity(96);
        text.extend_from_slice(&scope.0.to_be_bytes());
        text.extend_from_slice(id.as_str().as_bytes());
        // Not part of any message id, so that two pairs never read the same.
        text.push(0);
        text.extend_from_slice(target.to_string().as_bytes());
        Self(xxh3_128(&text))
    }
}

/// Bounded in number and age; what is over either limit is forgotten, oldest first.
#[derive(Debug)]
pub struct Seen<V> {
    known: HashMap<SeenKey, (Instant, V)>,
    order: VecDeque<(Instant, SeenKey)>,
    capacity: usize,
    age_max: Duration,
}

impl<V> Seen<V> {
    pub fn new(capacity: usize, age_max: Duration) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), capacity, age_max }
    }

    pub fn get_mut(&mut self, key: SeenKey) -> Option<&mut V> {
        self.known.get_mut(&key).map(|(_, value)| value)
    }

    /// Remembers `key`, which must not be known yet.
    pub fn insert(&mut self, key: SeenKey, value: V, now: Instant) {
        while let Some(&(at, oldest)) = self.order.front() {
            if self.order.len() < self.capacity && now.saturating_duration_since(at) <= self.age_max {
                break;
            }
            self.order.pop_front();
            // A key that was forgotten and came back has a younger place in the order.
            if self.known.get(&oldest).is_some_and(|(noted, _)| *noted == at) {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(key, (now, value));
        self.order.push_back((now, key));
    }

    /// Forgets `key` at once: the message was not delivered after all. Its place in the order is swept later.
    pub fn forget(&mut self, key: SeenKey) -> Option<V> {
        self.known.remove(&key).map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> SeenKey {
        SeenKey::new(Scope(0), &MessageId::new(&format!("m{n}")).unwrap(), &Target::Broadcast)
    }

    #[test]
    fn remembers_within_both_limits() {
        let (mut seen, start) = (Seen::new(3, Duration::from_secs(10)), Instant::now());
        let get = |seen: &mut Seen<u32>, n| seen.get_mut(key(n)).copied();
        for n in 0..4 {
            seen.insert(key(n), n, start);
        }
        assert_eq!((get(&mut seen, 0), get(&mut seen, 1), seen.len()), (None, Some(1), 3));
        seen.insert(key(9), 9, start + Duration::from_secs(11));
        assert_eq!((get(&mut seen, 3), get(&mut seen, 9), seen.len()), (None, Some(9), 1));
        assert_eq!(seen.forget(key(9)), Some(9));
        assert!(seen.is_empty());
    }
}
