//! What every HTTP request may need, and what readiness is judged by.

use std::sync::Arc;

use tokio::sync::watch::Receiver;

use super::supervise::Failures;
use super::LOOPBACK_MAX;
use crate::auth::Verifier;
use crate::budgets::{Pace, Rates, Shares};
use crate::bus::{Link, TopologyState};
use crate::config::Config;
use crate::http::body::BodyBudget;
use crate::http::health::Health;
use crate::http::slots::Slots;
use crate::http::sockjs::Fallbacks;
use crate::http::AppState;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;
use crate::router::Router;

/// Users whose budget is not full. Overflow policy: further users are refused as `rate_limited`.
const SENDERS_MAX: usize = 1 << 20;

/// Of one address: 5 a second, 50 at once.
const BAD_TOKENS: Pace = Pace::new(200_000_000, 50);
/// Addresses that came with bad tokens lately. Overflow policy: further ones are told `rate_limited`.
const ADDRESSES_MAX: usize = 1 << 16;

pub(super) fn app_state(
    config: &Config,
    router: &Arc<Router>,
    verifier: Arc<Verifier>,
    metrics: Arc<Metrics>,
    link: Receiver<Link>,
    failures: Failures,
) -> Arc<AppState> {
    let lifecycle = Lifecycle::new();
    let known = verifier.clone();
    Arc::new(AppState {
        router: router.clone(),
        verifier,
        // The keys of tokens are here, if they are published elsewhere.
        health: health(&lifecycle, router, link, failures).check("keys", move || known.has_keys()),
        lifecycle,
        metrics,
        rates: Arc::new(Rates::new(config.message_rate.map(Pace::from), SENDERS_MAX)),
        bad_tokens: Arc::new(Rates::new(Some(BAD_TOKENS), ADDRESSES_MAX)),
        sessions_by_address: Shares::new(config.sessions_per_address),
        bodies: BodyBudget::default(),
        unauthenticated: Slots::new(config.handshakes_max, config.connections_per_address),
        fallbacks: (config.sockjs_over_http)
            .then(|| Fallbacks::new(config.max_sessions, config.sessions_per_address)),
        max_sessions: config.max_sessions,
        sessions_per_user: config.sessions_per_user,
        max_message_bytes: config.max_message_bytes,
        compression: config.compression,
        body_timeout: config.header_timeout,
    })
}

/// What readiness is judged by; each check stands in the body of `/readyz`.
fn health(lifecycle: &Lifecycle, router: &Arc<Router>, link: Receiver<Link>, failures: Failures) -> Health {
    let (lifecycle, router) = (lifecycle.clone(), router.clone());
    let (usable, declared) = (link.clone(), link.clone());
    Health::new(link)
        // Taking new sessions.
        .check("accepting", move || lifecycle.phase() == Phase::Serving)
        // Connected to the broker, and able to publish.
        .check("link", move || usable.borrow().ready())
        // What the node declared at the broker is all there, and no policy breaks a promise; else the log says what.
        .check("topology", move || declared.borrow().topology == TopologyState::Whole)
        // A message to itself came back through the broker lately.
        .check("loopback", move || {
            router.directory().control_seen_ago().is_some_and(|ago| ago <= LOOPBACK_MAX)
        })
        // No part of the node has failed.
        .check("tasks", move || !failures.is_failed())
}
