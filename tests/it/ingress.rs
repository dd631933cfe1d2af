//! The backends' door: what plain AMQP messages become, and what happens to those that make no sense.

use std::sync::Arc;

use serde_json::{json, Value};
use warren::bus::memory::MemoryBus;
use warren::bus::{publish_confirmed, Destination, Inboxes, Lane, Outcome, Properties, Publish};

use crate::support::eventually::eventually;
use crate::support::nodes::{node_id, Cluster, PATIENCE};
use crate::support::user::User;

/// A connection to the broker that only publishes.
struct Backend {
    bus: Arc<MemoryBus>,
    _inboxes: Inboxes,
}

impl Backend {
    fn connect(cluster: &Cluster) -> Self {
        let (bus, inboxes) = cluster.broker.attach(node_id("backend"));
        Self { bus, _inboxes: inboxes }
    }

    async fn send(&self, to: Destination, properties: Properties, body: &[u8]) {
        let body = bytes::Bytes::copy_from_slice(body);
        let publish = Publish { to, properties, body, order_key: 0, lane: Lane::Bulk };
        assert_eq!(publish_confirmed(&*self.bus, publish).await, Outcome::Confirmed);
    }

    async fn publish(&self, key: &str, properties: Properties, body: &[u8]) {
        self.send(Destination::Ingress(key.to_owned()), properties, body).await;
    }
}

fn none() -> Properties {
    Properties::default()
}

fn reply_to(queue: &str) -> Properties {
    let queue = Some(queue.to_owned());
    Properties { reply_to: queue, correlation_id: Some("c-1".to_owned()), ..none() }
}

/// Waits for as many settlements in the backend's queue.
async fn settlements(cluster: &Cluster, queue: &str, count: usize) -> Vec<Value> {
    eventually("settlements arrive", PATIENCE, || async { cluster.broker.queued(queue).len() >= count })
        .await;
    let queued = cluster.broker.queued(queue);
    assert!(queued.iter().all(|answer| answer.properties.correlation_id.as_deref() == Some("c-1")));
    queued.iter().map(|answer| serde_json::from_slice(&answer.body).unwrap()).collect()
}

#[tokio::test]
async fn any_body_reaches_the_browser() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    cluster.knows("alice", &[1]).await;
    let backend = Backend::connect(&cluster);
    let text = Properties { content_type: Some("text/plain; charset=utf-8".to_owned()), ..none() };
    for (properties, body, payload, encoding) in [
        (none(), &br#" {"a": [1, "\u00e9"]} "#[..], json!({"a": [1, "é"]}), Value::Null),
        (none(), b"", Value::Null, Value::Null),
        (none(), b"17", json!(17), Value::Null),
        (text, b"17 \"bytes\"", json!("17 \"bytes\""), Value::Null),
        (none(), b"hello", json!("aGVsbG8="), json!("base64")),
        (none(), b"\x00\xff", json!("AP8="), json!("base64")),
    ] {
        backend.publish("user.alice", properties, body).await;
        let message = alice.message().await;
        assert_eq!((&message["payload"], &message["encoding"]), (&payload, &encoding), "{message}");
        assert_eq!(message["from"], json!({"service": "backend"}));
    }
}

#[tokio::test]
async fn standard_properties_say_the_rest() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    cluster.knows("alice", &[1]).await;
    let backend = Backend::connect(&cluster);
    cluster.broker.declare_queue("answers");
    let properties = Properties {
        message_id: Some("order-1".to_owned()),
        kind: Some("order.paid".to_owned()),
        app_id: Some("shop".to_owned()),
        expiration: Some("60000".to_owned()),
        ..reply_to("answers")
    };
    // A body cannot say who sent it, and a repeat is seen once.
    let body = br#"{"from":{"user":"root"}}"#;
    for _ in 0..2 {
        backend.publish("user.alice", properties.clone(), body).await;
    }
    let message = alice.message().await;
    assert_eq!(message["from"], json!({"service": "shop"}));
    assert_eq!((&message["id"], &message["event"]), (&json!("order-1"), &json!("order.paid")));
    for settled in settlements(&cluster, "answers", 2).await {
        assert_eq!(settled, json!({"id": "order-1", "outcome": "delivered", "sessions": 1}));
    }
    let stale = Properties { expiration: Some("0".to_owned()), ..reply_to("answers") };
    backend.publish("user.alice", stale, b"1").await;
    backend.publish("user.nobody", reply_to("answers"), b"1").await;
    backend.publish("session.n0~1", reply_to("answers"), b"1").await;
    backend.publish("broadcast", reply_to("answers"), b"2").await;
    // Settled as soon as each is known, so in any order.
    let settled = settlements(&cluster, "answers", 6).await;
    for (outcome, code) in [
        ("expired", json!("expired")),
        ("rejected", json!("offline")),
        ("published", Value::Null),
        ("stored", Value::Null),
    ] {
        let found = settled.iter().find(|settled| settled["outcome"] == outcome);
        assert_eq!(found.unwrap_or_else(|| panic!("{settled:?}"))["error"]["code"], code);
    }
    assert_eq!(alice.message().await["payload"], 2);
    assert!(cluster.broker.dead().is_empty());
}

