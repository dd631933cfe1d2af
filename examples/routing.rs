//! What the routing strategies cost: nodes in this process over a real broker, users on all of them, messages between them.
//!
//! Prints rows of a table: messages and receipts published for each message, copies of them in queues, processor time of
//! this process (nodes and clients) and of the broker, and how many messages were settled as they should be.
//!
//! ```text
//! cargo run --release --example routing -- --amqp amqp://guest:guest@127.0.0.1:5672 --nodes 12 --routing ring-preview
//! ```

#[path = "../tests/support/counting_bus.rs"]
mod counting_bus;
#[path = "swarm/process.rs"]
#[allow(dead_code)] // The load tool uses the rest.
mod process;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use counting_bus::{Counting, Counts};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hdrhistogram::Histogram;
use process::Process;
use serde_json::{json, Value};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout, MissedTickBehavior};
use tokio_tungstenite::{client_async, WebSocketStream};
use tungstenite::Message;
use warren::bus::rabbit::RabbitBus;
use warren::config::Config;
use warren::hub::Local;
use warren::ids::UserId;
use warren::node::Node;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Until gossip, homes and views are at rest.
const SETTLE: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    amqp: String,
    #[arg(long)]
    routing: String,
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// With a socket, on each node
    #[arg(long, default_value_t = 20)]
    receivers: usize,
    /// Without a socket, on all nodes together: for the memory of the tables
    #[arg(long, default_value_t = 200_000)]
    crowd: usize,
    /// Messages a second, from all nodes together
    #[arg(long, default_value_t = 600)]
    rate: u64,
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// The broker's process, for its processor time
    #[arg(long)]
    broker_pid: Option<u32>,
}

/// Microseconds.
#[derive(Clone)]
struct Times(Arc<Mutex<Histogram<u64>>>);

impl Times {
    fn new() -> Result<Self, AnyError> {
        Ok(Self(Arc::new(Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?))))
    }

    fn note(&self, micros: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
    }

    fn shown(&self) -> String {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1_000.0;
        format!("{:.2} / {:.2} ({} of them)", ms(0.5), ms(0.99), times.len())
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn connect(to: SocketAddr, user: &str) -> Result<Socket, AnyError> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut socket, _) = client_async(format!("ws://{to}/ws?user={user}"), stream).await?;
    socket.next().await.ok_or("no welcome")??;
    Ok(socket)
}

/// Notes how old each message is when it comes.
async fn receive(mut socket: Socket, began: Instant, times: Times) {
    while let Some(Ok(frame)) = socket.next().await {
        let Ok(text) = frame.to_text() else { continue };
        let Ok(frame) = serde_json::from_str::<Value>(text) else { continue };
        if let Some(sent) = frame["payload"]["sent"].as_u64() {
            times.note((began.elapsed().as_micros() as u64).saturating_sub(sent));
        }
    }
}

/// Publishes at a fixed rate, whatever comes back.
async fn send(
    mut to: SplitSink<Socket, Message>,
    began: Instant,
    rate: f64,
    count: u64,
    user: impl Fn(u64) -> String,
) {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for n in 0..count {
        ticks.tick().await;
        let payload = json!({"sent": began.elapsed().as_micros() as u64, "filler": "x".repeat(96)});
        let frame =
            json!({"type": "publish", "id": n, "to": format!("user.{}", user(n)), "payload": payload});
        if to.send(Message::text(frame.to_string())).await.is_err() {
            return;
        }
    }
}

/// Counts the replies that say `outcome`.
async fn replies(mut from: SplitStream<Socket>, count: u64, outcome: &'static str) -> u64 {
    let mut good = 0;
    for _ in 0..count {
        let Ok(Some(Ok(frame))) = timeout(PATIENCE, from.next()).await else { break };
        let frame = frame.to_text().ok().and_then(|text| serde_json::from_str::<Value>(text).ok());
        good += u64::from(frame.is_some_and(|frame| frame["outcome"] == outcome));
    }
    good
}

struct Run {
    args: Args,
    nodes: Vec<Node>,
    began: Instant,
    counts: Arc<Counts>,
}

