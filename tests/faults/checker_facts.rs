//! What a history says about one message: who saw it, who was there, what may excuse a trace of a fault. Pure.

use std::collections::{HashMap, HashSet};

use crate::record::{Disturbance, History, Key, Kind, Life, Nodes, Receipt, Seat, Sent};

/// How long the gateway may take to notice that a socket opened or ended, and the checker's own traces of it.
pub const LAG_US: u64 = 2_000_000;
/// Somebody who is connected for so long must have got what waited for him.
const FETCH_US: u64 = 1_500_000;

pub struct Facts<'a> {
    pub history: &'a History,
    grace_us: u64,
    seats: HashMap<Key, HashSet<Seat>>,
    /// Sockets by device.
    lives: HashMap<u32, Vec<&'a Life>>,
    /// Devices by user.
    devices: HashMap<u32, Vec<u32>>,
    all: Vec<u32>,
}

/// Whether a socket was open all the time between the two.
fn spans(life: &Life, from_us: u64, to_us: u64) -> bool {
    life.from_us <= from_us && life.to_us.is_none_or(|end| end >= to_us)
}

impl<'a> Facts<'a> {
    pub fn new(history: &'a History, grace_us: u64) -> Self {
        let mut seats: HashMap<Key, HashSet<Seat>> = HashMap::new();
        for receipt in &history.receipts {
            let Some(key) = receipt.key else { continue };
            let user = history.devices.get(receipt.device as usize);
            let Some(sent) = history.sent.get(&key) else { continue };
            if sent.letter.kind == Kind::Broadcast || user == Some(&sent.letter.user) {
                seats.entry(key).or_default().insert(receipt.seat());
            }
        }
        let (mut lives, mut devices) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for life in &history.lives {
            lives.entry(life.seat.device).or_default().push(life);
        }
        for (device, user) in history.devices.iter().enumerate() {
            devices.entry(*user).or_default().push(device as u32);
        }
        let all = (0..history.devices.len() as u32).collect();
        Self { history, grace_us, seats, lives, devices, all }
    }

    pub fn is_seen(&self, key: Key) -> bool {
        self.seats.contains_key(&key)
    }

    /// The sockets that got it.
    pub fn seats(&self, key: Key) -> HashSet<Seat> {
        self.seats.get(&key).cloned().unwrap_or_default()
    }

    fn within(&self, one: &Disturbance, from_us: u64, to_us: u64) -> bool {
        let end = one.to_us.map_or(u64::MAX, |end| end + self.grace_us);
        one.from_us <= to_us && end >= from_us
    }

    /// Whether a fault, or the time that is given to get over it, touches this time.
    pub fn disturbed(&self, from_us: u64, to_us: u64) -> bool {
        self.history.disturbances.iter().any(|one| self.within(one, from_us, to_us))
    }

    fn cut_off(&self, node: usize, from_us: u64, to_us: u64) -> bool {
        let bit: Nodes = 1 << node;
        let all = self.history.disturbances.iter().filter(|one| one.nodes & bit != 0);
        all.into_iter().any(|one| self.within(one, from_us, to_us))
    }

    fn lives_of(&self, device: u32) -> impl Iterator<Item = &&'a Life> {
        self.lives.get(&device).into_iter().flatten()
    }

    fn devices_of(&self, user: u32) -> &[u32] {
        self.devices.get(&user).map_or(&[], Vec::as_slice)
    }

    /// Whether a message may say that it was delivered before: its publisher repeated it after a failure, its
    /// user lost a socket meanwhile or takes nothing, or a fault was about.
    pub fn may_repeat(&self, sent: &Sent, receipt: &Receipt) -> bool {
        let from_us = sent.at_us.saturating_sub(LAG_US);
        let ended = |life: &&'a Life| life.to_us.is_some_and(|end| end >= from_us && end <= receipt.at_us);
        let own = std::slice::from_ref(&receipt.device);
        let devices =
            if sent.letter.kind == Kind::Broadcast { own } else { self.devices_of(sent.letter.user) };
        sent.retries > 0
            || self.history.stuck.contains(&sent.letter.user)
            || self.disturbed(from_us, receipt.at_us)
            || devices.iter().any(|device| self.lives_of(*device).any(ended))
    }

    /// Whether the socket that a message is for was still there after the settlement.
    pub fn session_lasts(&self, sent: &Sent) -> bool {
        let Some(seat) = sent.letter.seat else { return false };
        self.lives_of(seat.device)
            .any(|life| life.seat == seat && spans(life, sent.at_us, sent.told_us + LAG_US))
    }

    /// Whether what was accepted must have been seen by somebody.
    pub fn is_owed(&self, sent: &Sent) -> bool {
        match sent.letter.kind {
            Kind::User => true,
            Kind::Once | Kind::Broadcast => false,
            Kind::Session => self.session_lasts(sent),
            Kind::Brief => {
                let end_us = sent.at_us + sent.letter.ttl_ms.unwrap_or(0) * 1000;
                let fetches = |life: &&'a Life| {
                    let from = life.from_us.max(sent.at_us);
                    let to = life.to_us.unwrap_or(u64::MAX).min(end_us);
                    to >= from + FETCH_US
                };
                let mut devices = self.devices_of(sent.letter.user).iter();
                sent.attempts == 1
                    && !self.history.stuck.contains(&sent.letter.user)
                    && !self.disturbed(sent.at_us.saturating_sub(LAG_US), end_us)
                    && devices.any(|device| self.lives_of(*device).any(fetches))
            }
        }
    }

    /// Whether a device of the user was connected all through.
    pub fn connected(&self, sent: &Sent) -> bool {
        !self.present(sent).is_empty()
    }

    /// Devices that a message is for and that were connected, on a node that was not cut off, from before it
    /// was handed over until after it was settled.
    pub fn present(&self, sent: &Sent) -> Vec<u32> {
        let (from_us, to_us) = (sent.at_us.saturating_sub(LAG_US), sent.told_us + LAG_US);
        let broadcast = sent.letter.kind == Kind::Broadcast;
        let devices = if broadcast { &self.all } else { self.devices_of(sent.letter.user) };
        let there = |device: &u32| {
            let takes = !self.history.stuck.contains(&self.history.devices[*device as usize]);
            let served =
                |life: &&'a Life| spans(life, from_us, to_us) && !self.cut_off(life.node, from_us, to_us);
            takes && self.lives_of(*device).any(served)
        };
        devices.iter().copied().filter(there).collect()
    }
}
