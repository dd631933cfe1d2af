//! Carries out what paths want done: publishes, stores, hands to sessions, answers.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use smallvec::smallvec;

use super::path::{Deposited, Effect, Event};
use super::strategy::{spread, Nodes, Spread, Ways};
use super::table::{Cell, Execute};
use super::{failed, order_key, overloaded, unavailable, Router, Settle};
use crate::bus::{BoxNumber, Destination, Outcome, Publish};
use crate::delivery::envelope::{properties, relayed_for, Envelope, Origin, Tag};
use crate::delivery::peer_words::{mail_publish, MailNotice, Receipt};
use crate::delivery::seen::SeenKey;
use crate::delivery::trace::Step;
use crate::error::Code;
use crate::hub::{Counters, Tally};
use crate::ids::UserKey;
use crate::mail::index::Refusal;
use crate::protocol::message::{Message, Rendered, Settlement};
use crate::protocol::target::Target;

impl Execute for Router {
    fn execute(&self, cell: &Arc<Cell>, effect: Effect) -> Result<(), SeenKey> {
        match effect {
            Effect::Settle(settle, settlement) => {
                self.pending.fetch_sub(1, Ordering::Relaxed);
                settle(settlement);
            }
            Effect::Send { tag, ways, message, answer_by } => self.send(cell, tag, ways, &message, answer_by),
            Effect::SendOnce { ways, message, settle } => self.send_once(cell, ways, &message, settle),
            Effect::Deposit { tag, message } => self.deposit(cell, tag, &message),
            Effect::Notify { ways } => self.notify(cell, ways),
            Effect::Answer { origin, receipt } => self.answer(origin, receipt),
            Effect::HandOut { key, message } => return self.hand_out(cell, key, message),
            Effect::Acknowledge { ack, message } => {
                if ack.ack() {
                    self.mail_taken(&message);
                } else {
                    // The mail lies in the box again: the next reading finds it, and knows that it was taken.
                    self.clean_box(&message.target);
                }
            }
            Effect::Refuse { ack, message } => self.refuse_mail(cell, ack, message),
            Effect::ReadBox => self.read_box(cell),
            Effect::CleanBox => self.clean_box(&cell.ask(|path| path.target().clone())),
        }
        Ok(())
    }
}

