//! The topology as data: the name, kind and arguments of every exchange, queue and binding.
//!
//! The same data is declared at the broker and rendered as `amqp/definitions.json`. Everything in it is valid
//! on RabbitMQ 3.10 to 4.3: no transient queue that is not exclusive, no queue modes, no mirroring.

use crate::bus::partitions::Partition;
use crate::bus::{BoxNumber, BoxSettings};
use crate::ids::{encode, Incarnation, NodeId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    Fanout,
    Direct,
    Topic,
    /// Of the plugin `rabbitmq_consistent_hash_exchange`: a routing key always goes to the same one of its bindings,
    /// whose keys are their weights.
    ConsistentHash,
}

impl ExchangeType {
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeType::Fanout => "fanout",
            ExchangeType::Direct => "direct",
            ExchangeType::Topic => "topic",
            ExchangeType::ConsistentHash => "x-consistent-hash",
        }
    }
}

/// An exchange; all of ours are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    pub name: String,
    pub kind: ExchangeType,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    Text(String),
    Number(u32),
    Flag(bool),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    /// True for the queues of a node, which live and die with its connection; the others are durable.
    pub exclusive: bool,
    pub arguments: Vec<(&'static str, Argument)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub queue: String,
    pub exchange: String,
    pub key: String,
}

/// How many dead messages are kept for a person to look at; the oldest go first.
const DEAD_MESSAGES_MAX: u32 = 100_000;
/// Body bytes of one box that no reader holds. The limits of users keep boxes far below; this is the net for a
/// broker's disk when the hints that those limits are checked by are wrong, or when the nodes of two versions disagree.
const BOX_BYTES_MAX: u32 = 1 << 30;

/// How often a quorum queue hands a message out before it counts as dead. Each lost link counts for every message
/// that was handed out over it, so that RabbitMQ 4's own 20 throws good messages away; and no limit (-1) means one
/// single delivery to 3.10. This many lost links no message outlives.
const DELIVERIES_MAX: u32 = 100_000;

#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    /// Quorum queues for what must survive the loss of a broker node; classic ones otherwise.
    quorum: bool,
    node_queue_max: u32,
    boxes: BoxSettings,
    account: Option<String>,
}

impl Topology {
    pub fn new(prefix: &str, quorum: bool, node_queue_max: u32, boxes: BoxSettings) -> Self {
        Self { prefix: encode(prefix), quorum, node_queue_max, boxes, account: None }
    }

