//! Publishes to names that strangers gave: a bad name is found among innocent ones, which get through.
//!
//! The broker closes the channel, or the whole connection, over some names (a direct reply-to that is none), and with it
//! goes everything that was in flight. What was in flight is then published again one at a time: what is alone when the
//! broker closes is the bad one. So an answer may arrive twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, Instant, MissedTickBehavior};
use tracing::warn;

use super::convert::DIRECT_REPLY;
use super::publisher::{units, Closures, LaneInbox, WINDOW_UNITS};
use crate::bus::answer::Answer;
use crate::bus::{Destination, Outcome, Publish, PUBLISH_DEADLINE};

/// How often what waits is looked through, and a link that is down is tried again.
const TICK: Duration = Duration::from_millis(20);
/// What waits is answered this much before it is due, at the latest.
const MARGIN: Duration = Duration::from_millis(200);
/// Bad names that are remembered, the oldest forgotten first: each use costs the broker a channel.
const BAD_NAMES_MAX: usize = 256;

struct Reply {
    publish: Publish,
    /// Dropping it answers [`Outcome::Unavailable`].
    answer: Answer,
    accepted: Instant,
    _room: OwnedSemaphorePermit,
}

impl Reply {
    fn is_due(&self, now: Instant) -> bool {
        now + MARGIN >= self.accepted + PUBLISH_DEADLINE
    }
}

/// Where replies are handed in.
#[derive(Clone)]
pub struct Inbox {
    replies: mpsc::Sender<Reply>,
    room: Arc<Semaphore>,
}

impl Inbox {
    pub fn offer(&self, publish: Publish, answer: Answer) {
        let Ok(room) = self.room.clone().try_acquire_many_owned(units(&publish.body)) else {
            return answer.give(Outcome::Overloaded);
        };
        let reply = Reply { publish, answer, accepted: Instant::now(), _room: room };
        // There is not more room than the channel holds, so that only a closed one refuses: dropping answers.
        drop(self.replies.try_send(reply));
    }
}

/// The inbox, and the task that empties it.
pub fn start(lane: LaneInbox, closures: Closures) -> (Inbox, impl Future<Output = ()>) {
    let (replies, inbox) = mpsc::channel(WINDOW_UNITS);
    let (outcomes, answers) = mpsc::channel(WINDOW_UNITS);
    let sorter = Sorter {
        lane,
        closures,
        outcomes,
        last: 0,
        fresh: BTreeMap::new(),
        in_flight: HashMap::new(),
        suspects: BTreeMap::new(),
        alone: None,
        given_up: None,
        suspect_next: false,
        paused: false,
        bad: VecDeque::new(),
    };
    (Inbox { replies, room: Arc::new(Semaphore::new(WINDOW_UNITS)) }, run(sorter, inbox, answers))
}

async fn run(
    mut sorter: Sorter,
    mut inbox: mpsc::Receiver<Reply>,
    mut answers: mpsc::Receiver<(u64, Outcome)>,
) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            reply = inbox.recv() => match reply {
                Some(reply) => sorter.add(reply),
                None => return,
            },
            Some((number, outcome)) = answers.recv() => sorter.answered(number, outcome, Instant::now()),
            now = tick.tick() => {
                sorter.paused = false;
                sorter.expire(now);
            }
        }
        sorter.go_on();
    }
}

fn is_direct(publish: &Publish) -> bool {
    matches!(&publish.to, Destination::Queue(name) if name.starts_with(DIRECT_REPLY))
}

struct Sorter {
    lane: LaneInbox,
    closures: Closures,
    outcomes: mpsc::Sender<(u64, Outcome)>,
    last: u64,
    /// Not sent yet.
    fresh: BTreeMap<u64, Reply>,
    in_flight: HashMap<u64, Reply>,
    /// Direct replies that were in flight when the channel failed: no other name makes a broker close.
    suspects: BTreeMap<u64, Reply>,
    /// The suspect in flight, and how often the broker had closed before it was sent.
    alone: Option<(u64, u64)>,
    /// How often the broker had closed when a publish was given up on that may still be under way. Until it closes
    /// again, that one may be the reason as well.
    given_up: Option<u64>,
    suspect_next: bool,
    /// Until the next tick: there is no link.
    paused: bool,
    bad: VecDeque<String>,
}

impl Sorter {
    fn add(&mut self, reply: Reply) {
        if matches!(&reply.publish.to, Destination::Queue(name) if self.bad.contains(name)) {
            return reply.answer.give(Outcome::Refused);
        }
        self.last += 1;
        self.fresh.insert(self.last, reply);
    }

    fn go_on(&mut self) {
        if self.alone.is_some() || self.paused {
            return;
        }
        if self.suspects.is_empty() {
            return self.send_direct_too();
        }
        if !self.in_flight.is_empty() {
            return;
        }
        // By turns, so that neither waits for ever: what cannot be to blame all together, and one suspect alone.
        self.suspect_next = !self.suspect_next;
        let innocent = |reply: &Reply| !is_direct(&reply.publish);
        if self.suspect_next || !self.fresh.values().any(innocent) {
            if let Some((number, reply)) = self.suspects.pop_first() {
                self.alone = Some((number, self.closures.count()));
                self.send(number, reply);
            }
            return;
        }
        let (innocent, rest) =
            std::mem::take(&mut self.fresh).into_iter().partition(|(_, reply)| innocent(reply));
        let innocent: BTreeMap<u64, Reply> = innocent;
        self.fresh = rest;
        for (number, reply) in innocent {
            self.send(number, reply);
        }
    }

    fn send_direct_too(&mut self) {
        for (number, reply) in std::mem::take(&mut self.fresh) {
            self.send(number, reply);
        }
    }

    fn send(&mut self, number: u64, reply: Reply) {
        let outcomes = self.outcomes.clone();
        let done = Box::new(move |outcome| {
            // There is room for each reply's answer.
            let _ = outcomes.try_send((number, outcome));
        });
        let (publish, accepted) = (reply.publish.clone(), reply.accepted);
        self.in_flight.insert(number, reply);
        self.lane.offer_since(publish, Answer::new(done), accepted);
    }

    fn answered(&mut self, number: u64, outcome: Outcome, now: Instant) {
        let Some(reply) = self.in_flight.remove(&number) else { return };
        let alone = self.alone.take_if(|(suspect, _)| *suspect == number);
        if outcome != Outcome::Unavailable {
            return reply.answer.give(outcome);
        }
        let closures = self.closures.count();
        if alone.is_some_and(|(_, before)| before != closures && self.given_up != Some(before)) {
            return self.refuse(reply);
        }
        // There is no link at this moment.
        self.paused = true;
        if reply.is_due(now) {
            self.given_up = Some(closures);
        } else if is_direct(&reply.publish) {
            self.suspects.insert(number, reply);
        } else {
            self.fresh.insert(number, reply);
        }
    }

    fn refuse(&mut self, reply: Reply) {
        warn!(to = ?reply.publish.to, "the broker closes over what is published to this name");
        if let Destination::Queue(name) = &reply.publish.to {
            // No other name makes a broker close; should one be blamed, it is not to be refused for ever.
            if !name.starts_with(DIRECT_REPLY) {
                return reply.answer.give(Outcome::Refused);
            }
            self.bad.push_back(name.clone());
            if self.bad.len() > BAD_NAMES_MAX {
                self.bad.pop_front();
            }
        }
        reply.answer.give(Outcome::Refused);
    }

    fn expire(&mut self, now: Instant) {
        self.fresh.retain(|_, reply| !reply.is_due(now));
        self.suspects.retain(|_, reply| !reply.is_due(now));
    }
}
