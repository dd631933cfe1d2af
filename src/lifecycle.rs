//! The phases of a node's life, as everybody who waits for one sees them.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Sockets are bound; the bus is not there yet.
    Starting,
    /// Serving. Whether the broker can be reached right now is another question: see readiness.
    Serving,
    /// No new sessions; the present ones are being sent elsewhere.
    Draining,
    Stopped,
}

/// Only ever goes forward.
#[derive(Debug, Clone)]
pub struct Lifecycle(watch::Sender<Phase>);

impl Lifecycle {
    pub fn new() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }

    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    pub fn advance(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let forward = to > *phase;
            if forward {
                *phase = to;
            }
            forward
        });
    }

    /// Returns once the phase is reached, or a later one.
    pub async fn reached(&self, phase: Phase) {
        // The sender is ours, so that the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}
