//! The hub: which sessions this node holds, and the way to the workers that own their sockets.
//!
//! A session's counter names its worker (`counter % workers`). It stays in this process: ids have a number instead.
//! Everything a worker is told goes through one bounded queue per worker. Overflow policy: the caller gets
//! [`Full`] and waits (what came from the bus) or refuses (what a client sends), nothing is dropped.
//!
//! Locks: each shard's mutex is held for the time of one table access. While it is held the hub takes no other lock and
//! calls nothing.

mod channels;
mod command;
mod listeners;
mod listing;
mod numbers;
mod silent;
mod tally;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::ids::{ChannelName, UserId, UserKey};
use crate::protocol::close::CloseCode;
use crate::protocol::message::Rendered;

pub use channels::Change;
use channels::Channels;
pub use command::Command;
pub use listeners::{Answer, Ticket};
use numbers::Numbers;
use silent::Silent;
pub use tally::{Taken, Tally, TallyView};

/// Commands waiting for one worker.
pub const WORKER_QUEUE_MAX: usize = 4096;
const SHARDS: usize = 64;

/// A session as the hub knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Unique within the process; its remainder by the number of workers names the worker.
    pub counter: u64,
    /// Milliseconds since the Unix epoch.
    pub since_ms: u64,
}

pub type Counters = SmallVec<[u64; 2]>;

/// A worker's queue has no room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    pub worker: usize,
}

/// The end of a worker's queue that the worker reads.
pub type Commands = mpsc::Receiver<Command>;

/// A user with sessions on this node.
#[derive(Debug)]
struct HeldUser {
    id: UserId,
    sessions: SmallVec<[Local; 1]>,
}

/// By the key under which other nodes know the user. Two users may share one.
type Shard = HashMap<UserKey, SmallVec<[HeldUser; 1]>>;

fn find<'a>(shard: &'a Shard, user: &UserId) -> Option<&'a HeldUser> {
    shard.get(&UserKey::of(user))?.iter().find(|held| held.id == *user)
}

#[derive(Debug)]
pub struct Hub {
    shards: Box<[Mutex<Shard>]>,
    hasher: std::collections::hash_map::RandomState,
    workers: Box<[mpsc::Sender<Command>]>,
    channels: Channels,
    numbers: Numbers,
    silent: Silent,
    sessions: AtomicUsize,
    users: AtomicUsize,
}

