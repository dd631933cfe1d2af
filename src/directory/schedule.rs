//! The timers of the directory: batches, heartbeats, probes, silence, retries and outgoing snapshots.

use std::collections::VecDeque;
use std::time::Duration;

use super::gossip::{Delta, Gossip, Heartbeat, Identity, Snapshot, DELTA_KEYS_MAX, SNAPSHOT_KEYS_MAX};
use super::homes::Homes;
use super::key::Key;
use super::peers::Reason;
use super::state::{Effect, Recipients, State};
use crate::ids::{Incarnation, NodeId};

/// Heartbeats come this often, or up to [`JITTER`] sooner.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
const JITTER: Duration = Duration::from_millis(300);
/// A peer that was silent for so long has missed three heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_millis(6_500);
/// How often the next node in the ring is probed, silence noticed and repairs retried.
pub const ROUND_EVERY: Duration = Duration::from_millis(250);
/// The heartbeat that answers a hello waits this long: nodes that come back together (the broker restarted)
/// get one answer and not one each.
pub const HELLO_ANSWER_WAIT: Duration = Duration::from_millis(20);
/// Deltas, and parts of snapshots, go out in bursts of this many, so that they never take up the window of
/// unconfirmed publishes for themselves.
const BURST: usize = 32;
const BURST_EVERY: Duration = Duration::from_millis(10);

/// A snapshot on its way out.
#[derive(Debug)]
struct Outgoing {
    nodes: Recipients,
    incarnation: Incarnation,
    seq: u64,
    keys: Vec<Key>,
    next: u32,
}

#[derive(Debug)]
pub(super) struct Schedule {
    heartbeat_at: Duration,
    round_at: Duration,
    /// When the next burst of snapshot parts may go, if there is any.
    burst_at: Duration,
    /// Who asked for a snapshot since the last one was taken; one copy serves all of them.
    askers: Recipients,
    outgoing: VecDeque<Outgoing>,
    /// The deltas that are due did not all fit into the last burst; the rest goes at this time.
    rest_at: Option<Duration>,
    random: u64,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self {
            heartbeat_at: Duration::ZERO,
            round_at: Duration::ZERO,
            burst_at: Duration::ZERO,
            askers: Recipients::new(),
            outgoing: VecDeque::new(),
            rest_at: None,
            random: seed | 1,
        }
    }

    pub fn begin_anew(&mut self, now: Duration) {
        self.heartbeat_at = now;
        self.round_at = now + ROUND_EVERY;
        self.rest_at = None;
        self.forget_askers();
    }

    /// The peers will ask the next incarnation of this node.
    pub fn forget_askers(&mut self) {
        self.askers.clear();
        self.outgoing.clear();
    }

    pub fn heartbeat_by(&mut self, at: Duration) {
        self.heartbeat_at = self.heartbeat_at.min(at);
    }

    pub fn serve(&mut self, node: NodeId, incarnation: Incarnation, now: Duration) {
        if self.askers.is_empty() && self.outgoing.is_empty() {
            self.burst_at = now + BURST_EVERY;
        }
        self.askers.retain(|(asker, _)| *asker != node);
        self.askers.push((node, incarnation));
    }

    /// Spreads the heartbeats of nodes that started together (xorshift64).
    fn jitter(&mut self) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        JITTER.mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

impl State {
    /// When [`poll`](Self::poll) has something to do again, if nothing happens before. `None`: nothing to do
    /// until the link is there.
    pub fn next_poll(&self) -> Option<Duration> {
        let confirm = self.confirms.due();
        if self.own.speaking().is_none() {
            return confirm;
        }
        let schedule = &self.schedule;
        let mut next = schedule.heartbeat_at.min(schedule.round_at);
        if let Some(due) = self.local.due() {
            next = next.min(due.max(schedule.rest_at.unwrap_or(due)));
        }
        if let Some(due) = self.homes.as_ref().and_then(Homes::due) {
            next = next.min(due);
        }
        if !schedule.askers.is_empty() || !schedule.outgoing.is_empty() {
            next = next.min(schedule.burst_at);
        }
        Some(confirm.map_or(next, |confirm| next.min(confirm)))
    }

