//! The broker goes away and comes back: sockets stay, senders are told the truth, and soon all is well.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::user::User;

/// How soon a publish must be answered while there is no broker.
const TOLD: Duration = Duration::from_secs(2);
/// How soon all must be well again after it is back.
const RECOVERED: Duration = Duration::from_secs(5);

#[tokio::test]
async fn sockets_stay_and_publishes_fail_soon_while_the_broker_is_away() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    for node in &cluster.nodes {
        cluster.broker.cut(node.id());
    }
    let away = Instant::now();
    // Also to somebody on the same node: one rule for all.
    for to in ["user.alice", "user.bob", "broadcast", "user.nobody"] {
        let reply = bob.publish(to, 1).await;
        let error = (&reply["error"]["code"], &reply["error"]["retry"]);
        assert_eq!(error, (&json!("unavailable"), &json!(true)), "{to}: {reply}");
    }
    let (status, body) = cluster.api(1).publish(&json!({"to": "user.alice"})).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("unavailable")), "{body}");
    assert!(away.elapsed() < TOLD, "{:?}", away.elapsed());
    for user in [&mut alice, &mut bob] {
        assert_eq!(user.ask(json!({"type": "ping"})).await["outcome"], "ok");
    }
    // New sockets are welcome meanwhile.
    let mut carol = User::connect(cluster.ws(0), "carol").await;

    for node in &cluster.nodes {
        cluster.broker.restore(node.id());
    }
    let back = Instant::now();
    for user in [&mut alice, &mut bob] {
        assert_eq!(user.next("gap").await["reason"], "broker link was lost");
    }
    cluster.agree().await;
    for (user, node) in [("alice", 0), ("carol", 0), ("bob", 1)] {
        cluster.knows(user, &[node]).await;
    }
    assert_eq!(bob.publish("user.alice", "back").await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], "back", "and nothing of what had failed");
    assert_eq!(bob.publish("user.carol", "back").await["outcome"], "delivered");
    assert_eq!(carol.message().await["payload"], "back");
    assert_eq!(bob.publish("broadcast", "all").await["outcome"], "published");
    assert_eq!(alice.message().await["payload"], "all");
    assert!(back.elapsed() < RECOVERED, "{:?}", back.elapsed());
    assert!(alice.kept("gap").is_empty(), "told once");
}

/// Whether somebody is there cannot be known while other nodes may still be on their way back.
#[tokio::test]
async fn nobody_is_called_offline_while_their_node_may_come_back() {
    let cluster = Cluster::start(2, &[]).await;
    let alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    for node in &cluster.nodes {
        cluster.broker.cut(node.id());
    }
    cluster.broker.restore(cluster.nodes[1].id());
    bob.next("gap").await;
    let session = format!("session.{}", alice.session());
    let once = json!({"type": "publish", "to": "user.alice", "payload": 1, "delivery": "at_most_once"});
    let other = json!({"type": "publish", "to": session, "payload": 2});
    for publish in [&once, &other] {
        let reply = bob.ask(publish.clone()).await;
        let error = (&reply["error"]["code"], &reply["error"]["retry"]);
        assert_eq!(error, (&json!("unavailable"), &json!(true)), "{reply}");
    }
    cluster.broker.restore(cluster.nodes[0].id());
    cluster.knows("alice", &[0]).await;
    assert_eq!(bob.ask(once).await["outcome"], "published");
}

#[tokio::test]
async fn what_was_in_flight_when_the_link_went_is_answered_in_time() {
    let cluster = Cluster::start(2, &[("RECEIPT_TIMEOUT_MS", "1000")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    cluster.broker.freeze(cluster.nodes[0].id(), true);
    for at in 0..10 {
        bob.request(json!({"type": "publish", "to": "user.alice", "payload": at})).await;
    }
    let router = cluster.nodes[1].router();
    eventually("all is in flight", PATIENCE, || async { router.pending() == 10 }).await;
    let cut = Instant::now();
    for node in &cluster.nodes {
        cluster.broker.cut(node.id());
    }
    for _ in 0..10 {
        let reply = bob.next("reply").await;
        let error = (&reply["error"]["code"], &reply["error"]["retry"]);
        assert_eq!(error, (&json!("unavailable"), &json!(true)), "{reply}");
    }
    assert!(cut.elapsed() < TOLD, "{:?}", cut.elapsed());
    for node in &cluster.nodes {
        cluster.broker.restore(node.id());
    }
    cluster.agree().await;
    cluster.knows("alice", &[0]).await;
    assert_eq!(bob.publish("user.alice", "mark").await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], "mark");
}

#[tokio::test]
async fn one_node_without_a_link_does_not_hurt_the_others() {
    let cluster = Cluster::start(3, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    let mut carol = User::connect(cluster.ws(2), "carol").await;
    cluster.knows("alice", &[0]).await;
    cluster.knows("carol", &[2]).await;
    cluster.broker.cut(cluster.nodes[2].id());
    assert_eq!(bob.publish("user.alice", 1).await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], 1);
    let began = Instant::now();
    let reply = bob.publish("user.carol", 1).await;
    assert_eq!(reply["outcome"], "stored", "{reply}");
    assert!(began.elapsed() < TOLD, "{:?}", began.elapsed());
    cluster.broker.restore(cluster.nodes[2].id());
    carol.next("gap").await;
    cluster.knows("carol", &[2]).await;
    assert_eq!(bob.publish("user.carol", 2).await["outcome"], "delivered");
    let mut payloads = carol.payloads(2).await;
    payloads.sort_by_key(|payload| payload.as_u64());
    assert_eq!(payloads, [1, 2], "her mail, and what was sent to her since");
    assert!(alice.kept("gap").is_empty());
}

#[tokio::test]
async fn a_broker_that_takes_nothing_is_as_good_as_away_but_leaves_no_gap() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    cluster.broker.block(true);
    let reply = bob.publish("user.alice", 1).await;
    let error = (&reply["error"]["code"], &reply["error"]["retry"]);
    assert_eq!(error, (&json!("unavailable"), &json!(true)), "{reply}");
    cluster.broker.block(false);
    assert_eq!(bob.publish("user.alice", 2).await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], 2);
    assert!(alice.kept("gap").is_empty() && bob.kept("gap").is_empty());
}

#[tokio::test]
async fn a_message_that_failed_may_be_sent_again_under_its_id() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    cluster.knows("alice", &[0]).await;
    let id = cluster.nodes[1].id();
    cluster.broker.cut(id);
    let post = || {
        let body = json!({"to": "user.alice", "payload": "once"});
        let api = cluster.api(1);
        api.request(reqwest::Method::POST, "/v1/messages").json(&body).header("idempotency-key", "k")
    };
    assert_eq!(Api::send(post()).await.0, 503);
    cluster.broker.restore(id);
    cluster.agree().await;
    cluster.knows("alice", &[0]).await;
    for _ in 0..2 {
        let (status, body) = Api::send(post()).await;
        assert_eq!((status, &body["outcome"]), (200, &json!("delivered")), "{body}");
    }
    cluster.api(1).publish(&json!({"to": "user.alice", "payload": "mark"})).await;
    assert_eq!(alice.payloads(2).await, ["once", "mark"]);
}
