//! Lost, blocked, half-open and refused connections: the bus says so at once and comes back by itself.

use std::time::{Duration, Instant};

use warren::bus::{Bus, Destination, Link, Outcome, Publishing};
use warren::ids::Incarnation;

use crate::broker::{self, PrivateBroker, Vhost};
use crate::bus_contract::{next, peer, ready, send, take, to, Peer};
use crate::contract::rabbit_bus;
use crate::eventually::eventually;
use crate::relay::{Mode, Relay};

const PATIENCE: Duration = Duration::from_secs(20);
/// The promise of the design, from the moment when the broker can be reached again.
const BACK: Duration = Duration::from_secs(5);

async fn through_relay(vhost: &Vhost) -> (Relay, Peer) {
    let relay = Relay::start(vhost.port()).await;
    let a = peer(&|node| rabbit_bus(&relay.url(&vhost.name), node), "a").await;
    (relay, a)
}

async fn until(bus: &dyn Bus, deadline: Duration, wanted: impl FnMut(&Link) -> bool) {
    let mut link = bus.link();
    let reached = tokio::time::timeout(deadline, link.wait_for(wanted)).await.map(|link| link.is_ok());
    assert_eq!(reached, Ok(true), "the link is {:?}", *bus.link().borrow());
}

fn incarnation(peer: &Peer) -> Option<Incarnation> {
    peer.bus.link().borrow().incarnation
}

