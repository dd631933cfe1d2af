//! The directory as a pure state machine: gossip and the time go in, effects come out.
//!
//! Time is the duration since the machine was made, so that a simulation can make it up.

use std::collections::VecDeque;
use std::time::Duration;

use smallvec::SmallVec;

use super::certainty::PEERS_RETURN;
use super::confirm::{Confirms, WaitId};
use super::gossip::{Dead, Delta, Dialect, Gossip, Identity, Info, Merged, Snapshot, SnapshotRequest};
use super::homes::Homes;
use super::key::Key;
use super::local::Local;
use super::peers::{Admission, Peers, Proof, Reason};
use super::replica::REPAIR_RETRY;
use super::schedule::{Schedule, HELLO_ANSWER_WAIT};
use super::strangers::Strangers;
use super::watched::Watched;
use crate::ids::{Incarnation, NodeId};

/// A peer that asks again sooner than this after it was sent a snapshot has not read that one yet.
const SERVED_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Own incarnations that are remembered. More reconnects than this while one old message lingers do not happen.
const OWN_INCARNATIONS_KEPT: usize = 256;

/// Nodes, each with the incarnation that is meant.
pub type Recipients = SmallVec<[(NodeId, Incarnation); 2]>;

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Publish to every node.
    Publish(Gossip),
    /// Send to these nodes directly.
    SendTo {
        nodes: Recipients,
        gossip: Gossip,
    },
    /// Find out whether the node's queue exists; this node's own when it is alone.
    Probe {
        node: NodeId,
        incarnation: Incarnation,
    },
    NodeUp {
        node: NodeId,
    },
    NodeLost {
        node: NodeId,
        incarnation: Incarnation,
        reason: Reason,
    },
    /// The peers know what this wait was for, or its time is over.
    Confirmed(WaitId),
    /// Another process uses this node's id.
    Conflict {
        incarnation: Incarnation,
    },
    /// A live node routes in another way. `is_refusal`: this one must not join.
    Stranger {
        node: NodeId,
        dialect: Dialect,
        is_refusal: bool,
    },
}

/// This node as the others know it.
#[derive(Debug)]
pub(super) struct Own {
    pub node: NodeId,
    /// `None` while there is no link.
    pub incarnation: Option<Incarnation>,
    /// All of this process, the newest last.
    pub(super) incarnations: VecDeque<Incarnation>,
    /// Whether the broker takes messages.
    pub publishing: bool,
    /// The new incarnation has not been announced yet.
    pub hello_due: bool,
    /// The farewell was published; no gossip may follow it.
    pub left: bool,
    pub info: Info,
    /// The last foreign incarnation under our node id, and whether it was reported.
    pub(super) foreign: Option<(Incarnation, bool)>,
}

impl Own {
    /// Our incarnation, if it may be heard of.
    pub fn speaking(&self) -> Option<Incarnation> {
        self.incarnation.filter(|_| self.publishing && !self.left)
    }
}

#[derive(Debug)]
pub struct State {
    pub(super) own: Own,
    pub(super) local: Local,
    pub(super) peers: Peers,
    pub(super) schedule: Schedule,
    pub(super) confirms: Confirms,
    pub(super) watched: Watched,
    /// The same for one who watches all keys.
    pub(super) all_watched: Watched,
    pub(super) strangers: Strangers,
    /// With the ring alone.
    pub(super) homes: Option<Homes>,
    pub(super) effects: Vec<Effect>,
    /// Everything that was published to the control exchange before this moment has been read here.
    pub(super) control_read_to: Option<Duration>,
    pub(super) linked_at: Duration,
    /// Until then nodes that were there before the link was lost may not have theirs back.
    pub(super) returning_until: Duration,
}

impl State {
    /// `seed` is for the jitter of the timers alone.
    pub fn new(node: NodeId, info: Info, seed: u64, has_ring: bool) -> Self {
        let own = Own {
            node,
            incarnation: None,
            incarnations: VecDeque::new(),
            publishing: false,
            hello_due: false,
            left: false,
            info,
            foreign: None,
        };
        Self {
            own,
            local: Local::default(),
            peers: Peers::default(),
            schedule: Schedule::new(seed),
            confirms: Confirms::default(),
            watched: Watched::default(),
            all_watched: Watched::default(),
            strangers: Strangers::default(),
            homes: has_ring.then(Homes::default),
            effects: Vec::new(),
            control_read_to: None,
            linked_at: Duration::ZERO,
            returning_until: Duration::ZERO,
        }
    }

    // ---- the own link ----

