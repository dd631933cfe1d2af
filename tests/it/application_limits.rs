//! Requests to backends: what bounds them, and what becomes of those under way when the link or the node ends.

use std::future::pending as pending_for_ever;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::time::Instant;
use warren::bus::{publish_confirmed, Destination, Lane, Outcome, Properties, Publish};

use crate::application::{code, request, Backend};
use crate::credentials::token;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, CHECKED, PATIENCE};
use crate::support::user::User;

#[tokio::test]
async fn what_may_be_sent_is_limited() {
    let vars = [CHECKED, &[("IN_FLIGHT_PER_SESSION", "3"), ("MESSAGE_RATE", "20"), ("MESSAGE_BURST", "20")]];
    let cluster = Cluster::start(1, &vars.concat()).await;
    let mut backend = Backend::bind(&cluster, "#");
    let caps = ["publish:app.orders.*", "publish:user.*"];
    let mut listed = User::with_token(cluster.ws(0), &token("bob", 60, &caps)).await;
    assert_eq!(listed.publish("app.orders.new", 1).await["outcome"], "published");
    assert_eq!(code(&listed.publish("app.admin", 1).await).0, "forbidden");
    let mut none = User::with_token(cluster.ws(0), &token("carol", 60, &["publish:user.*"])).await;
    assert_eq!(code(&none.ask(request(1)).await).0, "forbidden");
    let mut alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    for (field, value) in [
        ("to", json!("app.")),
        ("to", json!("app.#")),
        ("to", json!(format!("app.{}", "x".repeat(129)))),
        ("to", json!("user.bob")),
        ("ttl", json!(60_001)),
        ("ttl", json!(0)),
        ("reply", json!("yes")),
    ] {
        let mut bad = request(1);
        bad[field] = value;
        let reply = alice.ask(bad.clone()).await;
        assert_eq!(code(&reply), ("bad_request", false), "{bad} {reply}");
    }
    for n in 0..3 {
        alice.request(request(n)).await;
    }
    assert_eq!(code(&alice.ask(request(3)).await), ("overloaded", true));
    // What was answered makes room.
    backend.next().await;
    let asked = backend.next().await;
    backend.answer(&asked, None, b"1").await;
    assert_eq!(alice.next("reply").await["outcome"], "answered");
    let mut last = Value::Null;
    for n in 0..20 {
        last = alice.publish("app.orders.new", n).await;
        if last["error"]["code"] == "rate_limited" {
            break;
        }
    }
    assert_eq!(code(&last), ("rate_limited", true), "requests take from the same rate");
}

#[tokio::test]
async fn neither_a_user_nor_a_slow_backend_takes_the_room_of_others() {
    // 32 requests at once on the node, 8 of one user and for one key.
    let cluster = Cluster::start(1, &[("PENDING_MAX", "64")]).await;
    let mut backend = Backend::bind(&cluster, "#");
    let mut greedy = User::connect(cluster.ws(0), "greedy").await;
    for n in 0..12 {
        let mut of_many_keys = request(n);
        of_many_keys["to"] = json!(format!("app.key{n}"));
        greedy.request(of_many_keys).await;
    }
    for _ in 8..12 {
        assert_eq!(code(&greedy.next("reply").await), ("overloaded", true));
    }
    let mut others = Vec::new();
    for n in 0..9 {
        let mut user = User::connect(cluster.ws(0), &format!("user{n}")).await;
        others.push((user.request(request(n)).await, user));
    }
    let (id, mut ninth) = others.pop().unwrap();
    assert_eq!(
        code(&ninth.reply_to(id).await),
        ("overloaded", true),
        "the eight others wait for the same key"
    );
    let mut fine = request("fine");
    fine["to"] = json!("app.quick");
    let id = ninth.request(fine).await;
    loop {
        let asked = backend.next().await;
        if asked.routing_key == "quick" {
            backend.answer(&asked, None, b"\"done\"").await;
            break;
        }
    }
    assert_eq!(ninth.reply_to(id).await["payload"], "done");
    assert_eq!(ninth.publish("user.greedy", 1).await["outcome"], "delivered");
    assert_eq!(cluster.nodes[0].router().requests_pending(), 16);
}

