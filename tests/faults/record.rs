//! What really happened: every publish with what its sender was told, every receipt and session of every device.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A message as its publisher knows it: which publisher, and its how-many-eth message. Its id says both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub publisher: u32,
    pub number: u32,
}

impl Key {
    pub fn id(self) -> String {
        format!("p{}-{}", self.publisher, self.number)
    }

    pub fn parse(id: &str) -> Option<Self> {
        let (publisher, number) = id.strip_prefix('p')?.split_once('-')?;
        Some(Self { publisher: publisher.parse().ok()?, number: number.parse().ok()? })
    }
}

/// What is promised for a message, and whom it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// At-least-once to a user.
    User,
    /// At-most-once to a user.
    Once,
    /// At-least-once to a user, with a time to live.
    Brief,
    /// At-least-once to one session.
    Session,
    /// At-most-once to every session.
    Broadcast,
}

impl Kind {
    pub fn at_least_once(self) -> bool {
        matches!(self, Kind::User | Kind::Brief | Kind::Session)
    }
}

/// One socket of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seat {
    pub device: u32,
    /// Counts the sockets of the device.
    pub session: u32,
}

/// A message as it is addressed. Later attempts repeat the first one.
#[derive(Debug, Clone)]
pub struct Letter {
    pub kind: Kind,
    pub user: u32,
    /// The socket that a [`Kind::Session`] is for.
    pub seat: Option<Seat>,
    pub target: String,
    pub ttl_ms: Option<u64>,
    /// Its publisher asks for a settlement.
    pub asks: bool,
}

impl Letter {
    pub fn to_user(user: u32) -> Self {
        Self { kind: Kind::User, user, seat: None, target: format!("user.u{user}"), ttl_ms: None, asks: true }
    }
}

/// Why a sender was refused for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Offline,
    Expired,
    Other,
}

/// The last word that a sender got about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// The broker has confirmed it into the ingress queue; the settlement did not come.
    Confirmed,
    /// Taken by so many sessions.
    Delivered(u32),
    Stored,
    Published,
    /// For good: trying again would not help.
    Rejected(Reason),
}

impl Told {
    /// Whether the sender may forget the message.
    pub fn accepted(self) -> bool {
        matches!(self, Told::Confirmed | Told::Delivered(_) | Told::Stored | Told::Published)
    }
}

#[derive(Debug, Clone)]
pub struct Sent {
    pub letter: Letter,
    /// The first time that it was handed to the gateway.
    pub at_us: u64,
    /// All hand-overs of all publishers are counted through; these are its first and its last one.
    pub first_turn: u64,
    pub last_turn: u64,
    /// How often it was handed to the gateway.
    pub attempts: u32,
    /// How often that was done since an attempt had failed or brought no answer.
    pub retries: u32,
    /// Answers that asked to try again.
    pub refusals: u32,
    /// The code of the last of them.
    pub refusal: Option<String>,
    /// Settlements that its sender got.
    pub settlements: u32,
    pub told: Told,
    pub told_us: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    pub at_us: u64,
    /// `None`: the id is not one of ours.
    pub key: Option<Key>,
    pub device: u32,
    pub session: u32,
    pub redelivered: bool,
}

impl Receipt {
    pub fn seat(&self) -> Seat {
        Seat { device: self.device, session: self.session }
    }
}

/// From a welcome to the moment at which the device ended the socket or lost it.
#[derive(Debug, Clone)]
pub struct Life {
    pub seat: Seat,
    pub node: usize,
    /// The gateway's name of the session.
    pub name: String,
    pub from_us: u64,
    pub to_us: Option<u64>,
}

/// Something that was done to the system.
#[derive(Debug, Clone)]
pub struct Action {
    pub at_us: u64,
    pub what: String,
    /// From here on the system must be well again: recovery is measured from here.
    pub heals: Heals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heals {
    /// Nothing is over with that.
    No,
    /// For the devices that are meant to be connected all the time.
    Served,
    /// For all devices: nobody misbehaves any more.
    Everybody,
}

/// Nodes, one bit for each.
pub type Nodes = u8;
pub const ALL_NODES: Nodes = u8::MAX;

/// A time in which something was wrong. What was under way then may be repeated, and says so.
#[derive(Debug, Clone, Copy)]
pub struct Disturbance {
    pub from_us: u64,
    /// `None`: it is not over.
    pub to_us: Option<u64>,
    /// Nodes whose sockets stay open although what is for them may not arrive.
    pub nodes: Nodes,
}

#[derive(Debug, Default)]
pub struct History {
    pub sent: HashMap<Key, Sent>,
    pub receipts: Vec<Receipt>,
    pub actions: Vec<Action>,
    pub disturbances: Vec<Disturbance>,
    pub lives: Vec<Life>,
    /// The user of each device.
    pub devices: Vec<u32>,
    /// Users with a device that does not take what it is given, by its habit.
    pub stuck: HashSet<u32>,
    /// Why sockets ended, by close code (0 = without one).
    pub closes: HashMap<u16, u32>,
    pub turns: u64,
    /// The lives that have not ended.
    pub open: HashMap<Seat, usize>,
}

impl History {
    fn end(&mut self, seat: Seat, at_us: u64) {
        if let Some(at) = self.open.remove(&seat) {
            self.lives[at].to_us = Some(at_us);
        }
    }

