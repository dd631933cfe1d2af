//! What channels cost the broker: nodes without a subscriber get none of the traffic, and no object is made.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use warren::clock::Now;
use warren::config::Config;
use warren::directory::Key;
use warren::ids::{ChannelName, UserId};
use warren::node::Node;
use warren::protocol::message::{Sender, Settlement};
use warren::protocol::publish::PublishRequest;
use warren::router::hooks::Way;

use crate::broker::{vhost, Vhost};
use crate::eventually::eventually;

const PATIENCE: Duration = Duration::from_secs(30);
/// Far more than the probes and gossip of the test's seconds.
const MESSAGES: u64 = 2_000;
const AT_ONCE: u64 = 100;

fn start(vhost: &Vhost, name: &str) -> Node {
    let vars = [
        ("WARREN_NODE_ID", name.to_owned()),
        ("WARREN_LISTEN", "127.0.0.1:0".to_owned()),
        ("WARREN_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("WARREN_WORKERS", "1".to_owned()),
        ("WARREN_AMQP_URL", vhost.url()),
    ];
    let vars: BTreeMap<String, String> =
        vars.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Node::start(Config::from_vars(vars).unwrap_or_else(|errors| panic!("{errors}"))).unwrap()
}

/// A queue that gets all that the node's queue gets.
async fn tap(vhost: &Vhost, node: &str) {
    let (management, name) = (&vhost.management, &vhost.name);
    management.put(&format!("queues/{name}/tap.{node}"), json!({})).await;
    for (exchange, key) in [("warren.direct", node), ("warren.broadcast", "")] {
        let path = format!("bindings/{name}/e/{exchange}/q/tap.{node}");
        management.post(&path, json!({"routing_key": key})).await;
    }
}

/// Messages that the broker has routed to the node's queue, as of a moment ago.
async fn routed_to(vhost: &Vhost, node: &str) -> u64 {
    vhost.messages(&format!("tap.{node}")).await.unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_with_a_subscriber_get_a_channels_messages() {
    let vhost = vhost().await;
    let nodes: Vec<Node> = ["a", "b", "c", "d"].map(|name| start(&vhost, name)).into();
    let channel = ChannelName::new("room").unwrap();
    let key = Key::channel(&channel);
    for node in &nodes {
        tokio::time::timeout(PATIENCE, node.ready()).await.unwrap();
    }
    eventually("the nodes know each other", PATIENCE, || async {
        nodes.iter().all(|node| {
            let audience = node.router().directory().audience(key);
            audience.is_sure && audience.peers == 3
        })
    })
    .await;
    for name in ["a", "b", "c", "d"] {
        tap(&vhost, name).await;
    }
    let before = vhost.queues().await;
    for node in &nodes[..2] {
        let (tell, told) = tokio::sync::oneshot::channel();
        let user = UserId::new("alice").unwrap();
        node.router().open_subscription(&channel, 0, &user, Box::new(move || tell.send(()).unwrap()));
        told.await.unwrap();
    }
    // From a node without subscribers, and from one with: as soon as the replies are there.
    for publisher in [&nodes[2], &nodes[0]] {
        for _ in 0..MESSAGES / AT_ONCE {
            let deliver = |_| {
                let request = PublishRequest::parse(r#"{"to":"channel.room"}"#).unwrap();
                let message = request.into_message(Sender::Service { service: "test".into() }, Now::read());
                publisher.router().deliver_as(None, message.unwrap(), Way::Usual)
            };
            let settled = join_all((0..AT_ONCE).map(deliver)).await;
            assert!(settled.iter().all(|settlement| *settlement == Settlement::Published), "{settled:?}");
        }
    }
    // Both publishers told b; a has its own messages from the hub.
    for (node, copies) in [("b", 2 * MESSAGES), ("a", MESSAGES)] {
        eventually(&format!("{node} got its copies"), PATIENCE, || async {
            routed_to(&vhost, node).await >= copies
        })
        .await;
    }
    let routed = [routed_to(&vhost, "a").await, routed_to(&vhost, "c").await, routed_to(&vhost, "d").await];
    assert!(routed[0] < 2 * MESSAGES, "{routed:?}");
    assert!(routed[1] < MESSAGES / 2 && routed[2] < MESSAGES / 2, "{routed:?}");
    assert_eq!(vhost.queues().await, before, "no queue for a channel");
    for node in nodes {
        node.stop().await;
    }
}
