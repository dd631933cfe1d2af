//! What this node has to tell the others about mail: batches, repeated until the broker has confirmed them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::gossip::{Batch, Deposit, Exact, Gossip, Taken};
use super::heard::WINDOW;
use crate::bus::BoxNumber;
use crate::ids::{Life, UserKey};

/// Told whether every node has the announcement of a deposit (the broker has confirmed it), or may not have it.
pub type Announced = Box<dyn FnOnce(bool) + Send>;

/// An entry waits this long for others to share a batch with.
pub const BATCH_WAIT: Duration = Duration::from_millis(5);
/// A batch with so many entries goes at once.
pub const BATCH_ENTRIES: usize = 1_000;
/// How often a batch is published.
const ATTEMPTS_MAX: u32 = 3;
/// The pause before the second attempt, and twice that before the third.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// A deposit whose announcement is not confirmed by then counts as not announced.
pub const ANNOUNCE_DEADLINE: Duration = Duration::from_millis(1_500);
/// Most batches that are not confirmed. Others tell this many apart, with room to spare.
const IN_FLIGHT_MAX: usize = 64;
const _: () = assert!((IN_FLIGHT_MAX as u64) < WINDOW);
/// Most entries that wait for a batch. Beyond it an entry is not told, see [`Untold`].
const WAITING_MAX: usize = 50_000;

/// What was given up, so that other nodes may know nothing of mail that is there. A new reading of the boxes tells them.
#[derive(Default)]
pub struct Untold {
    /// Those whose mail was not announced.
    pub users: Vec<UserKey>,
    /// Those whose last reading was not told.
    pub boxes: Vec<BoxNumber>,
}

impl Untold {
    fn append(&mut self, mut other: Self) {
        self.users.append(&mut other.users);
        self.boxes.append(&mut other.boxes);
    }
}

struct InFlight {
    body: Bytes,
    announced: Vec<Announced>,
    /// What is untold if no attempt succeeds.
    tells: Untold,
    deadline: Instant,
    attempts: u32,
    /// `None`: an attempt is under way.
    again_at: Option<Instant>,
}

fn exact_weight(exact: &Exact) -> usize {
    1 + exact.found.len() + exact.covers.len()
}

/// What the owner of the batches has to do.
pub enum Step {
    Publish { seq: u64, body: Bytes },
    Tell { announced: Vec<Announced>, confirmed: bool },
}

pub struct Outgoing {
    life: Life,
    /// The number of the batch that is being filled.
    seq: u64,
    deposits: Vec<Deposit>,
    taken: Vec<Taken>,
    exact: Vec<Exact>,
    entries: usize,
    announced: Vec<Announced>,
    /// When the first entry of the batch came.
    since: Option<Instant>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Callbacks to be called as soon as the lock is released.
    refused: Vec<Announced>,
    untold: Untold,
}

impl Outgoing {
    pub fn new(life: Life) -> Self {
        Self {
            life,
            seq: 1,
            deposits: Vec::new(),
            taken: Vec::new(),
            exact: Vec::new(),
            entries: 0,
            announced: Vec::new(),
            since: None,
            in_flight: BTreeMap::new(),
            refused: Vec::new(),
            untold: Untold::default(),
        }
    }

    /// The batch that the next entry goes into.
    pub fn batch(&self) -> (Life, u64) {
        (self.life, self.seq)
    }

    fn enter(&mut self, weight: usize, now: Instant) -> bool {
        let fits = self.entries < WAITING_MAX;
        if fits {
            self.entries += weight;
            self.since.get_or_insert(now);
        }
        fits
    }

    pub fn deposit(&mut self, deposit: Deposit, announced: Announced, now: Instant) {
        if self.enter(1, now) {
            self.deposits.push(deposit);
            self.announced.push(announced);
        } else {
            self.refused.push(announced);
            self.untold.users.push(deposit.user);
        }
    }

    pub fn taken(&mut self, taken: Taken, now: Instant) {
        if self.enter(1, now) {
            self.taken.push(taken);
        }
    }

    pub fn exact(&mut self, exact: Exact, now: Instant) {
        if self.enter(exact_weight(&exact), now) {
            self.exact.push(exact);
        } else {
            self.untold.boxes.push(BoxNumber(exact.number));
        }
    }

