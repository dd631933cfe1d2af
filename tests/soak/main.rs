//! The soak: honest users talk while others churn, storm, attack and kill, for as long as `MINUTES` says (10).
//!
//! Real processes and a real broker. `node0` and `node1` serve the honest users and live as long as the run; `node2` is
//! killed or told to stop in each round. After each round everybody else leaves, and what the two nodes still hold is
//! measured. The soak fails when an honest message is lost, shown twice or late, when an honest session ends, or when
//! memory, descriptors, threads or tasks grow. `SEED` repeats the choices of a run, but not its timing.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on has failed.

#[path = "../support/broker.rs"]
mod broker;
mod crowd;
#[path = "../support/eventually.rs"]
mod eventually;
mod gauges;
mod honest;
mod hostile;
#[path = "../faults/nodes.rs"]
#[allow(dead_code)] // The fault suite uses the rest.
mod nodes;
#[path = "../support/raw_ws.rs"]
#[allow(dead_code)] // Other test programs use the rest.
mod raw_ws;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, Instant};

use broker::PrivateBroker;
use crowd::Crowd;
use eventually::eventually;
use gauges::{Held, Rest};
use honest::{Honest, Latencies};
use nodes::{Folder, NodeProcess, NodeSettings};

/// A run has this much of the time to itself before anybody attacks: the figures to compare with.
const CALM_SHARE: u32 = 6;
const ROUND: Duration = Duration::from_secs(40);
const REST_MAX: Duration = Duration::from_secs(90);
/// Readings of boxes end within this time of each other.
const SETTLED_AFTER: Duration = Duration::from_secs(6);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many times longer than in calm the slowest hundredth of the honest messages may take.
const SLOWDOWN_MAX: u32 = 2;
/// Below this the scheduler of a machine is measured that the attackers share with the nodes.
const LATENCY_FLOOR: Duration = Duration::from_millis(25);

fn number(name: &str, default: u64) -> u64 {
    #[allow(clippy::disallowed_methods)] // The tests have no configuration file.
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

fn main() -> ExitCode {
    let minutes = number("MINUTES", 10).clamp(2, 24 * 60);
    let seed = number("SEED", rand::random_range(1..1_000_000));
    println!("MINUTES={minutes} SEED={seed} ./test soak");
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mistakes = runtime.block_on(soak(Duration::from_secs(minutes * 60), seed));
    mistakes.iter().for_each(|mistake| println!("FAILED {mistake}"));
    match mistakes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

struct World {
    nodes: Vec<NodeProcess>,
    honest: Honest,
    crowd: Crowd,
}

async fn soak(length: Duration, seed: u64) -> Vec<String> {
    let began = Instant::now();
    let broker = PrivateBroker::start().await;
    let folder = Folder::new("soak");
    let settings = NodeSettings {
        binary: env!("CARGO_BIN_EXE_warren").into(),
        dir: folder.path().into(),
        prefix: "soak".into(),
        quorum: false,
        partitions: None,
        routing: "directory".into(),
        // As they are by default; the fault suite has others.
        more: &[
            ("WARREN_MESSAGE_RATE", "100"),
            ("WARREN_PING_INTERVAL_MS", "25000"),
            ("WARREN_PONG_TIMEOUT_MS", "10000"),
            ("WARREN_LOG", "warn"),
        ],
        skew_s: &[],
        sabotage: String::new(),
    };
    let nodes: Vec<_> = (0..3).map(|index| NodeProcess::start(&settings, index, broker.url())).collect();
    for node in &nodes {
        node.ready().await;
    }
    let ports: Arc<[u16]> = nodes.iter().map(|node| node.port).collect();
    let honest = Honest::start([ports[0], ports[1]]).await;
    let mut world = World { nodes, honest, crowd: Crowd::new(ports, seed) };
    let mistakes = world.run(began, length).await;
    if !mistakes.is_empty() {
        println!("the nodes' logs are in {}", folder.keep().display());
    }
    mistakes
}

impl World {
    async fn run(&mut self, began: Instant, length: Duration) -> Vec<String> {
        // What is filled once, such as tables and arenas of the allocator, is full before anything is compared: that takes two
        // rounds, one with each way in which a node ends.
        let first = self.round(0).await;
        let warm = self.round(1).await;
        println!("{:<9} {first}\n{:<9} {warm}", "first", "warm");
        self.honest.take_latencies();
        sleep(length / CALM_SHARE).await;
        let calm = self.honest.take_latencies();
        println!("{:<9} {calm}", "calm");
        let (mut rounds, mut all) = (Vec::new(), Latencies::default());
        while rounds.len() < 2 || began.elapsed() + ROUND < length {
            self.honest.take_latencies();
            let rest = self.round(rounds.len() as u32 + 1).await;
            let latencies = self.honest.take_latencies();
            println!("round {:<3} {latencies}; {rest}", rounds.len() + 1);
            all.add(&latencies);
            rounds.push(rest);
        }
        println!("{:<9} {all}", "all");
        let mut mistakes = self.honest.finish().await;
        mistakes.extend(gauges::growth(&warm, &rounds));
        let limit = (calm.p99() * SLOWDOWN_MAX).max(LATENCY_FLOOR);
        if all.p99() > limit {
            mistakes.push(format!(
                "honest messages took {:?} (p99), and {:?} in calm",
                all.p99(),
                calm.p99()
            ));
        }
        for node in &mut self.nodes {
            if let Some(status) = node.died() {
                mistakes.push(format!("{} ended by itself: {status}", node.name));
            }
        }
        mistakes
    }

    /// Everything at once for a while, with the end of `node2` in its middle; then what is held when all have left.
    async fn round(&mut self, number: u32) -> Rest {
        self.crowd.come();
        sleep(ROUND / 4).await;
        self.crowd.storm().await;
        let node = &mut self.nodes[2];
        if number.is_multiple_of(2) {
            node.kill();
        } else {
            node.signal("TERM");
            node.ended(Duration::from_secs(30)).await;
        }
        node.start_again();
        node.ready().await;
        sleep(ROUND / 4).await;
        self.crowd.storm().await;
        sleep(ROUND / 4).await;
        self.crowd.leave().await;
        self.rest().await
    }

    /// Returns when only the honest users are there and the boxes of the others have been read: what is under way after the
    /// others have left is work, and no growth.
    async fn rest(&self) -> Rest {
        let mut held = Vec::new();
        for node in &self.nodes[..2] {
            let empty = format!("only honest sessions are left on {}", node.name);
            eventually(&empty, REST_MAX, || async {
                let sessions = node.gauge("warren_sessions").await;
                sessions == Some(honest::USERS as f64 / 2.0)
            })
            .await;
            held.push(self.settled(node).await);
        }
        Rest(held)
    }

    /// What the node holds once its number of tasks has stopped to fall.
    async fn settled(&self, node: &NodeProcess) -> Held {
        let (mut lowest, mut since) = (Held::of(node).await, Instant::now());
        while since.elapsed() < SETTLED_AFTER {
            sleep(LOOK_EVERY).await;
            let now = Held::of(node).await;
            if now.tasks < lowest.tasks {
                (lowest, since) = (now, Instant::now());
            }
        }
        lowest
    }
}
