//! When to let work gather: under load a task that is woken for each message costs more than what it does.

use std::time::Duration;

use tokio::time::Instant;

/// How long a busy task waits before it looks again. The runtime's clock makes it up to twice as long.
pub const GATHER_FOR: Duration = Duration::from_millis(1);
/// Messages are counted for this long.
const PERIOD: Duration = Duration::from_millis(16);
/// With more messages than this in a period a task is busy: 8,000 a second.
const BUSY: u32 = 128;

/// Counts the messages of one task.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
    count: u32,
    busy: bool,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { since: now, count: 0, busy: false }
    }

    /// So many messages more. Whether the task has so much to do that it should let work gather.
    pub fn add(&mut self, count: usize, now: Instant) -> bool {
        self.count = self.count.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let passed = now.duration_since(self.since);
        if passed >= PERIOD {
            self.busy = u128::from(self.count) * PERIOD.as_micros() > u128::from(BUSY) * passed.as_micros();
            (self.since, self.count) = (now, 0);
        }
        self.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_busy_while_many_messages_come() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let at = |ms: u64| begin + Duration::from_millis(ms);
        assert!(!pace.add(10_000, at(15)), "not before a period is over");
        assert!(pace.add(1, at(16)));
        assert!(pace.add(128, at(31)));
        assert!(!pace.add(0, at(32)));
        assert!(!pace.add(1_000, at(1_032)), "a burst after a silence");
        assert!(pace.add(129, at(1_048)));
    }
}
