//! Sending a message to nodes, hearing their receipts, trying again, storing.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use crate::bus::{Destination, Outcome};
use crate::delivery::envelope::{Envelope, Origin, Tag};
use crate::delivery::receipts::{Completed, Receipts};
use crate::directory::Key;
use crate::error::Code;
use crate::ids::{NodeId, UserId};
use crate::protocol::message::{Guarantee, Settlement};
use crate::protocol::server;
use crate::protocol::target::Target;
use crate::router::lines::{Lines, Turn};
use crate::router::strategy::{route, Nodes, Route};
use crate::router::{expired, failed, now_ms, offline, order_key, overloaded, unavailable, Router, Settle};

/// Attempts to deliver a message before it is stored or given up.
const ATTEMPTS_MAX: u8 = 2;
/// Messages for one user that may await receipts; further ones are held.
const ATTEMPTS_PER_USER_MAX: u32 = 256;

/// Where a message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Door(Guarantee),
    /// It lies in its user's mailbox until it is settled.
    Mailbox,
}

/// A message between its acceptance and its settlement.
pub(super) struct Pending {
    envelope: Envelope,
    source: Source,
    attempt: u8,
    /// A node may have delivered an earlier attempt, and has not answered.
    repeated: bool,
    /// An earlier attempt was sent to somebody. A client that did not acknowledge may still have seen it.
    tried: bool,
    settle: Settle,
}

impl Pending {
    pub(super) fn new(envelope: Envelope, source: Source, settle: Settle) -> Self {
        Self { envelope, source, attempt: 1, repeated: false, tried: false, settle }
    }

    fn user(&self) -> Option<&UserId> {
        match &self.envelope.target {
            Target::User(user) => Some(user),
            _ => None,
        }
    }

    /// The user whose order its door's messages keep.
    fn line(&self) -> Option<UserId> {
        self.user().filter(|_| self.source != Source::Mailbox).cloned()
    }
}

impl Router {
    /// Messages that are not settled yet: they await their receipts, their turn, or their place in a mailbox.
    pub fn pending(&self) -> usize {
        let pending = self.lock_pending().len();
        pending + self.lock_lines().waiting()
    }

    fn lock_pending(&self) -> MutexGuard<'_, Receipts<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_lines(&self) -> MutexGuard<'_, Lines<Pending>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first step of a message that came through a door or out of a mailbox.
    pub(super) fn begin(self: &Arc<Self>, pending: Pending, nodes: Nodes) {
        let Some(user) = pending.line() else { return self.attempt(pending, nodes) };
        let connected = !nodes.is_empty();
        let turn = self.lock_lines().turn(&user, pending, connected, ATTEMPTS_PER_USER_MAX);
        match turn {
            Turn::Send(pending) => self.attempt(pending, nodes),
            Turn::Store(pending) => self.store(pending),
            Turn::Held => {}
            Turn::Overloaded(pending) => (pending.settle)(overloaded()),
        }
    }

    fn attempt(self: &Arc<Self>, pending: Pending, nodes: Nodes) {
        if nodes.is_empty() {
            return self.store(pending);
        }
        let line = pending.line();
        let mut envelope = pending.envelope.clone();
        if pending.tried {
            envelope.frame = server::mark_redelivered(&envelope.frame);
        }
        let timeout = self.settings.receipt_timeout;
        if let Some(user) = &line {
            // Before it can end.
            self.lock_lines().attempt_began(user);
            self.tell_of_late_mail(user, &nodes);
        }
        let opened = self.lock_pending().open(pending, nodes.clone(), Instant::now(), timeout);
        let tag = match opened {
            Ok(tag) => tag,
            Err(pending) => {
                (pending.settle)(overloaded());
                return self.attempt_ended(line.as_ref());
            }
        };
        envelope.origin = Some(Origin { node: self.node().clone(), tag });
        let (here, others): (Nodes, Nodes) = nodes.into_iter().partition(|node| node == self.node());
        if !others.is_empty() {
            let order_key = order_key(&envelope.target);
            let publish = envelope.to_publish(Destination::Nodes(others.clone()), now_ms(), order_key);
            let meant: Vec<_> =
                others.iter().map(|node| (node.clone(), self.directory.incarnation_of(node))).collect();
            let router = self.clone();
            let done = move |outcome| {
                if outcome == Outcome::Unroutable {
                    for (node, incarnation) in &meant {
                        router.directory.returned(node, *incarnation);
                    }
                }
                router.published(tag, &others, outcome);
            };
            self.bus.publish(publish, Box::new(done));
        }
        if !here.is_empty() && self.arrive(envelope).is_err() {
            let completed = self.lock_pending().unreachable(tag, &here);
            self.after(completed);
        }
    }

    /// The broker's answer to the publish of an attempt. A confirm says little (the queue may die with its
    /// node): the receipts decide.
    fn published(self: &Arc<Self>, tag: Tag, nodes: &Nodes, outcome: Outcome) {
        if outcome != Outcome::Confirmed {
            let completed = self.lock_pending().unreachable(tag, nodes);
            self.after(completed);
        }
    }

