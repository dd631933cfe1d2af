//! The bus over RabbitMQ: the only place of the gateway that speaks AMQP.
//!
//! Four connections, each with its own supervisor: [`publishing`] alone, since a broker that is short of memory
//! stops reading from every connection that publishes, and once more for [`replies`], which a bad name can break;
//! [`consuming`] for the node's own queues; and [`ingress`], which a malformed message from outside can break. A few
//! more, pooled, read [`boxes`]. The client library's auto-recovery stays off:
//! any error of a connection, channel or consumer tears the whole connection down, and it is built anew.

mod ack_tracker;
mod boxes;
mod canary;
mod connection;
mod consumer;
mod consuming;
mod convert;
mod declare;
mod definitions;
mod dial;
mod echo;
mod filter;
mod gather;
mod ingress;
mod lapin_defects;
mod layout;
mod publisher;
mod publishing;
mod pulse;
mod replies;
mod returns;
mod shares;
mod topology;
mod unanswered;
mod verify;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{
    Attach, BoxError, BoxNumber, BoxSettings, Bus, Destination, Done, Inboxes, IngressDesk, Lane, Link,
    Outcome, Properties, Publish, Publishing, TopologyState,
};
use crate::bus::answer::Answer;
use crate::config::AmqpUrl;
use crate::ids::{Incarnation, NodeId, UserKey};
use boxes::Boxes;
use consuming::InboxSenders;
use publisher::{Closures, LaneInbox};
use publishing::{Port, Role};
use pulse::Pulse;

pub use boxes::{Migrated, Read};
pub use connection::LinkError;
pub use definitions::definitions;
pub use echo::serve_echo;
pub use topology::Topology;

/// A directive for the log: the client library logs returned messages whole, payload included, and takes for
/// errors what is none here, such as a box that does not exist.
pub const QUIET: &str = "lapin=off";
/// A link that lived this long starts over with short waits when it is lost.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Channels for messages; a publish's order key chooses one.
const BULK_LANES: usize = 2;
/// One more for urgent publishes.
const URGENT_LANE: usize = BULK_LANES;
/// One more for deposits, which wait for the broker's disk.
const DEPOSIT_LANE: usize = BULK_LANES + 1;
/// One more for the application: its exchange may be missing, or the account not allowed to publish there, and the
/// broker closes the channel for each such publish.
const APPLICATION_LANE: usize = BULK_LANES + 2;
const LANES: usize = BULK_LANES + 3;

#[derive(Debug, Clone)]
pub struct RabbitSettings {
    /// Brokers of one cluster; each try picks one at random.
    pub urls: Vec<AmqpUrl>,
    /// First part of every exchange and queue name.
    pub prefix: String,
    /// Quorum queues instead of classic ones for what must survive the loss of a broker node.
    pub quorum: bool,
    /// How many messages may wait in a node's own queue before the oldest are dropped.
    pub node_queue_max: u32,
    pub boxes: BoxSettings,
    /// How many queues share what backends publish.
    pub ingress_partitions: u16,
}

impl RabbitSettings {
    pub fn new(urls: Vec<AmqpUrl>) -> Self {
        Self {
            urls,
            prefix: "warren".into(),
            quorum: false,
            node_queue_max: 100_000,
            boxes: BoxSettings::default(),
            ingress_partitions: 1,
        }
    }

    pub fn topology(&self) -> Topology {
        Topology::new(&self.prefix, self.quorum, self.node_queue_max, self.boxes)
            .with_account(connection::account(&self.urls))
    }
}

/// What the tasks of one bus have in common.
#[derive(Clone)]
struct Shared {
    urls: Arc<[AmqpUrl]>,
    topology: Topology,
    node: NodeId,
    link: watch::Sender<Link>,
    pulse: Arc<Pulse>,
    ingress: IngressDesk,
    /// What is wrong with the partitions of ingress. `None`: not looked yet.
    ingress_damage: watch::Sender<Option<Vec<String>>>,
}

impl Shared {
    fn set_incarnation(&self, incarnation: Option<Incarnation>) {
        self.change(|link| link.incarnation = incarnation);
    }

    fn set_publishing(&self, publishing: Publishing) {
        self.change(|link| link.publishing = publishing);
    }

    fn change(&self, change: impl FnOnce(&mut Link)) {
        self.link.send_if_modified(|link| {
            let before = *link;
            change(link);
            *link != before
        });
    }
}

pub struct RabbitBus {
    link: watch::Sender<Link>,
    leave: watch::Sender<bool>,
    stop_ingress: watch::Sender<bool>,
    /// The bulk lanes, then the others by their numbers.
    lanes: Vec<LaneInbox>,
    /// Answers to backends, and dead letters: on a connection of their own.
    replies: replies::Inbox,
    topology: Topology,
    node: NodeId,
    boxes: Boxes,
    ingress: IngressDesk,
    /// Every task of the bus; they end with it.
    tasks: Mutex<JoinSet<()>>,
}

