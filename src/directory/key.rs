//! Keys of the directory: stable 64-bit hashes of user ids and channel names, and sets of them.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::{ChannelName, UserId};

/// The name of a user or a channel in gossip. The same on every node and in every version.
///
/// Two ids with one hash would share their entries; that costs a `not_here` receipt and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(u64);

/// The kind of a key is the seed of its hash, so that the user `a` and the channel `a` differ.
const USER: u64 = 1;
const CHANNEL: u64 = 2;

impl Key {
    pub fn user(id: &UserId) -> Self {
        Self(xxh3_64_with_seed(id.as_str().as_bytes(), USER))
    }

    pub fn channel(name: &ChannelName) -> Self {
        Self(xxh3_64_with_seed(name.as_str().as_bytes(), CHANNEL))
    }

    /// Where on a ring of 64-bit numbers. Mixed, so that the users of one node are spread in its tables all the same.
    pub(super) fn place(self) -> u64 {
        mix(self.0)
    }

    #[cfg(test)]
    pub(super) fn for_test(number: u64) -> Self {
        Self(mix(number))
    }
}

/// Number and digest of a set of keys. Equal fingerprints mean equal sets, up to a
/// collision of 64-bit sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    pub count: u64,
    /// The wrapping sum of the mixed keys: does not depend on the order in which they came.
    pub digest: u64,
}

impl Fingerprint {
    pub fn add(&mut self, key: Key) {
        self.count = self.count.wrapping_add(1);
        self.digest = self.digest.wrapping_add(mix(key.0));
    }

    pub fn remove(&mut self, key: Key) {
        self.count = self.count.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(mix(key.0));
    }
}

/// Sums of the bare hashes would do for honest input; mixing them keeps related keys from cancelling out.
/// (The finishing step of SplitMix64, a bijection.)
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Passes a key through: it is a hash already.
#[derive(Default)]
pub struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only keys are hashed with it, and those arrive through `write_u64`.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub type KeyHash = BuildHasherDefault<AlreadyHashed>;

/// A set of keys that knows its fingerprint. 9 bytes a slot: at most 19 MB for a million keys.
#[derive(Debug, Clone, Default)]
pub struct KeySet {
    keys: HashSet<Key, KeyHash>,
    fingerprint: Fingerprint,
}

/// Below this a set keeps its room, since giving it back would save nothing.
const ROOM_KEPT: usize = 1024;

impl KeySet {
    /// Whether the key is new.
    pub fn insert(&mut self, key: Key) -> bool {
        let new = self.keys.insert(key);
        if new {
            self.fingerprint.add(key);
        }
        new
    }

    /// Whether the key was there.
    pub fn remove(&mut self, key: Key) -> bool {
        let known = self.keys.remove(&key);
        if known {
            self.fingerprint.remove(key);
            let room = self.keys.capacity();
            if room > ROOM_KEPT && self.keys.len() < room / 8 {
                self.keys.shrink_to(room / 4);
            }
        }
        known
    }

    pub fn contains(&self, key: Key) -> bool {
        self.keys.contains(&key)
    }

    pub fn count(&self) -> usize {
        self.keys.len()
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub fn iter(&self) -> impl Iterator<Item = Key> + '_ {
        self.keys.iter().copied()
    }

    /// Bytes of the table, for the test that holds it to its promise.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        (self.keys.capacity() * 8 / 7).next_power_of_two() * 9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_in_every_version() {
        let user = Key::user(&UserId::new("alice").unwrap());
        let channel = Key::channel(&ChannelName::new("alice").unwrap());
        assert_ne!(user, channel);
        assert_eq!((user.0, channel.0), (7_609_801_631_743_587_685, 16_376_901_203_553_846_146));
    }

    #[test]
    fn fingerprints_do_not_depend_on_order() {
        let (mut one, mut other) = (KeySet::default(), KeySet::default());
        for n in 0..100 {
            one.insert(Key::for_test(n));
            other.insert(Key::for_test(149 - n));
        }
        for n in 0..50 {
            one.remove(Key::for_test(n));
            other.remove(Key::for_test(149 - n));
        }
        assert_eq!(one.fingerprint(), other.fingerprint());
        assert_eq!(one.fingerprint().count, 50);
        assert!(!one.remove(Key::for_test(0)));
        assert!(!one.insert(Key::for_test(60)));
        assert_eq!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_million_keys_fit_into_20_megabytes() {
        let mut set = KeySet::default();
        for n in 0..1_000_000 {
            set.insert(Key::for_test(n));
        }
        assert!(set.bytes() <= 20_000_000, "{}", set.bytes());
        for n in 0..999_000 {
            set.remove(Key::for_test(n));
        }
        assert!(set.bytes() <= 1_000_000, "room is given back: {}", set.bytes());
    }
}
