//! Removes emptied mailboxes, some time after they were emptied.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, Instant};
use tracing::debug;

use super::admin::Admin;

/// Long after every look for a queue that follows a confirmed deposit.
pub const REMOVED_AFTER: Duration = Duration::from_secs(2);
/// More emptied mailboxes than this at a time are left to their next opening, or to expire.
const WAITING_MAX: usize = 65_536;
/// Some of the pooled channels stay free for others.
const AT_A_TIME: usize = 4;

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
        let due = Instant::now() + REMOVED_AFTER;
        if self.queues.try_send((due, queue.clone())).is_ok() {
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
    due: mpsc::Receiver<(Instant, String)>,
) {
    let due = stream::unfold(due, |mut due| async { due.recv().await.map(|next| (next, due)) });
    let remove = |(at, queue): (Instant, String)| {
        let (admin, waiting) = (&admin, &waiting);
        async move {
            sleep_until(at).await;
            lock(waiting).remove(&queue);
            // It is left alone when new mail came in or somebody reads it; and when the link is gone, to its
            // next opening.
            let removed = admin.remove_idle(&queue).await;
            debug!(queue, ?removed, "an emptied mailbox was due");
        }
    };
    due.for_each_concurrent(AT_A_TIME, remove).await;
}
