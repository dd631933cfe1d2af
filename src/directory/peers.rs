//! Who is in the cluster: live peers with the replicas of their sets, and tombstones of those that are gone.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::time::Duration;

use super::gossip::Info;
use super::replica::{Replica, REPAIR_RETRY};
use crate::ids::{Incarnation, NodeId};

/// For this long after an incarnation was declared dead, its heartbeats are ignored: its queue is gone, so it cannot be
/// reached even if its process still publishes. A heartbeat after this time is accepted, because the node that reported
/// the death may have been wrong (in a broker cluster the bindings may lag). The same holds for a heartbeat of an older
/// incarnation: no heartbeat is that late, but a node that moved to a host whose clock is behind starts with one.
pub const DEATH_HOLDS: Duration = Duration::from_secs(10);
/// A tombstone is kept for as long as a message that its node published may still arrive.
const TOMBSTONE_KEPT: Duration = Duration::from_secs(600);

/// Why a peer was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It said goodbye.
    Bye,
    /// A publish to it was returned, here or at another node.
    Unroutable,
    /// It missed its heartbeats.
    Silent,
    /// Its node goes on with a newer incarnation.
    Superseded,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Bye => "bye",
            Reason::Unroutable => "unroutable",
            Reason::Silent => "silent",
            Reason::Superseded => "superseded",
        }
    }
}

#[derive(Debug)]
pub struct Peer {
    pub replica: Replica,
    pub last_heard: Duration,
    pub info: Info,
    /// When it was last sent a snapshot of our set.
    pub served_at: Option<Duration>,
}

#[derive(Debug)]
struct Tombstone {
    /// The highest incarnation that is dead.
    incarnation: Incarnation,
    since: Duration,
    /// False after silence alone: the node may have been paused, or this node did not receive.
    certain: bool,
}

/// What a message proves about its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It began its incarnation: nothing has been told before.
    Beginning,
    /// It was alive when it sent this, on purpose to say so.
    Alive,
    /// It sent this at some time, and may be dead since.
    Sent,
}

/// What became of the sender of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is dead or superseded: its message is ignored.
    Refused,
    Known,
    /// It was not live before. `after`: the incarnation of the same node that it takes the place of.
    New {
        after: Option<Incarnation>,
    },
}

#[derive(Debug, Default)]
pub struct Peers {
    /// Sorted, since the order of the ids is the ring in which nodes probe each other.
    live: BTreeMap<NodeId, Peer>,
    tombstones: HashMap<NodeId, Tombstone>,
}

impl Peers {
    pub fn get(&self, node: &NodeId) -> Option<&Peer> {
        self.live.get(node)
    }

    pub fn get_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.live.get_mut(node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Peer)> + Clone {
        self.live.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&NodeId, &mut Peer)> {
        self.live.iter_mut()
    }

    /// The next node after `node` in the ring.
    pub fn next_after(&self, node: &NodeId) -> Option<(&NodeId, &Peer)> {
        let after = (Bound::Excluded(node), Bound::Unbounded);
        self.live.range::<NodeId, _>(after).next().or_else(|| self.live.first_key_value())
    }

    /// Notes that `node` sent a message as `incarnation`. The merge rules between incarnations are here: the newer one
    /// replaces the older, and a dead one stays dead while [`DEATH_HOLDS`].
    pub fn admit(
        &mut self,
        node: &NodeId,
        incarnation: Incarnation,
        proof: Proof,
        now: Duration,
    ) -> Admission {
        let mut after = None;
        let mut replica = Replica::new(incarnation);
        if let Some(peer) = self.live.get_mut(node) {
            let known = peer.replica.incarnation();
            if incarnation < known {
                return Admission::Refused;
            }
            if incarnation == known {
                peer.last_heard = now;
                return Admission::Known;
            }
            after = Some(known);
        } else if let Some(tombstone) = self.tombstones.get(node) {
            if incarnation <= tombstone.incarnation {
                let is_dead = tombstone.certain || incarnation < tombstone.incarnation;
                let held = is_dead && now < tombstone.since + DEATH_HOLDS;
                if proof == Proof::Sent || held {
                    return Admission::Refused;
                }
                // The node was alive after all. The deltas that it published meanwhile were ignored here.
                replica.doubt(now);
            }
        }
        if proof == Proof::Sent {
            // Its hello was missed here, and deltas may have been missed as well.
            replica.doubt(now + REPAIR_RETRY);
        }
        self.tombstones.remove(node);
        let peer = Peer { replica, last_heard: now, info: Info::default(), served_at: None };
        self.live.insert(node.clone(), peer);
        Admission::New { after }
    }

    /// Drops `node` unless it is live with an incarnation newer than `incarnation`, and leaves a tombstone so that a late
    /// message does not bring it back. Returns the incarnation that was live.
    pub fn mark_dead(
        &mut self,
        node: &NodeId,
        incarnation: Incarnation,
        certain: bool,
        now: Duration,
    ) -> Option<Incarnation> {
        let live = self.live.get(node).map(|peer| peer.replica.incarnation());
        if live.is_some_and(|live| live > incarnation) {
            return None;
        }
        self.live.remove(node);
        match self.tombstones.get_mut(node) {
            Some(tombstone) if tombstone.incarnation > incarnation => {}
            // A second report does not renew the tombstone of a certain death, or repeated reports could keep it for ever.
            Some(tombstone) if tombstone.incarnation == incarnation && (tombstone.certain || !certain) => {}
            _ => {
                self.tombstones.insert(node.clone(), Tombstone { incarnation, since: now, certain });
            }
        }
        live
    }

    /// The peers that have not been heard since `since`.
    pub fn silent_since(&self, since: Duration) -> Vec<(NodeId, Incarnation)> {
        self.live
            .iter()
            .filter(|(_, peer)| peer.last_heard < since)
            .map(|(node, peer)| (node.clone(), peer.replica.incarnation()))
            .collect()
    }

    pub fn forget_old_tombstones(&mut self, now: Duration) {
        self.tombstones.retain(|_, tombstone| now < tombstone.since + TOMBSTONE_KEPT);
    }
}
