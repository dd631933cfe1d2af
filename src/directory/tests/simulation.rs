//! A cluster of pure directories in made-up time, with a broker that loses, doubles and shuffles on purpose.
//!
//! proptest prints the failing case and its seed; the same case always runs the same way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::homes::check_homes;
use super::*;
use crate::config::Routing;

pub(super) const STEP: Duration = at(10);
pub(super) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
pub(super) enum Action {
    Join(usize, u64),
    Leave(usize, u64),
    /// The process dies, and its queues with it.
    Kill(usize),
    /// A process with the same node id begins, in place of the one that runs, if any.
    Start(usize),
    /// The process lives on with new queues.
    Reconnect(usize),
    /// Everything from it and to it is lost, while its queues stay.
    Mute(usize, bool),
    /// The process stands still; its queues fill.
    Pause(usize, bool),
    /// The broker takes nothing from it.
    Block(usize, bool),
    Bye(usize),
    Wait(u16),
}

pub(super) fn action(nodes: usize) -> impl Strategy<Value = Action> {
    let n = 0..nodes;
    prop_oneof![
        8 => (n.clone(), 0..12u64).prop_map(|(n, key)| Action::Join(n, key)),
        6 => (n.clone(), 0..12u64).prop_map(|(n, key)| Action::Leave(n, key)),
        1 => n.clone().prop_map(Action::Kill),
        2 => n.clone().prop_map(Action::Start),
        1 => n.clone().prop_map(Action::Reconnect),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, on)| Action::Mute(n, on)),
        2 => (n.clone(), any::<bool>()).prop_map(|(n, on)| Action::Pause(n, on)),
        1 => (n.clone(), any::<bool>()).prop_map(|(n, on)| Action::Block(n, on)),
        1 => n.prop_map(Action::Bye),
        6 => (0..800u16).prop_map(Action::Wait),
        1 => (0..12_000u16).prop_map(Action::Wait),
    ]
}

pub(super) struct Process {
    pub(super) state: State,
    pub(super) incarnation: Incarnation,
    pub(super) keys: BTreeSet<u64>,
    /// Since when it has them.
    pub(super) since: BTreeMap<u64, Duration>,
    /// Its control queue and its node queue.
    queues: [VecDeque<Gossip>; 2],
    muted: bool,
    paused: bool,
    pub(super) left: bool,
    /// Who lives, going by nothing but the effects.
    told_live: BTreeMap<NodeId, ()>,
}

pub(super) struct Cluster {
    pub(super) now: Duration,
    pub(super) processes: Vec<Option<Process>>,
    incarnations: u128,
    random: u64,
    /// Chance in percent of each fault for each message.
    faults: u64,
}

impl Cluster {
    pub(super) fn new(nodes: usize, random: u64, faults: u64) -> Self {
        let processes = (0..nodes).map(|_| None).collect();
        let mut cluster = Self { now: STEP, processes, incarnations: 0, random: random | 1, faults };
        (0..nodes).for_each(|n| cluster.start(n));
        cluster
    }

