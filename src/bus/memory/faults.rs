//! Faults and looks inside, for tests; a link that ends and comes back.

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::application::{Bound, Pattern};
use super::queue::{consume, Message, Overflow, Queue};
use super::{MemoryBroker, NodeQueues, DURABLE_QUEUE_MAX, PREFETCH};
use crate::bus::{Link, Publishing};
use crate::ids::{Incarnation, NodeId};

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
        let (node_queue, control_queue, replies) = (own(), own(), own());
        let incarnation = Incarnation::generate();
        let flowing = watch::Sender::new(true);
        let ingress_active = watch::Sender::new(first && !restored.retired);
        let mut consumers = JoinSet::new();
        let inboxes = restored.inboxes.clone();
        consumers.spawn(consume(node_queue.clone(), inboxes.node, PREFETCH, flowing.subscribe()));
        consumers.spawn(consume(control_queue.clone(), inboxes.control, PREFETCH, flowing.subscribe()));
        consumers.spawn(consume(self.ingress.clone(), inboxes.ingress, PREFETCH, ingress_active.subscribe()));
        consumers.spawn(consume(replies.clone(), inboxes.replies, PREFETCH, flowing.subscribe()));
        restored.queues = Some(NodeQueues {
            node: node_queue,
            control: control_queue,
            replies,
            replies_name: format!("replies.{node}.{incarnation}"),
            flowing,
            ingress_active,
            _consumers: consumers,
        });
        let publishing = if blocked { Publishing::Blocked } else { Publishing::Ready };
        restored.link.send_replace(Link { incarnation: Some(incarnation), publishing, ..Link::default() });
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

    /// Makes a queue that gets the messages for the application whose key matches, as a topic exchange matches.
    pub fn bind_application(&self, queue: &str, pattern: &str) {
        self.declare_queue(queue);
        let mut state = self.lock();
        if let Some(queue) = state.named.get(queue).cloned() {
            state.bound.push(Bound { pattern: Pattern::new(pattern), queue });
        }
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
