//! Which workers of this node have subscribers of a channel, and which users those are.

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::collections::{BinaryHeap, HashMap};
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use crate::ids::{ChannelName, UserId};

const SHARDS: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Subscribers {
    worker: usize,
    sessions: usize,
}

#[derive(Debug, Default)]
struct Members {
    workers: SmallVec<[Subscribers; 2]>,
    /// How many sessions of each user.
    users: HashMap<UserId, u32>,
}

type Shard = HashMap<ChannelName, Members>;

/// What the beginning or end of a subscription changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// The channel has its first subscriber on this node, or has lost the last one.
    pub of_node: bool,
    /// The user has its first session in the channel on this node, or has lost the last one.
    pub of_user: bool,
}

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

    pub(super) fn add(&self, channel: &ChannelName, worker: usize, user: &UserId) -> Change {
        let mut shard = self.shard(channel);
        let Members { workers, users } = shard.entry(channel.clone()).or_default();
        let of_node = workers.is_empty();
        match workers.iter_mut().find(|subscribers| subscribers.worker == worker) {
            Some(subscribers) => subscribers.sessions += 1,
            None => workers.push(Subscribers { worker, sessions: 1 }),
        }
        let sessions = users.entry(user.clone()).or_default();
        *sessions += 1;
        Change { of_node, of_user: *sessions == 1 }
    }

    pub(super) fn remove(&self, channel: &ChannelName, worker: usize, user: &UserId) -> Change {
        let mut shard = self.shard(channel);
        let Some(Members { workers, users }) = shard.get_mut(channel) else { return Change::default() };
        let Some(at) = workers.iter().position(|subscribers| subscribers.worker == worker) else {
            return Change::default();
        };
        workers[at].sessions -= 1;
        if workers[at].sessions == 0 {
            workers.swap_remove(at);
        }
        let mut of_user = false;
        if let Some(sessions) = users.get_mut(user) {
            *sessions -= 1;
            of_user = *sessions == 0;
        }
        if of_user {
            users.remove(user);
        }
        let of_node = workers.is_empty();
        if of_node {
            shard.remove(channel);
        }
        Change { of_node, of_user }
    }

    pub(super) fn workers(&self, channel: &ChannelName) -> SmallVec<[usize; 8]> {
        let shard = self.shard(channel);
        let workers = shard.get(channel).map(|members| &members.workers);
        workers.into_iter().flatten().map(|of| of.worker).collect()
    }

    /// How many channels there are, and the `max` with the most sessions, the largest first.
    pub(super) fn largest(&self, max: usize) -> (usize, Vec<(ChannelName, usize)>) {
        let mut count = 0;
        // The smallest of those found so far is at the top, to be replaced.
        let mut largest: BinaryHeap<Reverse<(usize, ChannelName)>> = BinaryHeap::with_capacity(max + 1);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            count += shard.len();
            for (channel, members) in shard.iter() {
                let sessions = members.workers.iter().map(|of| of.sessions).sum();
                let is_full = largest.len() >= max;
                if is_full && largest.peek().is_some_and(|Reverse((least, _))| sessions <= *least) {
                    continue;
                }
                if is_full {
                    largest.pop();
                }
                largest.push(Reverse((sessions, channel.clone())));
            }
        }
        let sorted = largest.into_sorted_vec().into_iter();
        (count, sorted.map(|Reverse((sessions, channel))| (channel, sessions)).collect())
    }

    pub(super) fn all(&self) -> Vec<ChannelName> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        }
        all
    }

    /// The users, if they are no more than `max`, and their number.
    pub(super) fn users(&self, channel: &ChannelName, max: usize) -> (Vec<UserId>, usize) {
        let shard = self.shard(channel);
        let Some(Members { users, .. }) = shard.get(channel) else { return (Vec::new(), 0) };
        let listed = if users.len() <= max { users.keys().cloned().collect() } else { Vec::new() };
        (listed, users.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_subscriber_of_a_node_and_of_a_user_are_noticed_once() {
        let channels = Channels::new();
        let channel = ChannelName::new("room").unwrap();
        let [a, b] = ["a", "b"].map(|user| UserId::new(user).unwrap());
        let change = |of_node, of_user| Change { of_node, of_user };
        assert_eq!(channels.add(&channel, 0, &a), change(true, true));
        assert_eq!(channels.add(&channel, 0, &a), change(false, false));
        assert_eq!(channels.add(&channel, 1, &b), change(false, true));
        assert_eq!(channels.workers(&channel)[..], [0, 1]);
        assert_eq!((channels.users(&channel, 2).0.len(), channels.users(&channel, 1)), (2, (vec![], 2)));
        let other = ChannelName::new("hall").unwrap();
        channels.add(&other, 0, &a);
        let (count, largest) = channels.largest(1);
        assert_eq!((count, &largest[..]), (2, &[(channel.clone(), 3)][..]));
        assert_eq!(channels.largest(9).1, [(channel.clone(), 3), (other.clone(), 1)]);
        channels.remove(&other, 0, &a);
        assert_eq!(channels.remove(&channel, 0, &a), change(false, false));
        assert_eq!(channels.remove(&channel, 0, &a), change(false, true));
        assert_eq!(
            (&channels.workers(&channel)[..], channels.users(&channel, 2)),
            (&[1][..], (vec![b.clone()], 1))
        );
        assert_eq!(channels.remove(&channel, 0, &a), change(false, false), "none left there");
        assert_eq!(channels.remove(&channel, 1, &b), change(true, true));
        assert_eq!(channels.remove(&channel, 1, &b), change(false, false));
        assert!(channels.workers(&channel).is_empty());
    }
}
