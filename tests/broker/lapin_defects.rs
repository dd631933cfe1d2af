//! Known defects of the client library under load: our bus must not show any of them.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::json;
use warren::bus::{publish_confirmed, Destination, Outcome, Publish};

use crate::broker;
use crate::bus_contract::{peer, send, take, text, to};
use crate::contract::rabbit_bus;

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