impl Run {
    async fn start(args: Args) -> Result<Self, AnyError> {
        let (mut nodes, counts) = (Vec::new(), Arc::new(Counts::default()));
        for at in 0..args.nodes {
            let vars = [
                ("NODE_ID", format!("node-{at}")),
                ("AMQP_URL", args.amqp.clone()),
                ("PREFIX", format!("bench-{}-{}", args.routing, args.nodes)),
                ("ROUTING", args.routing.clone()),
                ("LISTEN", "127.0.0.1:0".to_owned()),
                ("ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
                ("AUTH", "insecure".to_owned()),
                ("WORKERS", "1".to_owned()),
                ("MESSAGE_RATE", "0".to_owned()),
                ("SENDER_MAIL_RATE", "100000".to_owned()),
                ("SENDER_MAIL", "1000000".to_owned()),
                ("IN_FLIGHT_PER_SESSION", "4096".to_owned()),
            ];
            let vars = vars.into_iter().map(|(key, value)| (format!("WARREN_{key}"), value));
            let config = Config::from_vars(vars)?;
            let (bus, inboxes) = RabbitBus::start(Node::rabbit_settings(&config), config.node_id.clone());
            let bus = Arc::new(Counting { bus, counts: counts.clone(), nodes: args.nodes });
            nodes.push(Node::start_on(config, bus, inboxes)?);
        }
        let run = Self { args, nodes, began: Instant::now(), counts };
        timeout(PATIENCE, run.agree()).await.map_err(|_| "the nodes do not find each other")?;
        Ok(run)
    }

    async fn agree(&self) {
        for node in &self.nodes {
            node.ready().await;
            while node.router().directory().peers().len() + 1 < self.nodes.len() {
                sleep(Duration::from_millis(50)).await;
            }
        }
        sleep(SETTLE).await;
    }

    fn cpu(&self) -> (Duration, Duration) {
        let cpu = |pid| Process(pid).cpu();
        (cpu(std::process::id()), self.args.broker_pid.map_or(Duration::ZERO, cpu))
    }

    /// Messages from every node to users, and what each of them cost.
    async fn load(
        &self,
        what: &str,
        outcome: &'static str,
        user: impl Fn(usize, u64) -> String + Clone + Send + 'static,
    ) -> Result<(), AnyError> {
        let count = self.args.rate * self.args.seconds / self.args.nodes as u64;
        let rate = self.args.rate as f64 / self.args.nodes as f64;
        let (counted, before) = (self.counts.now(), self.cpu());
        let mut sending = JoinSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let socket = connect(node.public(), &format!("sender-{what}-{at}")).await?;
            let (to, from) = socket.split();
            let (began, user) = (self.began, user.clone());
            sending.spawn(async move {
                let sent = send(to, began, rate, count, move |n| user(at, n));
                tokio::join!(sent, replies(from, count, outcome)).1
            });
        }
        let good: u64 = sending.join_all().await.into_iter().sum();
        let (sent, after) = (self.counts.now(), self.cpu());
        let all = (count * self.nodes.len() as u64).max(1);
        let each = |before: usize, after: usize| (after - before) as f64 / all as f64;
        let micros = |time: Duration| time.as_micros() as f64 / all as f64;
        println!(
            "| {} | {} | {what} | {:.2} | {:.2} | {:.0} | {:.0} | {good} of {all} |",
            self.args.nodes,
            self.args.routing,
            each(counted.0, sent.0),
            each(counted.1, sent.1),
            micros(after.0.saturating_sub(before.0)),
            micros(after.1.saturating_sub(before.1)),
        );
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let run = Run::start(Args::parse()).await?;
    let (times, mut receivers) = (Times::new()?, JoinSet::new());
    for (at, node) in run.nodes.iter().enumerate() {
        for n in 0..run.args.receivers {
            let socket = connect(node.public(), &format!("user-{at}-{n}")).await?;
            receivers.spawn(receive(socket, run.began, times.clone()));
        }
    }
    sleep(SETTLE).await;
    let (nodes, each) = (run.args.nodes as u64, run.args.receivers as u64);
    // From each node to users of the next one.
    run.load("online", "delivered", move |at, n| format!("user-{}-{}", (at as u64 + 1) % nodes, n % each))
        .await?;
    run.load("away", "stored", |at, n| format!("away-{at}-{}", n % 500)).await?;
    println!("message to frame, p50 / p99 in ms: {}", times.shown());

    let own = Process(std::process::id());
    let before = own.resident();
    for n in 0..run.args.crowd {
        let node = &run.nodes[n % run.nodes.len()];
        let local = Local { counter: u64::MAX - n as u64, since_ms: 0 };
        let _ = node.router().open_session(&UserId::new(&format!("crowd-{n}"))?, local, usize::MAX);
    }
    sleep(SETTLE * 2).await;
    let grown = own.resident().saturating_sub(before);
    println!(
        "memory for each of {} users, on all nodes together: {} bytes",
        run.args.crowd,
        grown / run.args.crowd.max(1) as u64
    );
    receivers.shutdown().await;
    for node in run.nodes {
        node.stop().await;
    }
    Ok(())
}
