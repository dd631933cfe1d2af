//! The router: takes a message from any door, finds who holds its target, and settles it.
//!
//! - `mod.rs`: accept, attempt, settle.
//! - [`strategy`]: where a message goes (pure).
//! - `arrival.rs`: messages that reach this node's sessions, from here or from another node; duplicates end here.
//! - `ask.rs`: questions to all nodes about their sessions.
//!
//! A message is settled exactly once, and its source hears of it only then.

mod arrival;
pub mod ask;
pub mod strategy;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::bus::{Bus, Destination, Link, Outcome};
use crate::config::Routing;
use crate::delivery::envelope::{Envelope, Origin, Scope, Tag};
use crate::delivery::receipt_sender::ReceiptSender;
use crate::delivery::receipts::{Completed, Receipts};
use crate::directory::{Directory, Key};
use crate::error::{Code, Error};
use crate::hub::{Hub, Local};
use crate::ids::{NodeId, UserId};
use crate::protocol::message::{Guarantee, Message, Settlement};
use crate::protocol::server;
use crate::protocol::target::Target;
use strategy::{route, Lookup, Nodes, Route};

/// Called exactly once with the message's fate, on any thread: it must return at once.
pub type Settle = Box<dyn FnOnce(Settlement) + Send>;

/// Attempts to deliver a message before it is given up (or stored).
const ATTEMPTS_MAX: u8 = 2;

#[derive(Debug, Clone)]
pub struct RouterSettings {
    pub node: NodeId,
    pub routing: Routing,
    /// Messages awaiting receipts. Overflow policy: the sender is told `overloaded`.
    pub pending_max: usize,
    pub receipt_timeout: Duration,
}

/// A message between its acceptance and its settlement.
struct Pending {
    message: Message,
    frame: Bytes,
    attempt: u8,
    /// A node may have delivered an earlier attempt.
    repeated: bool,
    settle: Settle,
}

pub struct Router {
    settings: RouterSettings,
    hub: Arc<Hub>,
    directory: Directory,
    bus: Arc<dyn Bus>,
    link: watch::Receiver<Link>,
    receipts: ReceiptSender,
    pending: Mutex<Receipts<Pending>>,
    arrivals: arrival::Arrivals,
    asks: ask::Asks,
}

/// What a router is put together from.
pub struct Places {
    pub hub: Arc<Hub>,
    pub directory: Directory,
    pub bus: Arc<dyn Bus>,
    pub receipts: ReceiptSender,
}

fn failed(code: Code, message: &str) -> Settlement {
    Settlement::Failed(Error::new(code, message))
}

fn unavailable() -> Settlement {
    failed(Code::Unavailable, "the broker cannot be reached; try again")
}

fn overloaded() -> Settlement {
    failed(Code::Overloaded, "too many messages in flight; try again")
}

/// What is for one target keeps its order on the bus.
fn order_key(target: &Target) -> u64 {
    xxh3_64(target.to_string().as_bytes())
}

/// Milliseconds since the Unix epoch. Only for what is shown and for times to live, never for timers.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

impl Router {
    pub fn new(settings: RouterSettings, places: Places) -> Self {
        let Places { hub, directory, bus, receipts } = places;
        Self {
            link: bus.link(),
            pending: Mutex::new(Receipts::new(settings.pending_max)),
            arrivals: arrival::Arrivals::new(),
            asks: ask::Asks::new(),
            settings,
            hub,
            directory,
            bus,
            receipts,
        }
    }

