//! The configuration: read from the environment once, checked as a whole, typed ever after.
//!
//! No other module looks at the environment. All mistakes are reported together, so that a person mends them
//! in one go.

mod amqp_url;
mod api_keys;
mod console;
mod credentials;
mod jwks;
mod key_set;
mod keys;
mod networks;
mod reading;
#[cfg(test)]
mod tests;
mod tls;
mod values;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::{NodeId, NODE_ID_BYTES_MAX};
use crate::tls::Certificate;

pub use amqp_url::{check_together, AmqpUrl, Mechanism};
pub use api_keys::ApiKey;
pub use jwks::{parse_published, NamedKey};
pub use key_set::KeySet;
pub use keys::{markdown_table, Allowed, Key, KEYS, PREFIX};
pub use networks::TrustedProxies;
use reading::Reading;
pub use values::{
    Auth, EventKinds, HookKinds, Jwt, LogFormat, Origins, Prefix, PublicKey, QueueType, RateLimit, Routing,
    Secret, Tracing,
};

const PUBLIC_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9090;

/// Units and meanings are in [`KEYS`].
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Where browsers reach this node, without a slash at the end.
    pub public_url: Option<String>,
    /// Empty = standalone.
    pub amqp_urls: Vec<AmqpUrl>,
    pub prefix: Prefix,
    pub node_id: NodeId,
    pub routing: Routing,
    pub events: EventKinds,
    pub queue_type: QueueType,
    /// How many queues share what backends publish.
    pub ingress_partitions: u16,
    pub auth: Auth,
    pub api_keys: Vec<ApiKey>,
    /// The files that keys were read from.
    pub key_files: Vec<PathBuf>,
    /// Of the public listener; `None` = without TLS.
    pub tls: Option<Certificate>,
    pub origins: Origins,
    pub workers: usize,
    pub max_sessions: usize,
    /// Of one user, and of one address.
    pub sessions_per_user: usize,
    pub sessions_per_address: usize,
    /// For each worker.
    pub unauthenticated_max: usize,
    pub channels_per_session: usize,
    pub max_message_bytes: usize,
    pub outbox_bytes: usize,
    /// Sockets may be compressed, if their clients offer it.
    pub compression: bool,
    /// `None` = unlimited.
    pub message_rate: Option<RateLimit>,
    pub in_flight_per_session: usize,
    pub pending_max: usize,
    pub handshakes_max: usize,
    pub connections_per_address: usize,
    pub trusted_proxies: TrustedProxies,
    pub proxy_protocol: bool,
    /// Whether clients of SockJS may do without WebSockets.
    pub sockjs_over_http: bool,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    pub auth_timeout: Duration,
    pub header_timeout: Duration,
    pub receipt_timeout: Duration,
    pub ticket_ttl: Duration,
    pub hooks: HookKinds,
    pub hook_timeout: Duration,
    /// Zero = nothing is kept.
    pub hook_cache: Duration,
    pub drain: Duration,
    /// How many boxes hold the mail of all users.
    pub boxes: NonZeroU32,
    pub mailbox_ttl: Duration,
    pub mailbox_messages: usize,
    pub mailbox_bytes: usize,
    pub sender_mail: usize,
    pub sender_mail_rate: usize,
    /// A valid filter of tracing-subscriber.
    pub log: String,
    pub log_format: LogFormat,
    pub trace: Tracing,
}

