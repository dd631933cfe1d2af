//! One publishing task for one channel: sends in order, pipelines, and answers each publish exactly once.
//!
//! A channel must not be shared between tasks: the client library would attribute confirms to the wrong
//! publishes. The task outlives connections; between two of them it answers whatever it is handed.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, sleep, Instant, MissedTickBehavior};
use tracing::debug;

use super::connection::LinkError;
use super::convert::{self, Outgoing};
use super::gather::{Pace, GATHER_FOR};
use super::returns::Returns;
use super::unanswered::Unanswered;
use super::Shared;
use crate::bus::answer::Answer;
use crate::bus::{Outcome, Publish, Publishing, PUBLISH_DEADLINE};

/// What one lane may have in flight, in units of [`UNIT_BYTES`]: a broker answers some thousands of confirms
/// in the time of one disk flush, and more than this would only wait in buffers.
pub const WINDOW_UNITS: usize = 4096;
/// A publish takes one unit of the window and one more for each full 16 KiB: 64 MiB at most are in flight.
const UNIT_BYTES: usize = 16 << 10;
/// How many waiting publishes are sent in one go.
const BATCH: usize = 256;
/// How often overdue publishes are looked for. The answer is given early enough to keep the deadline.
const TICK: Duration = Duration::from_millis(50);

/// What the window charges for a publish.
pub fn units(body: &Bytes) -> u32 {
    let units = 1 + body.len().min(convert::BODY_BYTES_MAX) / UNIT_BYTES;
    units as u32
}

/// Where publishes for one lane are handed in.
#[derive(Clone)]
pub struct LaneInbox {
    jobs: mpsc::Sender<Job>,
    window: Arc<Semaphore>,
}

impl LaneInbox {
    pub fn new() -> (Self, mpsc::Receiver<Job>) {
        // Nothing waits long in the inbox: it holds what the window admits.
        let (jobs, inbox) = mpsc::channel(WINDOW_UNITS);
        (Self { jobs, window: Arc::new(Semaphore::new(WINDOW_UNITS)) }, inbox)
    }

    /// Never waits: a publish that the window does not admit is answered at once.
    pub fn offer(&self, publish: Publish, answer: Answer) {
        self.offer_since(publish, answer, Instant::now());
    }

    /// The same for a publish that was accepted a while ago: its deadline counts from then.
    pub fn offer_since(&self, publish: Publish, answer: Answer, accepted: Instant) {
        let Ok(window) = self.window.clone().try_acquire_many_owned(units(&publish.body)) else {
            return answer.give(Outcome::Overloaded);
        };
        let job = Job { publish, answer, accepted, window };
        // The window is not wider than the inbox, so that only a closed one refuses: dropping answers.
        drop(self.jobs.try_send(job));
    }
}

/// A publish on its way to the lane.
pub struct Job {
    pub publish: Publish,
    pub answer: Answer,
    pub accepted: Instant,
    /// Given back when the broker has confirmed, also when the answer was given long before.
    pub window: OwnedSemaphorePermit,
}

/// A channel in confirm mode that the supervisor hands to a lane.
#[derive(Clone)]
pub struct LaneChannel {
    pub channel: Channel,
    pub header_bytes_max: usize,
    /// The lane's place among those of its connection.
    pub lane: usize,
    /// How long a lane waits for another channel after one that the broker closed.
    pub rest: Duration,
    /// Told when the channel fails: the supervisor then opens another one, or the whole connection.
    pub failed: mpsc::Sender<usize>,
}

/// Counts what the broker closed a lane's channel or connection for, which a publish on it must have caused.
#[derive(Debug, Clone, Default)]
pub struct Closures(Arc<AtomicU64>);

