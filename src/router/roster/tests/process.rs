//! One process of the simulation: a machine, the sessions it has, what the directory tells it, and a client that listens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::node;
use crate::directory::Holders;
use crate::hub::Answer;
use crate::ids::{ChannelName, Incarnation, NodeId, UserId};
use crate::protocol::presence::{Event, RosterUpdate};
use crate::router::roster::members::Members;
use crate::router::roster::state::{State, World};

/// A client that knows what it was told, and nothing else.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Users(BTreeSet<UserId>),
    Count(u64),
}

impl Heard {
    pub fn count(&self) -> u64 {
        match self {
            Heard::Users(users) => users.len() as u64,
            Heard::Count(count) => *count,
        }
    }

    pub fn of(update: &RosterUpdate) -> Self {
        match &update.roster.users {
            Some(users) => Heard::Users(users.iter().cloned().collect()),
            None => Heard::Count(update.roster.count),
        }
    }

    pub fn hear(&mut self, update: &RosterUpdate) {
        if update.is_anew {
            *self = Self::of(update);
        }
        for change in &update.changes {
            match (&mut *self, &change.user) {
                (Heard::Users(users), Some(user)) => {
                    let is_news = match change.event {
                        Event::Join => users.insert(user.clone()),
                        Event::Leave => users.remove(user),
                    };
                    assert!(is_news, "{change:?} was known");
                }
                _ => *self = Heard::Count(change.count),
            }
            assert_eq!(self.count(), change.count);
        }
        assert_eq!(*self, Self::of(update), "the changes make what the roster says");
    }
}

#[derive(Default)]
pub struct Here {
    /// How many sessions of each user.
    pub users: BTreeMap<UserId, usize>,
    pub listens: bool,
    pub heard: Option<Heard>,
    pub open: BTreeSet<u64>,
}

/// From when on a node has a channel, as which incarnation, or has it not.
pub type Known = (Duration, Option<Incarnation>);

pub struct Process {
    pub state: State,
    pub channels: BTreeMap<ChannelName, Here>,
    pub followed: BTreeSet<ChannelName>,
    /// Of this process.
    pub incarnation: Incarnation,
    /// What the directory names here: since when each other node has a channel, and as which incarnation.
    pub known: BTreeMap<(NodeId, ChannelName), Vec<Known>>,
    pub now: Duration,
    pub is_full: bool,
}

impl World for Process {
    fn follow(&mut self, channel: &ChannelName) {
        self.followed.insert(channel.clone());
    }

    fn unfollow(&mut self, channel: &ChannelName) {
        self.followed.remove(channel);
    }

    fn here(&self, channel: &ChannelName, listed_max: usize) -> Members {
        let users: Vec<_> =
            self.channels.get(channel).into_iter().flat_map(|of| of.users.keys().cloned()).collect();
        let count = users.len();
        Members::of_node((if count <= listed_max { users } else { Vec::new() }, count))
    }

    fn nodes(&self, channel: &ChannelName) -> Holders {
        let holder = |entries: &[Known]| {
            entries.iter().rev().find(|(at, _)| *at <= self.now).and_then(|(_, holder)| *holder)
        };
        let known = self.known.iter().filter(|((_, of), _)| of == channel);
        known.filter_map(|((node, _), entries)| Some((node.clone(), holder(entries)?))).collect()
    }

    fn tell(&mut self, channel: &ChannelName, update: RosterUpdate, answers: &[Answer]) -> bool {
        if self.is_full {
            return false;
        }
        let Some(here) = self.channels.get_mut(channel) else { return true };
        if let Some(heard) = &mut here.heard {
            heard.hear(&update);
        }
        for answer in answers {
            assert!(here.open.remove(&answer.ticket.number), "answered once");
            here.heard = Some(Heard::of(&update));
        }
        true
    }
}

/// The machine sees the process that it is a part of.
pub fn with_state<T>(process: &mut Process, act: impl FnOnce(&mut State, &mut Process) -> T) -> T {
    let mut state = std::mem::replace(&mut process.state, State::new(node(0), 0));
    let result = act(&mut state, process);
    process.state = state;
    result
}
