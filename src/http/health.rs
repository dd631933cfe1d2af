//! For operators and orchestrators: alive, ready, metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::{response, AppState};
use crate::bus::Link;
use crate::metrics::Snapshot;
use crate::output;

/// One condition of readiness, asked at each request: it must be quick, and not wait.
type Check = Box<dyn Fn() -> bool + Send + Sync>;

/// What readiness is judged by: named checks, all of which must hold.
pub struct Health {
    pub link: watch::Receiver<Link>,
    checks: Vec<(&'static str, Check)>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Readiness {
    ready: bool,
    /// By name, beside `ready`.
    #[serde(flatten)]
    checks: BTreeMap<&'static str, bool>,
}

impl Health {
    pub fn new(link: watch::Receiver<Link>) -> Self {
        Self { link, checks: Vec::new() }
    }

    /// One more condition; `name` stands in the body of `/readyz`.
    pub fn check(mut self, name: &'static str, holds: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.checks.push((name, Box::new(holds)));
        self
    }

    fn readiness(&self) -> Readiness {
        let checks: BTreeMap<_, _> = self.checks.iter().map(|(name, holds)| (*name, holds())).collect();
        Readiness { ready: checks.values().all(|holds| *holds), checks }
    }
}

/// `GET /livez`: the process runs. Never asks the broker: a broker that is away must not restart the nodes.
/// `GET /readyz`: send new clients here.
pub(super) fn probes(state: Arc<AppState>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let read = warp::get().or(warp::head()).unify();
    let live = warp::path!("livez").and(read).map(|| response::text(StatusCode::OK, "text/plain", "alive\n"));
    let ready = warp::path!("readyz").and(read).map(move || {
        let readiness = state.health.readiness();
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        response::json(status, &readiness)
    });
    live.or(ready).unify()
}

/// `GET /metrics`, in the OpenMetrics text format.
pub(super) fn metrics(state: Arc<AppState>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    warp::path!("metrics").and(warp::get().or(warp::head()).unify()).map(move || {
        let hub = state.router.hub();
        let snapshot = Snapshot {
            sessions: hub.sessions(),
            users: hub.users(),
            nodes: state.router.directory().peers().len() + 1,
            pending: state.router.pending(),
            requests: state.router.requests_pending(),
            mail: state.router.mail().total().messages,
            partitions: state.router.directory().partitions_held(),
            link_ready: state.health.link.borrow().ready(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            log_lines_dropped: output::dropped_lines(),
        };
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response::text(StatusCode::OK, kind, state.metrics.render(snapshot))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_must_hold_and_is_shown() {
        let link = watch::Sender::new(Link::default()).subscribe();
        let health = Health::new(link).check("broker", || true).check("tasks", || false);
        let shown = serde_json::to_value(health.readiness()).unwrap();
        assert_eq!(shown, serde_json::json!({"ready": false, "broker": true, "tasks": false}));
    }
}
