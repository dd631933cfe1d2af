//! The origin's side of a path: messages in the order in which they were accepted, each settled once, in time.
//!
//! A message is sent to the target's nodes only while nothing older waits or is being stored, and is stored only while
//! nothing older is on its way. When the target takes no more, everything that is not settled is stored in order, also
//! what the target node holds: if that is taken after all, the target node knows the mail by its id and does not show it
//! again. Messages accepted after that wait until all of it is stored, and then go directly again, behind a notice that
//! tells the target's nodes of the mail.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::entry::{expired, failed, overloaded, unanswered, unavailable, Entry, Flight, Stage};
use super::order::Order;
use super::{Deposited, Effect, World};
use crate::bus::Outcome;
use crate::delivery::envelope::Tag;
use crate::delivery::peer_words::Receipt;
use crate::error::Code;
use crate::ids::NodeId;
use crate::protocol::message::{Guarantee, Message, Settlement};
use crate::protocol::target::Target;
use crate::router::strategy::{Nodes, Ways};
use crate::router::Settle;

/// Attempts to deliver a message before it is stored or given up.
const ATTEMPTS_MAX: u8 = 2;

#[derive(Default)]
pub(super) struct OriginSide {
    pub(super) entries: VecDeque<Entry>,
    /// Mail was stored since the target's nodes were last told.
    pub(super) notice_due: bool,
}

