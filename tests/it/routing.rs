//! Who gets a message, how often, in which order, and what its sender is told.

use std::time::Duration;

use serde_json::{json, Value};
use tokio::time::Instant;

use crate::support::api::Api;
use crate::support::nodes::{Cluster, API_KEY, CHECKED};
use crate::support::user::User;

/// Shows that nothing else was on its way: the mark takes the same way and must be the next to come.
async fn nothing_but_a_mark(sender: &mut User, receiver: &mut User, to: &str) {
    assert_eq!(sender.publish(to, "mark").await["outcome"], "delivered");
    assert_eq!(receiver.message().await["payload"], "mark");
}

#[tokio::test]
async fn each_session_of_a_user_gets_a_message_once_on_whichever_node() {
    let cluster = Cluster::start(3, &[("WORKERS", "2")]).await;
    let mut on_0 = User::connect(cluster.ws(0), "alice").await;
    let mut on_1 = User::connect(cluster.ws(1), "alice").await;
    let mut also_on_1 = User::connect(cluster.ws(1), "alice").await;
    let mut bob = User::connect(cluster.ws(2), "bob").await;
    cluster.knows("alice", &[0, 1]).await;
    let reply = bob.publish("user.alice", json!({"text": "hi"})).await;
    assert_eq!((&reply["outcome"], &reply["sessions"]), (&json!("delivered"), &json!(3)), "{reply}");
    for session in [&mut on_0, &mut on_1, &mut also_on_1] {
        let message = session.message().await;
        assert_eq!(message["payload"], json!({"text": "hi"}));
        assert_eq!((&message["to"], &message["id"]), (&json!("user.alice"), &reply["message_id"]));
    }
    assert_eq!(bob.publish("user.alice", "mark").await["sessions"], 3);
    for session in [&mut on_0, &mut on_1, &mut also_on_1] {
        assert_eq!(session.message().await["payload"], "mark");
    }
}

#[tokio::test]
async fn a_broadcast_reaches_everybody_once() {
    let cluster = Cluster::start(3, &[("WORKERS", "2")]).await;
    let mut users = Vec::new();
    for at in 0..30 {
        users.push(User::connect(cluster.ws(at % 3), &format!("user{at}")).await);
    }
    for payload in ["one", "two", "three"] {
        assert_eq!(users[0].publish("broadcast", payload).await["outcome"], "published");
    }
    for user in &mut users {
        assert_eq!(user.payloads(3).await, ["one", "two", "three"]);
    }
    assert_eq!(users[7].publish("broadcast", "mark").await["outcome"], "published");
    for user in &mut users {
        assert_eq!(user.message().await["payload"], "mark");
    }
}

#[tokio::test]
async fn a_session_target_reaches_that_session_alone() {
    let cluster = Cluster::start(2, &[("WORKERS", "2")]).await;
    let mut one = User::connect(cluster.ws(1), "alice").await;
    let mut other = User::connect(cluster.ws(1), "alice").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    let to = format!("session.{}", one.session());
    let reply = bob.publish(&to, "for one").await;
    assert_eq!((&reply["outcome"], &reply["sessions"]), (&json!("delivered"), &json!(1)), "{reply}");
    assert_eq!(one.message().await["payload"], "for one");
    let to_other = format!("session.{}", other.session());
    nothing_but_a_mark(&mut bob, &mut other, &to_other).await;

    one.leave().await;
    let reply = bob.publish(&to, "too late").await;
    assert_eq!((&reply["outcome"], &reply["error"]["code"]), (&json!("rejected"), &json!("offline")));
    let reply = bob.publish("session.elsewhere~1", "nobody").await;
    assert_eq!(reply["error"]["code"], "offline", "{reply}");
}

#[tokio::test]
async fn the_gateway_stamps_the_sender_whatever_a_client_claims() {
    let cluster = Cluster::start(2, CHECKED).await;
    let token = |user: &str| crate::credentials::token(user, 60, &[]);
    let mut alice = User::with_token(cluster.ws(0), &token("alice")).await;
    let mut mallory = User::with_token(cluster.ws(1), &token("mallory")).await;
    cluster.knows("alice", &[0]).await;

    let forged = json!({"user": "root", "session": "n0~1"});
    let frame =
        json!({"type": "publish", "to": "user.alice", "from": forged, "sender": forged, "payload": 1});
    assert_eq!(mallory.ask(frame).await["outcome"], "delivered");
    let session = mallory.session();
    assert_eq!(alice.message().await["from"], json!({"user": "mallory", "session": session}));

    let body = json!({"to": "user.alice", "from": forged, "payload": 2});
    let (status, _) = cluster.api(1).with_token(&token("mallory")).publish(&body).await;
    assert_eq!(status, 200);
    assert_eq!(alice.message().await["from"], json!({"user": "mallory"}));

    let (status, _) = cluster.api(1).with_token(API_KEY).publish(&body).await;
    assert_eq!(status, 200);
    assert_eq!(alice.message().await["from"], json!({"service": "api"}));
}

