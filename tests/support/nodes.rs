//! Nodes in this process, joined by one in-memory broker, with real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use warren::bus::memory::MemoryBroker;
use warren::config::Config;
use warren::directory::Key;
use warren::ids::{NodeId, UserId};
use warren::node::Node;

use super::api::Api;
use super::eventually::eventually;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// At least 32 bytes, for tests with tokens.
pub const JWT_SECRET: &str = "a-secret-that-only-the-tests-ever-use";
pub const API_KEY: &str = "a-key-that-only-the-tests-use";

/// Settings of a node that checks tokens.
pub const CHECKED: &[(&str, &str)] = &[("JWT_SECRET", JWT_SECRET), ("API_KEYS", API_KEY)];

/// Without `WARREN_`. Ports are free ones, publishes are not limited, everybody is believed.
pub fn config(name: &str, vars: &[(&str, &str)]) -> Config {
    let usual = [
        ("NODE_ID", name),
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN_LISTEN", "127.0.0.1:0"),
        ("WORKERS", "1"),
        ("MESSAGE_RATE", "0"),
        ("IN_FLIGHT_PER_SESSION", "4096"),
    ];
    let mut all = std::collections::BTreeMap::new();
    for (key, value) in usual.iter().chain(vars) {
        all.insert(format!("WARREN_{key}"), (*value).to_owned());
    }
    Config::from_vars(all).unwrap_or_else(|errors| panic!("{errors}"))
}

pub fn node_id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub struct Cluster {
    pub broker: Arc<MemoryBroker>,
    pub nodes: Vec<Node>,
    vars: Vec<(String, String)>,
}

impl Cluster {
    /// Nodes named `n0`, `n1`, …; returns when each serves and knows all the others.
    pub async fn start(count: usize, vars: &[(&str, &str)]) -> Self {
        let vars = vars.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self { broker: MemoryBroker::new(), nodes: Vec::new(), vars };
        for _ in 0..count {
            cluster.add();
        }
        cluster.agree().await;
        cluster
    }

    /// One more node; [`Cluster::agree`] waits for it.
    pub fn add(&mut self) {
        let name = format!("n{}", self.nodes.len());
        let vars: Vec<_> = self.vars.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let (bus, inboxes) = self.broker.attach(node_id(&name));
        self.nodes.push(Node::start_on(config(&name, &vars), bus, inboxes).unwrap());
    }

    /// Returns when all nodes serve and know each other.
    pub async fn agree(&self) {
        for node in &self.nodes {
            timeout(PATIENCE, node.ready()).await.expect("a node serves in time");
        }
        let others = self.nodes.len() - 1;
        eventually("all nodes know each other", PATIENCE, || async {
            self.nodes.iter().all(|node| {
                let directory = node.router().directory();
                directory.synced() && directory.peers().len() == others
            })
        })
        .await;
    }

    /// Where clients of the node connect.
    pub fn ws(&self, node: usize) -> SocketAddr {
        self.nodes[node].public()
    }

    pub fn api(&self, node: usize) -> Api {
        Api::new(self.nodes[node].public())
    }

    pub fn admin(&self, node: usize) -> Api {
        Api::new(self.nodes[node].admin())
    }

    /// Returns when every node knows that exactly these nodes hold the user.
    pub async fn knows(&self, user: &str, holders: &[usize]) {
        let user = UserId::new(user).unwrap();
        eventually(&format!("{user} is on {holders:?}"), PATIENCE, || async {
            self.nodes.iter().enumerate().all(|(at, node)| {
                let mut found = node.router().directory().nodes_of(Key::user(&user)).to_vec();
                found.extend(node.router().hub().holds(&user).then(|| node.id().clone()));
                let expected: Vec<_> = holders.iter().map(|at| self.nodes[*at].id().clone()).collect();
                found.sort();
                let agrees = found == expected;
                agrees && node.router().hub().holds(&user) == holders.contains(&at)
            })
        })
        .await;
    }

    /// As `kill -9` does: the broker drops the node's queues, its sockets are cut.
    pub fn kill(&mut self, node: usize) {
        let node = self.nodes.remove(node);
        self.broker.kill(node.id());
    }
}
