//! Messages from clients to backends, and requests that backends answer.

use std::sync::Arc;

use serde_json::{json, Value};
use warren::bus::memory::{MemoryBus, Message};
use warren::bus::{publish_confirmed, Destination, Inboxes, Lane, Outcome, Properties, Publish};

use crate::credentials::token;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{config, node_id, Cluster, API_KEY, CHECKED, PATIENCE};
use crate::support::user::User;

const QUEUE: &str = "orders";

/// A backend with a queue that is bound for some keys.
pub struct Backend<'a> {
    cluster: &'a Cluster,
    pub bus: Arc<MemoryBus>,
    _inboxes: Inboxes,
    taken: usize,
}

impl<'a> Backend<'a> {
    pub fn bind(cluster: &'a Cluster, pattern: &str) -> Self {
        cluster.broker.bind_application(QUEUE, pattern);
        let (bus, inboxes) = cluster.broker.attach(node_id("backend"));
        Self { cluster, bus, _inboxes: inboxes, taken: 0 }
    }

    /// The next message in the queue.
    pub async fn next(&mut self) -> Message {
        let broker = &self.cluster.broker;
        eventually("a message for the backend", PATIENCE, || async {
            broker.queued(QUEUE).len() > self.taken
        })
        .await;
        self.taken += 1;
        broker.queued(QUEUE).swap_remove(self.taken - 1)
    }

    pub async fn send(&self, queue: &str, properties: Properties, body: &[u8]) -> Outcome {
        let to = Destination::Queue(queue.to_owned());
        let body = bytes::Bytes::copy_from_slice(body);
        publish_confirmed(&*self.bus, Publish { to, properties, body, order_key: 0, lane: Lane::Bulk }).await
    }

    /// Answers as every AMQP library does.
    pub async fn answer(&self, request: &Message, content_type: Option<&str>, body: &[u8]) {
        let queue = request.properties.reply_to.clone().expect("a request");
        let properties = Properties {
            correlation_id: request.properties.correlation_id.clone(),
            content_type: content_type.map(str::to_owned),
            ..Properties::default()
        };
        assert_eq!(self.send(&queue, properties, body).await, Outcome::Confirmed);
    }
}

pub fn request(payload: impl Into<Value>) -> Value {
    json!({"type": "publish", "to": "app.orders.new", "payload": payload.into(), "reply": true})
}

pub fn code(reply: &Value) -> (&str, bool) {
    let error = &reply["error"];
    (error["code"].as_str().unwrap_or_else(|| panic!("{reply}")), error["retry"] == true)
}

async fn pending(cluster: &Cluster, count: usize) {
    eventually(&format!("{count} requests under way"), PATIENCE, || async {
        cluster.nodes[0].router().requests_pending() == count
    })
    .await;
}

