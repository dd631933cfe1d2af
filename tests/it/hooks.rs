//! Hooks: what a backend decides before it happens.

use serde_json::{json, Value};

use crate::application::Backend;
use crate::credentials::{answer, status, token};
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, API_KEY, CHECKED, PATIENCE};
use crate::support::stomp::StompClient;
use crate::support::user::User;

/// Answers the next question, which must be this one.
async fn decide(backend: &mut Backend<'_>, question: Value, answer: &str) {
    let asked = backend.next().await;
    assert_eq!(serde_json::from_slice::<Value>(&asked.body).unwrap(), question);
    assert_eq!(asked.properties.header("warren-user"), question["user"].as_str());
    assert_eq!(format!("hook.{}", question["hook"].as_str().unwrap()), asked.routing_key);
    backend.answer(&asked, None, answer.as_bytes()).await;
}

const YES: &str = r#"{"allow":true}"#;
const NO: &str = r#"{"allow":false,"reason":"not today"}"#;

fn refusal(reply: &Value) -> (&str, &str) {
    (reply["error"]["code"].as_str().unwrap_or("none"), reply["error"]["message"].as_str().unwrap_or("none"))
}

#[tokio::test]
async fn a_backend_decides_who_may_publish_to_whom() {
    let cluster = Cluster::start(1, &[CHECKED, &[("HOOKS", "publish")]].concat()).await;
    let mut backend = Backend::bind(&cluster, "hook.*");
    let alices = token("alice", 60, &[]);
    let mut alice = User::with_token(cluster.ws(0), &alices).await;
    let mut bob = User::with_token(cluster.ws(0), &token("bob", 60, &[])).await;
    // Several at once are one question, and keep their order.
    let mut ids = Vec::new();
    for at in 0..5 {
        ids.push(alice.request(json!({"type": "publish", "to": "user.bob", "payload": at})).await);
    }
    let to_bob = json!({"hook": "publish", "user": "alice", "to": "user.bob"});
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok", "the session goes on meanwhile");
    decide(&mut backend, to_bob, YES).await;
    for id in ids {
        assert_eq!(alice.reply_to(id).await["outcome"], "delivered");
    }
    assert_eq!(bob.payloads(5).await, [0, 1, 2, 3, 4]);
    // Decided for a while; through other doors as well.
    assert_eq!(alice.publish("user.bob", 5).await["outcome"], "delivered");
    let api = cluster.api(0).with_token(&alices);
    assert_eq!(api.publish(&json!({"to": "user.bob", "payload": 6})).await.1["outcome"], "delivered");
    // A refusal, with its reason; over HTTP it is the same decision.
    let id = alice.request(json!({"type": "publish", "to": "user.carol", "payload": 1})).await;
    decide(&mut backend, json!({"hook": "publish", "user": "alice", "to": "user.carol"}), NO).await;
    assert_eq!(refusal(&alice.reply_to(id).await), ("forbidden", "not today"));
    let (status, body) = api.publish(&json!({"to": "user.carol", "payload": 1})).await;
    assert_eq!((status, refusal(&body)), (200, ("forbidden", "not today")), "{body}");
    // What the token forbids is not asked about, and services are not.
    let mut few = User::with_token(cluster.ws(0), &token("dave", 60, &["publish:user.bob"])).await;
    assert_eq!(few.publish("user.carol", 1).await["error"]["code"], "forbidden");
    let service = cluster.api(0).with_token(API_KEY);
    assert_eq!(service.publish(&json!({"to": "user.bob", "payload": 7})).await.1["outcome"], "delivered");
    // Nobody but the gateway asks.
    for to in ["app.hook.publish", "app.hook.connect", "app.hook."] {
        assert_eq!(refusal(&alice.publish(to, 1).await).0, "forbidden", "{to}");
        let body = json!({"to": to, "payload": 1, "reply": true});
        assert_eq!(refusal(&service.publish(&body).await.1).0, "forbidden", "{to}");
    }
    assert_eq!(cluster.broker.queued("orders").len(), 2, "two questions in all");
}