    /// Who publishes: see [`crate::bus::Bus::account`].
    pub fn with_account(self, account: Option<String>) -> Self {
        Self { account, ..self }
    }

    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    fn name(&self, last: &str) -> String {
        format!("{}.{last}", self.prefix)
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn broadcast(&self) -> String {
        self.name("broadcast")
    }

    pub fn direct(&self) -> String {
        self.name("direct")
    }

    pub fn control(&self) -> String {
        self.name("control")
    }

    /// The name of the backends' exchange and of the queue behind it.
    pub fn ingress(&self) -> String {
        self.name("ingress")
    }

    /// The name of the exchange from which backends learn of sessions, users and channels.
    pub fn events(&self) -> String {
        self.name("events")
    }

    /// The name of the exchange for dead messages and of the queue behind it.
    pub fn dead(&self) -> String {
        self.name("dead")
    }

    /// The exchange to which backends bind their queues.
    pub fn app(&self) -> String {
        self.name("app")
    }

    pub fn node_queue(&self, node: &NodeId, incarnation: Incarnation) -> Queue {
        self.exclusive("node", node, incarnation)
    }

    pub fn control_queue(&self, node: &NodeId, incarnation: Incarnation) -> Queue {
        self.exclusive("control", node, incarnation)
    }

    /// Reached by its name alone.
    pub fn replies_queue(&self, node: &NodeId, incarnation: Incarnation) -> Queue {
        self.exclusive("replies", node, incarnation)
    }

    /// A name of its own for each incarnation: the queue of a connection that the broker still believes in
    /// must not lock its successor out.
    fn exclusive(&self, role: &str, node: &NodeId, incarnation: Incarnation) -> Queue {
        Queue {
            name: format!("{}.{role}.{}.{incarnation}", self.prefix, encode(node.as_str())),
            exclusive: true,
            arguments: vec![
                // Named, so that a default queue type of the vhost cannot get in the way.
                ("x-queue-type", Argument::Text("classic".into())),
                ("x-max-length", Argument::Number(self.node_queue_max)),
                ("x-overflow", Argument::Text("drop-head".into())),
            ],
        }
    }

    /// Named as boxes are, so that policies for them apply to it ([`super::canary`]).
    pub fn canary_queue(&self, node: &NodeId, incarnation: Incarnation, canary: &str) -> Queue {
        Queue {
            name: format!("{}.box.{canary}.{}.{incarnation}", self.prefix, encode(node.as_str())),
            exclusive: true,
            arguments: vec![
                ("x-queue-type", Argument::Text("classic".into())),
                ("x-dead-letter-exchange", Argument::Text(String::new())),
                ("x-dead-letter-routing-key", Argument::Text(self.control_queue(node, incarnation).name)),
            ],
        }
    }

    pub fn node_bindings(&self, node: &NodeId, queue: &Queue) -> Vec<Binding> {
        vec![bind(queue, self.broadcast(), ""), bind(queue, self.direct(), &encode(node.as_str()))]
    }

    pub fn control_binding(&self, queue: &Queue) -> Binding {
        bind(queue, self.control(), "")
    }

    pub fn boxes(&self) -> BoxSettings {
        self.boxes
    }

    /// The name of a box, by which the default exchange reaches it.
    pub fn box_name(&self, number: BoxNumber) -> String {
        self.name(&format!("box.{}.{}", self.boxes.boxes, number.0))
    }

    /// A box. `lazy`: the broker is older than 3.12, and would keep all mail in its memory.
    ///
    /// Always a classic queue, whatever the type of the other durable ones: a quorum queue knows no exclusive consumers
    /// and gives back out of order what a consumer had when it ended.
    pub fn box_queue(&self, number: BoxNumber, lazy: bool) -> Queue {
        let mut arguments = vec![
            ("x-queue-type", Argument::Text("classic".into())),
            ("x-message-ttl", Argument::Number(narrow(self.boxes.ttl.as_millis()))),
            ("x-max-length-bytes", Argument::Number(BOX_BYTES_MAX)),
            ("x-overflow", Argument::Text("reject-publish".into())),
        ];
        if lazy {
            arguments.push(("x-queue-mode", Argument::Text("lazy".into())));
        }
        Queue { name: self.box_name(number), exclusive: false, arguments }
    }

    /// Whether a queue is one of ours that only nodes publish to: nobody from outside may name it.
    pub fn is_reserved(&self, queue: &str) -> bool {
        let own = queue.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('.'));
        own.is_some_and(|rest| {
            let first = rest.split('.').next().unwrap_or_default();
            matches!(first, "box" | "node" | "control" | "replies" | "mailbox" | "ingress" | "dead")
        })
    }

    pub fn exchanges(&self) -> Vec<Exchange> {
        [
            (self.broadcast(), ExchangeType::Fanout),
            (self.direct(), ExchangeType::Direct),
            (self.control(), ExchangeType::Fanout),
            (self.ingress(), ExchangeType::Topic),
            (self.events(), ExchangeType::Topic),
            (self.dead(), ExchangeType::Fanout),
            (self.app(), ExchangeType::Topic),
        ]
        .map(|(name, kind)| Exchange { name, kind })
        .into()
    }

    /// Between `ingress` and the layouts, once there is more than one partition.
    pub fn ingress_hash(&self) -> Exchange {
        Exchange { name: self.name("ingress.hash"), kind: ExchangeType::ConsistentHash }
    }

    /// The exchange of the layout with so many partitions, of which there are at least two.
    pub fn ingress_layout(&self, of: u16) -> Exchange {
        Exchange { name: self.name(&format!("ingress.{of}")), kind: ExchangeType::ConsistentHash }
    }

    pub fn partition(&self, partition: Partition) -> Queue {
        let name = match partition.of {
            1 => self.ingress(),
            _ => self.name(&format!("ingress.{partition}")),
        };
        self.ingress_queue(name)
    }

    pub fn is_quorum(&self) -> bool {
        self.quorum
    }

    fn durable_type(&self) -> Argument {
        Argument::Text(if self.quorum { "quorum" } else { "classic" }.into())
    }