    /// A socket of the user that is open now.
    pub fn session_of(&self, user: u32) -> Option<(Seat, String)> {
        let mine = |seat: &&Seat| self.devices.get(seat.device as usize) == Some(&user);
        let seat = self.open.keys().filter(mine).min_by_key(|seat| seat.device)?;
        Some((*seat, self.lives[self.open[seat]].name.clone()))
    }
}

/// Writes the history while it happens.
pub struct Recorder {
    started: Instant,
    history: Mutex<History>,
}

impl Recorder {
    pub fn new() -> Self {
        Self { started: Instant::now(), history: Mutex::default() }
    }

    pub fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message is handed to the gateway: for the first time, once more on purpose, or again (`retry`) since
    /// the last attempt failed or brought no answer.
    pub fn sending(&self, key: Key, letter: &Letter, retry: bool) {
        let at_us = self.now_us();
        let mut history = self.lock();
        history.turns += 1;
        let turn = history.turns;
        let fresh = || Sent {
            letter: letter.clone(),
            at_us,
            first_turn: turn,
            last_turn: turn,
            attempts: 0,
            retries: 0,
            refusals: 0,
            refusal: None,
            settlements: 0,
            told: Told::Nothing,
            told_us: 0,
        };
        let sent = history.sent.entry(key).or_insert_with(fresh);
        sent.last_turn = turn;
        sent.attempts += 1;
        sent.retries += u32::from(retry);
    }

    /// How a message was addressed the first time.
    pub fn letter(&self, key: Key) -> Option<Letter> {
        self.lock().sent.get(&key).map(|sent| sent.letter.clone())
    }

    /// The sender hears of it. A word that settles is not taken back by a later, weaker one.
    pub fn told(&self, key: Key, told: Told) {
        let at_us = self.now_us();
        if let Some(sent) = self.lock().sent.get_mut(&key) {
            sent.settlements += u32::from(told != Told::Confirmed);
            let weaker = told == Told::Confirmed && sent.told != Told::Nothing;
            if !weaker {
                (sent.told, sent.told_us) = (told, at_us);
            }
        }
    }

    /// The sender is asked to try again.
    pub fn refused(&self, key: Key, code: &str) {
        if let Some(sent) = self.lock().sent.get_mut(&key) {
            sent.refusals += 1;
            sent.refusal = Some(code.to_owned());
            sent.settlements += 1;
        }
    }

    pub fn received(&self, key: Option<Key>, seat: Seat, redelivered: bool) {
        let at_us = self.now_us();
        let Seat { device, session } = seat;
        self.lock().receipts.push(Receipt { at_us, key, device, session, redelivered });
    }

    pub fn opened(&self, seat: Seat, node: usize, name: String) {
        let from_us = self.now_us();
        let mut history = self.lock();
        let at = history.lives.len();
        history.lives.push(Life { seat, node, name, from_us, to_us: None });
        history.open.insert(seat, at);
    }

    /// The device lets go of the socket, or has lost it.
    pub fn ended(&self, seat: Seat) {
        let at_us = self.now_us();
        self.lock().end(seat, at_us);
    }

    pub fn closed(&self, code: u16) {
        *self.lock().closes.entry(code).or_default() += 1;
    }

    /// Something is done that harms nobody.
    pub fn note(&self, what: impl Into<String>, heals: Heals) {
        let at_us = self.now_us();
        self.lock().actions.push(Action { at_us, what: what.into(), heals });
    }

    /// A fault begins, until [`Recorder::heal`]. `nodes`: those whose clients keep their sockets meanwhile.
    pub fn harm(&self, nodes: Nodes, what: impl Into<String>) {
        self.note(what, Heals::No);
        let from_us = self.now_us();
        self.lock().disturbances.push(Disturbance { from_us, to_us: None, nodes });
    }

    /// All faults are over; a fault that was over at once is told like that as well.
    pub fn heal(&self, what: impl Into<String>) {
        self.note(what, Heals::Served);
        let at_us = self.now_us();
        let mut history = self.lock();
        history.disturbances.push(Disturbance { from_us: at_us, to_us: Some(at_us), nodes: 0 });
        for disturbance in &mut history.disturbances {
            disturbance.to_us.get_or_insert(at_us);
        }
    }

    pub fn sent_count(&self) -> usize {
        self.lock().sent.len()
    }
}

/// Small, seeded and the same everywhere (splitmix64): what makes a run repeatable.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `range`, which must not be empty.
    pub fn pick(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}