    /// The node's queues were declared anew: gossip published meanwhile is lost here, and the peers start over with this
    /// node's set.
    pub fn link_up(&mut self, incarnation: Incarnation, now: Duration) {
        self.own.incarnation = Some(incarnation);
        self.own.incarnations.push_back(incarnation);
        if self.own.incarnations.len() > OWN_INCARNATIONS_KEPT {
            self.own.incarnations.pop_front();
        }
        self.own.hello_due = true;
        self.local.begin_anew(now);
        self.schedule.begin_anew(now);
        self.confirms.begin_anew();
        self.control_read_to = None;
        self.linked_at = now;
        if self.peers.iter().next().is_some() {
            self.returning_until = now + PEERS_RETURN;
        }
        for (_, peer) in self.peers.iter_mut() {
            // Each peer answers the hello with a heartbeat, which shows whether deltas were missed.
            peer.replica.doubt(now + REPAIR_RETRY);
            peer.last_heard = now;
        }
        self.homes_link_up(now);
    }

    /// The replicas stay as hints. No peer is dropped while this node receives no gossip.
    pub fn link_down(&mut self) {
        self.own.incarnation = None;
        self.own.publishing = false;
        self.control_read_to = None;
        self.schedule.forget_askers();
    }

    /// Whether the broker takes messages now. While it does not, changes gather instead of getting lost.
    pub fn set_publishing(&mut self, publishing: bool, now: Duration) {
        if publishing && !self.own.publishing {
            self.schedule.heartbeat_by(now);
        }
        self.own.publishing = publishing;
    }

    // ---- this node's own keys ----

    /// Whether the time of the next poll is now another one. The same holds for [`leave`](Self::leave).
    pub fn join(&mut self, key: Key, now: Duration) -> bool {
        self.local.join(key, now)
    }

    pub fn leave(&mut self, key: Key, now: Duration) -> bool {
        let left = self.confirms.left(key);
        let is_heard = !left.is_empty();
        self.confirmed(left);
        self.local.leave(key, now) || is_heard
    }

    /// [`Effect::Confirmed`] will tell when the live peers know that this node has the key. `None`: they do.
    pub fn confirm(&mut self, key: Key, now: Duration) -> Option<WaitId> {
        let has_peers = self.peers.iter().next().is_some();
        self.confirms.wait(key, self.local.is_pending(key), has_peers, now)
    }

    pub(super) fn confirmed(&mut self, waits: Vec<WaitId>) {
        self.effects.extend(waits.into_iter().map(Effect::Confirmed));
    }

    /// The farewell, to be published after everything that was polled before.
    pub fn bye(&mut self) -> Option<Gossip> {
        let incarnation = self.own.speaking();
        self.own.left = true;
        Some(Gossip::Bye(Identity { node: self.own.node.clone(), incarnation: incarnation? }))
    }

    // ---- gossip from other nodes ----

    pub fn receive(&mut self, gossip: Gossip, now: Duration) {
        match gossip {
            Gossip::Unknown => {}
            // These two name a node that is gone; all others prove that their sender lives.
            Gossip::Dead(Dead { node, incarnation, .. }) => {
                self.drop_peer(&node, incarnation, Reason::Unroutable, now);
            }
            Gossip::Bye(Identity { node, incarnation }) => {
                self.drop_peer(&node, incarnation, Reason::Bye, now);
            }
            Gossip::Hello(who) => {
                if self.admit(&who.node, who.incarnation, Proof::Beginning, now) {
                    self.schedule.heartbeat_by(now + HELLO_ANSWER_WAIT);
                }
            }
            Gossip::Heartbeat(beat) => {
                if beat.node == self.own.node && Some(beat.incarnation) == self.own.incarnation {
                    let sent = Duration::from_millis(beat.clock_ms).min(now);
                    self.control_read_to = self.control_read_to.max(Some(sent));
                } else if self.admit(&beat.node, beat.incarnation, Proof::Alive, now) {
                    if let Some(peer) = self.peers.get_mut(&beat.node) {
                        peer.replica.compare(beat.seq, beat.fingerprint(), now);
                        peer.info = beat.info;
                    }
                    self.on_stream_ends(&beat.node, beat.incarnation, &beat.ends, now);
                    self.ask_if_due(&beat.node, now);
                }
            }
            Gossip::Delta(delta) => self.on_delta(delta, now),
            Gossip::Merged(Merged { node, incarnation, of, seq }) => {
                if self.admit(&node, incarnation, Proof::Sent, now) && Some(of) == self.own.incarnation {
                    let waits = self.confirms.merged(&node, incarnation, seq);
                    self.confirmed(waits);
                }
            }
            Gossip::Entries(entries) => self.on_entries(entries, now),
            Gossip::EntriesLost(lost) => self.on_entries_lost(&lost, now),
            Gossip::Snapshot(part) => self.on_snapshot(part, now),
            Gossip::SnapshotRequest(request) => self.on_snapshot_request(request, now),
        }
    }

