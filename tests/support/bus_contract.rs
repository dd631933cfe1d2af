//! What every implementation of `Bus` promises, as tests that are run against each of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::timeout;
use warren::bus::{
    publish_confirmed, Bus, Delivery, Destination, Inboxes, Lane, Outcome, Properties, Publish, Via,
};
use warren::ids::{AppKey, NodeId};

use crate::eventually::eventually;

/// Connects a node to the broker under test.
pub type Attach<'a> = &'a dyn Fn(&NodeId) -> (Arc<dyn Bus>, Inboxes);

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Peer {
    pub id: NodeId,
    pub bus: Arc<dyn Bus>,
    pub inboxes: Inboxes,
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A node whose link is up.
pub async fn peer(attach: Attach<'_>, name: &str) -> Peer {
    let id = node(name);
    let (bus, inboxes) = attach(&id);
    ready(&*bus).await;
    Peer { id, bus, inboxes }
}

pub async fn ready(bus: &dyn Bus) {
    let mut link = bus.link();
    let up = timeout(PATIENCE, link.wait_for(|link| link.ready())).await;
    up.expect("the link is up in time").unwrap();
}

pub fn text(to: Destination, body: &str) -> Publish {
    Publish {
        to,
        properties: Properties::default(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        order_key: 0,
        lane: Lane::Bulk,
    }
}

pub fn to(nodes: &[&NodeId]) -> Destination {
    Destination::Nodes(nodes.iter().map(|node| (*node).clone()).collect())
}

pub async fn send(bus: &Arc<dyn Bus>, to: Destination, body: &str) -> Outcome {
    publish_confirmed(&**bus, text(to, body)).await
}

pub async fn next(inbox: &mut mpsc::Receiver<Delivery>) -> Delivery {
    timeout(PATIENCE, inbox.recv()).await.expect("a delivery in time").expect("an open inbox")
}

pub fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.to_vec()).unwrap()
}

/// Takes one delivery, acknowledges it and tells its body.
pub async fn take(inbox: &mut mpsc::Receiver<Delivery>) -> String {
    let delivery = next(inbox).await;
    let text = body(&delivery);
    delivery.ack.ack();
    text
}

/// Waits until the peer is the one that gets ingress; it must be the only one so far.
async fn active_at_ingress(peer: &mut Peer) {
    send(&peer.bus, Destination::Ingress("user.0".into()), "active?").await;
    assert_eq!(take(&mut peer.inboxes.ingress).await, "active?");
}

/// Publishes a mark that must be the next to arrive: nothing unexpected came before it.
async fn nothing_before_mark(from: &Peer, to_peer: &mut Peer) {
    assert_eq!(send(&from.bus, to(&[&to_peer.id]), "mark").await, Outcome::Confirmed);
    assert_eq!(take(&mut to_peer.inboxes.node).await, "mark");
}

pub async fn every_door_leads_where_it_says(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    active_at_ingress(&mut a).await;
    let mut b = peer(attach, "b").await;
    let mut c = peer(attach, "c").await;

    assert_eq!(send(&a.bus, Destination::Broadcast, "all").await, Outcome::Confirmed);
    for peer in [&mut a, &mut b, &mut c] {
        let delivery = next(&mut peer.inboxes.node).await;
        assert_eq!((delivery.via, body(&delivery).as_str()), (Via::Broadcast, "all"));
        delivery.ack.ack();
    }

    assert_eq!(send(&a.bus, to(&[&b.id, &c.id]), "two").await, Outcome::Confirmed);
    for peer in [&mut b, &mut c] {
        let delivery = next(&mut peer.inboxes.node).await;
        assert_eq!((delivery.via, body(&delivery).as_str()), (Via::Direct, "two"));
        delivery.ack.ack();
    }
    let (from, mut to_self) = (peer(attach, "d").await, a);
    nothing_before_mark(&from, &mut to_self).await;

    assert_eq!(send(&b.bus, Destination::Control, "gossip").await, Outcome::Confirmed);
    for peer in [&mut to_self, &mut b, &mut c] {
        let delivery = next(&mut peer.inboxes.control).await;
        assert_eq!((delivery.via, body(&delivery).as_str()), (Via::Control, "gossip"));
        delivery.ack.ack();
    }

    let ingress = Destination::Ingress("user.7".into());
    assert_eq!(send(&c.bus, ingress, "order").await, Outcome::Confirmed);
    let delivery = next(&mut to_self.inboxes.ingress).await;
    assert_eq!((delivery.via, delivery.routing_key.as_str()), (Via::Ingress, "user.7"));
    delivery.ack.ack();

    assert_eq!(send(&c.bus, Destination::Dead, "dead").await, Outcome::Confirmed);
}

