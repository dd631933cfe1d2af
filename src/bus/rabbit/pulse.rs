//! Signs of life: small probes from the publishing link through the broker back to the consuming link.
//!
//! A connection may be open and dead: a stopped broker, a firewall that forgot it. AMQP's heartbeat tells after 20
//! to 30 s; a probe tells after [`SILENT_AFTER`]. Every confirm and every delivery counts as a sign as well, so
//! that a link which is merely busy is not taken for a dead one. Probes go to the node's control queue by its
//! name, where no messages of users wait before them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{interval, Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::publisher::LaneInbox;
use super::Shared;
use crate::bus::answer::Answer;
use crate::bus::{Delivery, Destination, Lane, Outcome, Properties, Publish, Publishing};
use crate::ids::Incarnation;

/// AMQP `type` of all probes of the bus. They never leave it.
const PROBE_KIND: &str = "warren.probe";
/// Four a second: what a node sends and gets when it is idle.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// No confirm or no delivery for so long: the link is silent. A publish's own deadline is the same.
const SILENT_AFTER: Duration = Duration::from_millis(1500);

/// Which way a probe goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the control queue, by its name.
    Own,
    /// To the node queue, through `warren.direct`.
    Direct,
    Broadcast,
    Control,
    /// To the ingress queue, as backends go. Ends at whichever node consumes it: only its answer tells.
    Ingress,
    /// Into the canary queues; comes back only when the broker throws it out.
    Canary,
    CanarySeconds,
    CanaryMinutes,
    /// The same, for the queue's sake.
    CanaryQueue,
}

const WAYS: [(Way, &str); 9] = [
    (Way::Own, "own"),
    (Way::Direct, "direct"),
    (Way::Broadcast, "broadcast"),
    (Way::Control, "control"),
    (Way::Ingress, "ingress"),
    (Way::Canary, "canary"),
    (Way::CanarySeconds, "canary-seconds"),
    (Way::CanaryMinutes, "canary-minutes"),
    (Way::CanaryQueue, "canary-queue"),
];

impl Way {
    pub fn name(self) -> &'static str {
        WAYS[self as usize].1
    }
}

/// What came back so far. Counters only, written by the tasks of both links.
#[derive(Debug, Default)]
pub struct Pulse {
    confirms: AtomicU64,
    deliveries: AtomicU64,
    /// The last number that came back each way.
    arrived: [AtomicU64; WAYS.len()],
    /// A probe came back. One task waits for it: [`super::verify`].
    pub came: Notify,
}

impl Pulse {
    pub fn confirmed(&self) {
        self.confirms.fetch_add(1, Ordering::Relaxed);
    }

    /// A new incarnation counts anew.
    pub fn restart(&self) {
        self.arrived.iter().for_each(|number| number.store(0, Ordering::Release));
    }

    pub fn arrived(&self, way: Way) -> u64 {
        self.arrived[way as usize].load(Ordering::Acquire)
    }

    /// Notes a delivery. `true`: it is a probe, which ends here.
    pub fn takes(&self, delivery: &Delivery, account: Option<&str>, incarnation: Incarnation) -> bool {
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        let properties = &delivery.properties;
        if !is_probe(delivery, account) {
            return false;
        }
        let number = properties.message_id.as_deref().and_then(|id| {
            let (of, number) = id.split_once(':')?;
            (of == incarnation.to_string()).then(|| number.parse().ok()).flatten()
        });
        let way = WAYS.iter().find(|(_, name)| properties.correlation_id.as_deref() == Some(name));
        if let (Some(number), Some((way, _))) = (number, way) {
            self.arrived[*way as usize].fetch_max(number, Ordering::AcqRel);
            self.came.notify_one();
        }
        true
    }
}

/// Whether it is a probe of some node, for which the broker vouches by the account.
pub fn is_probe(delivery: &Delivery, account: Option<&str>) -> bool {
    let properties = &delivery.properties;
    properties.kind.as_deref() == Some(PROBE_KIND) && properties.user_id.as_deref() == account
}

/// A probe; those of one order key arrive in order where they meet in one queue.
pub fn probe(shared: &Shared, incarnation: Incarnation, way: Way, number: u64) -> Publish {
    let control = || shared.topology.control_queue(&shared.node, incarnation).name;
    let canary =
        |of: Way| Destination::Queue(shared.topology.canary_queue(&shared.node, incarnation, of.name()).name);
    let to = match way {
        Way::Own => Destination::Queue(control()),
        Way::Direct => Destination::Nodes(smallvec::smallvec![shared.node.clone()]),
        Way::Broadcast => Destination::Broadcast,
        Way::Control => Destination::Control,
        // Another partition, as like as not, with each number.
        Way::Ingress if shared.ingress.partitions > 1 => {
            Destination::Ingress(format!("{PROBE_KIND}.{number}"))
        }
        Way::Ingress => Destination::Ingress(PROBE_KIND.to_owned()),
        Way::Canary | Way::CanarySeconds | Way::CanaryMinutes => canary(way),
        Way::CanaryQueue => canary(Way::Canary),
    };
    let properties = Properties {
        kind: Some(PROBE_KIND.to_owned()),
        message_id: Some(format!("{incarnation}:{number}")),
        correlation_id: Some(way.name().to_owned()),
        user_id: shared.topology.account().map(str::to_owned),
        persistent: Some(false),
        ..Properties::default()
    };
    Publish { to, properties, body: bytes::Bytes::new(), order_key: 0, lane: Lane::Urgent }
}