#[tokio::test]
async fn a_backend_is_not_told_that_what_may_have_been_shown_has_expired() {
    let cluster = Cluster::start(2, &[("RECEIPT_TIMEOUT_MS", "300")]).await;
    let _alice = User::connect(cluster.ws(1), "alice").await;
    cluster.knows("alice", &[1]).await;
    cluster.broker.declare_queue("answers");
    cluster.broker.freeze(cluster.nodes[1].id(), true);
    let short = Properties { expiration: Some("400".to_owned()), ..reply_to("answers") };
    Backend::connect(&cluster).publish("user.alice", short, b"1").await;
    let settled = settlements(&cluster, "answers", 1).await;
    assert_eq!(settled[0]["error"]["code"], "unavailable", "{settled:?}");
}

#[tokio::test]
async fn a_node_that_lacks_its_reply_queue_does_not_stop() {
    let cluster = Cluster::start(1, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let backend = Backend::connect(&cluster);
    for payload in 0..3 {
        backend.publish("user.alice", reply_to("nobody-made-it"), payload.to_string().as_bytes()).await;
    }
    assert_eq!(alice.payloads(3).await, [0, 1, 2]);
}

#[tokio::test]
async fn what_makes_no_sense_is_dead_with_a_reason_and_the_next_message_arrives() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    cluster.knows("alice", &[1]).await;
    let backend = Backend::connect(&cluster);
    let id = |id: &str| Properties { message_id: Some(id.to_owned()), ..none() };
    let deep = "[".repeat(65) + &"]".repeat(65);
    let long = vec![b'1'; 65_537];
    let poison = [
        ("", none(), &b"1"[..], "routing key"),
        ("alice", none(), b"1", "routing key"),
        ("user.", none(), b"1", "routing key"),
        ("session.n0", none(), b"1", "routing key"),
        ("user.a\u{7}", none(), b"1", "routing key"),
        ("user.alice", id("a b"), b"1", "message_id"),
        ("user.alice", id(&"x".repeat(129)), b"1", "message_id"),
        ("user.alice", Properties { kind: Some("a\nb".to_owned()), ..none() }, b"1", "type"),
        ("user.alice", Properties { expiration: Some("soon".to_owned()), ..none() }, b"1", "expiration"),
        ("user.alice", Properties { expiration: Some("-1".to_owned()), ..none() }, b"1", "expiration"),
        ("user.alice", Properties { app_id: Some("x\u{1b}[2J".to_owned()), ..none() }, b"1", "app_id"),
        ("user.alice", none(), deep.as_bytes(), "payload"),
        ("user.alice", none(), &long, "body"),
    ];
    for (at, (key, properties, body, _)) in poison.iter().enumerate() {
        backend.publish(key, properties.clone(), body).await;
        backend.publish("user.alice", none(), at.to_string().as_bytes()).await;
    }
    let expected: Vec<Value> = (0..poison.len()).map(Value::from).collect();
    assert_eq!(alice.payloads(poison.len()).await, expected);
    eventually("all poison is dead", PATIENCE, || async { cluster.broker.dead().len() == poison.len() })
        .await;
    let dead = cluster.broker.dead();
    for (dead, (key, _, body, reason)) in dead.iter().zip(&poison) {
        let told = dead.properties.header("warren-reason").unwrap();
        assert!(told.starts_with(reason), "{key:?}: {told}");
        assert!(body.starts_with(&dead.body) && dead.body.len() == body.len().min(64 << 10), "{key:?}");
        let header = dead.properties.header("warren-routing-key").unwrap();
        assert_eq!(warren::ids::decode(header).as_deref(), Some(*key));
    }
}

