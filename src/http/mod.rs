//! HTTP: the handshake at `/ws`, the API under `/v1`, and the operator's addresses.
//!
//! - [`serve`]: the accept loop, with what a stranger may cost.
//! - [`upgrade`]: from an HTTP request to a session.
//! - [`api`] is what stands under `/v1`.
//! - [`health`]: `/livez`, `/readyz`, `/metrics` (on the admin address; the first two on the public one too).
//! - `client_library.rs`: `/warren-client.js`, for browsers.
//! - `answer.rs`: how answers and errors are written.

mod answer;
pub mod api;
mod client_library;
pub mod health;
pub mod serve;
pub mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use warp::{Filter, Reply};

use crate::auth::Verifier;
use crate::config::Origins;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::router::Router;
use crate::session::Admission;

/// What every request may need.
pub struct Gate {
    pub router: Arc<Router>,
    pub verifier: Arc<Verifier>,
    pub lifecycle: Lifecycle,
    pub metrics: Arc<Metrics>,
    pub health: health::Health,
    pub origins: Origins,
    pub max_sessions: usize,
    pub max_message_bytes: usize,
    /// To send a request's body, once its head is there: one that never comes must not hold a connection.
    pub body_timeout: Duration,
}

/// The public address. `admissions` leads to the worker whose thread serves this listener.
pub fn public(
    gate: Arc<Gate>,
    admissions: mpsc::Sender<Admission>,
) -> impl Filter<Extract = (impl Reply,), Error = std::convert::Infallible> + Clone {
    upgrade::route(gate.clone(), admissions)
        .or(api::routes(gate.clone()))
        .unify()
        .or(health::probes(gate))
        .unify()
        .or(client_library::route())
        .unify()
        .recover(answer::rejection)
}

/// The admin address.
pub fn admin(
    gate: Arc<Gate>,
) -> impl Filter<Extract = (impl Reply,), Error = std::convert::Infallible> + Clone {
    health::probes(gate.clone()).or(health::metrics(gate)).unify().recover(answer::rejection)
}
