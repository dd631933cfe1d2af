//! The mail index as a pure state machine: what is told and what time it is go in, effects come out.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::counts::{Counts, Found, Waiting};
use super::effect::{ask, send, Effect};
use super::gossip::{Batch, Count, Deposit, Exact, Gossip, Part, Taken, ENTRIES_MAX};
use super::heard::Heard;
use super::outgoing::{Announced, Outgoing};
use super::senders::{Rates, Senders};
use super::snapshots::{parts, Snapshots};
use super::sync::Sync;
use super::unsure::{is_responsible, Unsure};
use super::{MailLimits, Refusal};
use crate::bus::BoxNumber;
use crate::ids::{Incarnation, Life, NodeId, UserKey};

/// A box in which somebody has mail is read again after so long: that finds mail that expired.
const READ_EVERY: Duration = Duration::from_secs(3600);
/// A box that was due and could not be read is due again after so long.
const DUE_AGAIN: Duration = Duration::from_secs(60);
/// What a node said may be on its way for so long.
const ON_ITS_WAY: Duration = Duration::from_secs(3);

/// A reading of a box that began; see [`Index::reading_began`].
#[derive(Debug)]
pub struct Began {
    number: BoxNumber,
    at: Instant,
    covers: HashMap<Life, u64>,
}

pub struct Index {
    node: NodeId,
    life: Life,
    incarnation: Option<Incarnation>,
    limits: MailLimits,
    counts: Counts,
    senders: Senders,
    rates: Rates,
    /// Deposits that the broker has not answered yet.
    reserved: HashMap<UserKey, Waiting, RandomState>,
    reserved_senders: HashMap<UserKey, u32, RandomState>,
    heard: Heard,
    outgoing: Outgoing,
    sync: Sync,
    unsure: Unsure,
    /// This node's last reading of each box.
    own_readings: HashMap<BoxNumber, u64>,
    /// When a box that was due was last handed out to be read.
    tried: HashMap<BoxNumber, Instant>,
    snapshots: Snapshots,
    has_ended: bool,
}

impl Index {
    pub fn new(node: NodeId, life: Life, boxes: NonZeroU32, limits: MailLimits, now: Instant) -> Self {
        Self {
            counts: Counts::new(boxes, now),
            senders: Senders::new(now),
            rates: Rates::new(limits.sender_rate, limits.sender_burst),
            reserved: HashMap::default(),
            reserved_senders: HashMap::default(),
            heard: Heard::default(),
            outgoing: Outgoing::new(life),
            sync: Sync::new(boxes, life.0, now),
            unsure: Unsure::default(),
            own_readings: HashMap::new(),
            tried: HashMap::new(),
            snapshots: Snapshots::new(now),
            has_ended: false,
            incarnation: None,
            node,
            life,
            limits,
        }
    }

    /// Of what link that which comes next is. If the node's queues exist anew, gossip may have been missed.
    pub fn link_is(&mut self, incarnation: Option<Incarnation>, now: Instant) {
        if incarnation.is_some() && incarnation != self.incarnation {
            self.incarnation = incarnation;
            self.link_up(now);
        }
    }

    pub fn link_up(&mut self, now: Instant) {
        self.sync.begin(now);
        self.counts.log_anew(now);
        self.snapshots.clear();
    }

    // ---- lookups ----

    pub fn may_have(&self, user: UserKey) -> bool {
        !self.sync.knows(self.counts.number(user)) || self.waiting(user).count > 0
    }

    /// Of every box it is known whose mail is in it.
    pub fn is_complete(&self) -> bool {
        self.sync.is_complete()
    }

    pub fn waiting(&self, user: UserKey) -> Waiting {
        let mut waiting = self.counts.waiting(user);
        if let Some(reserved) = self.reserved.get(&user) {
            waiting.add(reserved.count, reserved.bytes);
        }
        waiting
    }

    fn sent_by(&self, sender: UserKey) -> u32 {
        let reserved = self.reserved_senders.get(&sender).copied().unwrap_or_default();
        self.senders.waiting(sender).saturating_add(reserved)
    }

    // ---- what this node does ----

    /// Reserves room for one mail. Followed by exactly one [`release`](Self::release) or [`stored`](Self::stored).
    pub fn admit(&mut self, mail: Deposit, now: Instant) -> Result<(), Refusal> {
        let waiting = self.waiting(mail.user);
        if waiting.count >= self.limits.messages
            || waiting.bytes.saturating_add(mail.bytes) > self.limits.bytes
        {
            return Err(Refusal::UserFull);
        }
        if let Some(sender) = mail.sender {
            if self.sent_by(sender) >= self.limits.sender_messages {
                return Err(Refusal::SenderFull);
            }
            if !self.rates.allows(sender, now) {
                return Err(Refusal::SenderRate);
            }
            self.rates.count(sender, now);
            *self.reserved_senders.entry(sender).or_default() += 1;
        }
        self.reserved.entry(mail.user).or_default().add(1, mail.bytes);
        Ok(())
    }

