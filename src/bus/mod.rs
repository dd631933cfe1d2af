//! The bus: the one way from node to node, from backends to nodes, and into queues.
//!
//! [`Bus`] is the only trait of the gateway; RabbitMQ and the in-memory broker implement it with the same
//! contract (`tests/support/bus_contract.rs` runs against both):
//!
//! - publishing never blocks; each publish is answered exactly once, within [`PUBLISH_DEADLINE`];
//! - what one task publishes with one order key arrives at a queue in that order;
//! - a delivery stays the broker's until its [`AckToken`] is settled; a dropped token requeues;
//! - a lost link ends every pending publish as [`Outcome::Unavailable`] and comes back by itself, with a new
//!   [`Incarnation`].

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ids::{Incarnation, NodeId, UserId};

mod answer;
mod mailbox;
pub mod memory;
pub mod rabbit;

pub use mailbox::{Ending, Mailbox, MailboxError, MailboxLimits, Opened};

/// A publish that the broker has not confirmed by then is [`Outcome::Unavailable`].
pub const PUBLISH_DEADLINE: Duration = Duration::from_secs(2);
/// The same for a deposit, which may have to make the mailbox first.
pub const DEPOSIT_DEADLINE: Duration = Duration::from_secs(5);

/// Where a publish goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `warren.broadcast`: the node queue of every node, this one included.
    Broadcast,
    /// `warren.direct`: the node queues of these nodes (one publish; `CC` names the second and later ones).
    Nodes(SmallVec<[NodeId; 2]>),
    /// `warren.control`: the control queue of every node, this one included.
    Control,
    /// `warren.ingress`: the backends' door, with this routing key.
    Ingress(String),
    /// `warren.dead`: for a person to look at.
    Dead,
    /// One queue by its name: a backend's reply queue.
    Queue(String),
}

/// The standard properties of an AMQP message (basic class, AMQP 0-9-1 section 1.8.3), and flat text headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pub message_id: Option<String>,
    /// AMQP `type`.
    pub kind: Option<String>,
    pub content_type: Option<String>,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    /// AMQP `expiration`: milliseconds as text. Kept as text, since a backend may write nonsense.
    pub expiration: Option<String>,
    /// AMQP `delivery_mode` 2 = true, 1 = false, absent = None.
    pub persistent: Option<bool>,
    pub app_id: Option<String>,
    /// AMQP `user_id`: checked by the broker against the connection's user, so it cannot be forged.
    pub user_id: Option<String>,
    /// Only what is ours to read or to carry through; nested tables and binary values never get here.
    pub headers: SmallVec<[(String, String); 2]>,
}

impl Properties {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Clone)]
pub struct Publish {
    pub to: Destination,
    pub properties: Properties,
    pub body: Bytes,
    /// Publishes with the same key and lane keep their order; others may use different channels.
    pub order_key: u64,
    pub lane: Lane,
}

/// Which traffic a publish may be held up by. Gossip ([`Destination::Control`]) is always urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lane {
    /// Messages.
    #[default]
    Bulk,
    /// The small words between nodes that messages wait for: receipts and probes.
    Urgent,
}

/// The broker's answer to a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The broker is answerable for it (`basic.ack`).
    Confirmed,
    /// No queue takes it (`basic.return`): the node is gone.
    Unroutable,
    /// The broker refuses it (`basic.nack`): the queue is full. Or it never can be sent: its body is above
    /// 16 MiB, or a property or name is longer than AMQP allows.
    Refused,
    /// This node has as many publishes in flight as it may; nothing was sent.
    Overloaded,
    /// No link, a blocked link, or no answer in time: it may or may not have arrived.
    Unavailable,
}

/// Called exactly once, and must return at once: by a task of the bus, or before `publish` returns when nothing
/// is sent ([`Outcome::Overloaded`], [`Outcome::Unavailable`]). So the caller must not hold a lock that it takes.
pub type Done = Box<dyn FnOnce(Outcome) + Send>;

/// Which door a delivery came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Broadcast,
    Direct,
    Control,
    Ingress,
    Mailbox,
}

#[derive(Debug)]
pub struct Delivery {
    pub via: Via,
    pub routing_key: String,
    pub properties: Properties,
    pub body: Bytes,
    /// The broker handed it to a consumer before.
    pub redelivered: bool,
    pub ack: AckToken,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is taken care of.
    Ack,
    /// Hand it out again.
    Requeue,
}

