//! What a process has used so far, as Linux tells it under /proc.

use std::fs;
use std::time::Duration;

/// A process that is watched from outside.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    /// Processor time of all threads that live. Threads that ended are not counted: a node has none that do.
    pub fn cpu(self) -> Duration {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.0)) else { return Duration::ZERO };
        let files = threads.flatten().map(|thread| thread.path().join("schedstat"));
        files.filter_map(|file| first_number(&fs::read_to_string(file).ok()?)).map(Duration::from_nanos).sum()
    }

    /// Resident memory in bytes.
    pub fn resident(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(first_number).unwrap_or_default() * 1024
    }
}

/// Processor time of the thread that asks, exact to a few milliseconds.
pub fn own_thread_cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(first_number(&text).unwrap_or_default())
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}
