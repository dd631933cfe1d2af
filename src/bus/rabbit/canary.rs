//! Finds policies of the broker that would lose stored mail: `message-ttl` and `expires` on queues that are named as
//! boxes are.
//!
//! AMQP 0-9-1 does not tell which policy applies to a queue. But a policy applies by name, so that the node keeps
//! queues of its own, `<prefix>.box.canary….<node>.<incarnation>`, with one message in each, and sees what becomes of
//! them. A message that expires is dead-lettered to the node's control queue; and a small message is sent to the
//! first queue now and then, which counts for no use of it and comes back as unroutable when the queue is gone. It stays
//! behind the first one until that goes, so it is sent the less often the longer that has lain there.
//!
//! A broker applies `message-ttl` to messages that come after the policy. So there are three messages: one lies until
//! something ends it, and two have a time to live of their own and are replaced when it is over; one that ends before
//! that has met a policy.
//!
//! What this cannot see: a limit that is longer than this node's connection has lived, one longer than ten minutes that
//! was set after the connection was made, and a policy whose pattern matches a box by its number and not the canary.
//! Other policies break nothing: the queues' own arguments for overflow and dead-lettering count before a policy's, so
//! that `max-length` makes the broker refuse, which the node tells the sender.

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

/// The canaries, and how long each lives unless a policy ends it sooner. The short one has a policy of a few seconds
/// found within half a minute of its making; the other one bounds what remains unseen.
const LIVES: [(Way, Option<Duration>); 3] = [
    (Way::Canary, None),
    (Way::CanarySeconds, Some(Duration::from_secs(15))),
    (Way::CanaryMinutes, Some(Duration::from_secs(600))),
];
/// An end is seen so much later at the latest: a round.
const SEEN_LATE: Duration = Duration::from_secs(5);

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

    /// `ttl`: the message's own. One that reached it has met no policy.
    fn ended(&mut self, now: Instant, ttl: Option<Duration>) {
        let age = now.duration_since(self.born);
        self.died(now);
        if ttl.is_some_and(|ttl| age + SEEN_LATE >= ttl) {
            self.life = None;
        }
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

/// A message in a queue of its own.
struct Sample {
    way: Way,
    ttl: Option<Duration>,
    survival: Survival,
    /// 0 = none is there.
    number: u64,
}

impl Sample {
    /// Notes its end, and puts the next one in its place.
    fn look(
        &mut self,
        shared: &Shared,
        incarnation: Incarnation,
        urgent: &LaneInbox,
        number: u64,
        now: Instant,
    ) {
        if self.number > 0 && shared.pulse.arrived(self.way) >= self.number {
            self.survival.ended(now, self.ttl);
            self.number = 0;
        }
        if self.number == 0 {
            self.number = number;
            self.survival.born = now;
            let mut canary = probe(shared, incarnation, self.way, number);
            canary.properties.expiration = self.ttl.map(|ttl| ttl.as_millis().to_string());
            urgent.offer(canary, Answer::new(Box::new(|_: Outcome| ())));
        }
    }
}

pub struct Canary {
    messages: [Sample; LIVES.len()],
    queue: Survival,
    /// When the queue was last looked for.
    sought: Instant,
    unroutable: Arc<AtomicBool>,
}

impl Canary {
    /// `None` if this account may not make the queues.
    pub async fn start(shared: &Shared, connection: &Connection, incarnation: Incarnation) -> Option<Self> {
        match make(shared, connection, incarnation).await {
            Ok(_) => {
                let now = Instant::now();
                let messages =
                    LIVES.map(|(way, ttl)| Sample { way, ttl, survival: Survival::new(now), number: 0 });
                Some(Self { messages, queue: Survival::new(now), sought: now, unroutable: Arc::default() })
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
            self.messages.iter_mut().for_each(|message| message.number = 0);
            // An error shows in the next round again.
            let _ = make(shared, connection, incarnation).await;
        }
        for message in &mut self.messages {
            message.look(shared, incarnation, urgent, number, now);
        }
        let oldest = self.messages[0].survival.born;
        if now.duration_since(self.sought) >= now.duration_since(oldest) / SEEK_SHARE {
            self.sought = now;
            self.seek(shared, incarnation, urgent, number);
        }
        let messages = self.messages.iter_mut().map(|message| (&mut message.survival, "message-ttl"));
        let all = messages.chain([(&mut self.queue, "expires")]);
        // Each kind of policy once.
        let mut flaws: Vec<String> = Vec::new();
        for (policy, life) in all.filter_map(|(survival, policy)| Some((policy, survival.short(now)?))) {
            if flaws.iter().any(|flaw| flaw.contains(policy)) {
                continue;
            }
            flaws.push(format!(
                "a policy {policy} of {} ms or less applies to {}: stored mail is lost by it, remove it",
                life.as_millis(),
                shared.topology.canary_queue(&shared.node, incarnation, Way::Canary.name()).name
            ));
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
    for (way, _) in LIVES {
        let queue = shared.topology.canary_queue(&shared.node, of, way.name());
        declare::declare_queue(&channel, &queue, false).await?;
    }
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

    #[test]
    fn an_end_at_its_own_time_shows_that_no_policy_applies() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let ttl = Some(Duration::from_secs(15));
        let mut survival = Survival::new(begin);
        survival.ended(at(16), ttl);
        assert_eq!(survival.short(at(16)), None);
        survival.ended(at(19), ttl);
        assert_eq!(survival.short(at(20)), Some(Duration::from_secs(3)), "a policy has come");
        survival.ended(at(34), ttl);
        assert_eq!(survival.short(at(35)), None, "it has gone");
    }
}