impl OriginSide {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.entries.iter().map(Entry::due).min()
    }

    pub(super) fn accept(&mut self, tag: Tag, message: Arc<Message>, settle: Settle, now: Instant) {
        self.entries.push_back(Entry {
            tag,
            message,
            settle,
            accepted: now,
            attempts: 0,
            shown: false,
            unknown: false,
            not_here: Nodes::new(),
            store_next: false,
            stage: Stage::Waiting,
        });
    }

    pub(super) fn find(&mut self, tag: Tag) -> Option<usize> {
        self.entries.iter().position(|entry| entry.tag == tag)
    }

    pub(super) fn on_receipt(
        &mut self,
        tag: Tag,
        node: &NodeId,
        receipt: Receipt,
        effects: &mut Vec<Effect>,
    ) {
        let Some(at) = self.find(tag) else { return };
        let entry = &mut self.entries[at];
        if let Receipt::Delivered(sessions) = receipt {
            // Also from an attempt that was given up: a session has it, and that settles it.
            if !matches!(entry.stage, Stage::InFlight(_)) {
                return self.settle(at, Settlement::Delivered { sessions }, effects);
            }
        }
        let Stage::InFlight(flight) = &mut entry.stage else { return };
        let waiting = flight.waiting.iter().position(|waiting| waiting == node);
        if waiting.is_none() && (!flight.is_relaying || flight.early.contains(node)) {
            return;
        }
        if matches!(receipt, Receipt::Held | Receipt::Queued) {
            flight.held = true;
            entry.shown |= receipt == Receipt::Held;
            if entry.store_next {
                entry.stage = Stage::ToStore;
            }
            return;
        }
        match waiting {
            Some(waiting) => drop(flight.waiting.swap_remove(waiting)),
            None => flight.early.push(node.clone()),
        }
        match receipt {
            Receipt::Delivered(sessions) => flight.sessions += sessions,
            Receipt::NotHere => entry.not_here.push(node.clone()),
            Receipt::Full => self.store_everything(),
            Receipt::NotTaken => entry.shown = true,
            Receipt::Declined => flight.declined = true,
            Receipt::Held | Receipt::Queued => {}
        }
        self.conclude(at, effects);
    }

    pub(super) fn on_not_sent(
        &mut self,
        tag: Tag,
        nodes: &[NodeId],
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let Some(at) = self.find(tag) else { return };
        if outcome == Outcome::Confirmed {
            return;
        }
        // What came back was not delivered; else nobody knows.
        self.without(at, nodes, outcome != Outcome::Unroutable);
        let Stage::InFlight(flight) = &self.entries[at].stage else { return };
        let is_last = !flight.is_open() && flight.sessions == 0;
        match outcome {
            // Nothing was sent, and a second attempt or a deposit would only add to the load.
            Outcome::Overloaded if is_last => self.settle(at, overloaded(), effects),
            // No answer in time: the same link would not answer a second attempt either.
            Outcome::Unavailable if is_last => self.settle(at, unavailable(), effects),
            _ => self.conclude(at, effects),
        }
    }

    pub(super) fn on_node_lost(&mut self, node: &NodeId) {
        for at in 0..self.entries.len() {
            self.without(at, std::slice::from_ref(node), true);
        }
        // Concluded by the next `advance`, in order.
    }

    /// Nothing will be heard from these nodes.
    fn without(&mut self, at: usize, nodes: &[NodeId], unknown: bool) {
        let entry = &mut self.entries[at];
        let Stage::InFlight(flight) = &mut entry.stage else { return };
        entry.unknown |= flight.without(nodes) && unknown;
    }

    pub(super) fn on_deposited(&mut self, tag: Tag, deposited: Deposited, effects: &mut Vec<Effect>) {
        let Some(at) = self.find(tag) else { return };
        self.notice_due = true;
        let settlement = match deposited {
            Deposited::Stored => Settlement::Stored,
            Deposited::MailboxFull => failed(Code::MailboxFull, "the mailbox holds as much as it may"),
            Deposited::SenderLimit => {
                failed(Code::RateLimited, "too many messages of this sender wait in mailboxes")
            }
            Deposited::Overloaded => overloaded(),
            Deposited::Unavailable => unavailable(),
        };
        self.settle(at, settlement, effects);
    }

    pub(super) fn on_link_lost(&mut self, effects: &mut Vec<Effect>) {
        for entry in self.entries.drain(..) {
            effects.push(Effect::Settle(entry.settle, unavailable()));
        }
        self.notice_due = true;
    }

    /// The target takes no more.
    fn store_everything(&mut self) {
        for entry in &mut self.entries {
            entry.store_next = true;
            if matches!(entry.stage, Stage::Waiting) || entry.is_held() {
                entry.stage = Stage::ToStore;
            }
        }
    }

    fn settle(&mut self, at: usize, settlement: Settlement, effects: &mut Vec<Effect>) {
        if let Some(entry) = self.entries.remove(at) {
            effects.push(Effect::Settle(entry.settle, settlement));
        }
    }

    /// Its time is over. Whether it was shown before that is not known of one that a node did not answer.
    fn settle_expired(&mut self, at: usize, effects: &mut Vec<Effect>) {
        let entry = &self.entries[at];
        let settlement = if entry.unknown || entry.shown { unanswered() } else { expired(&entry.message) };
        self.settle(at, settlement, effects);
    }

    /// An attempt is over when no node is left to answer.
    pub(super) fn conclude(&mut self, at: usize, effects: &mut Vec<Effect>) {
        let entry = &mut self.entries[at];
        let Stage::InFlight(flight) = &entry.stage else { return };
        if flight.is_open() {
            return;
        }
        if flight.sessions > 0 {
            let sessions = flight.sessions;
            return self.settle(at, Settlement::Delivered { sessions }, effects);
        }
        if flight.declined {
            let text = "the receiver is connected, and has no subscription that takes this";
            return self.settle(at, failed(Code::Declined, text), effects);
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("no-reroute") {
            return self.settle(at, Settlement::Delivered { sessions: 1 }, effects);
        }
        if !entry.store_next && entry.attempts < ATTEMPTS_MAX {
            entry.stage = Stage::Waiting;
        } else if !entry.store_next {
            self.store_everything();
            self.entries[at].stage = Stage::ToStore;
        } else {
            entry.stage = Stage::ToStore;
        }
    }

    /// Does all that the order and the time allow.
    pub(super) fn advance(
        &mut self,
        target: &Target,
        now: Instant,
        world: &impl World,
        effects: &mut Vec<Effect>,
    ) {
        if self.entries.is_empty() {
            return;
        }
        self.expire(now, effects);
        let full = self.act_in_order(target, now, world, effects);
        // The target's node holds the oldest without a session taking it: what waits behind it must not wait as long.
        let stuck = self.entries.front().is_some_and(Entry::is_held);
        if stuck && (full || world.is_under_pressure()) {
            self.store_everything();
            self.act_in_order(target, now, world, effects);
        }
    }

    /// Sends and stores what may be. Returns whether something waits for room on the way.
    fn act_in_order(
        &mut self,
        target: &Target,
        now: Instant,
        world: &impl World,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let again = self.entries.iter().any(|entry| entry.unknown).then(|| world.ways(target, true));
        let mut order = Order::new(now, world, world.ways(target, false), again);
        let mut at = 0;
        while at < self.entries.len() {
            if self.act(at, &mut order, effects) {
                at += 1;
            }
        }
        order.full
    }

    /// What is overdue.
    fn expire(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut at = 0;
        while at < self.entries.len() {
            let before = self.entries.len();
            self.expire_one(at, now, effects);
            if self.entries.len() == before {
                at += 1;
            }
        }
    }

    fn expire_one(&mut self, at: usize, now: Instant, effects: &mut Vec<Effect>) {
        let entry = &mut self.entries[at];
        if now >= entry.give_up_at() {
            return self.settle(at, unavailable(), effects);
        }
        let overdue = now >= entry.store_at();
        let is_expired = entry.message.is_expired(now);
        match &mut entry.stage {
            Stage::Storing => {}
            // A node that has it decides whether it is shown in time.
            Stage::InFlight(flight) if !overdue => {
                if !flight.held && now >= flight.answer_by {
                    entry.unknown |= flight.is_open();
                    flight.waiting.clear();
                    flight.is_relaying = false;
                }
                self.conclude(at, effects);
            }
            Stage::InFlight(flight) if flight.sessions > 0 => {
                let sessions = flight.sessions;
                self.settle(at, Settlement::Delivered { sessions }, effects);
            }
            // It may have been shown, and the answer may be lost.
            Stage::InFlight(_) if is_expired => self.settle(at, unanswered(), effects),
            _ if is_expired => self.settle_expired(at, effects),
            Stage::InFlight(_) | Stage::Waiting if overdue => {
                self.store_everything();
                self.entries[at].stage = Stage::ToStore;
            }
            Stage::InFlight(_) | Stage::Waiting | Stage::ToStore => {}
        }
    }

    /// Acts on one entry, if what is older allows it. `false`: the entry is gone.
    fn act(&mut self, at: usize, order: &mut Order, effects: &mut Vec<Effect>) -> bool {
        let entry = &mut self.entries[at];
        match &entry.stage {
            Stage::InFlight(flight) => {
                order.note_in_flight(entry, flight);
                return true;
            }
            Stage::Storing => {
                order.stored = true;
                return true;
            }
            _ if order.blocked => return true,
            Stage::Waiting | Stage::ToStore => {}
        }
        if entry.message.is_expired(order.now) {
            self.settle_expired(at, effects);
            return false;
        }
        let ways = order.ways_of(entry);
        if matches!(entry.stage, Stage::ToStore) || ways.are_none() {
            return self.store(at, order, effects);
        }
        if order.holds_up(&ways) {
            order.blocked = true;
            return true;
        }
        self.send(at, ways, order, effects)
    }

    fn store(&mut self, at: usize, order: &mut Order, effects: &mut Vec<Effect>) -> bool {
        let entry = &mut self.entries[at];
        if !entry.can_be_stored() {
            let settlement = match (entry.unknown, order.peers_may_return && entry.not_here.is_empty()) {
                (true, _) => unanswered(),
                (_, true) => failed(Code::Unavailable, "the receiver's node may not be back yet; try again"),
                _ => failed(Code::Offline, "not connected anywhere"),
            };
            self.settle(at, settlement, effects);
            return false;
        }
        if order.sent > 0 {
            // Something older is on its way, and nobody knows yet whether it must be stored first.
            order.blocked = true;
            return true;
        }
        entry.stage = Stage::Storing;
        order.stored = true;
        effects.push(Effect::Deposit { tag: entry.tag, message: entry.outgoing() });
        true
    }

    fn send(&mut self, at: usize, ways: Ways, order: &mut Order, effects: &mut Vec<Effect>) -> bool {
        if std::mem::take(&mut self.notice_due) {
            effects.push(Effect::Notify { ways: ways.clone() });
        }
        if self.entries[at].message.guarantee == Guarantee::AtMostOnce {
            if let Some(Entry { message, settle, .. }) = self.entries.remove(at) {
                effects.push(Effect::SendOnce { ways, message, settle });
            }
            return false;
        }
        let entry = &mut self.entries[at];
        let message = entry.outgoing();
        entry.attempts += 1;
        order.note_sent(message.bytes(), ways.relay.clone());
        let answer_by = order.answer_by.min(entry.store_at());
        entry.stage = Stage::InFlight(Flight::new(ways.clone(), answer_by));
        effects.push(Effect::Send { tag: entry.tag, ways, message, answer_by: entry.give_up_at() });
        true
    }
}