/// Waits for a new incarnation and a link that works.
async fn back(peer: &mut Peer, before: Option<Incarnation>, deadline: Duration) {
    until(&*peer.bus, deadline, |link| link.ready() && link.incarnation != before).await;
    // One of the two links may be back before the other has noticed that it is gone.
    eventually("publishes are confirmed again", deadline, || async {
        send(&peer.bus, to(&[&peer.id]), "back").await == Outcome::Confirmed
    })
    .await;
    loop {
        // What was in the inbox before the cut is still there, and its tokens are harmless.
        if take(&mut peer.inboxes.node).await == "back" {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_cuts_leave_one_node_queue_with_its_bindings() {
    let vhost = broker::vhost().await;
    let (relay, mut a) = through_relay(&vhost).await;
    for _ in 0..6 {
        let before = incarnation(&a);
        send(&a.bus, to(&[&a.id]), "before the cut").await;
        relay.cut();
        back(&mut a, before, BACK).await;
    }
    let now = incarnation(&a).unwrap().to_string();
    let own = format!("warren.node.a.{now}");
    let of_nodes = |queue: &&String| queue.contains(".a.");
    eventually("the old queues are gone", PATIENCE, || async {
        let queues = vhost.queues().await;
        let all: Vec<_> = queues.iter().filter(of_nodes).collect();
        // The node's, those of control and replies, and three canaries.
        all.len() == 6 && all.iter().all(|queue| queue.ends_with(&now))
    })
    .await;
    assert_eq!(vhost.bindings(&own).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_answers_pending_publishes() {
    let vhost = broker::vhost().await;
    let (relay, mut a) = through_relay(&vhost).await;
    let before = incarnation(&a);
    relay.set(Mode::Pause);
    let started = Instant::now();
    let (outcome, ()) = tokio::join!(send(&a.bus, to(&[&a.id]), "lost"), async { relay.cut() });
    assert_eq!(outcome, Outcome::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    relay.set(Mode::Pass);
    back(&mut a, before, BACK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_broker_costs_a_publish_its_deadline_and_no_more() {
    let vhost = broker::vhost().await;
    let (relay, a) = through_relay(&vhost).await;
    relay.set(Mode::Pause);
    let started = Instant::now();
    assert_eq!(send(&a.bus, to(&[&a.id]), "lost").await, Outcome::Unavailable);
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1200) && took < Duration::from_millis(1550), "{took:?}");
}

/// A broker that says nothing is told from one that is there within 2 s, also when nobody publishes; and from then on
/// publishes fail at once. When it speaks again nothing was torn down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_broker_is_noticed_within_two_seconds() {
    let vhost = broker::vhost().await;
    let (relay, mut a) = through_relay(&vhost).await;
    let before = incarnation(&a);
    // Idle for longer than that: the probes keep the link.
    let mut link = a.bus.link();
    let lost = tokio::time::timeout(Duration::from_secs(4), link.wait_for(|link| !link.ready())).await;
    assert!(lost.is_err(), "the link was lost while the broker was there");
    relay.set(Mode::Pause);
    let started = Instant::now();
    until(&*a.bus, PATIENCE, |link| link.publishing == Publishing::Silent).await;
    assert!(started.elapsed() < Duration::from_millis(2100), "{:?}", started.elapsed());
    assert!(!a.bus.link().borrow().ready());
    let started = Instant::now();
    assert_eq!(send(&a.bus, Destination::Broadcast, "x").await, Outcome::Unavailable);
    assert!(started.elapsed() < Duration::from_millis(100));
    relay.set(Mode::Pass);
    let started = Instant::now();
    until(&*a.bus, PATIENCE, |link| link.ready()).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(incarnation(&a), before);
    assert_eq!(send(&a.bus, to(&[&a.id]), "again").await, Outcome::Confirmed);
    assert_eq!(take(&mut a.inboxes.node).await, "again", "no probe ever gets here");
}

/// An exchange that is gone costs the publishes to it, and no other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_channel_does_not_take_the_link_along() {
    let vhost = broker::vhost().await;
    let a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let mut link = a.bus.link();
    let went_down =
        tokio::spawn(async move { link.wait_for(|link| link.publishing == Publishing::Down).await.is_ok() });
    vhost.management.delete(&format!("exchanges/{}/warren.dead", vhost.name)).await;
    eventually("it is made again", BACK, || async {
        send(&a.bus, Destination::Dead, "x").await == Outcome::Confirmed
    })
    .await;
    assert!(!went_down.is_finished(), "the publishing link stayed up");
    went_down.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_window_refuses_at_once_and_recovers() {
    let vhost = broker::vhost().await;
    let (relay, a) = through_relay(&vhost).await;
    relay.set(Mode::Pause);
    let publishes = (0..5000).map(|_| send(&a.bus, Destination::Broadcast, "x"));
    let outcomes = futures_util::future::join_all(publishes).await;
    let count = |wanted| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    assert_eq!((count(Outcome::Unavailable), count(Outcome::Overloaded)), (4096, 904));
    // What nobody waits for any more still fills the window, until the broker speaks or the link is silent.
    let outcome = send(&a.bus, Destination::Broadcast, "x").await;
    assert!(matches!(outcome, Outcome::Overloaded | Outcome::Unavailable), "{outcome:?}");
    relay.set(Mode::Pass);
    eventually("the window empties", BACK, || async {
        send(&a.bus, Destination::Broadcast, "x").await == Outcome::Confirmed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_does_not_lock_its_successor_out() {
    let vhost = broker::vhost().await;
    let (relay, mut a) = through_relay(&vhost).await;
    let before = incarnation(&a);
    relay.half_open();
    back(&mut a, before, BACK).await;
    // The fourth, that of answers, may open later than the link is up.
    assert!(matches!(relay.kept(), 3 | 4), "the broker still holds all old connections");
    let queues = vhost.queues().await;
    assert_eq!(queues.iter().filter(|queue| queue.starts_with("warren.node.a.")).count(), 2);
}

/// What an operator can do: close the connections of a node, which takes its queues away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connections_are_built_again() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = incarnation(&a);
    let closed = || async {
        // The broker lists a connection some time after it was made.
        vhost.close_connections().await;
        incarnation(&a) != before
    };
    eventually("the connection is closed", PATIENCE, closed).await;
    back(&mut a, before, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_ingress_queue_is_built_again() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    vhost.delete_queue("warren.ingress").await;
    eventually("ingress takes messages again", BACK, || async {
        send(&a.bus, Destination::Ingress("user.1".into()), "x").await == Outcome::Confirmed
    })
    .await;
    assert_eq!(take(&mut a.inboxes.ingress).await, "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_broker_is_tried_until_it_takes_us() {
    let vhost = broker::vhost().await;
    let (relay, mut a) = through_relay(&vhost).await;
    let before = incarnation(&a);
    relay.set(Mode::Refuse);
    relay.cut();
    until(&*a.bus, PATIENCE, |link| *link == Link::default()).await;
    let started = Instant::now();
    assert_eq!(send(&a.bus, Destination::Broadcast, "x").await, Outcome::Unavailable);
    assert!(started.elapsed() < Duration::from_millis(100));
    // Long enough for the waits to reach their ceiling.
    tokio::time::sleep(Duration::from_secs(6)).await;
    relay.set(Mode::Pass);
    back(&mut a, before, BACK).await;
}

/// A killed broker comes back on the same port: durable messages are there, and so are we.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_no_persistent_message() {
    let mut private = PrivateBroker::start().await;
    let mut a = peer(&|node| rabbit_bus(&private.url(), node), "a").await;
    // The first flush of a broker that has just started can take longer than a publish waits.
    eventually("the broker writes to its disk", PATIENCE, || async {
        send(&a.bus, Destination::Ingress("user.1".into()), "durable").await == Outcome::Confirmed
    })
    .await;
    let held = next(&mut a.inboxes.ingress).await;
    let before = incarnation(&a);
    private.kill();
    until(&*a.bus, PATIENCE, |link| *link == Link::default()).await;
    held.ack.ack();
    private.start_again().await;
    let port_open = Instant::now();
    // The port opens when the broker is still booting on some versions; ten times the promise for a slow machine
    // is a failure of another kind, which the assertion after it tells apart.
    until(&*a.bus, BACK * 10, |link| link.ready() && link.incarnation != before).await;
    assert!(port_open.elapsed() < BACK, "{:?}", port_open.elapsed());
    let again = next(&mut a.inboxes.ingress).await;
    assert!(again.redelivered);
    again.ack.ack();
}

/// A memory alarm: publishes fail at once, acknowledgements and deliveries go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_broker_is_noticed_and_still_acknowledged() {
    let private = PrivateBroker::start().await;
    let mut a = peer(&|node| rabbit_bus(&private.url(), node), "a").await;
    for i in 0..50 {
        send(&a.bus, Destination::Ingress("user.1".into()), &i.to_string()).await;
    }
    private.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    // The broker speaks up at the next publish; until then, and not much longer, publishes meet their deadline.
    let blocked = || async {
        send(&a.bus, Destination::Broadcast, "x").await;
        a.bus.link().borrow().publishing == Publishing::Blocked
    };
    eventually("the alarm is heard", PATIENCE, blocked).await;
    let started = Instant::now();
    assert_eq!(send(&a.bus, Destination::Broadcast, "x").await, Outcome::Unavailable);
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    for i in 0..50 {
        assert_eq!(take(&mut a.inboxes.ingress).await, i.to_string());
    }
    let unsettled = || async {
        let queues = private.ctl(&["list_queues", "name", "messages"]).await;
        queues.lines().any(|line| line == "warren.ingress\t0")
    };
    eventually("acknowledgements arrive", PATIENCE, unsettled).await;
    private.ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"]).await;
    ready(&*a.bus).await;
    assert_eq!(send(&a.bus, to(&[&a.id]), "again").await, Outcome::Confirmed);
}
