//! The outermost lock: keeps the directory in step with the hub for one user or channel.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::directory::Key;
use crate::ids::{ChannelName, UserId};
use crate::router::Router;

const SHARDS: usize = 64;

/// The first session of a user joins the directory and the last one leaves it; a `leave` that overtook the `join` of a
/// session that opened meanwhile would hide the user from the cluster. So the change in the hub and the change in the
/// directory are made under one of these locks.
///
/// Lock order: presence shard, then hub shard, then directory state. Each inner lock is released before the next is
/// taken, and nothing else is called while a presence shard is held. So no caller may hold another lock of the gateway
/// when it takes one of these.
#[derive(Debug)]
pub(super) struct Presence {
    shards: Box<[Mutex<()>]>,
    hasher: RandomState,
}

impl Presence {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Locks the shard of a user id or a channel name.
    pub(super) fn lock(&self, name: &impl Hash) -> MutexGuard<'_, ()> {
        let at = self.hasher.hash_one(name) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Called once, on any thread; it must return at once.
pub type Subscribed = Box<dyn FnOnce() + Send>;

impl Router {
    /// A session of this user, on this worker, subscribes to a channel.
    pub fn open_subscription(&self, channel: &ChannelName, worker: usize, user: &UserId, done: Subscribed) {
        let change = {
            let _presence = self.presence.lock(channel);
            let change = self.hub.subscribe(channel, worker, user);
            if change.of_node {
                self.directory.join(Key::channel(channel));
            }
            change
        };
        if change.of_user {
            self.rosters.changed(channel);
        }
        self.confirm_subscription(channel, done);
    }

    /// Tells when messages that are published on any node reach the subscribers of a channel here.
    pub fn confirm_subscription(&self, channel: &ChannelName, done: Subscribed) {
        self.directory.when_known(Key::channel(channel), done);
    }

    /// The inverse of [`Router::open_subscription`].
    pub fn close_subscription(&self, channel: &ChannelName, worker: usize, user: &UserId) {
        let change = {
            let _presence = self.presence.lock(channel);
            let change = self.hub.unsubscribe(channel, worker, user);
            if change.of_node {
                self.directory.leave(Key::channel(channel));
            }
            change
        };
        if change.of_user {
            self.rosters.changed(channel);
        }
    }
}
