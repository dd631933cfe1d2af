//! The directory's part in the ring: it follows the membership, sends streams of entries and takes in those of others.

use std::time::Duration;

use smallvec::SmallVec;

use super::gossip::{Entries, EntriesLost, Gossip, StreamEnd};
use super::homes::{Home, Told};
use super::key::Key;
use super::peers::Proof;
use super::state::{Effect, State};
use super::Directory;
use crate::ids::{Incarnation, NodeId};

/// Parts of one stream that go out at once.
const PARTS_AT_ONCE: usize = 4;

impl Directory {
    /// With the ring: which node knows where the user is, or where the user is.
    pub fn home_of(&self, key: Key) -> Home {
        let now = self.now();
        self.read().home_of(key, now)
    }

    /// With the ring: the first session of a user is here, or the last one is gone. The user's home is told.
    pub fn set_home_user(&self, key: Key, is_here: bool) {
        let now = self.now();
        let sooner = self.write().set_home_user(key, is_here, now);
        self.wake_if(sooner);
    }

    /// Entries of the ring did not get through to this node.
    pub(super) fn entries_failed(&self, node: &NodeId) {
        let now = self.now();
        self.write().entries_failed(node, now);
        self.wake_if(true);
    }
}

impl State {
    pub fn home_of(&self, key: Key, now: Duration) -> Home {
        let peers = self.peers.iter().count();
        match &self.homes {
            Some(homes) => homes.find(&self.own.node, key, peers, self.has_heard_all(now)),
            None => Home::Unsure,
        }
    }

    /// Whether there is now something to do sooner than before.
    pub fn set_home_user(&mut self, key: Key, is_here: bool, now: Duration) -> bool {
        let Some(homes) = &mut self.homes else { return false };
        if is_here {
            homes.join(key, now)
        } else {
            homes.leave(key, now)
        }
    }

    pub(super) fn homes_link_up(&mut self, now: Duration) {
        if let Some(homes) = &mut self.homes {
            homes.link_up();
        }
        self.members_changed(now);
    }

    pub(super) fn members_changed(&mut self, now: Duration) {
        let Some(homes) = &mut self.homes else { return };
        let of = |(node, peer): (&NodeId, &super::peers::Peer)| (node.clone(), peer.replica.incarnation());
        let peers: Vec<_> = self.peers.iter().map(of).collect();
        homes.members(&self.own.node, &peers, now);
    }

    pub(super) fn on_entries(&mut self, entries: Entries, now: Duration) {
        if self.admit(&entries.node, entries.incarnation, Proof::Sent, now) {
            if let Some(homes) = &mut self.homes {
                homes.on_entries(entries, now);
            }
        }
    }

    pub(super) fn on_entries_lost(&mut self, lost: &EntriesLost, now: Duration) {
        if lost.of == self.own.node && self.admit(&lost.node, lost.incarnation, Proof::Sent, now) {
            self.entries_failed(&lost.node, now);
        }
    }

    pub(super) fn on_stream_ends(
        &mut self,
        node: &NodeId,
        incarnation: Incarnation,
        ends: &[StreamEnd],
        now: Duration,
    ) {
        let Some(homes) = &mut self.homes else { return };
        if let Some(end) = ends.iter().find(|end| end.to == self.own.node) {
            homes.on_end(node, incarnation, end, now);
        }
    }

    pub(super) fn entries_failed(&mut self, node: &NodeId, now: Duration) {
        if let Some(homes) = &mut self.homes {
            homes.lost(node, now);
        }
    }

    /// Sends what is due, and asks for what is missing.
    pub(super) fn tell_homes(&mut self, incarnation: Incarnation, now: Duration) {
        let Some(homes) = &mut self.homes else { return };
        for Told { to, of, entries } in homes.cut(&self.own.node, incarnation, now, PARTS_AT_ONCE) {
            let nodes = SmallVec::from_iter([(to, of)]);
            self.effects.push(Effect::SendTo { nodes, gossip: Gossip::Entries(entries) });
        }
        for (of, its) in homes.missing(now) {
            let lost = EntriesLost { node: self.own.node.clone(), incarnation, of: of.clone() };
            let nodes = SmallVec::from_iter([(of, its)]);
            self.effects.push(Effect::SendTo { nodes, gossip: Gossip::EntriesLost(lost) });
        }
    }
}