/// All mistakes, each a sentence that names the variable. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    pub fn from_env() -> Result<Self, ConfigErrors> {
        let mut broken = Vec::new();
        let vars: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
                match value.into_string() {
                    Ok(value) => Some((name, value)),
                    Err(_) => {
                        broken.push(format!("{name} is not UTF-8"));
                        None
                    }
                }
            })
            .collect();
        match Self::from_vars(vars) {
            Ok(config) if broken.is_empty() => Ok(config),
            Ok(_) => Err(ConfigErrors(broken)),
            Err(ConfigErrors(mistakes)) => Err(ConfigErrors([broken, mistakes].concat())),
        }
    }

    /// From the given variables alone: for tests, and for whoever embeds a node. Files that `*_FILE` name are
    /// read.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        let mut from = Reading::new(vars);
        let auth = credentials::auth(&mut from);
        let config = Config {
            listen: listen(&mut from, "LISTEN", &auth, PUBLIC_PORT),
            admin_listen: listen(&mut from, "ADMIN_LISTEN", &auth, ADMIN_PORT),
            public_url: from.parsed("PUBLIC_URL", console::public_url),
            amqp_urls: amqp_urls(&mut from),
            prefix: from
                .parsed("PREFIX", Prefix::parse)
                .or_else(|| Prefix::parse("warren"))
                .ok_or_else(none)?,
            node_id: from
                .parsed("NODE_ID", |id| NodeId::new(id).ok())
                .or_else(fresh_node_id)
                .ok_or_else(none)?,
            routing: routing(&mut from),
            events: from.parsed("EVENTS", EventKinds::parse).unwrap_or_default(),
            queue_type: queue_type(&mut from),
            ingress_partitions: u16::try_from(from.number("INGRESS_PARTITIONS")).unwrap_or(1),
            api_keys: credentials::api_keys(&mut from, &auth),
            key_files: credentials::key_files(&mut from),
            tls: tls::listener(&mut from),
            auth,
            origins: origins(&mut from),
            workers: workers(&mut from),
            max_sessions: from.count("MAX_SESSIONS"),
            sessions_per_user: from.count("SESSIONS_PER_USER"),
            sessions_per_address: from.count("SESSIONS_PER_ADDRESS"),
            unauthenticated_max: from.count("UNAUTHENTICATED_MAX"),
            channels_per_session: from.count("CHANNELS_PER_SESSION"),
            max_message_bytes: from.count("MAX_MESSAGE_BYTES"),
            outbox_bytes: from.count("OUTBOX_BYTES"),
            compression: from.word("COMPRESSION") == Some("on"),
            message_rate: message_rate(&mut from),
            in_flight_per_session: from.count("IN_FLIGHT_PER_SESSION"),
            pending_max: from.count("PENDING_MAX"),
            handshakes_max: from.count("HANDSHAKES_MAX"),
            connections_per_address: from.count("CONNECTIONS_PER_ADDRESS"),
            trusted_proxies: from.parsed("TRUSTED_PROXIES", TrustedProxies::parse).unwrap_or_default(),
            proxy_protocol: from.word("PROXY_PROTOCOL") == Some("on"),
            sockjs_over_http: from.word("SOCKJS") == Some("all"),
            ping_interval: from.millis("PING_INTERVAL_MS"),
            pong_timeout: from.millis("PONG_TIMEOUT_MS"),
            auth_timeout: from.millis("AUTH_TIMEOUT_MS"),
            header_timeout: from.millis("HEADER_TIMEOUT_MS"),
            receipt_timeout: from.millis("RECEIPT_TIMEOUT_MS"),
            ticket_ttl: from.millis("TICKET_TTL_MS"),
            hooks: from.parsed("HOOKS", HookKinds::parse).unwrap_or_default(),
            hook_timeout: from.millis("HOOK_TIMEOUT_MS"),
            hook_cache: from.millis("HOOK_CACHE_MS"),
            drain: from.millis("DRAIN_MS"),
            boxes: boxes(&mut from),
            mailbox_ttl: from.millis("MAILBOX_TTL_MS"),
            mailbox_messages: from.count("MAILBOX_MESSAGES"),
            mailbox_bytes: from.count("MAILBOX_BYTES"),
            sender_mail: from.count("SENDER_MAIL"),
            sender_mail_rate: from.count("SENDER_MAIL_RATE"),
            log: log(&mut from),
            log_format: log_format(&mut from),
            trace: trace(&mut from),
        };
        config.check_together(&mut from);
        if from.mistakes.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors(from.mistakes))
        }
    }

    /// No broker, and so no other nodes.
    pub fn standalone(&self) -> bool {
        self.amqp_urls.is_empty()
    }

    pub fn insecure(&self) -> bool {
        matches!(self.auth, Auth::Insecure)
    }

    fn check_together(&self, from: &mut Reading) {
        if self.insecure() && !from.has("AUTH") && !self.listen.ip().is_loopback() {
            let listen = self.listen.to_string();
            from.mistake(
                "LISTEN",
                Some(&listen),
                "without WARREN_JWT_SECRET, WARREN_JWT_PUBLIC_KEY, WARREN_JWKS_FILE or WARREN_JWKS_URL only loopback is allowed; \
                 WARREN_AUTH=insecure lifts that, and lets everybody in",
            );
        }
        if self.listen == self.admin_listen && self.listen.port() != 0 {
            from.mistake("ADMIN_LISTEN", None, "must differ from WARREN_LISTEN");
        }
        if self.proxy_protocol && !from.has("TRUSTED_PROXIES") {
            from.mistake(
                "PROXY_PROTOCOL",
                Some("on"),
                "needs WARREN_TRUSTED_PROXIES: nobody else is believed",
            );
        }
        if self.ingress_partitions > 1 && self.queue_type == QueueType::Quorum {
            let why =
                "needs WARREN_QUEUE_TYPE=classic: partitions that are quorum queues are not tested enough";
            from.mistake("INGRESS_PARTITIONS", Some(&self.ingress_partitions.to_string()), why);
        }
        if self.outbox_bytes < self.max_message_bytes {
            let why = format!("must hold one message (WARREN_MAX_MESSAGE_BYTES={})", self.max_message_bytes);
            from.mistake("OUTBOX_BYTES", Some(&self.outbox_bytes.to_string()), why);
        }
        if self.mailbox_bytes < self.max_message_bytes {
            let why = format!("must hold one message (WARREN_MAX_MESSAGE_BYTES={})", self.max_message_bytes);
            from.mistake("MAILBOX_BYTES", Some(&self.mailbox_bytes.to_string()), why);
        }
    }
}

