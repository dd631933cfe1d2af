//! How much mail waits in each box and for whom, and how a reading of the box replaces what was told.
//!
//! Deposits add to a count, taken mail subtracts from it, and a reading replaces all counts of its box. What is told
//! comes in any order, so two rules keep a count from being too low while mail lies there:
//! - A reading does not erase deposits that it may not have seen: the deposits of the last seconds are logged with the
//!   batch they came in, and a reading says which batches it covers.
//! - Taken mail is subtracted only from the counts of the reading in which it was taken: an earlier reader's mail is not
//!   among what a later reader found.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::gossip::Count;
use crate::bus::BoxNumber;
use crate::ids::{Life, UserKey};

/// Deposits are logged for so long. A reading that took longer never lowers a count.
const LOGGED: Duration = Duration::from_secs(30);
/// Most deposits that are logged, of 48 bytes each.
const LOG_MAX: usize = 50_000;
/// A table below this size keeps its room.
const ROOM_KEPT: usize = 64;

/// Mail that waits for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    pub count: u32,
    pub bytes: u64,
}

impl Waiting {
    pub fn add(&mut self, count: u32, bytes: u64) {
        self.count = self.count.saturating_add(count);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Takes one away. `true`: nothing is left.
    pub fn remove(&mut self, bytes: u64) -> bool {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.count == 0
    }
}

/// What waits for all users together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// Users with mail.
    pub users: u64,
    pub messages: u64,
    pub bytes: u64,
}

struct Held {
    /// Keys are hashes with a public seed, so strangers can make them collide: the table has a random seed of its own.
    users: HashMap<UserKey, Waiting, RandomState>,
    /// The last reading that is known.
    reading: u64,
    read_at: Instant,
}

struct Logged {
    at: Instant,
    batch: (Life, u64),
    user: UserKey,
    bytes: u64,
}

/// What a reading of a box found, or a part of it.
pub struct Found<'a> {
    pub number: BoxNumber,
    pub reading: u64,
    /// Since when there may be deposits that the reading has not seen.
    pub age: Duration,
    /// Batches that were merged by the reader before it began.
    pub covers: &'a HashMap<Life, u64>,
    pub users: &'a [Count],
}

pub struct Counts {
    boxes: Vec<Held>,
    log: VecDeque<Logged>,
    /// All deposits since then are in the log.
    log_from: Instant,
}

impl Counts {
    pub fn new(boxes: NonZeroU32, now: Instant) -> Self {
        let seed = RandomState::new();
        let held = || Held { users: HashMap::with_hasher(seed.clone()), reading: 0, read_at: now };
        let boxes = (0..boxes.get()).map(|_| held()).collect();
        Self { boxes, log: VecDeque::new(), log_from: now }
    }

    pub fn number(&self, user: UserKey) -> BoxNumber {
        // There are as many as a NonZeroU32 said.
        BoxNumber((user.0 % self.boxes.len() as u64) as u32)
    }

    pub fn contains(&self, number: BoxNumber) -> bool {
        (number.0 as usize) < self.boxes.len()
    }

    fn held(&self, number: BoxNumber) -> &Held {
        &self.boxes[number.0 as usize % self.boxes.len()]
    }

    fn held_mut(&mut self, number: BoxNumber) -> &mut Held {
        let index = number.0 as usize % self.boxes.len();
        &mut self.boxes[index]
    }

    pub fn waiting(&self, user: UserKey) -> Waiting {
        self.held(self.number(user)).users.get(&user).copied().unwrap_or_default()
    }

    pub fn total(&self) -> Total {
        let waiting = self.boxes.iter().flat_map(|held| held.users.values());
        waiting.fold(Total::default(), |sum, waiting| Total {
            users: sum.users + 1,
            messages: sum.messages + u64::from(waiting.count),
            bytes: sum.bytes + waiting.bytes,
        })
    }

    pub fn reading(&self, number: BoxNumber) -> u64 {
        self.held(number).reading
    }

    /// Whether somebody has mail in the box and it has not been read for `every`.
    pub fn is_due(&self, number: BoxNumber, every: Duration, now: Instant) -> bool {
        let held = self.held(number);
        !held.users.is_empty() && now.saturating_duration_since(held.read_at) >= every
    }

    pub fn deposited(&mut self, user: UserKey, bytes: u64, batch: (Life, u64), now: Instant) {
        self.prune(now);
        self.log.push_back(Logged { at: now, batch, user, bytes });
        let number = self.number(user);
        let waiting = self.held_mut(number).users.entry(user).or_default();
        waiting.add(1, bytes);
    }

