//! A thread's sessions: takes in sockets, gives them users, and removes them when they end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;
use tokio::sync::mpsc;

use crate::auth::Identity;
use crate::budgets::Pace;
use crate::clock::unix_ms;
use crate::hub::{Commands, Local};
use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::protocol::reply::{Limits, Welcome};
use crate::protocol::{sockjs, wire, Codec, Framing};
use crate::router::Router;
use crate::session::asking::Undecided;
use crate::session::deadlines::Intervals;
use crate::session::delivery;
use crate::session::drain::Drain;
use crate::session::listeners::Listeners;
use crate::session::replies::{self, LateReply, Replies};
use crate::session::socket::Socket;
use crate::session::state::{Opening, Phase, Session};
use crate::session::stomp::Stomp;
use crate::session::subscriptions::{By, Subscriptions};
use crate::session::sweep;
use crate::session::task::{on_bytes, SessionTask};
use crate::session::{Admission, SessionSettings};

/// Sessions of one worker at most; a part of a session's counter is its place among them.
const SLOTS: u64 = 1 << 20;
/// Bytes read from a socket at once. One buffer per worker, whatever the number of sockets.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Sockets whose handshake is done and that wait for their worker. Overflow policy: the handshake waits.
pub const ADMISSIONS_MAX: usize = 1024;

pub(super) struct WorkerState {
    index: u64,
    pub(super) settings: SessionSettings,
    pub(super) router: Arc<Router>,
    pub(super) replies: Replies,
    pub(super) sessions: RefCell<Slab<Rc<Session>>>,
    pub(super) subscriptions: RefCell<Subscriptions>,
    pub(super) listeners: RefCell<Listeners>,
    pub(super) undecided: RefCell<Undecided>,
    /// How many of the sessions have no user.
    unauthenticated: Cell<usize>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// Of sessions so far. Its product with slots and workers stays within 64 bits for centuries.
    sequence: Cell<u64>,
    started: Instant,
    pub(super) drain: RefCell<Option<Drain>>,
    pub(super) intervals: Intervals,
    /// `None`: requests are not limited.
    pub(super) pace: Option<Pace>,
    /// The welcome frame's limits, the same for every session.
    limits: Limits,
}

/// The state and the queues of one worker thread; `run` must be called inside a `LocalSet`.
pub struct Worker {
    state: Rc<WorkerState>,
    commands: Commands,
    admissions: mpsc::Receiver<Admission>,
    replies: mpsc::Receiver<LateReply>,
}

impl Worker {
    pub fn new(
        index: usize,
        settings: SessionSettings,
        router: Arc<Router>,
        commands: Commands,
        admissions: mpsc::Receiver<Admission>,
    ) -> Self {
        let limits = Limits {
            message_bytes: settings.message_bytes_max,
            publishes_per_second: settings.publish_rate.map_or(0, |rate| rate.per_second.get()),
            in_flight: settings.in_flight_max,
        };
        let (replies, queue) = Replies::new(settings.pending_max);
        let state = WorkerState {
            index: index as u64,
            intervals: sweep::intervals(&settings),
            pace: settings.publish_rate.map(Pace::from),
            settings,
            router,
            replies,
            sessions: RefCell::default(),
            subscriptions: RefCell::default(),
            listeners: RefCell::default(),
            undecided: RefCell::default(),
            unauthenticated: Cell::new(0),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            sequence: Cell::new(0),
            started: Instant::now(),
            drain: RefCell::new(None),
            limits,
        };
        Self { state: Rc::new(state), commands, admissions, replies: queue }
    }

    /// Ends when the hub is gone.
    pub async fn run(mut self) {
        let state = self.state;
        let mut batch = Vec::with_capacity(delivery::BATCH_MAX);
        let mut replies = Vec::with_capacity(replies::BATCH_MAX);
        let mut ticks = tokio::time::interval(sweep::tick_interval(&state.intervals));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = 0;
        loop {
            tokio::select! {
                count = self.commands.recv_many(&mut batch, delivery::BATCH_MAX) => {
                    if count == 0 {
                        return;
                    }
                    state.execute(&mut batch);
                    // A flood of messages must not keep sockets from being read.
                    tokio::task::yield_now().await;
                }
                _ = self.replies.recv_many(&mut replies, replies::BATCH_MAX) => {
                    replies::write(&state, &mut replies);
                    tokio::task::yield_now().await;
                }
                Some(admission) = self.admissions.recv() => state.accept_socket(admission),
                _ = ticks.tick() => {
                    tick = state.sweep(tick);
                    state.catch_up();
                    state.drain_due();
                }
            }
        }
    }
}

impl WorkerState {
    /// The worker's number among those of the node.
    pub(super) fn index(&self) -> usize {
        self.index as usize
    }

    /// Milliseconds since the worker began. Wraps; see [`crate::session::deadlines`].
    pub(super) fn now(&self) -> u32 {
        self.uptime_ms() as u32
    }