pub async fn properties_arrive(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    let properties = Properties {
        message_id: Some("m-1".into()),
        kind: Some("greeting".into()),
        content_type: Some("application/json".into()),
        correlation_id: Some("c-1".into()),
        reply_to: Some("somewhere".into()),
        expiration: Some("60000".into()),
        timestamp: Some(1_000),
        persistent: Some(false),
        app_id: Some("shop".into()),
        user_id: None,
        headers: smallvec::smallvec![("traceparent".into(), "00-ab-cd-01".into())],
        unreadable: None,
    };
    let publish = Publish { properties: properties.clone(), ..text(to(&[&a.id]), "x") };
    assert_eq!(publish_confirmed(&*a.bus, publish).await, Outcome::Confirmed);
    let delivery = next(&mut a.inboxes.node).await;
    // The bus says for whom it speaks, where there are accounts.
    let user_id = a.bus.account().map(str::to_owned);
    assert_eq!(delivery.properties, Properties { user_id, ..properties });
    assert!(!delivery.redelivered);
}

/// Each node has a reply queue of its own, which anybody reaches by its name.
pub async fn answers_come_to_the_node_that_asked(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    let mut b = peer(attach, "b").await;
    let [of_a, of_b] = [&a, &b].map(|peer| peer.bus.reply_queue().unwrap());
    assert_eq!(send(&b.bus, Destination::Queue(of_a.clone()), "to a").await, Outcome::Confirmed);
    assert_eq!(send(&a.bus, Destination::Queue(of_b), "to b").await, Outcome::Confirmed);
    for (peer, expected) in [(&mut a, "to a"), (&mut b, "to b")] {
        let delivery = next(&mut peer.inboxes.replies).await;
        assert_eq!((delivery.via, body(&delivery).as_str()), (Via::Replies, expected));
        delivery.ack.ack();
    }
    let nobody = Destination::Application(AppKey::new("nobody.listens").unwrap());
    assert_eq!(send(&a.bus, nobody, "x").await, Outcome::Unroutable);
    a.bus.close();
    eventually("the queue ends with its node", PATIENCE, || async {
        send(&b.bus, Destination::Queue(of_a.clone()), "late").await == Outcome::Unroutable
    })
    .await;
}

pub async fn a_gone_node_is_unroutable(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    let gone = node("gone");
    assert_eq!(send(&a.bus, to(&[&gone]), "x").await, Outcome::Unroutable);
    assert_eq!(send(&a.bus, to(&[&gone, &a.id]), "x").await, Outcome::Confirmed);
    assert_eq!(take(&mut a.inboxes.node).await, "x");
    assert_eq!(send(&a.bus, Destination::Queue("no-such-queue".into()), "x").await, Outcome::Unroutable);
    assert_ne!(send(&a.bus, to(&[]), "x").await, Outcome::Confirmed);
}

pub async fn returns_are_told_apart_under_pipelining(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    let gone = node("gone");
    for round in 0..10 {
        let publishes = (0..200).map(|i| {
            let target = if i % 2 == 0 { &a.id } else { &gone };
            let publish = Publish { order_key: i / 100, ..text(to(&[target]), &i.to_string()) };
            publish_confirmed(&*a.bus, publish)
        });
        let outcomes = join_all(publishes).await;
        for (i, outcome) in outcomes.into_iter().enumerate() {
            let wanted = if i % 2 == 0 { Outcome::Confirmed } else { Outcome::Unroutable };
            assert_eq!(outcome, wanted, "round {round}, publish {i}");
        }
        for _ in 0..100 {
            take(&mut a.inboxes.node).await;
        }
    }
}

pub async fn one_order_key_keeps_the_order(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    let b = peer(attach, "b").await;
    let mut last = [None; 3];
    // In parts that a busy machine confirms within the deadline.
    for part in (0..3000u64).collect::<Vec<_>>().chunks(500) {
        let publishes =
            part.iter().map(|i| Publish { order_key: i % 3, ..text(to(&[&a.id]), &i.to_string()) });
        let publishes: Vec<_> = publishes.map(|publish| publish_confirmed(&*b.bus, publish)).collect();
        let outcomes = join_all(publishes).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "{outcomes:?}");
        for _ in part {
            let number: u64 = take(&mut a.inboxes.node).await.parse().unwrap();
            let key = (number % 3) as usize;
            assert!(last[key] < Some(number), "{number} after {:?}", last[key]);
            last[key] = Some(number);
        }
    }
}

pub async fn a_dropped_token_requeues(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    for door in [to(&[&a.id]), Destination::Ingress("user.1".into())] {
        let inbox = match door {
            Destination::Ingress(_) => &mut a.inboxes.ingress,
            _ => &mut a.inboxes.node,
        };
        send(&a.bus, door, "again").await;
        drop(next(inbox).await);
        let delivery = next(inbox).await;
        assert_eq!(body(&delivery), "again");
        assert!(delivery.redelivered);
        delivery.ack.ack();
    }
    let mut a = a;
    let from = peer(attach, "b").await;
    nothing_before_mark(&from, &mut a).await;
}