#[tokio::test]
async fn a_lost_link_ends_the_wait_with_the_truth() {
    let cluster = Cluster::start(1, &[]).await;
    let mut backend = Backend::bind(&cluster, "#");
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let id = alice.request(request(1)).await;
    let asked = backend.next().await;
    let away = Instant::now();
    cluster.broker.cut(cluster.nodes[0].id());
    let reply = alice.reply_to(id).await;
    assert_eq!(code(&reply), ("no_answer", true), "{reply}");
    assert_eq!(code(&alice.ask(request(2)).await), ("unavailable", true));
    assert!(away.elapsed() < Duration::from_secs(2), "{:?}", away.elapsed());
    cluster.broker.restore(cluster.nodes[0].id());
    eventually("the link is back", PATIENCE, || async {
        cluster.nodes[0].router().bus().reply_queue().is_some()
    })
    .await;
    let old_queue = asked.properties.reply_to.clone().unwrap();
    let outcome = backend.send(&old_queue, asked.properties.clone(), b"1").await;
    assert_eq!(outcome, Outcome::Unroutable, "the old queue is gone");
    let id = alice.request(request(3)).await;
    let asked = backend.next().await;
    backend.answer(&asked, None, b"3").await;
    assert_eq!(alice.reply_to(id).await["payload"], 3);
}

#[tokio::test]
async fn a_node_that_drains_waits_for_answers_and_then_tells() {
    let mut cluster = Cluster::start(1, &[("DRAIN_MS", "0")]).await;
    let mut node = cluster.nodes.remove(0);
    let mut backend = Backend::bind(&cluster, "#");
    let api = Api::new(node.public());
    let body = json!({"to": "app.a", "reply": true, "ttl": 60_000});
    let lifecycle = node.lifecycle().clone();
    let draining = async {
        let asked = backend.next().await;
        backend.next().await;
        let answering = async {
            lifecycle.reached(warren::lifecycle::Phase::Draining).await;
            backend.answer(&asked, None, b"\"in time\"").await;
        };
        tokio::join!(node.drain(pending_for_ever()), answering);
    };
    let requests = async { tokio::join!(api.publish(&body), api.publish(&body)) };
    let ((one, other), ()) = tokio::join!(requests, draining);
    let mut ends = [one, other].map(|(status, body)| match status {
        200 => (status, body["payload"].clone()),
        _ => (status, body["error"]["code"].clone()),
    });
    ends.sort_by_key(|(status, _)| *status);
    assert_eq!(ends, [(200, json!("in time")), (504, json!("no_answer"))]);
    node.stop().await;
}

#[tokio::test]
async fn backends_cannot_send_to_the_application_through_the_ingress() {
    let cluster = Cluster::start(1, &[]).await;
    cluster.broker.declare_queue("answers");
    let mut backend = Backend::bind(&cluster, "#");
    let properties = Properties { reply_to: Some("answers".into()), ..Properties::default() };
    let to = Destination::Ingress("app.orders.new".into());
    let publish = Publish { to, properties, body: b"1"[..].into(), order_key: 0, lane: Lane::Bulk };
    assert_eq!(publish_confirmed(&*backend.bus, publish).await, Outcome::Confirmed);
    eventually("the backend is told", PATIENCE, || async { cluster.broker.queued("answers").len() == 1 })
        .await;
    let answer: Value = serde_json::from_slice(&cluster.broker.queued("answers")[0].body).unwrap();
    assert_eq!(answer["error"]["code"], "bad_request");
    assert!(answer["error"]["message"].as_str().unwrap().contains("backends reach one another directly"));
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    alice.publish("app.mark", 1).await;
    assert_eq!(backend.next().await.routing_key, "mark", "nothing came before");
}
