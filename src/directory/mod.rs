//! Which node holds which users and channels: each node's replica of the key sets of all other nodes.
//!
//! Every node publishes its keys over the control exchange. The directory is a hint and never the truth: a wrong entry
//! costs a `not_here` receipt and a read of the user's box, never a message.
//!
//! Reading order: `key` and `gossip` are the data types; `local` (own keys), `replica` (of one peer's keys) and `peers`
//! (live nodes and tombstones), `confirm` (who has merged what) and `watched` (whose holders somebody follows) are joined in `state`, with `strangers` (nodes that are not believed), a pure state machine whose timers are in `schedule`; `service` is
//! the task that runs it over a [`Bus`].

mod certainty;
mod cluster;
mod confirm;
mod entries;
mod gossip;
mod homes;
mod key;
mod local;
mod peers;
mod replica;
mod ring;
mod schedule;
mod service;
mod state;
mod strangers;
#[cfg(test)]
mod tests;
mod watched;

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::future::Future;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use smallvec::SmallVec;
use tokio::sync::{mpsc, Notify};
use tokio::time::Instant;

pub use self::cluster::Age;
pub use self::gossip::{GossipError, Info};
pub use self::homes::Home;
pub use self::key::Key;
pub use self::service::{GOSSIP_KIND, PROBE_KIND};
pub use self::watched::Touched;

use self::confirm::WaitId;
use self::gossip::Gossip;
use self::state::State;
use crate::bus::{Bus, Outcome};
use crate::config::Routing;
use crate::ids::{Incarnation, NodeId};

/// Room for membership notices that the router has not read yet. When it is full, up to
/// `service::NOTICES_KEPT` more wait in the service, in order; beyond that the oldest is dropped, with an
/// error in the log: a loss that goes unnoticed costs its pending messages their deadline.
const MEMBERSHIP_CAPACITY: usize = 256;

/// Changes of the cluster that the router acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    Up(NodeId),
    /// Messages pending for this incarnation will not be answered. An `Up` of the same node may follow.
    Lost(NodeId, Incarnation),
    /// Another process uses this node's id: messages reach either or both. A mistake in the configuration.
    Conflict,
    /// A live node routes in another way, and this one must not join. A mistake in the configuration.
    Stranger {
        node: NodeId,
        /// What it says of its routing.
        dialect: String,
    },
}

/// What is known about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    pub node: NodeId,
    /// `None` only for this node itself, while it has no link.
    pub incarnation: Option<Incarnation>,
    /// What the node last said about itself.
    pub info: Info,
    /// Users and channels in its replica here.
    pub keys: usize,
    /// Whether that replica is known to be right.
    pub synced: bool,
    /// How long ago the node was last heard.
    pub silent_for: Duration,
}

/// See [`Directory::audience`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audience {
    /// The live peers that have the key. Never this node itself.
    pub nodes: SmallVec<[NodeId; 2]>,
    /// How many live peers there are.
    pub peers: usize,
    /// Whether every node that has the key, and knows that all others know, is among `nodes`.
    pub is_sure: bool,
}

pub type Nodes = SmallVec<[NodeId; 2]>;

/// Nodes, each with its incarnation.
pub type Holders = SmallVec<[(NodeId, Incarnation); 2]>;

/// A cheap handle; all clones share one directory.
#[derive(Clone)]
pub struct Directory {
    shared: Arc<Shared>,
}

/// Called once, by the service or before the call returns; it must return at once.
pub type Known = Box<dyn FnOnce() + Send>;

struct Shared {
    bus: Arc<dyn Bus>,
    routing: Routing,
    began: Instant,
    /// Held for microseconds at a time, and never across an await.
    state: RwLock<State>,
    /// What to call when a wait is over. Taken while `state` is locked, and never the other way round.
    waiting: Mutex<HashMap<WaitId, Known>>,
    /// Tells the service that there is something to do sooner than it thinks.
    wake: Notify,
    /// Tells who follows some keys that other nodes may hold them, or no longer.
    touched: Notify,
}

