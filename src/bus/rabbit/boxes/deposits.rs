//! Deposits into boxes: in order for each box, on a lane of their own, each answered within the deadline.
//!
//! Boxes are never deleted, so what the broker confirms is stored. A deposit that comes back found no box, because an
//! operator removed it: what follows for the box waits until it is made again. Should another node make it just while
//! several deposits of this one are in flight, the first of them may come back and the later ones be stored; those that
//! came back are then stored behind.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::StreamExt;
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, Instant, MissedTickBehavior};
use tracing::warn;

use super::super::publisher::{units, LaneInbox, WINDOW_UNITS};
use super::super::topology::Topology;
use super::admin::Admin;
use super::line::Line;
use super::version::Version;
use crate::bus::answer::Answer;
use crate::bus::{BoxNumber, Destination, Lane, Outcome, Properties, Publish, PUBLISH_DEADLINE};

/// How often deposits are looked for whose time is over.
const TICK: Duration = Duration::from_millis(50);
/// What waits for its box to be made is answered this much before it is due.
const MARGIN: Duration = Duration::from_millis(150);
/// Deposits and answers that are taken in one go.
const BATCH: usize = 256;

pub struct Deposit {
    to: BoxNumber,
    properties: Properties,
    body: Bytes,
    /// Whether to make the box if there is none; a marker in a box that is gone would mean nothing.
    make: bool,
    /// Dropping it answers [`Outcome::Unavailable`].
    answer: Answer,
    accepted: Instant,
    _room: OwnedSemaphorePermit,
}

impl Deposit {
    fn due(&self) -> Instant {
        self.accepted + PUBLISH_DEADLINE - MARGIN
    }
}

/// Where deposits are handed in.
#[derive(Clone)]
pub struct Inbox {
    deposits: mpsc::Sender<Deposit>,
    /// Deposits have a window of their own, so that they never take the room of live messages.
    room: Arc<Semaphore>,
    ttl: Duration,
}

impl Inbox {
    pub fn offer(&self, to: BoxNumber, properties: Properties, body: Bytes, answer: Answer) {
        self.put(to, properties, body, true, answer);
    }

    /// Into a box that is there: [`Outcome::Unroutable`] if it is gone.
    pub fn offer_existing(&self, to: BoxNumber, properties: Properties, body: Bytes, answer: Answer) {
        self.put(to, properties, body, false, answer);
    }

    fn put(&self, to: BoxNumber, properties: Properties, body: Bytes, make: bool, answer: Answer) {
        let Ok(room) = self.room.clone().try_acquire_many_owned(units(&body)) else {
            return answer.give(Outcome::Overloaded);
        };
        let properties = prepared(properties, self.ttl);
        let deposit = Deposit { to, properties, body, make, answer, accepted: Instant::now(), _room: room };
        // There is not more room than the channel holds, so that only a closed one refuses: dropping answers.
        drop(self.deposits.try_send(deposit));
    }
}

/// Persistent, and not longer than the box keeps it; more than 32 bits of milliseconds the broker would not take.
fn prepared(mut properties: Properties, ttl: Duration) -> Properties {
    properties.persistent = Some(true);
    if let Some(expiration) = &mut properties.expiration {
        let digits = !expiration.is_empty() && expiration.bytes().all(|byte| byte.is_ascii_digit());
        let short = expiration.parse::<u64>().is_ok_and(|ms| u128::from(ms) <= ttl.as_millis());
        if digits && !short {
            *expiration = ttl.as_millis().to_string();
        }
    }
    properties
}

/// The inbox, and the task that empties it.
pub fn start(
    topology: Topology,
    admin: Arc<Admin>,
    lane: LaneInbox,
    version: Arc<Version>,
) -> (Inbox, impl Future<Output = ()>) {
    let (deposits, inbox) = mpsc::channel(WINDOW_UNITS);
    let room = Arc::new(Semaphore::new(WINDOW_UNITS));
    let ttl = topology.boxes().ttl;
    // Each answer is one of a deposit that holds a unit of the room.
    let (outcomes, answers) = mpsc::channel(WINDOW_UNITS);
    let store = Store { lane, outcomes, lines: HashMap::new(), waiting: BTreeSet::new(), last: 0 };
    (Inbox { deposits, room, ttl }, run(store, Maker { topology, admin, version }, inbox, answers))
}

type Answered = (BoxNumber, u64, Outcome);