    pub fn node(&self) -> &NodeId {
        &self.settings.node
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Messages that await their receipts.
    pub fn pending(&self) -> usize {
        self.lock_pending().len()
    }

    fn lock_pending(&self) -> MutexGuard<'_, Receipts<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of `user` begins. When this returns, this node's messages for the user reach it, and the
    /// other nodes are being told.
    pub fn open_session(&self, user: &UserId, session: Local) {
        self.hub.register(user, session, || self.directory.join(Key::user(user)));
    }

    /// The inverse of [`Router::open_session`].
    pub fn close_session(&self, user: &UserId, counter: u64) {
        self.hub.unregister(user, counter, || self.directory.leave(Key::user(user)));
    }

    /// Takes a message and settles it. Never blocks; messages accepted one after the other leave in that order.
    pub fn accept(self: &Arc<Self>, message: Message, settle: Settle) {
        if !self.link.borrow().ready() {
            return settle(unavailable());
        }
        if message.expires_ms.is_some_and(|at| at <= now_ms()) {
            return settle(failed(Code::Expired, "the time to live is over"));
        }
        let frame = server::message(&message);
        match route(self.settings.routing, &message.target, &**self) {
            Route::Unsupported => settle(failed(Code::BadRequest, "channels are not part of this version")),
            Route::Everyone => self.publish_to_everyone(message, frame, settle),
            Route::Nodes(nodes) => {
                self.attempt(Pending { message, frame, attempt: 1, repeated: false, settle }, nodes)
            }
        }
    }

    /// [`Router::accept`] for callers that can wait.
    pub async fn deliver(self: &Arc<Self>, message: Message) -> Settlement {
        let (tell, told) = oneshot::channel();
        self.accept(
            message,
            Box::new(move |settlement| {
                // The caller may have gone away.
                let _ = tell.send(settlement);
            }),
        );
        told.await.unwrap_or_else(|_| unavailable())
    }

    fn publish_to_everyone(&self, message: Message, frame: Bytes, settle: Settle) {
        let scope = Scope::of(&message.sender);
        let envelope = Envelope { id: message.id, scope, target: message.target, origin: None, frame };
        let ttl_ms = message.expires_ms.map(|at| at.saturating_sub(now_ms()).max(1));
        let publish = envelope.to_publish(Destination::Broadcast, ttl_ms, 0);
        let done = move |outcome| {
            settle(match outcome {
                Outcome::Confirmed => Settlement::Published,
                Outcome::Overloaded => overloaded(),
                Outcome::Unroutable | Outcome::Refused | Outcome::Unavailable => unavailable(),
            })
        };
        self.bus.publish(publish, Box::new(done));
    }

    fn attempt(self: &Arc<Self>, pending: Pending, nodes: Nodes) {
        if nodes.is_empty() {
            let settlement = match pending.repeated {
                true => failed(Code::Unavailable, "the user's node was lost; try again"),
                false => failed(Code::Offline, "not connected anywhere"),
            };
            return (pending.settle)(settlement);
        }
        match pending.message.guarantee {
            Guarantee::AtLeastOnce => self.attempt_with_receipts(pending, nodes),
            Guarantee::AtMostOnce => self.send_once(pending, nodes),
        }
    }

    fn attempt_with_receipts(self: &Arc<Self>, pending: Pending, nodes: Nodes) {
        let frame = match pending.repeated {
            true => server::mark_redelivered(&pending.frame),
            false => pending.frame.clone(),
        };
        let (id, target) = (pending.message.id.clone(), pending.message.target.clone());
        let scope = Scope::of(&pending.message.sender);
        let ttl_ms = pending.message.expires_ms.map(|at| at.saturating_sub(now_ms()).max(1));
        let timeout = self.settings.receipt_timeout;
        let opened = self.lock_pending().open(pending, nodes.clone(), Instant::now(), timeout);
        let tag = match opened {
            Ok(tag) => tag,
            Err(pending) => return (pending.settle)(overloaded()),
        };
        let origin = Origin { node: self.node().clone(), tag };
        let order_key = order_key(&target);
        let envelope = Envelope { id, scope, target, origin: Some(origin), frame };
        let (here, others): (Nodes, Nodes) = nodes.into_iter().partition(|node| node == self.node());
        if !others.is_empty() {
            let publish = envelope.to_publish(Destination::Nodes(others.clone()), ttl_ms, order_key);
            let router = self.clone();
            self.bus.publish(publish, Box::new(move |outcome| router.published(tag, &others, outcome)));
        }
        if !here.is_empty() && self.arrive(envelope).is_err() {
            let completed = self.lock_pending().unreachable(tag, &here);
            self.after(completed);
        }
    }

    /// At-most-once: sent, confirmed, forgotten.
    fn send_once(self: &Arc<Self>, pending: Pending, nodes: Nodes) {
        let (here, others): (Nodes, Nodes) = nodes.into_iter().partition(|node| node == self.node());
        let Pending { message, frame, settle, .. } = pending;
        let order_key = order_key(&message.target);
        let scope = Scope::of(&message.sender);
        let envelope = Envelope { id: message.id, scope, target: message.target, origin: None, frame };
        let taken_here = !here.is_empty() && self.arrive(envelope.clone()).is_ok();
        if others.is_empty() {
            return settle(if taken_here { Settlement::Published } else { overloaded() });
        }
        let ttl_ms = message.expires_ms.map(|at| at.saturating_sub(now_ms()).max(1));
        let done = move |outcome| {
            settle(match outcome {
                _ if taken_here => Settlement::Published,
                Outcome::Confirmed => Settlement::Published,
                Outcome::Unroutable => failed(Code::Offline, "not connected anywhere"),
                Outcome::Overloaded | Outcome::Refused => overloaded(),
                Outcome::Unavailable => unavailable(),
            })
        };
        self.bus.publish(envelope.to_publish(Destination::Nodes(others), ttl_ms, order_key), Box::new(done));
    }

    /// The broker's answer to the publish of an attempt. A confirm says little (the queue may die with its
    /// node): the receipts decide.
    fn published(self: &Arc<Self>, tag: Tag, nodes: &Nodes, outcome: Outcome) {
        if outcome == Outcome::Confirmed {
            return;
        }
        if outcome == Outcome::Unroutable {
            for node in nodes {
                self.directory.returned(node, self.directory.incarnation_of(node));
            }
        }
        let completed = self.lock_pending().unreachable(tag, nodes);
        self.after(completed);
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
            self.conclude(completed);
        }
    }

    /// Every node of an attempt has answered or is given up.
    fn conclude(self: &Arc<Self>, completed: Completed<Pending>) {
        let Completed { item: mut pending, sessions, not_here, unknown } = completed;
        if sessions > 0 {
            return (pending.settle)(Settlement::Delivered { sessions });
        }
        if pending.message.expires_ms.is_some_and(|at| at <= now_ms()) {
            return (pending.settle)(failed(Code::Expired, "the time to live ran out on the way"));
        }
        if !self.link.borrow().ready() {
            return (pending.settle)(unavailable());
        }
        pending.repeated |= !unknown.is_empty();
        if pending.attempt >= ATTEMPTS_MAX {
            return (pending.settle)(match pending.repeated {
                true => failed(Code::Unavailable, "the user's node did not answer; try again"),
                false => failed(Code::Offline, "not connected anywhere"),
            });
        }
        pending.attempt += 1;
        let Route::Nodes(mut nodes) = route(self.settings.routing, &pending.message.target, &**self) else {
            return (pending.settle)(unavailable());
        };
        nodes.retain(|node| !not_here.contains(node));
        self.attempt(pending, nodes);
    }
}

impl Lookup for Router {
    fn this_node(&self) -> &NodeId {
        self.node()
    }

    fn user_is_here(&self, user: &UserId) -> bool {
        self.hub.holds(user)
    }

    fn nodes_of(&self, user: &UserId) -> Nodes {
        self.directory.nodes_of(Key::user(user))
    }

    fn is_live(&self, node: &NodeId) -> bool {
        self.directory.is_live(node)
    }
}
