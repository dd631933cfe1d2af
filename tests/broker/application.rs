//! Messages for the application over RabbitMQ: what a real backend gets and answers, hostile answers, what an operator
//! deletes, and what the accounts of the definitions file may do.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{json, Value};
use tokio::time::{timeout, Instant};
use warren::bus::TopologyState;
use warren::node::Node;

use crate::broker;
use crate::eventually::eventually;
use crate::nodes::{config, PATIENCE};
use crate::raw_amqp::{publish_raw, short_string, RawMessage};
use crate::topology::{import, remove_users, user_of};
use crate::user::User;

/// From a deletion until everything works again.
const BACK: Duration = Duration::from_secs(30);
const CORRELATION_ID: u16 = 0x0400;
const HEADERS: u16 = 0x2000;

async fn start(url: &str) -> Node {
    let node = Node::start(config("a", &[("AMQP_URL", url)])).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");
    node
}

/// A backend with a queue of its own.
pub struct Backend {
    _connection: Connection,
    channel: Channel,
    queue: ShortString,
    consumer: Consumer,
}

impl Backend {
    pub async fn bind(url: &str, queue: &str, pattern: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
        let queue = queue.name().clone();
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await.unwrap();
        let backend = Self { _connection: connection, channel, queue, consumer };
        backend.bind_again(pattern).await.unwrap();
        backend
    }

    async fn bind_again(&self, pattern: &str) -> lapin::Result<()> {
        let (queue, options) = (self.queue.clone(), QueueBindOptions::default());
        self.channel
            .queue_bind(queue, "warren.app".into(), pattern.into(), options, FieldTable::default())
            .await
    }

    pub async fn next(&mut self) -> Delivery {
        let next = timeout(PATIENCE, self.consumer.next()).await.expect("a message in time");
        let delivery = next.expect("a consumer").unwrap();
        self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.unwrap();
        delivery
    }

    /// Publishes to a queue by its name.
    async fn send(&self, queue: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions::default();
        let sent =
            self.channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
        assert!(sent.await.unwrap().is_ack());
    }

    pub async fn answer(&self, request: &Delivery, body: &[u8]) {
        let correlation = request.properties.correlation_id().clone().unwrap();
        self.send(&reply_to(request), BasicProperties::default().with_correlation_id(correlation), body)
            .await;
    }
}

fn reply_to(request: &Delivery) -> String {
    request.properties.reply_to().as_ref().expect("a request").to_string()
}

fn request(payload: impl Into<Value>) -> Value {
    json!({"type": "publish", "to": "app.orders.new", "payload": payload.into(), "reply": true, "event": "order"})
}

