//! Sockets that do nothing, and sockets that all come back at once.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{listen, Door};
use crate::crowd::{gather, Crowd};
use crate::process::Process;

/// What the node needs to finish with handshakes and to give memory back.
const SETTLE: Duration = Duration::from_secs(3);

/// Which node, with how many sockets.
#[derive(Debug, Args)]
pub struct At {
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
    pub url: String,
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// Handshakes at a time
    #[arg(long, default_value_t = 64)]
    pub at_once: usize,
    /// The node's process, for its memory and processor time
    #[arg(long)]
    pub pid: Option<u32>,
    /// The sockets offer permessage-deflate; the node needs WARREN_COMPRESSION=on
    #[arg(long)]
    pub compression: bool,
}

impl At {
    pub fn door(&self, secret: Option<String>) -> Result<Door, String> {
        Ok(Door::new(&self.url, secret)?.compressed(self.compression))
    }

    pub fn node(&self) -> Option<Process> {
        self.pid.map(Process)
    }
}

#[derive(Debug, Args)]
pub struct Idle {
    #[command(flatten)]
    pub at: At,
    /// Seconds to stay connected
    #[arg(long, default_value_t = 0)]
    hold: u64,
}

impl Idle {
    pub async fn run(&self, door: &Door) -> Result<(), String> {
        let node = self.at.node();
        let before = node.map(Process::resident);
        let crowd = gather(door, "u", self.at.connections, self.at.at_once, node).await?;
        crowd.print();
        let count = crowd.streams.len();
        let _answering = answer_pings(&crowd);
        sleep(SETTLE).await;
        print_memory("memory", node, before, count);
        if self.hold > 0 {
            let cpu_before = node.map(Process::cpu);
            sleep(Duration::from_secs(self.hold)).await;
            print_memory("memory later", node, before, count);
            if let (Some(node), Some(before)) = (node, cpu_before) {
                let used = (node.cpu() - before).as_secs_f64() * 1e6;
                println!(
                    "idle CPU       {:.2} us a socket and second",
                    used / (count as u64 * self.hold) as f64
                );
            }
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Storm {
    #[command(flatten)]
    pub at: At,
    /// How often
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

impl Storm {
    pub async fn run(&self, door: &Door) -> Result<(), String> {
        let node = self.at.node();
        let before = node.map(Process::resident);
        let mut crowd = gather(door, "u", self.at.connections, self.at.at_once, node).await?;
        crowd.print();
        for round in 1..=self.rounds {
            println!("-- storm {round}: all are cut and connect at once");
            drop(crowd);
            crowd = gather(door, "u", self.at.connections, self.at.connections, node).await?;
            crowd.print();
            sleep(SETTLE).await;
            print_memory("memory", node, before, crowd.streams.len());
        }
        drop(crowd);
        sleep(SETTLE).await;
        print_memory("all have left", node, before, 0);
        Ok(())
    }
}

/// Ends when the set is dropped.
fn answer_pings(crowd: &Crowd) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for stream in &crowd.streams {
        tasks.spawn(listen(Arc::clone(stream), |_| ()));
    }
    tasks
}

fn print_memory(what: &str, node: Option<Process>, before: Option<u64>, sockets: usize) {
    let (Some(node), Some(before)) = (node, before) else { return };
    let now = node.resident();
    let (mib, grown) = (now as f64 / 1_048_576.0, now.saturating_sub(before) as f64);
    println!("{what:<14} {mib:.1} MiB resident, {:.1} MiB more than before", grown / 1_048_576.0);
    if sockets > 0 {
        println!(
            "{:14} {:.0} bytes = {:.2} KiB a socket",
            "",
            grown / sockets as f64,
            grown / sockets as f64 / 1024.0
        );
    }
}