/// For what cannot fail: a default that is not valid.
fn none() -> ConfigErrors {
    ConfigErrors(vec!["a default is not valid".to_string()])
}

fn listen(from: &mut Reading, name: &str, auth: &Auth, port: u16) -> SocketAddr {
    let ip = match auth {
        Auth::Insecure => Ipv4Addr::LOCALHOST,
        Auth::Jwt(_) => Ipv4Addr::UNSPECIFIED,
    };
    from.parsed(name, |text| text.parse().ok()).unwrap_or_else(|| SocketAddr::from((ip, port)))
}

/// No mistake repeats any part of the list: what stands between two of its commas may be half a password.
fn amqp_urls(from: &mut Reading) -> Vec<AmqpUrl> {
    let list = from.text("AMQP_URL").unwrap_or_default();
    let texts: Vec<_> = list.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    let mut urls = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        match AmqpUrl::parse(text) {
            Ok(url) => urls.push(url),
            Err(why) if texts.len() == 1 => from.mistake("AMQP_URL", None, why),
            Err(why) => {
                let which = format!("URL {} of {}", at + 1, texts.len());
                from.mistake("AMQP_URL", None, format!("{which}: {why} (a comma in a password is %2C)"));
            }
        }
    }
    tls::brokers(from, &mut urls);
    if let Err(why) = check_together(&urls) {
        from.mistake("AMQP_URL", None, why);
    }
    urls
}

fn origins(from: &mut Reading) -> Origins {
    let list = from.text("ALLOWED_ORIGINS").unwrap_or_default();
    Origins::parse(&list).unwrap_or_else(|why| {
        from.mistake("ALLOWED_ORIGINS", None, why);
        Origins::SameHost
    })
}

fn routing(from: &mut Reading) -> Routing {
    if let Some(early @ "ring") = from.text("ROUTING").as_deref() {
        let why = "is a preview that has not passed the fault suite; use directory or broadcast, or say ring-preview";
        from.mistake("ROUTING", Some(early), why);
        return Routing::Directory;
    }
    from.word("ROUTING").and_then(Routing::parse).unwrap_or(Routing::Directory)
}

fn boxes(from: &mut Reading) -> NonZeroU32 {
    // The table has a minimum of 1.
    u32::try_from(from.number("BOXES")).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}

fn workers(from: &mut Reading) -> usize {
    match from.count("WORKERS") {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(64)),
        workers => workers,
    }
}

fn message_rate(from: &mut Reading) -> Option<RateLimit> {
    let narrow = |number: u64| NonZeroU32::new(u32::try_from(number).unwrap_or(u32::MAX));
    let (rate, burst) = (from.number("MESSAGE_RATE"), from.number("MESSAGE_BURST"));
    Some(RateLimit { per_second: narrow(rate)?, burst: narrow(burst)? })
}

fn queue_type(from: &mut Reading) -> QueueType {
    match from.word("QUEUE_TYPE") {
        Some("quorum") => QueueType::Quorum,
        _ => QueueType::Classic,
    }
}

fn log_format(from: &mut Reading) -> LogFormat {
    match from.word("LOG_FORMAT") {
        Some("json") => LogFormat::Json,
        _ => LogFormat::Text,
    }
}

fn trace(from: &mut Reading) -> Tracing {
    match from.word("TRACE") {
        Some("off") => Tracing::Off,
        Some("always") => Tracing::Always,
        _ => Tracing::Watched,
    }
}

fn log(from: &mut Reading) -> String {
    from.parsed("LOG", |filter| {
        tracing_subscriber::EnvFilter::try_new(filter).ok().map(|_| filter.to_string())
    })
    .unwrap_or_else(|| "info".to_string())
}

/// `<hostname>-<6 random>`, so that two nodes of one machine differ, and a restarted node from its former
/// self.
fn fresh_node_id() -> Option<NodeId> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var_os("HOSTNAME").and_then(|name| name.into_string().ok()))
        .unwrap_or_default();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let mut host: String = host.trim().chars().map(allowed).take(NODE_ID_BYTES_MAX - 7).collect();
    if host.is_empty() {
        host.push_str("node");
    }
    let random =
        (0..6).map(|_| char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[rand::random_range(0..36)]));
    NodeId::new(&format!("{host}-{}", random.collect::<String>())).ok()
}

/// Whether a test wants to see what a node does when one of its tasks panics. Not in release builds.
#[cfg(debug_assertions)]
pub fn test_panic() -> bool {
    std::env::var_os("WARREN_TEST_PANIC").is_some()
}
