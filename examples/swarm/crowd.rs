//! Many clients: connected at a bounded rate, counted, measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{connect, Door};
use crate::process::Process;

/// What connecting a crowd was like.
pub struct Crowd {
    pub streams: Vec<Arc<TcpStream>>,
    pub failed: usize,
    pub took: Duration,
    /// Microseconds from connect to welcome.
    pub handshakes: Histogram<u64>,
    /// What the node used meanwhile, if it was watched.
    pub node_cpu: Duration,
}

/// Opens `count` sockets as the users `<name>0`, `<name>1` and so on, `at_once` of them at a time.
pub async fn gather(
    door: &Door,
    name: &str,
    count: usize,
    at_once: usize,
    node: Option<Process>,
) -> Result<Crowd, String> {
    let requests: Vec<Vec<u8>> = (0..count).map(|index| door.request(&format!("{name}{index}"))).collect();
    let turns = Arc::new(Semaphore::new(at_once));
    let cpu_before = node.map(Process::cpu);
    let began = Instant::now();
    let mut connecting = JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        let (turns, address) = (turns.clone(), door.address);
        connecting.spawn(async move {
            let _turn = turns.acquire().await;
            connect(address, index, &request).await
        });
    }
    let mut crowd = Crowd {
        streams: Vec::with_capacity(count),
        failed: 0,
        took: Duration::ZERO,
        handshakes: histogram(),
        node_cpu: Duration::ZERO,
    };
    while let Some(connected) = connecting.join_next().await {
        match connected.map_err(|error| error.to_string())? {
            Ok(client) => {
                crowd.handshakes.saturating_record(client.took.as_micros() as u64);
                crowd.streams.push(client.stream);
            }
            Err(error) => {
                if crowd.failed == 0 {
                    eprintln!("first failure: {error}");
                }
                crowd.failed += 1;
            }
        }
    }
    crowd.took = began.elapsed();
    if let (Some(node), Some(before)) = (node, cpu_before) {
        crowd.node_cpu = node.cpu().saturating_sub(before);
    }
    Ok(crowd)
}

/// Microseconds up to a minute, three digits.
pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that the library accepts.
    Histogram::new_with_max(60_000_000, 3).unwrap_or_else(|_| unreachable!())
}

impl Crowd {
    pub fn print(&self) {
        let count = self.streams.len();
        let seconds = self.took.as_secs_f64();
        println!("connected      {count} ({} failed) in {seconds:.2} s", self.failed);
        println!("connects       {:.0} /s", count as f64 / seconds);
        println!("handshake      {}", quantiles(&self.handshakes));
        if !self.node_cpu.is_zero() {
            let each = self.node_cpu.as_secs_f64() / count.max(1) as f64;
            println!("node CPU       {:.1} us a connect = {:.0} connects/s and core", each * 1e6, 1.0 / each);
        }
    }
}

pub fn quantiles(of: &Histogram<u64>) -> String {
    let at = |quantile| of.value_at_quantile(quantile) as f64 / 1000.0;
    format!(
        "p50 {:.2} ms  p99 {:.2} ms  p99.9 {:.2} ms  max {:.2} ms",
        at(0.5),
        at(0.99),
        at(0.999),
        of.max() as f64 / 1000.0
    )
}
