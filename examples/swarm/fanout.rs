//! Messages for everyone who is connected.

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
use crate::floor;
use crate::idle::At;
use crate::process::Process;

/// How long all sockets together may take for what was sent at once.
const PATIENCE: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(1);
/// Writes of one floor measurement: about half a second of processor time.
const FLOOR_WRITES: usize = 100_000;

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
        poster.post(1).await?;
        poster.wait(&arrived, sockets).await;
        let cpu_before = self.at.node().map(Process::cpu);
        let (mut reached, mut expected, began) = (0, 0, Instant::now());
        while expected < self.messages * sockets {
            let before = arrived.frames.load(Ordering::Relaxed);
            arrived.awaited.store(before + (sockets * usize::from(self.burst)) as u64, Ordering::Relaxed);
            poster.post(self.burst).await?;
            poster.wait(&arrived, 0).await;
            reached += arrived.frames.load(Ordering::Relaxed) - before;
            expected += sockets * usize::from(self.burst);
        }
        let took = began.elapsed();
        println!(
            "reach          {reached} of {expected} deliveries to {sockets} sockets in {:.2} s",
            took.as_secs_f64()
        );
        let cpu = self.at.node().map(Process::cpu).zip(cpu_before).map(|(now, before)| now - before);
        drop(listening);
        let text = std::mem::take(&mut *arrived.sample.lock().unwrap_or_else(PoisonError::into_inner));
        self.compare(cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / reached as f64), text.len(), sockets)
    }

    /// Next to what the same bytes cost without a gateway.
    fn compare(&self, node_us: Option<f64>, text_bytes: usize, sockets: usize) -> Result<(), String> {
        let frame = vec![b'x'; text_bytes + if text_bytes < 126 { 2 } else { 4 }];
        let rounds = (FLOOR_WRITES / sockets).max(2);
        let measure =
            |bytes: &[u8]| floor::measure(sockets, bytes, rounds).map_err(|error| error.to_string());
        let floor_us = measure(&frame)?.as_secs_f64() * 1e6;
        println!("floor          {floor_us:.2} us a write of {} bytes", frame.len());
        if self.burst > 1 {
            let burst = usize::from(self.burst);
            let many_us = measure(&frame.repeat(burst))?.as_secs_f64() * 1e6 / burst as f64;
            println!("floor, burst   {many_us:.2} us a frame, {burst} in a write");
        }
        if let Some(node_us) = node_us {
            println!("node CPU       {node_us:.2} us a delivery = {:.2} x floor", node_us / floor_us);
        }
        Ok(())
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
        let message = json!({ "to": "broadcast", "payload": "x".repeat(load.payload.saturating_sub(2)) });
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

    /// Waits for what is awaited, or for the first message to have reached so many sockets.
    async fn wait(&self, arrived: &Arrived, first: usize) {
        let reached = async {
            match first {
                0 => arrived.all.notified().await,
                _ => {
                    while arrived.frames.load(Ordering::Relaxed) < first as u64 {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
            }
        };
        if timeout(PATIENCE, reached).await.is_err() {
            eprintln!("not everybody got everything within {PATIENCE:?}");
        }
    }
}
