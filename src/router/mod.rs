//! The router: takes a message from any door, finds who holds its target, and settles it.
//!
//! - [`path`]: the state machine of one target: what may go now, what waits, what is stored, what is replayed (pure).
//! - `table.rs`: the paths of all targets, their locks and their timers.
//! - `world.rs`: what paths may look up.
//! - `execute.rs`: what paths want done: publishing, storing, handing to sessions.
//! - [`readings`]: reads the boxes of users who are here.
//! - [`strategy`]: where a message goes (pure); `relay.rs`: what the home of a user does.
//! - `broadcast.rs`, `channels.rs`: messages for everyone and for channels; `presence.rs`: sessions and
//!   subscriptions begin and end, and the lock that keeps hub and directory in step.
//! - `application.rs`: messages for backends; `requests.rs`: those that await an answer (pure).
//! - [`ask`]: questions to all nodes about their sessions; `counts.rs`: how many users a channel has;
//!   [`report`]: what operators see and order; `trace.rs`: what becomes of messages, for them.
//! - [`events`]: what backends are told of sessions, users and channels.
//! - [`roster`]: who is in the channels that somebody listens to, on all nodes.
//!
//! A message is settled exactly once, and its source hears of it only then.

mod application;
pub mod ask;
mod broadcast;
pub mod channels;
mod counts;
pub mod events;
mod execute;
pub mod hooks;
mod mail;
pub mod path;
pub mod presence;
pub mod readings;
mod relay;
pub mod report;
mod requests;
mod revoke;
pub mod roster;
pub mod strategy;
mod table;
pub mod tickets;
mod trace;
mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::auth::{Revocations, Tickets};
use crate::bus::{Bus, Link};
use crate::config::{EventKinds, Routing};
use crate::delivery::envelope::{Envelope, Scope};
use crate::delivery::peer_words::{Receipt, Receipts};
use crate::delivery::receipt_sender::ReceiptSender;
use crate::delivery::seen::{Seen, SeenKey};
use crate::delivery::trace::Step;
use crate::directory::Directory;
use crate::error::{Code, Error};
use crate::hub::Hub;
use crate::ids::{Life, NodeId};
use crate::mail::index::MailIndex;
use crate::protocol::message::{Message, Settlement};
use crate::protocol::target::Target;
use path::{Event, World};
use readings::Readings;
use table::PathTable;

/// Called exactly once with the message's fate, on any thread: it must return at once.
pub type Settle = Box<dyn FnOnce(Settlement) + Send>;

/// The share of the unsettled messages of a node that one target may have: 1 in so many.
const TARGET_SHARE: usize = 4;
/// Above this share of the unsettled messages of a node, what other nodes hold is stored early: 1 in so many.
const PRESSURE_SHARE: usize = 2;

/// How often all paths are looked at while there is pressure.
const PRESSURE_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub struct RouterSettings {
    pub node: NodeId,
    pub routing: Routing,
    pub events: EventKinds,
    /// Unsettled messages. Overflow policy: the sender is told `overloaded`.
    pub pending_max: usize,
    /// How long a node may give no sign of a message before it is taken to hang.
    pub receipt_timeout: Duration,
    /// How long a ticket is good for.
    pub ticket_ttl: Duration,
    pub hooks: hooks::HookSettings,
}

pub struct Router {
    settings: RouterSettings,
    life: Life,
    hub: Arc<Hub>,
    directory: Directory,
    bus: Arc<dyn Bus>,
    link: watch::Receiver<Link>,
    receipts: ReceiptSender,
    paths: PathTable,
    /// What sessions here have taken lately. Its lock is the innermost.
    seen: Mutex<Seen>,
    /// The same of broadcasts, which must not shorten what is remembered of others.
    seen_broadcasts: Mutex<Seen>,
    pending: AtomicUsize,
    stamps: AtomicU64,
    /// When everything was last looked at because of pressure.
    relieved_at: Mutex<Option<Instant>>,
    /// The window of what backends publish is half full.
    ingress_is_pressed: AtomicBool,
    mail: MailIndex,
    readings: Readings,
    asks: ask::Asks,
    requests: Arc<Mutex<requests::Requests>>,
    operators: report::Operators,
    revocations: Arc<Revocations>,
    tickets: Tickets,
    hooks: hooks::Hooks,
    presence: presence::Presence,
    channels: channels::Channels,
    counts: Arc<counts::Counts>,
    rosters: Arc<roster::Rosters>,
    events: Arc<events::Events>,
    /// For the callbacks that outlive a call.
    this: OnceLock<std::sync::Weak<Router>>,
}