impl Hub {
    pub fn new(workers: usize) -> (Self, Vec<Commands>) {
        let (senders, commands): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| mpsc::channel(WORKER_QUEUE_MAX)).unzip();
        let hub = Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Default::default(),
            workers: senders.into(),
            channels: Channels::new(),
            numbers: Numbers::generate(),
            silent: Silent::default(),
            sessions: AtomicUsize::new(0),
            users: AtomicUsize::new(0),
        };
        (hub, commands)
    }

    fn shard(&self, key: UserKey) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    pub fn users(&self) -> usize {
        self.users.load(Ordering::Relaxed)
    }

    /// Adds a session. `true`: it is the user's first one here.
    ///
    /// The hub calls nothing while it holds a lock. A caller that keeps another table in step with the first and last
    /// session of a user orders its own calls: see [`crate::router`].
    #[must_use]
    pub fn register(&self, user: &UserId, session: Local) -> bool {
        let key = UserKey::of(user);
        let mut shard = self.shard(key);
        let users = shard.entry(key).or_default();
        self.sessions.fetch_add(1, Ordering::Relaxed);
        if let Some(held) = users.iter_mut().find(|held| held.id == *user) {
            held.sessions.push(session);
            return false;
        }
        users.push(HeldUser { id: user.clone(), sessions: SmallVec::from_buf([session]) });
        self.users.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Removes one session, by its counter, so that a late end never removes a newer session of the user. `true`: it
    /// was the user's last one here.
    #[must_use]
    pub fn unregister(&self, user: &UserId, counter: u64) -> bool {
        let key = UserKey::of(user);
        let mut shard = self.shard(key);
        let Some(users) = shard.get_mut(&key) else { return false };
        let Some(of) = users.iter().position(|held| held.id == *user) else { return false };
        let sessions = &mut users[of].sessions;
        let Some(at) = sessions.iter().position(|session| session.counter == counter) else { return false };
        sessions.remove(at);
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        if !sessions.is_empty() {
            return false;
        }
        users.swap_remove(of);
        if users.is_empty() {
            shard.remove(&key);
        }
        self.users.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// The users with a session here that share a key; mostly none or one.
    pub fn users_of_key(&self, key: UserKey) -> SmallVec<[UserId; 1]> {
        let shard = self.shard(key);
        shard.get(&key).into_iter().flatten().map(|held| held.id.clone()).collect()
    }

    /// The user's sessions on this node.
    pub fn sessions_of(&self, user: &UserId) -> SmallVec<[Local; 1]> {
        let shard = self.shard(UserKey::of(user));
        find(&shard, user).map(|held| held.sessions.clone()).unwrap_or_default()
    }

    pub fn holds(&self, user: &UserId) -> bool {
        find(&self.shard(UserKey::of(user)), user).is_some()
    }

    fn worker_of(&self, counter: u64) -> usize {
        (counter % self.workers.len() as u64) as usize
    }

    /// How many channels have subscribers here, and the `max` with the most sessions, the largest first.
    pub fn largest_channels(&self, max: usize) -> (usize, Vec<(ChannelName, usize)>) {
        self.channels.largest(max)
    }

    /// Room for one command to each worker that holds one of these sessions: all of them, or none.
    pub fn reserve(&self, counters: Counters) -> Result<Reservation<'_>, Full> {
        let mut groups: SmallVec<[(usize, Counters); 1]> = SmallVec::new();
        for counter in counters {
            let worker = self.worker_of(counter);
            match groups.iter_mut().find(|(of, _)| *of == worker) {
                Some((_, group)) => group.push(counter),
                None => groups.push((worker, Counters::from_slice(&[counter]))),
            }
        }
        let mut permits = SmallVec::new();
        for (worker, counters) in groups {
            permits.extend(self.permit(worker)?.map(|permit| (permit, counters)));
        }
        Ok(Reservation { permits })
    }

    /// Like [`Hub::reserve`], for every session of a user; possibly none.
    pub fn reserve_user(&self, user: &UserId) -> Result<Reservation<'_>, Full> {
        self.reserve(self.sessions_of(user).iter().map(|session| session.counter).collect())
    }

    /// Hands a message to every session of this node.
    pub fn deliver_all(&self, message: &Arc<Rendered>) -> Result<(), Full> {
        self.tell_workers(0..self.workers.len(), || Command::Broadcast { message: message.clone() })
    }

    /// Hands a message to the subscribers of a channel on this node, except the session with the counter `except`.
    pub fn deliver_channel(
        &self,
        channel: &ChannelName,
        message: &Arc<Rendered>,
        except: Option<u64>,
    ) -> Result<(), Full> {
        let workers = self.channels.workers(channel);
        let command = || Command::Channel { channel: channel.clone(), message: message.clone(), except };
        self.tell_workers(workers.into_iter(), command)
    }

    /// One command to each of these workers: all of them get it, or none.
    pub fn tell_workers(
        &self,
        workers: impl Iterator<Item = usize>,
        command: impl Fn() -> Command,
    ) -> Result<(), Full> {
        let permits = workers.map(|worker| self.permit(worker)).collect::<Result<SmallVec<[_; 8]>, _>>()?;
        for permit in permits.into_iter().flatten() {
            permit.send(command());
        }
        Ok(())
    }

    /// A session of this user, on this worker, subscribes to a channel. See [`Hub::register`] for the order of calls.
    #[must_use]
    pub fn subscribe(&self, channel: &ChannelName, worker: usize, user: &UserId) -> Change {
        self.channels.add(channel, worker, user)
    }

    /// The inverse of [`Hub::subscribe`].
    #[must_use]
    pub fn unsubscribe(&self, channel: &ChannelName, worker: usize, user: &UserId) -> Change {
        self.channels.remove(channel, worker, user)
    }

    /// The users of this node who subscribe to a channel, if they are no more than `max`, and their number.
    pub fn users_in(&self, channel: &ChannelName, max: usize) -> (Vec<UserId>, usize) {
        self.channels.users(channel, max)
    }

    /// `None`: the worker has ended, and its sessions with it. That must not stop the others.
    fn permit(&self, worker: usize) -> Result<Option<mpsc::Permit<'_, Command>>, Full> {
        match self.workers[worker].try_reserve() {
            Ok(permit) => Ok(Some(permit)),
            Err(TrySendError::Closed(())) => Ok(None),
            Err(TrySendError::Full(())) => Err(Full { worker }),
        }
    }

    /// Waits until the worker's queue has room again; at once if the worker has ended.
    pub async fn room(&self, full: Full) {
        let _ = self.workers[full.worker].reserve().await;
    }

    /// Tells every worker, waiting for room.
    pub async fn tell_all(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that has ended has nothing left to be told.
            let _ = worker.send(command()).await;
        }
    }
}

