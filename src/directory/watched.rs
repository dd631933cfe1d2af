//! The keys of which somebody wants to know when other nodes have them. Pure.

use std::collections::HashSet;

use super::key::{Key, KeyHash};

/// More keys that wait for somebody to look are not told one by one.
const TOUCHED_MAX: usize = 65_536;

/// Where to look again, since other nodes may hold it now or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Each key once.
    Keys(Vec<Key>),
    /// Everything that is watched: a node came or went, or its set was repaired.
    All,
}

#[derive(Debug, Default)]
pub struct Watched {
    keys: HashSet<Key, KeyHash>,
    /// All keys are watched.
    has_everything: bool,
    touched: HashSet<Key, KeyHash>,
    is_all: bool,
}

impl Watched {
    pub fn watch_all(&mut self) {
        self.has_everything = true;
        self.is_all = true;
    }

    pub fn watch(&mut self, key: Key) {
        self.keys.insert(key);
    }

    pub fn unwatch(&mut self, key: Key) {
        self.keys.remove(&key);
        self.touched.remove(&key);
    }

    /// Another node's set has changed by these.
    pub fn touch<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>) {
        if self.has_everything {
            self.touched.extend(keys);
        } else if !self.keys.is_empty() {
            self.touched.extend(keys.into_iter().filter(|key| self.keys.contains(key)));
        }
        if self.touched.len() > TOUCHED_MAX {
            self.touched.clear();
            self.is_all = true;
        }
    }

    pub fn touch_all(&mut self) {
        self.is_all |= self.has_everything || !self.keys.is_empty();
    }

    pub fn is_touched(&self) -> bool {
        self.is_all || !self.touched.is_empty()
    }

    pub fn take_touched(&mut self) -> Touched {
        match std::mem::take(&mut self.is_all) {
            true => {
                self.touched.clear();
                Touched::All
            }
            false => Touched::Keys(self.touched.drain().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_watched_is_told_and_once() {
        let [a, b] = [1, 2].map(Key::for_test);
        let mut watched = Watched::default();
        watched.touch_all();
        assert!(!watched.is_touched(), "nothing is watched");
        watched.watch(a);
        watched.touch([&a, &b, &a]);
        assert_eq!(watched.take_touched(), Touched::Keys(vec![a]));
        assert_eq!(watched.take_touched(), Touched::Keys(vec![]));
        watched.touch([&a]);
        watched.touch_all();
        assert_eq!(watched.take_touched(), Touched::All);
        assert!(!watched.is_touched());
        watched.touch([&a]);
        watched.unwatch(a);
        assert!(!watched.is_touched());
    }
}
