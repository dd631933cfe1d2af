//! What every HTTP request may need, and what readiness is judged by.

use std::sync::Arc;

use tokio::sync::watch::Receiver;

use super::supervise::Failures;
use super::LOOPBACK_MAX;
use crate::auth::Verifier;
use crate::bus::{Link, TopologyState};
use crate::config::Config;
use crate::http::body::BodyBudget;
use crate::http::health::Health;
use crate::http::rates::UserRates;
use crate::http::slots::Slots;
use crate::http::AppState;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;
use crate::router::Router;

pub(super) fn app_state(
    config: &Config,
    router: &Arc<Router>,
    verifier: Arc<Verifier>,
    link: Receiver<Link>,
    failures: Failures,
) -> Arc<AppState> {
    let lifecycle = Lifecycle::new();
    Arc::new(AppState {
        router: router.clone(),
        verifier,
        health: health(&lifecycle, router, link, failures),
        lifecycle,
        metrics: Arc::new(Metrics::new()),
        rates: UserRates::new(config.message_rate),
        bodies: BodyBudget::default(),
        unauthenticated: Slots::new(config.handshakes_max, config.connections_per_address),
        max_sessions: config.max_sessions,
        max_message_bytes: config.max_message_bytes,
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
