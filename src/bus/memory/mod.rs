//! A broker inside the process, with the same contract as RabbitMQ: for standalone nodes and for tests.

mod boxes;
mod queue;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::{ready, BoxFuture};
use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::answer::Answer;
use super::{
    Attach, BoxError, BoxNumber, BoxSettings, Bus, Destination, Done, Inboxes, Link, Outcome, Properties,
    Publish, Publishing, Via,
};
use crate::ids::{Incarnation, NodeId, UserKey};
use boxes::Boxes;
use queue::{consume, Overflow, Queue};

pub use queue::Message;

/// How many deliveries a node holds unsettled, for each of its inboxes.
const PREFETCH: usize = 1000;
/// Outcomes on their way to their publishers; more than this are in flight only when those do not return.
const ANSWERS: usize = 4096;
/// A full ingress or named queue refuses; nothing is dropped that somebody was promised.
const DURABLE_QUEUE_MAX: usize = 100_000;
/// A full node queue drops its oldest message, as at RabbitMQ.
const NODE_QUEUE_MAX: usize = 100_000;
/// Dead messages are for looking at; the oldest go first.
const DEAD_MAX: usize = 10_000;

pub struct MemoryBroker {
    node_queue_max: usize,
    ingress: Arc<Queue>,
    dead: Arc<Queue>,
    boxes: Arc<Boxes>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Node>,
    /// In the order in which they began to consume ingress; the first one is active.
    ingress_consumers: Vec<NodeId>,
    named: HashMap<String, Arc<Queue>>,
    blocked: bool,
}

/// A node that has attached and not been killed.
struct Node {
    link: watch::Sender<Link>,
    inboxes: InboxSenders,
    /// `None` while the node is cut off.
    queues: Option<NodeQueues>,
    left: bool,
    /// Takes no more of what backends publish.
    retired: bool,
}

#[derive(Clone)]
struct InboxSenders {
    node: mpsc::Sender<super::Delivery>,
    control: mpsc::Sender<super::Delivery>,
    ingress: mpsc::Sender<super::Delivery>,
}

/// One incarnation. Dropping it ends its consumers, which give back what is unsettled.
struct NodeQueues {
    node: Arc<Queue>,
    control: Arc<Queue>,
    /// Whether deliveries to the node and control inboxes go on.
    flowing: watch::Sender<bool>,
    ingress_active: watch::Sender<bool>,
    _consumers: JoinSet<()>,
}

impl MemoryBroker {
    pub fn new() -> Arc<Self> {
        Self::with_boxes(BoxSettings::default())
    }

    pub fn with_boxes(boxes: BoxSettings) -> Arc<Self> {
        Self::with_limits(NODE_QUEUE_MAX, boxes)
    }

    pub fn with_node_queue_max(node_queue_max: usize) -> Arc<Self> {
        Self::with_limits(node_queue_max, BoxSettings::default())
    }

    fn with_limits(node_queue_max: usize, boxes: BoxSettings) -> Arc<Self> {
        Arc::new(Self {
            node_queue_max,
            ingress: Queue::new(DURABLE_QUEUE_MAX, Overflow::Refuse),
            dead: Queue::new(DEAD_MAX, Overflow::DropOldest),
            boxes: Boxes::new(boxes),
            state: Mutex::default(),
        })
    }