    fn ingress_queue(&self, name: String) -> Queue {
        let mut arguments = vec![
            ("x-queue-type", self.durable_type()),
            // One node at a time, so that the order is kept and the next takes over when it dies.
            ("x-single-active-consumer", Argument::Flag(true)),
            ("x-dead-letter-exchange", Argument::Text(self.dead())),
            // Should a policy limit the queue, its publishers hear of it, and no message is thrown out.
            ("x-overflow", Argument::Text("reject-publish".into())),
        ];
        if self.quorum {
            arguments.push(("x-delivery-limit", Argument::Number(DELIVERIES_MAX)));
        }
        Queue { name, exclusive: false, arguments }
    }

    /// The queues that outlive every node.
    pub fn durable_queues(&self) -> Vec<Queue> {
        vec![
            self.ingress_queue(self.ingress()),
            Queue {
                name: self.dead(),
                exclusive: false,
                arguments: vec![
                    ("x-queue-type", self.durable_type()),
                    ("x-max-length", Argument::Number(DEAD_MESSAGES_MAX)),
                    ("x-overflow", Argument::Text("drop-head".into())),
                ],
            },
        ]
    }

    pub fn durable_bindings(&self) -> Vec<Binding> {
        vec![
            self.ingress_binding(),
            Binding { queue: self.dead(), exchange: self.dead(), key: String::new() },
        ]
    }

    /// Of the one queue that everything goes to, unless `ingress.hash` stands between.
    pub fn ingress_binding(&self) -> Binding {
        Binding { queue: self.ingress(), exchange: self.ingress(), key: "#".into() }
    }
}

/// The broker takes at most 32 bits of milliseconds: 49 days.
fn narrow(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn bind(queue: &Queue, exchange: String, key: &str) -> Binding {
    Binding { queue: queue.name.clone(), exchange, key: key.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_queues_are_named_by_node_and_incarnation() {
        let topology = Topology::new("warren", false, 10, BoxSettings::default());
        let node = NodeId::new("n-1.x").unwrap();
        let queue = topology.node_queue(&node, Incarnation::from_u128(255));
        assert_eq!(queue.name, "warren.node.n-1.x.000000000000000000000000000000ff");
        assert!(queue.exclusive);
        let bound: Vec<_> =
            topology.node_bindings(&node, &queue).into_iter().map(|b| (b.exchange, b.key)).collect();
        assert_eq!(
            bound,
            [("warren.broadcast".into(), String::new()), ("warren.direct".into(), "n-1.x".into())]
        );
    }

    #[test]
    fn a_prefix_cannot_leave_the_alphabet_of_names() {
        assert_eq!(
            Topology::new("a b/é", false, 1, BoxSettings::default()).ingress(),
            "a~20b~2F~C3~A9.ingress"
        );
    }

    #[test]
    fn only_exclusive_queues_are_transient() {
        for quorum in [false, true] {
            let topology = Topology::new("w", quorum, 1, BoxSettings::default());
            assert!(topology.durable_queues().iter().all(|queue| !queue.exclusive));
            assert!(!topology.box_queue(BoxNumber(0), false).exclusive);
        }
    }

    #[test]
    fn boxes_are_named_by_their_count_and_are_lazy_only_where_that_means_something() {
        let topology = Topology::new("w", false, 1, BoxSettings::default());
        let queue = topology.box_queue(BoxNumber(7), false);
        assert_eq!(queue.name, "w.box.1024.7");
        assert!(queue.arguments.iter().all(|(name, _)| *name != "x-queue-mode"));
        assert!(topology
            .box_queue(BoxNumber(7), true)
            .arguments
            .iter()
            .any(|(name, _)| *name == "x-queue-mode"));
    }

    #[test]
    fn queues_of_ours_cannot_be_named_from_outside() {
        let topology = Topology::new("w", false, 1, BoxSettings::default());
        for (name, reserved) in [
            ("w.box.1024.7", true),
            ("w.node.a.1", true),
            ("w.replies.a.1", true),
            ("w.ingress", true),
            ("w.boxes", false),
            ("wx.box.1", false),
            ("replies", false),
            ("amq.rabbitmq.reply-to.x.y", false),
        ] {
            assert_eq!(topology.is_reserved(name), reserved, "{name}");
        }
    }
}
