//! Promises that a build for the fault suite breaks on purpose: tests/faults/sabotage.rs says which, and where.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

static CALLS: AtomicU32 = AtomicU32::new(0);

/// Whether this process breaks the promise of that name: the one that the variable SABOTAGE names.
#[allow(clippy::disallowed_methods)] // No part of the configuration, and no part of a real build.
pub fn is(name: &str) -> bool {
    static CHOSEN: OnceLock<String> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("SABOTAGE").unwrap_or_default()) == name
}

/// `true` at every `count`-th call. A process has one sabotage, so one counter is enough.
pub fn every(count: u32) -> bool {
    CALLS.fetch_add(1, Ordering::Relaxed) % count == count - 1
}

/// Does it on a thread of its own, since not every caller has a runtime.
pub fn later(wait: Duration, what: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        std::thread::sleep(wait);
        what();
    });
}
