//! Messages for channels from every door, to subscribers on every node.

use serde_json::{json, Value};
use warren::bus::memory::MemoryBus;
use warren::bus::{publish_confirmed, Bus as _, Destination, Lane, Outcome, Properties, Publish, Via};
use warren::clock::Now;
use warren::directory::Key;
use warren::ids::ChannelName;
use warren::protocol::message::{Sender, Settlement};
use warren::protocol::publish::PublishRequest;

use crate::credentials::token;
use crate::support::eventually::eventually;
use crate::support::nodes::{node_id, Cluster, API_KEY, CHECKED, PATIENCE};
use crate::support::user::User;

/// A user who subscribes, when the reply is there.
async fn subscriber(cluster: &Cluster, node: usize, name: &str, channel: &str) -> User {
    let mut user = User::connect(cluster.ws(node), name).await;
    let reply = user.ask(json!({"type": "subscribe", "channel": channel})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    user
}

async fn from_backend(bus: &MemoryBus, key: &str, properties: Properties, body: &'static [u8]) {
    let to = Destination::Ingress(key.to_owned());
    let publish = Publish { to, properties, body: body.into(), order_key: 0, lane: Lane::Bulk };
    assert_eq!(publish_confirmed(bus, publish).await, Outcome::Confirmed);
}

/// Whether each node is past the time in which it tells everyone.
async fn is_sure(cluster: &Cluster) {
    let key = Key::channel(&ChannelName::new("any").unwrap());
    eventually("the nodes are sure of each other", PATIENCE, || async {
        cluster.nodes.iter().all(|node| node.router().directory().audience(key).is_sure)
    })
    .await;
}

#[tokio::test]
async fn every_door_reaches_the_subscribers_on_every_node_in_order() {
    let cluster = Cluster::start(3, &[("WORKERS", "2")]).await;
    let mut subscribers = Vec::new();
    for at in 0..4 {
        subscribers.push(subscriber(&cluster, at % 2, &format!("user{at}"), "room").await);
    }
    let mut other = subscriber(&cluster, 0, "other", "elsewhere").await;
    let (backend, _inboxes) = cluster.broker.attach(node_id("backend"));
    cluster.broker.declare_queue("answers");
    // The publisher on node 2 subscribes to nothing.
    let mut bob = User::connect(cluster.ws(2), "bob").await;
    let reply = bob.publish("channel.room", "frame").await;
    assert_eq!(reply["outcome"], "published", "{reply}");
    let (status, body) = cluster.api(1).publish(&json!({"to": "channel.room", "payload": "http"})).await;
    assert_eq!((status, &body["outcome"]), (200, &json!("published")), "{body}");
    let properties = Properties {
        reply_to: Some("answers".to_owned()),
        correlation_id: Some("c".to_owned()),
        app_id: Some("shop".to_owned()),
        kind: Some("sale".to_owned()),
        ..Properties::default()
    };
    from_backend(&backend, "channel.room", properties, b"\"amqp\"").await;
    for user in &mut subscribers {
        for payload in ["frame", "http", "amqp"] {
            let message = user.message().await;
            assert_eq!((&message["payload"], &message["to"]), (&json!(payload), &json!("channel.room")));
            match payload {
                "frame" => assert_eq!(message["from"], json!({"user": "bob", "session": bob.session()})),
                "http" => assert_eq!(message["from"], json!({"service": "api"})),
                _ => assert_eq!(
                    (&message["from"]["service"], &message["event"]),
                    (&json!("shop"), &json!("sale"))
                ),
            }
        }
    }
    eventually("the backend is told", PATIENCE, || async { !cluster.broker.queued("answers").is_empty() })
        .await;
    let settled: Value = serde_json::from_slice(&cluster.broker.queued("answers")[0].body).unwrap();
    assert_eq!(settled["outcome"], "published");
    // Many in a row, without waiting: in order for everybody.
    const COUNT: usize = 300;
    for payload in 0..COUNT {
        subscribers[0].request(json!({"type": "publish", "to": "channel.room", "payload": payload})).await;
    }
    let expected: Vec<Value> = (0..COUNT).map(Value::from).collect();
    for user in &mut subscribers {
        assert_eq!(user.payloads(COUNT).await, expected);
    }
    for user in [&mut other, &mut bob] {
        assert_eq!(user.ask(json!({"type": "ping"})).await["outcome"], "ok");
        assert!(user.kept("message").is_empty());
    }
}

#[tokio::test]
async fn a_publisher_may_want_no_echo_and_a_repeat_is_shown_once() {
    let cluster = Cluster::start(2, &[]).await;
    is_sure(&cluster).await;
    let mut alice = subscriber(&cluster, 0, "alice", "room").await;
    // The same user: only the publishing session is left out.
    let mut again = subscriber(&cluster, 0, "alice", "room").await;
    let mut bob = subscriber(&cluster, 1, "bob", "room").await;
    let quiet =
        json!({"type": "publish", "to": "channel.room", "payload": 1, "echo": false, "message_id": "m-1"});
    for _ in 0..2 {
        assert_eq!(alice.ask(quiet.clone()).await["outcome"], "published");
    }
    let loud = json!({"type": "publish", "to": "channel.room", "payload": 2, "echo": true});
    assert_eq!(alice.ask(loud).await["outcome"], "published");
    assert_eq!(alice.message().await["payload"], 2);
    for user in [&mut again, &mut bob] {
        assert_eq!(user.payloads(2).await, [1, 2]);
    }
    let wrong = alice.ask(json!({"type": "publish", "to": "channel.room", "echo": 1})).await;
    assert_eq!(wrong["error"]["code"], "bad_request", "{wrong}");
    // It means nothing to a user, who gets the message.
    let own = json!({"type": "publish", "to": "user.bob", "payload": 3, "echo": false});
    assert_eq!(alice.ask(own).await["outcome"], "delivered");
    assert_eq!(bob.message().await["payload"], 3);
    let expired = Properties { expiration: Some("0".to_owned()), ..Properties::default() };
    let (backend, _inboxes) = cluster.broker.attach(node_id("backend"));
    from_backend(&backend, "channel.room", expired, b"4").await;
    from_backend(&backend, "channel.room", Properties::default(), b"5").await;
    for user in [&mut alice, &mut bob] {
        assert_eq!(user.message().await["payload"], 5);
    }
}

#[tokio::test]
async fn what_may_be_published_is_said_by_the_token_at_every_door() {
    let cluster = Cluster::start(1, CHECKED).await;
    let caps = ["publish:channel.news.*", "subscribe:*"];
    let writer = token("writer", 60, &caps);
    let mut user = User::with_token(cluster.ws(0), &writer).await;
    assert_eq!(user.publish("channel.news.today", 1).await["outcome"], "published");
    assert_eq!(user.publish("channel.room", 1).await["error"]["code"], "forbidden");
    let api = cluster.api(0);
    for (bearer, to, expected) in [
        (writer.as_str(), "channel.news.today", 200),
        (&writer, "channel.room", 403),
        (API_KEY, "channel.room", 200),
        (API_KEY, "channel.", 400),
    ] {
        let (status, body) = api.with_token(bearer).publish(&json!({"to": to, "payload": 1})).await;
        assert_eq!(status, expected, "{to}: {body}");
    }
}

/// The fanout exchange is for nodes that are not sure; the others name those that are interested.
#[tokio::test]
async fn a_node_that_knows_the_subscribers_does_not_tell_everyone() {
    let cluster = Cluster::start(3, &[]).await;
    let mut alice = subscriber(&cluster, 1, "alice", "room").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    // Bound to the fanout exchange as any node queue is.
    let (spy, mut heard) = cluster.broker.attach(node_id("spy"));
    is_sure(&cluster).await;
    for payload in 0..20 {
        assert_eq!(bob.publish("channel.room", payload).await["outcome"], "published");
        assert_eq!(bob.publish("channel.nobody", payload).await["outcome"], "published");
    }
    assert_eq!(alice.payloads(20).await.len(), 20);
    bob.publish("broadcast", "mark").await;
    let first = heard.node.recv().await.unwrap();
    assert_eq!((first.via, &first.body[..]), (Via::Broadcast, &b"\"mark\""[..]));
    spy.close();
}

/// The reply to `subscribe` comes when every node knows: what is published anywhere after it arrives.
#[tokio::test]
async fn what_is_published_anywhere_after_the_reply_arrives() {
    const ROUNDS: usize = 30;
    let cluster = Cluster::start(3, &[]).await;
    is_sure(&cluster).await;
    let mut publishers = Vec::new();
    for node in 0..3 {
        publishers.push(User::connect(cluster.ws(node), "publisher").await);
    }
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut again = User::connect(cluster.ws(0), "alice").await;
    for round in 0..ROUNDS {
        let channel = format!("room{round}");
        let subscribe = json!({"type": "subscribe", "channel": channel});
        // The second one does not wait less than the first.
        let first = alice.request(subscribe.clone()).await;
        assert_eq!(again.ask(subscribe).await["outcome"], "ok");
        for publisher in &mut publishers {
            let reply = publisher.publish(&format!("channel.{channel}"), round).await;
            assert_eq!(reply["outcome"], "published", "{reply}");
        }
        assert_eq!(alice.reply_to(first).await["outcome"], "ok");
        assert_eq!(again.payloads(3).await, [round, round, round]);
        let own = publishers[round % 3].publish(&format!("channel.{channel}"), "last").await;
        assert_eq!(own["outcome"], "published");
        while alice.message().await["payload"] != "last" {}
        assert_eq!(again.message().await["payload"], "last");
    }
}

/// More than the workers have room for: what the publisher is told is true, and what is shown is in order.
#[tokio::test]
async fn a_flood_is_shown_in_order_or_refused() {
    const COUNT: usize = 12_000;
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "16777216")]).await;
    is_sure(&cluster).await;
    let mut alice = subscriber(&cluster, 0, "alice", "room").await;
    let (tell, told) = std::sync::mpsc::channel();
    for payload in 0..COUNT {
        let body = json!({"to": "channel.room", "payload": payload}).to_string();
        let request = PublishRequest::parse(&body).unwrap();
        let message = request.into_message(Sender::Service { service: "test".into() }, Now::read()).unwrap();
        let tell = tell.clone();
        let settle = move |settlement| tell.send((payload, settlement)).unwrap();
        cluster.nodes[0].router().accept(message, Box::new(settle));
    }
    let settled: Vec<(usize, Settlement)> = told.try_iter().collect();
    assert_eq!(settled.len(), COUNT, "nothing has to be confirmed by the broker");
    let published: Vec<Value> = (settled.iter())
        .filter(|(_, settlement)| *settlement == Settlement::Published)
        .map(|(payload, _)| Value::from(*payload))
        .collect();
    assert_eq!(alice.payloads(published.len()).await, published);
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
    assert!(alice.kept("message").is_empty());
}

/// A node that dies costs its own subscribers their messages, and others a second at most.
#[tokio::test]
async fn a_dead_node_takes_nothing_from_the_others() {
    let mut cluster = Cluster::start(3, &[]).await;
    is_sure(&cluster).await;
    let mut alice = subscriber(&cluster, 1, "alice", "room").await;
    let bob = subscriber(&cluster, 2, "bob", "room").await;
    let mut publisher = User::connect(cluster.ws(0), "publisher").await;
    cluster.kill(2);
    drop(bob);
    for payload in 0..50 {
        assert_eq!(publisher.publish("channel.room", payload).await["outcome"], "published");
    }
    let expected: Vec<Value> = (0..50).map(Value::from).collect();
    assert_eq!(alice.payloads(50).await, expected);
    let began = std::time::Instant::now();
    let mut late = subscriber(&cluster, 1, "late", "other").await;
    assert!(began.elapsed() < PATIENCE / 4, "a second, and not until the dead node is known to be dead");
    assert_eq!(publisher.publish("channel.other", 1).await["outcome"], "published");
    assert_eq!(late.message().await["payload"], 1);
}
