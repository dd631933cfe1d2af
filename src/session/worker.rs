//! A thread's sessions: carries out what the hub tells it, and is the clock of pings and deadlines.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use slab::Slab;
use tokio::sync::mpsc;

use crate::auth::Identity;
use crate::hub::{Command, Commands, Counters, Local};
use crate::ids::SessionId;
use crate::protocol::close::CloseCode;
use crate::protocol::server::{self, Limits, Welcome};
use crate::protocol::wire;
use crate::router::{now_ms, Router};
use crate::session::limiter::Bucket;
use crate::session::replies::{self, Replies, Reply};
use crate::session::socket::Socket;
use crate::session::state::{Opening, Phase, Session};
use crate::session::task::{hear, SessionTask};
use crate::session::{Admission, SessionSettings};

/// Sessions of one worker at most; a part of a session's counter is its place among them.
const SLOTS: u64 = 1 << 20;
/// Where the numbering of sessions begins: anywhere below this, so that the ids of a node's earlier life are
/// not given again. The product with slots and workers (at most 64) stays within 64 bits.
const SEQUENCE_START_MAX: u64 = 1 << 37;
/// What is read from a socket at once. One buffer per worker, whatever the number of sockets.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Commands carried out together, so that frames for one socket share a system call.
const BATCH_MAX: usize = 256;
/// Broadcasts in a row are written as one block up to this size.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// A look at all sessions is spread over so many ticks.
const TICKS_PER_LOOK: u32 = 20;
/// The longest time between two looks at a session, in milliseconds: how late a deadline may be noticed.
const LOOK_MS_MAX: u32 = 2_000;
/// How long a client may take to finish a message that it has begun, in milliseconds.
const UNFINISHED_MS_MAX: u32 = 10_000;
/// Sockets whose handshake is done and that wait for their worker. Overflow policy: the handshake waits.
pub const ADMISSIONS_MAX: usize = 1024;

pub(super) struct WorkerState {
    index: u64,
    pub(super) settings: SessionSettings,
    pub(super) router: Arc<Router>,
    pub(super) replies: Replies,
    sessions: RefCell<Slab<Rc<Session>>>,
    pub(super) scratch: RefCell<Box<[u8]>>,
    sequence: Cell<u64>,
    started: Instant,
    drain: RefCell<Option<Drain>>,
    /// The welcome frame's limits, the same for every session.
    limits: Limits,
}

/// Sessions that are still to be closed, in an order that has nothing to do with their age.
struct Drain {
    counters: Vec<u64>,
    began: u32,
    spread_ms: u32,
    total: usize,
}

/// Everything that one worker thread runs on; `run` must be called inside a `LocalSet`.
pub struct Worker {
    state: Rc<WorkerState>,
    commands: Commands,
    admissions: mpsc::Receiver<Admission>,
    replies: mpsc::Receiver<Reply>,
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
            settings,
            router,
            replies,
            sessions: RefCell::default(),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            sequence: Cell::new(rand::random_range(0..SEQUENCE_START_MAX)),
            started: Instant::now(),
            drain: RefCell::new(None),
            limits,
        };
        Self { state: Rc::new(state), commands, admissions, replies: queue }
    }

    /// Ends when the hub is gone.
    pub async fn run(mut self) {
        let state = self.state;
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut replies = Vec::with_capacity(replies::BATCH_MAX);
        let mut ticks = tokio::time::interval(state.tick_interval());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = 0;
        loop {
            tokio::select! {
                count = self.commands.recv_many(&mut batch, BATCH_MAX) => {
                    if count == 0 {
                        return;
                    }
                    state.carry_out(&mut batch);
                    // A flood of messages must not keep sockets from being read.
                    tokio::task::yield_now().await;
                }
                _ = self.replies.recv_many(&mut replies, replies::BATCH_MAX) => {
                    replies::write(&state, &mut replies);
                    tokio::task::yield_now().await;
                }
                Some(admission) = self.admissions.recv() => state.adopt(admission),
                _ = ticks.tick() => {
                    state.look(tick);
                    state.drain_some();
                    tick = (tick + 1) % TICKS_PER_LOOK;
                }
            }
        }
    }
}

impl WorkerState {
    /// Milliseconds since the worker began. Wraps; see [`Session`].
    pub(super) fn now(&self) -> u32 {
        self.started.elapsed().as_millis() as u32
    }

