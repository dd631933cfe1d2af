//! The router: takes a message from any door, finds who holds its target, and settles it.
//!
//! - `mod.rs`: what it is made of; accepting.
//! - `attempt.rs`: sending a message to nodes, hearing their receipts, trying again, storing.
//! - `arrival.rs`: messages that reach this node's sessions, from here or from another node; duplicates end here.
//! - `mail.rs`: handing out mailboxes, before anything newer.
//! - `lines.rs`: which users' messages must wait so that they keep their order (pure).
//! - [`strategy`]: where a message goes (pure).
//! - [`ask`]: questions to all nodes about their sessions.
//!
//! A message is settled exactly once, and its source hears of it only then.

mod arrival;
pub mod ask;
mod attempt;
mod lines;
pub mod mail;
pub mod strategy;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::bus::{Bus, Destination, Link, Outcome};
use crate::config::Routing;
use crate::delivery::envelope::Envelope;
use crate::delivery::receipt_sender::ReceiptSender;
use crate::delivery::receipts::Receipts;
use crate::directory::{Directory, Key};
use crate::error::{Code, Error};
use crate::hub::{Hub, Local};
use crate::ids::{NodeId, UserId};
use crate::protocol::message::{Guarantee, Message, Settlement};
use crate::protocol::target::Target;
use attempt::{Pending, Source};
use strategy::{route, Lookup, Nodes, Route};

/// Called exactly once with the message's fate, on any thread: it must return at once.
pub type Settle = Box<dyn FnOnce(Settlement) + Send>;

#[derive(Debug, Clone)]
pub struct RouterSettings {
    pub node: NodeId,
    pub routing: Routing,
    /// Messages awaiting receipts. Overflow policy: the sender is told `overloaded`.
    pub pending_max: usize,
    pub receipt_timeout: Duration,
}

pub struct Router {
    settings: RouterSettings,
    hub: Arc<Hub>,
    directory: Directory,
    bus: Arc<dyn Bus>,
    link: watch::Receiver<Link>,
    receipts: ReceiptSender,
    pending: Mutex<Receipts<Pending>>,
    lines: Mutex<lines::Lines<Pending>>,
    arrivals: arrival::Arrivals,
    mail: mail::MailRoom,
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

fn offline() -> Settlement {
    failed(Code::Offline, "not connected anywhere")
}

fn expired() -> Settlement {
    failed(Code::Expired, "the time to live is over")
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
            lines: Mutex::new(lines::Lines::new(settings.pending_max)),
            arrivals: arrival::Arrivals::new(),
            mail: mail::MailRoom::new(),
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

    fn is_linked(&self) -> bool {
        self.link.borrow().ready()
    }

    /// A session of `user` begins. When this returns, this node's messages for the user reach it, mail first,
    /// and the other nodes are being told.
    pub fn open_session(&self, user: &UserId, session: Local) {
        self.hub.register(user, session, || {
            self.close_gate(user);
            self.directory.join(Key::user(user));
        });
    }

    /// The inverse of [`Router::open_session`].
    pub fn close_session(&self, user: &UserId, counter: u64) {
        self.hub.unregister(user, counter, || self.directory.leave(Key::user(user)));
    }

    /// Takes a message and settles it. Never blocks; messages accepted one after the other leave in that order.
    pub fn accept(self: &Arc<Self>, message: Message, settle: Settle) {
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("reject-some") && crate::sabotage::every(2) {
            return settle(offline());
        }
        #[cfg(feature = "sabotage")]
        let message =
            Message { redelivered: message.redelivered || crate::sabotage::is("mark-all"), ..message };
        let source = Source::Door(message.guarantee);
        let guarantee = message.guarantee;
        self.accept_envelope(Envelope::of(&message), guarantee, source, settle);
    }

    fn accept_envelope(
        self: &Arc<Self>,
        envelope: Envelope,
        guarantee: Guarantee,
        source: Source,
        settle: Settle,
    ) {
        if !self.is_linked() {
            return settle(unavailable());
        }
        if envelope.is_expired(now_ms()) {
            return settle(expired());
        }
        let route = route(self.settings.routing, &envelope.target, &**self);
        #[cfg(feature = "sabotage")]
        let route = match route {
            Route::Nodes(nodes) if crate::sabotage::is("one-device") => {
                Route::Nodes(nodes.into_iter().take(1).collect())
            }
            route => route,
        };
        match route {
            Route::Unsupported => settle(failed(Code::BadRequest, "channels are not part of this version")),
            Route::Everyone => self.publish_to_everyone(&envelope, settle),
            Route::Nodes(nodes) if guarantee == Guarantee::AtMostOnce => {
                self.send_once(&envelope, nodes, settle)
            }
            Route::Nodes(nodes) => self.begin(Pending::new(envelope, source, settle), nodes),
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

    fn publish_to_everyone(&self, envelope: &Envelope, settle: Settle) {
        let done = move |outcome| {
            settle(match outcome {
                Outcome::Confirmed => Settlement::Published,
                Outcome::Overloaded => overloaded(),
                Outcome::Unroutable | Outcome::Refused | Outcome::Unavailable => unavailable(),
            })
        };
        self.bus.publish(envelope.to_publish(Destination::Broadcast, now_ms(), 0), Box::new(done));
    }

    /// At-most-once: sent, confirmed, forgotten.
    fn send_once(self: &Arc<Self>, envelope: &Envelope, nodes: Nodes, settle: Settle) {
        if nodes.is_empty() {
            return settle(offline());
        }
        let (here, others): (Nodes, Nodes) = nodes.into_iter().partition(|node| node == self.node());
        let taken_here = !here.is_empty() && self.arrive(envelope.clone()).is_ok();
        if others.is_empty() {
            return settle(if taken_here { Settlement::Published } else { overloaded() });
        }
        let done = move |outcome| {
            settle(match outcome {
                _ if taken_here => Settlement::Published,
                Outcome::Confirmed => Settlement::Published,
                Outcome::Unroutable => offline(),
                Outcome::Overloaded | Outcome::Refused => overloaded(),
                Outcome::Unavailable => unavailable(),
            })
        };
        let order_key = order_key(&envelope.target);
        let publish = envelope.to_publish(Destination::Nodes(others), now_ms(), order_key);
        self.bus.publish(publish, Box::new(done));
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
