//! Messages for everyone who is connected.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Client as Http;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{listen, Door};
use crate::crowd::gather;
use crate::floor::Floor;
use crate::idle::At;
use crate::process::Process;

/// How long all sockets together may take for what was sent at once.
const PATIENCE: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(1);
/// Node and floor are measured by turns, so many times.
const TURNS: usize = 5;
/// Writes of the floor in a turn.
const FLOOR_WRITES: usize = 20_000;

#[derive(Debug, Args)]
pub struct Fanout {
    #[command(flatten)]
    pub at: At,
    /// Messages in all
    #[arg(long, default_value_t = 200)]
    messages: usize,
    /// Messages at once, in one request; 1 = the next only after everybody has the last one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    burst: u16,
    /// Bytes of each payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Payloads are rows of a table in JSON, instead of one letter over and over
    #[arg(long)]
    rows: bool,
}

/// What has arrived, over all sockets.
#[derive(Default)]
struct Arrived {
    frames: AtomicU64,
    awaited: AtomicU64,
    all: Notify,
    /// The first frame, whose length the floor needs.
    sample: Mutex<Vec<u8>>,
}

impl Arrived {
    fn one(&self, payload: &[u8]) {
        let before = self.frames.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            *self.sample.lock().unwrap_or_else(PoisonError::into_inner) = payload.to_vec();
        }
        if before + 1 == self.awaited.load(Ordering::Relaxed) {
            self.all.notify_one();
        }
    }
}

/// What was measured, summed over all turns.
#[derive(Default)]
struct Sums {
    reached: u64,
    expected: u64,
    took: Duration,
    node_cpu: Duration,
    /// Of one write, one frame in it.
    floor: Duration,
    /// Of one write, a burst in it.
    burst_floor: Duration,
}

impl Fanout {
    pub async fn run(&self, door: &Door) -> Result<(), String> {
        let crowd = gather(door, "u", self.at.connections, self.at.at_once, self.at.node()).await?;
        let sockets = crowd.streams.len();
        let arrived = Arc::new(Arrived::default());
        let mut listening = JoinSet::new();
        for stream in crowd.streams {
            let arrived = arrived.clone();
            listening.spawn(listen(stream, move |payload| arrived.one(payload)));
        }
        sleep(SETTLE).await;
        let poster = Poster::new(door, self);
        self.send(&poster, &arrived, sockets, 1).await?;
        let text_bytes = arrived.sample.lock().unwrap_or_else(PoisonError::into_inner).len();
        let frame_bytes = text_bytes + if text_bytes < 126 { 2 } else { 4 };
        let mut floor = Floor::start(sockets, frame_bytes).map_err(|error| error.to_string())?;
        let mut sums = Sums::default();
        // By turns, so that what else the machine does meets both alike.
        for _ in 0..TURNS {
            self.measure_floor(&mut floor, sockets, &mut sums).map_err(|error| error.to_string())?;
            self.measure_node(&poster, &arrived, sockets, &mut sums).await?;
        }
        self.report(&sums, sockets, frame_bytes);
        Ok(())
    }

    fn measure_floor(&self, floor: &mut Floor, sockets: usize, sums: &mut Sums) -> io::Result<()> {
        let rounds = (FLOOR_WRITES / sockets).max(2);
        sums.floor += floor.measure(1, rounds)?;
        if self.burst > 1 {
            sums.burst_floor += floor.measure(self.burst.into(), rounds)?;
        }
        Ok(())
    }

    async fn measure_node(
        &self,
        poster: &Poster,
        arrived: &Arrived,
        sockets: usize,
        sums: &mut Sums,
    ) -> Result<(), String> {
        let (cpu_before, began) = (self.at.node().map(Process::cpu), Instant::now());
        let requests = (self.messages / usize::from(self.burst)).div_ceil(TURNS).max(1);
        for _ in 0..requests {
            sums.reached += self.send(poster, arrived, sockets, self.burst).await?;
            sums.expected += (sockets * usize::from(self.burst)) as u64;
        }
        sums.took += began.elapsed();
        if let (Some(node), Some(before)) = (self.at.node(), cpu_before) {
            sums.node_cpu += node.cpu().saturating_sub(before);
        }
        Ok(())
    }

    /// Sends so many messages at once; returns how many frames have arrived when all have, or too late.
    async fn send(
        &self,
        poster: &Poster,
        arrived: &Arrived,
        sockets: usize,
        count: u16,
    ) -> Result<u64, String> {
        let before = arrived.frames.load(Ordering::Relaxed);
        arrived.awaited.store(before + (sockets * usize::from(count)) as u64, Ordering::Relaxed);
        poster.post(count).await?;
        if timeout(PATIENCE, arrived.all.notified()).await.is_err() {
            eprintln!("not everybody got everything within {PATIENCE:?}");
        }
        Ok(arrived.frames.load(Ordering::Relaxed) - before)
    }

    fn report(&self, sums: &Sums, sockets: usize, frame_bytes: usize) {
        let us = |sum: Duration, count: f64| sum.as_secs_f64() * 1e6 / count;
        let turns = TURNS as f64;
        let (Sums { reached, expected, .. }, seconds) = (sums, sums.took.as_secs_f64());
        println!("reach          {reached} of {expected} deliveries to {sockets} sockets in {seconds:.2} s");
        let floor_us = us(sums.floor, turns);
        println!("floor          {floor_us:.2} us a write of {frame_bytes} bytes");
        if self.burst > 1 {
            let (burst, many_us) = (self.burst, us(sums.burst_floor, turns * f64::from(self.burst)));
            println!("floor, burst   {many_us:.2} us a frame, {burst} in a write");
        }
        if !sums.node_cpu.is_zero() {
            let node_us = us(sums.node_cpu, *reached as f64);
            println!("node CPU       {node_us:.2} us a delivery = {:.2} x floor", node_us / floor_us);
        }
    }
}

struct Poster {
    http: Http,
    url: String,
    bearer: String,
    message: serde_json::Value,
}

impl Poster {
    fn new(door: &Door, load: &Fanout) -> Self {
        let url = format!("http://{}/v1/messages", door.address);
        let payload = match load.rows {
            true => rows(load.payload),
            false => json!("x".repeat(load.payload.saturating_sub(2))),
        };
        let message = json!({ "to": "broadcast", "payload": payload });
        Self { http: Http::new(), url, bearer: door.bearer("swarm", Some(&["api"])), message }
    }

    async fn post(&self, count: u16) -> Result<(), String> {
        let body = match count {
            1 => self.message.clone(),
            _ => vec![self.message.clone(); count.into()].into(),
        };
        let request = self.http.post(&self.url).header("authorization", &self.bearer).json(&body);
        let answer = request.send().await.map_err(|error| error.to_string())?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default())),
        }
    }
}

/// Orders as a page would show them, about so many bytes of them; the same each time.
fn rows(bytes: usize) -> serde_json::Value {
    const STATES: [&str; 4] = ["open", "filled", "cancelled", "partially filled"];
    let (mut rows, mut len, mut state) = (Vec::new(), 0, 1u64);
    while len < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = state >> 33;
        let row = json!({
            "order": format!("{:08x}", random as u32),
            "price": (random % 1_000_000) as f64 / 100.0,
            "amount": random % 500,
            "state": STATES[(random % 4) as usize],
        });
        len += row.to_string().len() + 1;
        rows.push(row);
    }
    rows.into()
}
