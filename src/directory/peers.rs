//! Who is in the cluster: live peers with the copies of their sets, and the graves of those that are gone.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::time::Duration;

use super::gossip::Info;
use super::replica::{Replica, REPAIR_RETRY};
use crate::ids::{Incarnation, NodeId};

/// An incarnation that was declared dead stays so for this long, whatever it says. Its queue is gone, so it
/// cannot be reached even if its process still talks; but the finder may have been wrong (a broker in a cluster
/// routes by bindings that may lag), so a heartbeat after this time is believed. So is one of an older
/// incarnation: no heartbeat is that late, but a node that moved to a host whose clock is behind begins with one.
pub const DEATH_HOLDS: Duration = Duration::from_secs(10);
/// A grave is kept as long as anything that its node published might still arrive.
const GRAVE_KEPT: Duration = Duration::from_secs(600);

/// Why a peer was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It said goodbye.
    Bye,
    /// What was sent to it came back, here or at another node.
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
struct Grave {
    /// The highest incarnation that is dead.
    incarnation: Incarnation,
    since: Duration,
    /// False after mere silence: the node may have been paused, or we were deaf.
    certain: bool,
}

/// What a message proves about its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It began its incarnation: nothing has been told before.
    Beginning,
    /// It was alive when it sent this, on purpose to say so.
    Alive,
    /// Nothing more than that it once sent this.
    Sent,
}

/// What became of the sender of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is dead, or superseded: its message is to be ignored.
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
    graves: HashMap<NodeId, Grave>,
}

impl Peers {
    pub fn get(&self, node: &NodeId) -> Option<&Peer> {
        self.live.get(node)
    }

    pub fn get_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.live.get_mut(node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Peer)> {
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

    /// Takes note that `node` sent something as `incarnation`. The merge rules between incarnations are here:
    /// the newer one replaces the older, and the dead stay dead.
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
        } else if let Some(grave) = self.graves.get(node) {
            if incarnation <= grave.incarnation {
                let doomed = grave.certain || incarnation < grave.incarnation;
                let held = doomed && now < grave.since + DEATH_HOLDS;
                if proof == Proof::Sent || held {
                    return Admission::Refused;
                }
                // Back from the dead: what it told meanwhile was not heard.
                replica.doubt(now);
            }
        }
        if proof == Proof::Sent {
            // Its beginning went unheard, and other things may have as well.
            replica.doubt(now + REPAIR_RETRY);
        }
        self.graves.remove(node);
        let peer = Peer { replica, last_heard: now, info: Info::default(), served_at: None };
        self.live.insert(node.clone(), peer);
        Admission::New { after }
    }

    /// Drops `node` if its incarnation is not newer than the one that is said to be gone, and sees to it that
    /// nothing late brings it back. Answers which incarnation was live.
    pub fn bury(
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
        match self.graves.get_mut(node) {
            Some(grave) if grave.incarnation > incarnation => {}
            // A certain death is not made younger by hearing of it again, or it could last for ever.
            Some(grave) if grave.incarnation == incarnation && (grave.certain || !certain) => {}
            _ => {
                self.graves.insert(node.clone(), Grave { incarnation, since: now, certain });
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

    pub fn forget_old_graves(&mut self, now: Duration) {
        self.graves.retain(|_, grave| now < grave.since + GRAVE_KEPT);
    }
}