/// What a router is put together from.
pub struct Places {
    pub hub: Arc<Hub>,
    pub directory: Directory,
    pub bus: Arc<dyn Bus>,
    pub receipts: ReceiptSender,
    pub mail: MailIndex,
    pub readings: Readings,
    pub operators: report::Operators,
    pub revocations: Arc<Revocations>,
}

fn failed(code: Code, message: &str) -> Settlement {
    Settlement::Failed(Error::new(code, message))
}

fn unavailable() -> Settlement {
    failed(Code::Unavailable, "the broker cannot be reached; try again")
}

fn overloaded() -> Settlement {
    failed(Code::Overloaded, "too many messages in flight; try again")
}

/// Waits for the settlement of what `hand_in` hands in.
async fn settled(hand_in: impl FnOnce(Settle)) -> Settlement {
    let (tell, told) = oneshot::channel();
    hand_in(Box::new(move |settlement| {
        // The caller may have gone away.
        let _ = tell.send(settlement);
    }));
    told.await.unwrap_or_else(|_| unavailable())
}

/// What is for one target keeps its order on the bus.
fn order_key(target: &Target) -> u64 {
    xxh3_64(target.to_string().as_bytes())
}

impl Router {
    pub fn new(settings: RouterSettings, places: Places) -> Arc<Self> {
        let Places { hub, directory, bus, receipts, mail, readings, operators, revocations } = places;
        let now = Instant::now();
        let router = Arc::new(Self {
            link: bus.link(),
            life: Life::generate(),
            paths: PathTable::new(),
            seen: Mutex::new(Seen::new(now)),
            seen_broadcasts: Mutex::new(Seen::new(now)),
            pending: AtomicUsize::new(0),
            stamps: AtomicU64::new(0),
            relieved_at: Mutex::new(None),
            ingress_is_pressed: AtomicBool::new(false),
            asks: ask::Asks::new(),
            requests: Arc::new(Mutex::new(requests::Requests::new(settings.pending_max))),
            operators,
            presence: presence::Presence::new(),
            channels: channels::Channels::default(),
            counts: Arc::default(),
            rosters: Arc::default(),
            events: Arc::new(events::Events::new(settings.events)),
            tickets: Tickets::new(settings.ticket_ttl),
            hooks: hooks::Hooks::new(settings.hooks),
            this: OnceLock::new(),
            settings,
            hub,
            directory,
            bus,
            receipts,
            mail,
            readings,
            revocations,
        });
        // Set once, here.
        let _ = router.this.set(Arc::downgrade(&router));
        router
    }

    pub fn node(&self) -> &NodeId {
        &self.settings.node
    }