impl Directory {
    /// The directory, its notices, and the service that keeps it true, which is to be run until the node stops.
    pub fn new(
        node: NodeId,
        routing: Routing,
        url: Option<String>,
        bus: Arc<dyn Bus>,
    ) -> (Self, mpsc::Receiver<Membership>, impl Future<Output = ()> + Send + 'static) {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let info = Info {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            url,
            started_ms: u64::try_from(started.as_millis()).unwrap_or_default(),
            ..Info::default()
        };
        let seed = RandomState::new().hash_one(node.as_str());
        let shared = Shared {
            bus,
            routing,
            began: Instant::now(),
            state: RwLock::new(State::new(node, info, seed, routing == Routing::Ring)),
            waiting: Mutex::default(),
            wake: Notify::new(),
            touched: Notify::new(),
        };
        let directory = Self { shared: Arc::new(shared) };
        let (membership, members) = mpsc::channel(MEMBERSHIP_CAPACITY);
        let service = service::run(directory.clone(), membership);
        (directory, members, service)
    }

    // ---- lookups ----

    /// The live peers that have the key, as far as is known here. Never this node itself.
    pub fn nodes_of(&self, key: Key) -> SmallVec<[NodeId; 2]> {
        let state = self.read();
        state
            .peers
            .iter()
            .filter(|(_, peer)| peer.replica.contains(key))
            .map(|(node, _)| node.clone())
            .collect()
    }

    /// The live peers that have the key, each with its incarnation.
    pub fn holders_of(&self, key: Key) -> Holders {
        let state = self.read();
        let with = state.peers.iter().filter(|(_, peer)| peer.replica.contains(key));
        with.map(|(node, peer)| (node.clone(), peer.replica.incarnation())).collect()
    }

    /// Which nodes to tell what is for everyone who has the key.
    pub fn audience(&self, key: Key) -> Audience {
        let now = self.now();
        let state = self.read();
        let with = state.peers.iter().filter(|(_, peer)| peer.replica.contains(key));
        Audience {
            nodes: with.map(|(node, _)| node.clone()).collect(),
            peers: state.peers.iter().count(),
            is_sure: state.is_sure(now),
        }
    }

    /// The incarnation of a live peer, or of this node itself while it has a link.
    pub fn incarnation_of(&self, node: &NodeId) -> Option<Incarnation> {
        let state = self.read();
        if *node == state.own.node {
            return state.own.incarnation;
        }
        state.peers.get(node).map(|peer| peer.replica.incarnation())
    }

    pub fn is_live(&self, node: &NodeId) -> bool {
        self.incarnation_of(node).is_some()
    }

    /// The live peers, by node id. Without this node itself, which [`this_node`](Self::this_node) describes.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let now = self.now();
        let state = self.read();
        let describe = |(node, peer): (&NodeId, &peers::Peer)| PeerInfo {
            node: node.clone(),
            incarnation: Some(peer.replica.incarnation()),
            info: peer.info.clone(),
            keys: peer.replica.count(),
            synced: peer.replica.synced(),
            silent_for: now.saturating_sub(peer.last_heard),
        };
        state.peers.iter().map(describe).collect()
    }

    pub fn this_node(&self) -> PeerInfo {
        let state = self.read();
        PeerInfo {
            node: state.own.node.clone(),
            incarnation: state.own.incarnation,
            info: state.own.info.clone(),
            keys: state.local.count(),
            synced: true,
            silent_for: Duration::ZERO,
        }
    }

    // ---- what this node has ----

    /// The first session of a user, or the first subscriber of a channel, is here.
    pub fn join(&self, key: Key) {
        let now = self.now();
        let sooner = self.write().join(key, now);
        self.wake_if(sooner);
    }

    /// The last one is gone.
    pub fn leave(&self, key: Key) {
        let now = self.now();
        let sooner = self.write().leave(key, now);
        self.wake_if(sooner);
    }

    /// Tells when all live nodes know that this node has the key, or after a second.
    pub fn when_known(&self, key: Key, known: Known) {
        let now = self.now();
        let (known, sooner) = {
            let mut state = self.write();
            let before = state.next_poll();
            let wait = state.confirm(key, now);
            let known = match wait {
                Some(wait) => self.waiting().insert(wait, known),
                None => Some(known),
            };
            let sooner = state.next_poll().is_some_and(|next| before.is_none_or(|before| next < before));
            (known, sooner)
        };
        self.wake_if(sooner);
        if let Some(known) = known {
            known();
        }
    }

    pub fn set_load(&self, sessions: u64, users: u64) {
        let info = &mut self.write().own.info;
        (info.sessions, info.users) = (sessions, users);
    }

    /// The others are told at once. They go on sending: the sessions are still here.
    pub fn set_draining(&self) {
        let now = self.now();
        {
            let mut state = self.write();
            state.own.info.draining = true;
            state.schedule.heartbeat_by(now);
        }
        self.wake_if(true);
    }

    /// Tells the others that this node leaves; nothing is gossiped after it. True once the broker confirmed it.
    /// False costs the others a returned publish, or the time of three heartbeats.
    pub async fn bye(&self) -> bool {
        let farewell = self.write().bye();
        let Some(farewell) = farewell else { return false };
        let Some(publish) = service::to_all(&farewell, self.shared.routing) else { return false };
        crate::bus::publish_confirmed(&*self.shared.bus, publish).await == Outcome::Confirmed
    }

    // ---- who follows the others ----

    /// From now on [`take_touched`](Self::take_touched) tells when other nodes may hold the key, or no longer. Until
    /// [`unwatch`](Self::unwatch), however often it was called.
    pub fn watch(&self, key: Key) {
        self.write().watched.watch(key);
    }

    pub fn unwatch(&self, key: Key) {
        self.write().watched.unwatch(key);
    }

    /// Returns when there is something for [`take_touched`](Self::take_touched). For one waiter.
    pub async fn touched(&self) {
        self.shared.touched.notified().await;
    }

    /// What was touched since the last call.
    pub fn take_touched(&self) -> Touched {
        self.write().watched.take_touched()
    }

    fn tell_touched(&self, is_touched: bool) {
        if is_touched {
            self.shared.touched.notify_one();
        }
    }

    // ---- what is heard ----

    /// Takes the body of a delivery from the control queue, or of one of kind [`GOSSIP_KIND`] from the node
    /// queue. An error is for the log: such a body is of no use again.
    pub fn on_gossip(&self, body: &[u8]) -> Result<(), GossipError> {
        let (dialect, gossip) = Gossip::decode(body)?;
        let now = self.now();
        let (sooner, is_touched) = {
            let mut state = self.write();
            let before = state.next_poll();
            match dialect.is(self.shared.routing) {
                true => state.receive(gossip, now),
                false => state.on_stranger(dialect, &gossip, now),
            }
            (!state.effects.is_empty() || state.next_poll() < before, state.watched.is_touched())
        };
        self.wake_if(sooner);
        self.tell_touched(is_touched);
        Ok(())
    }

    /// A direct publish to `node` came back unroutable. `incarnation`: which one was live when it was sent, as
    /// [`incarnation_of`](Self::incarnation_of) said, so that a newer one does not pay for it.
    pub fn returned(&self, node: &NodeId, incarnation: Option<Incarnation>) {
        let now = self.now();
        let (sooner, is_touched) = {
            let mut state = self.write();
            state.returned(node, incarnation, now);
            (!state.effects.is_empty(), state.watched.is_touched())
        };
        self.wake_if(sooner);
        self.tell_touched(is_touched);
    }

    // ---- for the service ----

    fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<WaitId, Known>> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirmed(&self, wait: WaitId) {
        let known = self.waiting().remove(&wait);
        if let Some(known) = known {
            known();
        }
    }

    fn wake_if(&self, sooner: bool) {
        if sooner {
            self.shared.wake.notify_one();
        }
    }

    // A panic elsewhere while the lock was held leaves a hint that may be wrong, which it may be at any time.

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