impl Router {
    /// Steps a path later, from a callback.
    pub(super) fn stepper(&self, cell: &Arc<Cell>) -> impl Fn(Event) + Send + Sync + 'static {
        let (this, cell) = (self.this.get().cloned().unwrap_or_default(), cell.clone());
        move |event| {
            if let Some(router) = this.upgrade() {
                let _ = router.paths.step_cell(&cell, event, Instant::now(), &*router);
            }
        }
    }

    fn step_now(&self, cell: &Arc<Cell>, event: Event) {
        let _ = self.paths.step_cell(cell, event, Instant::now(), self);
    }

    fn send(&self, cell: &Arc<Cell>, tag: Tag, ways: Ways, message: &Arc<Message>, answer_by: Instant) {
        let origin = Origin { node: self.node().clone(), life: self.life, tag };
        let envelope =
            Envelope { message: (**message).clone(), origin: Some(origin), answer_by: Some(answer_by) };
        let (here, others): (Nodes, Nodes) = ways.nodes.into_iter().partition(|node| node == self.node());
        let now = Instant::now();
        if !others.is_empty() {
            self.trace_sent(message, &others);
            let publish = self.envelope_publish(&envelope, self.way_to(others.clone()), now);
            self.send_awaited(cell, tag, others, publish);
        }
        if let Some(home) = ways.relay {
            let home: Nodes = smallvec![home];
            self.trace_sent(message, &home);
            let publish = self.envelope_publish(&envelope, Destination::Nodes(home.clone()), now);
            self.send_awaited(cell, tag, home, relayed_for(self.node(), publish));
        }
        if !here.is_empty() {
            self.step_now(cell, Event::Arrived(envelope));
        }
    }

    pub(super) fn envelope_publish(&self, envelope: &Envelope, to: Destination, now: Instant) -> Publish {
        envelope.to_publish(to, now, order_key(&envelope.message.target))
    }

    /// Publishes what these nodes are to answer.
    fn send_awaited(&self, cell: &Arc<Cell>, tag: Tag, nodes: Nodes, publish: Publish) {
        let meant: Vec<_> =
            nodes.iter().map(|node| (node.clone(), self.directory.incarnation_of(node))).collect();
        let (step, directory) = (self.stepper(cell), self.directory.clone());
        let done = move |outcome| {
            // A confirm says little (the queue may die with its node): the receipts decide.
            if outcome == Outcome::Confirmed {
                return;
            }
            if outcome == Outcome::Unroutable {
                for (node, incarnation) in &meant {
                    directory.returned(node, *incarnation);
                }
            }
            step(Event::NotSent { tag, nodes, outcome });
        };
        self.bus.publish(publish, Box::new(done));
    }

    /// By the fanout exchange if these nodes are most of many. Others get it too then, and have nobody to show it to.
    pub(super) fn way_to(&self, nodes: Nodes) -> Destination {
        match spread(nodes, self.directory.live_nodes().len(), true) {
            Spread::Everyone => Destination::Broadcast,
            Spread::Nodes(nodes) => Destination::Nodes(nodes),
            Spread::Nobody => Destination::Nodes(Nodes::new()),
        }
    }

    /// At-most-once: sent, confirmed, forgotten.
    fn send_once(&self, cell: &Arc<Cell>, ways: Ways, message: &Arc<Message>, settle: Settle) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        let envelope = Envelope { message: (**message).clone(), origin: None, answer_by: None };
        let (here, others): (Nodes, Nodes) = ways.nodes.into_iter().partition(|node| node == self.node());
        let is_here = !here.is_empty();
        if is_here {
            self.step_now(cell, Event::Arrived(envelope.clone()));
        }
        let now = Instant::now();
        // At most one of the two ways leads to other nodes.
        let publish = if let Some(home) = ways.relay {
            let to: Nodes = smallvec![home];
            self.trace_sent(message, &to);
            relayed_for(self.node(), self.envelope_publish(&envelope, Destination::Nodes(to), now))
        } else if others.is_empty() {
            return settle(Settlement::Published);
        } else {
            self.trace_sent(message, &others);
            self.envelope_publish(&envelope, self.way_to(others), now)
        };
        let directory = self.directory.clone();
        let done = move |outcome| {
            settle(match outcome {
                _ if is_here => Settlement::Published,
                Outcome::Confirmed => Settlement::Published,
                Outcome::Unroutable if directory.peers_may_return() => {
                    failed(Code::Unavailable, "the receiver's node may not be back yet; try again")
                }
                Outcome::Unroutable => failed(Code::Offline, "not connected anywhere"),
                Outcome::Overloaded | Outcome::Refused => overloaded(),
                Outcome::Unavailable => unavailable(),
            })
        };
        self.bus.publish(publish, Box::new(done));
    }

    fn deposit(&self, cell: &Arc<Cell>, tag: Tag, message: &Arc<Message>) {
        let Target::User(user) = &message.target else { return };
        self.trace().note(&message.id, || Step::ToMail);
        let step = self.stepper(cell);
        let now = Instant::now();
        let reservation = match self.mail.admit(user, message.sender.user(), message.bytes(), now) {
            Ok(reservation) => reservation,
            Err(refusal) => {
                let deposited = match refusal {
                    Refusal::UserFull => Deposited::MailboxFull,
                    Refusal::SenderFull | Refusal::SenderRate => Deposited::SenderLimit,
                };
                return self.step_now(cell, Event::Deposited { tag, deposited });
            }
        };
        let done = move |outcome| {
            let deposited = match outcome {
                Outcome::Confirmed => {
                    // Told only when every node knows of the mail: nobody would look for it otherwise.
                    return reservation.stored(Box::new(move |announced| {
                        let deposited = if announced { Deposited::Stored } else { Deposited::Unavailable };
                        step(Event::Deposited { tag, deposited });
                    }));
                }
                Outcome::Refused => Deposited::MailboxFull,
                Outcome::Overloaded => Deposited::Overloaded,
                Outcome::Unroutable => Deposited::Unavailable,
                Outcome::Unavailable => {
                    reservation.uncertain();
                    Deposited::Unavailable
                }
            };
            step(Event::Deposited { tag, deposited });
        };
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("drop-mail") && crate::sabotage::every(10_000) {
            return done(Outcome::Confirmed);
        }
        let number = BoxNumber::of(UserKey::of(user), self.bus.boxes().boxes);
        let body = message.payload.bytes.clone();
        self.bus.deposit(number, properties(message, now), body, Box::new(done));
    }

    fn notify(&self, cell: &Arc<Cell>, ways: Ways) {
        let Target::User(user) = cell.ask(|path| path.target().clone()) else { return };
        let (here, others): (Nodes, Nodes) = ways.nodes.into_iter().partition(|node| node == self.node());
        if !here.is_empty() {
            self.step_now(cell, Event::MailAnnounced { from: Some(self.life) });
        }
        let key = order_key(&Target::User(user.clone()));
        let notice =
            |relay| MailNotice { from: self.node().clone(), life: self.life, user: user.clone(), relay };
        let notices = [
            (!others.is_empty()).then(|| mail_publish(self.way_to(others), &notice(false), key)),
            ways.relay.map(|home| mail_publish(Destination::Nodes(smallvec![home]), &notice(true), key)),
        ];
        for publish in notices.into_iter().flatten() {
            let step = self.stepper(cell);
            let done = move |outcome| {
                if outcome != Outcome::Confirmed {
                    step(Event::NoticeFailed);
                }
            };
            self.bus.publish(publish, Box::new(done));
        }
    }

    fn answer(&self, origin: Origin, receipt: Receipt) {
        if origin.node != *self.node() {
            return self.receipts.send(origin, receipt);
        }
        if origin.life == self.life {
            if let Some(cell) = self.paths.of_tag(origin.tag) {
                self.step_now(&cell, Event::Receipt { tag: origin.tag, node: origin.node, receipt });
            }
        }
    }

    fn hand_out(&self, cell: &Arc<Cell>, key: SeenKey, message: Arc<Message>) -> Result<(), SeenKey> {
        let reserved = match &message.target {
            Target::User(user) => self.hub.reserve_user(user),
            Target::Session(session) if session.node == *self.node() => {
                self.hub.reserve(Counters::from_slice(&[self.hub.counter_of(session.number)]))
            }
            // A session of another node, or no target of a path: nobody here.
            _ => self.hub.reserve(Counters::new()),
        };
        let reservation = reserved.map_err(|_| key)?;
        let (first, all) = (self.stepper(cell), self.stepper(cell));
        let on_first = Box::new(move || first(Event::FirstTaken(key)));
        let traced = self.trace().is_on().then(|| (self.trace().clone(), message.id.clone()));
        let (tally, _) = Tally::new(Some(on_first), move |taken| {
            if let Some((trace, id)) = &traced {
                trace.note(id, || Step::Taken { sessions: taken.sessions });
            }
            all(Event::Resolved { key, taken });
        });
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("shuffle") && crate::sabotage::every(8) {
            self.hand_out_late(std::time::Duration::from_millis(50), message, Some(tally));
            return Ok(());
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("late-duplicate") {
            self.hand_out_late(std::time::Duration::from_secs(20), message.clone(), None);
        }
        reservation.deliver(&Rendered::new(message), tally);
        Ok(())
    }

    #[cfg(feature = "sabotage")]
    fn hand_out_late(&self, wait: std::time::Duration, message: Arc<Message>, tally: Option<Tally>) {
        let hub = self.hub.clone();
        crate::sabotage::later(wait, move || {
            let Target::User(user) = &message.target else { return };
            if let Ok(reservation) = hub.reserve_user(user) {
                let tally = tally.unwrap_or_else(|| Tally::new(None, |_| ()).0);
                reservation.deliver(&Rendered::new(message.clone()), tally);
            }
        });
    }

    pub(super) fn mail_taken(&self, message: &Message) {
        if let Target::User(user) = &message.target {
            self.mail.taken(user, message.sender.user(), message.bytes());
            self.readings.on_acknowledged(UserKey::of(user));
        }
    }

    fn read_box(&self, cell: &Arc<Cell>) {
        if let Target::User(user) = cell.ask(|path| path.target().clone()) {
            self.readings.want(user);
        }
    }

    pub(super) fn clean_box(&self, target: &Target) {
        if let Target::User(user) = target {
            self.readings.want_later(user.clone());
        }
    }
}
