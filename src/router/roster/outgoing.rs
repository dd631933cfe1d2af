//! What this node tells others about who is in one channel here. Pure.
//!
//! It does not count joins and leaves: it compares what it told last with what is true now, and tells the difference. So
//! whatever happens in between costs nothing, and a change that is noticed twice is told once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::members::{difference, Difference, Members};
use super::words::{Version, Watched, What};
use crate::ids::NodeId;

/// A change waits this long for others.
pub const GATHER: Duration = Duration::from_millis(20);
/// Nothing is told sooner than this after the last word.
pub const TELL_EVERY: Duration = Duration::from_millis(50);
/// A word that the broker did not confirm is repeated after this long.
pub const TRY_AGAIN: Duration = Duration::from_millis(250);
/// Who has not asked again for so long is told no more: three times the period of questions, and a little.
pub const LEASE: Duration = Duration::from_secs(13);

#[derive(Debug)]
pub struct Outgoing {
    version: Version,
    told: Members,
    /// Who is told, and until when.
    lessees: BTreeMap<NodeId, Duration>,
    /// When to look for what has changed.
    due: Option<Duration>,
    told_at: Duration,
    /// The last word may not have reached everybody: the next one repeats everything.
    is_unsure: bool,
}

impl Outgoing {
    pub fn new(stream: u64, members: Members) -> Self {
        Self {
            version: Version { stream, seq: 0 },
            told: members,
            lessees: BTreeMap::new(),
            due: None,
            told_at: Duration::ZERO,
            is_unsure: false,
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn lessees(&self) -> impl Iterator<Item = &NodeId> {
        self.lessees.keys()
    }

    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    pub fn listed_max(&self) -> usize {
        self.told.listed_max()
    }

    /// Something may have changed here.
    pub fn changed(&mut self, now: Duration) {
        let due = (now + GATHER).max(self.told_at + TELL_EVERY);
        self.due.get_or_insert(due);
    }

    /// A word was not confirmed. Who is `gone` asks again if it comes back.
    pub fn failed(&mut self, gone: &[NodeId], now: Duration) {
        self.lessees.retain(|node, _| !gone.contains(node));
        self.is_unsure |= gone.is_empty();
        if self.is_unsure {
            self.due = Some(now + TRY_AGAIN);
        }
    }

    /// What to tell everybody, if there is anything new.
    pub fn tell(&mut self, members: Members, now: Duration) -> Option<What> {
        self.due = None;
        if members == self.told && !self.is_unsure {
            return None;
        }
        let what = match (&self.told, &members) {
            (Members::Users(before), Members::Users(after)) if !self.is_unsure => {
                let Difference { joined, left } = difference(before, after);
                What::Changed { joined, left }
            }
            _ => everything(&members),
        };
        self.told = members;
        self.told_at = now;
        self.is_unsure = false;
        self.version.seq += 1;
        Some(what)
    }

    /// Another node asks; everything new has just been told. Returns the answer, if one is needed.
    pub fn asked(&mut self, by: &NodeId, watched: &Watched, now: Duration) -> Option<What> {
        let was_told = self.lessees.insert(by.clone(), now + LEASE).is_some();
        let follows = watched.version.is_some_and(|has| has.stream == self.version.stream);
        match was_told && follows {
            false => Some(everything(&self.told)),
            // It knows by itself whether it has missed something.
            true => {
                let is_needed = watched.sync > 0 || watched.version != Some(self.version);
                is_needed.then_some(What::Unchanged)
            }
        }
    }

    /// Ends what has not been renewed, and what `node` wants no more. Whether somebody is left.
    pub fn expire(&mut self, node: Option<&NodeId>, now: Duration) -> bool {
        self.lessees.retain(|of, until| *until > now && node != Some(of));
        !self.lessees.is_empty()
    }
}

fn everything(members: &Members) -> What {
    match members {
        Members::Users(users) => What::Users(users.iter().cloned().collect()),
        Members::Count(count) => What::Count(*count),
    }
}
