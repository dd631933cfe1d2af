//! What clients say to each other and to backends, what they are told, and how their sessions end.

use serde_json::{json, Value};

use crate::backends::{answered_at, everything};
use crate::client::Client;
use crate::eventually::eventually;
use crate::traffic::{token, Stage};

fn publish(to: &str, payload: impl Into<Value>) -> Value {
    json!({"type": "publish", "to": to, "payload": payload.into()})
}

/// Frames of every type but those that come when something goes wrong.
pub async fn talk(stage: &Stage) {
    let (seen, here, there) = (&stage.recording, stage.nodes[0].public(), stage.nodes[1].public());
    let mut alice = Client::connect(seen, here, &token("alice", None, &[])).await;
    let mut bob = Client::open(seen, there, "/ws", None).await;
    bob.send(json!({"type": "auth", "token": token("bob", None, &[])})).await;
    let mut bob = bob.welcomed().await;
    bob.ask(json!({"type": "subscribe", "channel": "room", "presence": true})).await;
    assert_eq!(alice.ask(json!({"type": "subscribe", "channel": "room"})).await["outcome"], "ok");
    assert_eq!(bob.next("presence").await["event"], "join");
    assert_eq!(alice.ask(publish("channel.room", "hello")).await["outcome"], "published");
    assert_eq!(
        (&alice.next("message").await["payload"], &bob.next("message").await["payload"]),
        (&json!("hello"), &json!("hello"))
    );
    let silent = json!({"type": "publish", "to": "channel.room", "payload": [1], "echo": false, "event": "e", "ttl": 5_000});
    alice.ask(silent).await;
    assert_eq!(bob.next("message").await["event"], "e");
    for of in [json!({"user": "bob"}), json!({"user": "alice"}), json!({"channel": "room"})] {
        let mut request = of.clone();
        request["type"] = "presence".into();
        let reply = alice.ask(request).await;
        assert_eq!(reply["error"].is_null(), of["user"] != "bob", "{reply}");
    }
    assert_eq!(alice.ask(json!({"type": "unsubscribe", "channel": "room"})).await["outcome"], "ok");
    assert_eq!(bob.next("presence").await["event"], "leave");
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
    let for_bob = publish(&format!("session.{}", bob.session()), json!({"a": "zo\u{eb}"}));
    for (frame, outcome) in [
        (publish("user.bob", 1), "delivered"),
        (for_bob, "delivered"),
        (publish("user.nobody", 1), "stored"),
        (publish("session.n1~0", 1), "rejected"),
        (
            json!({"type": "publish", "to": "user.nowhere", "delivery": "at_most_once", "message_id": "m-1"}),
            "rejected",
        ),
    ] {
        let reply = alice.ask(frame.clone()).await;
        assert_eq!(reply["outcome"], outcome, "{frame}: {reply}");
    }
    assert_eq!(alice.ask(publish("broadcast", 1)).await["error"]["code"], "forbidden");
    let mut herald = Client::connect(seen, here, &token("herald", Some(&["publish:broadcast"]), &[])).await;
    assert_eq!(herald.ask(publish("broadcast", null())).await["outcome"], "published");
    // What waited for a user.
    Client::connect(seen, there, &token("nobody", None, &[])).await.next("message").await;
    acknowledge(stage, &mut alice).await;
    refresh(&mut alice).await;
    misspeak(&mut alice).await;
}

fn null() -> Value {
    Value::Null
}

async fn acknowledge(stage: &Stage, alice: &mut Client) {
    let address = stage.nodes[1].public();
    let carol =
        Client::open(&stage.recording, address, "/ws?ack=client", Some(&token("carol", None, &[]))).await;
    let mut carol = carol.welcomed().await;
    // A user that has just come may be taken for one who is away; a session is where its id says.
    let to = format!("session.{}", carol.session());
    let acknowledging = async {
        let id = carol.next("message").await["id"].clone();
        carol.send(json!({"type": "ack", "ids": [id]})).await;
    };
    let (reply, ()) = tokio::join!(alice.ask(publish(&to, 1)), acknowledging);
    assert_eq!(reply["outcome"], "delivered", "{reply}");
}

/// A new token brings its channels, and takes those that only the old one allowed.
async fn refresh(alice: &mut Client) {
    for (channels, told) in [(&["private.news"][..], "subscribed"), (&[], "unsubscribed")] {
        let reply = alice.ask(json!({"type": "refresh", "token": token("alice", None, channels)})).await;
        assert_eq!(reply["outcome"], "ok");
        assert_eq!(alice.next(told).await["channel"], "private.news");
    }
    let foreign = alice.ask(json!({"type": "refresh", "token": token("bob", None, &[])})).await;
    assert_eq!(foreign["error"]["code"], "unauthorized");
}

async fn misspeak(alice: &mut Client) {
    for frame in [
        publish("nobody", 1),
        json!({"type": "publish", "to": "user.bob", "ttl": -1}),
        json!({"type": "publish", "to": "user.bob", "reply": true}),
        json!({"type": "subscribe"}),
        json!({"type": "presence", "user": "a", "channel": "b"}),
        json!({"type": "dance"}),
    ] {
        alice.ask_badly(frame).await;
    }
    alice.send_anything("not JSON".to_owned()).await;
    let reply = alice.next("reply").await;
    assert_eq!((&reply["id"], &reply["error"]["code"]), (&Value::Null, &json!("bad_request")));
}

