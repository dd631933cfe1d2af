//! A broker inside the process, with the same contract as RabbitMQ: for standalone nodes and for tests.

mod application;
mod boxes;
mod faults;
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
use crate::ids::{NodeId, UserKey};
use application::Bound;
use boxes::Boxes;
use queue::{Overflow, Queue};

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
    /// The queues that backends bound to the exchange of the application.
    bound: Vec<Bound>,
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
    replies: mpsc::Sender<super::Delivery>,
}

/// One incarnation. Dropping it ends its consumers, which give back what is unsettled.
struct NodeQueues {
    node: Arc<Queue>,
    control: Arc<Queue>,
    replies: Arc<Queue>,
    /// By which anybody reaches `replies`.
    replies_name: String,
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
        let (reply_sender, replies) = mpsc::channel(PREFETCH);
        let inboxes = InboxSenders {
            node: node_sender,
            control: control_sender,
            ingress: ingress_sender,
            replies: reply_sender,
        };
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
        (Arc::new(bus), Inboxes { node: node_inbox, control, ingress, replies })
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
            // Nobody outside of the process can listen.
            Destination::Event(_) => Outcome::Unroutable,
            Destination::Application(key) => {
                let pushed = application::queues_for(&state.bound, key)
                    .map(|queue| queue.push(message(&publish, Via::Direct, key.as_str())));
                application::outcome(pushed)
            }
            Destination::Queue(name) => {
                let replies = queues().map(|(_, queues)| queues).find(|queues| queues.replies_name == *name);
                match (state.named.get(name), replies) {
                    (Some(queue), _) => taken(queue.push(message(&publish, Via::Direct, name))),
                    (None, Some(queues)) => taken(queues.replies.push(message(&publish, Via::Replies, name))),
                    (None, None) => Outcome::Unroutable,
                }
            }
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

    fn reply_queue(&self) -> Option<String> {
        let state = self.broker.lock();
        state.nodes.get(&self.node)?.queues.as_ref().map(|queues| queues.replies_name.clone())
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