async fn run(
    mut store: Store,
    maker: Maker,
    mut inbox: mpsc::Receiver<Deposit>,
    mut answers: mpsc::Receiver<Answered>,
) {
    let mut makes = FuturesUnordered::new();
    let (mut deposits, mut answered) = (Vec::new(), Vec::new());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut touched = BTreeSet::new();
        tokio::select! {
            count = inbox.recv_many(&mut deposits, BATCH) => {
                if count == 0 {
                    return;
                }
                for deposit in deposits.drain(..) {
                    touched.insert(deposit.to);
                    store.add(deposit);
                }
            }
            _ = answers.recv_many(&mut answered, BATCH) => {
                for (number, deposit, outcome) in answered.drain(..) {
                    touched.insert(number);
                    store.answered(number, deposit, outcome);
                }
            }
            Some((number, made)) = makes.next(), if !makes.is_empty() => {
                touched.insert(number);
                store.line(number).made(made);
            }
            now = tick.tick() => store.expire(now),
        }
        for number in touched {
            if store.go_on(number) {
                makes.push(maker.make(number));
            }
        }
    }
}

struct Maker {
    topology: Topology,
    admin: Arc<Admin>,
    version: Arc<Version>,
}

impl Maker {
    async fn make(&self, number: BoxNumber) -> (BoxNumber, bool) {
        let lazy = self.version.needs_lazy_queues().await;
        let made = self.admin.declare(&self.topology.box_queue(number, lazy)).await;
        if let Err(error) = &made {
            warn!(%error, number = number.0, "cannot make a box");
        }
        (number, made.is_ok())
    }
}

struct Store {
    lane: LaneInbox,
    outcomes: mpsc::Sender<Answered>,
    /// At most as many as there are boxes.
    lines: HashMap<BoxNumber, Line<Deposit>>,
    /// When to give up on what is not in flight; entries of what was sent are skipped.
    waiting: BTreeSet<(Instant, u64, BoxNumber)>,
    last: u64,
}

impl Store {
    fn line(&mut self, number: BoxNumber) -> &mut Line<Deposit> {
        self.lines.entry(number).or_default()
    }

    fn add(&mut self, deposit: Deposit) {
        self.last += 1;
        let (number, to) = (self.last, deposit.to);
        self.waiting.insert((deposit.due(), number, to));
        let line = self.line(to);
        if !deposit.make {
            line.seen();
        }
        line.add(number, deposit);
    }

    /// Sends what can be sent. Whether the box has to be made first.
    fn go_on(&mut self, to: BoxNumber) -> bool {
        let Some(line) = self.lines.get_mut(&to) else { return false };
        for number in line.send() {
            let Some(deposit) = line.in_flight(number) else { continue };
            let publish = Publish {
                to: Destination::Box(to),
                properties: deposit.properties.clone(),
                body: deposit.body.clone(),
                order_key: 0,
                lane: Lane::Bulk,
            };
            let outcomes = self.outcomes.clone();
            let done = Box::new(move |outcome| {
                // There is room for each deposit's answer.
                let _ = outcomes.try_send((to, number, outcome));
            });
            self.lane.offer_since(publish, Answer::new(done), deposit.accepted);
        }
        line.make()
    }

    fn answered(&mut self, to: BoxNumber, number: u64, outcome: Outcome) {
        let line = self.line(to);
        let again = line.in_flight(number).is_some_and(|deposit| deposit.make);
        if let Some(deposit) = line.answered(number, outcome, again) {
            self.waiting.remove(&(deposit.due(), number, to));
            deposit.answer.give(outcome);
        }
    }

    fn expire(&mut self, now: Instant) {
        while self.waiting.first().is_some_and(|(due, _, _)| *due <= now) {
            if let Some((_, number, to)) = self.waiting.pop_first() {
                // Dropping answers. What is in flight the lane answers.
                drop(self.lines.get_mut(&to).and_then(|line| line.expire(number)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiration_is_cut_to_the_time_of_the_box() {
        let ttl = Duration::from_secs(10);
        for (given, wanted) in [
            (Some("9999"), Some("9999")),
            (Some("10001"), Some("10000")),
            (Some("99999999999999999999999"), Some("10000")),
            (Some("soon"), Some("soon")),
            (None, None),
        ] {
            let properties = Properties { expiration: given.map(str::to_owned), ..Properties::default() };
            let prepared = prepared(properties, ttl);
            assert_eq!((prepared.expiration.as_deref(), prepared.persistent), (wanted, Some(true)));
        }
    }
}
