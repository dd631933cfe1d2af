//! What parts of the node are told of the configuration: whom listeners serve, and how much mail may wait.

use crate::config::{Config, Origins};
use crate::http::addresses::Listener;
use crate::http::guard::Guard;
use crate::mail::index::MailLimits;

/// In insecure mode everybody is believed for being on this machine, if only it can connect.
pub(super) fn public_guard(config: &Config) -> Guard {
    Guard {
        listener: Listener::Public,
        origins: config.origins.clone(),
        trusted: config.trusted_proxies.clone(),
        proxy_protocol: config.proxy_protocol,
        loopback_only: config.insecure() && config.listen.ip().is_loopback(),
        console: config.console_is_public(),
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