    fn new_incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        inc(self.incarnations)
    }

    fn start(&mut self, n: usize) {
        let incarnation = self.new_incarnation();
        let mut state = State::new(node(NAMES[n]), Info::default(), n as u64 + 7, true);
        state.link_up(incarnation, self.now);
        state.set_publishing(true, self.now);
        self.processes[n] = Some(Process {
            state,
            incarnation,
            keys: BTreeSet::new(),
            since: BTreeMap::new(),
            queues: Default::default(),
            muted: false,
            paused: false,
            left: false,
            told_live: BTreeMap::new(),
        });
    }

    fn chance(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < self.faults
    }

    pub(super) fn act(&mut self, action: &Action) {
        let (now, incarnation) = (self.now, self.new_incarnation());
        match action {
            Action::Wait(ms) => self.run(at(u64::from(*ms))),
            Action::Start(n) => self.start(*n),
            Action::Kill(n) => self.processes[*n] = None,
            Action::Bye(n) => {
                let farewell = self.processes[*n].as_mut().and_then(|process| {
                    process.left = true;
                    process.state.bye()
                });
                if let Some(farewell) = farewell {
                    self.publish(*n, farewell);
                }
            }
            Action::Join(n, _)
            | Action::Leave(n, _)
            | Action::Reconnect(n)
            | Action::Mute(n, _)
            | Action::Pause(n, _)
            | Action::Block(n, _) => {
                let Some(process) = &mut self.processes[*n] else { return };
                match action {
                    Action::Join(_, number) if process.keys.insert(*number) => {
                        process.state.join(key(*number), now);
                        process.state.set_home_user(key(*number), true, now);
                        process.since.insert(*number, now);
                    }
                    Action::Leave(_, number) if process.keys.remove(number) => {
                        process.state.leave(key(*number), now);
                        process.state.set_home_user(key(*number), false, now);
                    }
                    Action::Reconnect(_) => {
                        process.state.link_down();
                        process.queues = Default::default();
                        process.incarnation = incarnation;
                        process.state.link_up(incarnation, now);
                        process.state.set_publishing(true, now);
                    }
                    Action::Mute(_, on) => process.muted = *on,
                    Action::Pause(_, on) => process.paused = *on,
                    Action::Block(_, on) => process.state.set_publishing(!on, now),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            for n in 0..self.processes.len() {
                self.step(n);
            }
        }
    }

    fn step(&mut self, n: usize) {
        let now = self.now;
        let Some(process) = self.processes[n].as_mut().filter(|process| !process.paused) else { return };
        for queue in &mut process.queues {
            for gossip in queue.drain(..) {
                process.state.receive(gossip, now);
            }
        }
        let effects = process.state.poll(now);
        for effect in &effects {
            match effect {
                Effect::NodeUp { node } => {
                    assert!(process.told_live.insert(node.clone(), ()).is_none(), "{node} is up twice");
                }
                Effect::NodeLost { node, .. } => {
                    assert!(process.told_live.remove(node).is_some(), "{node} is lost twice");
                }
                Effect::Conflict { .. } => panic!("there are no two processes with one id"),
                _ => {}
            }
        }
        assert!(process.told_live.keys().eq(process.state.peers.iter().map(|(node, _)| node)));
        for effect in effects {
            match effect {
                Effect::Publish(gossip) => self.publish(n, gossip),
                Effect::SendTo { nodes, gossip } => self.send(n, &nodes, Some(gossip)),
                Effect::Probe { node, incarnation } => self.send(n, &[(node, incarnation)], None),
                _ => {}
            }
        }
    }

    fn publish(&mut self, from: usize, gossip: Gossip) {
        for to in 0..self.processes.len() {
            self.deliver(from, to, 0, gossip.clone());
        }
    }

    /// The routing key is the node id alone; without a queue the publish comes back.
    fn send(&mut self, from: usize, nodes: &[(NodeId, Incarnation)], gossip: Option<Gossip>) {
        let index = |node: &NodeId| NAMES.iter().position(|name| *name == node.as_str()).unwrap();
        if nodes.iter().all(|(node, _)| self.processes[index(node)].is_none()) {
            let Some(sender) = self.processes[from].as_mut().filter(|sender| !sender.muted) else { return };
            for (node, incarnation) in nodes {
                sender.state.returned(node, Some(*incarnation), self.now);
            }
            return;
        }
        if let Some(gossip) = gossip {
            for (node, _) in nodes {
                self.deliver(from, index(node), 1, gossip.clone());
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, queue: usize, gossip: Gossip) {
        let (lose, double, shuffle) = (self.chance(), self.chance(), self.chance());
        let muted = |n: usize| self.processes[n].as_ref().is_none_or(|process| process.muted);
        if lose || muted(from) || muted(to) {
            return;
        }
        // Through the wire and back, as it would be.
        let gossip = Gossip::decode(&gossip.encode(Routing::Ring).unwrap()).unwrap().1;
        let Some(receiver) = &mut self.processes[to] else { return };
        let queue = &mut receiver.queues[queue];
        if double {
            queue.push_back(gossip.clone());
        }
        queue.push_back(gossip);
        if shuffle && queue.len() >= 2 {
            let (last, other) = (queue.len() - 1, queue.len() / 2);
            queue.swap(last, other);
        }
    }

    pub(super) fn heal(&mut self) {
        self.faults = 0;
        for process in self.processes.iter_mut().flatten() {
            (process.muted, process.paused) = (false, false);
            process.state.set_publishing(true, self.now);
        }
    }

    /// Every live process knows of every other what is true of it, and of nobody else.
    fn check(&self) -> Result<(), TestCaseError> {
        for (n, process) in self.processes.iter().enumerate() {
            // Who has left still serves as a hint to itself, but does not look after it.
            let Some(process) = process.as_ref().filter(|process| !process.left) else { continue };
            prop_assert_eq!(process.state.local.keys().count(), process.keys.len());
            for (m, other) in self.processes.iter().enumerate() {
                if n == m {
                    continue;
                }
                let copy = process.state.peers.get(&node(NAMES[m])).map(|peer| &peer.replica);
                let Some(other) = other.as_ref().filter(|other| !other.left) else {
                    prop_assert!(copy.is_none(), "{} still believes in {}", NAMES[n], NAMES[m]);
                    continue;
                };
                prop_assert!(copy.is_some(), "{} does not know {}", NAMES[n], NAMES[m]);
                let Some(copy) = copy else { continue };
                prop_assert_eq!(copy.incarnation(), other.incarnation);
                prop_assert!(copy.synced(), "{} is not sure of {}", NAMES[n], NAMES[m]);
                prop_assert_eq!(copy.state(), (other.state.local.seq(), other.state.local.published()));
                for &number in &other.keys {
                    prop_assert!(copy.contains(key(number)));
                }
                prop_assert_eq!(copy.count(), other.keys.len());
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn replicas_converge_once_faults_stop(
        (nodes, actions) in (2..=5usize).prop_flat_map(|n| (Just(n), prop::collection::vec(action(n), 1..80))),
        seed in any::<u64>(),
        faults in 0..25u64,
    ) {
        let mut cluster = Cluster::new(nodes, seed, faults);
        for action in &actions {
            cluster.act(action);
        }
        cluster.heal();
        // As long as a wrong death may hold, and then the heartbeats and retries of the repair.
        cluster.run(at(16_000));
        cluster.check()?;
        check_homes(&cluster)?;

        // A crash is known everywhere within a round of probes, although nobody missed a heartbeat yet.
        for victim in 0..nodes {
            if cluster.processes[victim].as_ref().is_some_and(|process| !process.left) {
                cluster.act(&Action::Kill(victim));
                break;
            }
        }
        cluster.run(at(700));
        cluster.check()?;
        check_homes(&cluster)?;
    }
}

#[test]
fn without_faults_a_change_is_known_at_once() {
    let mut cluster = Cluster::new(3, 1, 0);
    cluster.run(at(100));
    for number in 0..2_500 {
        cluster.act(&Action::Join(0, number));
    }
    cluster.run(at(40));
    cluster.check().unwrap();
    cluster.act(&Action::Leave(0, 7));
    cluster.run(at(40));
    cluster.check().unwrap();
}

#[test]
fn a_late_comer_gets_large_sets_in_parts_while_they_change() {
    let mut cluster = Cluster::new(3, 1, 0);
    for n in 0..2 {
        for number in 0..40_000 {
            cluster.act(&Action::Join(n, number));
        }
    }
    cluster.run(at(2_500));
    cluster.act(&Action::Start(2));
    for number in 0..60 {
        cluster.act(&Action::Leave(0, number));
        cluster.act(&Action::Join(1, 50_000 + number));
        cluster.run(at(10));
    }
    cluster.run(at(100));
    cluster.check().unwrap();
}

#[test]
fn when_the_broker_comes_back_nobody_needs_a_snapshot() {
    let mut cluster = Cluster::new(5, 1, 0);
    for n in 0..5 {
        for number in 0..3_000 {
            cluster.act(&Action::Join(n, number));
        }
    }
    cluster.run(at(2_500));
    for n in 0..5 {
        cluster.act(&Action::Reconnect(n));
    }
    let end = cluster.now + at(3_000);
    while cluster.now < end {
        cluster.run(STEP);
        for process in cluster.processes.iter().flatten() {
            let snapshot = process.queues[1].iter().any(|gossip| matches!(gossip, Gossip::Snapshot(_)));
            assert!(!snapshot, "the deltas after each hello say it all");
        }
    }
    cluster.check().unwrap();
}