    pub fn release(&mut self, mail: Deposit) {
        if let Some(reserved) = self.reserved.get_mut(&mail.user) {
            if reserved.remove(mail.bytes) {
                self.reserved.remove(&mail.user);
            }
        }
        let Some(sender) = mail.sender else { return };
        if let Some(count) = self.reserved_senders.get_mut(&sender) {
            *count -= 1;
            if *count == 0 {
                self.reserved_senders.remove(&sender);
            }
        }
    }

    /// The broker has the mail. `Err`: it will not be announced any more.
    pub fn stored(&mut self, mail: Deposit, announced: Announced, now: Instant) -> Result<(), Announced> {
        self.release(mail);
        self.counts.deposited(mail.user, mail.bytes, self.outgoing.batch(), now);
        if let Some(sender) = mail.sender {
            self.senders.add(sender);
        }
        if self.has_ended {
            return Err(announced);
        }
        self.outgoing.deposit(mail, announced, now);
        Ok(())
    }

    /// A mail was acknowledged out of its box, here.
    pub fn taken(&mut self, mail: Deposit, now: Instant) {
        let number = self.counts.number(mail.user);
        let reading = self.own_readings.get(&number).copied().unwrap_or_default();
        let taken = Taken { mail, reading };
        self.take(taken);
        self.outgoing.taken(taken, now);
    }

    fn take(&mut self, Taken { mail, reading }: Taken) {
        self.counts.taken(mail.user, mail.bytes, reading);
        if let Some(sender) = mail.sender {
            self.senders.remove(sender);
        }
    }

    // ---- readings ----

    /// To be called before a box is attached to: what is deposited from now on may be missing in what is found.
    pub fn reading_began(&mut self, number: BoxNumber, now: Instant) -> Began {
        self.outgoing.cut();
        let mut covers: HashMap<Life, u64> = self.heard.covers().into_iter().collect();
        let (life, next) = self.outgoing.batch();
        covers.insert(life, next - 1);
        Began { number, at: now, covers }
    }

    /// A complete reading found these users in the box, and nobody else.
    pub fn exact(&mut self, began: Began, found: Vec<Count>, now: Instant, wall_ms: u64) {
        let Began { number, at, covers } = began;
        if !self.counts.contains(number) {
            return;
        }
        let found: Vec<_> = found.into_iter().filter(|count| self.counts.number(count.0) == number).collect();
        let reading = wall_ms.max(self.counts.reading(number) + 1);
        let age = now.saturating_duration_since(at);
        self.counts.exact(&Found { number, reading, age, covers: &covers, users: &found }, now);
        self.own_readings.insert(number, reading);
        self.sync.is_read(number);
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let covers: Vec<_> = covers.into_iter().collect();
        let nobody: &[Count] = &[];
        let parts = found.chunks(ENTRIES_MAX / 5).chain(found.is_empty().then_some(nobody));
        for part in parts {
            let (covers, found) = (covers.clone(), part.to_vec());
            self.outgoing.exact(Exact { number: number.0, reading, age_ms, covers, found }, now);
        }
    }

    /// The broker may hold this mail or not: nobody tells of it, so its box is to be read.
    pub fn uncertain(&mut self, mail: Deposit) {
        self.release(mail);
        self.sync.doubt_own(self.counts.number(mail.user));
    }

    /// What is known of this box may be wrong: it is to be read.
    pub fn doubt(&mut self, number: BoxNumber) {
        self.sync.doubt(number);
    }

    /// Another node is gone: what it took lately may lie in its box again. `live`: as for [`next_due_box`](Self::next_due_box).
    pub fn node_lost(&mut self, now: Instant, live: &[NodeId]) {
        for number in self.unsure.lately(now) {
            if is_responsible(&self.node, live, number) {
                self.sync.doubt(number);
            }
        }
    }

    /// What was not told is found anew, and told then.
    fn doubt_untold(&mut self) {
        let untold = self.outgoing.take_untold();
        for user in untold.users {
            self.sync.doubt(self.counts.number(user));
        }
        for number in untold.boxes {
            self.sync.doubt(number);
        }
    }

    pub fn next_unread_box(&mut self) -> Option<BoxNumber> {
        self.sync.next_unread()
    }