impl Closures {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Before any publish is answered because of it.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Runs until the inbox is closed.
pub async fn run_lane(
    shared: Shared,
    mut inbox: mpsc::Receiver<Job>,
    mut channels: watch::Receiver<Option<LaneChannel>>,
    closures: Closures,
) {
    // Handed in while a channel of a sound connection is opened anew.
    let mut held = Vec::new();
    loop {
        let current = channels.borrow_and_update().clone();
        if let Some(lane_channel) = current {
            let mut flight = Flight::new(shared.clone(), lane_channel);
            held.drain(..).for_each(|job| flight.send(job));
            match flight.run(&mut inbox, &mut channels).await {
                Ended::Inbox => return,
                Ended::Channel => continue,
                Ended::Failed(error) => {
                    if !flight.fail(error, &mut inbox, &mut channels, &closures, &mut held).await {
                        return;
                    }
                }
            }
            continue;
        }
        held.clear();
        tokio::select! {
            // A channel is there before the link says so; a publish that follows must not be turned away.
            biased;
            changed = channels.changed() => if changed.is_err() { return },
            job = inbox.recv() => if job.is_none() { return },
        }
    }
}

/// Why a flight is over.
enum Ended {
    /// No more jobs can come.
    Inbox,
    /// The channel was taken away.
    Channel,
    Failed(LinkError),
}

/// A publish that the broker has not confirmed.
struct Pending {
    /// `None` when the answer was given at the deadline.
    answer: Option<Answer>,
    mandatory: bool,
    _window: OwnedSemaphorePermit,
}

/// Everything in flight on one channel. Dropping it answers `Unavailable`.
struct Flight<F> {
    shared: Shared,
    link: LaneChannel,
    sequence: u64,
    pending: HashMap<u64, Pending>,
    /// When to give up, soonest first; entries of answered publishes are skipped.
    deadlines: BTreeSet<(Instant, u64)>,
    unanswered: Unanswered,
    returns: Returns,
    confirms: FuturesUnordered<F>,
    start: fn(Channel, u64, Outgoing, Bytes) -> F,
}

type Confirmed = (u64, lapin::Result<Confirmation>);

/// Sends at its first poll and completes with the broker's confirm. The body is only borrowed by the client
/// library, which copies it into its frames.
async fn send(channel: Channel, sequence: u64, out: Outgoing, body: Bytes) -> Confirmed {
    let options = BasicPublishOptions { mandatory: out.mandatory, immediate: false };
    let written = channel.basic_publish(out.exchange, out.routing_key, options, &body, out.properties).await;
    drop(body);
    let confirmed = match written {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (sequence, confirmed)
}

impl Flight<()> {
    #[allow(clippy::new_ret_no_self)]
    fn new(shared: Shared, link: LaneChannel) -> Flight<impl std::future::Future<Output = Confirmed>> {
        Flight {
            shared,
            link,
            sequence: 0,
            pending: HashMap::new(),
            deadlines: BTreeSet::new(),
            unanswered: Unanswered::new(Instant::now()),
            returns: Returns::default(),
            confirms: FuturesUnordered::new(),
            start: send,
        }
    }
}

impl<F: std::future::Future<Output = Confirmed>> Flight<F> {
    async fn run(
        &mut self,
        inbox: &mut mpsc::Receiver<Job>,
        channels: &mut watch::Receiver<Option<LaneChannel>>,
    ) -> Ended {
        let mut batch = Vec::with_capacity(BATCH);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::new(Instant::now());
        loop {
            let mut sent = 0;
            tokio::select! {
                changed = channels.changed() => return if changed.is_ok() { Ended::Channel } else { Ended::Inbox },
                count = inbox.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ended::Inbox;
                    }
                    sent = count;
                    batch.drain(..).for_each(|job| self.send(job));
                }
                Some(confirmed) = self.confirms.next(), if !self.confirms.is_empty() => {
                    if let Err(error) = self.take_all(confirmed) {
                        return Ended::Failed(error.into());
                    }
                }
                now = tick.tick() => {
                    self.expire(now);
                    let well = self.shared.link.borrow().publishing == Publishing::Ready;
                    if self.unanswered.stuck(|sequence| self.pending.contains_key(&sequence), well, now) {
                        return Ended::Failed(LinkError::Late("a publish"));
                    }
                }
            }
            if pace.add(sent, Instant::now()) && sent < BATCH {
                // What was handed in is sent when it is polled.
                if let Some(Some(confirmed)) = self.confirms.next().now_or_never() {
                    if let Err(error) = self.take_all(confirmed) {
                        return Ended::Failed(error.into());
                    }
                }
                sleep(GATHER_FOR).await;
            }
        }
    }