/// Asks until there is an answer; the backend must be one that answers by itself, or be served by `serve`.
async fn answered(user: &mut User, backend: &mut Backend) {
    let end = Instant::now() + BACK;
    loop {
        let id = user.request(request("again")).await;
        let reply = tokio::select! {
            reply = user.reply_to(id) => reply,
            asked = backend.next() => {
                backend.answer(&asked, b"\"here\"").await;
                user.reply_to(id).await
            }
        };
        if reply["outcome"] == "answered" {
            assert_eq!(reply["payload"], "here");
            return;
        }
        assert!(Instant::now() < end, "never answered: {reply}");
        backend.bind_again("orders.#").await.ok();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_gets_what_a_client_sent_and_its_answer_comes_back() {
    let vhost = broker::vhost().await;
    let node = start(&vhost.url()).await;
    let mut alice = User::connect(node.public(), "zo\u{eb}").await;
    let reply = alice.ask(request(1)).await;
    assert_eq!((&reply["error"]["code"], &reply["error"]["retry"]), (&json!("no_backend"), &json!(false)));
    let mut backend = Backend::bind(&vhost.url(), "backend", "orders.*").await;
    let id = alice.request(request(json!({"sku": 7}))).await;
    let asked = backend.next().await;
    assert_eq!((asked.exchange.as_str(), asked.routing_key.as_str()), ("warren.app", "orders.new"));
    assert_eq!(asked.data, br#"{"sku":7}"#);
    let properties = &asked.properties;
    let text =
        |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default();
    assert_eq!(text(properties.user_id()), "guest", "the gateway's account");
    assert_eq!(text(properties.kind()), "order");
    assert_eq!(text(properties.content_type()), "application/json");
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert!(properties.timestamp().unwrap() > 1_600_000_000);
    assert!(text(properties.expiration()).parse::<u64>().unwrap() <= 10_000);
    assert!(!text(properties.message_id()).is_empty());
    let incarnation = node.router().bus().link().borrow().incarnation.unwrap();
    assert_eq!(reply_to(&asked), format!("warren.replies.a.{incarnation}"));
    let headers = properties.headers().clone().unwrap();
    let header = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(header("warren-user"), "zo\u{eb}");
    assert_eq!(
        (header("warren-session"), header("warren-node")),
        (alice.session().to_owned(), "a".to_owned())
    );
    backend.answer(&asked, br#"{"ok":true}"#).await;
    let reply = alice.reply_to(id).await;
    assert_eq!((&reply["outcome"], &reply["payload"]), (&json!("answered"), &json!({"ok": true})), "{reply}");
    // Many at once, answered in another order.
    let mut ids = Vec::new();
    for n in 0..200 {
        ids.push(alice.request(request(n)).await);
    }
    let mut all = Vec::new();
    for _ in 0..200 {
        all.push(backend.next().await);
    }
    for asked in all.iter().rev() {
        backend.answer(asked, &asked.data).await;
    }
    for _ in 0..200 {
        let reply = alice.next("reply").await;
        let at = ids.iter().position(|id| reply["id"] == *id).unwrap();
        assert_eq!(reply["payload"], at, "{reply}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_answers_disturb_nobody() {
    let vhost = broker::vhost().await;
    let node = start(&vhost.url()).await;
    let mut alice = User::connect(node.public(), "alice").await;
    let mut backend = Backend::bind(&vhost.url(), "backend", "#").await;
    let before = *node.router().bus().link().borrow();
    let id = alice.request(request(1)).await;
    let asked = backend.next().await;
    let (queue, good) = (reply_to(&asked), asked.properties.correlation_id().clone().unwrap());
    let raw =
        |flags, values| RawMessage { exchange: "", routing_key: queue.as_bytes(), flags, values, body: b"1" };
    for values in [short_string(b"\xff\xfe"), short_string(b""), short_string(&[b'0'; 32])] {
        assert!(publish_raw(vhost.port(), &vhost.name, &raw(CORRELATION_ID, values)).await);
    }
    let answers_of_no_request = BasicProperties::default().with_correlation_id("0".repeat(32).into());
    backend.send(&queue, answers_of_no_request, &vec![0; 20_000_000]).await;
    backend.send(&queue, BasicProperties::default(), b"1").await;
    // The right id, but headers that the client library cannot decode: an error for this request alone.
    let broken =
        [&5u32.to_be_bytes()[..], b"\x02\xff\xfet\x01", &short_string(good.as_str().as_bytes())].concat();
    assert!(publish_raw(vhost.port(), &vhost.name, &raw(HEADERS | CORRELATION_ID, broken)).await);
    let reply = alice.reply_to(id).await;
    assert_eq!((&reply["error"]["code"], &reply["error"]["retry"]), (&json!("bad_answer"), &json!(false)));
    assert!(reply["error"]["message"].as_str().unwrap().contains("headers"), "{reply}");
    // Far too large.
    let id = alice.request(request(2)).await;
    let asked = backend.next().await;
    backend.answer(&asked, &vec![b'1'; 10_000_000]).await;
    let reply = alice.reply_to(id).await;
    assert_eq!(reply["error"]["code"], "bad_answer", "{reply}");
    let id = alice.request(request(3)).await;
    let asked = backend.next().await;
    backend.answer(&asked, b"3").await;
    assert_eq!(alice.reply_to(id).await["payload"], 3);
    assert_eq!(*node.router().bus().link().borrow(), before, "no link was disturbed");
    eventually("both are dead letters", PATIENCE, || async {
        vhost.messages("warren.dead").await == Some(2)
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_deletes_comes_back_and_others_do_not_notice() {
    let vhost = broker::vhost().await;
    let node = start(&vhost.url()).await;
    let mut alice = User::connect(node.public(), "alice").await;
    let mut bob = User::connect(node.public(), "bob").await;
    let mut backend = Backend::bind(&vhost.url(), "backend", "orders.#").await;
    answered(&mut alice, &mut backend).await;
    let incarnation = node.router().bus().link().borrow().incarnation;
    let deleted = Instant::now();
    vhost.management.delete(&format!("exchanges/{}/warren.app", vhost.name)).await;
    // Each of these closes a channel at the broker; the messages of users go on.
    let mut seen_damage = false;
    while deleted.elapsed() < BACK {
        let reply = alice.ask(json!({"type": "publish", "to": "app.orders.new"})).await;
        let code = reply["error"]["code"].as_str().unwrap_or("published").to_owned();
        assert_eq!(bob.publish("user.alice", 1).await["outcome"], "delivered", "after {code}");
        seen_damage |= node.router().bus().link().borrow().topology == TopologyState::Damaged;
        if code == "no_backend" {
            break; // The exchange is back, without the backend's binding.
        }
        assert_eq!(code, "unavailable");
    }
    while !seen_damage {
        assert!(deleted.elapsed() < BACK, "readiness never tells");
        seen_damage |= node.router().bus().link().borrow().topology == TopologyState::Damaged;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    backend.bind_again("orders.#").await.unwrap();
    answered(&mut alice, &mut backend).await;
    assert!(deleted.elapsed() < BACK, "{:?}", deleted.elapsed());
    assert_eq!(node.router().bus().link().borrow().incarnation, incarnation, "the node's own queues live on");

    // The reply queue: the request that waits is told, and a new queue takes its place.
    let id = alice.request(request("waits")).await;
    let asked = backend.next().await;
    let deleted = Instant::now();
    vhost.delete_queue(&reply_to(&asked)).await;
    let reply = alice.reply_to(id).await;
    assert_eq!(
        (&reply["error"]["code"], &reply["error"]["retry"]),
        (&json!("no_answer"), &json!(true)),
        "{reply}"
    );
    answered(&mut alice, &mut backend).await;
    assert!(deleted.elapsed() < BACK, "{:?}", deleted.elapsed());
    node.stop().await;
}

async fn may_publish(url: &str, exchange: &str, key: &str, headers: FieldTable) -> bool {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let properties = BasicProperties::default().with_headers(headers);
    match channel
        .basic_publish(exchange.into(), key.into(), Default::default(), b"\"forged\"", properties)
        .await
    {
        Ok(confirm) => confirm.await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_of_backends_that_answer_can_do_that_and_not_more() {
    let vhost = broker::vhost().await;
    import(&vhost).await;
    let node = start(&vhost.url_as(&user_of(&vhost, "gateway"), "change-me-gateway")).await;
    let mut alice = User::connect(node.public(), "alice").await;
    let application = vhost.url_as(&user_of(&vhost, "application"), "change-me-application");
    let mut backend = Backend::bind(&application, "application.orders", "orders.#").await;
    let id = alice.request(request(1)).await;
    let asked = backend.next().await;
    let account = asked.properties.user_id().clone().unwrap();
    assert_eq!(account.as_str(), user_of(&vhost, "gateway"), "what a backend checks");
    backend.answer(&asked, b"1").await;
    assert_eq!(alice.reply_to(id).await["payload"], 1);
    for (exchange, key) in [
        ("warren.app", "orders.new"),
        ("warren.ingress", "user.alice"),
        ("warren.broadcast", ""),
        ("warren.dead", ""),
    ] {
        assert!(!may_publish(&application, exchange, key, FieldTable::default()).await, "{exchange}");
    }
    let connection = Connection::connect(&application, ConnectionProperties::default()).await.unwrap();
    for queue in ["orders", "warren.box.1024.1", "warren.replies.x.1"] {
        let channel = connection.create_channel().await.unwrap();
        let made =
            channel.queue_declare(queue.into(), QueueDeclareOptions::default(), FieldTable::default()).await;
        assert!(made.is_err(), "{queue}");
    }
    let mut dead_letters = FieldTable::default();
    dead_letters.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("warren.ingress".into()));
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::default();
    let made = channel.queue_declare("application.x".into(), options, dead_letters).await;
    assert!(made.is_err(), "a queue that dead-letters into ingress");
    // The default exchange reaches the ingress queue by its name, and `CC` lets the routing key be any target.
    let mut headers = FieldTable::default();
    let copies = FieldArray::from(vec![AMQPValue::LongString("warren.ingress".into())]);
    headers.insert("CC".into(), AMQPValue::FieldArray(copies));
    assert!(may_publish(&application, "", "user.alice", headers).await);
    eventually("it is a dead letter", PATIENCE, || async { vhost.messages("warren.dead").await == Some(1) })
        .await;
    assert_eq!(alice.publish("user.alice", "mark").await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], "mark");
    node.stop().await;
    remove_users(&vhost).await;
}

/// Ends with its owner.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn app_echo_is_a_backend_to_try_with() {
    let vhost = broker::vhost().await;
    let node = start(&vhost.url()).await;
    let mut alice = User::connect(node.public(), "alice").await;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_warren"));
    command.env_clear().env("WARREN_AMQP_URL", vhost.url()).args(["app-echo", "--key", "orders.new"]);
    let echo = Program(command.spawn().unwrap());
    let end = Instant::now() + BACK;
    while alice.ask(request(1)).await["payload"] != 1 {
        assert!(Instant::now() < end, "never answered");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    vhost.close_connections().await;
    let end = Instant::now() + BACK;
    while alice.ask(request("after")).await["payload"] != "after" {
        assert!(Instant::now() < end, "never answered again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(echo);
    eventually("its queue ends with it", PATIENCE, || async {
        vhost.queues().await.iter().all(|queue| !queue.starts_with("amq."))
    })
    .await;
    assert_eq!(alice.ask(request(1)).await["error"]["code"], "no_backend");
    node.stop().await;
}