    /// Ends the batch, so that later entries are told apart from those before.
    pub fn cut(&mut self) {
        let Some(since) = self.since else { return };
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return;
        }
        let mut batch = Batch {
            life: self.life,
            seq: self.seq,
            deposits: std::mem::take(&mut self.deposits),
            taken: std::mem::take(&mut self.taken),
            exact: std::mem::take(&mut self.exact),
        };
        // What gathered while nothing could be sent goes in several batches: deposits first, they are waited for.
        if batch.deposits.len() + batch.taken.len() > 2 * BATCH_ENTRIES {
            self.deposits = batch.deposits.split_off(batch.deposits.len().min(BATCH_ENTRIES));
            self.taken = batch.taken.split_off(batch.taken.len().min(BATCH_ENTRIES));
        }
        // Each part of a reading stands for itself.
        let mut weight = 0;
        let fitting = batch.exact.iter().take_while(|exact| {
            weight += exact_weight(exact);
            weight <= 2 * BATCH_ENTRIES || weight == exact_weight(exact)
        });
        self.exact = batch.exact.split_off(fitting.count());
        let rest = self.announced.split_off(batch.deposits.len().min(self.announced.len()));
        let announced = std::mem::replace(&mut self.announced, rest);
        let exact: usize = self.exact.iter().map(exact_weight).sum();
        self.entries = self.deposits.len() + self.taken.len() + exact;
        self.since = (self.entries > 0).then_some(since);
        self.seq += 1;
        let deadline = since + ANNOUNCE_DEADLINE;
        let tells = Untold {
            users: batch.deposits.iter().map(|deposit| deposit.user).collect(),
            boxes: batch.exact.iter().map(|exact| BoxNumber(exact.number)).collect(),
        };
        match Gossip::Batch(batch).encode() {
            Ok(body) => {
                let again_at = Some(since);
                let new = InFlight { body: body.into(), announced, tells, deadline, attempts: 0, again_at };
                self.in_flight.insert(self.seq - 1, new);
            }
            Err(error) => {
                tracing::error!(%error, "mail gossip cannot be written");
                self.refused.extend(announced);
                self.untold.append(tells);
            }
        }
    }

    /// What was given up since this was last asked.
    pub fn take_untold(&mut self) -> Untold {
        std::mem::take(&mut self.untold)
    }

    /// The broker's answer to a publish.
    pub fn published(&mut self, seq: u64, confirmed: bool, now: Instant) -> Option<Step> {
        let batch = self.in_flight.get_mut(&seq)?;
        if confirmed || batch.attempts >= ATTEMPTS_MAX {
            let batch = self.in_flight.remove(&seq)?;
            if !confirmed {
                self.untold.append(batch.tells);
            }
            return (!batch.announced.is_empty())
                .then_some(Step::Tell { announced: batch.announced, confirmed });
        }
        batch.again_at = Some(now + RETRY_WAIT * batch.attempts);
        None
    }

    pub fn next_poll(&self) -> Option<Instant> {
        let fill = self.since.map(|since| {
            match (self.in_flight.len() < IN_FLIGHT_MAX, self.entries >= BATCH_ENTRIES) {
                (true, true) => since,
                (true, false) => since + BATCH_WAIT,
                (false, _) => since + ANNOUNCE_DEADLINE,
            }
        });
        let waiting = self.in_flight.values().filter_map(|batch| {
            let deadline = (!batch.announced.is_empty()).then_some(batch.deadline);
            batch.again_at.into_iter().chain(deadline).min()
        });
        fill.into_iter().chain(waiting).min()
    }

    pub fn poll(&mut self, now: Instant) -> Vec<Step> {
        while self.since.is_some_and(|since| self.entries >= BATCH_ENTRIES || since + BATCH_WAIT <= now) {
            let seq = self.seq;
            self.cut();
            if self.seq == seq {
                // No room in flight: what has waited too long is not announced, and is told later all the same.
                if self.since.is_some_and(|since| since + ANNOUNCE_DEADLINE <= now) {
                    self.refused.append(&mut self.announced);
                    self.since = Some(now);
                }
                break;
            }
        }
        let mut steps = Vec::new();
        for (&seq, batch) in &mut self.in_flight {
            if batch.deadline <= now {
                self.refused.append(&mut batch.announced);
            }
            if batch.again_at.is_some_and(|at| at <= now) {
                batch.again_at = None;
                batch.attempts += 1;
                steps.push(Step::Publish { seq, body: batch.body.clone() });
            }
        }
        if !self.refused.is_empty() {
            let announced = std::mem::take(&mut self.refused);
            steps.push(Step::Tell { announced, confirmed: false });
        }
        steps
    }

    /// Everything that is still to be announced will not be.
    pub fn end(&mut self) -> Vec<Announced> {
        let in_flight = std::mem::take(&mut self.in_flight).into_values().flat_map(|batch| batch.announced);
        let mut all: Vec<_> = in_flight.collect();
        all.append(&mut self.announced);
        all.append(&mut self.refused);
        all
    }
}
