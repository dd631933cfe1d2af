//! The contract of `Bus`, held against RabbitMQ and against the memory broker.

use std::sync::Arc;

use warren::bus::memory::MemoryBroker;
use warren::bus::rabbit::{RabbitBus, RabbitSettings};
use warren::bus::{Bus, Inboxes};
use warren::ids::NodeId;

use crate::{broker, bus_contract};

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
    let (bus, inboxes) = RabbitBus::start(RabbitSettings::new(vec![url.to_owned()]), node.clone());
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
