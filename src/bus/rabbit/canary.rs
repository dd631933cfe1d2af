//! Finds policies of the broker that would lose stored mail: `message-ttl` and `expires` on queues that are named as
//! boxes are.
//!
//! AMQP 0-9-1 does not tell which policy applies to a queue. But a policy applies by name, so that the node keeps a
//! queue of its own, `<prefix>.box.canary.<node>.<incarnation>`, with one message in it, and sees what becomes of
//! them. A message that expires is dead-lettered to the node's control queue; and a small message is sent to the
//! queue now and then, which counts for no use of it and comes back as unroutable when the queue is gone. It stays
//! behind the first one until that goes, so it is sent the less often the longer that has lain there.
//!
//! What this cannot see: a limit that is longer than this node's connection has lived, and a policy whose pattern
//! matches a box by its number and not the canary. Other policies break nothing: the queues' own arguments for
//! overflow and dead-lettering count before a policy's, so that `max-length` makes the broker refuse, which the node
//! tells the sender.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use lapin::protocol::AMQPSoftError;
use lapin::{Channel, Connection};
use tokio::time::Instant;
use tracing::{info, warn};

use super::connection::{within, LinkError};
use super::declare;
use super::publisher::LaneInbox;
use super::pulse::{probe, Way};
use super::Shared;
use crate::bus::answer::Answer;
use crate::bus::Outcome;
use crate::ids::Incarnation;

/// A canary that has outlived its forerunner by this shows that the policy is gone: two rounds.
const GRACE: Duration = Duration::from_secs(10);

/// The queue is looked for when this share of the message's age has passed: some eighty times in ten years.
const SEEK_SHARE: u32 = 4;

/// How long canaries live.
#[derive(Debug)]
struct Survival {
    born: Instant,
    /// Of those that died.
    life: Option<Duration>,
}

impl Survival {
    fn new(now: Instant) -> Self {
        Self { born: now, life: None }
    }

    fn died(&mut self, now: Instant) {
        self.life = Some(now.duration_since(self.born));
        self.born = now;
    }

    /// How long the last one lived, until its successor has shown that it lives longer.
    fn short(&mut self, now: Instant) -> Option<Duration> {
        self.life = self.life.filter(|life| now.duration_since(self.born) <= *life + GRACE);
        self.life
    }
}

pub struct Canary {
    message: Survival,
    queue: Survival,
    /// Of the message that lies in the queue.
    number: u64,
    /// When the queue was last looked for.
    sought: Instant,
    unroutable: Arc<AtomicBool>,
}

impl Canary {
    /// `None` if this account may not make the queue.
    pub async fn start(shared: &Shared, connection: &Connection, incarnation: Incarnation) -> Option<Self> {
        match make(shared, connection, incarnation).await {
            Ok(_) => {
                let now = Instant::now();
                let (message, queue) = (Survival::new(now), Survival::new(now));
                Some(Self { message, queue, number: 0, sought: now, unroutable: Arc::default() })
            }
            Err(error) if declare::is(&error, AMQPSoftError::ACCESSREFUSED) => {
                info!("this account may not make a queue named box.canary: policies are not looked for");
                None
            }
            Err(error) => {
                warn!(%error, "policies are not looked for");
                None
            }
        }
    }

    /// One look. `number` is higher in each.
    pub async fn look(
        &mut self,
        shared: &Shared,
        connection: &Connection,
        incarnation: Incarnation,
        urgent: &LaneInbox,
        number: u64,
    ) -> Vec<String> {
        let now = Instant::now();
        if self.unroutable.swap(false, Ordering::Relaxed) {
            self.queue.died(now);
            self.number = 0;
            // An error shows in the next round again.
            let _ = make(shared, connection, incarnation).await;
        } else if self.number > 0 && shared.pulse.arrived(Way::Canary) >= self.number {
            self.message.died(now);
            self.number = 0;
        }
        if self.number == 0 {
            self.number = number;
            self.message.born = now;
            let canary = probe(shared, incarnation, Way::Canary, number);
            urgent.offer(canary, Answer::new(Box::new(|_: Outcome| ())));
        }
        if now.duration_since(self.sought) >= now.duration_since(self.message.born) / SEEK_SHARE {
            self.sought = now;
            self.seek(shared, incarnation, urgent, number);
        }
        let mut flaws = Vec::new();
        for (survival, policy) in [(&mut self.message, "message-ttl"), (&mut self.queue, "expires")] {
            if let Some(life) = survival.short(now) {
                flaws.push(format!(
                    "a policy {policy} of {} ms or less applies to {}: stored mail is lost by it, remove it",
                    life.as_millis(),
                    shared.topology.canary_queue(&shared.node, incarnation).name
                ));
            }
        }
        flaws
    }

    /// Finds out whether the queue is there.
    fn seek(&self, shared: &Shared, incarnation: Incarnation, urgent: &LaneInbox, number: u64) {
        let mut there = probe(shared, incarnation, Way::CanaryQueue, number);
        there.properties.expiration = Some("0".to_owned());
        let unroutable = self.unroutable.clone();
        let answer = Answer::new(Box::new(move |outcome| {
            if outcome == Outcome::Unroutable {
                unroutable.store(true, Ordering::Relaxed);
            }
        }));
        urgent.offer(there, answer);
    }
}

async fn make(shared: &Shared, connection: &Connection, of: Incarnation) -> Result<Channel, LinkError> {
    let channel = within("opening a channel", connection.create_channel()).await?;
    declare::declare_queue(&channel, &shared.topology.canary_queue(&shared.node, of), false).await?;
    Ok(channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_life_is_remembered_until_a_longer_one() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut survival = Survival::new(begin);
        assert_eq!(survival.short(at(10_000)), None);
        survival.died(at(60));
        assert_eq!(survival.short(at(130)), Some(Duration::from_secs(60)));
        survival.died(at(120));
        assert_eq!(survival.short(at(190)), Some(Duration::from_secs(60)));
        assert_eq!(survival.short(at(191)), None);
    }
}
