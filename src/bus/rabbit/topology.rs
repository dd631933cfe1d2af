//! The topology as data: the name, kind and arguments of every exchange, queue and binding.
//!
//! The same data is declared at the broker and rendered as `amqp/definitions.json`. Everything in it is valid
//! on RabbitMQ 3.10 to 4.3: no transient queue that is not exclusive, no queue modes, no mirroring.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::bus::MailboxLimits;
use crate::ids::{encode, Incarnation, NodeId, UserId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    Fanout,
    Direct,
    Topic,
}

impl ExchangeType {
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeType::Fanout => "fanout",
            ExchangeType::Direct => "direct",
            ExchangeType::Topic => "topic",
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
/// AMQP allows 255; a prefix and an encoded user id may come to more than 400.
const MAILBOX_NAME_BYTES_MAX: usize = 200;

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
    mailbox: MailboxLimits,
    account: Option<String>,
}

impl Topology {
    pub fn new(prefix: &str, quorum: bool, node_queue_max: u32, mailbox: MailboxLimits) -> Self {
        Self { prefix: encode(prefix), quorum, node_queue_max, mailbox, account: None }
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

    /// The name of the exchange for dead messages and of the queue behind it.
    pub fn dead(&self) -> String {
        self.name("dead")
    }

    pub fn node_queue(&self, node: &NodeId, incarnation: Incarnation) -> Queue {
        self.exclusive("node", node, incarnation)
    }

    pub fn control_queue(&self, node: &NodeId, incarnation: Incarnation) -> Queue {
        self.exclusive("control", node, incarnation)
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
    pub fn canary_queue(&self, node: &NodeId, incarnation: Incarnation) -> Queue {
        Queue {
            name: format!("{}.box.canary.{}.{incarnation}", self.prefix, encode(node.as_str())),
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

    /// The mailbox of a user, reached by its name through the default exchange.
    ///
    /// Always a classic queue, whatever the type of the other durable ones. A quorum queue gives back out of order
    /// what a consumer had when it ended, cannot be deleted on condition that it is empty, knows no exclusive
    /// consumers, and is a Raft group of its own, each of which takes the broker some 10 ms to make and an Erlang
    /// atom for ever.
    pub fn mailbox(&self, user: &UserId) -> Queue {
        Queue {
            name: self.mailbox_name(user),
            exclusive: false,
            arguments: vec![
                ("x-queue-type", Argument::Text("classic".into())),
                ("x-message-ttl", Argument::Number(narrow(self.mailbox.ttl.as_millis()))),
                ("x-expires", Argument::Number(narrow(self.mailbox.expires.as_millis()).max(1))),
                ("x-max-length", Argument::Number(narrow(self.mailbox.messages as u128))),
                ("x-max-length-bytes", Argument::Number(narrow(self.mailbox.bytes as u128))),
                ("x-overflow", Argument::Text("reject-publish".into())),
            ],
        }
    }

    pub fn mailbox_name(&self, user: &UserId) -> String {
        let name = self.name(&format!("mailbox.{}", encode(user.as_str())));
        if name.len() <= MAILBOX_NAME_BYTES_MAX {
            return name;
        }
        // `~~` never stands in an encoded id, so that no user can be called like another one's digest.
        let mut name = self.name("mailbox.~~");
        for byte in Sha256::digest(user.as_str()) {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }

    pub fn exchanges(&self) -> Vec<Exchange> {
        [
            (self.broadcast(), ExchangeType::Fanout),
            (self.direct(), ExchangeType::Direct),
            (self.control(), ExchangeType::Fanout),
            (self.ingress(), ExchangeType::Topic),
            (self.dead(), ExchangeType::Fanout),
        ]
        .map(|(name, kind)| Exchange { name, kind })
        .into()
    }

    /// The queues that outlive every node.
    pub fn durable_queues(&self) -> Vec<Queue> {
        let kind = Argument::Text(if self.quorum { "quorum" } else { "classic" }.into());
        let mut ingress = vec![
            ("x-queue-type", kind.clone()),
            // One node at a time, so that the order is kept and the next takes over when it dies.
            ("x-single-active-consumer", Argument::Flag(true)),
            ("x-dead-letter-exchange", Argument::Text(self.dead())),
            // Should a policy limit the queue, its publishers hear of it, and no message is thrown out.
            ("x-overflow", Argument::Text("reject-publish".into())),
        ];
        if self.quorum {
            ingress.push(("x-delivery-limit", Argument::Number(DELIVERIES_MAX)));
        }
        vec![
            Queue { name: self.ingress(), exclusive: false, arguments: ingress },
            Queue {
                name: self.dead(),
                exclusive: false,
                arguments: vec![
                    ("x-queue-type", kind),
                    ("x-max-length", Argument::Number(DEAD_MESSAGES_MAX)),
                    ("x-overflow", Argument::Text("drop-head".into())),
                ],
            },
        ]
    }

    pub fn durable_bindings(&self) -> Vec<Binding> {
        vec![
            Binding { queue: self.ingress(), exchange: self.ingress(), key: "#".into() },
            Binding { queue: self.dead(), exchange: self.dead(), key: String::new() },
        ]
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
        let topology = Topology::new("warren", false, 10, MailboxLimits::default());
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
            Topology::new("a b/é", false, 1, MailboxLimits::default()).ingress(),
            "a~20b~2F~C3~A9.ingress"
        );
    }

    #[test]
    fn only_exclusive_queues_are_transient() {
        for quorum in [false, true] {
            let topology = Topology::new("w", quorum, 1, MailboxLimits::default());
            assert!(topology.durable_queues().iter().all(|queue| !queue.exclusive));
            assert!(!topology.mailbox(&UserId::new("u").unwrap()).exclusive);
        }
    }

    #[test]
    fn mailboxes_have_names_that_fit_and_differ() {
        let topology = Topology::new(&"p".repeat(32), false, 1, MailboxLimits::default());
        let name = |user: &str| topology.mailbox_name(&UserId::new(user).unwrap());
        assert!(name("Zoë").ends_with(".mailbox.Zo~C3~AB"));
        let (long, other) = ("é".repeat(64), format!("{}~", "é".repeat(63)));
        let digest = name(&long);
        assert!(digest.len() <= MAILBOX_NAME_BYTES_MAX && digest.contains(".mailbox.~~"), "{digest}");
        assert_ne!(digest, name(&other));
        // Who is called like the last part of that name has another mailbox.
        let (_, last) = digest.rsplit_once('.').unwrap();
        assert_ne!(digest, name(last));
    }
}
