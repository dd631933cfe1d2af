//! Which workers of this node have subscribers of a channel, and how many.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use crate::ids::ChannelName;

const SHARDS: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Subscribers {
    worker: usize,
    sessions: usize,
}

type Shard = HashMap<ChannelName, SmallVec<[Subscribers; 2]>>;

/// The sessions themselves are known to their workers alone, so that a message for a channel costs the hub one command
/// for each worker, however many subscribe.
#[derive(Debug)]
pub(super) struct Channels {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

impl Channels {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    fn shard(&self, channel: &ChannelName) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(channel) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `true`: the first subscriber on this node.
    pub(super) fn add(&self, channel: &ChannelName, worker: usize) -> bool {
        let mut shard = self.shard(channel);
        let workers = shard.entry(channel.clone()).or_default();
        let is_first = workers.is_empty();
        match workers.iter_mut().find(|subscribers| subscribers.worker == worker) {
            Some(subscribers) => subscribers.sessions += 1,
            None => workers.push(Subscribers { worker, sessions: 1 }),
        }
        is_first
    }

    /// `true`: it was the last subscriber on this node.
    pub(super) fn remove(&self, channel: &ChannelName, worker: usize) -> bool {
        let mut shard = self.shard(channel);
        let Some(workers) = shard.get_mut(channel) else { return false };
        let Some(at) = workers.iter().position(|subscribers| subscribers.worker == worker) else {
            return false;
        };
        workers[at].sessions -= 1;
        if workers[at].sessions == 0 {
            workers.swap_remove(at);
        }
        let is_last = workers.is_empty();
        if is_last {
            shard.remove(channel);
        }
        is_last
    }

    pub(super) fn workers(&self, channel: &ChannelName) -> SmallVec<[usize; 8]> {
        let shard = self.shard(channel);
        shard.get(channel).map(|workers| workers.iter().map(|of| of.worker).collect()).unwrap_or_default()
    }

    pub(super) fn sessions(&self, channel: &ChannelName) -> usize {
        let shard = self.shard(channel);
        shard.get(channel).map_or(0, |workers| workers.iter().map(|of| of.sessions).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_subscriber_of_a_node_are_noticed_once() {
        let channels = Channels::new();
        let channel = ChannelName::new("room").unwrap();
        assert!(channels.add(&channel, 0));
        assert!(!channels.add(&channel, 0) && !channels.add(&channel, 1));
        assert_eq!((channels.sessions(&channel), &channels.workers(&channel)[..]), (3, &[0, 1][..]));
        assert!(!channels.remove(&channel, 0) && !channels.remove(&channel, 0));
        assert_eq!(&channels.workers(&channel)[..], &[1]);
        assert!(!channels.remove(&channel, 0), "none left there");
        assert!(channels.remove(&channel, 1));
        assert!(!channels.remove(&channel, 1));
        assert_eq!(channels.sessions(&channel), 0);
    }
}
