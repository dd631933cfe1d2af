//! What can be said of the whole cluster: which keys some node has, which node is the oldest, and what each consumes of
//! ingress.

use std::cmp::Ordering;

use super::ring::Ring;
use super::{Directory, Key, Nodes, Touched};
use crate::bus::partitions::IngressState;
use crate::ids::NodeId;

/// Of this node among the live ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    Oldest,
    Younger,
    /// Some other node has not said yet when it started.
    Unknown,
}

impl Directory {
    /// The live peers. Never this node itself.
    pub fn live_nodes(&self) -> Nodes {
        self.read().peers.iter().map(|(node, _)| node.clone()).collect()
    }

    /// Whether this node has the lowest id of all live nodes: where one of them is to act for all.
    pub fn is_first_node(&self) -> bool {
        let state = self.read();
        let first = state.peers.iter().next();
        first.is_none_or(|(first, _)| state.own.node < *first)
    }

    /// Where one node is to act for all, and a node that joins should change nothing.
    pub fn age(&self) -> Age {
        let state = self.read();
        let own = (state.own.info.started_ms, &state.own.node);
        let mut age = Age::Oldest;
        for (node, peer) in state.peers.iter() {
            match (peer.info.started_ms, node).cmp(&own) {
                _ if peer.info.started_ms == 0 => age = Age::Unknown,
                Ordering::Less => return Age::Younger,
                _ => {}
            }
        }
        age
    }

    /// Where a client of the user should connect, and where that is reached: the user's place on the ring of the nodes
    /// that stay. With the ring as strategy it is the user's home, unless that is about to leave.
    pub fn place_for(&self, user: Key) -> (NodeId, Option<String>) {
        let state = self.read();
        let own = (&state.own.node, &state.own.info);
        let all = state.peers.iter().map(|(node, peer)| (node, &peer.info)).chain([own]);
        let staying = all.clone().filter(|(_, info)| !info.draining).map(|(node, _)| node.clone());
        let node = Ring::new(staying).home(user).unwrap_or(&state.own.node).clone();
        let url = all.into_iter().find(|(of, _)| **of == node).and_then(|(_, info)| info.url.clone());
        (node, url)
    }

    /// Whether every replica is right, and all live nodes have had the time to make themselves known.
    pub fn is_sure(&self) -> bool {
        let now = self.now();
        self.read().is_sure(now)
    }

    /// The others are told at once what this node consumes of ingress.
    pub fn set_ingress(&self, ingress: IngressState) {
        let now = self.now();
        {
            let mut state = self.write();
            state.own.info.ingress = ingress;
            state.schedule.heartbeat_by(now);
        }
        self.wake_if(true);
    }

    /// Whether all live nodes have had the time to make themselves known.
    pub fn has_heard_all(&self) -> bool {
        let now = self.now();
        self.read().has_heard_all(now)
    }

    /// How many partitions of ingress this node consumes.
    pub fn partitions_held(&self) -> usize {
        self.read().own.info.ingress.holds.len()
    }

    /// Whether this node or a live peer has the key.
    pub fn is_held(&self, key: Key) -> bool {
        let state = self.read();
        let held =
            state.local.contains(key) || state.peers.iter().any(|(_, peer)| peer.replica.contains(key));
        held
    }

    /// The keys of all nodes; some more than once.
    pub fn all_keys(&self) -> Vec<Key> {
        let state = self.read();
        let others = state.peers.iter().flat_map(|(_, peer)| peer.replica.all());
        state.local.all().chain(others).collect()
    }

    /// From now on [`take_all_touched`](Self::take_all_touched) tells which keys other nodes may have or have no longer.
    pub fn watch_all(&self) {
        self.write().all_watched.watch_all();
    }

    pub fn take_all_touched(&self) -> Touched {
        self.write().all_watched.take_touched()
    }
}
