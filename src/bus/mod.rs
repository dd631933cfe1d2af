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

use partitions::{IngressState, IngressView};

use crate::ids::{AppKey, Incarnation, NodeId, UserKey};

mod answer;
mod boxes;
mod echo;
mod marker;
pub mod memory;
pub mod partitions;
pub mod rabbit;

pub use boxes::{
    may_have_been_shown, Abandoned, Attach, BoxError, BoxEvent, BoxMail, BoxNumber, BoxReader, BoxRequest,
    BoxSettings,
};

/// A publish that the broker has not confirmed by then is [`Outcome::Unavailable`]. A sender is told within 2 s that
/// the broker is away.
pub const PUBLISH_DEADLINE: Duration = Duration::from_millis(1_500);

/// What backends published and this node has not settled: the prefetch window of ingress. Messages for users who take
/// nothing leave it early once it is half full.
pub const INGRESS_WINDOW: u16 = 4000;
/// The header in which backends whose protocol has no AMQP `type` name the event; the broker itself uses the name.
pub const EVENT_HEADER: &str = "x-basic-type";

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
    /// `warren.app`: the queues that backends bound for this key.
    Application(AppKey),
    /// `warren.events`: what backends are told of, with this routing key.
    Event(String),
    /// `warren.dead`: for a person to look at.
    Dead,
    /// One queue by its name: a backend's reply queue. Never one of ours.
    Queue(String),
    /// A box that is there; [`Bus::deposit`] makes it as well.
    Box(BoxNumber),
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
    /// AMQP `timestamp`: seconds since the Unix epoch.
    pub timestamp: Option<u64>,
    /// AMQP `delivery_mode` 2 = true, 1 = false, absent = None.
    pub persistent: Option<bool>,
    pub app_id: Option<String>,
    /// AMQP `user_id`: checked by the broker against the connection's user, so it cannot be forged.
    pub user_id: Option<String>,
    /// Only what is ours to read or to carry through; nested tables and binary values never get here.
    pub headers: SmallVec<[(String, String); 2]>,
    /// Incoming only: some properties or the routing key could not be decoded, were dropped or replaced, and
    /// this says which and why. Such a message is for the dead queue, whatever the rest of it says.
    pub unreadable: Option<String>,
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
    /// Answers to backends, and dead letters. A name that a stranger invented may cost this channel, and no other.
    Reply,
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
    /// Put into the ingress queue by its name, past the exchange and its topic permissions.
    IngressQueue,
    /// What backends answer to requests.
    Replies,
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
    /// What is in a box goes back when its reading ends, not when a token is dropped.
    requeue_on_drop: bool,
}

impl AckToken {
    pub fn new(tag: u64, verdicts: mpsc::Sender<(u64, Verdict)>) -> Self {
        Self { tag, verdicts: Some(verdicts), requeue_on_drop: true }
    }

    /// Dropping it says nothing.
    pub fn of_box(tag: u64, verdicts: mpsc::Sender<(u64, Verdict)>) -> Self {
        Self { tag, verdicts: Some(verdicts), requeue_on_drop: false }
    }

    /// `false`: too late, as in [`is_void`](Self::is_void).
    pub fn ack(mut self) -> bool {
        self.settle(Verdict::Ack)
    }

    /// The channel of the delivery is gone: the broker has handed it out again, or will, and settling it says nothing.
    pub fn is_void(&self) -> bool {
        self.verdicts.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    #[cfg(feature = "sabotage")]
    pub fn ack_early(mut self) -> Self {
        self.settle(Verdict::Ack);
        self
    }

    fn settle(&mut self, verdict: Verdict) -> bool {
        // See the field: no room is impossible.
        self.verdicts.take().is_some_and(|verdicts| verdicts.try_send((self.tag, verdict)).is_ok())
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if self.requeue_on_drop {
            self.settle(Verdict::Requeue);
        }
    }
}

/// What this node can do right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// `Some` while the node's queues exist and are consumed; a new value means that the old queues and what
    /// was in them are gone.
    pub incarnation: Option<Incarnation>,
    pub publishing: Publishing,
    pub topology: TopologyState,
}

/// Whether the exchanges, queues and bindings that the node relies on are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyState {
    #[default]
    Whole,
    /// Something was missing at the last look, or a policy of the broker breaks a promise; the log says what. The
    /// node makes again what it may, and works on as well as it can, but should get no new clients meanwhile.
    Damaged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Publishing {
    #[default]
    Down,
    Ready,
    /// The broker stopped taking messages (memory or disk alarm); deliveries go on.
    Blocked,
    /// The connection is there, but the broker has not confirmed, or a probe has not come back, for
    /// [`PUBLISH_DEADLINE`]. Publishes are refused until something comes.
    Silent,
}

impl Link {
    pub fn ready(&self) -> bool {
        self.incarnation.is_some() && self.publishing == Publishing::Ready
    }
}

/// Between the bus, which consumes partitions of ingress, and those who know the cluster.
#[derive(Debug, Clone)]
pub struct IngressDesk {
    /// How many partitions this node is to see to.
    pub partitions: u16,
    pub view: watch::Sender<IngressView>,
    pub state: watch::Sender<IngressState>,
}

impl IngressDesk {
    pub fn new(partitions: u16) -> Self {
        let state = IngressState { partitions, ..IngressState::default() };
        Self { partitions, view: watch::Sender::default(), state: watch::Sender::new(state) }
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
    /// The answers of backends.
    pub replies: mpsc::Receiver<Delivery>,
}

pub trait Bus: Send + Sync + 'static {
    /// Hands a message to the broker; `done` learns what became of it.
    fn publish(&self, publish: Publish, done: Done);

    /// The state of the link, and a notice of each change.
    fn link(&self) -> watch::Receiver<Link>;

    /// Puts a message into a box, which is made on first need. [`Outcome::Confirmed`]: it is stored durably;
    /// [`Outcome::Refused`]: the box is full, or the message does not fit into AMQP. Deposits into one box keep their
    /// order; each is answered within [`PUBLISH_DEADLINE`].
    fn deposit(&self, to: BoxNumber, properties: Properties, body: Bytes, done: Done);

    /// Reads a box, for these users: the first round begins at once. See [`BoxReader`].
    fn attach_box(
        &self,
        number: BoxNumber,
        users: Vec<UserKey>,
    ) -> BoxFuture<'static, Result<Attach, BoxError>>;

    /// How many boxes there are.
    fn boxes(&self) -> BoxSettings;

    /// The account under which every node publishes. The broker lets nobody else put it into `user_id`, so that
    /// what bears it comes from a node. `None`: the bus has no accounts, and only nodes publish to nodes.
    fn account(&self) -> Option<&str> {
        None
    }

    /// The queue whose deliveries come to [`Inboxes::replies`], by the name that reaches it from anywhere; another one
    /// with each incarnation, and none without.
    fn reply_queue(&self) -> Option<String>;

    /// What shares ingress among the nodes. `None`: the bus needs no help.
    fn ingress_desk(&self) -> Option<IngressDesk> {
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
