//! A node: puts the parts together, owns every task and thread, drives the phases of its life.
//!
//! - `worker_thread.rs`: the thread that serves a listener and its sockets.
//! - [`keys`]: reads keys again; `key_set.rs`: follows those that are published elsewhere.
//! - `settings.rs`: what parts of the node are told of the configuration.
//! - `state.rs`: what HTTP requests need, and what readiness is judged by.
//! - `supervise.rs`: notices the end of tasks and threads that should have gone on.
//! - `watch.rs`: the small tasks that follow the link, the cluster and the clock.

mod key_set;
pub mod keys;
mod settings;
mod state;
mod supervise;
mod watch;
mod worker_thread;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::sync::watch::Sender;

use crate::auth::{SelfTestFailed, Verifier};
use crate::bus::memory::MemoryBroker;
use crate::bus::rabbit::{RabbitBus, RabbitSettings};
use crate::bus::{BoxSettings, Bus, Inboxes};
use crate::config::{Auth, Config, Jwt, KeySet, QueueType};
use crate::delivery::receipt_sender::ReceiptSender;
use crate::delivery::trace::Trace;
use crate::directory::{Directory, Membership};
use crate::http::{self, listener, serve, AppState};
use crate::hub::{Command, Commands, Hub};
use crate::ids::NodeId;
use crate::ingress::backends::{self, BackendsDoor};
use crate::ingress::peers::{self, NodeQueue};
use crate::ingress::replies::{self, RepliesDesk};
use crate::lifecycle::{Lifecycle, Phase};
use crate::mail::index::MailIndex;
use crate::metrics::Metrics;
use crate::router::readings::{sweep, Readings};
use crate::router::report::Operators;
use crate::router::{Places, Router};
use crate::session::worker::ADMISSIONS_MAX;
use crate::tls::{Acceptor, TlsError};
use keys::KeyReload;
use settings::{admin_guard, mail_limits, public_guard, router_settings, session_settings};
use state::app_state;
pub use supervise::{Failure, Failures, Tasks};
use worker_thread::WorkerThread;

/// What remains of the drain time after the last session was told to go, for close frames to cross.
const DRAIN_TAIL: Duration = Duration::from_millis(1_500);
/// How long a drained node waits for the receipts of its last messages.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// A node that has not heard itself through the broker for so long is not ready.
const LOOPBACK_MAX: Duration = Duration::from_secs(10);
/// Connections to the admin address: of probes and scrapers.
const ADMIN_CONNECTIONS: usize = 64;
/// Without a broker a service inside the process answers this one, so that a first try needs no backend.
const DEMO_KEY: &str = "echo";
const DRAIN_POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("cannot start a worker thread: {0}")]
    Thread(io::Error),
    #[error("cannot speak TLS: {0}")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    SelfTest(#[from] SelfTestFailed),
}

/// A running node. Dropping it ends its tasks and, soon after, its worker threads; its sockets are cut.
pub struct Node {
    id: NodeId,
    public: SocketAddr,
    admin: SocketAddr,
    drain: Duration,
    lifecycle: Lifecycle,
    hub: Arc<Hub>,
    router: Arc<Router>,
    bus: Arc<dyn Bus>,
    tasks: Tasks,
    keys: KeyReload,
    workers: Vec<std::thread::JoinHandle<()>>,
    /// Worker threads end when this is dropped.
    running: Sender<()>,
}

