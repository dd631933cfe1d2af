//! Boxes at RabbitMQ: what of them is at the broker, and what happens when links, boxes and brokers fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;
use warren::bus::rabbit::{RabbitBus, RabbitSettings};
use warren::bus::{Attach, BoxEvent, BoxNumber, BoxSettings, Bus, Inboxes, Outcome};
use warren::config::AmqpUrl;

use crate::box_contract::{
    deposit, deposit_all, giving_back_is_one_step, numbers, read, read_again, round, settings, take_all, ONE,
    U,
};
use crate::broker::{vhost, PrivateBroker};
use crate::bus_contract::{node, ready};
use crate::eventually::eventually;
use crate::relay::Relay;

const PATIENCE: Duration = Duration::from_secs(20);

fn bus_with(url: &str, name: &str, boxes: BoxSettings) -> (Arc<dyn Bus>, Inboxes) {
    let settings = RabbitSettings { boxes, ..RabbitSettings::new(vec![AmqpUrl::parse(url).unwrap()]) };
    let (bus, inboxes) = RabbitBus::start(settings, node(name));
    (bus, inboxes)
}

fn bus(url: &str, name: &str) -> (Arc<dyn Bus>, Inboxes) {
    bus_with(url, name, settings())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_times_the_next_reader_sees_all_or_nothing() {
    let vhost = vhost().await;
    let attach = |node: &warren::ids::NodeId| bus(&vhost.url(), node.as_str());
    giving_back_is_one_step(&attach, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_is_a_durable_queue_with_its_arguments() {
    let vhost = vhost().await;
    let (bus, _inboxes) = bus(&vhost.url(), "a");
    ready(&*bus).await;
    deposit_all(&bus, ONE, 0..1).await;
    let queue = vhost.management.get(&format!("queues/{}/warren.box.8.1", vhost.name)).await;
    let arguments = &queue["arguments"];
    assert_eq!((&queue["durable"], &queue["auto_delete"]), (&json!(true), &json!(false)));
    assert_eq!(arguments["x-message-ttl"], 3_600_000);
    assert_eq!(arguments["x-overflow"], "reject-publish");
    let overview = vhost.management.get("overview").await;
    let version = overview["rabbitmq_version"].as_str().unwrap();
    let old = version.starts_with("3.1") && !version.starts_with("3.12") && !version.starts_with("3.13");
    assert_eq!(arguments.get("x-queue-mode").is_some(), old, "{version}: {arguments}");
    // Another node with another time to live uses the same box.
    let (other, _inboxes) =
        bus_with(&vhost.url(), "b", BoxSettings { ttl: Duration::from_secs(60), ..settings() });
    ready(&*other).await;
    deposit_all(&other, ONE, 1..2).await;
    assert_eq!(take_all(&bus, ONE).await, [0, 1]);
}

/// Until an operator does something about it, a box that is full takes nothing; its mail can be read all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_box_refuses_and_can_be_read() {
    let vhost = vhost().await;
    let policy =
        json!({ "pattern": "^warren\\.box\\.", "definition": { "max-length": 10 }, "apply-to": "queues" });
    vhost.management.put(&format!("policies/{}/small", vhost.name), policy).await;
    let (bus, _inboxes) = bus(&vhost.url(), "a");
    ready(&*bus).await;
    deposit_all(&bus, ONE, 0..1).await;
    let mut refused = 0;
    for n in 1..30 {
        refused += usize::from(deposit(&bus, ONE, &n.to_string()).await == Outcome::Refused);
    }
    assert!(refused >= 15, "{refused}");
    let all = take_all(&bus, ONE).await;
    assert!(all.len() >= 10 && all.is_sorted(), "{all:?}");
    assert_eq!(deposit(&bus, ONE, "7").await, Outcome::Confirmed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_that_an_operator_deletes_is_made_again() {
    let vhost = vhost().await;
    let (bus, _inboxes) = bus(&vhost.url(), "a");
    ready(&*bus).await;
    deposit_all(&bus, ONE, 0..10).await;
    let mut reader = read(&bus, ONE, &[U]).await;
    let (mails, _) = round(&mut reader).await;
    vhost.delete_queue("warren.box.8.1").await;
    while timeout(PATIENCE, reader.events.recv()).await.expect("an end").is_some() {}
    eventually("the tokens are void", PATIENCE, || async { mails.iter().all(|mail| mail.ack.is_void()) })
        .await;
    assert!(matches!(bus.attach_box(ONE, vec![U]).await, Ok(Attach::Missing)));
    // In flight together: all of them find no box, and are stored in their order.
    deposit_all(&bus, ONE, 0..500).await;
    assert_eq!(take_all(&bus, ONE).await, (0..500).collect::<Vec<_>>());
    // While deposits are on their way.
    for n in 0..5 {
        let depositing = deposit_all(&bus, ONE, 0..300);
        let deleting = vhost.delete_queue("warren.box.8.1");
        tokio::join!(depositing, deleting);
        deposit_all(&bus, ONE, 300..301).await;
        let all = take_all(&bus, ONE).await;
        assert!(all.is_sorted() && all.last() == Some(&300), "round {n}: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_deposit_is_quick() {
    let vhost = vhost().await;
    let boxes = BoxSettings { boxes: std::num::NonZeroU32::new(1024).unwrap(), ..settings() };
    let (bus, _inboxes) = bus_with(&vhost.url(), "a", boxes);
    ready(&*bus).await;
    deposit_all(&bus, BoxNumber(1000), 0..1).await;
    let mut took = vec![];
    for number in 0..50 {
        let begun = Instant::now();
        deposit_all(&bus, BoxNumber(number), 0..1).await;
        took.push(begun.elapsed());
    }
    took.sort();
    println!("first deposits: median {:?}, slowest {:?}", took[25], took[49]);
    // Ten times what it takes on an idle machine.
    assert!(took[25] < Duration::from_millis(100), "{took:?}");
}

/// The link of a reader is cut at a random moment, again and again; nothing is lost, and the order holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_link_gives_the_mail_back() {
    let vhost = vhost().await;
    let relay = Relay::start(vhost.port()).await;
    let (far, _far_inboxes) = bus(&relay.url(&vhost.name), "far");
    let (near, _near_inboxes) = bus(&vhost.url(), "near");
    ready(&*far).await;
    ready(&*near).await;
    deposit_all(&near, ONE, 0..500).await;
    let mut first = 0;
    for step in 0..8u32 {
        let cutting = async {
            // The first cut may come before there is a reading.
            loop {
                tokio::time::sleep(Duration::from_millis(u64::from(step))).await;
                relay.cut();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let reading = async {
            let mut acked = 0;
            if let Ok(Attach::Reading(mut reader)) = far.attach_box(ONE, vec![U]).await {
                while let Some(event) = timeout(PATIENCE, reader.events.recv()).await.expect("an end") {
                    if let BoxEvent::Mail(mail) = event {
                        if acked < 3 {
                            mail.ack.ack();
                            acked += 1;
                        }
                    }
                }
            }
            acked
        };
        let acked = tokio::select! {
            acked = reading => acked,
            () = cutting => unreachable!(),
        };
        let mut reader = read_again(&near, ONE, &[U]).await;
        let (mails, _) = round(&mut reader).await;
        let seen = numbers(&mails);
        // What was acknowledged may or may not have arrived.
        let (lowest, highest) = (first, first + acked);
        assert!((lowest..=highest).contains(&seen[0]), "step {step}: {} after {first} + {acked}", seen[0]);
        assert!(seen.iter().copied().eq(seen[0]..500), "step {step}: {} mails", seen.len());
        first = seen[0];
        reader.close_cleanly().await;
        eventually("the far one is back", PATIENCE, || async { far.link().borrow().ready() }).await;
    }
    // Deposits over the link that was cut so often.
    eventually("deposits go on", PATIENCE, || async {
        deposit(&far, ONE, "500").await == Outcome::Confirmed
    })
    .await;
    let all = take_all(&near, ONE).await;
    assert_eq!(all.first(), Some(&first));
}

/// The broker gives back what a killed connection held before it lets another reader in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_gives_back_in_one_step() {
    let vhost = vhost().await;
    let relay = Relay::start(vhost.port()).await;
    let (far, _far_inboxes) = bus(&relay.url(&vhost.name), "far");
    let (near, _near_inboxes) = bus(&vhost.url(), "near");
    ready(&*near).await;
    deposit_all(&near, ONE, 0..2000).await;
    for step in 0..8 {
        ready(&*far).await;
        let mut reader = read_again(&far, ONE, &[U]).await;
        let (mails, _) = round(&mut reader).await;
        assert_eq!(mails.len(), 2000);
        relay.cut();
        let mut reader = read_again(&near, ONE, &[U]).await;
        let (mails, abandoned) = round(&mut reader).await;
        assert!(numbers(&mails).into_iter().eq(0..2000), "step {step}: {} mails", mails.len());
        // One more when the broker was late to confirm it.
        assert!(abandoned.len() > step, "each left its marker: {abandoned:?}");
        reader.close_cleanly().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_survives_the_broker() {
    let mut broker = PrivateBroker::start().await;
    let (bus, _inboxes) = bus(&broker.url(), "a");
    ready(&*bus).await;
    deposit_all(&bus, ONE, 0..200).await;
    broker.kill();
    eventually("the loss is seen", PATIENCE, || async { !bus.link().borrow().ready() }).await;
    assert_eq!(deposit(&bus, ONE, "7").await, Outcome::Unavailable);
    assert!(bus.attach_box(ONE, vec![U]).await.is_err());
    broker.start_again().await;
    ready(&*bus).await;
    assert_eq!(take_all(&bus, ONE).await, (0..200).collect::<Vec<_>>());
}
