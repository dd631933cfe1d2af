//! Limits for one sender: how many of its messages wait, and how fast it may deposit more.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::UserKey;

/// Mail that expires, or is lost sight of, is never subtracted from its sender's count. So the count is of the
/// messages that were deposited in this and the last period and are not known to be taken.
const PERIOD: Duration = Duration::from_secs(24 * 3600);

/// How many messages of each sender wait.
pub struct Senders {
    /// This period, and the one before. Keys are strangers' choice, so the tables have a random seed.
    periods: [HashMap<UserKey, u32, RandomState>; 2],
    began: Instant,
}

impl Senders {
    pub fn new(now: Instant) -> Self {
        Self { periods: [HashMap::default(), HashMap::default()], began: now }
    }

    pub fn turn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.began) >= PERIOD {
            self.periods.swap(0, 1);
            self.periods[0] = HashMap::default();
            self.began = now;
        }
    }

    pub fn waiting(&self, sender: UserKey) -> u32 {
        let count = |period: &HashMap<UserKey, u32>| period.get(&sender).copied().unwrap_or_default();
        self.periods.iter().map(count).fold(0, u32::saturating_add)
    }

    pub fn add(&mut self, sender: UserKey) {
        let count = self.periods[0].entry(sender).or_default();
        *count = count.saturating_add(1);
    }

    pub fn remove(&mut self, sender: UserKey) {
        for period in &mut self.periods {
            if let Some(count) = period.get_mut(&sender) {
                *count -= 1;
                if *count == 0 {
                    period.remove(&sender);
                }
                return;
            }
        }
    }

    /// Takes over what another node knows, if that is more.
    pub fn at_least(&mut self, sender: UserKey, count: u32) {
        let missing = count.saturating_sub(self.waiting(sender));
        if missing > 0 {
            let now = self.periods[0].entry(sender).or_default();
            *now = now.saturating_add(missing);
        }
    }

    pub fn all(&self) -> Vec<(UserKey, u32)> {
        let [current, last] = &self.periods;
        let only_last = last.keys().filter(|sender| !current.contains_key(sender));
        current.keys().chain(only_last).map(|sender| (*sender, self.waiting(*sender))).collect()
    }
}

/// Below this number of senders nothing is tidied up.
const TIDY_FROM: usize = 1_024;

/// How fast each sender deposits: the generic cell rate algorithm (ITU-T I.371), one instant for each sender that is
/// not at rest.
pub struct Rates {
    every: Duration,
    burst: Duration,
    /// When the sender will have its whole burst again.
    full_at: HashMap<UserKey, Instant, RandomState>,
    tidy_at: usize,
}

impl Rates {
    pub fn new(per_second: u32, burst: u32) -> Self {
        let every = Duration::from_secs(1) / per_second.max(1);
        Self { every, burst: every * burst.max(1), full_at: HashMap::default(), tidy_at: TIDY_FROM }
    }

    /// Whether the sender may deposit one more now. Nothing is counted yet: see [`count`](Self::count).
    pub fn allows(&self, sender: UserKey, now: Instant) -> bool {
        let full_at = self.full_at.get(&sender).map_or(now, |at| (*at).max(now));
        full_at + self.every <= now + self.burst
    }

    pub fn count(&mut self, sender: UserKey, now: Instant) {
        let at = self.full_at.entry(sender).or_insert(now);
        *at = (*at).max(now) + self.every;
        if self.full_at.len() >= self.tidy_at {
            self.full_at.retain(|_, at| *at > now);
            self.full_at.shrink_to(2 * self.full_at.len());
            self.tidy_at = TIDY_FROM.max(2 * self.full_at.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let now = Instant::now();
        let mut rates = Rates::new(20, 200);
        let mut deposit = |at: Instant| {
            let allowed = rates.allows(UserKey(1), at);
            if allowed {
                rates.count(UserKey(1), at);
            }
            allowed
        };
        assert_eq!((0..300).filter(|_| deposit(now)).count(), 200);
        let later = now + Duration::from_secs(2);
        assert_eq!((0..300).filter(|_| deposit(later)).count(), 40);
    }

    #[test]
    fn senders_at_rest_cost_nothing() {
        let now = Instant::now();
        let mut rates = Rates::new(20, 200);
        for n in 0..100_000 {
            rates.count(UserKey(n), now + Duration::from_millis(n));
        }
        assert!(rates.full_at.len() < 2 * TIDY_FROM, "{}", rates.full_at.len());
    }

    #[test]
    fn what_was_counted_two_periods_ago_is_forgotten() {
        let now = Instant::now();
        let mut senders = Senders::new(now);
        for _ in 0..3 {
            senders.add(UserKey(1));
        }
        senders.turn(now + PERIOD);
        senders.add(UserKey(1));
        assert_eq!((senders.waiting(UserKey(1)), senders.all()), (4, vec![(UserKey(1), 4)]));
        senders.remove(UserKey(1));
        senders.remove(UserKey(1));
        assert_eq!(senders.waiting(UserKey(1)), 2);
        senders.at_least(UserKey(1), 5);
        senders.at_least(UserKey(1), 4);
        assert_eq!(senders.waiting(UserKey(1)), 5);
        senders.turn(now + PERIOD * 2);
        assert_eq!(senders.waiting(UserKey(1)), 3);
        senders.turn(now + PERIOD * 4);
        senders.remove(UserKey(1));
        assert_eq!(senders.waiting(UserKey(1)), 0);
    }
}