impl RabbitBus {
    /// Returns at once; the link tells when the bus is up. To be called inside a tokio runtime.
    pub fn start(settings: RabbitSettings, node: NodeId) -> (Arc<Self>, Inboxes) {
        let is_parted = settings.ingress_partitions > 1;
        // Not ready before its partitions are.
        let topology = if is_parted { TopologyState::Damaged } else { TopologyState::Whole };
        let link = watch::Sender::new(Link { topology, ..Link::default() });
        let shared = Shared {
            ingress: IngressDesk::new(settings.ingress_partitions),
            ingress_damage: watch::Sender::new((!is_parted).then(Vec::new)),
            topology: settings.topology(),
            urls: settings.urls.into(),
            node,
            link: link.clone(),
            pulse: Arc::default(),
        };
        let mut tasks = JoinSet::new();
        let mut lane = || {
            let (lane, inbox) = LaneInbox::new();
            let (channel, channels) = watch::channel(None);
            let closures = Closures::default();
            tasks.spawn(publisher::run_lane(shared.clone(), inbox, channels, closures.clone()));
            (lane, Port { channel, closures })
        };
        let (lanes, ports): (Vec<_>, Vec<_>) = (0..LANES).map(|_| lane()).unzip();
        let (reply_lane, reply_port) = lane();
        let (replies, replying) = replies::start(reply_lane, reply_port.closures.clone());
        tasks.spawn(replying);
        tasks.spawn(publishing::supervise(shared.clone(), Role::Main, ports));
        tasks.spawn(publishing::supervise(shared.clone(), Role::Reply, vec![reply_port]));
        let (node_sender, node) = mpsc::channel(consuming::NODE_PREFETCH.into());
        let (control_sender, control) = mpsc::channel(consuming::CONTROL_PREFETCH.into());
        let (ingress_sender, ingress_inbox) = mpsc::channel(ingress::PREFETCH.into());
        let (reply_sender, replies_inbox) = mpsc::channel(consuming::REPLIES_PREFETCH.into());
        let senders = InboxSenders { node: node_sender, control: control_sender, replies: reply_sender };
        let (leave, stop_ingress) = (watch::Sender::new(false), watch::Sender::new(false));
        let urgent: LaneInbox = lanes[BULK_LANES].clone();
        tasks.spawn(pulse::supervise(shared.clone(), urgent.clone()));
        tasks.spawn(consuming::supervise(shared.clone(), senders, urgent, leave.subscribe()));
        tasks.spawn(ingress::supervise(shared.clone(), ingress_sender, stop_ingress.subscribe()));
        let boxes = Boxes::start(&shared, lanes[DEPOSIT_LANE].clone(), &mut tasks);
        let bus = Self {
            link,
            leave,
            stop_ingress,
            lanes,
            replies,
            ingress: shared.ingress,
            topology: shared.topology,
            node: shared.node,
            boxes,
            tasks: Mutex::new(tasks),
        };
        (Arc::new(bus), Inboxes { node, control, ingress: ingress_inbox, replies: replies_inbox })
    }

    /// Moves the mail of version 1 out of the mailbox of one user into a box.
    pub async fn migrate(&self, queue: &str, read: Read<'_>) -> Result<Migrated, LinkError> {
        self.boxes.migrate(queue, read).await
    }

    fn offer(&self, publish: Publish, answer: Answer) {
        let lane = match (&publish.to, publish.lane) {
            (Destination::Box(_), _) => DEPOSIT_LANE,
            (Destination::Application(_), _) => APPLICATION_LANE,
            (Destination::Control, _) | (_, Lane::Urgent) => URGENT_LANE,
            (_, Lane::Reply) => return self.replies.offer(publish, answer),
            (_, Lane::Bulk) => (publish.order_key % BULK_LANES as u64) as usize,
        };
        self.lanes[lane].offer(publish, answer);
    }
}

impl Bus for RabbitBus {
    fn account(&self) -> Option<&str> {
        self.topology.account()
    }

    fn publish(&self, publish: Publish, done: Done) {
        let answer = Answer::new(done);
        if self.link.borrow().publishing != Publishing::Ready {
            return answer.give(Outcome::Unavailable);
        }
        self.offer(publish, answer);
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    fn reply_queue(&self) -> Option<String> {
        let incarnation = self.link.borrow().incarnation?;
        Some(self.topology.replies_queue(&self.node, incarnation).name)
    }

    fn ingress_desk(&self) -> Option<IngressDesk> {
        Some(self.ingress.clone())
    }

    fn stop_ingress(&self) {
        self.stop_ingress.send_replace(true);
    }

    fn deposit(&self, to: BoxNumber, properties: Properties, body: Bytes, done: Done) {
        self.boxes.deposit(to, properties, body, Answer::new(done));
    }

    fn attach_box(
        &self,
        number: BoxNumber,
        users: Vec<UserKey>,
    ) -> BoxFuture<'static, Result<Attach, BoxError>> {
        self.boxes.clone().attach(number, users).boxed()
    }

    fn boxes(&self) -> BoxSettings {
        self.boxes.settings()
    }

    fn leave(&self) {
        self.stop_ingress();
        self.leave.send_replace(true);
    }

    fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.boxes.close();
        self.link.send_replace(Link::default());
    }
}

impl Drop for RabbitBus {
    fn drop(&mut self) {
        self.close();
    }
}