fn request(to: &str) -> Value {
    json!({"type": "publish", "to": to, "payload": {"sku": 7}, "event": "order", "reply": true})
}

/// Messages for the application, from sessions and over HTTP, and their answers.
pub async fn ask_backends(stage: &Stage) {
    let (seen, backend, here) = (&stage.recording, &stage.backend, stage.nodes[0].public());
    let mut alice = Client::connect(seen, here, &token("zo\u{eb}", None, &[])).await;
    assert_eq!(alice.ask(request("app.orders.new")).await["error"]["code"], "no_backend");
    backend.declare("application.orders", Some(("warren.app", "orders.#"))).await;
    backend.declare("application.idle", Some(("warren.app", "idle"))).await;
    let mut orders = backend.consume("application.orders").await;
    let long = vec![b'7'; 70_000];
    for (answer, outcome) in
        [(&br#"{"ok":true}"#[..], "answered"), (&[0xff, 0xfe], "answered"), (&long, "rejected")]
    {
        let answering = async {
            let asked = orders.next().await;
            backend.saw_application(&asked);
            backend.answer(&asked, answer).await;
        };
        let (reply, ()) = tokio::join!(alice.ask(request("app.orders.new")), answering);
        assert_eq!(reply["outcome"], outcome, "{reply}");
    }
    let mut late = request("app.idle");
    late["ttl"] = 200.into();
    assert_eq!(alice.ask(late.clone()).await["error"]["code"], "no_answer");
    late.as_object_mut().unwrap().remove("type");
    stage.api.ask("POST /v1/messages", &[], Some(late), 504).await;
    // What wants no answer, from each kind of sender.
    let hint = json!({"type": "publish", "to": "app.orders.hint", "delivery": "at_most_once"});
    assert_eq!(alice.ask(hint.clone()).await["outcome"], "published");
    let user = stage.http(Some(&token("bob", None, &[])));
    for http in [&user, &stage.api] {
        http.ask("POST /v1/messages", &[], Some(json!({"to": "app.orders.new", "payload": 1})), 200).await;
    }
    for _ in 0..3 {
        backend.saw_application(&orders.next().await);
    }
}

/// Messages of backends for clients, their settlements, and what cannot be delivered.
pub async fn hear_backends(stage: &Stage) {
    let (seen, backend) = (&stage.recording, &stage.backend);
    let mut alice = Client::connect(seen, stage.nodes[1].public(), &token("alice", None, &[])).await;
    backend.declare("application.replies", None).await;
    let mut replies = backend.consume("application.replies").await;
    let mut dead = backend.consume("warren.dead").await;
    // The answer that was too long.
    backend.saw_dead_letter(&dead.next().await);
    backend.publish("user.alice", everything(&replies.name), br#"{"text":"your parcel is here"}"#).await;
    let got = alice.next("message").await;
    assert_eq!(
        (&got["id"], &got["from"]["service"], &got["event"]),
        (&json!("parcel-7"), &json!("parcels"), &json!("notice"))
    );
    let targets = ["user.away", "session.n0~0", "channel.room", "broadcast", "user.alice"];
    for target in targets {
        backend.publish(target, answered_at(&replies.name), &[0xff]).await;
    }
    for _ in 0..=targets.len() {
        backend.saw_settlement(&replies.next().await);
    }
    let bad_id = answered_at(&replies.name).with_message_id("a b".into());
    for (target, properties, definition) in [
        ("nobody", answered_at(&replies.name), "routing_target"),
        ("app.orders.new", answered_at(&replies.name), "routing_target"),
        ("user.alice", bad_id, "publish_properties"),
    ] {
        backend.publish_badly(target, properties, definition).await;
        let settled = replies.next().await;
        assert_eq!(settled.body["error"]["code"], "bad_request");
        backend.saw_settlement(&settled);
        backend.saw_dead_letter(&dead.next().await);
    }
}

/// What clients miss while the broker is away, and ends of sessions that the gateway decides.
pub async fn miss_and_end(stage: &mut Stage) {
    let (seen, here, there) = (&stage.recording, stage.nodes[0].public(), stage.nodes[1].public());
    let mut alice = Client::connect(seen, here, &token("alice", None, &[])).await;
    stage.vhost.close_connections().await;
    alice.next("gap").await;
    for node in &stage.nodes {
        eventually("the link is back", crate::nodes::PATIENCE, || async {
            node.router().bus().link().borrow().ready()
        })
        .await;
    }
    alice.send_anything("x".repeat(70_000)).await;
    assert_eq!(alice.end().await["code"], 1009);
    let mut stranger = Client::open(seen, here, "/ws", None).await;
    stranger.send(json!({"type": "auth", "token": "a.b.c"})).await;
    assert_eq!(stranger.end().await["code"], 4001);
    let bob = Client::connect(seen, there, &token("bob", None, &[])).await;
    stage.api.ask("POST /v1/nodes/{id}/drain", &["n1"], None, 202).await;
    let node = &mut stage.nodes[1];
    node.drain_ordered().await;
    let (told, ()) = tokio::join!(bob.end(), node.drain(std::future::pending()));
    assert_eq!((&told["code"], &told["reconnect"]), (&json!(4200), &json!(true)));
}
