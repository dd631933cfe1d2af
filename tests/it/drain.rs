//! A node that is told to stop sends its sessions elsewhere, one after the other, and loses nothing.

use std::future::pending;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::raw_ws::{upgrade_request, RawClient};
use crate::support::user::User;

/// Spread over half a second: what is left of the drain time before its tail.
const DRAIN: &[(&str, &str)] = &[("DRAIN_MS", "2500"), ("WORKERS", "2")];
const SPREAD: Duration = Duration::from_millis(1_000);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_leave_one_after_the_other_each_told_to_come_back() {
    const COUNT: usize = 200;
    let mut cluster = Cluster::start(2, DRAIN).await;
    let addr = cluster.ws(0);
    let users =
        join_all((0..COUNT).map(|at| async move { User::connect(addr, &format!("user{at}")).await })).await;
    let mut node = cluster.nodes.remove(0);
    let began = Instant::now();
    let leaving = users.into_iter().map(|mut user| async move {
        let disconnect = user.expect_close(4200).await;
        assert_eq!(disconnect["reconnect"], true);
        assert!(disconnect["after_ms"].as_u64().unwrap() <= 1_000, "{disconnect}");
        began.elapsed()
    });
    let (gone, ()) = tokio::join!(join_all(leaving), node.drain(pending()));
    assert!(began.elapsed() < Duration::from_millis(2_500), "all were gone early: {:?}", began.elapsed());
    let slice = SPREAD / 10;
    let mut slices = [0usize; 25];
    for at in &gone {
        slices[((at.as_millis() / slice.as_millis()) as usize).min(24)] += 1;
    }
    let largest = slices.iter().max().copied().unwrap();
    assert!(largest <= COUNT * 3 / 10, "a slice of {largest} of {COUNT}: {slices:?}");
    let used = slices.iter().filter(|count| **count > 0).count();
    assert!(used >= 6, "spread over {used} slices: {slices:?}");
    node.stop().await;
}

#[tokio::test]
async fn nobody_new_gets_in_while_a_node_drains() {
    let mut cluster = Cluster::start(2, DRAIN).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let (addr, admin, api) = (cluster.ws(0), cluster.admin(0), cluster.api(0));
    let mut node = cluster.nodes.remove(0);
    let lifecycle = node.lifecycle().clone();
    let looking = async {
        lifecycle.reached(warren::lifecycle::Phase::Draining).await;
        let (status, body) = admin.get("/readyz").await;
        assert_eq!((status, &body["accepting"]), (503, &json!(false)), "{body}");
        assert_eq!(admin.status("/livez").await, 200);
        let (head, _) = RawClient::request(addr, &upgrade_request("/ws?user=bob", "")).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(api.status("/v1/nodes").await, 200, "the API still answers");
        alice.expect_close(4200).await;
    };
    tokio::join!(looking, node.drain(pending()));
    node.stop().await;
    let directory = cluster.nodes[0].router().directory();
    eventually("the other one knows that it left", PATIENCE, || async { directory.peers().is_empty() }).await;
}

#[tokio::test]
async fn messages_to_and_from_a_draining_node_arrive_to_the_end() {
    let mut cluster = Cluster::start(2, &[("DRAIN_MS", "3500"), ("RECEIPT_TIMEOUT_MS", "1000")]).await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    let mut leaving = Vec::new();
    for at in 0..8 {
        leaving.push(User::connect(cluster.ws(0), &format!("user{at}")).await);
    }
    cluster.knows("user7", &[0]).await;
    cluster.knows("bob", &[1]).await;
    let mut node = cluster.nodes.remove(0);
    let draining = async {
        node.drain(pending()).await;
        node
    };
    let talking = leaving.into_iter().enumerate().map(|(at, mut user)| async move {
        // Talks to bob until it is told to go. Every reply that comes says what is true.
        let mut sent = 0u64;
        loop {
            user.request(json!({"type": "publish", "to": "user.bob", "payload": [at, sent]})).await;
            match user.reply_or_end().await {
                Ok(reply) => assert_eq!(reply["outcome"], "delivered", "user{at} {sent}: {reply}"),
                Err(end) => {
                    assert_eq!(end.code, 4200);
                    return sent;
                }
            }
            sent += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let (node, sent) = tokio::join!(draining, join_all(talking));
    assert!(sent.iter().all(|sent| *sent > 0), "{sent:?}");
    // What was replied to as delivered has come, each message once and in order. One more of each may have.
    let mut next = [0; 8];
    while next.iter().zip(&sent).any(|(next, sent)| next < sent) {
        let payload = bob.message().await["payload"].take();
        let (at, number) = (payload[0].as_u64().unwrap() as usize, payload[1].as_u64().unwrap());
        assert_eq!(number, next[at], "user{at}");
        next[at] += 1;
    }
    node.stop().await;
}

#[tokio::test]
async fn a_session_that_still_waits_for_its_turn_is_reached_from_other_nodes() {
    let mut cluster = Cluster::start(2, &[("DRAIN_MS", "3500")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    let mut node = cluster.nodes.remove(0);
    let lifecycle = node.lifecycle().clone();
    let talking = async {
        lifecycle.reached(warren::lifecycle::Phase::Draining).await;
        let reply = bob.publish("user.alice", "before you go").await;
        assert_eq!(reply["outcome"], "delivered", "{reply}");
        assert_eq!(alice.message().await["payload"], "before you go");
        alice.expect_close(4200).await;
        let reply = bob.publish("user.alice", "for later").await;
        assert_eq!(reply["outcome"], "stored", "{reply}");
    };
    tokio::join!(talking, node.drain(pending()));
    node.stop().await;
}

#[tokio::test]
async fn a_second_signal_hurries() {
    let mut cluster = Cluster::start(1, &[("DRAIN_MS", "60000")]).await;
    let addr = cluster.ws(0);
    let mut users =
        join_all((0..50).map(|at| async move { User::connect(addr, &format!("user{at}")).await })).await;
    let mut node = cluster.nodes.remove(0);
    let began = Instant::now();
    let leaving = join_all(users.iter_mut().map(|user| user.expect_close(4200)));
    tokio::join!(leaving, node.drain(std::future::ready(())));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    node.stop().await;
}