    /// Connects a node. To be called inside a tokio runtime.
    pub fn attach(self: &Arc<Self>, node: NodeId) -> (Arc<MemoryBus>, Inboxes) {
        let (node_sender, node_inbox) = mpsc::channel(PREFETCH);
        let (control_sender, control) = mpsc::channel(PREFETCH);
        let (ingress_sender, ingress) = mpsc::channel(PREFETCH);
        let inboxes = InboxSenders { node: node_sender, control: control_sender, ingress: ingress_sender };
        let link = watch::Sender::new(Link::default());
        let (answers, mut given) = mpsc::channel::<(Answer, Outcome)>(ANSWERS);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some((answer, outcome)) = given.recv().await {
                answer.give(outcome);
            }
        });
        let attached = Node { link: link.clone(), inboxes, queues: None, left: false, retired: false };
        self.lock().nodes.insert(node.clone(), attached);
        self.restore(&node);
        let bus = MemoryBus { broker: self.clone(), node, link, answers, tasks: Mutex::new(tasks) };
        (Arc::new(bus), Inboxes { node: node_inbox, control, ingress })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a publish goes, and whether it got there.
    fn route(&self, publish: Publish) -> Outcome {
        let state = self.lock();
        let queues = || state.nodes.iter().filter(|(_, node)| !node.left).filter_map(queues_of);
        match &publish.to {
            Destination::Broadcast => {
                for (_, queues) in queues() {
                    queues.node.push(message(&publish, Via::Broadcast, ""));
                }
                Outcome::Confirmed
            }
            Destination::Control => {
                for (_, queues) in state.nodes.iter().filter_map(queues_of) {
                    queues.control.push(message(&publish, Via::Control, ""));
                }
                Outcome::Confirmed
            }
            Destination::Nodes(nodes) => {
                let mut outcome = Outcome::Unroutable;
                let key = nodes.first().map_or("", NodeId::as_str);
                for (_, queues) in queues().filter(|(node, _)| nodes.contains(node)) {
                    queues.node.push(message(&publish, Via::Direct, key));
                    outcome = Outcome::Confirmed;
                }
                outcome
            }
            Destination::Ingress(key) => taken(self.ingress.push(message(&publish, Via::Ingress, key))),
            Destination::Dead => taken(self.dead.push(message(&publish, Via::Direct, ""))),
            Destination::Queue(name) => match state.named.get(name) {
                Some(queue) => taken(queue.push(message(&publish, Via::Direct, name))),
                None => Outcome::Unroutable,
            },
            Destination::Box(number) => self.boxes.deposit_existing(*number, publish.clone()),
        }
    }

    fn remove_ingress_consumer(state: &mut State, node: &NodeId) {
        state.ingress_consumers.retain(|consumer| consumer != node);
        let next = state.ingress_consumers.first().and_then(|next| state.nodes.get(next));
        if let Some(queues) = next.and_then(|next| next.queues.as_ref()) {
            queues.ingress_active.send_replace(true);
        }
    }

    /// Ends a node, unless another one has attached under its name since.
    fn detach(&self, node: &NodeId, link: &watch::Sender<Link>) {
        let own = self.lock().nodes.get(node).is_some_and(|node| node.link.same_channel(link));
        if own {
            self.kill(node);
        }
    }

    fn leave(&self, node: &NodeId) {
        self.stop_ingress(node);
        if let Some(leaver) = self.lock().nodes.get_mut(node) {
            leaver.left = true;
        }
    }

    fn stop_ingress(&self, node: &NodeId) {
        let mut state = self.lock();
        let Some(leaver) = state.nodes.get_mut(node) else { return };
        leaver.retired = true;
        if let Some(queues) = &leaver.queues {
            queues.ingress_active.send_replace(false);
        }
        Self::remove_ingress_consumer(&mut state, node);
    }
}

fn queues_of<'a>((id, node): (&'a NodeId, &'a Node)) -> Option<(&'a NodeId, &'a NodeQueues)> {
    Some((id, node.queues.as_ref()?))
}

fn message(publish: &Publish, via: Via, key: &str) -> Message {
    Message {
        via,
        routing_key: key.to_owned(),
        properties: publish.properties.clone(),
        body: publish.body.clone(),
        redelivered: false,
    }
}

fn taken(taken: bool) -> Outcome {
    match taken {
        true => Outcome::Confirmed,
        false => Outcome::Refused,
    }
}

/// Faults and looks inside, for tests.
impl MemoryBroker {
    /// Takes a node's link away: its queues are gone, what it held of ingress goes to another node.
    pub fn cut(&self, node: &NodeId) {
        let mut state = self.lock();
        let Some(cut) = state.nodes.get_mut(node) else { return };
        let queues = cut.queues.take();
        cut.link.send_replace(Link::default());
        Self::remove_ingress_consumer(&mut state, node);
        drop(state);
        drop(queues);
    }

    /// Gives a node its link back, with a new incarnation. To be called inside a tokio runtime.
    pub fn restore(&self, node: &NodeId) {
        let mut state = self.lock();
        let blocked = state.blocked;
        let state = &mut *state;
        let Some(restored) = state.nodes.get_mut(node).filter(|node| node.queues.is_none()) else { return };
        if !restored.retired {
            state.ingress_consumers.push(node.clone());
        }
        let first = state.ingress_consumers.first() == Some(node);
        let own = || Queue::new(self.node_queue_max, Overflow::DropOldest);
        let (node_queue, control_queue) = (own(), own());
        let flowing = watch::Sender::new(true);
        let ingress_active = watch::Sender::new(first && !restored.retired);
        let mut consumers = JoinSet::new();
        let inboxes = restored.inboxes.clone();
        consumers.spawn(consume(node_queue.clone(), inboxes.node, PREFETCH, flowing.subscribe()));
        consumers.spawn(consume(control_queue.clone(), inboxes.control, PREFETCH, flowing.subscribe()));
        consumers.spawn(consume(self.ingress.clone(), inboxes.ingress, PREFETCH, ingress_active.subscribe()));
        restored.queues = Some(NodeQueues {
            node: node_queue,
            control: control_queue,
            flowing,
            ingress_active,
            _consumers: consumers,
        });
        let publishing = if blocked { Publishing::Blocked } else { Publishing::Ready };
        restored.link.send_replace(Link {
            incarnation: Some(Incarnation::generate()),
            publishing,
            ..Link::default()
        });
    }