    /// Milliseconds since the worker began.
    pub(super) fn uptime_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn accept_socket(self: &Rc<Self>, admission: Admission) {
        let Admission {
            stream,
            mut early,
            identity,
            unauthenticated,
            share,
            acknowledges,
            codec,
            framing,
            refused,
        } = admission;
        let now = self.now();
        let waiting = self.unauthenticated.get();
        let unauthenticated_max = self.settings.unauthenticated_max;
        let mut sessions = self.sessions.borrow_mut();
        // Too many are told so with a close frame. Twice as many, some of which are being closed, are not: then the
        // socket is dropped, as it is beyond the number of sessions that a worker can count.
        if sessions.len() as u64 >= SLOTS || identity.is_none() && waiting >= 2 * unauthenticated_max {
            return;
        }
        let entry = sessions.vacant_entry();
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        let slot = entry.key() as u64;
        let workers = self.router.hub().workers() as u64;
        let opening = Opening {
            counter: (sequence * SLOTS + slot) * workers + self.index,
            // A client that has a user and named no codec is welcomed at once.
            codec: codec.or(identity.is_some().then_some(Codec::WarrenV1)),
            framing,
            now,
            pinged_at: now.wrapping_sub(rand::random_range(0..=self.intervals.ping / 2)),
            message_bytes_max: self.settings.message_bytes_max,
            outbox_bytes_max: u32::try_from(self.settings.outbox_bytes_max).unwrap_or(u32::MAX),
            acknowledges,
            share,
        };
        let session = Rc::new(Session::new(Socket::new(stream), unauthenticated, opening));
        entry.insert(session.clone());
        drop(sessions);
        self.unauthenticated.set(waiting + 1);
        if let Some(codec) = session.chosen_codec() {
            session.choose_codec(codec, self.settings.message_bytes_max, now);
        }
        if framing == Framing::SockJs {
            session.send(&wire::text_frame(sockjs::OPEN), None, now);
        }
        match (identity, session.stomp()) {
            _ if refused.is_some() => refused.into_iter().for_each(|code| session.close(code, 0, now)),
            (Some(identity), None) => self.admit(&session, identity),
            // Its CONNECT comes first.
            (Some(identity), Some(stomp)) => stomp.set_known(identity),
            (None, _) if waiting >= unauthenticated_max => session.close(CloseCode::OverCapacity, 0, now),
            (None, _) => {}
        }
        if !early.is_empty() {
            on_bytes(self, &session, &mut early);
        }
        // Owned by the session: it ends when the session's phase says so, and by the end of the worker's thread.
        tokio::task::spawn_local(SessionTask::new(self.clone(), session));
    }

    /// The session has a user from now on.
    pub(super) fn admit(&self, session: &Rc<Session>, identity: Identity) {
        // Since it was verified, its token may have been revoked; from here on this thread is told.
        if self.settings.verifier.revocations().covers(&identity) {
            return session.close(CloseCode::Unauthorized, 0, self.now());
        }
        let local = Local { counter: session.counter, since_ms: unix_ms() };
        let id = self.router.session_id(session.counter);
        let mut channels = identity.channels.to_vec();
        channels.sort();
        channels.dedup();
        channels.truncate(self.settings.channels_max);
        let welcome = Welcome {
            session: &id,
            user: &identity.user,
            node: self.router.node(),
            version: env!("CARGO_PKG_VERSION"),
            ping_interval: self.settings.ping_interval,
            limits: self.limits,
            channels: &channels,
        };
        // First registered, then welcome: a client that has its welcome can be reached. No message overtakes the
        // welcome, since messages come through this worker's queue.
        if !self.router.open_session(&identity.user, local, self.settings.sessions_per_user) {
            return session.close(CloseCode::OverCapacity, 0, self.now());
        }
        session.welcome(&welcome, self.now());
        self.begin(session, identity, &channels);
    }

    /// A session that was told of its user begins, with these channels.
    pub(super) fn begin(&self, session: &Rc<Session>, identity: Identity, channels: &[ChannelName]) {
        session.identify(identity);
        self.unauthenticated.set(self.unauthenticated.get() - 1);
        for channel in channels {
            self.put_into(session, channel, By::Token, Box::new(|| ()));
        }
        if session.phase.get() == Phase::Unauthenticated {
            session.phase.set(Phase::Open);
        }
        self.settings.metrics.session_opened();
        if self.drain.borrow().is_some() {
            session.close(CloseCode::Drain, 0, self.now());
        }
    }

    /// The session's task has ended.
    pub(super) fn remove(&self, session: &Session) {
        session.phase.set(Phase::Ended);
        session.release_pending();
        self.unsubscribe_from_all(session);
        if session.in_flight.get() > 0 {
            self.router.drop_requests_of(session.counter);
        }
        match session.identity() {
            Some(identity) => {
                match session.stomp().is_none_or(Stomp::is_reachable) {
                    true => self.router.close_session(&identity.user, session.counter),
                    false => self.router.hub().forget_silent(&identity.user, session.counter),
                }
                self.settings.metrics.session_closed(session.close_code.get());
            }
            None => self.unauthenticated.set(self.unauthenticated.get() - 1),
        }
        let slot = self.slot(session.counter);
        let mut sessions = self.sessions.borrow_mut();
        if sessions.get(slot).is_some_and(|there| there.counter == session.counter) {
            sessions.remove(slot);
        }
    }

    fn slot(&self, counter: u64) -> usize {
        ((counter / self.router.hub().workers() as u64) % SLOTS) as usize
    }

    pub(super) fn find(&self, counter: u64) -> Option<Rc<Session>> {
        let sessions = self.sessions.borrow();
        sessions.get(self.slot(counter)).filter(|session| session.counter == counter).cloned()
    }
}
