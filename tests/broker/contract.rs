//! The contract of `Bus`, held against RabbitMQ and against the memory broker.

use std::sync::Arc;

use warren::bus::memory::MemoryBroker;
use warren::bus::rabbit::{RabbitBus, RabbitSettings};
use warren::bus::{BoxSettings, Bus, Inboxes};
use warren::config::AmqpUrl;
use warren::ids::NodeId;

use crate::{box_contract, broker, bus_contract};

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
    answers_come_to_the_node_that_asked,
    a_gone_node_is_unroutable,
    returns_are_told_apart_under_pipelining,
    one_order_key_keeps_the_order,
    a_dropped_token_requeues,
    verdicts_may_come_in_any_order,
    ingress_has_one_consumer_and_fails_over,
    leaving_ends_new_deliveries_only,
    closing_answers_every_publish,
}

async fn with_boxes(boxes: BoxSettings) -> (broker::Vhost, impl Fn(&NodeId) -> (Arc<dyn Bus>, Inboxes)) {
    let vhost = broker::vhost().await;
    let settings =
        RabbitSettings { boxes, ..RabbitSettings::new(vec![AmqpUrl::parse(&vhost.url()).unwrap()]) };
    (vhost, move |node: &NodeId| start(settings.clone(), node))
}

/// The boxes' part of the contract.
macro_rules! box_contract {
    ($settings:ident: $($name:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    use super::super::{box_contract, memory_bus, MemoryBroker};
                    let broker = MemoryBroker::with_boxes(box_contract::$settings());
                    box_contract::$name(&|node| memory_bus(&broker, node)).await;
                }
            )*
        }
        mod rabbit {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    use super::super::{box_contract, with_boxes};
                    let (_vhost, attach) = with_boxes(box_contract::$settings()).await;
                    box_contract::$name(&attach).await;
                }
            )*
        }
    };
}

mod boxes {
    box_contract! { settings:
        mail_waits_in_order,
        mail_keeps_its_properties,
        one_reader_at_a_time,
        a_marker_that_is_left_names_its_users,
        another_reader_sees_all_or_nothing,
        many_deposits_at_once_keep_their_order,
        nothing_is_lost_while_a_box_is_read,
        a_large_box_is_read_in_one_go,
        closing_ends_readings_and_answers_every_deposit,
        no_acknowledgement_is_lost_while_a_reading_ends,
    }
}

mod short_lived_mail {
    box_contract! { short_settings: mail_of_its_time_expires }
}