    pub fn routing(&self) -> Routing {
        self.settings.routing
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub fn bus(&self) -> &dyn Bus {
        &*self.bus
    }

    pub fn mail(&self) -> &MailIndex {
        &self.mail
    }

    fn is_linked(&self) -> bool {
        self.link.borrow().ready()
    }

    /// Unsettled messages.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    // ---- what this node answers for ----

    /// Takes a message and settles it. Never blocks; messages accepted one after the other leave in that order.
    pub fn accept(&self, message: Message, settle: Settle) {
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("reject-some") && crate::sabotage::every(2) {
            return settle(failed(Code::Offline, "not connected anywhere"));
        }
        #[cfg(feature = "sabotage")]
        let message =
            Message { redelivered: message.redelivered || crate::sabotage::is("mark-all"), ..message };
        let settle = self.traced(&message, settle);
        let now = Instant::now();
        if !self.is_linked() {
            return settle(unavailable());
        }
        if message.is_expired(now) {
            return settle(path::expired(&message));
        }
        match &message.target {
            Target::Broadcast => return self.publish_to_everyone(message, settle),
            Target::Channel(_) => return self.publish_to_channel(message, None, settle),
            Target::App(key) => return self.publish_to_application(key.clone(), &message, settle),
            Target::User(_) | Target::Session(_) => {}
        }
        let pending = self.pending.fetch_add(1, Ordering::Relaxed);
        if pending >= self.settings.pending_max {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            return settle(overloaded());
        }
        let target = message.target.clone();
        let cell = self.paths.find_or_make(&target, now);
        if cell.ask(path::Path::pending) >= (self.settings.pending_max / TARGET_SHARE).max(1) {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            return settle(overloaded());
        }
        let tag = self.paths.new_tag(&cell);
        let event = Event::Accepted { tag, message, settle };
        match self.paths.step_cell(&cell, event, now, self) {
            Ok(()) => {}
            Err(Event::Accepted { message, settle, .. }) => {
                // The path was forgotten in between: once more, with a tag of the new one.
                let cell = self.paths.find_or_make(&target, now);
                let tag = self.paths.new_tag(&cell);
                let again = Event::Accepted { tag, message, settle };
                if let Err(Event::Accepted { settle, .. }) = self.paths.step_cell(&cell, again, now, self) {
                    self.pending.fetch_sub(1, Ordering::Relaxed);
                    settle(overloaded());
                }
            }
            Err(_) => {}
        }
    }

    /// Receipts of another node.
    pub fn on_receipts(&self, receipts: Receipts) {
        // Those for a former process of this node, whose numbers this one may give again, are nothing to this one.
        if receipts.life != self.life {
            return;
        }
        let now = Instant::now();
        for (tag, nodes) in receipts.relayed {
            if let Some(cell) = self.paths.of_tag(tag) {
                let nodes = nodes.into_iter().collect();
                let event = Event::Relayed { tag, home: receipts.from.clone(), nodes };
                let _ = self.paths.step_cell(&cell, event, now, self);
            }
        }
        for (tag, receipt) in receipts.receipts {
            if let Some(cell) = self.paths.of_tag(tag) {
                let event = Event::Receipt { tag, node: receipts.from.clone(), receipt };
                let _ = self.paths.step_cell(&cell, event, now, self);
            }
        }
    }

    /// A node is known to be gone: what awaits its receipt is tried elsewhere now.
    pub fn node_lost(&self, node: &NodeId) {
        let now = Instant::now();
        for cell in self.paths.all() {
            let _ = self.paths.step_cell(&cell, Event::NodeLost(node.clone()), now, self);
        }
        self.mail.node_lost(&self.live_nodes_and_this());
    }

    /// The broker is away: everything that awaits it is settled as `unavailable`.
    pub fn link_lost(&self) {
        let now = Instant::now();
        for cell in self.paths.all() {
            let _ = self.paths.step_cell(&cell, Event::LinkLost, now, self);
        }
        self.give_up_requests("the link to the broker was lost");
    }

    // ---- what arrives for sessions here ----

    /// Takes in a message that is for sessions here; its origin is answered when they have taken it.
    pub fn arrive(&self, envelope: Envelope) {
        let origin = envelope.origin.as_ref();
        if origin.is_some_and(|origin| origin.life == self.life) {
            // The fanout exchange brings this node's own messages too; it has had them already.
            return;
        }
        self.trace().note(&envelope.message.id, || Step::Arrived { from: origin.map(|of| of.node.clone()) });
        let target = envelope.message.target.clone();
        if !World::is_here(self, &target) && self.paths.find(&target).is_none() {
            return self.answer_for_nobody(&envelope);
        }
        self.paths.step(&target, Event::Arrived(envelope), Instant::now(), self);
    }

    /// What the path of the target would say, without making one: where every node is asked, most have nobody.
    fn answer_for_nobody(&self, envelope: &Envelope) {
        let Some(origin) = &envelope.origin else { return };
        let message = &envelope.message;
        let key = SeenKey::new(Scope::of(&message.sender), &message.id, &message.target);
        let receipt = World::taken(self, key).map_or(Receipt::NotHere, Receipt::Delivered);
        self.receipts.send(origin.clone(), receipt);
    }

    // ---- time ----

    /// Looks at what is overdue; to be called often.
    pub fn tick(&self, now: Instant) {
        self.paths.tick(now, self);
        if World::is_under_pressure(self) && self.pressure_is_due(now) {
            // What other nodes hold waits for no event: it is stored now.
            for cell in self.paths.all() {
                let _ = self.paths.step_cell(&cell, Event::Tick, now, self);
            }
        }
        self.asks.expire(now);
        self.expire_requests(now);
        self.trace().expire(now);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).rotate(now);
        self.seen_broadcasts.lock().unwrap_or_else(PoisonError::into_inner).rotate(now);
    }

    fn pressure_is_due(&self, now: Instant) -> bool {
        let mut relieved = self.relieved_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = relieved.is_none_or(|at| now >= at + PRESSURE_EVERY);
        if is_due {
            *relieved = Some(now);
        }
        is_due
    }

    /// Whether the window of what backends publish has little room left.
    pub fn set_ingress_pressed(&self, pressed: bool) {
        self.ingress_is_pressed.store(pressed, Ordering::Relaxed);
    }
}
