//! The moment at which something happens, read once and passed in.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Both clocks of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For every decision: never jumps.
    pub instant: Instant,
    /// Milliseconds since the Unix epoch, only to be shown.
    pub unix_ms: u64,
}

impl Now {
    pub fn read() -> Self {
        Self { instant: Instant::now(), unix_ms: unix_ms() }
    }
}

/// Milliseconds since the Unix epoch, only to be shown and for the expiry of tokens.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
