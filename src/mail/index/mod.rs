//! Who has mail, and how much: each node's replica of the number of messages in all boxes.
//!
//! Every node tells all the others what it deposits, what it takes out and what it finds in boxes, over the control
//! exchange. The index is a hint and never the truth: it saves looking into boxes for users without mail, and it is the
//! ledger by which the limits for users and senders are checked. A count that is too high costs a needless look into a
//! box. A reading of the box mends every wrong count.
//!
//! Reading order: `gossip` is what goes over the wire; `counts` (mail in boxes), `senders` (limits for senders), `heard`
//! (which gossip is merged), `outgoing` (what is to be told) and `sync` and `snapshots` (what a fresh node
//! asks and is told), `unsure` (what a node that is gone may not have taken after all) are joined in `state`,
//! a pure machine with `effect`s; `service` is the task that lets it run over a [`Bus`].

mod counts;
mod effect;
mod gossip;
mod heard;
mod outgoing;
mod senders;
mod service;
mod snapshots;
mod state;
mod sync;
#[cfg(test)]
mod tests;
mod unsure;

use std::future::Future;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{watch, Notify};

pub use self::counts::Total;
pub use self::gossip::MAIL_INDEX_KIND;
pub use self::outgoing::Announced;
pub use self::state::Began;

use self::gossip::{Count, Deposit, Gossip};
use self::state::Index;
use crate::bus::{BoxNumber, Bus, Link};
use crate::ids::{Life, NodeId, UserId, UserKey};

/// How much mail may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailLimits {
    /// Messages for one user.
    pub messages: u32,
    /// Bytes for one user, as the sum of the messages.
    pub bytes: u64,
    /// Messages from one user, whomever they are for.
    pub sender_messages: u32,
    /// Messages that one user may have stored per second at this node, in the long run.
    pub sender_rate: u32,
    /// The same, at once.
    pub sender_burst: u32,
}

/// Why no room is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("too much mail waits for the user")]
    UserFull,
    #[error("too much mail of the sender waits")]
    SenderFull,
    #[error("the sender stores mail too fast")]
    SenderRate,
}

/// Names the live peers, without this node itself.
pub type Peers = Box<dyn Fn() -> Vec<NodeId> + Send + Sync>;

/// A cheap handle; all clones share one index.
#[derive(Clone)]
pub struct MailIndex {
    shared: Arc<Shared>,
}

struct Shared {
    bus: Arc<dyn Bus>,
    links: watch::Receiver<Link>,
    boxes: NonZeroU32,
    peers: Peers,
    /// Held for microseconds at a time: never across an await, and with no callback inside but `peers`, which may lock
    /// the directory. The directory never calls the index.
    state: Mutex<Index>,
    /// Tells the service that there is something to do sooner than it thinks.
    wake: Notify,
}

impl MailIndex {
    /// The index, and the service that keeps it true, which is to be run until the node stops.
    pub fn new(
        node: NodeId,
        bus: Arc<dyn Bus>,
        limits: MailLimits,
        peers: Peers,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let boxes = bus.boxes().boxes;
        let state = Index::new(node, Life::generate(), boxes, limits, Instant::now());
        let links = bus.link();
        let shared = Shared { bus, links, boxes, peers, state: Mutex::new(state), wake: Notify::new() };
        let index = Self { shared: Arc::new(shared) };
        let service = service::run(index.clone());
        (index, service)
    }

    /// Whether mail may wait for the user. True for everyone whose box this node knows nothing of yet.
    pub fn may_have(&self, user: &UserId) -> bool {
        self.lock().may_have(UserKey::of(user))
    }

    /// Messages and bytes that wait for the user, with what is being deposited here right now.
    pub fn waiting(&self, user: &UserId) -> (u32, u64) {
        let waiting = self.lock().waiting(UserKey::of(user));
        (waiting.count, waiting.bytes)
    }

    /// What waits for all users; walks over all who have mail.
    pub fn total(&self) -> Total {
        self.lock().counts().total()
    }

    /// Reserves room for one mail, before it is deposited. `sender`: `None` for a service.
    pub fn admit(
        &self,
        user: &UserId,
        sender: Option<&UserId>,
        bytes: usize,
        now: Instant,
    ) -> Result<Reservation, Refusal> {
        let mail = deposit(user, sender, bytes);
        self.lock().admit(mail, now)?;
        Ok(Reservation { index: self.clone(), mail: Some(mail) })
    }

