//! Which users are on which nodes, as each user's home knows it: for nodes that route by the ring. Pure.
//!
//! A node tells each other node those of its users whose home that is, as a numbered stream of [`Entries`]. The last of
//! what is due bears the view, the list of live nodes, by which the sender chose. A home that has the same view from every
//! live node knows all the holders of its users. Until then it is not sure, and whoever asks it gets all nodes.
//!
//! A stream begins anew, under a higher epoch and with an empty set, when the receiver has new queues, when the sender's
//! publish failed and when the receiver missed a part. Heartbeats bear the ends of all streams, so that the last part may
//! be missed as well.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::gossip::{Entries, StreamEnd, DELTA_KEYS_MAX};
use super::key::{Key, KeyHash, KeySet};
use super::local::BATCH_WAIT;
use super::replica::REPAIR_RETRY;
use super::ring::{Ring, View};
use crate::ids::{Incarnation, NodeId};

/// After a publish that failed.
const RETRY: Duration = Duration::from_millis(250);

/// What this node tells one home.
#[derive(Debug)]
struct Outgoing {
    incarnation: Incarnation,
    epoch: u64,
    seq: u64,
    /// What was not told yet: true = joined, false = left.
    changes: HashMap<Key, bool, KeyHash>,
    /// By which view everything is told; `None`: not everything is.
    told: Option<View>,
}

/// What another node has told this one, which is the home of these users.
#[derive(Debug)]
struct Incoming {
    incarnation: Incarnation,
    epoch: u64,
    seq: u64,
    keys: KeySet,
    view: Option<View>,
    /// An end that a heartbeat told of and that was not here yet.
    late: Option<(u64, u64)>,
    /// When to ask for the stream to begin anew, since a part of it is missing.
    ask_at: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Homes {
    /// Of this node.
    keys: KeySet,
    ring: Ring,
    /// In each epoch of this process a stream begins once.
    epoch: u64,
    outgoing: BTreeMap<NodeId, Outgoing>,
    incoming: BTreeMap<NodeId, Incoming>,
    /// When changes are told.
    due: Option<Duration>,
}

/// Where a message for a user goes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// The home is this node, and these other nodes have the user.
    Holders(super::Nodes),
    /// To this node, which knows.
    At(NodeId),
    /// Nobody is sure now who has the user.
    Unsure,
}

impl Homes {
    // ---- membership ----

    /// The live peers have changed, or the incarnation of one. All streams to new incarnations begin anew.
    pub fn members(&mut self, own: &NodeId, peers: &[(NodeId, Incarnation)], now: Duration) {
        let is_live = |node: &NodeId, of: Incarnation| peers.iter().any(|(peer, i)| peer == node && *i == of);
        self.outgoing.retain(|node, stream| is_live(node, stream.incarnation));
        self.incoming.retain(|node, stream| is_live(node, stream.incarnation));
        let nodes = peers.iter().map(|(node, _)| node.clone());
        let before = std::mem::replace(&mut self.ring, Ring::new(nodes.chain([own.clone()])));
        let is_moved = before.view() != self.ring.view();
        for key in self.keys.iter().filter(|_| is_moved) {
            let (from, to) = (before.home(key), self.ring.home(key));
            if from != to {
                let streams = &mut self.outgoing;
                from.and_then(|from| streams.get_mut(from)).into_iter().for_each(|of| of.change(key, false));
                to.and_then(|to| streams.get_mut(to)).into_iter().for_each(|of| of.change(key, true));
            }
        }
        for (node, incarnation) in peers {
            if !self.outgoing.contains_key(node) {
                self.begin_anew(node, *incarnation);
            }
        }
        self.due = Some(now);
    }

    /// This node has new queues: whatever was told to it meanwhile is lost, and all its streams are void.
    pub fn link_up(&mut self) {
        self.outgoing.clear();
        self.incoming.clear();
    }

    fn begin_anew(&mut self, node: &NodeId, incarnation: Incarnation) {
        self.epoch += 1;
        let mine = self.keys.iter().filter(|key| self.ring.home(*key) == Some(node));
        let changes = mine.map(|key| (key, true)).collect();
        let stream = Outgoing { incarnation, epoch: self.epoch, seq: 0, changes, told: None };
        self.outgoing.insert(node.clone(), stream);
    }

    /// A publish to the node failed, or the node missed one.
    pub fn lost(&mut self, node: &NodeId, now: Duration) {
        if let Some(incarnation) = self.outgoing.get(node).map(|stream| stream.incarnation) {
            self.begin_anew(node, incarnation);
            // Not at once: what the broker does not take now it would not take then.
            self.due.get_or_insert(now + RETRY);
        }
    }

    // ---- this node's users ----

    /// Whether changes are now due sooner than before.
    pub fn join(&mut self, key: Key, now: Duration) -> bool {
        self.keys.insert(key) && self.change(key, true, now)
    }

    pub fn leave(&mut self, key: Key, now: Duration) -> bool {
        self.keys.remove(key) && self.change(key, false, now)
    }

