//! The outermost lock: keeps the directory in step with the hub for one user or channel.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::Routing;
use crate::directory::Key;
use crate::hub::Local;
use crate::ids::{ChannelName, SessionId, UserId};
use crate::protocol::target::Target;
use crate::router::path::Event;
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
    /// A session of `user` begins. When this returns, this node's messages for the user reach it, mail first, and the
    /// other nodes are being told. `false`: the user has `max` sessions here already, and nothing was done.
    #[must_use]
    pub fn open_session(&self, user: &UserId, session: Local, max: usize) -> bool {
        let (stepped, is_first) = {
            let _presence = self.presence.lock(user);
            if self.hub.all_sessions_of(user).len() >= max {
                return false;
            }
            // The barrier is closed before anything can arrive.
            let has_mail = !self.hub.holds(user) && self.mail.may_have(user);
            let event = Event::SessionsOpened { may_have_mail: true };
            let target = Target::User(user.clone());
            let stepped = has_mail.then(|| self.paths.step_only(&target, event, Instant::now(), self));
            let is_first = self.hub.register(user, session);
            if is_first {
                self.tell_user(user, true);
            }
            (stepped, is_first)
        };
        stepped.into_iter().for_each(|cell| self.paths.execute_of(cell, self));
        self.events.session(|| self.session_id(session.counter), user, true);
        if is_first {
            self.events.user(user, true);
        }
        true
    }

    /// The inverse of [`Router::open_session`].
    pub fn close_session(&self, user: &UserId, counter: u64) {
        let stepped = {
            let _presence = self.presence.lock(user);
            self.hub.unregister(user, counter).then(|| {
                self.tell_user(user, false);
                let target = Target::User(user.clone());
                self.paths
                    .find(&target)
                    .map(|_| self.paths.step_only(&target, Event::SessionsGone, Instant::now(), self))
            })
        };
        self.events.session(|| self.session_id(counter), user, false);
        if let Some(stepped) = stepped {
            stepped.into_iter().for_each(|cell| self.paths.execute_of(cell, self));
            self.events.user(user, false);
        }
    }

    /// The user is here now, or no longer: told to those who need it. Every node does to route by the directory, and where
    /// backends are told who is online; with the ring the user's home does.
    fn tell_user(&self, user: &UserId, is_here: bool) {
        let (key, routing) = (Key::user(user), self.settings.routing);
        if routing == Routing::Directory || self.settings.events.users {
            if is_here {
                self.directory.join(key)
            } else {
                self.directory.leave(key)
            }
        }
        if routing == Routing::Ring {
            self.directory.set_home_user(key, is_here);
        }
    }

    /// The id of the session here that has this counter.
    pub fn session_id(&self, counter: u64) -> SessionId {
        SessionId { node: self.node().clone(), number: self.hub.number_of(counter) }
    }

    /// A session that takes no messages for its user begins; whoever disconnects the user finds it. `false`: the user has
    /// `max` sessions here already, and nothing was done.
    #[must_use]
    pub fn open_silent_session(&self, user: &UserId, session: Local, max: usize) -> bool {
        let _presence = self.presence.lock(user);
        let has_room = self.hub.all_sessions_of(user).len() < max;
        if has_room {
            self.hub.register_silent(user, session);
        }
        has_room
    }

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
        if change.of_node {
            self.events.channel(channel, true);
        }
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
        if change.of_node {
            self.events.channel(channel, false);
        }
        if change.of_user {
            self.rosters.changed(channel);
        }
    }
}
