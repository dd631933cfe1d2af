//! Tests of the directory: one per merge rule, a simulated cluster under faults, and the service on a small bus.

mod homes;
mod rules;
mod service;
mod simulation;

use std::time::Duration;

use super::gossip::*;
use super::key::{Fingerprint, Key};
use super::state::{Effect, State};
use crate::ids::{Incarnation, NodeId};

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn inc(n: u128) -> Incarnation {
    Incarnation::from_u128(n)
}

fn key(n: u64) -> Key {
    Key::for_test(n)
}

fn keys(numbers: &[u64]) -> Vec<Key> {
    numbers.iter().map(|&n| key(n)).collect()
}

fn fingerprint(numbers: &[u64]) -> Fingerprint {
    let mut print = Fingerprint::default();
    numbers.iter().for_each(|&n| print.add(key(n)));
    print
}

const fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The node `a` with a link as incarnation 100, and with what it says first taken from it.
fn state() -> State {
    let mut state = State::new(node("a"), Info::default(), 1, false);
    state.link_up(inc(100), at(0));
    state.set_publishing(true, at(0));
    state.poll(at(0));
    state
}

/// Who has the key, as this node sees it.
fn holders(state: &State, number: u64) -> Vec<NodeId> {
    let with = |(node, peer): (&NodeId, &super::peers::Peer)| {
        peer.replica.contains(key(number)).then(|| node.clone())
    };
    state.peers.iter().filter_map(with).collect()
}

fn delta(name: &str, incarnation: u128, seq: u64, joined: &[u64], left: &[u64]) -> Gossip {
    let (joined, left) = (keys(joined), keys(left));
    Gossip::Delta(Delta { node: node(name), incarnation: inc(incarnation), seq, joined, left, ask: false })
}

fn heartbeat(name: &str, incarnation: u128, seq: u64, numbers: &[u64]) -> Gossip {
    let Fingerprint { count, digest } = fingerprint(numbers);
    let (node, incarnation) = (node(name), inc(incarnation));
    let info = Info::default();
    Gossip::Heartbeat(Heartbeat { node, incarnation, seq, count, digest, clock_ms: 0, ends: vec![], info })
}

fn hello(name: &str, incarnation: u128) -> Gossip {
    Gossip::Hello(Identity { node: node(name), incarnation: inc(incarnation) })
}

fn snapshot(name: &str, incarnation: u128, seq: u64, (part, parts): (u32, u32), numbers: &[u64]) -> Gossip {
    let (node, incarnation, keys) = (node(name), inc(incarnation), keys(numbers));
    Gossip::Snapshot(Snapshot { node, incarnation, seq, part, parts, keys })
}

/// Whose sets are asked for among these effects.
fn asked(effects: &[Effect]) -> Vec<NodeId> {
    let of = |effect: &Effect| match effect {
        Effect::SendTo { gossip: Gossip::SnapshotRequest(request), nodes } => {
            assert_eq!(nodes[0].0, request.of);
            Some(request.of.clone())
        }
        _ => None,
    };
    effects.iter().filter_map(of).collect()
}

/// The changes of membership among these effects, in short.
fn membership(effects: &[Effect]) -> Vec<String> {
    let short = |effect: &Effect| match effect {
        Effect::NodeUp { node } => Some(format!("up {node}")),
        Effect::NodeLost { node, reason, .. } => Some(format!("lost {node} {}", reason.as_str())),
        Effect::Conflict { .. } => Some("conflict".into()),
        _ => None,
    };
    effects.iter().filter_map(short).collect()
}
