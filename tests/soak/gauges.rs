//! What a process holds, and whether that grows.

use std::fmt;

use crate::nodes::NodeProcess;

/// How much more than after the first round there may be: memory in per cent and KiB, since an allocator keeps what it
/// once had in pieces; the others as a number of things, since a few come and go at any moment.
const MEMORY_PERCENT: u64 = 10;
const MEMORY_KIB: u64 = 8 * 1024;
const THINGS: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    memory_kib: u64,
    files: u64,
    threads: u64,
    pub tasks: u64,
}

impl Held {
    /// Of a node that runs.
    pub async fn of(node: &NodeProcess) -> Self {
        let pid = node.pid().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number in /proc")
        };
        Self {
            memory_kib: field("VmRSS"),
            files: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64,
            threads: field("Threads"),
            tasks: node.gauge("warren_tasks").await.expect("metrics") as u64,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.memory_kib as f64 / 1024.0;
        write!(f, "{mib:.1} MiB {} files {} threads {} tasks", self.files, self.threads, self.tasks)
    }
}

/// What the nodes that live through the run hold when everybody else has left.
pub struct Rest(pub Vec<Held>);

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(Held::to_string).collect();
        f.write_str(&all.join(" | "))
    }
}

/// What has grown from the first rest to the last ones. The lowest of the last third of the rounds counts: what goes
/// up and down is no growth.
pub fn growth(first: &Rest, rounds: &[Rest]) -> Vec<String> {
    let last = &rounds[rounds.len() - rounds.len().div_ceil(3)..];
    let mut mistakes = Vec::new();
    for (at, first) in first.0.iter().enumerate() {
        let lowest = |of: fn(&Held) -> u64| last.iter().map(|rest| of(&rest.0[at])).min().unwrap_or(0);
        let mut compare = |what: &str, of: fn(&Held) -> u64, more: u64| {
            let (was, is) = (of(first), lowest(of));
            if is > was + more {
                mistakes.push(format!(
                    "node{at} held {was} {what} after the first round, and {is} after the last"
                ));
            }
        };
        compare("KiB", |held| held.memory_kib, MEMORY_KIB.max(first.memory_kib * MEMORY_PERCENT / 100));
        compare("files", |held| held.files, THINGS);
        compare("threads", |held| held.threads, THINGS);
        compare("tasks", |held| held.tasks, THINGS);
    }
    mistakes
}
