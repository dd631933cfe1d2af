//! A cluster of pure machines in made-up time, with nodes that die, links that are lost, and a directory that is late.
//!
//! proptest prints the failing case; the same case always runs the same way.

mod cluster;
mod process;

use std::time::Duration;

use proptest::prelude::*;

use self::cluster::Cluster;
use self::process::Heard;
use crate::ids::{ChannelName, NodeId, UserId};

const STEP: Duration = Duration::from_millis(10);
/// Presence is to be true this long after the last change.
const REST: Duration = Duration::from_secs(2);
const CHANNELS: [&str; 2] = ["room", "hall"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn channel(at: usize) -> ChannelName {
    ChannelName::new(CHANNELS[at % CHANNELS.len()]).unwrap()
}

fn user(at: usize) -> UserId {
    UserId::new(&format!("user{at}")).unwrap()
}

fn node(at: usize) -> NodeId {
    NodeId::new(NAMES[at]).unwrap()
}

#[derive(Debug, Clone)]
enum Action {
    Connect(usize, usize, usize),
    Disconnect(usize, usize, usize),
    /// A session goes to another node.
    Move(usize, usize, usize, usize),
    /// Many users at once, beyond what is listed.
    Crowd(usize, usize, usize),
    Listen(usize, usize, bool),
    Ask(usize, usize),
    /// The process dies with its sessions, and another begins.
    Kill(usize),
    /// The process lives on with a new queue; what was in the old one is lost.
    Reconnect(usize),
    /// The broker takes nothing and gives nothing.
    Outage(bool),
    /// A worker's queue is full.
    Full(usize, bool),
    Wait(u16),
}

fn action() -> impl Strategy<Value = Action> {
    let (n, c, u) = (0..NAMES.len(), 0..CHANNELS.len(), 0..12usize);
    prop_oneof![
        20 => (n.clone(), c.clone(), u.clone()).prop_map(|(n, c, u)| Action::Connect(n, c, u)),
        15 => (n.clone(), c.clone(), u.clone()).prop_map(|(n, c, u)| Action::Disconnect(n, c, u)),
        10 => (n.clone(), n.clone(), c.clone(), u).prop_map(|(n, m, c, u)| Action::Move(n, m, c, u)),
        1 => (n.clone(), c.clone(), 0..1_100usize).prop_map(|(n, c, count)| Action::Crowd(n, c, count)),
        3 => (n.clone(), c.clone(), any::<bool>()).prop_map(|(n, c, on)| Action::Listen(n, c, on)),
        3 => (n.clone(), c).prop_map(|(n, c)| Action::Ask(n, c)),
        1 => n.clone().prop_map(Action::Kill),
        1 => n.clone().prop_map(Action::Reconnect),
        1 => any::<bool>().prop_map(Action::Outage),
        1 => (n, any::<bool>()).prop_map(|(n, on)| Action::Full(n, on)),
        15 => (0..300u16).prop_map(Action::Wait),
        1 => (0..6_000u16).prop_map(Action::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 30, ..ProptestConfig::default() })]

    /// 1,000 connects, moves, deaths, lost links and outages; then rest.
    #[test]
    fn after_a_rest_listeners_know_the_truth(
        seed in any::<u64>(),
        actions in prop::collection::vec(action(), 1_000),
    ) {
        let mut cluster = Cluster::new(seed);
        for at in 0..2 {
            cluster.listen(at, 0, true);
        }
        for part in actions.chunks(250) {
            part.iter().for_each(|action| cluster.act(action));
            cluster.act(&Action::Outage(false));
            (0..NAMES.len()).for_each(|at| cluster.act(&Action::Full(at, false)));
            cluster.run(REST);
            cluster.check()?;
        }
    }
}

#[test]
fn a_change_is_told_within_200_ms_and_a_return_within_the_window_is_none() {
    let mut cluster = Cluster::new(7);
    cluster.sessions(1, 0, user(0), true);
    cluster.listen(0, 0, true);
    cluster.run(Duration::from_secs(1));
    let heard = |cluster: &Cluster| {
        cluster.processes[0].as_ref().unwrap().channels[&channel(0)].heard.clone().unwrap()
    };
    assert_eq!(heard(&cluster).count(), 1);
    cluster.sessions(1, 0, user(1), true);
    cluster.run(Duration::from_millis(200));
    assert_eq!(heard(&cluster).count(), 2);
    // The first one on its node, so that the directory has to tell of it.
    cluster.sessions(2, 0, user(2), true);
    cluster.run(Duration::from_millis(240));
    assert_eq!(heard(&cluster).count(), 3);
    // `hear` would see each change.
    let before = heard(&cluster);
    cluster.sessions(1, 0, user(1), false);
    cluster.run(Duration::from_millis(20));
    cluster.sessions(2, 0, user(1), true);
    cluster.run(Duration::from_millis(60));
    assert_eq!(heard(&cluster), before);
    cluster.run(Duration::from_secs(1));
    assert_eq!(heard(&cluster), before);
}

#[test]
fn ten_thousand_joins_cost_a_bounded_number_of_words_and_frames() {
    let mut cluster = Cluster::new(3);
    cluster.listen(0, 0, true);
    cluster.sessions(1, 0, user(0), true);
    cluster.run(Duration::from_secs(1));
    let before = cluster.letters;
    // Ten seconds of a thousand joins each.
    for part in 0..1_000 {
        for at in 0..10 {
            cluster.sessions(1, 0, UserId::new(&format!("many{}", part * 10 + at)).unwrap(), true);
        }
        cluster.run(STEP);
    }
    cluster.run(REST);
    let heard = cluster.processes[0].as_ref().unwrap().channels[&channel(0)].heard.clone();
    assert_eq!(heard, Some(Heard::Count(10_001)));
    // One for each 50 ms, and a few questions.
    assert!(cluster.letters - before < 12 * 20 + 20, "{}", cluster.letters - before);
}

#[test]
fn what_nobody_listens_to_is_forgotten() {
    let mut cluster = Cluster::new(5);
    cluster.sessions(1, 0, user(0), true);
    cluster.listen(0, 0, true);
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.processes[1].as_ref().unwrap().state.channels(), 1);
    cluster.listen(0, 0, false);
    cluster.run(Duration::from_secs(20));
    for process in cluster.processes.iter().flatten() {
        assert_eq!((process.state.channels(), process.followed.len()), (0, 0));
    }
    let before = cluster.letters;
    cluster.sessions(1, 0, user(1), true);
    cluster.run(Duration::from_secs(20));
    assert_eq!(cluster.letters, before, "nobody is told");
}
