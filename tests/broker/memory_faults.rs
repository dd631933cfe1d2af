//! The faults that the memory broker plays for other tests: they must look like the real ones.

use std::sync::Arc;
use std::time::Duration;

use warren::bus::memory::MemoryBroker;
use warren::bus::{Bus, Destination, Inboxes, Link, Outcome, Publishing};
use warren::ids::NodeId;

use crate::bus_contract::{body, next, peer, ready, send, take, to};
use crate::eventually::eventually;

fn attach(broker: &Arc<MemoryBroker>) -> impl Fn(&NodeId) -> (Arc<dyn Bus>, Inboxes) + '_ {
    |node| {
        let (bus, inboxes) = broker.attach(node.clone());
        (bus, inboxes)
    }
}

#[tokio::test]
async fn a_cut_node_is_unroutable_and_comes_back_as_another_incarnation() {
    let broker = MemoryBroker::new();
    let mut a = peer(&attach(&broker), "a").await;
    let mut b = peer(&attach(&broker), "b").await;
    send(&b.bus, Destination::Ingress("user.1".into()), "held").await;
    let held = next(&mut a.inboxes.ingress).await;
    let before = a.bus.link().borrow().incarnation;
    broker.cut(&a.id);
    assert_eq!(*a.bus.link().borrow(), Link::default());
    assert_eq!(send(&a.bus, Destination::Broadcast, "x").await, Outcome::Unavailable);
    assert_eq!(send(&b.bus, to(&[&a.id]), "x").await, Outcome::Unroutable);
    let moved = next(&mut b.inboxes.ingress).await;
    assert_eq!((body(&moved).as_str(), moved.redelivered), ("held", true));
    moved.ack.ack();
    // Too late: the delivery is not this node's any more.
    held.ack.ack();
    broker.restore(&a.id);
    ready(&*a.bus).await;
    assert_ne!(a.bus.link().borrow().incarnation, before);
    assert_eq!(send(&b.bus, to(&[&a.id]), "again").await, Outcome::Confirmed);
    assert_eq!(take(&mut a.inboxes.node).await, "again");
}

#[tokio::test]
async fn a_killed_node_is_gone_for_good() {
    let broker = MemoryBroker::new();
    let a = peer(&attach(&broker), "a").await;
    let b = peer(&attach(&broker), "b").await;
    broker.kill(&a.id);
    broker.restore(&a.id);
    assert_eq!(send(&b.bus, to(&[&a.id]), "x").await, Outcome::Unroutable);
    // Its successor under the same name is not ended when the dead one's bus is dropped.
    let mut successor = peer(&attach(&broker), "a").await;
    drop(a);
    assert_eq!(send(&b.bus, to(&[&successor.id]), "x").await, Outcome::Confirmed);
    assert_eq!(take(&mut successor.inboxes.node).await, "x");
}

#[tokio::test]
async fn a_frozen_node_takes_messages_and_hands_none_out() {
    let broker = MemoryBroker::with_node_queue_max(3);
    let mut a = peer(&attach(&broker), "a").await;
    broker.freeze(&a.id, true);
    for i in 0..5 {
        assert_eq!(send(&a.bus, to(&[&a.id]), &i.to_string()).await, Outcome::Confirmed);
    }
    assert!(a.inboxes.node.try_recv().is_err());
    broker.freeze(&a.id, false);
    // The queue is full at three; the oldest went.
    for i in 2..5 {
        assert_eq!(take(&mut a.inboxes.node).await, i.to_string());
    }
}

#[tokio::test]
async fn a_blocked_broker_refuses_at_once_and_goes_on_delivering() {
    let broker = MemoryBroker::new();
    broker.declare_queue("replies");
    let mut a = peer(&attach(&broker), "a").await;
    send(&a.bus, to(&[&a.id]), "before").await;
    broker.block(true);
    assert_eq!(a.bus.link().borrow().publishing, Publishing::Blocked);
    assert_eq!(send(&a.bus, Destination::Queue("replies".into()), "x").await, Outcome::Unavailable);
    assert_eq!(take(&mut a.inboxes.node).await, "before");
    broker.block(false);
    assert_eq!(send(&a.bus, Destination::Queue("replies".into()), "reply").await, Outcome::Confirmed);
    assert_eq!(send(&a.bus, Destination::Dead, "bad").await, Outcome::Confirmed);
    eventually("both are kept", Duration::from_secs(1), || async {
        broker.queued("replies").len() == 1 && broker.dead().len() == 1
    })
    .await;
}