    fn on_delta(&mut self, delta: Delta, now: Duration) {
        let (node, of, seq, ask) = (delta.node.clone(), delta.incarnation, delta.seq, delta.ask);
        if !self.admit(&node, of, Proof::Sent, now) {
            return;
        }
        self.watched.touch(delta.joined.iter().chain(&delta.left));
        self.all_watched.touch(delta.joined.iter().chain(&delta.left));
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.replica.merge(delta, now);
        }
        if let (true, Some(incarnation)) = (ask, self.own.speaking()) {
            let merged = Merged { node: self.own.node.clone(), incarnation, of, seq };
            let nodes = SmallVec::from_iter([(node.clone(), of)]);
            self.effects.push(Effect::SendTo { nodes, gossip: Gossip::Merged(merged) });
        }
        self.ask_if_due(&node, now);
    }

    fn on_snapshot(&mut self, part: Snapshot, now: Duration) {
        let node = part.node.clone();
        if self.admit(&node, part.incarnation, Proof::Sent, now) {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.replica.assemble(part, now);
            }
            self.touch_all();
        }
    }

    fn on_snapshot_request(&mut self, request: SnapshotRequest, now: Duration) {
        if request.of != self.own.node || !self.admit(&request.node, request.incarnation, Proof::Sent, now) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&request.node) {
            if peer.served_at.is_none_or(|at| now >= at + SERVED_AGAIN_AFTER) {
                peer.served_at = Some(now);
                self.schedule.serve(request.node, request.incarnation, now);
            }
        }
    }

    /// A direct publish that was meant for `incarnation` of `node` came back: at that moment no queue was
    /// bound for the node. `None`: the node was not known when the publish was sent, so if it is known now, it
    /// came up since, and the return says nothing about it.
    pub fn returned(&mut self, node: &NodeId, incarnation: Option<Incarnation>, now: Duration) {
        let Some(incarnation) = incarnation else { return };
        if self.drop_peer(node, incarnation, Reason::Unroutable, now) && self.own.speaking().is_some() {
            let (node, by) = (node.clone(), self.own.node.clone());
            self.effects.push(Effect::Publish(Gossip::Dead(Dead { node, incarnation, by })));
        }
    }

    // ---- in common ----

    fn touch_all(&mut self) {
        self.watched.touch_all();
        self.all_watched.touch_all();
    }

    /// Whether the message of this sender is to be processed.
    pub(super) fn admit(
        &mut self,
        node: &NodeId,
        incarnation: Incarnation,
        proof: Proof,
        now: Duration,
    ) -> bool {
        if *node == self.own.node {
            self.mirror(incarnation);
            return false;
        }
        match self.peers.admit(node, incarnation, proof, now) {
            Admission::Refused => false,
            Admission::Known => true,
            Admission::New { after } => {
                self.touch_all();
                if let Some(incarnation) = after {
                    let waits = self.confirms.gone(node);
                    self.confirmed(waits);
                    let (node, reason) = (node.clone(), Reason::Superseded);
                    self.effects.push(Effect::NodeLost { node, incarnation, reason });
                }
                self.effects.push(Effect::NodeUp { node: node.clone() });
                self.members_changed(now);
                true
            }
        }
    }

    /// Whether the peer was live.
    pub(super) fn drop_peer(
        &mut self,
        node: &NodeId,
        incarnation: Incarnation,
        reason: Reason,
        now: Duration,
    ) -> bool {
        if *node == self.own.node {
            return false;
        }
        let lost = self.peers.mark_dead(node, incarnation, reason != Reason::Silent, now);
        if let Some(incarnation) = lost {
            self.touch_all();
            let waits = self.confirms.gone(node);
            self.confirmed(waits);
            self.effects.push(Effect::NodeLost { node: node.clone(), incarnation, reason });
            self.members_changed(now);
        }
        lost.is_some()
    }

    pub(super) fn ask_if_due(&mut self, node: &NodeId, now: Duration) {
        let Some(own) = self.own.speaking() else { return };
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.replica.ask(now) {
            let request = SnapshotRequest { node: self.own.node.clone(), incarnation: own, of: node.clone() };
            let nodes = SmallVec::from_iter([(node.clone(), peer.replica.incarnation())]);
            self.effects.push(Effect::SendTo { nodes, gossip: Gossip::SnapshotRequest(request) });
        }
    }
}
