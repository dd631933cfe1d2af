//! Users who come and go, nodes that restart, the same message from two sides: what must hold whatever happens.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use serde_json::{json, Value};

use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::user::User;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flapping_users_leave_no_trace() {
    let cluster = Cluster::start(2, &[("WORKERS", "2")]).await;
    let cluster = &cluster;
    let flapping = (0..20).map(|user| async move {
        for round in 0..20 {
            let session = User::connect(cluster.ws(round % 2), &format!("user{}", user % 5)).await;
            // Half of them say goodbye.
            if round % 4 < 2 {
                session.leave().await;
            }
        }
    });
    join_all(flapping).await;
    for user in 0..5 {
        cluster.knows(&format!("user{user}"), &[]).await;
    }
    for (at, node) in cluster.nodes.iter().enumerate() {
        assert_eq!((node.router().hub().sessions(), node.router().hub().users()), (0, 0));
        let metrics = cluster.admin(at).request(reqwest::Method::GET, "/metrics").send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let sum = |name: &str| -> u64 {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        assert_eq!((sum("warren_sessions_opened_total"), sum("warren_sessions_closed_total")), (200, 200));
    }
}

#[tokio::test]
async fn the_same_message_from_two_nodes_at_once_is_seen_once() {
    const COUNT: usize = 300;
    let cluster = Cluster::start(3, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut one = User::connect(cluster.ws(1), "bob").await;
    let mut two = User::connect(cluster.ws(2), "bob").await;
    cluster.knows("alice", &[0]).await;
    let frame = |at: usize| json!({"type": "publish", "to": "user.alice", "message_id": format!("m{at}"), "payload": at});
    for at in 0..COUNT {
        let (from_one, from_two) = tokio::join!(one.ask(frame(at)), two.ask(frame(at)));
        for reply in [from_one, from_two] {
            assert_eq!((&reply["outcome"], &reply["sessions"]), (&json!("delivered"), &json!(1)), "{reply}");
        }
    }
    assert_eq!(one.publish("user.alice", "mark").await["outcome"], "delivered");
    let mut expected: Vec<Value> = (0..COUNT).map(Value::from).collect();
    expected.push("mark".into());
    assert_eq!(alice.payloads(COUNT + 1).await, expected);
}

#[tokio::test]
async fn a_node_that_restarts_under_its_name_is_taken_for_the_new_one() {
    let mut cluster = Cluster::start(3, &[]).await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    for round in 0..3 {
        let mut alice = User::connect(cluster.ws(2), "alice").await;
        cluster.knows("alice", &[2]).await;
        assert_eq!(bob.publish("user.alice", round).await["outcome"], "delivered");
        assert_eq!(alice.message().await["payload"], round);
        let old = format!("session.{}", alice.session());
        cluster.kill(2);
        cluster.add();
        cluster.agree().await;
        cluster.knows("alice", &[]).await;
        let reply = bob.publish(&old, "to a session of its former life").await;
        assert_eq!(reply["outcome"], "rejected", "{reply}");
    }
}

/// Small, seeded, and good enough to mix things up (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What one user saw: the ids of its messages, session by session.
async fn wander(
    cluster: &Cluster,
    name: String,
    mut dice: Dice,
    peers: u64,
) -> (Vec<Vec<String>>, Vec<Value>) {
    let (mut seen, mut replies) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let mut user = User::connect(cluster.ws(dice.below(3) as usize), &name).await;
        for _ in 0..=dice.below(15) {
            replies.push(user.publish(&format!("user.w{}", dice.below(peers)), 1).await);
        }
        seen.push(user.leave_reading().await);
    }
    (seen, replies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_called_delivered_was_seen_and_nothing_twice() {
    const USERS: u64 = 12;
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let cluster = Cluster::start(3, &[("WORKERS", "2")]).await;
    let wandering =
        (0..USERS).map(|at| wander(&cluster, format!("w{at}"), Dice(seed ^ (at + 1) << 40 | 1), USERS));
    let results = join_all(wandering).await;
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (sessions, _) in &results {
        for session in sessions {
            let distinct: HashSet<_> = session.iter().collect();
            assert_eq!(distinct.len(), session.len(), "twice in one session");
            for id in session {
                *seen.entry(id.clone()).or_default() += 1;
            }
        }
    }
    let mut delivered = 0;
    for reply in results.iter().flat_map(|(_, replies)| replies) {
        let id = reply["message_id"].as_str().unwrap();
        match reply["outcome"].as_str() {
            Some("delivered") => {
                delivered += 1;
                assert_eq!(seen.get(id).copied(), reply["sessions"].as_u64().map(|n| n as usize), "{reply}");
            }
            _ => assert_eq!(reply["outcome"], "stored", "{reply}"),
        }
    }
    assert!(delivered > 100, "{delivered} delivered");
    for node in &cluster.nodes {
        eventually("nothing is left", PATIENCE, || async { node.router().hub().sessions() == 0 }).await;
        assert_eq!(node.router().pending(), 0);
    }
}
