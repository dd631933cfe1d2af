//! Answers to backends: bad names among good ones, and what they cost the others.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tokio::time::{sleep, timeout};
use warren::bus::{publish_confirmed, Bus, Destination, Lane, Outcome, Publish};

use crate::broker::vhost;
use crate::bus_contract::{peer, send, text, to};
use crate::contract::rabbit_bus;

const PATIENCE: Duration = Duration::from_secs(20);

fn reply(to: &str, body: &str) -> Publish {
    Publish { lane: Lane::Reply, ..text(Destination::Queue(to.to_owned()), body) }
}

async fn answer(bus: &Arc<dyn Bus>, to: &str, body: &str) -> Outcome {
    publish_confirmed(&**bus, reply(to, body)).await
}

/// 34 names over which the broker closes, beside 270 good answers, within 10 s: every good one is confirmed, and the
/// messages between nodes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_names_cost_nobody_else_anything() {
    let vhost = vhost().await;
    let connection = Connection::connect(&vhost.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("good".into(), durable, FieldTable::default()).await.unwrap();
    let a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = *a.bus.link().borrow();
    let bad = (0..34).map(|n| {
        let bus = a.bus.clone();
        async move {
            sleep(Duration::from_millis(294 * n)).await;
            // Some are seen to be bad; over the others the broker closes the connection.
            let id = if n % 2 == 0 { "x".to_owned() } else { format!("eHh4eHh4eHh4eHh4{n:04}") };
            answer(&bus, &format!("amq.rabbitmq.reply-to.{id}.y{n}"), "x").await
        }
    });
    let good = (0..270).map(|n| {
        let bus = a.bus.clone();
        async move {
            sleep(Duration::from_millis(37 * n)).await;
            answer(&bus, "good", &n.to_string()).await
        }
    });
    let others = (0..500).map(|n| {
        let (bus, id) = (a.bus.clone(), a.id.clone());
        async move {
            sleep(Duration::from_millis(20 * n)).await;
            send(&bus, to(&[&id]), "x").await
        }
    });
    let (bad, good, others) = tokio::join!(join_all(bad), join_all(good), join_all(others));
    assert!(good.iter().all(|outcome| *outcome == Outcome::Confirmed), "{good:?}");
    assert!(others.iter().all(|outcome| *outcome == Outcome::Confirmed), "{others:?}");
    println!("bad names: {bad:?}");
    assert_eq!(*a.bus.link().borrow(), before);
}

/// All at once: the innocent ones in flight beside a bad one are published again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bad_name_is_found_among_good_ones() {
    let vhost = vhost().await;
    let connection = Connection::connect(&vhost.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("good".into(), durable, FieldTable::default()).await.unwrap();
    let a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    while answer(&a.bus, "good", "ready?").await != Outcome::Confirmed {}
    for round in 0..5 {
        let answers = (0..40).map(|n| {
            let name = if n == 20 {
                format!("amq.rabbitmq.reply-to.eHh4eHh4eHh4eHh4000{round}.y")
            } else {
                "good".to_owned()
            };
            let bus = a.bus.clone();
            async move { answer(&bus, &name, "x").await }
        });
        let mut outcomes = join_all(answers).await;
        let bad = outcomes.remove(20);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "round {round}: {outcomes:?}");
        println!("the bad one: {bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_reply_arrives() {
    let vhost = vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let connection = Connection::connect(&vhost.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = channel
        .basic_consume("amq.rabbitmq.reply-to".into(), "".into(), options, FieldTable::default())
        .await
        .unwrap();
    let properties = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
    channel
        .basic_publish(
            "warren.ingress".into(),
            "user.1".into(),
            BasicPublishOptions::default(),
            b"x",
            properties,
        )
        .await
        .unwrap();
    let delivery = crate::bus_contract::next(&mut a.inboxes.ingress).await;
    let name = delivery.properties.reply_to.clone().unwrap();
    delivery.ack.ack();
    assert_eq!(answer(&a.bus, &name, "done").await, Outcome::Confirmed);
    let reply = timeout(PATIENCE, replies.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(reply.data, b"done");
    // Unroutable and reserved names.
    assert_eq!(answer(&a.bus, "nobody", "x").await, Outcome::Unroutable);
    assert_eq!(answer(&a.bus, "warren.box.1024.1", "x").await, Outcome::Refused);
}