/// The right to settle one delivery. Dropping it unsettled hands the delivery back to the broker.
#[derive(Debug)]
pub struct AckToken {
    tag: u64,
    /// As wide as the prefetch window, so that a verdict always finds room; a closed channel means that the
    /// link is gone and that the broker has requeued the delivery already.
    verdicts: Option<mpsc::Sender<(u64, Verdict)>>,
}

impl AckToken {
    pub fn new(tag: u64, verdicts: mpsc::Sender<(u64, Verdict)>) -> Self {
        Self { tag, verdicts: Some(verdicts) }
    }

    pub fn ack(mut self) {
        self.settle(Verdict::Ack);
    }

    #[cfg(feature = "sabotage")]
    pub fn ack_early(mut self) -> Self {
        self.settle(Verdict::Ack);
        self
    }

    fn settle(&mut self, verdict: Verdict) {
        if let Some(verdicts) = self.verdicts.take() {
            // See the field: no room is impossible, closed is harmless.
            let _ = verdicts.try_send((self.tag, verdict));
        }
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        self.settle(Verdict::Requeue);
    }
}

/// What this node can do right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// `Some` while the node's queues exist and are consumed; a new value means that the old queues and what
    /// was in them are gone.
    pub incarnation: Option<Incarnation>,
    pub publishing: Publishing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Publishing {
    #[default]
    Down,
    Ready,
    /// The broker stopped taking messages (memory or disk alarm); deliveries go on.
    Blocked,
}

impl Link {
    pub fn ready(&self) -> bool {
        self.incarnation.is_some() && self.publishing == Publishing::Ready
    }
}

/// What arrives for one node. Each channel is as wide as its prefetch window.
#[derive(Debug)]
pub struct Inboxes {
    /// Messages, receipts and probes.
    pub node: mpsc::Receiver<Delivery>,
    /// Directory gossip.
    pub control: mpsc::Receiver<Delivery>,
    /// What backends publish; one node at a time gets it (single active consumer).
    pub ingress: mpsc::Receiver<Delivery>,
}

pub trait Bus: Send + Sync + 'static {
    /// Hands a message to the broker; `done` learns what became of it.
    fn publish(&self, publish: Publish, done: Done);

    /// The state of the link, and a notice of each change.
    fn link(&self) -> watch::Receiver<Link>;

    /// Puts a message into the durable mailbox of a user, which is made on first need. [`Outcome::Confirmed`]:
    /// it is stored; [`Outcome::Refused`]: the mailbox is full. Deposits for one user keep their order, those for
    /// different users do not wait for each other; each is answered within [`DEPOSIT_DEADLINE`].
    fn deposit(&self, user: &UserId, properties: Properties, body: Bytes, done: Done);

    /// Opens the mailbox of a user for this node alone, to hand out what is in it in order. Cheap when there is
    /// none.
    fn open_mailbox(&self, user: &UserId) -> BoxFuture<'static, Result<Opened, MailboxError>>;

    /// Messages waiting in the mailbox of a user; 0 if there is none. One too many for each node that has found mail
    /// there and could not hand it out.
    fn mailbox_depth(&self, user: &UserId) -> BoxFuture<'static, Result<u64, MailboxError>>;

    /// The account under which every node publishes. The broker lets nobody else put it into `user_id`, so that
    /// what bears it comes from a node. `None`: the bus has no accounts, and only nodes publish to nodes.
    fn account(&self) -> Option<&str> {
        None
    }

    /// Stops taking what backends publish, so that another node takes over. For draining; there is no way back.
    fn stop_ingress(&self);

    /// Stops taking new deliveries from the exchanges (unbinds the node's queue, stops consuming ingress);
    /// what is already in the node's queue still arrives. For draining; there is no way back.
    fn leave(&self);

    /// Ends every task of the bus. Pending publishes end as [`Outcome::Unavailable`].
    fn close(&self);
}

/// Publishes and waits for the broker's answer.
pub async fn publish_confirmed(bus: &dyn Bus, publish: Publish) -> Outcome {
    let (tell, told) = oneshot::channel();
    bus.publish(
        publish,
        Box::new(move |outcome| {
            let _ = tell.send(outcome);
        }),
    );
    told.await.unwrap_or(Outcome::Unavailable)
}
