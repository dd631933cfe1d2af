//! What operators and orchestrators ask: alive, ready, metrics.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use warp::http::StatusCode;
use warp::reply::Response as Answer;
use warp::{Filter, Rejection};

use crate::bus::{Link, TopologyState};
use crate::http::{answer, Gate};
use crate::lifecycle::Phase;
use crate::metrics::Snapshot;

/// A node that has not heard itself through the broker for so long is not ready.
const LOOPBACK_MAX: Duration = Duration::from_secs(10);

/// What readiness is judged by.
#[derive(Debug, Clone)]
pub struct Health {
    pub link: watch::Receiver<Link>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Readiness {
    ready: bool,
    /// Taking new sessions.
    accepting: bool,
    /// Connected to the broker, and able to publish.
    link: bool,
    /// What the node declared at the broker is all there, and no policy breaks a promise; else the log says what.
    topology: bool,
    /// A message to itself came back through the broker lately.
    loopback: bool,
}

fn readiness(gate: &Gate) -> Readiness {
    let accepting = gate.lifecycle.phase() == Phase::Serving;
    let now = *gate.health.link.borrow();
    let (link, topology) = (now.ready(), now.topology == TopologyState::Whole);
    let loopback = gate.router.directory().control_seen_ago().is_some_and(|ago| ago <= LOOPBACK_MAX);
    Readiness { ready: accepting && link && topology && loopback, accepting, link, topology, loopback }
}

/// `GET /livez`: the process runs. Never asks the broker: a broker that is away must not restart the nodes.
/// `GET /readyz`: send new clients here.
pub fn probes(gate: Arc<Gate>) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let live =
        warp::path!("livez").and(warp::get()).map(|| answer::text(StatusCode::OK, "text/plain", "alive\n"));
    let ready = warp::path!("readyz").and(warp::get()).map(move || {
        let readiness = readiness(&gate);
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        answer::json(status, &readiness)
    });
    live.or(ready).unify()
}

/// `GET /metrics`, in the OpenMetrics text format.
pub fn metrics(gate: Arc<Gate>) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    warp::path!("metrics").and(warp::get()).map(move || {
        let hub = gate.router.hub();
        let snapshot = Snapshot {
            sessions: hub.sessions(),
            users: hub.users(),
            nodes: gate.router.directory().peers().len() + 1,
            pending: gate.router.pending(),
            link_ready: gate.health.link.borrow().ready(),
        };
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        answer::text(StatusCode::OK, kind, gate.metrics.render(snapshot))
    })
}
