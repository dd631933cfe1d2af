//! What an operator deletes comes back on a live node, and the node says meanwhile that something is missing.

use std::time::Duration;

use serde_json::json;
use warren::bus::{Destination, Outcome, TopologyState};

use crate::broker::{self, Vhost};
use crate::bus_contract::{peer, send, take, to, Peer};
use crate::contract::rabbit_bus;
use crate::eventually::eventually;

/// The promise: from the deletion until everything works again.
const BACK: Duration = Duration::from_secs(30);

async fn delete(vhost: &Vhost, what: &str) {
    vhost.management.delete(what).await;
}

async fn seen(peer: &Peer, state: TopologyState, what: &str) {
    let mut link = peer.bus.link();
    let reached = tokio::time::timeout(BACK, link.wait_for(|link| link.topology == state)).await;
    assert!(reached.is_ok(), "{what}: the topology is never {state:?}");
}

/// Every door works: what goes in comes out.
async fn works(peer: &mut Peer) {
    for (to, name) in [(Destination::Broadcast, "broadcast"), (to(&[&peer.id]), "direct")] {
        eventually(name, BACK, || async { send(&peer.bus, to.clone(), name).await == Outcome::Confirmed })
            .await;
        while take(&mut peer.inboxes.node).await != name {}
    }
    assert_eq!(send(&peer.bus, Destination::Control, "control").await, Outcome::Confirmed);
    while take(&mut peer.inboxes.control).await != "control" {}
    eventually("ingress", BACK, || async {
        send(&peer.bus, Destination::Ingress("user.1".into()), "ingress").await == Outcome::Confirmed
    })
    .await;
    while take(&mut peer.inboxes.ingress).await != "ingress" {}
    eventually("dead", BACK, || async {
        send(&peer.bus, Destination::Dead, "dead").await == Outcome::Confirmed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_exchanges_come_back_with_their_bindings() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = a.bus.link().borrow().incarnation;
    for exchange in ["warren.control", "warren.broadcast", "warren.direct", "warren.ingress", "warren.dead"] {
        delete(&vhost, &format!("exchanges/{}/{exchange}", vhost.name)).await;
        seen(&a, TopologyState::Damaged, exchange).await;
        seen(&a, TopologyState::Whole, exchange).await;
        works(&mut a).await;
    }
    assert_eq!(a.bus.link().borrow().incarnation, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_bindings_come_back() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let before = a.bus.link().borrow().incarnation;
    // The broker lets nobody else unbind an exclusive queue; an exchange that was made again has no bindings.
    for (exchange, kind) in
        [("warren.broadcast", "fanout"), ("warren.direct", "direct"), ("warren.control", "fanout")]
    {
        let path = format!("exchanges/{}/{exchange}", vhost.name);
        delete(&vhost, &path).await;
        vhost.management.put(&path, json!({ "type": kind, "durable": true })).await;
        seen(&a, TopologyState::Damaged, exchange).await;
        seen(&a, TopologyState::Whole, exchange).await;
        works(&mut a).await;
    }
    assert_eq!(a.bus.link().borrow().incarnation, before);
    // No probes go into the dead letters, so that nobody sees that this binding is missing; it comes back all the same.
    for (exchange, key, is_seen) in [("warren.ingress", "%23", true), ("warren.dead", "~", false)] {
        delete(&vhost, &format!("bindings/{}/e/{exchange}/q/{exchange}/{key}", vhost.name)).await;
        if is_seen {
            seen(&a, TopologyState::Damaged, exchange).await;
            seen(&a, TopologyState::Whole, exchange).await;
        }
        eventually("it is bound again", BACK, || async { vhost.bindings(exchange).await.len() == 1 }).await;
        works(&mut a).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_durable_queues_come_back() {
    let vhost = broker::vhost().await;
    let mut a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    for queue in ["warren.dead", "warren.ingress"] {
        vhost.delete_queue(queue).await;
        eventually("it is there again", BACK, || async { vhost.bindings(queue).await.len() == 1 }).await;
        works(&mut a).await;
    }
}

/// A node that drains stays unbound, however often the others' things are looked after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_left_is_not_bound_again() {
    let vhost = broker::vhost().await;
    let a = peer(&|node| rabbit_bus(&vhost.url(), node), "a").await;
    let own = format!("warren.node.a.{}", a.bus.link().borrow().incarnation.unwrap());
    a.bus.leave();
    eventually("it is unbound", BACK, || async { vhost.bindings(&own).await.is_empty() }).await;
    delete(&vhost, &format!("exchanges/{}/warren.control", vhost.name)).await;
    seen(&a, TopologyState::Damaged, "warren.control").await;
    seen(&a, TopologyState::Whole, "warren.control").await;
    assert!(vhost.bindings(&own).await.is_empty());
}

/// A policy that throws mail away is found within the promised time, and so is its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_loses_mail_is_noticed() {
    let vhost = broker::vhost().await;
    let policy = format!("policies/{}/test", vhost.name);
    let (ttl, expires) = (json!({ "message-ttl": 1000 }), json!({ "expires": 1000 }));
    // A broker applies `message-ttl` to messages that come after it: `late` is when the node has been there for long.
    for (definition, pattern, id, late) in [
        (&ttl, "^warren", "a", false),
        (&expires, "^warren.box", "b", false),
        (&ttl, "^warren.box", "c", true),
    ] {
        let body = json!({ "pattern": pattern, "definition": definition, "apply-to": "queues" });
        if !late {
            vhost.management.put(&policy, body.clone()).await;
        }
        let a = peer(&|node| rabbit_bus(&vhost.url(), node), id).await;
        if late {
            let canary = format!("warren.box.canary.{id}.{}", a.bus.link().borrow().incarnation.unwrap());
            eventually("its first message is there", BACK, || async {
                vhost.messages(&canary).await > Some(0)
            })
            .await;
            vhost.management.put(&policy, body).await;
        }
        seen(&a, TopologyState::Damaged, pattern).await;
        assert!(a.bus.link().borrow().ready(), "it works on as well as it can");
        delete(&vhost, &policy).await;
        eventually("it is whole again", Duration::from_secs(60), || async {
            a.bus.link().borrow().topology == TopologyState::Whole
        })
        .await;
    }
}