    /// The channel is of no use any more: answers what is in flight, and waits for another channel, or for the loss of
    /// the connection. `false`: no more jobs can come.
    async fn fail(
        &mut self,
        error: LinkError,
        inbox: &mut mpsc::Receiver<Job>,
        channels: &mut watch::Receiver<Option<LaneChannel>>,
        closures: &Closures,
        held: &mut Vec<Job>,
    ) -> bool {
        debug!(%error, "publishing channel failed");
        if matches!(&error, LinkError::Amqp(error) if error.is_amqp_soft_error()) {
            closures.add();
            self.pending.clear();
        }
        if matches!(error, LinkError::Late(_)) {
            self.pending.clear();
        }
        let rest = sleep(self.link.rest);
        tokio::pin!(rest);
        let mut told = false;
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                changed = channels.changed() => return changed.is_ok(),
                () = &mut rest, if !told => {
                    told = true;
                    let _ = self.link.failed.try_send(self.link.lane);
                }
                job = inbox.recv() => match job {
                    Some(job) => held.push(job),
                    None => return false,
                },
                now = tick.tick() => {
                    self.expire(now);
                    held.retain(|job| job.accepted + PUBLISH_DEADLINE > now + 3 * TICK);
                }
            }
        }
    }

    /// Futures are first polled in the order in which they are pushed, which makes it the order of the frames.
    fn send(&mut self, job: Job) {
        self.sequence += 1;
        let sequence = self.sequence;
        let max = self.link.header_bytes_max;
        let Ok(out) = convert::outgoing(&job.publish, &self.shared.topology, sequence, max) else {
            return job.answer.give(Outcome::Refused);
        };
        let mandatory = out.mandatory;
        self.returns.sent(sequence);
        // The answer is due before the promised deadline, however late the tick comes.
        self.deadlines.insert((job.accepted + PUBLISH_DEADLINE - 3 * TICK, sequence));
        self.unanswered.sent(sequence, Instant::now());
        self.pending.insert(sequence, Pending { answer: Some(job.answer), mandatory, _window: job.window });
        self.confirms.push((self.start)(self.link.channel.clone(), sequence, out, job.publish.body));
    }

    /// Takes this confirm and every other one that has completed by now, then decides what can be decided.
    fn take_all(&mut self, first: Confirmed) -> Result<(), lapin::Error> {
        self.take(first)?;
        // The last look must begin after the last confirm was taken, and find nothing.
        loop {
            let mut found = false;
            while let Some(Some(confirmed)) = self.confirms.next().now_or_never() {
                self.take(confirmed)?;
                found = true;
            }
            if !found {
                break;
            }
        }
        let pending = &mut self.pending;
        self.returns.decide(|sequence, outcome| answer(pending, sequence, outcome));
        Ok(())
    }

    fn take(&mut self, (sequence, confirmed): Confirmed) -> Result<(), lapin::Error> {
        let confirmed = confirmed?;
        self.shared.pulse.confirmed();
        let outcome = if confirmed.is_nack() { Outcome::Refused } else { Outcome::Confirmed };
        let carried = confirmed.take_message().and_then(|message| convert::sequence(&message.properties));
        let mandatory = self.pending.get(&sequence).is_some_and(|pending| pending.mandatory);
        if let Some(outcome) = self.returns.confirmed(sequence, outcome, carried, mandatory) {
            answer(&mut self.pending, sequence, outcome);
        }
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        while self.deadlines.first().is_some_and(|(deadline, _)| *deadline <= now) {
            if let Some((_, sequence)) = self.deadlines.pop_first() {
                if let Some(pending) = self.pending.get_mut(&sequence) {
                    // The entry stays and keeps its share of the window until the broker speaks.
                    pending.answer = None;
                }
            }
        }
    }
}

fn answer(pending: &mut HashMap<u64, Pending>, sequence: u64, outcome: Outcome) {
    if let Some(answer) = pending.remove(&sequence).and_then(|pending| pending.answer) {
        answer.give(outcome);
    }
}
