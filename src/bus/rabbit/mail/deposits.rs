//! Deposits into mailboxes: in order for each user, side by side for different users, made sure of one by one.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout_at, Instant};
use tracing::debug;

use super::super::publisher::{units, LaneInbox, WINDOW_UNITS};
use super::super::topology::{Queue, Topology};
use super::admin::Admin;
use super::continuity::{Watch, GONE_FOR};
use crate::bus::answer::Answer;
use crate::bus::{Destination, Lane, Outcome, Properties, Publish, DEPOSIT_DEADLINE};
use crate::ids::UserId;
use crate::protocol::server;

/// Deposits of one user that wait for those before them; more are [`Outcome::Overloaded`].
const LINE_MAX: usize = 1024;
/// Deposits of one user that are in flight together.
const BATCH: usize = 64;
/// How often a mailbox is made for one deposit, when it is gone again each time.
const MAKES_MAX: usize = 3;
/// Answers are given this much before they are due.
const MARGIN: Duration = Duration::from_millis(200);

struct Deposit {
    properties: Properties,
    body: Bytes,
    /// Dropping it answers [`Outcome::Unavailable`].
    answer: Answer,
    accepted: Instant,
    _room: OwnedSemaphorePermit,
}

impl Deposit {
    fn due(&self) -> Instant {
        self.accepted + DEPOSIT_DEADLINE - MARGIN
    }
}

/// Where deposits are handed in.
#[derive(Clone)]
pub struct Inbox {
    deposits: mpsc::Sender<(UserId, Deposit)>,
    room: Arc<Semaphore>,
}

impl Inbox {
    pub fn offer(&self, user: &UserId, properties: Properties, body: Bytes, answer: Answer) {
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("drop-mail") && crate::sabotage::every(10_000) {
            return answer.give(Outcome::Confirmed);
        }
        let Ok(room) = self.room.clone().try_acquire_many_owned(units(&body)) else {
            return answer.give(Outcome::Overloaded);
        };
        let properties = Properties { persistent: Some(true), ..properties };
        let deposit = Deposit { properties, body, answer, accepted: Instant::now(), _room: room };
        // There is not more room than the channel holds, so that only a closed one refuses: dropping answers.
        drop(self.deposits.try_send((user.clone(), deposit)));
    }
}

/// The inbox, and the task that empties it.
pub fn start(topology: Topology, admin: Arc<Admin>, lane: LaneInbox) -> (Inbox, impl Future<Output = ()>) {
    let (deposits, inbox) = mpsc::channel(WINDOW_UNITS);
    let room = Arc::new(Semaphore::new(WINDOW_UNITS));
    (Inbox { deposits, room }, run(Store { topology, admin, lane }, inbox))
}

async fn run(store: Store, mut inbox: mpsc::Receiver<(UserId, Deposit)>) {
    // Users with a round under way, and what waits for its end.
    let mut lines: HashMap<UserId, VecDeque<Deposit>> = HashMap::new();
    let mut rounds = FuturesUnordered::new();
    loop {
        tokio::select! {
            deposit = inbox.recv() => {
                let Some((user, deposit)) = deposit else { return };
                match lines.get_mut(&user) {
                    Some(line) if line.len() >= LINE_MAX => deposit.answer.give(Outcome::Overloaded),
                    Some(line) => line.push_back(deposit),
                    None => {
                        lines.insert(user.clone(), VecDeque::new());
                        rounds.push(store.round(user, vec![deposit], false));
                    }
                }
            }
            Some((user, known)) = rounds.next(), if !rounds.is_empty() => {
                let Some(line) = lines.get_mut(&user) else { continue };
                let now = Instant::now();
                while line.front().is_some_and(|deposit| deposit.due() <= now) {
                    line.pop_front();
                }
                let batch: Vec<_> = line.drain(..line.len().min(BATCH)).collect();
                if batch.is_empty() {
                    lines.remove(&user);
                } else {
                    rounds.push(store.round(user, batch, known));
                }
            }
        }
    }
}

