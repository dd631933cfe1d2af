//! The thread that serves a listener and its sockets.

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use std::sync::Arc;

use crate::http::{self, serve, AppState};
use crate::hub::Commands;
use crate::node::supervise::Failures;
use crate::session::worker::Worker;
use crate::session::{Admission, SessionSettings};

/// Everything that one worker's thread needs.
pub(super) struct WorkerThread {
    pub(super) index: usize,
    pub(super) listener: std::net::TcpListener,
    pub(super) limits: serve::Limits,
    pub(super) state: Arc<AppState>,
    pub(super) console: bool,
    pub(super) sessions: SessionSettings,
    pub(super) commands: Commands,
    pub(super) admissions: mpsc::Sender<Admission>,
    pub(super) admitted: mpsc::Receiver<Admission>,
    pub(super) running: watch::Receiver<()>,
    pub(super) failures: Failures,
}

impl WorkerThread {
    pub(super) fn run(self, runtime: &tokio::runtime::Runtime) {
        // A node whose worker has ended holds sessions no longer as it should: it stops, and is started anew.
        let _reports_end = self.failures.thread("worker", self.running.clone());
        let local = LocalSet::new();
        local.block_on(runtime, async move {
            let listener = match TcpListener::from_std(self.listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "a worker cannot use its listener"),
            };
            let router = self.state.router.clone();
            let worker = Worker::new(self.index, self.sessions, router, self.commands, self.admitted);
            let routes = http::public(self.state.clone(), self.console, self.admissions.clone());
            let mut running = self.running;
            tokio::select! {
                () = serve::run(listener, self.limits, routes, Some(self.admissions)) => {}
                () = worker.run() => {}
                _ = running.changed() => {}
            }
        });
    }
}
