//! Removes emptied mailboxes, some time after they were emptied.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{stream, StreamExt};
use tokio::sync::{mpsc, Semaphore};
use tokio::time::{sleep, sleep_until, Instant};
use tracing::debug;

use super::super::connection::LinkError;
use super::admin::{Admin, Removed};
use super::continuity::Watch;

/// Long after every look that follows a confirmed deposit.
const FIRST_LOOK_AFTER: Duration = Duration::from_millis(1_300);
/// Looks before a removal, and what lies between them. Together they are longer than [`GONE_FOR`](super::continuity).
const LOOKS: usize = 2;
const BETWEEN_LOOKS: Duration = Duration::from_millis(350);
/// More emptied mailboxes than this at a time are left to their next opening, or to expire.
const WAITING_MAX: usize = 65_536;
/// Removals under way; most of their time is pauses.
const AT_A_TIME: usize = 256;
/// Some of the pooled channels stay free for others.
const REQUESTS: usize = 3;

/// Queues that are to be removed.
#[derive(Clone)]
pub struct Removal {
    /// What is in `queues`, so that nothing is in it twice.
    waiting: Arc<Mutex<HashSet<String>>>,
    queues: mpsc::Sender<(Instant, String)>,
}

/// The removal, and the task that does it.
pub fn start(admin: Arc<Admin>) -> (Removal, impl Future<Output = ()>) {
    let (queues, due) = mpsc::channel(WAITING_MAX);
    let removal = Removal { waiting: Arc::default(), queues };
    let waiting = removal.waiting.clone();
    (removal, run(admin, waiting, due))
}

impl Removal {
    pub fn later(&self, queue: String) {
        let mut waiting = lock(&self.waiting);
        if waiting.contains(&queue) {
            return;
        }
        if self.queues.try_send((Instant::now(), queue.clone())).is_ok() {
            waiting.insert(queue);
        }
    }
}

fn lock(waiting: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(
    admin: Arc<Admin>,
    waiting: Arc<Mutex<HashSet<String>>>,
    emptied: mpsc::Receiver<(Instant, String)>,
) {
    let emptied =
        stream::unfold(emptied, |mut emptied| async { emptied.recv().await.map(|next| (next, emptied)) });
    let requests = Semaphore::new(REQUESTS);
    let remove = |(at, queue): (Instant, String)| {
        let (admin, waiting, requests) = (&admin, &waiting, &requests);
        async move {
            let removed = remove(admin, requests, at, &queue).await;
            debug!(queue, ?removed, "an emptied mailbox was due");
            lock(waiting).remove(&queue);
        }
    };
    emptied.for_each_concurrent(AT_A_TIME, remove).await;
}

/// Removes a queue that was there all the time between the first look and the removal. One that somebody just made
/// anew is in use, and others who know that it was gone may be making it at this moment.
///
/// It is left alone when new mail came in or somebody reads it; and when the link is gone or too slow, to its next
/// opening.
async fn remove(
    admin: &Admin,
    requests: &Semaphore,
    emptied: Instant,
    queue: &str,
) -> Result<Option<Removed>, LinkError> {
    sleep_until(emptied + FIRST_LOOK_AFTER).await;
    let mut turn = requests.acquire().await;
    let mut watch = Watch::begin(admin, queue);
    for _ in 0..LOOKS {
        match watch.look().await? {
            Some(content) if content.ready == 0 && !content.consumed => {}
            _ => return Ok(None),
        }
        drop(turn);
        sleep(BETWEEN_LOOKS).await;
        turn = requests.acquire().await;
    }
    match watch.is_fresh() {
        true => admin.remove_idle(queue).await.map(Some),
        false => Ok(None),
    }
}