/// More deliveries than the widest prefetch, settled in the worst order and from many tasks at once.
pub async fn verdicts_may_come_in_any_order(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    for round in 0..3 {
        let publishes = (0..2000).map(|i| send(&a.bus, to(&[&a.id]), if i % 2 == 0 { "x" } else { "y" }));
        let publishing = join_all(publishes);
        let receiving = async {
            for _ in 0..4 {
                let mut held = vec![];
                for _ in 0..500 {
                    held.push(next(&mut a.inboxes.node).await);
                }
                held[1..].reverse();
                let tasks: Vec<_> = held
                    .into_iter()
                    .map(|delivery| tokio::spawn(async move { delivery.ack.ack() }))
                    .collect();
                join_all(tasks).await;
            }
        };
        let (outcomes, ()) = tokio::join!(publishing, receiving);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "round {round}");
    }
    let from = peer(attach, "b").await;
    nothing_before_mark(&from, &mut a).await;
}

pub async fn ingress_has_one_consumer_and_fails_over(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    active_at_ingress(&mut a).await;
    let mut b = peer(attach, "b").await;
    for i in 0..20 {
        send(&b.bus, Destination::Ingress("user.1".into()), &i.to_string()).await;
    }
    let mut held = vec![];
    for i in 0..20 {
        let delivery = next(&mut a.inboxes.ingress).await;
        assert_eq!(body(&delivery), i.to_string());
        held.push(delivery);
    }
    assert!(b.inboxes.ingress.try_recv().is_err());
    for delivery in held.drain(..10) {
        delivery.ack.ack();
    }
    // Until the broker has seen the acknowledgements, the failover hands out more than is asserted.
    let mut seen = BTreeSet::new();
    a.bus.close();
    for _ in 10..20 {
        loop {
            let delivery = next(&mut b.inboxes.ingress).await;
            assert!(delivery.redelivered);
            let number: u64 = body(&delivery).parse().unwrap();
            delivery.ack.ack();
            if number >= 10 {
                seen.insert(number);
                break;
            }
        }
    }
    assert_eq!(seen, (10..20).collect());
    send(&b.bus, Destination::Ingress("user.1".into()), "next").await;
    assert_eq!(take(&mut b.inboxes.ingress).await, "next");
}

pub async fn leaving_ends_new_deliveries_only(attach: Attach<'_>) {
    let mut a = peer(attach, "a").await;
    active_at_ingress(&mut a).await;
    let mut b = peer(attach, "b").await;
    send(&b.bus, to(&[&a.id]), "before").await;
    send(&b.bus, Destination::Ingress("user.1".into()), "held").await;
    let held = next(&mut a.inboxes.ingress).await;
    a.bus.leave();
    eventually("nothing leads to the leaver", PATIENCE, || async {
        send(&b.bus, to(&[&a.id]), "late").await == Outcome::Unroutable
    })
    .await;
    assert_eq!(take(&mut a.inboxes.node).await, "before");
    // Ingress goes to the other node; what the leaver holds is still its own to settle.
    send(&b.bus, Destination::Ingress("user.1".into()), "moved").await;
    let moved = loop {
        tokio::select! {
            // It was on its way already: the leaver hands it back.
            late = a.inboxes.ingress.recv() => drop(late),
            moved = next(&mut b.inboxes.ingress) => break moved,
        }
    };
    assert_eq!(body(&moved), "moved");
    moved.ack.ack();
    held.ack.ack();
    // It still publishes and still hears gossip.
    assert_eq!(send(&a.bus, to(&[&b.id]), "bye").await, Outcome::Confirmed);
    assert_eq!(take(&mut b.inboxes.node).await, "bye");
    send(&b.bus, Destination::Control, "gossip").await;
    assert_eq!(take(&mut a.inboxes.control).await, "gossip");
    assert!(a.bus.link().borrow().ready());
}

pub async fn closing_answers_every_publish(attach: Attach<'_>) {
    let a = peer(attach, "a").await;
    let answers = Arc::new(AtomicUsize::new(0));
    for i in 0..500 {
        if i == 250 {
            a.bus.close();
        }
        let answers = answers.clone();
        let done = Box::new(move |_| {
            answers.fetch_add(1, Ordering::SeqCst);
        });
        a.bus.publish(text(to(&[&a.id]), "x"), done);
    }
    eventually("each is answered", PATIENCE, || async { answers.load(Ordering::SeqCst) == 500 }).await;
    assert!(!a.bus.link().borrow().ready());
    assert_eq!(send(&a.bus, Destination::Broadcast, "x").await, Outcome::Unavailable);
}