#[tokio::test]
async fn a_user_that_moves_to_another_node_is_found_at_once() {
    let cluster = Cluster::start(3, &[]).await;
    let mut bob = User::connect(cluster.ws(2), "bob").await;
    for at in [0, 1, 0, 1] {
        let mut alice = User::connect(cluster.ws(at), "alice").await;
        let moved = Instant::now();
        // The other node may not know yet: then it is mail, which follows her.
        let reply = bob.publish("user.alice", at).await;
        assert!(reply["error"].is_null(), "{reply}");
        assert_eq!(alice.message().await["payload"], at);
        assert!(moved.elapsed() < Duration::from_millis(1_000), "after {:?}", moved.elapsed());
        cluster.knows("alice", &[at]).await;
        assert!(moved.elapsed() < Duration::from_millis(1_000), "known after {:?}", moved.elapsed());
        alice.leave().await;
    }
}

#[tokio::test]
async fn http_takes_one_message_or_many_and_a_key_against_duplicates() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    cluster.knows("alice", &[0]).await;
    let api = cluster.api(1);

    let (status, body) = api.publish(&json!({"to": "user.alice", "event": "greet", "payload": "one"})).await;
    assert_eq!(
        (status, &body["outcome"], &body["sessions"]),
        (200, &json!("delivered"), &json!(1)),
        "{body}"
    );
    let message = alice.message().await;
    assert_eq!((&message["event"], &message["id"]), (&json!("greet"), &body["message_id"]));

    let many: Vec<Value> = (0..100).map(|n| json!({"to": "user.alice", "payload": n})).collect();
    let (status, body) = api.publish(&many.into()).await;
    assert_eq!((status, body.as_array().unwrap().len()), (200, 100));
    assert!(body.as_array().unwrap().iter().all(|settled| settled["outcome"] == "delivered"), "{body}");
    assert_eq!(alice.payloads(100).await, (0..100).map(Value::from).collect::<Vec<_>>());

    for attempt in 0..3 {
        let message = json!({"to": "user.alice", "payload": "paid"});
        let post = api.request(reqwest::Method::POST, "/v1/messages").json(&message);
        let (status, body) = Api::send(post.header("idempotency-key", "order-7")).await;
        assert_eq!((status, &body["message_id"]), (200, &json!("order-7")), "{attempt}: {body}");
        assert_eq!(body["outcome"], "delivered");
    }
    api.publish(&json!({"to": "user.alice", "payload": "mark"})).await;
    assert_eq!(alice.payloads(2).await, ["paid", "mark"]);
}

