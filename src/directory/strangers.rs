//! Nodes that should not be there: processes with this node's id, and live nodes that route in another way. Pure.
//!
//! Nothing that the latter say is believed, and one of the two sides leaves.
//! A message for a user goes where the origin's strategy sends it, and is answered as the target's strategy has it. Nodes
//! that disagree would find each other's users by luck. So a node that meets another strategy before it has been in the
//! cluster for a while refuses to join; one that has goes on, without the stranger.

use std::collections::BTreeMap;
use std::time::Duration;

use super::gossip::{Dialect, Gossip};
use super::peers::Reason;
use super::state::{Effect, State};
use crate::ids::{Incarnation, NodeId};

/// Strangers that are remembered, so that each is told of once. More of them are told of again.
const TOLD_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// This process has heard the others, and all of them route as it does.
    has_joined: bool,
    told: BTreeMap<NodeId, Incarnation>,
}

impl Strangers {
    pub fn joined(&mut self) {
        self.has_joined = true;
    }
}

impl State {
    /// Gossip arrived under this node's own id.
    pub(super) fn mirror(&mut self, incarnation: Incarnation) {
        let Some(&newest) = self.own.incarnations.back() else { return };
        if self.own.incarnations.contains(&incarnation) {
            return;
        }
        let (again, reported) = match self.own.foreign {
            Some((foreign, reported)) if foreign == incarnation => (true, reported),
            _ => (false, false),
        };
        // A single message of an older incarnation may be the last one of the process that this one replaced. A second one
        // shows that it is alive.
        let report = !reported && (incarnation > newest || again);
        self.own.foreign = Some((incarnation, reported || report));
        if report {
            self.effects.push(Effect::Conflict { incarnation });
        }
    }

    /// Takes gossip of a node that routes in another way.
    pub fn on_stranger(&mut self, dialect: Dialect, gossip: &Gossip, now: Duration) {
        // Only these two prove that their sender is alive.
        let (node, incarnation) = match gossip {
            Gossip::Hello(who) => (&who.node, who.incarnation),
            Gossip::Heartbeat(beat) => (&beat.node, beat.incarnation),
            _ => return,
        };
        if self.has_heard_all(now) {
            self.strangers.joined();
        }
        if let Some(known) = self.peers.get(node).map(|peer| peer.replica.incarnation()) {
            if known < incarnation {
                // The node was started anew: the process that this one knew is gone.
                self.drop_peer(node, known, Reason::Superseded, now);
            }
        }
        if self.strangers.told.get(node) == Some(&incarnation) {
            return;
        }
        if self.strangers.told.len() >= TOLD_MAX {
            self.strangers.told.clear();
        }
        self.strangers.told.insert(node.clone(), incarnation);
        let is_refusal = !self.strangers.has_joined;
        self.effects.push(Effect::Stranger { node: node.clone(), dialect, is_refusal });
    }
}