/// Room in the queues of the workers that hold some sessions. Dropping it gives the room back.
#[derive(Debug)]
pub struct Reservation<'a> {
    permits: SmallVec<[(mpsc::Permit<'a, Command>, Counters); 1]>,
}

impl Reservation<'_> {
    /// Hands a message to the sessions. Without any, the tally is dropped and tells so.
    pub fn deliver(self, message: &Arc<Rendered>, tally: Tally) {
        for (permit, counters) in self.permits {
            let (message, tally) = (message.clone(), tally.clone());
            permit.send(Command::Deliver { counters, message, tally });
        }
    }

    /// Closes the sessions; the tally counts those that were there.
    pub fn close(self, code: CloseCode, tally: Tally) {
        self.command(tally, |counters, tally| Some(Command::Close { counters, code, tally }));
    }

    /// Tells each worker what to do with its sessions among these.
    pub fn command(self, tally: Tally, command: impl Fn(Counters, Tally) -> Option<Command>) {
        for (permit, counters) in self.permits {
            if let Some(command) = command(counters, tally.clone()) {
                permit.send(command);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::protocol::message::Sender;
    use crate::protocol::publish::PublishRequest;

    fn rendered() -> Arc<Rendered> {
        let request = PublishRequest::parse(r#"{"to":"broadcast"}"#).unwrap();
        let sender = Sender::Service { service: "test".into() };
        Rendered::new(Arc::new(request.into_message(sender, Now::read()).unwrap()))
    }

    fn local(counter: u64) -> Local {
        Local { counter, since_ms: 0 }
    }

    #[test]
    fn first_and_last_session_of_a_user_are_noticed_once() {
        let (hub, _commands) = Hub::new(2);
        let user = UserId::new("42").unwrap();
        assert!(hub.register(&user, local(1)));
        assert!(!hub.register(&user, local(2)));
        assert_eq!((hub.sessions(), hub.users()), (2, 1));
        assert!(!hub.unregister(&user, 9), "not a session of the user");
        assert!(!hub.unregister(&user, 1));
        assert!(!hub.unregister(&user, 1), "gone already");
        assert_eq!(hub.users_of_key(UserKey::of(&user))[..], *std::slice::from_ref(&user));
        assert!(hub.unregister(&user, 2));
        assert!(hub.users_of_key(UserKey::of(&user)).is_empty());
        assert_eq!((hub.sessions(), hub.users(), hub.holds(&user)), (0, 0, false));
    }

    #[test]
    fn a_worker_that_ended_does_not_stop_the_others() {
        let (hub, mut commands) = Hub::new(2);
        drop(commands.pop());
        let reservation = hub.reserve(Counters::from_slice(&[1, 2])).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (tally, _) = Tally::new(None, move |taken| tell.send(taken.sessions).unwrap());
        reservation.deliver(&rendered(), tally);
        hub.deliver_all(&rendered()).unwrap();
        assert!(matches!(commands[0].try_recv(), Ok(Command::Deliver { .. })));
        assert!(matches!(commands[0].try_recv(), Ok(Command::Broadcast { .. })));
        assert_eq!(told.try_recv(), Ok(0), "the tally does not wait for the one that ended");
    }

    #[test]
    fn each_worker_gets_its_own_sessions_and_all_get_it_or_none() {
        let (hub, mut commands) = Hub::new(2);
        let message = rendered();
        let deliver = |counters: &[u64]| {
            let reservation = hub.reserve(Counters::from_slice(counters))?;
            reservation.deliver(&message, Tally::new(None, |_| ()).0);
            Ok(())
        };
        deliver(&[1, 2, 3]).unwrap();
        for (worker, expected) in [(0, &[2][..]), (1, &[1, 3][..])] {
            let Ok(Command::Deliver { counters, .. }) = commands[worker].try_recv() else {
                panic!("nothing for worker {worker}")
            };
            assert_eq!(counters.as_slice(), expected);
        }
        for _ in 0..WORKER_QUEUE_MAX {
            deliver(&[1]).unwrap();
        }
        assert_eq!(deliver(&[2, 3]), Err(Full { worker: 1 }));
        assert!(commands[0].try_recv().is_err(), "worker 0 must not get half of it");
    }
}
