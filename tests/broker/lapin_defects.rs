//! Known defects of the client library under load: our bus must not show any of them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::json;
use warren::bus::{publish_confirmed, Destination, Outcome, Publish};

use crate::broker;
use crate::bus_contract::{next, peer, send, take, text, to};
use crate::contract::rabbit_bus;
use crate::eventually::eventually;
use crate::raw_amqp::publish_unreadable;

/// Confirms and refusals, interleaved and from many tasks: each task hears of its own publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_not_mixed_up() {
    let vhost = broker::vhost().await;
    let a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    for (queue, arguments) in [
        ("full", json!({ "x-max-length": 1, "x-overflow": "reject-publish" })),
        ("fine", json!({ "x-max-length": 10 })),
    ] {
        let body = json!({ "durable": true, "arguments": arguments });
        vhost.management.put(&format!("queues/{}/{queue}", vhost.name), body).await;
    }
    // A queue counts as full a moment after it became so.
    while send(&a.bus, Destination::Queue("full".into()), "x").await != Outcome::Refused {}
    let bus = Arc::new(a.bus);
    let tasks = (0..8u64).map(|task| {
        let bus = bus.clone();
        tokio::spawn(async move {
            for i in 0..1000u64 {
                let (queue, wanted) = match (task + i) % 3 {
                    0 => ("full", Outcome::Refused),
                    1 => ("fine", Outcome::Confirmed),
                    _ => ("gone", Outcome::Unroutable),
                };
                let to = Destination::Queue(queue.into());
                let publish = Publish { order_key: i % 2, ..text(to, "x") };
                assert_eq!(publish_confirmed(&**bus, publish).await, wanted, "task {task}, publish {i}");
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
}

/// The client library parses nested tables by recursion: ./test gives its thread the stack for it, as the
/// gateway does. 5,000 levels are five times what the usual stack survives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deeply_nested_headers_are_survived() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = a.bus.link().borrow().incarnation;
    let mut table = FieldTable::default();
    for _ in 0..5_000 {
        let mut outer = FieldTable::default();
        outer.insert("n".into(), AMQPValue::FieldTable(table));
        table = outer;
    }
    table.insert("kept".into(), AMQPValue::LongString("yes".into()));
    let connection = Connection::connect(&vhost.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let properties = BasicProperties::default().with_headers(table);
    let options = BasicPublishOptions::default();
    channel
        .basic_publish("warren.ingress".into(), "user.1".into(), options, b"deep", properties)
        .await
        .unwrap()
        .await
        .unwrap();
    let delivery = next(&mut a.inboxes.ingress).await;
    assert_eq!(delivery.properties.header("kept"), Some("yes"));
    assert_eq!(delivery.properties.headers.len(), 1);
    delivery.ack.ack();
    assert_eq!(send(&a.bus, to(&[&a.id]), "alive").await, Outcome::Confirmed);
    assert_eq!(take(&mut a.inboxes.node).await, "alive");
    assert_eq!(a.bus.link().borrow().incarnation, before);
}

/// What the client would panic over, or the broker close a channel for, is refused and disturbs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfit_publishes_are_refused_alone() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = *a.bus.link().borrow();
    let long = Destination::Ingress("user.".to_owned() + &"x".repeat(300));
    assert_eq!(send(&a.bus, long, "x").await, Outcome::Refused);
    let mut odd = text(to(&[&a.id]), "odd");
    odd.properties.user_id = Some("mallory".into());
    odd.properties.expiration = Some("tomorrow".into());
    assert_eq!(publish_confirmed(&*a.bus, odd).await, Outcome::Confirmed);
    let mut fat = text(to(&[&a.id]), "fat");
    fat.properties.headers.push(("h".into(), "x".repeat(200_000)));
    assert_eq!(publish_confirmed(&*a.bus, fat).await, Outcome::Refused);
    assert_eq!(take(&mut a.inboxes.node).await, "odd");
    assert_eq!(*a.bus.link().borrow(), before);
}

/// The client library gives up a connection over a property that is not UTF-8, and the broker hands the message
/// out again: it has to be parked, and what came before and after it has to arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_message_is_parked() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = a.bus.link().borrow().incarnation;
    let ingress = || Destination::Ingress("user.1".into());
    assert_eq!(send(&a.bus, ingress(), "first").await, Outcome::Confirmed);
    for _ in 0..2 {
        publish_unreadable(vhost.port(), &vhost.name, "warren.ingress").await;
    }
    assert_eq!(send(&a.bus, ingress(), "last").await, Outcome::Confirmed);
    let mut seen = vec![];
    while seen.last().is_none_or(|body| body != "last") {
        let body = take(&mut a.inboxes.ingress).await;
        if seen.last() != Some(&body) {
            seen.push(body);
        }
    }
    assert_eq!(seen, ["first", "last"]);
    eventually("both are with the dead", Duration::from_secs(10), || async {
        vhost.messages("warren.dead").await == Some(2)
    })
    .await;
    assert_eq!(a.bus.link().borrow().incarnation, before, "the node's own queues are not disturbed");
    // And all is as fast as before, for many.
    eventually("ingress flows", Duration::from_secs(10), || async {
        vhost.messages("warren.ingress").await == Some(0)
    })
    .await;
    let sent = join_all((0..100).map(|i| send(&a.bus, ingress(), if i == 99 { "end" } else { "x" }))).await;
    assert!(sent.iter().all(|outcome| *outcome == Outcome::Confirmed));
    while take(&mut a.inboxes.ingress).await != "end" {}
}
