//! HTTP: the handshake at `/ws`, the API under `/v1`, and the operator's addresses.
//!
//! A connection's way, from the socket up:
//! - [`listener`]: binds and accepts; [`serve`]: the accept loop, and which connection gets which slot.
//! - `slots.rs`: the slots, by client address; `stream.rs`: the socket; `connection.rs`: deadlines of a connection.
//! - [`guard`]: what every request is checked for; `client.rs`: who is at the other end.
//! - `upgrade.rs`: from a request to a session; `credentials.rs`: whose token it is.
//! - `api.rs`: what stands under `/v1`; `publish.rs`: `POST /v1/messages`; [`body`]: its bounds.
//! - [`health`]: `/livez`, `/readyz`, `/metrics` (on the admin address; the first two on the public one too).
//! - `client_library.rs`: `/warren-client.js`, for browsers.
//! - `response.rs`: how responses and errors are written.

mod api;
pub mod body;
mod channels;
mod client;
mod client_library;
mod connection;
mod credentials;
pub mod guard;
pub mod health;
pub mod listener;
mod publish;
mod response;
pub mod serve;
pub mod slots;
mod stream;
mod upgrade;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use warp::{Filter, Reply};

use crate::auth::Verifier;
use crate::budgets::{Rates, Shares};
use crate::ids::UserId;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::router::Router;

/// What requests need of the node.
pub struct AppState {
    pub router: Arc<Router>,
    pub verifier: Arc<Verifier>,
    pub lifecycle: Lifecycle,
    pub metrics: Arc<Metrics>,
    pub health: health::Health,
    /// What users may publish, through all doors.
    pub rates: Arc<Rates<UserId>>,
    /// Bad tokens and keys, by client address: `rate_limited` instead of `unauthorized` beyond.
    pub bad_tokens: Arc<Rates<IpAddr>>,
    /// Sessions by client address. Overflow policy: the handshake is refused as `rate_limited`.
    pub sessions_by_address: Arc<Shares>,
    pub bodies: body::BodyBudget,
    /// Sockets that have yet to say who they are. Overflow policy: the handshake is refused as `overloaded`.
    pub unauthenticated: Arc<slots::Slots>,
    pub max_sessions: usize,
    pub sessions_per_user: usize,
    pub max_message_bytes: usize,
    /// To send a request's body, once its head is there: one that never comes must not hold a connection.
    pub body_timeout: Duration,
}

/// The public address.
pub fn public(
    state: Arc<AppState>,
) -> impl Filter<Extract = (impl Reply,), Error = std::convert::Infallible> + Clone {
    upgrade::route(state.clone())
        .or(api::routes(state.clone()))
        .unify()
        .or(health::probes(state))
        .unify()
        .or(client_library::route())
        .unify()
        .recover(response::rejection)
}

/// The admin address.
pub fn admin(
    state: Arc<AppState>,
) -> impl Filter<Extract = (impl Reply,), Error = std::convert::Infallible> + Clone {
    health::probes(state.clone()).or(health::metrics(state)).unify().recover(response::rejection)
}