/// A deposit that was published, and whether the broker confirmed it or found no queue.
type Sent = (Deposit, bool);

struct Store {
    topology: Topology,
    admin: Arc<Admin>,
    lane: LaneInbox,
}

impl Store {
    /// Stores deposits of one user, oldest first. `known`: the mailbox was there a moment ago; answers the same.
    async fn round(&self, user: UserId, batch: Vec<Deposit>, known: bool) -> (UserId, bool) {
        let due = batch.first().map_or_else(Instant::now, Deposit::due);
        let queue = self.topology.mailbox(&user);
        let known = timeout_at(due, self.store(&queue, batch, known)).await.unwrap_or(false);
        (user, known)
    }

    async fn store(&self, queue: &Queue, mut batch: Vec<Deposit>, mut known: bool) -> bool {
        for _ in 0..=MAKES_MAX {
            let mut watch = Watch::begin(&self.admin, &queue.name);
            let sent = watch.during(self.publish(&queue.name, batch, known)).await;
            // The broker confirms, too, what it loses with a queue that is being removed: only a queue that is
            // seen alive after the confirm has stored it. Looking also renews the lease of the queue, which
            // publishing does not.
            let alive = if sent.iter().any(|(_, confirmed)| *confirmed) {
                match watch.look().await {
                    Ok(content) => content.is_some(),
                    Err(error) => {
                        debug!(%error, queue = queue.name, "cannot look for a mailbox");
                        return false;
                    }
                }
            } else {
                false
            };
            batch = Vec::new();
            for (mut deposit, confirmed) in sent {
                if confirmed && alive {
                    deposit.answer.give(Outcome::Confirmed);
                    continue;
                }
                if confirmed {
                    // Lost with the queue, or handed out before the emptied queue was removed: nobody knows.
                    deposit.body = server::mark_redelivered(&deposit.body);
                }
                batch.push(deposit);
            }
            if batch.is_empty() {
                return true;
            }
            sleep(GONE_FOR).await;
            if let Err(error) = self.admin.declare(queue).await {
                debug!(%error, queue = queue.name, "cannot make a mailbox");
                return false;
            }
            known = false;
        }
        false
    }

    /// Publishes in order. The first one goes ahead alone unless the queue is known: if there is none, another
    /// node may make it just when half of them have been returned.
    async fn publish(&self, queue: &str, batch: Vec<Deposit>, known: bool) -> Vec<Sent> {
        let mut sent = Vec::with_capacity(batch.len());
        let mut rest = batch.into_iter();
        let ahead = if known { 0 } else { 1 };
        self.publish_together(queue, rest.by_ref().take(ahead), &mut sent).await;
        if sent.iter().any(|(_, confirmed)| !confirmed) {
            sent.extend(rest.map(|deposit| (deposit, false)));
        } else {
            self.publish_together(queue, rest, &mut sent).await;
        }
        sent
    }

    async fn publish_together(
        &self,
        queue: &str,
        deposits: impl Iterator<Item = Deposit>,
        sent: &mut Vec<Sent>,
    ) {
        let waiting: Vec<_> = deposits.map(|deposit| (self.send(queue, &deposit), deposit)).collect();
        for (told, deposit) in waiting {
            match told.await.unwrap_or(Outcome::Unavailable) {
                Outcome::Confirmed => sent.push((deposit, true)),
                Outcome::Unroutable => sent.push((deposit, false)),
                other => deposit.answer.give(other),
            }
        }
    }

    fn send(&self, queue: &str, deposit: &Deposit) -> oneshot::Receiver<Outcome> {
        let (tell, told) = oneshot::channel();
        let publish = Publish {
            to: Destination::Queue(queue.to_owned()),
            properties: deposit.properties.clone(),
            body: deposit.body.clone(),
            order_key: 0,
            lane: Lane::Bulk,
        };
        let done = Box::new(move |outcome| {
            let _ = tell.send(outcome);
        });
        self.lane.offer(publish, Answer::new(done));
        told
    }
}