#[tokio::test]
async fn a_thousand_poisoned_messages_cost_no_good_one() {
    const COUNT: usize = 1_000;
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    cluster.knows("alice", &[1]).await;
    let backend = Backend::connect(&cluster);
    let sending = async {
        for at in 0..COUNT {
            backend.publish("nonsense", none(), b"x").await;
            backend.publish("user.alice", none(), at.to_string().as_bytes()).await;
        }
    };
    let ((), payloads) = tokio::join!(sending, alice.payloads(COUNT));
    assert_eq!(payloads, (0..COUNT).map(Value::from).collect::<Vec<_>>());
    eventually("all poison is dead", PATIENCE, || async { cluster.broker.dead().len() == COUNT }).await;
}

#[tokio::test]
async fn what_a_killed_node_had_not_settled_comes_from_another() {
    let mut cluster = Cluster::start(3, &[]).await;
    let _stuck = User::connect(cluster.ws(2), "alice").await;
    cluster.knows("alice", &[2]).await;
    let backend = Backend::connect(&cluster);
    // The first node takes everything from ingress and sends it on, but nobody says that it arrived.
    cluster.broker.freeze(cluster.nodes[2].id(), true);
    for at in 0..50 {
        backend.publish("user.alice", none(), at.to_string().as_bytes()).await;
    }
    let pending = |at: usize| cluster.nodes[at].router().pending();
    eventually("all is in flight", PATIENCE, || async { pending(0) == 50 }).await;
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    cluster.kill(0);
    for at in 0..50 {
        let message = alice.message().await;
        assert_eq!((&message["payload"], &message["redelivered"]), (&json!(at), &json!(true)));
    }
    // The stuck node dies as well, so that everything has been settled by the one that is left.
    cluster.kill(1);
    let router = cluster.nodes[0].router();
    eventually("all is settled", PATIENCE, || async { router.pending() == 0 }).await;
    backend.publish("user.alice", none(), b"\"mark\"").await;
    assert_eq!(alice.message().await["payload"], "mark", "none of it came again");
}

#[tokio::test]
async fn a_backend_may_broadcast_directly_and_cannot_pretend_to_be_a_node() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    let backend = Backend::connect(&cluster);
    backend.send(Destination::Broadcast, none(), b"\"sale\"").await;
    for user in [&mut alice, &mut bob] {
        let message = user.message().await;
        assert_eq!((&message["payload"], &message["to"]), (&json!("sale"), &json!("broadcast")));
    }
    let odd = Properties { kind: Some("warren.message".to_owned()), ..none() };
    backend.send(Destination::Broadcast, odd, b"not a frame").await;
    let odd = Properties { kind: Some("warren.receipts".to_owned()), ..none() };
    backend.send(Destination::Broadcast, odd, b"{").await;
    backend.send(Destination::Control, none(), b"not gossip").await;
    backend.send(Destination::Broadcast, none(), b"\"mark\"").await;
    for user in [&mut alice, &mut bob] {
        assert_eq!(user.message().await["payload"], "mark");
    }
    // Of each broadcast one node keeps the dead letter.
    eventually("two dead letters", PATIENCE, || async { cluster.broker.dead().len() == 2 }).await;
}

/// What the bus could not read goes to the dead queue with its reason, from every door, whatever the rest says.
#[tokio::test]
async fn what_cannot_be_read_is_dead_with_its_reason() {
    let cluster = Cluster::start(1, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let backend = Backend::connect(&cluster);
    let unreadable =
        || Properties { unreadable: Some("message_id: not UTF-8 (ff)".to_owned()), ..Properties::default() };
    backend.publish("user.alice", unreadable(), b"1").await;
    backend.send(Destination::Broadcast, unreadable(), b"2").await;
    backend.send(Destination::Control, unreadable(), b"3").await;
    eventually("both are dead", PATIENCE, || async { cluster.broker.dead().len() == 2 }).await;
    for dead in cluster.broker.dead() {
        assert_eq!(dead.properties.header("warren-reason"), Some("message_id: not UTF-8 (ff)"));
    }
    backend.publish("user.alice", none(), b"4").await;
    assert_eq!(alice.message().await["payload"], 4);
}