    /// Ends a node for good, as `kill -9` does: publishes to it are unroutable from now on.
    pub fn kill(&self, node: &NodeId) {
        self.cut(node);
        self.lock().nodes.remove(node);
    }

    /// Stops or resumes handing messages to a node, whose queues go on taking them: a node that hangs.
    pub fn freeze(&self, node: &NodeId, frozen: bool) {
        if let Some(queues) = self.lock().nodes.get(node).and_then(|node| node.queues.as_ref()) {
            queues.flowing.send_replace(!frozen);
        }
    }

    /// Refuses all publishes, as a broker that is short of memory does; deliveries go on.
    pub fn block(&self, blocked: bool) {
        let mut state = self.lock();
        state.blocked = blocked;
        let publishing = if blocked { Publishing::Blocked } else { Publishing::Ready };
        for node in state.nodes.values().filter(|node| node.queues.is_some()) {
            node.link.send_modify(|link| link.publishing = publishing);
        }
    }

    /// Makes a queue that [`Destination::Queue`] reaches.
    pub fn declare_queue(&self, name: &str) {
        let queue = Queue::new(DURABLE_QUEUE_MAX, Overflow::Refuse);
        self.lock().named.entry(name.to_owned()).or_insert(queue);
    }

    /// What waits in a queue that was declared.
    pub fn queued(&self, name: &str) -> Vec<Message> {
        self.lock().named.get(name).map(|queue| queue.snapshot()).unwrap_or_default()
    }

    /// How much mail waits in all boxes, without what readers hold, and without markers.
    pub fn mail(&self) -> usize {
        self.boxes.mail()
    }

    /// The dead messages.
    pub fn dead(&self) -> Vec<Message> {
        self.dead.snapshot()
    }
}

/// One node's end of a [`MemoryBroker`].
pub struct MemoryBus {
    broker: Arc<MemoryBroker>,
    node: NodeId,
    link: watch::Sender<Link>,
    answers: mpsc::Sender<(Answer, Outcome)>,
    /// Hands out the answers; ends with the bus.
    tasks: Mutex<JoinSet<()>>,
}

impl Bus for MemoryBus {
    fn publish(&self, publish: Publish, done: Done) {
        let answer = Answer::new(done);
        if self.link.borrow().publishing != Publishing::Ready {
            return answer.give(Outcome::Unavailable);
        }
        let Ok(slot) = self.answers.try_reserve() else { return answer.give(Outcome::Overloaded) };
        let outcome = self.broker.route(publish);
        slot.send((answer, outcome));
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    fn stop_ingress(&self) {
        self.broker.stop_ingress(&self.node);
    }

    fn deposit(&self, to: BoxNumber, properties: Properties, body: Bytes, done: Done) {
        let answer = Answer::new(done);
        if self.link.borrow().publishing != Publishing::Ready {
            return answer.give(Outcome::Unavailable);
        }
        let Ok(slot) = self.answers.try_reserve() else { return answer.give(Outcome::Overloaded) };
        let outcome = self.broker.boxes.deposit(to, properties, body);
        slot.send((answer, outcome));
    }

    fn attach_box(
        &self,
        number: BoxNumber,
        users: Vec<UserKey>,
    ) -> BoxFuture<'static, Result<Attach, BoxError>> {
        // A reading begins with a publish.
        if !self.link.borrow().ready() {
            return ready(Err(BoxError)).boxed();
        }
        let (attached, task) = self.broker.boxes.attach(number, users, &self.node, self.link.subscribe());
        if let Some(task) = task {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
        ready(Ok(attached)).boxed()
    }

    fn boxes(&self) -> BoxSettings {
        self.broker.boxes.settings
    }

    fn leave(&self) {
        self.broker.leave(&self.node);
    }

    fn close(&self) {
        self.broker.detach(&self.node, &self.link);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.close();
    }
}