    /// A mail was acknowledged out of its box on this node.
    pub fn taken(&self, user: &UserId, sender: Option<&UserId>, bytes: usize) {
        self.lock().taken(deposit(user, sender, bytes), Instant::now());
        self.shared.wake.notify_one();
    }

    /// A reading of the box is about to begin: to be called before attaching to it, for [`exact`](Self::exact).
    pub fn reading_began(&self, number: BoxNumber) -> Began {
        let began = self.lock().reading_began(number, Instant::now());
        self.shared.wake.notify_one();
        began
    }

    /// The first round of a reading has ended: messages and bytes of each user in the box. To be called before any of
    /// this mail is [`taken`](Self::taken).
    pub fn exact(&self, began: Began, found: Vec<(UserKey, u32, u64)>) {
        let found = found.into_iter().map(|(user, count, bytes)| Count(user, count, bytes)).collect();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or_default();
        self.lock().exact(began, found, Instant::now(), wall_ms);
        self.shared.wake.notify_one();
    }

    /// A reading was interrupted: mail that was acknowledged may lie in the box again, so that it is to be read.
    pub fn interrupted(&self, number: BoxNumber) {
        self.lock().doubt(number);
    }

    /// Another node is gone; `live`: all that are left, with this one. One of them reads the boxes out of which mail was taken
    /// lately: acknowledgements of the node that is gone may not have reached the broker.
    pub fn node_lost(&self, live: &[NodeId]) {
        self.lock().node_lost(Instant::now(), live);
    }

    /// Takes gossip of this kind ([`MAIL_INDEX_KIND`]), which must come from a node; over the control exchange or
    /// directly. The users who newly have mail. `Err` is for the log: such a body is of no use again.
    pub fn on_gossip(&self, kind: &str, body: &[u8]) -> Result<Vec<UserKey>, String> {
        if kind != MAIL_INDEX_KIND {
            return Err(format!("gossip of an unknown type: {kind:.64}"));
        }
        let gossip = Gossip::decode(body)?;
        // The service may not have heard of a new link yet, and a node that asks over it must not be told that this one
        // knows everything.
        let incarnation = self.shared.links.borrow().incarnation;
        let newly = {
            let mut state = self.lock();
            state.link_is(incarnation, Instant::now());
            state.receive(gossip, Instant::now())
        };
        self.shared.wake.notify_one();
        Ok(newly)
    }

    /// A box of which this node knows nothing and that it is to read. It comes again, after all others, until
    /// [`exact`](Self::exact) is called or another node tells of it.
    pub fn next_unread_box(&self) -> Option<BoxNumber> {
        self.lock().next_unread_box()
    }

    /// A box that has not been read for an hour though somebody has mail in it. `live`: all nodes of which one is to
    /// read it, with this one.
    pub fn next_due_box(&self, now: Instant, live: &[NodeId]) -> Option<BoxNumber> {
        self.lock().next_due_box(self.shared.boxes, now, live)
    }

    // A panic elsewhere while the lock was held leaves a hint that may be wrong, which it may be at any time.

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn deposit(user: &UserId, sender: Option<&UserId>, bytes: usize) -> Deposit {
    Deposit { user: UserKey::of(user), sender: sender.map(UserKey::of), bytes: bytes as u64 }
}

/// Room for one mail. Dropping it unused gives the room back.
#[must_use]
pub struct Reservation {
    index: MailIndex,
    mail: Option<Deposit>,
}

impl Reservation {
    /// The broker has the mail. `announced` is called exactly once, within about 1.5 s and with no lock held: with
    /// `true` once the broker has confirmed the announcement to all nodes, else with `false`.
    pub fn stored(mut self, announced: Announced) {
        let Some(mail) = self.mail.take() else { return };
        let refused = self.index.lock().stored(mail, announced, Instant::now());
        match refused {
            Ok(()) => self.index.shared.wake.notify_one(),
            Err(announced) => announced(false),
        }
    }

    /// The broker may have the mail or not. Gives the room back, and has the box read.
    pub fn uncertain(mut self) {
        if let Some(mail) = self.mail.take() {
            self.index.lock().uncertain(mail);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(mail) = self.mail.take() {
            self.index.lock().release(mail);
        }
    }
}
