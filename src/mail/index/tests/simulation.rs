//! Nodes with random work over gossip that is lost, repeated and reordered, against the truth.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::effect::Effect;
use super::super::gossip::{Count, Gossip};
use super::super::outgoing::ANNOUNCE_DEADLINE;
use super::super::state::Index;
use super::{carry_out, index, mail, BOXES, LIMITS};
use crate::bus::BoxNumber;
use crate::ids::UserKey;

const NODES: usize = 3;
const USERS: u64 = 12;

#[derive(Debug, Clone)]
enum Act {
    Deposit {
        node: usize,
        user: u64,
        stored: bool,
    },
    /// A reading of the user's box that finds everything, and takes so many of the user's mails.
    Read {
        node: usize,
        user: u64,
        takes: usize,
    },
    LinkLost {
        node: usize,
    },
    /// Time passes; each publish meets this fate in turn.
    Pass {
        millis: u64,
        fates: Vec<Fate>,
    },
    /// Gossip that is under way arrives.
    Arrive {
        node: usize,
        which: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Confirmed,
    /// It arrives, and the sender does not know.
    Arrives,
    Lost,
    NoAnswer,
}

fn act() -> impl Strategy<Value = Act> {
    let fate = prop_oneof![
        6 => Just(Fate::Confirmed),
        1 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::NoAnswer)
    ];
    prop_oneof![
        6 => (0..NODES, 0..USERS, any::<bool>()).prop_map(|(node, user, stored)| Act::Deposit { node, user, stored }),
        2 => (0..NODES, 0..USERS, 0..5_usize).prop_map(|(node, user, takes)| Act::Read { node, user, takes }),
        1 => (0..NODES).prop_map(|node| Act::LinkLost { node }),
        4 => (1..60_u64, proptest::collection::vec(fate, 1..4)).prop_map(|(millis, fates)| Act::Pass { millis, fates }),
        6 => (0..NODES, any::<usize>()).prop_map(|(node, which)| Act::Arrive { node, which }),
    ]
}

struct World {
    now: Instant,
    wall_ms: u64,
    nodes: Vec<Index>,
    /// What lies in the boxes.
    truth: HashMap<u64, u32>,
    under_way: Vec<Vec<Gossip>>,
    announced: Arc<AtomicUsize>,
    stored: usize,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            wall_ms: 1_000,
            nodes: (0..NODES).map(|number| index(number, now)).collect(),
            truth: HashMap::new(),
            under_way: vec![Vec::new(); NODES],
            announced: Arc::default(),
            stored: 0,
        }
    }

    fn pass(&mut self, millis: u64, fates: &[Fate]) {
        self.now += Duration::from_millis(millis);
        self.wall_ms += millis;
        let mut fates = fates.iter().cycle();
        for number in 0..NODES {
            for effect in self.nodes[number].poll(self.now, Vec::new) {
                match effect {
                    Effect::Publish { seq, body } => {
                        let fate = fates.next().copied().unwrap_or(Fate::Confirmed);
                        if matches!(fate, Fate::Confirmed | Fate::Arrives) {
                            let gossip = Gossip::decode(&body).unwrap();
                            self.under_way.iter_mut().for_each(|queue| queue.push(gossip.clone()));
                        }
                        if !matches!(fate, Fate::NoAnswer) {
                            let confirmed = matches!(fate, Fate::Confirmed);
                            carry_out(self.nodes[number].published(seq, confirmed, self.now));
                        }
                    }
                    Effect::Send { .. } | Effect::Ask { .. } => {}
                    tell => carry_out(Some(tell)),
                }
            }
        }
    }

    fn found(&self, number: BoxNumber) -> Vec<Count> {
        let of_box = |user: &u64| user % u64::from(BOXES.get()) == u64::from(number.0);
        let users = self.truth.iter().filter(|(user, _)| of_box(user));
        users.map(|(user, count)| Count(UserKey(*user), *count, u64::from(*count) * 10)).collect()
    }

    fn read(&mut self, node: usize, number: BoxNumber) {
        let began = self.nodes[node].reading_began(number, self.now);
        self.wall_ms += 1;
        let found = self.found(number);
        self.nodes[node].exact(began, found, self.now, self.wall_ms);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Deposit { node, user, stored } => {
                let mail = mail(user, 100 + user, 10);
                if self.nodes[node].admit(mail, self.now).is_err() {
                    return;
                }
                assert!(self.nodes[node].waiting(UserKey(user)).count <= LIMITS.messages);
                if !stored {
                    return self.nodes[node].release(mail);
                }
                *self.truth.entry(user).or_default() += 1;
                self.stored += 1;
                let announced = self.announced.clone();
                let announced = Box::new(move |_| _ = announced.fetch_add(1, Ordering::Relaxed));
                assert!(self.nodes[node].stored(mail, announced, self.now).is_ok());
            }
            Act::Read { node, user, takes } => {
                self.read(node, BoxNumber((user % u64::from(BOXES.get())) as u32));
                for _ in 0..takes {
                    let Some(count) = self.truth.get_mut(&user).filter(|count| **count > 0) else { break };
                    *count -= 1;
                    self.nodes[node].taken(mail(user, 100 + user, 10), self.now);
                    let left = *count;
                    assert!(
                        self.nodes[node].waiting(UserKey(user)).count >= left,
                        "a reader never counts too low"
                    );
                }
            }
            Act::LinkLost { node } => {
                self.under_way[node].clear();
                self.nodes[node].link_up(self.now);
            }
            Act::Pass { millis, fates } => self.pass(millis, &fates),
            Act::Arrive { node, which } => {
                if !self.under_way[node].is_empty() {
                    let which = which % self.under_way[node].len();
                    let gossip = self.under_way[node].swap_remove(which);
                    self.nodes[node].receive(gossip, self.now);
                }
            }
        }
    }

    fn quiet(&mut self) {
        for _ in 0..5 {
            // Longer than deposits are logged: what a reading may not have seen counts twice until then.
            self.pass(12_000, &[Fate::Confirmed]);
            for node in 0..NODES {
                for gossip in std::mem::take(&mut self.under_way[node]) {
                    self.nodes[node].receive(gossip, self.now);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn after_quiet_and_a_reading_of_each_box_all_nodes_know_the_truth(acts in proptest::collection::vec(act(), 1..150)) {
        let mut world = World::new();
        acts.into_iter().for_each(|act| world.act(act));
        world.quiet();
        world.pass(ANNOUNCE_DEADLINE.as_millis() as u64, &[Fate::Confirmed]);
        prop_assert_eq!(world.announced.load(Ordering::Relaxed), world.stored, "each announcement is called once");
        for number in 0..BOXES.get() {
            world.read(number as usize % NODES, BoxNumber(number));
        }
        world.quiet();
        for (number, node) in world.nodes.iter().enumerate() {
            prop_assert_eq!(node.reservations(), 0);
            for user in 0..USERS {
                let truth = world.truth.get(&user).copied().unwrap_or_default();
                prop_assert_eq!(node.waiting(UserKey(user)).count, truth, "user {} at node {}", user, number);
                prop_assert_eq!(node.may_have(UserKey(user)), truth > 0);
            }
        }
    }
}
