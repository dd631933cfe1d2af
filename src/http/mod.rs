//! HTTP: the handshake at `/ws`, the API under `/v1`, and the operator's addresses.
//!
//! A connection's way, from the socket up:
//! - [`listener`]: binds and accepts; [`serve`]: the accept loop, and which connection gets which slot.
//! - `opening.rs`: what comes before HTTP, TLS and what a balancer says (`proxy_header.rs`) among it.
//! - `slots.rs`: the slots, by client address; `stream.rs`: the socket; `connection.rs`: deadlines of a connection.
//! - [`addresses`]: the table of all addresses; [`guard`]: what every request is checked for; `client.rs`: who is at the other end.
//! - `upgrade.rs`: from a request to a session; [`sockjs`]: the addresses of SockJS; `credentials.rs`: whose token it is.
//! - `api.rs`: what stands under `/v1`; `cluster.rs`: the parts for operators; `publish.rs`: `POST /v1/messages`;
//!   `revocations.rs`: `POST /v1/revocations`; `tickets.rs`: `POST /v1/tickets`; [`body`]: its bounds.
//! - [`health`]: `/livez`, `/readyz`, `/metrics` (on the admin address; the first two on the public one too).
//! - `console.rs`: the console at `/` and `/warren-client.js`; `assets.rs`: how browsers get and keep such files.
//! - `response.rs`: how responses and errors are written.

pub mod addresses;
mod api;
mod assets;
pub mod body;
mod channels;
mod client;
mod cluster;
mod connection;
mod console;
mod credentials;
pub mod fetch;
pub mod guard;
pub mod health;
pub mod listener;
mod opening;
mod proxy_header;
mod publish;
mod response;
mod revocations;
pub mod serve;
pub mod slots;
pub mod sockjs;
mod stream;
mod tickets;
mod upgrade;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use warp::{Filter, Reply};

use crate::auth::Verifier;
use crate::budgets::{Rates, Shares};
use crate::ids::UserId;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::router::Router;
use crate::session::Admission;

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
    /// Sessions whose clients speak HTTP; `None`: there are none.
    pub fallbacks: Option<Arc<sockjs::Fallbacks>>,
    pub max_sessions: usize,
    pub sessions_per_user: usize,
    pub max_message_bytes: usize,
    /// Sockets may be compressed, if their clients offer it.
    pub compression: bool,
    /// To send a request's body, once its head is there: one that never comes must not hold a connection.
    pub body_timeout: Duration,
}

/// The public address. `console`: whether the console is here too. `admissions` leads to the worker whose thread this is.
pub fn public(
    state: Arc<AppState>,
    console: bool,
    admissions: mpsc::Sender<Admission>,
) -> impl Filter<Extract = (impl Reply,), Error = std::convert::Infallible> + Clone {
    upgrade::route(state.clone())
        .or(sockjs::route(state.clone(), admissions))
        .unify()
        .or(api::routes(state.clone()))
        .unify()
        .or(health::probes(state))
        .unify()
        .or(console::client_library())
        .unify()
        .or(only_if(console).and(console::pages()))
        .unify()
        .recover(response::rejection)
}

/// The admin address. `console`: whether the console is here, and the API that it uses.
pub fn admin(
    state: Arc<AppState>,
    console: bool,
) -> impl Filter<Extract = (impl Reply,), Error = std::convert::Infallible> + Clone {
    let for_console =
        api::routes(state.clone()).or(console::client_library()).unify().or(console::pages()).unify();
    health::probes(state.clone())
        .or(health::metrics(state))
        .unify()
        .or(only_if(console).and(for_console))
        .unify()
        .recover(response::rejection)
}

fn only_if(holds: bool) -> impl Filter<Extract = (), Error = warp::Rejection> + Clone {
    let check = move || std::future::ready(if holds { Ok(()) } else { Err(warp::reject::not_found()) });
    warp::any().and_then(check).untuple_one()
}