impl Node {
    /// Binds every address and starts; must be called in a tokio runtime. Whether the broker can be reached shows in readiness, not here.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let (bus, inboxes): (Arc<dyn Bus>, Inboxes) = if config.standalone() {
            let (bus, inboxes) =
                MemoryBroker::with_boxes(box_settings(&config)).attach(config.node_id.clone());
            bus.serve_echo(DEMO_KEY);
            (bus, inboxes)
        } else {
            let (bus, inboxes) = RabbitBus::start(Self::rabbit_settings(&config), config.node_id.clone());
            (bus, inboxes)
        };
        Self::start_on(config, bus, inboxes)
    }

    /// How a node with this configuration uses RabbitMQ.
    pub fn rabbit_settings(config: &Config) -> RabbitSettings {
        RabbitSettings {
            prefix: config.prefix.as_str().to_owned(),
            quorum: config.queue_type == QueueType::Quorum,
            boxes: box_settings(config),
            ingress_partitions: config.ingress_partitions,
            ..RabbitSettings::new(config.amqp_urls.clone())
        }
    }

    /// Starts on a bus that is there already: several nodes in one process share a memory broker like this.
    pub fn start_on(config: Config, bus: Arc<dyn Bus>, inboxes: Inboxes) -> Result<Self, StartError> {
        let listen = |address, count| {
            listener::bind(address, count).map_err(|error| StartError::Listen { address, error })
        };
        let (public, listeners) = listen(config.listen, config.workers)?;
        let (admin, admin_listeners) = listen(config.admin_listen, 1)?;
        let verifier = Arc::new(Verifier::new(&config)?);
        let (hub, commands) = Hub::new(config.workers);
        let hub = Arc::new(hub);
        let (directory, members, directory_service) =
            Directory::new(config.node_id.clone(), config.routing, config.public_url.clone(), bus.clone());
        let (receipts, receipt_task) = ReceiptSender::start(config.node_id.clone(), bus.clone());
        let peers = {
            let directory = directory.clone();
            Box::new(move || -> Vec<NodeId> { directory.peers().into_iter().map(|peer| peer.node).collect() })
        };
        let (mail, mail_service) =
            MailIndex::new(config.node_id.clone(), bus.clone(), mail_limits(&config), peers);
        let readings = Readings::new(bus.boxes().boxes);
        let metrics = Arc::new(Metrics::new());
        let trace = Arc::new(Trace::new(config.node_id.clone(), config.trace));
        let operators =
            Operators::new(metrics.clone(), trace, config.public_url.clone(), config.standalone());
        let places = Places {
            hub: hub.clone(),
            directory,
            bus: bus.clone(),
            receipts,
            mail,
            readings: readings.clone(),
            operators,
            revocations: verifier.revocations().clone(),
        };
        let router = Router::new(router_settings(&config), places);
        let tasks = Tasks::new();
        let acceptor = config.tls.as_ref().map(Acceptor::new).transpose()?;
        let keys = KeyReload::new(verifier.clone(), acceptor.clone(), &config);
        let state =
            app_state(&config, &router, verifier.clone(), metrics, bus.link(), tasks.failures().clone());
        let mut node = Self {
            id: config.node_id.clone(),
            public,
            admin,
            drain: config.drain,
            lifecycle: state.lifecycle.clone(),
            hub,
            router,
            bus,
            tasks,
            keys,
            workers: Vec::new(),
            running: Sender::new(()),
        };
        node.tasks.spawn_endless("directory", directory_service);
        node.tasks.spawn_endless("mail index", mail_service);
        node.tasks.spawn_endless("receipts", async move { drop(receipt_task.await) });
        node.tasks.spawn_endless("keys", node.keys.clone().follow());
        if let Auth::Jwt(Jwt { key_set: Some(source), .. }) = &config.auth {
            let (source, again) = (KeySet::clone(source), node.keys.published());
            node.tasks.spawn_endless("key set", key_set::follow(source, verifier, again));
        }
        node.tasks.spawn_endless("readings", readings.run(node.router.clone()));
        node.tasks.spawn_endless("sweep", sweep(node.router.clone()));
        node.spawn_pumps(&config, &state, inboxes, members);
        node.spawn_admin(&config, state.clone(), admin_listeners)?;
        node.spawn_workers(&config, &state, acceptor, listeners, commands)?;
        Ok(node)
    }

    fn spawn_pumps(
        &mut self,
        config: &Config,
        state: &AppState,
        inboxes: Inboxes,
        members: mpsc::Receiver<Membership>,
    ) {
        let (router, bus, metrics) = (self.router.clone(), self.bus.clone(), state.metrics.clone());
        let message_bytes_max = config.max_message_bytes;
        let node_queue = NodeQueue::new(router.clone(), bus.clone(), metrics.clone(), message_bytes_max);
        self.tasks.spawn("node queue", node_queue.run(inboxes.node));
        self.tasks.spawn("control", peers::run_control(router.clone(), bus.clone(), inboxes.control));
        let replies_desk = RepliesDesk {
            router: router.clone(),
            bus: bus.clone(),
            metrics: metrics.clone(),
            message_bytes_max,
        };
        self.tasks.spawn("replies", replies::run(replies_desk, inboxes.replies));
        let own_prefix = config.prefix.as_str().into();
        let door = BackendsDoor { router: router.clone(), bus, metrics, own_prefix, message_bytes_max };
        self.tasks.spawn("ingress", backends::run(door, inboxes.ingress));
        self.tasks.spawn_endless("partitions", watch::share_ingress(router.clone(), self.bus.ingress_desk()));
        let failures = self.tasks.failures().clone();
        self.tasks.spawn("members", watch::follow_members(router.clone(), members, failures));
        self.tasks.spawn("link", watch::follow_link(router.clone(), self.lifecycle.clone(), self.bus.link()));
        self.tasks.spawn_endless("revocations", router.clone().follow_revocations());
        self.tasks.spawn_endless("channels", router.clone().hand_out_held());
        if config.events.are_any() {
            self.tasks.spawn_endless("events", router.clone().keep_events());
        }
        self.tasks.spawn_endless("rosters", router.clone().keep_rosters());
        self.tasks.spawn_endless("clock", watch::keep_time(router));
    }

    fn spawn_admin(
        &mut self,
        config: &Config,
        state: Arc<AppState>,
        listeners: Vec<std::net::TcpListener>,
    ) -> Result<(), StartError> {
        for listener in listeners {
            let listener = TcpListener::from_std(listener)
                .map_err(|error| StartError::Listen { address: self.admin, error })?;
            let guard = admin_guard(config);
            let limits =
                serve::Limits::new(config.header_timeout, ADMIN_CONNECTIONS, ADMIN_CONNECTIONS, guard);
            let routes = http::admin(state.clone(), config.console_is_for_operators());
            self.tasks.spawn_endless("admin", serve::run(listener, limits.for_operators(), routes, None));
        }
        Ok(())
    }

    fn spawn_workers(
        &mut self,
        config: &Config,
        state: &Arc<AppState>,
        acceptor: Option<Acceptor>,
        listeners: Vec<std::net::TcpListener>,
        commands: Vec<Commands>,
    ) -> Result<(), StartError> {
        let (connections, per_address) = (config.handshakes_max, config.connections_per_address);
        let mut limits =
            serve::Limits::new(config.header_timeout, connections, per_address, public_guard(config));
        if let Some(acceptor) = acceptor {
            limits = limits.with_tls(acceptor, connections, per_address);
        }
        let sessions = session_settings(config, state);
        for (index, (listener, commands)) in listeners.into_iter().zip(commands).enumerate() {
            let (admissions, admitted) = mpsc::channel(ADMISSIONS_MAX);
            let thread = WorkerThread {
                index,
                listener,
                limits: limits.clone(),
                state: state.clone(),
                console: config.console_is_public(),
                sessions: sessions.clone(),
                commands,
                admissions,
                admitted,
                running: self.running.subscribe(),
                failures: self.tasks.failures().clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(StartError::Thread)?;
            let handle = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || thread.run(&runtime))
                .map_err(StartError::Thread)?;
            self.workers.push(handle);
        }
        Ok(())
    }

    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Where clients connect.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// Where operators look.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    pub fn keys(&self) -> &KeyReload {
        &self.keys
    }

    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// The tasks of the node: whoever adds one has it supervised.
    pub fn tasks(&mut self) -> &mut Tasks {
        &mut self.tasks
    }

    /// Returns when a task or thread of the node has failed: the node is unready, and must be drained and stopped.
    pub fn failed(&self) -> impl std::future::Future<Output = Failure> {
        let failures = self.tasks.failures().clone();
        async move { failures.failed().await }
    }

    /// Returns when an operator wants the node to be drained and stopped.
    pub async fn drain_ordered(&self) {
        self.router.drain_ordered().await;
    }

    /// Returns once the node serves: its queues exist and the broker takes its messages.
    pub async fn ready(&self) {
        self.lifecycle.reached(Phase::Serving).await;
    }

    /// Sends the sessions elsewhere, spread over the drain time, and leaves the cluster. `hurry` cuts it short.
    pub async fn drain(&mut self, hurry: impl std::future::Future<Output = ()>) {
        self.lifecycle.advance(Phase::Draining);
        self.router.directory().set_draining();
        self.bus.stop_ingress();
        let spread = self.drain.saturating_sub(DRAIN_TAIL);
        let spread_ms = u32::try_from(spread.as_millis()).unwrap_or(u32::MAX);
        let hub = self.hub.clone();
        // Before anybody can hurry: the last word counts.
        hub.tell_all(|| Command::Drain { spread_ms }).await;
        let gone = async {
            while hub.sessions() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        let hurried = async {
            hurry.await;
            hub.tell_all(|| Command::Drain { spread_ms: 0 }).await;
            tokio::time::sleep(DRAIN_TAIL).await;
        };
        tokio::select! {
            () = gone => {}
            () = hurried => {}
            () = tokio::time::sleep(self.drain) => {}
        }
        // What this node answers for is settled before it becomes unreachable for the receipts.
        let settled = async {
            while self.router.pending() > 0
                || self.router.requests_pending() > 0
                || !self.router.readings().are_over()
            {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        // Mail that was taken leaves its box, and is not shown again elsewhere.
        self.router.readings().hurry();
        let _ = tokio::time::timeout(SETTLE_MAX, settled).await;
        self.router.give_up_requests("the node shuts down");
        self.router.directory().bye().await;
        self.bus.leave();
        self.lifecycle.advance(Phase::Stopped);
    }

    /// Ends every task and thread of the node. Sockets that are still open are cut.
    pub async fn stop(mut self) {
        self.lifecycle.advance(Phase::Stopped);
        self.tasks.shutdown().await;
        self.bus.close();
        drop(self.running);
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().all(|w| w.join().is_ok()));
        if !joined.await.unwrap_or(false) {
            tracing::error!("a worker thread panicked");
        }
    }
}

fn box_settings(config: &Config) -> BoxSettings {
    BoxSettings { boxes: config.boxes, ttl: config.mailbox_ttl }
}