/// When a counter moved last, as seen by regular looks.
#[derive(Debug)]
struct Life {
    count: u64,
    since: Instant,
}

impl Life {
    fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    fn look(&mut self, count: u64, now: Instant) {
        if count != self.count {
            (self.count, self.since) = (count, now);
        }
    }

    fn restart(&mut self, now: Instant) {
        self.since = now;
    }

    fn silent(&self, now: Instant) -> bool {
        now.duration_since(self.since) > SILENT_AFTER
    }
}

/// Both links' lives, and when they were looked at last.
#[derive(Debug)]
struct Lives {
    confirms: Life,
    deliveries: Life,
    looked: Instant,
}

impl Lives {
    fn new(now: Instant) -> Self {
        Self { confirms: Life::new(now), deliveries: Life::new(now), looked: now }
    }

    /// One look. `probed` says that probes were on their way since the last look. A node that was itself stopped for
    /// a while has not looked, and begins anew.
    fn silent(&mut self, confirms: u64, deliveries: u64, probed: bool, now: Instant) -> bool {
        let asleep = now.duration_since(self.looked) > 3 * PROBE_EVERY;
        self.looked = now;
        self.confirms.look(confirms, now);
        self.deliveries.look(deliveries, now);
        if asleep || !probed {
            self.confirms.restart(now);
            self.deliveries.restart(now);
        }
        self.confirms.silent(now) || self.deliveries.silent(now)
    }
}

/// Sends probes while both links are up, and tells when one of them is silent.
pub async fn supervise(shared: Shared, urgent: LaneInbox) {
    let mut tick = interval(PROBE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lives = Lives::new(Instant::now());
    let mut number = 0;
    let mut probed_for = None;
    loop {
        let now = tick.tick().await;
        let link = *shared.link.borrow();
        let publishing = matches!(link.publishing, Publishing::Ready | Publishing::Silent);
        let incarnation = link.incarnation.filter(|_| publishing);
        // New links begin with a probe that has its time to come back.
        let probed = incarnation.is_some() && incarnation == probed_for;
        let pulse = &shared.pulse;
        let (confirms, deliveries) =
            (pulse.confirms.load(Ordering::Relaxed), pulse.deliveries.load(Ordering::Relaxed));
        tell(&shared, lives.silent(confirms, deliveries, probed, now));
        probed_for = incarnation;
        if let Some(incarnation) = incarnation {
            number += 1;
            let answer = Answer::new(Box::new(|_: Outcome| ()));
            urgent.offer(probe(&shared, incarnation, Way::Own, number), answer);
        }
    }
}

fn tell(shared: &Shared, silent: bool) {
    let publishing = shared.link.borrow().publishing;
    let (from, to) = match silent {
        true => (Publishing::Ready, Publishing::Silent),
        false => (Publishing::Silent, Publishing::Ready),
    };
    if publishing != from {
        return;
    }
    if silent {
        warn!("the broker is silent: no confirm or no delivery for {} ms", SILENT_AFTER.as_millis());
    } else {
        info!("the broker answers again");
    }
    shared.change(|link| {
        if link.publishing == from {
            link.publishing = to;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_silent_when_either_counter_stands_still() {
        let begin = Instant::now();
        let at = |tick: u32| begin + PROBE_EVERY * tick;
        for (confirms, deliveries) in [(true, false), (false, true), (false, false)] {
            let mut lives = Lives::new(begin);
            let count = |moves: bool, tick: u32| if moves { u64::from(tick) } else { 0 };
            let first = (1..20)
                .find(|tick| lives.silent(count(confirms, *tick), count(deliveries, *tick), true, at(*tick)));
            assert_eq!(first, Some(7), "1,750 ms");
            assert!(!lives.silent(99, 99, true, at(8)), "both came back");
        }
        let mut lives = Lives::new(begin);
        assert!((1..50).all(|tick| !lives.silent(tick.into(), tick.into(), true, at(tick))));
    }

    #[test]
    fn neither_a_stopped_node_nor_an_unprobed_link_blames_the_broker() {
        let begin = Instant::now();
        let mut lives = Lives::new(begin);
        assert!(!lives.silent(1, 1, true, begin + Duration::from_secs(60)));
        let mut lives = Lives::new(begin);
        assert!((1..50).all(|tick| !lives.silent(0, 0, false, begin + PROBE_EVERY * tick)));
    }
}
