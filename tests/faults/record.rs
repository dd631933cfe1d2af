//! What really happened: every publish with what its sender was told, and every receipt of every device.

use std::collections::HashMap;
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

/// The last word that a sender got about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    /// The broker has confirmed it into the ingress queue; the settlement did not come.
    Confirmed,
    Delivered,
    Stored,
    /// For good: trying again would not help.
    Rejected,
}

impl Told {
    /// Whether the sender may forget the message.
    pub fn accepted(self) -> bool {
        matches!(self, Told::Confirmed | Told::Delivered | Told::Stored)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub user: u32,
    pub at_us: u64,
    /// How often it was handed to the gateway.
    pub attempts: u32,
    pub told: Told,
    pub told_us: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    pub at_us: u64,
    /// `None`: the id is not one of ours.
    pub key: Option<Key>,
    pub device: u32,
    /// Counts the sockets of a device.
    pub session: u32,
    pub redelivered: bool,
}

/// Something that was done to the system.
#[derive(Debug, Clone)]
pub struct Action {
    pub at_us: u64,
    pub what: String,
    /// From here on the system must be well again: recovery is measured from here.
    pub heals: bool,
}

#[derive(Debug, Default)]
pub struct History {
    pub sent: HashMap<Key, Sent>,
    pub receipts: Vec<Receipt>,
    pub actions: Vec<Action>,
    /// The user of each device.
    pub devices: Vec<u32>,
    /// Why sockets ended, by close code (0 = without one).
    pub closes: HashMap<u16, u32>,
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

    /// A message is handed to the gateway, for the first time or again.
    pub fn sending(&self, key: Key, user: u32) {
        let at_us = self.now_us();
        let fresh = Sent { user, at_us, attempts: 0, told: Told::Nothing, told_us: 0 };
        self.lock().sent.entry(key).or_insert(fresh).attempts += 1;
    }

    /// The sender hears of it. A word that settles is not taken back by a later, weaker one.
    pub fn told(&self, key: Key, told: Told) {
        let at_us = self.now_us();
        if let Some(sent) = self.lock().sent.get_mut(&key) {
            let weaker = told == Told::Confirmed && sent.told != Told::Nothing;
            if !weaker {
                (sent.told, sent.told_us) = (told, at_us);
            }
        }
    }

    pub fn received(&self, key: Option<Key>, device: u32, session: u32, redelivered: bool) {
        let at_us = self.now_us();
        self.lock().receipts.push(Receipt { at_us, key, device, session, redelivered });
    }

    pub fn closed(&self, code: u16) {
        *self.lock().closes.entry(code).or_default() += 1;
    }

    pub fn act(&self, what: impl Into<String>) {
        self.note(what.into(), false);
    }

    pub fn heal(&self, what: impl Into<String>) {
        self.note(what.into(), true);
    }

    fn note(&self, what: String, heals: bool) {
        let at_us = self.now_us();
        self.lock().actions.push(Action { at_us, what, heals });
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