    pub(super) fn is_past(&self, deadline: u32) -> bool {
        elapsed(deadline, self.now()) < u32::MAX / 2
    }

    fn tick_interval(&self) -> Duration {
        let settings = &self.settings;
        let shortest = settings.ping_interval.min(settings.pong_timeout).min(settings.auth_timeout);
        let look_ms = (shortest.as_millis() as u32 / 4).min(LOOK_MS_MAX);
        Duration::from_millis((look_ms / TICKS_PER_LOOK).max(5).into())
    }

    fn adopt(self: &Rc<Self>, admission: Admission) {
        let Admission { stream, mut early, identity, unauthenticated, acknowledges } = admission;
        let now = self.now();
        let mut sessions = self.sessions.borrow_mut();
        if sessions.len() as u64 >= SLOTS {
            // The socket is dropped: this is far beyond what a process may open.
            return;
        }
        let entry = sessions.vacant_entry();
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        let slot = entry.key() as u64;
        let workers = self.router.hub().workers() as u64;
        let ping_ms = self.settings.ping_interval.as_millis() as u32;
        let opening = Opening {
            counter: (sequence * SLOTS + slot) * workers + self.index,
            now,
            pinged_at: now.wrapping_sub(rand::random_range(0..=ping_ms / 2)),
            bucket: Bucket::full(self.settings.publish_rate, now),
            message_bytes_max: self.settings.message_bytes_max,
            outbox_bytes_max: u32::try_from(self.settings.outbox_bytes_max).unwrap_or(u32::MAX),
            acknowledges,
        };
        let session = Rc::new(Session::new(Socket::new(stream), unauthenticated, opening));
        entry.insert(session.clone());
        drop(sessions);
        if let Some(identity) = identity {
            self.admit(&session, identity);
        }
        if !early.is_empty() {
            hear(self, &session, &mut early);
        }
        // Owned by the session: it ends when the session's phase says so, and by the end of the worker's thread.
        tokio::task::spawn_local(SessionTask::new(self.clone(), session));
    }