    /// Does what is due by `now`, and hands out the effects of that and of everything since the last time.
    /// They are to be carried out in this order.
    pub fn poll(&mut self, now: Duration) -> Vec<Effect> {
        if let Some(incarnation) = self.own.speaking() {
            if std::mem::take(&mut self.own.hello_due) {
                let hello = Identity { node: self.own.node.clone(), incarnation };
                self.effects.push(Effect::Publish(Gossip::Hello(hello)));
            }
            self.tell_changes(incarnation, now);
            self.tell_homes(incarnation, now);
            if self.schedule.heartbeat_at <= now {
                self.schedule.heartbeat_at = now + HEARTBEAT_EVERY - self.schedule.jitter();
                self.effects.push(Effect::Publish(Gossip::Heartbeat(self.heartbeat(incarnation, now))));
            }
            if self.schedule.burst_at <= now {
                self.serve_snapshots(incarnation, now);
            }
            if self.schedule.round_at <= now {
                self.schedule.round_at = now + ROUND_EVERY;
                self.round(incarnation, now);
            }
        }
        let expired = self.confirms.expire(now);
        self.confirmed(expired);
        std::mem::take(&mut self.effects)
    }

    fn tell_changes(&mut self, incarnation: Incarnation, now: Duration) {
        if self.schedule.rest_at.is_some_and(|at| now < at) {
            return;
        }
        self.schedule.rest_at = None;
        for _ in 0..BURST {
            let Some(cut) = self.local.cut(now) else { return self.confirms.all_published() };
            let (node, seq) = (self.own.node.clone(), cut.seq);
            let peers = self.peers.iter().map(|(node, peer)| (node, peer.replica.incarnation()));
            let ask = self.confirms.published(seq, &cut.joined, peers, now);
            let delta = Delta { node, incarnation, seq, joined: cut.joined, left: cut.left, ask };
            self.effects.push(Effect::Publish(Gossip::Delta(delta)));
        }
        self.schedule.rest_at = Some(now + BURST_EVERY);
    }

    fn heartbeat(&self, incarnation: Incarnation, now: Duration) -> Heartbeat {
        let published = self.local.published();
        Heartbeat {
            node: self.own.node.clone(),
            incarnation,
            seq: self.local.seq(),
            count: published.count,
            digest: published.digest,
            clock_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            ends: self.homes.as_ref().map(Homes::ends).unwrap_or_default(),
            info: self.own.info.clone(),
        }
    }

    fn serve_snapshots(&mut self, incarnation: Incarnation, now: Duration) {
        if !self.schedule.askers.is_empty() {
            let nodes = std::mem::take(&mut self.schedule.askers);
            let (seq, keys) = (self.local.seq(), self.local.published_keys());
            self.schedule.outgoing.push_back(Outgoing { nodes, incarnation, seq, keys, next: 0 });
        }
        for _ in 0..BURST {
            let Some(outgoing) = self.schedule.outgoing.front_mut() else { return };
            let parts = outgoing.parts();
            let gossip = Gossip::Snapshot(outgoing.part(&self.own.node));
            self.effects.push(Effect::SendTo { nodes: outgoing.nodes.clone(), gossip });
            outgoing.next += 1;
            if outgoing.next == parts {
                self.schedule.outgoing.pop_front();
            }
        }
        self.schedule.burst_at = now + BURST_EVERY;
    }

    /// The periodic work of each [`ROUND_EVERY`].
    fn round(&mut self, incarnation: Incarnation, now: Duration) {
        if self.has_heard_all(now) {
            self.strangers.joined();
        }
        // Silence is measured up to the moment to which the control queue has been read, not up to now: after a pause of
        // this process, or while its queue lags, the others only seem to be silent.
        if let Some(since) = self.control_read_to.and_then(|read_to| read_to.checked_sub(SILENCE_MAX)) {
            for (node, silent) in self.peers.silent_since(since) {
                self.drop_peer(&node, silent, Reason::Silent, now);
            }
        }
        let doubtful: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.replica.synced())
            .map(|(node, _)| node.clone())
            .collect();
        for node in doubtful {
            self.ask_if_due(&node, now);
        }
        let probe = match self.peers.next_after(&self.own.node) {
            Some((node, peer)) => (node.clone(), peer.replica.incarnation()),
            None => (self.own.node.clone(), incarnation),
        };
        self.effects.push(Effect::Probe { node: probe.0, incarnation: probe.1 });
        self.peers.forget_old_tombstones(now);
    }
}

impl Outgoing {
    fn parts(&self) -> u32 {
        u32::try_from(self.keys.len().div_ceil(SNAPSHOT_KEYS_MAX).max(1)).unwrap_or(u32::MAX)
    }

    fn part(&self, node: &NodeId) -> Snapshot {
        let keys = self.keys.chunks(SNAPSHOT_KEYS_MAX).nth(self.next as usize).unwrap_or_default();
        Snapshot {
            node: node.clone(),
            incarnation: self.incarnation,
            seq: self.seq,
            part: self.next,
            parts: self.parts(),
            keys: keys.to_vec(),
        }
    }
}

// A delta must fit into one message with room to spare, like a part of a snapshot.
const _: () = assert!(DELTA_KEYS_MAX <= SNAPSHOT_KEYS_MAX);