#[tokio::test]
async fn a_message_for_somebody_who_is_away_waits_and_one_for_a_session_does_not() {
    let cluster = Cluster::start(2, &[]).await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    assert_eq!(bob.publish("user.alice", 1).await["outcome"], "stored");
    let (status, body) = cluster.api(1).publish(&json!({"to": "user.alice", "payload": 2})).await;
    assert_eq!((status, &body["outcome"]), (200, &json!("stored")), "{body}");
    let reply = bob.publish("session.n1~1", 1).await;
    assert_eq!(reply["outcome"], "rejected");
    assert_eq!((&reply["error"]["code"], &reply["error"]["retry"]), (&json!("offline"), &json!(false)));
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    assert_eq!(alice.payloads(2).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_messages_to_another_node_keep_their_order() {
    const COUNT: usize = 2_000;
    /// As many as a user may have in flight without going by the mailbox.
    const WINDOW: usize = 250;
    let cluster = Cluster::start(2, &[("WORKERS", "2")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    let sending = async {
        for n in 0..COUNT + WINDOW {
            if n < COUNT {
                bob.request(json!({"type": "publish", "to": "user.alice", "payload": n})).await;
            }
            if n >= WINDOW {
                let reply = bob.next("reply").await;
                assert_eq!(reply["outcome"], "delivered", "{reply}");
            }
        }
    };
    let ((), payloads) = tokio::join!(sending, alice.payloads(COUNT));
    let wrong = payloads.iter().enumerate().find(|(at, payload)| **payload != *at);
    assert_eq!(wrong, None, "the first in a wrong place");
}

#[tokio::test]
async fn a_message_id_that_is_sent_again_elsewhere_is_seen_once() {
    let cluster = Cluster::start(3, CHECKED).await;
    let bob = crate::credentials::token("bob", 60, &[]);
    let mut alice = User::with_token(cluster.ws(0), &crate::credentials::token("alice", 60, &[])).await;
    let mut bob_1 = User::with_token(cluster.ws(1), &bob).await;
    let mut bob_2 = User::with_token(cluster.ws(2), &bob).await;
    cluster.knows("alice", &[0]).await;
    let frame = json!({"type": "publish", "to": "user.alice", "message_id": "m-1", "payload": "once"});
    for bob in [&mut bob_1, &mut bob_2] {
        let reply = bob.ask(frame.clone()).await;
        assert_eq!((&reply["outcome"], &reply["message_id"]), (&json!("delivered"), &json!("m-1")));
    }
    let (_, body) = cluster.api(1).with_token(&bob).publish(&frame).await;
    assert_eq!((&body["outcome"], &body["sessions"]), (&json!("delivered"), &json!(1)), "{body}");
    assert_eq!(alice.message().await["payload"], "once");
    nothing_but_a_mark(&mut bob_2, &mut alice, "user.alice").await;
}

#[tokio::test]
async fn two_senders_may_choose_the_same_message_id() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    let mut carol = User::connect(cluster.ws(1), "carol").await;
    cluster.knows("alice", &[0]).await;
    for (sender, payload) in [(&mut bob, "from bob"), (&mut carol, "from carol")] {
        let frame = json!({"type": "publish", "to": "user.alice", "message_id": "1", "payload": payload});
        assert_eq!(sender.ask(frame).await["outcome"], "delivered");
        assert_eq!(alice.message().await["payload"], payload);
    }
    let (_, body) =
        cluster.api(0).publish(&json!({"to": "user.alice", "message_id": "1", "payload": "api"})).await;
    assert_eq!(body["outcome"], "delivered", "{body}");
    assert_eq!(alice.message().await["payload"], "api");
}

#[tokio::test]
async fn the_sender_is_told_soon_and_honestly_that_a_node_was_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    let mut alice = User::connect(cluster.ws(2), "alice").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    cluster.knows("alice", &[2]).await;
    // It takes messages off the broker no more: what is sent now is in flight when it dies.
    cluster.broker.freeze(cluster.nodes[2].id(), true);
    let in_flight = bob.request(json!({"type": "publish", "to": "user.alice", "payload": 1})).await;
    let pinged = bob.ask(json!({"type": "ping"})).await;
    assert_eq!(pinged["outcome"], "ok", "requests are handled in order, so the message has left");
    let killed = Instant::now();
    cluster.kill(2);
    let reply = bob.reply_to(in_flight).await;
    assert_eq!(reply["outcome"], "stored", "{reply}");
    assert!(killed.elapsed() < Duration::from_millis(1_500), "{:?}", killed.elapsed());
    assert_eq!(bob.publish("user.alice", 2).await["outcome"], "stored");
    assert_ne!(alice.end().await.code, 1000);

    // She comes back elsewhere, and nothing is lost.
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    assert_eq!(alice.payloads(2).await, [1, 2]);
    cluster.knows("alice", &[1]).await;
    nothing_but_a_mark(&mut bob, &mut alice, "user.alice").await;
}

#[tokio::test]
async fn at_most_once_is_published_and_not_promised() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    let hint = |to: &str| json!({"type": "publish", "to": to, "delivery": "at_most_once", "payload": "hm"});
    assert_eq!(bob.ask(hint("user.alice")).await["outcome"], "published");
    assert_eq!(alice.message().await["payload"], "hm");
    assert_eq!(bob.ask(hint("user.nobody")).await["error"]["code"], "offline");
    nothing_but_a_mark(&mut bob, &mut alice, "user.alice").await;
}

#[tokio::test]
async fn a_message_that_may_have_been_shown_is_not_called_expired() {
    let cluster = Cluster::start(2, &[("RECEIPT_TIMEOUT_MS", "300")]).await;
    let _alice = User::connect(cluster.ws(1), "alice").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    cluster.knows("alice", &[1]).await;
    cluster.broker.freeze(cluster.nodes[1].id(), true);
    // Nobody knows whether her node has shown it.
    let reply = bob.ask(json!({"type": "publish", "to": "user.alice", "ttl": 100, "payload": "stale"})).await;
    assert_eq!((&reply["error"]["code"], &reply["error"]["retry"]), (&json!("unavailable"), &json!(true)));
    let reply = bob.publish("user.alice", "patient").await;
    assert_eq!(reply["outcome"], "stored", "{reply}");
    cluster.broker.freeze(cluster.nodes[1].id(), false);
}
