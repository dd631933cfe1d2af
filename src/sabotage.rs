//! What builds that are broken on purpose share: tests/faults/sabotage.rs says what each of them breaks, and where.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static CALLS: AtomicU32 = AtomicU32::new(0);

/// `true` at every `count`-th call. A build has one sabotage, so one counter is enough.
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
