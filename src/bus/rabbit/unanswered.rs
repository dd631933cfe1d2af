//! Whether the broker leaves a channel's publishes without an answer, while the link as a whole is alive.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A channel on which the broker has not answered a publish for so long, while others are answered, gets a
/// successor: what is unanswered fills the lane's window, and would do so for ever. A quorum queue that elects a
/// leader takes some seconds.
const ANSWER_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Unanswered {
    /// When each was sent, oldest first; those that were answered since are skipped.
    sent: VecDeque<(Instant, u64)>,
    /// Since when the link is known to be alive without a break.
    well_since: Instant,
}

impl Unanswered {
    pub fn new(now: Instant) -> Self {
        Self { sent: VecDeque::new(), well_since: now }
    }

    pub fn sent(&mut self, sequence: u64, now: Instant) {
        self.sent.push_back((now, sequence));
    }

    /// To be asked regularly. While the link is blocked, silent or down nothing is known about one channel.
    pub fn stuck(&mut self, pending: impl Fn(u64) -> bool, link_is_well: bool, now: Instant) -> bool {
        while self.sent.front().is_some_and(|(_, sequence)| !pending(*sequence)) {
            self.sent.pop_front();
        }
        if !link_is_well {
            self.well_since = now;
        }
        let oldest = self.sent.front();
        oldest.is_some_and(|(sent, _)| now.duration_since((*sent).max(self.well_since)) > ANSWER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_stuck_when_its_oldest_publish_waits_on_a_link_that_is_well() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut channel = Unanswered::new(begin);
        for second in 0..30 {
            channel.sent(second, at(second));
        }
        assert!(!channel.stuck(|sequence| sequence >= 20, true, at(30)), "the oldest waits for 10 s");
        assert!(channel.stuck(|sequence| sequence >= 20, true, at(31)));
        assert!(!channel.stuck(|sequence| sequence >= 20, false, at(40)), "the whole link is silent");
        assert!(!channel.stuck(|sequence| sequence >= 20, true, at(50)));
        assert!(channel.stuck(|sequence| sequence >= 20, true, at(51)));
        assert!(!channel.stuck(|_| false, true, at(90)) && channel.sent.is_empty());
    }
}
