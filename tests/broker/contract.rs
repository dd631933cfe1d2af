//! The contract of `Bus`, held against RabbitMQ and against the memory broker.

use std::sync::Arc;

use warren::bus::memory::MemoryBroker;
use warren::bus::rabbit::{AmqpUrl, RabbitBus, RabbitSettings};
use warren::bus::{Bus, Inboxes, MailboxLimits};
use warren::ids::NodeId;

use crate::{broker, bus_contract, mailbox_contract};

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let broker = super::MemoryBroker::new();
                    super::bus_contract::$name(&|node| super::memory_bus(&broker, node)).await;
                }
            )*
        }
        mod rabbit {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let vhost = super::broker::vhost().await;
                    super::bus_contract::$name(&|node| super::rabbit_bus(&vhost.url(), node)).await;
                }
            )*
        }
    };
}

fn memory_bus(broker: &Arc<MemoryBroker>, node: &NodeId) -> (Arc<dyn Bus>, Inboxes) {
    let (bus, inboxes) = broker.attach(node.clone());
    (bus, inboxes)
}

pub fn rabbit_bus(url: &str, node: &NodeId) -> (Arc<dyn Bus>, Inboxes) {
    start(RabbitSettings::new(vec![AmqpUrl::parse(url).unwrap()]), node)
}

fn start(settings: RabbitSettings, node: &NodeId) -> (Arc<dyn Bus>, Inboxes) {
    let (bus, inboxes) = RabbitBus::start(settings, node.clone());
    (bus, inboxes)
}

contract! {
    every_door_leads_where_it_says,
    properties_arrive,
    a_gone_node_is_unroutable,
    returns_are_told_apart_under_pipelining,
    one_order_key_keeps_the_order,
    a_dropped_token_requeues,
    verdicts_may_come_in_any_order,
    ingress_has_one_consumer_and_fails_over,
    leaving_ends_new_deliveries_only,
    closing_answers_every_publish,
}

async fn with_mailboxes(
    mailbox: MailboxLimits,
) -> (broker::Vhost, impl Fn(&NodeId) -> (Arc<dyn Bus>, Inboxes)) {
    let vhost = broker::vhost().await;
    let settings =
        RabbitSettings { mailbox, ..RabbitSettings::new(vec![AmqpUrl::parse(&vhost.url()).unwrap()]) };
    (vhost, move |node: &NodeId| start(settings.clone(), node))
}

/// The mailboxes' part of the contract, with limits that a test reaches.
macro_rules! mailbox_contract {
    ($limits:ident: $($name:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    use super::super::{mailbox_contract, memory_bus, MemoryBroker};
                    let broker = MemoryBroker::with_mailboxes(mailbox_contract::$limits());
                    mailbox_contract::$name(&|node| memory_bus(&broker, node)).await;
                }
            )*
        }
        mod rabbit {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    use super::super::{mailbox_contract, with_mailboxes};
                    let (_vhost, attach) = with_mailboxes(mailbox_contract::$limits()).await;
                    mailbox_contract::$name(&attach).await;
                }
            )*
        }
    };
}

mod mailboxes {
    mailbox_contract! { limits:
        mail_waits_in_order,
        mail_keeps_its_properties,
        mail_that_comes_meanwhile_is_handed_out_too,
        one_node_at_a_time_opens_a_mailbox,
        what_is_not_acknowledged_comes_again_in_order,
        a_full_mailbox_refuses,
        many_deposits_at_once_keep_their_order,
        nothing_is_lost_between_deposit_and_removal,
        deposits_that_meet_the_removal_survive,
        closing_answers_every_deposit,
    }
}

mod short_lived_mailboxes {
    mailbox_contract! { short_limits: mail_of_its_time_expires }
}
