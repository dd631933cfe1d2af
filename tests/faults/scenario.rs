//! What a row of the fault table consists of: what is done, under which load, and what must hold.

use futures_util::future::BoxFuture;

use crate::clients::{Device, Habit};
use crate::stage::Kind;
use crate::world::World;

/// Does the fault once and heals it. Runs while messages flow.
pub type Inject = for<'a> fn(&'a mut World) -> BoxFuture<'a, ()>;

#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub stage: Kind,
    pub inject: Inject,
    pub load: Load,
    /// From the healing action to the next delivery, p99 over the devices that are meant to be connected; for
    /// so long traces of the fault are excused as well.
    pub recovers_ms: u64,
    /// Part of a plain `./test`.
    pub quick: bool,
    /// Nothing forces a redelivery, so order is kept whatever says that it was redelivered.
    pub ordered: bool,
    /// The messages of those who do not misbehave may take at most twice as long as before.
    pub compares: bool,
    /// Users who never come have mail in the end.
    pub leaves_mail: bool,
    /// The broker suffers, so nobody else may be on it.
    pub alone: bool,
    /// Little load and much waiting: several such may be under load at a time.
    pub light: bool,
    /// Each node reaches the broker through a relay.
    pub relayed: bool,
    pub env: &'static [(&'static str, &'static str)],
    /// How many seconds the wall clock of each node is ahead.
    pub skew_s: &'static [i64],
}

#[derive(Clone, Copy)]
pub struct Load {
    pub people: People,
    /// Messages per second, over all publishers of messages for users.
    pub rate: u32,
    pub padding: usize,
    pub twice: bool,
    /// As many messages of each other kind: for sessions, for everybody, at-most-once, with a time to live.
    pub kinds: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum People {
    /// On all nodes alike.
    Everywhere(u32),
    /// Most of them on node 1; nobody begins on node 2.
    OnTarget(u32),
    /// Every other one has this habit.
    Half(u32, Habit),
    /// Two of three do not take what they are given: one does not read, the other does not acknowledge.
    Stuck(u32),
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
            | Self::Stuck(users)
            | Self::TwoDevices(users)
            | Self::Acknowledging(users) => users,
        }
    }

    fn habit(self, user: u32) -> Habit {
        match self {
            Self::Half(_, habit) if user % 2 == 1 => habit,
            Self::Stuck(_) if user % 3 == 1 => Habit::Deaf,
            Self::Stuck(_) if user % 3 == 2 => Habit::NeverAcks,
            _ => Habit::Steady,
        }
    }

    pub fn devices(self) -> Vec<Device> {
        let per_user = if matches!(self, Self::TwoDevices(_)) { 2 } else { 1 };
        let device = |index: u32| {
            let user = index / per_user;
            let habit = self.habit(user);
            let home = match self {
                Self::OnTarget(_) if user.is_multiple_of(16) => 0,
                Self::OnTarget(_) => 1,
                // Neighbours have different habits, and each habit is on every node.
                Self::Half(..) => (user / 2) as usize % 3,
                Self::Stuck(_) => (user / 3) as usize % 3,
                _ => (user + index % per_user) as usize % 3,
            };
            // What is only written to the socket of somebody who vanishes, or is cut off for reading too
            // slowly, counts as delivered, so these acknowledge; of the others every second one.
            let promises = matches!(habit, Habit::Vanishes | Habit::NeverAcks | Habit::Crawls | Habit::Deaf)
                || matches!(self, Self::Acknowledging(_));
            Device { index, user, habit, acks: promises || user % 4 < 2, home }
        };
        (0..self.users() * per_user).map(device).collect()
    }
}

impl Scenario {
    pub const fn new(name: &'static str, about: &'static str, inject: Inject) -> Self {
        let people = People::Everywhere(90);
        let load = Load { people, rate: 600, padding: 0, twice: false, kinds: false };
        Self {
            name,
            about,
            stage: Kind::OneBroker,
            inject,
            load,
            recovers_ms: 10_000,
            quick: false,
            ordered: false,
            compares: false,
            leaves_mail: false,
            alone: false,
            light: false,
            relayed: false,
            env: &[],
            skew_s: &[],
        }
    }

    pub const fn people(mut self, people: People) -> Self {
        self.load.people = people;
        self
    }

    pub const fn rate(mut self, rate: u32) -> Self {
        self.load.rate = rate;
        self
    }

    pub const fn within_ms(mut self, recovers_ms: u64) -> Self {
        self.recovers_ms = recovers_ms;
        self
    }

    pub const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    pub const fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }

    pub const fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    pub const fn compares(mut self) -> Self {
        self.compares = true;
        self
    }

    pub const fn leaves_mail(mut self) -> Self {
        self.leaves_mail = true;
        self
    }

    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    pub const fn light(mut self) -> Self {
        self.light = true;
        self.load.rate = 200;
        self
    }

    pub const fn kinds(mut self) -> Self {
        self.load.kinds = true;
        self
    }

    pub const fn twice(mut self) -> Self {
        self.load.twice = true;
        self
    }

    pub const fn skewed(mut self, skew_s: &'static [i64]) -> Self {
        self.skew_s = skew_s;
        self
    }

    /// Long messages into small buffers: not the defaults, and the name says so.
    pub const fn small_buffers(mut self) -> Self {
        self.load.padding = 8_000;
        self.env = &[("WARREN_OUTBOX_BYTES", "40000"), ("WARREN_MAX_MESSAGE_BYTES", "16384")];
        self
    }

    pub const fn partitioned(mut self) -> Self {
        self.env = &[("WARREN_INGRESS_PARTITIONS", "4")];
        self
    }

    pub const fn on_three(mut self) -> Self {
        self.stage = Kind::ThreeBrokers;
        self.alone = true;
        self
    }
}