    /// A node's receipt for one attempt.
    pub fn receipt(self: &Arc<Self>, tag: Tag, node: &NodeId, sessions: u32) {
        let completed = self.lock_pending().receipt(tag, node, sessions);
        self.after(completed);
    }

    /// A node is known to be gone: what awaits its receipt is tried elsewhere now.
    pub fn node_lost(self: &Arc<Self>, node: &NodeId) {
        let completed = self.lock_pending().node_lost(node);
        self.after(completed);
    }

    /// Gives up waiting for what is overdue; to be called a few times a second.
    pub fn expire(self: &Arc<Self>, now: Instant) {
        let completed = self.lock_pending().expire(now);
        self.after(completed);
        self.asks.expire(now);
    }

    fn after(self: &Arc<Self>, completed: impl IntoIterator<Item = Completed<Pending>>) {
        for completed in completed {
            let line = completed.item.line();
            self.conclude(completed);
            self.attempt_ended(line.as_ref());
        }
    }

    fn attempt_ended(self: &Arc<Self>, line: Option<&UserId>) {
        if let Some(user) = line {
            self.lock_lines().attempt_ended(user);
            self.release(user);
        }
    }

    /// Every node of an attempt has answered or is given up.
    fn conclude(self: &Arc<Self>, completed: Completed<Pending>) {
        let Completed { item: mut pending, sessions, not_here, unknown } = completed;
        if sessions > 0 {
            return (pending.settle)(Settlement::Delivered { sessions });
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("no-reroute") && !unknown.is_empty() {
            return (pending.settle)(Settlement::Delivered { sessions: 1 });
        }
        if pending.envelope.is_expired(now_ms()) {
            return (pending.settle)(expired());
        }
        if !self.is_linked() {
            return (pending.settle)(unavailable());
        }
        pending.repeated |= !unknown.is_empty();
        pending.tried = true;
        if pending.attempt >= ATTEMPTS_MAX {
            return self.store(pending);
        }
        pending.attempt += 1;
        let Route::Nodes(mut nodes) = route(self.settings.routing, &pending.envelope.target, &**self) else {
            return (pending.settle)(unavailable());
        };
        nodes.retain(|node| !not_here.contains(node));
        self.attempt(pending, nodes);
    }

    /// Nobody took it: into the mailbox of its user, if it has one to go to.
    fn store(self: &Arc<Self>, mut pending: Pending) {
        let user = match (pending.user(), pending.source) {
            (Some(user), Source::Door(Guarantee::AtLeastOnce)) => user.clone(),
            // A session that is gone has no mailbox; what lies in a mailbox stays there.
            _ => {
                return (pending.settle)(match pending.repeated {
                    true => failed(Code::Unavailable, "the receiver's node did not answer; try again"),
                    false => offline(),
                })
            }
        };
        if pending.tried {
            pending.envelope.frame = server::mark_redelivered(&pending.envelope.frame);
        }
        self.lock_lines().deposit_began(&user);
        let router = self.clone();
        let (properties, body) = (pending.envelope.properties(now_ms()), pending.envelope.frame.clone());
        let of = user.clone();
        let done = move |outcome| {
            (pending.settle)(match outcome {
                Outcome::Confirmed => Settlement::Stored,
                Outcome::Refused => failed(Code::MailboxFull, "the mailbox holds as much as it may"),
                Outcome::Overloaded => overloaded(),
                Outcome::Unroutable | Outcome::Unavailable => unavailable(),
            });
            router.deposited(&of, outcome);
        };
        self.bus.deposit(&user, properties, body, Box::new(done));
    }

    /// A deposit is over: whoever holds the user meanwhile must hand it out before anything newer.
    fn deposited(self: &Arc<Self>, user: &UserId, outcome: Outcome) {
        // Without an answer in time it may be there all the same; nobody else would ever say so.
        if matches!(outcome, Outcome::Confirmed | Outcome::Unavailable) {
            self.tell_of_mail(user, &self.directory.nodes_of(Key::user(user)));
            self.mail.announce(user);
        }
        self.lock_lines().deposit_ended(user);
        self.release(user);
    }

    /// Lets go what was held for a user, in order, as far as it may go.
    fn release(self: &Arc<Self>, user: &UserId) {
        if !self.lock_lines().release(user) {
            return;
        }
        let target = Target::User(user.clone());
        loop {
            let Route::Nodes(nodes) = route(self.settings.routing, &target, &**self) else { return };
            let connected = !nodes.is_empty();
            let next = self.lock_lines().next(user, connected, ATTEMPTS_PER_USER_MAX);
            match next {
                Some(pending) if connected => self.attempt(pending, nodes),
                Some(pending) => self.store(pending),
                None => return,
            }
        }
    }
}