#[tokio::test]
async fn a_backend_decides_who_may_subscribe() {
    let cluster = Cluster::start(1, &[CHECKED, &[("HOOKS", "subscribe")]].concat()).await;
    let mut backend = Backend::bind(&cluster, "hook.*");
    let mut alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    let subscribe = |channel: &str| json!({"type": "subscribe", "channel": channel});
    let question = |user: &str, channel: &str| json!({"hook": "subscribe", "user": user, "channel": channel});
    let service = cluster.api(0).with_token(API_KEY);
    let room = alice.request(subscribe("room")).await;
    decide(&mut backend, question("alice", "room"), YES).await;
    assert_eq!(alice.reply_to(room).await["count"], 1);
    let secret = alice.request(subscribe("secret")).await;
    decide(&mut backend, question("alice", "secret"), NO).await;
    assert_eq!(refusal(&alice.reply_to(secret).await), ("forbidden", "not today"));
    // Left before it was decided.
    let left = alice.request(subscribe("left")).await;
    assert_eq!(alice.ask(json!({"type": "unsubscribe", "channel": "left"})).await["outcome"], "ok");
    decide(&mut backend, question("alice", "left"), YES).await;
    assert_eq!(refusal(&alice.reply_to(left).await).0, "bad_request");
    for channel in ["secret", "left", "room"] {
        let body = json!({"to": format!("channel.{channel}"), "payload": channel});
        assert_eq!(service.publish(&body).await.1["outcome"], "published");
    }
    assert_eq!(alice.message().await["payload"], "room");
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
    assert!(alice.kept("message").is_empty());
    // In STOMP a refusal is an ERROR.
    let mut stomp = StompClient::open(cluster.ws(0), "/ws", "v12.stomp").await;
    let passcode = format!("passcode:{}", token("carol", 60, &[]));
    stomp.say("CONNECT", &["accept-version:1.2", &passcode], "").await;
    stomp.next("CONNECTED").await;
    stomp.say("SUBSCRIBE", &["id:1", "destination:/topic/room", "receipt:r"], "").await;
    decide(&mut backend, question("carol", "room"), YES).await;
    stomp.receipt("r").await;
    stomp.say("SUBSCRIBE", &["id:2", "destination:/topic/secret", "receipt:s"], "").await;
    decide(&mut backend, question("carol", "secret"), NO).await;
    assert!(stomp.expect_error(4003).await.get("message").contains("not today"));
}

#[tokio::test]
async fn a_backend_decides_who_may_connect() {
    let cluster =
        Cluster::start(1, &[CHECKED, &[("HOOKS", "connect"), ("HOOK_CACHE_MS", "0")]].concat()).await;
    let mut backend = Backend::bind(&cluster, "hook.*");
    let question = |user: &str| json!({"hook": "connect", "user": user, "address": "127.0.0.1"});
    let alices = token("alice", 60, &[]);
    let (mut alice, ()) =
        tokio::join!(User::with_token(cluster.ws(0), &alices), decide(&mut backend, question("alice"), YES));
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
    let line = format!("Authorization: Bearer {}\r\n", token("mallory", 60, &[]));
    let (head, ()) =
        tokio::join!(answer(&cluster, "/ws", &line), decide(&mut backend, question("mallory"), NO));
    assert_eq!(status(&head), 403, "{head}");
    // By the first frame.
    let auth = |user: &str| json!({"type": "auth", "token": token(user, 60, &[])}).to_string();
    let mut bob = User::open(cluster.ws(0), "/ws", &[]).await;
    bob.say_text(&auth("bob")).await;
    decide(&mut backend, question("bob"), YES).await;
    bob = bob.welcomed().await;
    assert_eq!(bob.publish("user.bob", 1).await["outcome"], "delivered");
    let mut refused = User::open(cluster.ws(0), "/ws", &[]).await;
    refused.say_text(&auth("mallory")).await;
    decide(&mut backend, question("mallory"), NO).await;
    refused.expect_close(4003).await;
    // Whoever does not wait for the welcome is not let in by a second token.
    let mut hasty = User::open(cluster.ws(0), "/ws", &[]).await;
    hasty.say_text(&auth("carol")).await;
    hasty.say_text(&auth("carol")).await;
    hasty.expect_close(4000).await;
    decide(&mut backend, question("carol"), YES).await;
    // STOMP, by CONNECT.
    for (user, verdict) in [("dave", YES), ("mallory", NO)] {
        let mut stomp = StompClient::open(cluster.ws(0), "/ws", "v12.stomp").await;
        let passcode = format!("passcode:{}", token(user, 60, &[]));
        stomp.say("CONNECT", &["accept-version:1.2", &passcode], "").await;
        decide(&mut backend, question(user), verdict).await;
        match verdict {
            YES => drop(stomp.next("CONNECTED").await),
            _ => drop(stomp.expect_error(4003).await),
        }
    }
    let hub = cluster.nodes[0].router().hub();
    eventually("two are left", PATIENCE, || async { hub.sessions() == 2 }).await;
}

