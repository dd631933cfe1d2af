//! The topology at the broker, the checked-in definitions file, and what its users may and may not do.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{json, Value};
use warren::bus::rabbit::{definitions, RabbitSettings};
use warren::bus::{publish_confirmed, Destination, Lane, Outcome, Publish};
use warren::config::AmqpUrl;

use crate::box_contract::{deposit, take_all, ONE};
use crate::broker::{self, Vhost};
use crate::bus_contract::{next, peer, ready, send, take, text, to};
use crate::contract::rabbit_bus;
use crate::eventually::eventually;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/amqp/definitions.json");

fn rendered() -> String {
    definitions(&RabbitSettings::new(vec![]).topology())
}

#[test]
#[allow(clippy::disallowed_methods)] // Not configuration: how a person asks for the file to be written.
fn the_definitions_file_is_what_the_code_says() {
    if std::env::var("UPDATE").is_ok() {
        std::fs::write(FILE, rendered()).unwrap();
    }
    let file = std::fs::read_to_string(Path::new(FILE)).unwrap_or_default();
    assert!(file == rendered(), "{FILE} is stale: run `UPDATE=1 ./test the_definitions_file`");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_adds_six_queues_and_three_bindings() {
    let vhost = broker::vhost().await;
    let a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let incarnation = a.bus.link().borrow().incarnation.unwrap();
    let (own, control) = (format!("warren.node.a.{incarnation}"), format!("warren.control.a.{incarnation}"));
    // The last of them is made after the link is up.
    eventually("all queues are there", Duration::from_secs(10), || async { vhost.queues().await.len() == 8 })
        .await;
    let mut queues = vhost.queues().await;
    queues.sort();
    let [canary, minutes, seconds] = ["canary", "canary-minutes", "canary-seconds"]
        .map(|name| format!("warren.box.{name}.a.{incarnation}"));
    let replies = format!("warren.replies.a.{incarnation}");
    let all = [&minutes, &seconds, &canary, &control, "warren.dead", "warren.ingress", &own, &replies];
    assert_eq!(queues, all);
    assert_eq!(a.bus.reply_queue().as_ref(), Some(&replies));
    assert!(vhost.bindings(&replies).await.is_empty());
    let pair = |exchange: &str, key: &str| (exchange.to_owned(), key.to_owned());
    assert_eq!(vhost.bindings(&own).await, [pair("warren.broadcast", ""), pair("warren.direct", "a")]);
    assert_eq!(vhost.bindings(&control).await, [pair("warren.control", "")]);
    assert_eq!(vhost.bindings("warren.ingress").await, [pair("warren.ingress", "#")]);
    // Looking for what was not there yet has cost no connection.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(a.bus.link().borrow().incarnation, Some(incarnation));
    let queue = vhost.management.get(&format!("queues/{}/{own}", vhost.name)).await;
    assert_eq!((&queue["exclusive"], &queue["auto_delete"]), (&json!(true), &json!(true)));
    assert_eq!(queue["arguments"]["x-overflow"], "drop-head");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quorum_queues_work_as_well() {
    let vhost = broker::vhost().await;
    let attach = |node: &_| {
        let settings = RabbitSettings {
            quorum: true,
            ..RabbitSettings::new(vec![AmqpUrl::parse(&vhost.url()).unwrap()])
        };
        let (bus, inboxes) =
            warren::bus::rabbit::RabbitBus::start(settings, warren::ids::NodeId::clone(node));
        (bus as std::sync::Arc<dyn warren::bus::Bus>, inboxes)
    };
    let mut a = peer(&attach, "a").await;
    let outcome = send(&a.bus, Destination::Ingress("user.1".into()), "x").await;
    assert_eq!(outcome, Outcome::Confirmed);
    drop(next(&mut a.inboxes.ingress).await);
    assert_eq!(take(&mut a.inboxes.ingress).await, "x");
}

/// Imports the definitions file into a vhost, under user names that no other test has.
pub async fn import(vhost: &Vhost) {
    // The test above holds the file to this.
    let mut file: Value = serde_json::from_str(&rendered()).unwrap();
    for section in ["users", "permissions", "topic_permissions", "exchanges", "queues", "bindings"] {
        for entry in file[section].as_array_mut().unwrap() {
            if entry.get("vhost").is_some() {
                entry["vhost"] = json!(vhost.name);
            }
            for key in ["user", if section == "users" { "name" } else { "-" }] {
                if let Some(user) = entry.get(key).and_then(Value::as_str) {
                    entry[key] = json!(user_of(vhost, user));
                }
            }
        }
    }
    file["vhosts"] = json!([{ "name": vhost.name }]);
    vhost.management.post("definitions", file).await;
}

pub fn user_of(vhost: &Vhost, user: &str) -> String {
    format!("{}.{user}", vhost.name)
}

pub async fn remove_users(vhost: &Vhost) {
    for user in ["admin", "gateway", "backend", "application"] {
        vhost.management.delete(&format!("users/{}", user_of(vhost, user))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_privileges_are_enough_and_no_more() {
    let vhost = broker::vhost().await;
    import(&vhost).await;
    let gateway = vhost.url_as(&user_of(&vhost, "gateway"), "change-me-gateway");
    let mut a = peer(&|node| rabbit_bus(&gateway, node), "a").await;
    ready(&*a.bus).await;
    assert_eq!(send(&a.bus, to(&[&a.id]), "self").await, Outcome::Confirmed);
    assert_eq!(take(&mut a.inboxes.node).await, "self");
    assert_eq!(send(&a.bus, Destination::Control, "gossip").await, Outcome::Confirmed);
    assert_eq!(send(&a.bus, Destination::Dead, "dead").await, Outcome::Confirmed);
    // A box is made, filled and read; and nobody can have an answer put into it.
    assert_eq!(deposit(&a.bus, ONE, "7").await, Outcome::Confirmed);
    assert_eq!(take_all(&a.bus, ONE).await, [7]);
    let reserved = text(Destination::Queue("warren.box.1024.1".into()), "reply");
    let reserved = Publish { lane: Lane::Reply, ..reserved };
    assert_eq!(publish_confirmed(&*a.bus, reserved).await, Outcome::Refused);

    let backend = vhost.url_as(&user_of(&vhost, "backend"), "change-me-backend");
    assert!(may_publish(&backend, "warren.ingress", "user.7").await);
    assert_eq!(take(&mut a.inboxes.ingress).await, "x");
    assert!(may_publish(&backend, "warren.broadcast", "").await);
    for (exchange, key) in [
        ("warren.ingress", "everything"),
        ("warren.direct", "a"),
        ("warren.control", ""),
        ("warren.dead", ""),
        ("warren.app", "orders"),
        ("", "warren.box.1024.1"),
    ] {
        assert!(!may_publish(&backend, exchange, key).await, "{exchange:?} {key:?}");
    }
    assert!(!may_listen(&backend, "backend.spy", "warren.broadcast").await);
    assert!(!may_listen(&backend, "warren.node.spy.1", "warren.broadcast").await);
    assert!(!may_listen(&gateway, "elsewhere", "warren.broadcast").await);
    assert!(may_make(&gateway, "warren.box.8.1").await);
    // What it may not repair it does not stumble over: the link and the node's own queues live on.
    let before = *a.bus.link().borrow();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(*a.bus.link().borrow(), before);
    remove_users(&vhost).await;
}

/// Topic permissions are checked where a message is published, and nowhere behind that: so a backend gets no
/// exchange and no queue of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_cannot_walk_around_its_topic_permissions() {
    let vhost = broker::vhost().await;
    import(&vhost).await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let backend = vhost.url_as(&user_of(&vhost, "backend"), "change-me-backend");
    let connection = Connection::connect(&backend, ConnectionProperties::default()).await.unwrap();
    for name in ["backend.x", "warren.x", "x"] {
        let channel = connection.create_channel().await.unwrap();
        let made = channel
            .exchange_declare(
                name.into(),
                ExchangeKind::Fanout,
                ExchangeDeclareOptions::default(),
                FieldTable::default(),
            )
            .await;
        assert!(made.is_err(), "an exchange {name}");
        assert!(!may_make(&backend, name).await, "a queue {name}");
    }
    let mut dead_letters = FieldTable::default();
    dead_letters.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("warren.ingress".into()));
    dead_letters.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("everything".into()));
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::default();
    assert!(
        channel.queue_declare("".into(), options, dead_letters).await.is_err(),
        "not even a nameless one"
    );
    for source in ["warren.ingress", "warren.broadcast", "amq.fanout", "amq.topic"] {
        let channel = connection.create_channel().await.unwrap();
        let options = ExchangeBindOptions::default();
        let bound = channel
            .exchange_bind("warren.ingress".into(), source.into(), "#".into(), options, FieldTable::default())
            .await;
        assert!(bound.is_err(), "{source} may be bound to ingress");
    }
    // Settlements come by direct reply-to, which needs no permission.
    let channel = connection.create_channel().await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let (queue, tag) = ("amq.rabbitmq.reply-to".into(), "".into());
    let mut answers = channel.basic_consume(queue, tag, options, FieldTable::default()).await.unwrap();
    let properties = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
    let options = BasicPublishOptions::default();
    let publishing =
        channel.basic_publish("warren.ingress".into(), "user.7".into(), options, b"x", properties);
    publishing.await.unwrap();
    let delivery = next(&mut a.inboxes.ingress).await;
    let reply_to = Destination::Queue(delivery.properties.reply_to.clone().unwrap());
    assert_eq!(send(&a.bus, reply_to, "settled").await, Outcome::Confirmed);
    let answer = tokio::time::timeout(Duration::from_secs(10), answers.next()).await.unwrap();
    assert_eq!(answer.unwrap().unwrap().data, b"settled");
    remove_users(&vhost).await;
}

async fn may_make(url: &str, queue: &str) -> bool {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::default();
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.is_ok()
}

async fn may_publish(url: &str, exchange: &str, key: &str) -> bool {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default();
    match channel.basic_publish(exchange.into(), key.into(), options, b"x", properties).await {
        Ok(confirm) => confirm.await.is_ok(),
        Err(_) => false,
    }
}

async fn may_listen(url: &str, queue: &str, exchange: &str) -> bool {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::exclusive();
    if channel.queue_declare(queue.into(), options, FieldTable::default()).await.is_err() {
        return false;
    }
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), "".into(), options, FieldTable::default()).await.is_ok()
}
