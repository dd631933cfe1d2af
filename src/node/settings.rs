//! What parts of the node are told of the configuration: whom listeners serve, how much mail may wait, what sessions may do.

use crate::config::{Config, Origins};
use crate::http::addresses::Listener;
use crate::http::guard::Guard;
use crate::http::AppState;
use crate::mail::index::MailLimits;
use crate::router::hooks::HookSettings;
use crate::router::RouterSettings;
use crate::session::SessionSettings;

/// In insecure mode everybody is believed for being on this machine, if only it can connect.
pub(super) fn public_guard(config: &Config) -> Guard {
    Guard {
        listener: Listener::Public,
        origins: config.origins.clone(),
        trusted: config.trusted_proxies.clone(),
        proxy_protocol: config.proxy_protocol,
        loopback_only: config.insecure() && config.listen.ip().is_loopback(),
        console: config.console_is_public(),
        sockjs_over_http: config.sockjs_over_http,
    }
}

/// Only the console's own page uses the API here.
pub(super) fn admin_guard(config: &Config) -> Guard {
    Guard {
        listener: Listener::Admin,
        origins: Origins::SameHost,
        trusted: config.trusted_proxies.clone(),
        proxy_protocol: false,
        loopback_only: config.insecure() && config.admin_listen.ip().is_loopback(),
        console: config.console_is_for_operators(),
        sockjs_over_http: false,
    }
}

/// A sender that was at rest may store the mail of so many seconds at once.
const SENDER_BURST_SECONDS: u32 = 10;

pub(super) fn mail_limits(config: &Config) -> MailLimits {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let sender_rate = count(config.sender_mail_rate);
    MailLimits {
        messages: count(config.mailbox_messages),
        bytes: config.mailbox_bytes as u64,
        sender_messages: count(config.sender_mail),
        sender_rate,
        sender_burst: sender_rate.saturating_mul(SENDER_BURST_SECONDS),
    }
}

pub(super) fn router_settings(config: &Config) -> RouterSettings {
    RouterSettings {
        node: config.node_id.clone(),
        routing: config.routing,
        events: config.events,
        pending_max: config.pending_max,
        receipt_timeout: config.receipt_timeout,
        ticket_ttl: config.ticket_ttl,
        hooks: HookSettings { kinds: config.hooks, timeout: config.hook_timeout, cache: config.hook_cache },
    }
}

pub(super) fn session_settings(config: &Config, state: &AppState) -> SessionSettings {
    SessionSettings {
        verifier: state.verifier.clone(),
        metrics: state.metrics.clone(),
        sessions_max: state.max_sessions,
        sessions_per_user: state.sessions_per_user,
        unauthenticated_max: config.unauthenticated_max,
        channels_max: config.channels_per_session,
        message_bytes_max: u32::try_from(config.max_message_bytes).unwrap_or(u32::MAX),
        outbox_bytes_max: config.outbox_bytes,
        publish_rate: config.message_rate,
        rates: state.rates.clone(),
        bad_tokens: state.bad_tokens.clone(),
        pending_max: config.pending_max,
        in_flight_max: u32::try_from(config.in_flight_per_session).unwrap_or(u32::MAX),
        ping_interval: config.ping_interval,
        pong_timeout: config.pong_timeout,
        auth_timeout: config.auth_timeout,
    }
}