#[tokio::test]
async fn silence_is_a_refusal_and_holds_up_nobody_else() {
    let vars = [("HOOKS", "publish,subscribe"), ("HOOK_TIMEOUT_MS", "500")];
    let cluster = Cluster::start(1, &[CHECKED, &vars].concat()).await;
    let mut alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    let mut bob = User::with_token(cluster.ws(0), &token("bob", 60, &[])).await;
    // No backend at all.
    let reply = alice.publish("user.bob", 1).await;
    assert_eq!((refusal(&reply).0, &reply["error"]["retry"]), ("unavailable", &json!(true)));
    let mut backend = Backend::bind(&cluster, "hook.*");
    let to = |user: &str, to: &str| json!({"hook": "publish", "user": user, "to": to});
    let id = bob.request(json!({"type": "publish", "to": "user.bob", "payload": 0})).await;
    decide(&mut backend, to("bob", "user.bob"), YES).await;
    assert_eq!(bob.reply_to(id).await["outcome"], "delivered");
    // One that does not answer, or not clearly.
    let silent = alice.request(json!({"type": "publish", "to": "user.bob", "payload": 1})).await;
    let asked = backend.next().await;
    for at in 1..50 {
        assert_eq!(bob.publish("user.bob", at).await["outcome"], "delivered", "others are not held up");
    }
    assert_eq!(refusal(&alice.reply_to(silent).await).0, "unavailable");
    backend.answer(&asked, None, YES.as_bytes()).await;
    for unclear in ["yes", r#"{"allow":"true"}"#, "\u{0}"] {
        let id = alice.request(json!({"type": "publish", "to": "user.bob", "payload": 1})).await;
        decide(&mut backend, to("alice", "user.bob"), unclear).await;
        assert_eq!(
            refusal(&alice.reply_to(id).await).0,
            "unavailable",
            "{unclear}: asked again, and not let through"
        );
    }
    // One user has a share of what may wait, and others have theirs.
    let mut ids = Vec::new();
    for at in 0..257 {
        ids.push(alice.request(json!({"type": "publish", "to": format!("user.u{at}"), "payload": 1})).await);
    }
    let first = alice.next("reply").await;
    assert_eq!((&first["id"], refusal(&first).0), (&json!(ids[256]), "overloaded"));
    assert_eq!(bob.publish("user.bob", 1).await["outcome"], "delivered");
    for id in &ids[..256] {
        let reply = alice.next("reply").await;
        assert!(ids.contains(&reply["id"].as_u64().unwrap()), "{id}");
        assert_eq!(refusal(&reply).0, "unavailable");
    }
}