#[tokio::test]
async fn a_message_reaches_the_backends_queue_and_says_who_sent_it() {
    let cluster = Cluster::start(1, CHECKED).await;
    let mut backend = Backend::bind(&cluster, "orders.*");
    let mut alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    let frame = json!({
        "type": "publish", "to": "app.orders.new", "payload": {"sku": 7}, "event": "order", "ttl": 5000,
        "message_id": "m1", "warren-user": "mallory", "from": {"user": "mallory"},
    });
    let reply = alice.ask(frame).await;
    assert_eq!((&reply["outcome"], &reply["message_id"]), (&json!("published"), &json!("m1")), "{reply}");
    let message = backend.next().await;
    assert_eq!((message.routing_key.as_str(), &message.body[..]), ("orders.new", &br#"{"sku":7}"#[..]));
    let properties = &message.properties;
    let session = alice.session();
    for (name, value) in [
        ("warren-user", Some("alice")),
        ("warren-session", Some(session)),
        ("warren-node", Some("n0")),
        ("warren-service", None),
    ] {
        assert_eq!(properties.header(name), value, "{name}");
    }
    assert_eq!((properties.message_id.as_deref(), properties.kind.as_deref()), (Some("m1"), Some("order")));
    assert_eq!((properties.persistent, &properties.reply_to), (Some(true), &None));
    assert!(properties.timestamp.unwrap() > 1_600_000_000, "seconds since 1970");
    let left: u64 = properties.expiration.as_ref().unwrap().parse().unwrap();
    assert!((4_000..=5_000).contains(&left), "{left}");

    // Over HTTP, by a service and by a user; and keys that nobody listens for.
    let api = cluster.api(0);
    let by_key = api.with_token(API_KEY);
    let (status, body) = by_key.publish(&json!({"to": "app.orders.paid", "delivery": "at_most_once"})).await;
    assert_eq!((status, &body["outcome"]), (200, &json!("published")), "{body}");
    let message = backend.next().await;
    assert_eq!(message.properties.header("warren-service"), Some("api"));
    assert_eq!(
        (message.properties.header("warren-user"), message.properties.persistent),
        (None, Some(false))
    );
    let by_user = api.with_token(&token("bob", 60, &["publish:app.orders.*"]));
    by_user.publish(&json!({"to": "app.orders.x"})).await;
    let properties = backend.next().await.properties;
    assert_eq!((properties.header("warren-user"), properties.header("warren-session")), (Some("bob"), None));
    for key in ["orders", "orders.new.x", "nobody"] {
        let reply = alice.publish(&format!("app.{key}"), 1).await;
        assert_eq!(code(&reply), ("no_backend", false), "{reply}");
    }
    let (status, body) = by_key.publish(&json!({"to": "app.nobody", "reply": true})).await;
    assert_eq!((status, &body["error"]["code"]), (200, &json!("no_backend")), "{body}");
    assert_eq!(cluster.nodes[0].router().requests_pending(), 0);
}

#[tokio::test]
async fn any_answer_in_the_standard_way_reaches_the_session_that_asked() {
    let cluster = Cluster::start(1, &[]).await;
    let mut backend = Backend::bind(&cluster, "#");
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    for (content_type, body, payload, encoding) in [
        (Some("application/json"), &br#" {"a": 1.0} "#[..], json!({"a": 1.0}), Value::Null),
        (None, b"", Value::Null, Value::Null),
        (Some("text/plain"), b"say \"hi\"", json!("say \"hi\""), Value::Null),
        (None, b"\xff\xfe", json!("//4="), json!("base64")),
        (Some("application/json"), b"{", json!("ew=="), json!("base64")),
    ] {
        let id = alice.request(request("?")).await;
        let asked = backend.next().await;
        assert!(asked.properties.expiration.is_some(), "a request ends with its time");
        backend.answer(&asked, content_type, body).await;
        let reply = alice.reply_to(id).await;
        assert_eq!((&reply["outcome"], &reply["payload"]), (&json!("answered"), &payload), "{reply}");
        assert_eq!((&reply["encoding"], &reply["error"]), (&encoding, &Value::Null), "{reply}");
        assert!(reply["message_id"].is_string());
    }
    // Out of order, each to whom it is for.
    let first = alice.request(request(1)).await;
    let of_alice = backend.next().await;
    let second = bob.request(request(2)).await;
    let of_bob = backend.next().await;
    backend.answer(&of_bob, None, b"\"for bob\"").await;
    assert_eq!(bob.reply_to(second).await["payload"], "for bob");
    backend.answer(&of_alice, None, b"\"for alice\"").await;
    assert_eq!(alice.reply_to(first).await["payload"], "for alice");
    // Over HTTP, one and several.
    let api = cluster.api(0);
    let body = json!({"to": "app.a", "reply": true, "ttl": 60_000});
    let both = json!([{"to": "app.b"}, body]);
    let (one, several, ()) = tokio::join!(api.publish(&body), api.publish(&both), async {
        for _ in 0..3 {
            let asked = backend.next().await;
            if asked.properties.reply_to.is_some() {
                backend.answer(&asked, None, b"[1]").await;
            }
        }
    });
    assert_eq!((one.0, &one.1["outcome"], &one.1["payload"]), (200, &json!("answered"), &json!([1])));
    assert_eq!((&several.1[0]["outcome"], &several.1[1]["payload"]), (&json!("published"), &json!([1])));
}

#[tokio::test]
async fn late_double_foreign_and_forged_answers_are_harmless() {
    let cluster = Cluster::start(1, &[]).await;
    let mut backend = Backend::bind(&cluster, "#");
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut short = request(1);
    short["ttl"] = json!(50);
    let reply = alice.ask(short).await;
    assert_eq!(code(&reply), ("no_answer", true), "{reply}");
    let late = backend.next().await;
    backend.answer(&late, None, b"\"late\"").await;

    let id = alice.request(request(2)).await;
    let asked = backend.next().await;
    assert_ne!(asked.properties.correlation_id, late.properties.correlation_id);
    let queue = asked.properties.reply_to.clone().unwrap();
    let correlation = asked.properties.correlation_id.clone().unwrap();
    for forged in [
        None,
        Some(String::new()),
        Some("0".repeat(32)),
        Some(correlation.to_uppercase() + " "),
        Some(correlation[..31].to_owned()),
        Some("x".repeat(255)),
    ] {
        let properties = Properties { correlation_id: forged, ..Properties::default() };
        assert_eq!(backend.send(&queue, properties, b"\"forged\"").await, Outcome::Confirmed);
    }
    backend.answer(&asked, None, b"\"right\"").await;
    backend.answer(&asked, None, b"\"twice\"").await;
    assert_eq!(alice.reply_to(id).await["payload"], "right");
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
    assert!(alice.kept("reply").is_empty(), "nothing of the others came");
    let metrics = cluster.admin(0);
    eventually("what was ignored is counted", PATIENCE, || async {
        let text = metrics.request(reqwest::Method::GET, "/metrics").send().await.unwrap();
        text.text().await.unwrap().contains("warren_answers_ignored_total 8\n")
    })
    .await;
    assert!(cluster.broker.dead().is_empty());
}

#[tokio::test]
async fn an_answer_that_cannot_be_shown_is_an_error_and_a_dead_letter() {
    let cluster = Cluster::start(1, &[("MAX_MESSAGE_BYTES", "2000")]).await;
    let mut backend = Backend::bind(&cluster, "#");
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let deep = "[".repeat(100) + &"]".repeat(100);
    for (body, part) in [(vec![b'1'; 2_001], "longer than 2000 bytes"), (deep.into_bytes(), "nested deeper")]
    {
        let id = alice.request(request("?")).await;
        let asked = backend.next().await;
        backend.answer(&asked, None, &body).await;
        let reply = alice.reply_to(id).await;
        assert_eq!(code(&reply), ("bad_answer", false), "{reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains(part), "{reply}");
        let dead = cluster.broker.dead().pop().unwrap();
        assert!(dead.properties.header("warren-reason").unwrap().contains(part));
    }
    let unreadable = Properties {
        unreadable: Some("headers: cut short".into()),
        ..Properties { correlation_id: None, ..Properties::default() }
    };
    let id = alice.request(request("?")).await;
    let asked = backend.next().await;
    let queue = asked.properties.reply_to.clone().unwrap();
    let properties =
        Properties { correlation_id: asked.properties.correlation_id.clone(), ..unreadable.clone() };
    backend.send(&queue, unreadable, b"1").await;
    backend.send(&queue, properties, b"1").await;
    let reply = alice.reply_to(id).await;
    assert!(reply["error"]["message"].as_str().unwrap().contains("cut short"), "{reply}");
    // As large as it may be.
    let id = alice.request(request("?")).await;
    let asked = backend.next().await;
    backend.answer(&asked, None, format!("\"{}\"", "x".repeat(1_998)).as_bytes()).await;
    assert_eq!(alice.reply_to(id).await["outcome"], "answered");
}

#[tokio::test]
async fn a_session_that_is_gone_leaves_nothing_behind() {
    let cluster = Cluster::start(1, &[]).await;
    let mut backend = Backend::bind(&cluster, "#");
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut again = User::connect(cluster.ws(0), "alice").await;
    for n in 0..5 {
        alice.request(request(n)).await;
    }
    let id = again.request(request("mine")).await;
    pending(&cluster, 6).await;
    alice.leave().await;
    pending(&cluster, 1).await;
    let mut asked = Vec::new();
    for _ in 0..6 {
        asked.push(backend.next().await);
    }
    for request in &asked {
        backend.answer(request, None, &request.body).await;
    }
    assert_eq!(again.reply_to(id).await["payload"], "mine");
    assert!(again.kept("reply").is_empty());
    pending(&cluster, 0).await;
}

#[tokio::test]
async fn a_node_without_a_broker_answers_a_first_try_itself() {
    let node = warren::node::Node::start(config("alone", &[])).unwrap();
    tokio::time::timeout(PATIENCE, node.ready()).await.unwrap();
    let mut alice = User::connect(node.public(), "alice").await;
    let mut echo = request(json!({"text": "hi"}));
    echo["to"] = json!("app.echo");
    let reply = alice.ask(echo).await;
    assert_eq!((&reply["outcome"], &reply["payload"]), (&json!("answered"), &json!({"text": "hi"})));
    let (status, body) =
        Api::new(node.public()).publish(&json!({"to": "app.echo", "payload": 7, "reply": true})).await;
    assert_eq!((status, &body["payload"]), (200, &json!(7)));
    assert_eq!(alice.publish("app.echo", "no answer wanted").await["outcome"], "published");
    assert_eq!(code(&alice.publish("app.other", 1).await).0, "no_backend");
    node.stop().await;
}