    /// Whether it was counted.
    pub fn taken(&mut self, user: UserKey, bytes: u64, reading: u64) -> bool {
        let number = self.number(user);
        let held = self.held_mut(number);
        if held.reading != reading {
            return false;
        }
        let Some(waiting) = held.users.get_mut(&user) else { return false };
        if waiting.remove(bytes) {
            held.users.remove(&user);
            if held.users.capacity() > ROOM_KEPT && held.users.len() < held.users.capacity() / 8 {
                held.users.shrink_to(held.users.capacity() / 4);
            }
        }
        true
    }

    /// The users who newly have mail; `None` if a later reading is known.
    pub fn exact(&mut self, found: &Found, now: Instant) -> Option<Vec<UserKey>> {
        let known = self.held(found.number).reading;
        if found.reading < known {
            return None;
        }
        let (all_logged, unseen) =
            (now.saturating_duration_since(self.log_from) >= found.age, self.unseen(found));
        let held = self.held_mut(found.number);
        let mut before = HashMap::default();
        if found.reading > known {
            held.reading = found.reading;
            held.read_at = now;
            before.clone_from(&held.users);
            if all_logged {
                held.users.clear();
                for (user, bytes) in unseen {
                    held.users.entry(user).or_default().add(1, bytes);
                }
            }
        }
        let mut newly = Vec::new();
        for &Count(user, count, bytes) in found.users.iter().filter(|count| count.1 > 0) {
            let waiting = held.users.entry(user).or_default();
            if waiting.count == 0 && !before.contains_key(&user) {
                newly.push(user);
            }
            if all_logged {
                waiting.add(count, bytes);
            } else {
                *waiting = Waiting { count: waiting.count.max(count), bytes: waiting.bytes.max(bytes) };
            }
        }
        held.users.shrink_to(held.users.len());
        Some(newly)
    }

    /// Deposits into the box that the reading may not have seen.
    fn unseen(&self, found: &Found) -> Vec<(UserKey, u64)> {
        let is_covered = |(life, seq): (Life, u64)| found.covers.get(&life).is_some_and(|upto| seq <= *upto);
        self.log
            .iter()
            .filter(|logged| self.number(logged.user) == found.number && !is_covered(logged.batch))
            .map(|logged| (logged.user, logged.bytes))
            .collect()
    }

    /// Takes over what another node knows, if that is more. Whether the user newly has mail.
    pub fn at_least(&mut self, user: UserKey, count: u32, bytes: u64) -> bool {
        let number = self.number(user);
        if count == 0 {
            return false;
        }
        let waiting = self.held_mut(number).users.entry(user).or_default();
        let newly = waiting.count == 0;
        *waiting = Waiting { count: waiting.count.max(count), bytes: waiting.bytes.max(bytes) };
        newly
    }

    /// Another node knows of this reading.
    pub fn read_at_least(&mut self, number: BoxNumber, reading: u64) {
        if self.contains(number) {
            let held = self.held_mut(number);
            held.reading = held.reading.max(reading);
        }
    }

    pub fn all(&self) -> Vec<Count> {
        let users = self.boxes.iter().flat_map(|held| &held.users);
        users.map(|(user, waiting)| Count(*user, waiting.count, waiting.bytes)).collect()
    }

    pub fn readings(&self) -> Vec<(u32, u64)> {
        (0..)
            .zip(&self.boxes)
            .filter(|(_, held)| held.reading > 0)
            .map(|(number, held)| (number, held.reading))
            .collect()
    }

    pub fn prune(&mut self, now: Instant) {
        while let Some(oldest) = self.log.front() {
            if self.log.len() < LOG_MAX && now.saturating_duration_since(oldest.at) < LOGGED {
                return;
            }
            // Others of the same moment may still be in the log, but this one is not.
            self.log_from = oldest.at + Duration::from_nanos(1);
            self.log.pop_front();
        }
        self.log.shrink_to(1_024);
    }

    /// Deposits of other nodes may have been missed until now.
    pub fn log_anew(&mut self, now: Instant) {
        self.log_from = now;
    }

    /// Bytes of all tables, for the test that holds them to their promise.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let table = |held: &Held| match held.users.capacity() {
            0 => 0,
            room => (room * 8 / 7).next_power_of_two() * (1 + size_of::<(UserKey, Waiting)>()),
        };
        let tables: usize = self.boxes.iter().map(table).sum();
        tables + self.boxes.capacity() * size_of::<Held>() + self.log.capacity() * size_of::<Logged>()
    }
}