    fn change(&mut self, key: Key, joined: bool, now: Duration) -> bool {
        let Some(stream) = self.ring.home(key).and_then(|home| self.outgoing.get_mut(home)) else {
            return false;
        };
        stream.change(key, joined);
        let is_sooner = self.due.is_none();
        self.due.get_or_insert(now + BATCH_WAIT);
        is_sooner
    }

    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// What is to be told to whom now; at most `parts` messages to each. Called again until nothing is due.
    pub fn cut(&mut self, own: &NodeId, incarnation: Incarnation, now: Duration, parts: usize) -> Vec<Told> {
        if self.due.is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.due = None;
        let mut told = Vec::new();
        let view = self.ring.view();
        for (node, stream) in &mut self.outgoing {
            for _ in 0..parts {
                if stream.changes.is_empty() && stream.told == Some(view) {
                    break;
                }
                let entries = stream.cut(own.clone(), incarnation, view);
                told.push(Told { to: node.clone(), of: stream.incarnation, entries });
            }
            if !stream.changes.is_empty() {
                self.due = Some(now + BATCH_WAIT);
            }
        }
        told
    }

    /// The ends of all streams, for the heartbeat.
    pub fn ends(&self) -> Vec<StreamEnd> {
        let of = |(node, stream): (&NodeId, &Outgoing)| StreamEnd {
            to: node.clone(),
            epoch: stream.epoch,
            seq: stream.seq,
        };
        self.outgoing.iter().map(of).collect()
    }

    // ---- what other nodes tell ----

    pub fn on_entries(&mut self, entries: Entries, now: Duration) {
        let Entries { node, incarnation, epoch, seq, joined, left, view } = entries;
        let stream = self.incoming.entry(node).or_insert_with(|| Incoming::new(incarnation));
        if incarnation != stream.incarnation || epoch < stream.epoch {
            return;
        }
        if epoch > stream.epoch {
            *stream = Incoming { epoch, ..Incoming::new(incarnation) };
        }
        if seq <= stream.seq {
            return;
        }
        if seq != stream.seq + 1 || stream.ask_at.is_some() {
            // What is missing may be anything.
            return stream.doubt(now);
        }
        stream.seq = seq;
        for key in joined {
            stream.keys.insert(key);
        }
        for key in left {
            stream.keys.remove(key);
        }
        stream.view = view;
    }

    /// Where the stream of this peer to this node ended when it sent its heartbeat. That goes another way and may be
    /// early: what is missing is asked for if it is still missing after a while.
    pub fn on_end(&mut self, node: &NodeId, incarnation: Incarnation, end: &StreamEnd, now: Duration) {
        let stream = self.incoming.entry(node.clone()).or_insert_with(|| Incoming::new(incarnation));
        if stream.incarnation != incarnation {
            return;
        }
        let is_behind = (stream.epoch, stream.seq) < (end.epoch, end.seq);
        match (is_behind, stream.late) {
            (false, _) => stream.late = None,
            (true, None) => stream.late = Some((end.epoch, end.seq)),
            // It still is, a heartbeat later.
            (true, Some(late)) if (stream.epoch, stream.seq) < late => stream.doubt(now),
            (true, Some(_)) => stream.late = Some((end.epoch, end.seq)),
        }
    }

    /// The peers whose streams are to begin anew, now.
    pub fn missing(&mut self, now: Duration) -> Vec<(NodeId, Incarnation)> {
        let mut ask = Vec::new();
        for (node, stream) in &mut self.incoming {
            if stream.ask_at.is_some_and(|at| at <= now) {
                stream.ask_at = Some(now + REPAIR_RETRY);
                ask.push((node.clone(), stream.incarnation));
            }
        }
        ask
    }

    // ---- lookups ----

    /// `peers`: how many there are. `is_settled`: all live nodes have had the time to make themselves known.
    pub fn find(&self, own: &NodeId, key: Key, peers: usize, is_settled: bool) -> Home {
        match self.ring.home(key) {
            Some(home) if home != own && is_settled => Home::At(home.clone()),
            Some(home) if home == own && is_settled && self.is_sure(peers) => Home::Holders(
                (self.incoming.iter())
                    .filter(|(_, stream)| stream.keys.contains(key))
                    .map(|(node, _)| node.clone())
                    .collect(),
            ),
            _ => Home::Unsure,
        }
    }

    /// Whether every live peer has told everything by the view that this node has.
    fn is_sure(&self, peers: usize) -> bool {
        let view = Some(self.ring.view());
        self.incoming.len() == peers
            && self.incoming.values().all(|stream| stream.view == view && stream.ask_at.is_none())
    }
}

/// Entries, and the incarnation of the node that they are for.
#[derive(Debug)]
pub(super) struct Told {
    pub to: NodeId,
    pub of: Incarnation,
    pub entries: Entries,
}

impl Outgoing {
    /// The last change counts: what is told twice does no harm.
    fn change(&mut self, key: Key, joined: bool) {
        self.changes.insert(key, joined);
    }

    fn cut(&mut self, node: NodeId, incarnation: Incarnation, view: View) -> Entries {
        self.seq += 1;
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        for (key, is_join) in self.changes.extract_if(|_, _| true).take(DELTA_KEYS_MAX) {
            let into = if is_join { &mut joined } else { &mut left };
            into.push(key);
        }
        self.told = self.changes.is_empty().then_some(view);
        if self.changes.is_empty() {
            self.changes.shrink_to(DELTA_KEYS_MAX);
        }
        Entries { node, incarnation, epoch: self.epoch, seq: self.seq, joined, left, view: self.told }
    }
}

impl Incoming {
    fn new(incarnation: Incarnation) -> Self {
        let keys = KeySet::default();
        Self { incarnation, epoch: 0, seq: 0, keys, view: None, late: None, ask_at: None }
    }

    fn doubt(&mut self, now: Duration) {
        self.view = None;
        self.ask_at.get_or_insert(now);
    }
}
