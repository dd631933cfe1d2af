//! Supervision: every long-lived task and thread of a node has a name, and its unexpected end is noticed.
//!
//! A task that panics may have left anything half done: the node becomes unready at once, moves its sessions
//! elsewhere, and ends. A connection's own task is no long-lived one: its panic ends that connection alone.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Why a node must end although nobody told it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A task or thread ended that should not have.
    #[error("{task} {how}")]
    Part { task: &'static str, how: &'static str },
    /// Its configuration does not fit the cluster.
    #[error("{0}")]
    Misplaced(String),
}

/// Where failures are told; the first one counts.
#[derive(Debug, Clone)]
pub struct Failures(watch::Sender<Option<Failure>>);

impl Failures {
    fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    pub fn is_failed(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns when something has failed.
    pub async fn failed(&self) -> Failure {
        let mut receiver = self.0.subscribe();
        let failure = receiver.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        // The sender is ours, so that the wait cannot fail.
        failure.unwrap_or(Failure::Part { task: "supervision", how: "ended" })
    }

    fn report(&self, task: &'static str, how: &'static str) {
        tracing::error!(task, how, "a part of the node has failed: the node stops");
        self.tell(Failure::Part { task, how });
    }

    /// The node does not fit the cluster: it ends, as one that was configured wrongly.
    pub(super) fn misplaced(&self, why: String) {
        tracing::error!(why, "the node refuses to join the cluster and stops");
        self.tell(Failure::Misplaced(why));
    }

    fn tell(&self, what: Failure) {
        self.0.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(what);
            first
        });
    }

    /// Reports the end of the thread that holds it, unless the node has stopped: `running` says so when its
    /// sender is gone.
    pub(super) fn thread(&self, name: &'static str, running: watch::Receiver<()>) -> ThreadGuard {
        ThreadGuard { failures: self.clone(), name, running }
    }
}

pub(super) struct ThreadGuard {
    failures: Failures,
    name: &'static str,
    running: watch::Receiver<()>,
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failures.report(self.name, "panicked");
        } else if self.running.has_changed().is_ok() {
            self.failures.report(self.name, "ended");
        }
    }
}

/// The tasks of a node; dropping it ends them.
#[derive(Debug)]
pub struct Tasks {
    running: JoinSet<()>,
    failures: Failures,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { running: JoinSet::new(), failures: Failures::new() }
    }

    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// A task that may end by itself, such as one whose queue is closed at shutdown; a panic is a failure.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let failures = self.failures.clone();
        self.running.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                failures.report(name, "panicked");
            }
        });
    }

    /// A task that must run until the node stops: its end is a failure.
    pub fn spawn_endless(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let failures = self.failures.clone();
        self.spawn(name, async move {
            task.await;
            failures.report(name, "ended");
        });
    }

    /// Ends all tasks, and returns when they have ended.
    pub(super) async fn shutdown(&mut self) {
        self.running.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_an_unexpected_end_are_failures() {
        let mut tasks = Tasks::new();
        tasks.spawn("ends", async {});
        tasks.spawn("waits", std::future::pending());
        tokio::task::yield_now().await;
        assert!(!tasks.failures().is_failed());
        tasks.spawn("breaks", async { panic!("on purpose") });
        let failure = tasks.failures().failed().await;
        assert_eq!(failure.to_string(), "breaks panicked");
        tasks.spawn_endless("later", async {});
        tasks.failures().misplaced("elsewhere".to_owned());
        assert_eq!(tasks.failures().failed().await.to_string(), "breaks panicked", "the first one counts");
        tasks.shutdown().await;

        let mut tasks = Tasks::new();
        tasks.spawn_endless("pump", async {});
        assert_eq!(tasks.failures().failed().await.to_string(), "pump ended");
    }

    #[tokio::test]
    async fn a_thread_that_ends_before_the_node_is_a_failure() {
        let end = |panics: bool, stopped: bool| {
            let tasks = Tasks::new();
            let running = watch::Sender::new(());
            let guard = tasks.failures().thread("worker", running.subscribe());
            let running = (!stopped).then_some(running);
            let thread = std::thread::spawn(move || {
                let _guard = guard;
                assert!(!panics, "on purpose");
            });
            assert_eq!(thread.join().is_err(), panics);
            drop(running);
            let failure = tasks.failures().0.borrow().clone();
            failure.map(|failure| failure.to_string())
        };
        assert_eq!(end(true, false).as_deref(), Some("worker panicked"));
        assert_eq!(end(true, true).as_deref(), Some("worker panicked"));
        assert_eq!(end(false, false).as_deref(), Some("worker ended"));
        assert_eq!(end(false, true), None);
    }
}