    /// The session has a user from now on.
    pub(super) fn admit(&self, session: &Rc<Session>, identity: Identity) {
        let local = Local { counter: session.counter, since_ms: now_ms() };
        let id = SessionId { node: self.router.node().clone(), counter: session.counter };
        let welcome = Welcome {
            session: &id,
            user: &identity.user,
            node: self.router.node(),
            version: env!("CARGO_PKG_VERSION"),
            ping_interval: self.settings.ping_interval,
            limits: self.limits,
        };
        // First registered, then welcome: who is told to be here can be reached. Nothing overtakes the welcome,
        // since messages come through this worker's queue.
        self.router.open_session(&identity.user, local);
        session.send_text(&server::welcome(&welcome), self.now());
        session.identify(identity);
        if session.phase.get() == Phase::Unknown {
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
        session.let_go();
        if let Some(identity) = session.identity() {
            self.router.close_session(&identity.user, session.counter);
            self.settings.metrics.session_closed(session.close_code.get());
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

    fn carry_out(self: &Rc<Self>, batch: &mut Vec<Command>) {
        let now = self.now();
        let single = batch.len() == 1;
        let mut touched: Vec<Rc<Session>> = Vec::new();
        let mut block = BytesMut::new();
        for command in batch.drain(..) {
            match command {
                Command::Broadcast { frame } => {
                    if single {
                        self.send_all(&frame, now);
                        return;
                    }
                    if block.len() + frame.len() > BLOCK_BYTES_MAX {
                        self.send_all(&block.split().freeze(), now);
                    }
                    block.extend_from_slice(&frame);
                    continue;
                }
                other => {
                    // Order: what was broadcast before is written before.
                    self.send_block(&mut block, now);
                    self.carry_out_one(other, single, &mut touched, now);
                }
            }
        }
        self.send_block(&mut block, now);
        for session in touched {
            session.flush(now);
        }
    }

    fn carry_out_one(&self, command: Command, single: bool, touched: &mut Vec<Rc<Session>>, now: u32) {
        match command {
            Command::Deliver { counters, frame, id, tally } => {
                for session in self.open_sessions(counters) {
                    session.deliver(&frame, &id, &tally, !single, now);
                    if !single {
                        touched.push(session);
                    }
                }
            }
            Command::Broadcast { frame } => self.send_all(&frame, now),
            Command::Close { counters, code, tally } => {
                for session in self.open_sessions(counters) {
                    session.close(code, 0, now);
                    tally.clone().count();
                }
            }
            Command::Drain { spread_ms } => self.begin_drain(spread_ms, now),
        }
    }

    fn open_sessions<'a>(&'a self, counters: Counters) -> impl Iterator<Item = Rc<Session>> + 'a {
        let found = counters.into_iter().filter_map(|counter| self.find(counter));
        found.filter(|session| session.is_open())
    }

    fn send_block(&self, block: &mut BytesMut, now: u32) {
        if !block.is_empty() {
            self.send_all(&block.split().freeze(), now);
        }
    }

    fn send_all(&self, frame: &Bytes, now: u32) {
        for (_, session) in self.sessions.borrow().iter() {
            if session.is_open() {
                session.send(frame, None, now);
            }
        }
    }

    /// Looks at every twentieth session: pings, silence, deadlines.
    fn look(&self, tick: u32) {
        let now = self.now();
        let unix_s = now_ms() / 1000;
        let sessions = self.sessions.borrow();
        let mut slot = tick as usize;
        while slot < sessions.capacity() {
            if let Some(session) = sessions.get(slot) {
                self.look_at(session, now, unix_s);
            }
            slot += TICKS_PER_LOOK as usize;
        }
    }

    fn look_at(&self, session: &Session, now: u32, unix_s: u64) {
        match session.phase.get() {
            Phase::Unknown if elapsed(session.opened_at, now) >= millis(self.settings.auth_timeout) => {
                session.close(CloseCode::Unauthorized, 0, now)
            }
            Phase::Open if is_expired(session, unix_s) => session.close(CloseCode::TokenExpired, 0, now),
            Phase::Unknown | Phase::Open => self.look_at_pings(session, now),
            Phase::Closing { .. } | Phase::Ended => session.wake(),
        }
    }

    fn look_at_pings(&self, session: &Session, now: u32) {
        let unfinished = session.decoder.borrow().unfinished();
        match (unfinished, session.unfinished.get()) {
            (Some(serial), Some((seen, since))) if serial == seen => {
                if elapsed(since, now) >= UNFINISHED_MS_MAX {
                    return session.close(CloseCode::Protocol, 0, now);
                }
            }
            (unfinished, _) => session.unfinished.set(unfinished.map(|serial| (serial, now))),
        }
        if session.acks.borrow().as_ref().is_some_and(|acks| acks.is_overdue(now)) {
            return session.close(CloseCode::NoAcks, 0, now);
        }
        let pinged = elapsed(session.pinged_at.get(), now);
        if session.awaits_pong.get() {
            if pinged >= millis(self.settings.pong_timeout) {
                session.close(CloseCode::PingTimeout, 0, now);
            }
        } else if pinged >= millis(self.settings.ping_interval) {
            session.pinged_at.set(now);
            session.awaits_pong.set(true);
            session.send(&wire::ping_frame(&[]), None, now);
        }
    }

    fn begin_drain(&self, spread_ms: u32, now: u32) {
        let mut counters: Vec<u64> =
            self.sessions.borrow().iter().map(|(_, session)| session.counter).collect();
        for at in (1..counters.len()).rev() {
            counters.swap(at, rand::random_range(0..=at));
        }
        let total = counters.len();
        *self.drain.borrow_mut() = Some(Drain { counters, began: now, spread_ms, total });
    }

    /// Closes as many sessions as are due, so that they come back elsewhere one after the other.
    fn drain_some(&self) {
        let now = self.now();
        let mut drain = self.drain.borrow_mut();
        let Some(drain) = drain.as_mut() else { return };
        let passed = u64::from(elapsed(drain.began, now).min(drain.spread_ms));
        let left = drain.total - (drain.total as u64 * passed / u64::from(drain.spread_ms.max(1))) as usize;
        let due = match passed >= u64::from(drain.spread_ms) {
            true => drain.counters.drain(..),
            false => drain.counters.drain(left.min(drain.counters.len())..),
        };
        for session in due.filter_map(|counter| self.find(counter)) {
            session.close(CloseCode::Drain, rand::random_range(0..=1_000), now);
        }
    }
}

fn is_expired(session: &Session, unix_s: u64) -> bool {
    let identity = session.identity.borrow();
    identity.as_ref().and_then(|identity| identity.expires_unix_s).is_some_and(|at| at <= unix_s)
}

fn elapsed(since: u32, now: u32) -> u32 {
    now.wrapping_sub(since)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
