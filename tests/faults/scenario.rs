//! The table of faults: one row each, with what is done, under which load, and what must hold.

use futures_util::future::BoxFuture;

use crate::clients::{Device, Habit};
use crate::inject::{broker, calm, cluster, link, nodes, people, poison};
use crate::stage::Kind;
use crate::world::World;

/// Does the fault once and heals it. Runs while messages flow.
pub type Inject = for<'a> fn(&'a mut World) -> BoxFuture<'a, ()>;

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub stage: Kind,
    pub inject: Inject,
    pub load: Load,
    /// From the healing action to the next delivery, p99 over the devices that are meant to be connected.
    pub recovers_ms: u64,
    /// Part of a plain `./test`.
    pub quick: bool,
    /// Nothing is redelivered, so order must be kept.
    pub ordered: bool,
    /// Each node reaches the broker through a relay.
    pub relayed: bool,
    pub env: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy)]
pub struct Load {
    pub people: People,
    /// Messages per second, over all publishers.
    pub rate: u32,
    pub padding: usize,
    pub twice: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum People {
    /// On all nodes alike.
    Everywhere(u32),
    /// Most of them on node 1; nobody begins on node 2.
    OnTarget(u32),
    /// Every other one has this habit.
    Half(u32, Habit),
    TwoDevices(u32),
    /// On all nodes alike, and all of them acknowledge.
    Acknowledging(u32),
}

impl People {
    pub fn users(self) -> u32 {
        match self {
            Self::Everywhere(users)
            | Self::OnTarget(users)
            | Self::Half(users, _)
            | Self::TwoDevices(users)
            | Self::Acknowledging(users) => users,
        }
    }

    pub fn devices(self) -> Vec<Device> {
        let per_user = if matches!(self, Self::TwoDevices(_)) { 2 } else { 1 };
        let device = |index: u32| {
            let user = index / per_user;
            let habit = match self {
                Self::Half(_, habit) if user % 2 == 1 => habit,
                _ => Habit::Steady,
            };
            let home = match self {
                Self::OnTarget(_) if user.is_multiple_of(16) => 0,
                Self::OnTarget(_) => 1,
                _ => (user + index % per_user) as usize % 3,
            };
            // What is only written to the socket of somebody who vanishes, or is cut off for reading too
            // slowly, counts as delivered, so these acknowledge; of the others every second one.
            let promises = matches!(habit, Habit::Vanishes | Habit::NeverAcks | Habit::Crawls)
                || matches!(self, Self::Acknowledging(_));
            Device { index, user, habit, acks: promises || user % 4 < 2, home }
        };
        (0..self.users() * per_user).map(device).collect()
    }
}

impl Scenario {
    const fn new(name: &'static str, about: &'static str, inject: Inject) -> Self {
        let load = Load { people: People::Everywhere(90), rate: 600, padding: 0, twice: false };
        Self {
            name,
            about,
            stage: Kind::OneBroker,
            inject,
            load,
            recovers_ms: 10_000,
            quick: false,
            ordered: false,
            relayed: false,
            env: &[],
        }
    }

    const fn people(mut self, people: People) -> Self {
        self.load.people = people;
        self
    }

    const fn rate(mut self, rate: u32) -> Self {
        self.load.rate = rate;
        self
    }

    const fn within_ms(mut self, recovers_ms: u64) -> Self {
        self.recovers_ms = recovers_ms;
        self
    }

    const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    const fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }
}

const fn ordered(mut scenario: Scenario) -> Scenario {
    scenario.ordered = true;
    scenario
}

const fn crawling(mut scenario: Scenario) -> Scenario {
    scenario.load.padding = 8_000;
    scenario.env = &[("WARREN_OUTBOX_BYTES", "40000"), ("WARREN_MAX_MESSAGE_BYTES", "16384")];
    scenario
}

const fn doubled(mut scenario: Scenario) -> Scenario {
    scenario.load.twice = true;
    scenario
}

const fn on_three(mut scenario: Scenario) -> Scenario {
    scenario.stage = Kind::ThreeBrokers;
    scenario
}

#[rustfmt::skip]
pub fn all() -> Vec<Scenario> {
    use People::{Acknowledging, Half, OnTarget, TwoDevices};
    let new = Scenario::new;
    vec![
        ordered(new("none", "nothing is done: the figures to compare with", calm::nothing).quick()),
        new("kill-origin", "`kill -9` of the node that publishers use, while its messages are under way", nodes::kill_origin).within_ms(5_000).quick(),
        new("kill-target", "`kill -9` of a node with 200 clients", nodes::kill_target).people(OnTarget(214)).rate(800).within_ms(5_000).quick(),
        new("kill-both", "`kill -9` of two nodes at once, while messages are under way between them", nodes::kill_both),
        new("kill-bystander", "`kill -9` of a node without publishers and clients", nodes::kill_bystander).people(OnTarget(90)).within_ms(5_000),
        new("stop-5s", "SIGSTOP of a node for 5 s", nodes::stop_short),
        new("stop-45s", "SIGSTOP of a node for 45 s", nodes::stop_long),
        new("sigterm", "SIGTERM of a node under load", nodes::terminate).quick(),
        new("rolling-restart", "SIGTERM and restart of all nodes, one after the other", nodes::roll),
        new("broker-restart", "stop and start of the broker", broker::restart).within_ms(5_000),
        new("broker-kill", "`kill -9` of the broker, and a new start", broker::kill).within_ms(5_000).quick(),
        new("memory-alarm", "the broker is out of memory for 5 s", broker::memory_alarm),
        new("queue-deleted", "an operator deletes the queues of two nodes", broker::delete_queues),
        new("close-all-connections", "`rabbitmqctl close_all_connections`", broker::close_connections),
        new("link-cut", "every connection to the broker is cut, twice", link::cut).relayed().quick(),
        new("link-half-open", "connections end at the node's end only", link::half_open).relayed(),
        new("link-slow", "each packet to and from the broker is 100 ms late", link::slow).relayed(),
        new("link-silent", "nothing passes between a node and the broker for 8 s", link::silent).relayed(),
        new("client-vanishes", "clients lose their connection mid-delivery", people::misbehave).people(Half(90, Habit::Vanishes)).quick(),
        new("client-moves", "clients move from node to node", people::misbehave).people(Half(90, Habit::Moves)),
        new("client-away", "clients come and go", people::misbehave).people(Half(90, Habit::Away)),
        new("client-never-acks", "clients promise acknowledgements and send none", people::misbehave).people(Half(60, Habit::NeverAcks)),
        crawling(new("client-crawls", "clients read at a crawl", people::misbehave).people(Half(60, Habit::Crawls)).rate(300)),
        new("two-devices", "each user on two nodes; one node is killed", nodes::kill_target).people(TwoDevices(60)),
        new("poison", "unreadable messages among good ones", poison::inject).quick(),
        doubled(new("duplicates", "every message is published twice", calm::nothing).quick().rate(300)),
        new("storm", "2,000 clients lose their connections at once", people::storm).people(Acknowledging(2_000)).rate(1_000).within_ms(15_000),
        on_three(new("broker-cluster", "`kill -9` of one of three brokers", cluster::kill_one)),
    ]
}