    /// A box that this node, and no other live one, is to read again.
    pub fn next_due_box(&mut self, boxes: NonZeroU32, now: Instant, live: &[NodeId]) -> Option<BoxNumber> {
        let is_due = |number: &BoxNumber| {
            self.counts.is_due(*number, READ_EVERY, now)
                && self.tried.get(number).is_none_or(|at| now.saturating_duration_since(*at) >= DUE_AGAIN)
                && is_responsible(&self.node, live, *number)
        };
        let due = (0..boxes.get()).map(BoxNumber).find(is_due)?;
        self.tried.insert(due, now);
        Some(due)
    }

    // ---- what is heard ----

    /// The users who newly have mail.
    pub fn receive(&mut self, gossip: Gossip, now: Instant) -> Vec<UserKey> {
        match gossip {
            Gossip::Batch(batch)
                if batch.life != self.life && self.heard.admit(batch.life, batch.seq, now) =>
            {
                self.merge(batch, now)
            }
            Gossip::Batch(_) | Gossip::Unknown => Vec::new(),
            Gossip::Ask { from, to, request } => {
                if to == self.node && self.snapshots.has_room() {
                    let parts = parts(request, self.sync.is_complete(), &self.counts, &self.senders);
                    self.snapshots.add(from, parts);
                }
                Vec::new()
            }
            Gossip::Part(part) => self.on_part(part, now),
        }
    }

    fn merge(&mut self, batch: Batch, now: Instant) -> Vec<UserKey> {
        let mut newly = Vec::new();
        // In this order: a reading keeps the deposits of its own batch, and its mail is taken after it.
        for mail in batch.deposits {
            self.counts.deposited(mail.user, mail.bytes, (batch.life, batch.seq), now);
            // Whatever was counted before: a count may be too high, and nobody would read what is there now.
            newly.push(mail.user);
            if let Some(sender) = mail.sender {
                self.senders.add(sender);
            }
        }
        for exact in batch.exact {
            let number = BoxNumber(exact.number);
            if !self.counts.contains(number)
                || exact.found.iter().any(|count| self.counts.number(count.0) != number)
            {
                continue; // A node with another number of boxes.
            }
            let covers = exact.covers.into_iter().collect();
            let age = Duration::from_millis(exact.age_ms).saturating_add(ON_ITS_WAY);
            let found = Found { number, reading: exact.reading, age, covers: &covers, users: &exact.found };
            if let Some(more) = self.counts.exact(&found, now) {
                self.sync.is_read_elsewhere(number);
                newly.extend(more);
            }
        }
        for taken in batch.taken {
            self.unsure.note_taken(self.counts.number(taken.mail.user), now);
            self.take(taken);
        }
        newly
    }

    fn on_part(&mut self, part: Part, now: Instant) -> Vec<UserKey> {
        if !self.sync.on_part(&part, now) {
            return Vec::new();
        }
        for (number, reading) in part.readings {
            self.counts.read_at_least(BoxNumber(number), reading);
        }
        for (sender, count) in part.senders {
            self.senders.at_least(sender, count);
        }
        part.users
            .into_iter()
            .filter(|Count(user, count, bytes)| self.counts.at_least(*user, *count, *bytes))
            .map(|count| count.0)
            .collect()
    }

    // ---- time ----

    /// When [`poll`](Self::poll) has something to do again, if nothing happens before.
    pub fn next_poll(&self, now: Instant) -> Option<Instant> {
        [self.outgoing.next_poll(), self.sync.next_poll(now), self.snapshots.next_poll()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due. The effects are to be carried out in this order.
    pub fn poll(&mut self, now: Instant, peers: impl FnOnce() -> Vec<NodeId>) -> Vec<Effect> {
        self.senders.turn(now);
        self.counts.prune(now);
        let mut effects: Vec<Effect> = self.outgoing.poll(now).into_iter().map(Effect::from).collect();
        self.doubt_untold();
        if let Some((node, request)) = self.sync.poll(now, peers) {
            effects.extend(ask(self.node.clone(), node, request));
        }
        for (node, part) in self.snapshots.poll(now) {
            effects.extend(send(node, part));
        }
        effects
    }

    /// The broker's answer to a published batch.
    pub fn published(&mut self, seq: u64, confirmed: bool, now: Instant) -> Option<Effect> {
        let step = self.outgoing.published(seq, confirmed, now);
        self.doubt_untold();
        step.map(Effect::from)
    }

    /// Nothing is published any more.
    pub fn end(&mut self) -> Effect {
        self.has_ended = true;
        Effect::Tell { announced: self.outgoing.end(), confirmed: false }
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    #[cfg(test)]
    pub fn reservations(&self) -> usize {
        self.reserved.len() + self.reserved_senders.len()
    }
}
