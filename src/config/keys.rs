//! The table of configuration keys: the one source of defaults, ranges and of the table in the documents.

use std::fmt::Write;

/// What every variable of ours starts with.
pub const PREFIX: &str = "WARREN_";

/// What a key's value may be, and what it is when it is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    Number {
        default: u64,
        min: u64,
        max: u64,
    },
    /// One of a few words.
    Word {
        default: &'static str,
        words: &'static [&'static str],
    },
    Text {
        default: &'static str,
        form: &'static str,
    },
    /// As `Text`, but never shown: neither in an error nor in a log.
    Secret {
        form: &'static str,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Without the prefix `WARREN_`.
    pub name: &'static str,
    pub allowed: Allowed,
    /// Empty for texts.
    pub unit: &'static str,
    pub meaning: &'static str,
}

impl Key {
    pub fn default(&self) -> String {
        match self.allowed {
            Allowed::Number { default, .. } => default.to_string(),
            Allowed::Word { default, .. } | Allowed::Text { default, .. } => default.to_string(),
            Allowed::Secret { .. } => String::new(),
        }
    }

    pub fn range(&self) -> String {
        match self.allowed {
            Allowed::Number { min, max, .. } => format!("{min}..{max}"),
            Allowed::Word { words, .. } => words.join(", "),
            Allowed::Text { form, .. } | Allowed::Secret { form } => form.to_string(),
        }
    }
}

const fn number(
    name: &'static str,
    [default, min, max]: [u64; 3],
    unit: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, allowed: Allowed::Number { default, min, max }, unit, meaning }
}

const fn word(
    name: &'static str,
    default: &'static str,
    words: &'static [&'static str],
    meaning: &'static str,
) -> Key {
    Key { name, allowed: Allowed::Word { default, words }, unit: "", meaning }
}

const fn text(name: &'static str, default: &'static str, form: &'static str, meaning: &'static str) -> Key {
    Key { name, allowed: Allowed::Text { default, form }, unit: "", meaning }
}

const fn secret(name: &'static str, form: &'static str, meaning: &'static str) -> Key {
    Key { name, allowed: Allowed::Secret { form }, unit: "", meaning }
}

/// An empty value counts as not given.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    // where
    text("LISTEN", "0.0.0.0:8080 with a JWT key, else 127.0.0.1:8080", "ip:port", "the public listener: `/ws` and `/v1`"),
    text("ADMIN_LISTEN", "0.0.0.0:9090 with a JWT key, else 127.0.0.1:9090", "ip:port", "the listener for `/livez`, `/readyz`, `/metrics`, the console (`/`) and its `/v1`; not for the internet"),
    text("PUBLIC_URL", "", "http(s)://host[:port][/path]", "where browsers reach this very node; the console opens its clients there"),
    secret("AMQP_URL", "comma-separated amqp:// or amqps:// URLs", "RabbitMQ; several URLs, of one user and vhost, are tried in turn; absent = standalone, without a broker and without other nodes"),
    text("AMQP_CA_FILE", "", "path", "the PEM of the authorities that brokers of `amqps://` are checked by, instead of those of the machine; this and the next two are read for each connection"),
    text("AMQP_CERT_FILE", "", "path", "the PEM of the certificate chain that brokers are shown; with `?auth_mechanism=external` in the URL it takes the place of a password"),
    text("AMQP_KEY_FILE", "", "path", "the PEM of its key"),
    text("PREFIX", "warren", "1 to 32 of a-z 0-9 - _ .", "what the names of all exchanges and queues start with"),
    text("NODE_ID", "<hostname>-<6 random characters>", "1 to 64 of A-Z a-z 0-9 - _ .", "the name of this node; unique in the cluster"),
    word("SOCKJS", "websocket", &["websocket", "all"], "what clients of SockJS may use ([docs/sockjs.md](docs/sockjs.md)); `all` adds the transports over HTTP, which need a balancer that keeps a session at one node"),
    text("EVENTS", "none", "none, or a list of users, sessions, channels", "what backends are told of, over the exchange `warren.events` ([docs/events.md](docs/events.md)); the same on all nodes"),
    word("ROUTING", "directory", &["directory", "broadcast", "ring-preview"], "how a node finds a user's sessions ([docs/routing.md](docs/routing.md)); the same on all nodes; `ring-preview` is not for production"),
    word("QUEUE_TYPE", "classic", &["classic", "quorum"], "the type of the durable ingress queue; `quorum` on a broker cluster; mailboxes are always classic"),
    number("INGRESS_PARTITIONS", [1, 1, 32], "queues", "that share what backends publish by AMQP, and are shared by the nodes; more than 1 needs the broker's plugin `rabbitmq_consistent_hash_exchange` and classic queues; the same on all nodes ([docs/ingress.md](docs/ingress.md))"),
    // who
    word("AUTH", "jwt with a key, else insecure", &["jwt", "insecure"], "`insecure` believes every client; it must be said explicitly to listen beyond loopback"),
    secret("JWT_SECRET", "at least 32 bytes", "the key of HS256 tokens"),
    text("JWT_SECRET_FILE", "", "path", "a file with that key; files with keys are read again on SIGHUP, and within 10 s after they change"),
    text("JWT_PUBLIC_KEY", "", "PEM: RSA of 2048 bits or more, P-256 or Ed25519", "the key of RS256, ES256 or EdDSA tokens; line ends may be written `\\n`"),
    text("JWT_PUBLIC_KEY_FILE", "", "path", "a file with that key"),
    text("JWKS_FILE", "", "path", "a JWK Set (RFC 7517) with the keys of tokens that name one in `kid`: RSA, P-256, Ed25519 or secrets; several at once allow to change them"),
    text("JWKS_URL", "", "https://…", "where such a set is published, by an identity provider for example; keys of other kinds, and secrets, are passed over. Until it has come once a node is not ready; tokens never have it asked for"),
    text("JWKS_CA_FILE", "", "path", "the PEM of the authorities that alone are trusted for that URL; without it those of the machine"),
    number("JWKS_REFRESH_MS", [300_000, 1_000, 86_400_000], "ms", "how often it is asked for again; after a failure at once, then less and less often, up to every 30 s"),
    text("JWT_ISSUER", "", "text", "when given, tokens must have this `iss`"),
    text("JWT_AUDIENCE", "", "text", "when given, tokens must have this `aud`; when not, tokens with an `aud` are refused (RFC 7519 section 4.1.3)"),
    secret("API_KEYS", "comma-separated key or name=key, each key at least 16 characters", "keys of backend services for `/v1`; the name (`api` without one) is the sender that receivers see, and message ids are scoped by it; two keys of one name allow to change them"),
    text("API_KEYS_FILE", "", "path", "a file with those keys, separated by commas or line ends"),
    text("ALLOWED_ORIGINS", "", "comma-separated scheme://host[:port], or *", "the `Origin` that browsers may come with; empty = it must be the host that the request is for, with the scheme that the client used"),
    text("TRUSTED_PROXIES", "", "comma-separated addresses or networks, e.g. 10.0.0.0/8", "the proxies whose `Forwarded` or `X-Forwarded-For` and `X-Forwarded-Proto` are believed; behind a proxy that ends TLS this or `WARREN_ALLOWED_ORIGINS` must be set"),
    word("PROXY_PROTOCOL", "off", &["off", "on"], "`on`: public connections of trusted proxies begin with a header of the PROXY protocol, version 1 or 2, and others are cut"),
    text("TLS_CERT_FILE", "", "path", "the PEM of the chain that the public listener shows, its own certificate first; with it the listener speaks TLS 1.2 and 1.3 and nothing else; read again as keys are. The admin listener has no TLS"),
    text("TLS_KEY_FILE", "", "path", "the PEM of its key, without a passphrase"),
    text("HOOKS", "none", "none, or a list of connect, publish, subscribe", "what users may do only if a backend allows it, which is asked as `app.hook.connect` and so on ([docs/hooks.md](docs/hooks.md)); the same on all nodes"),
    // how much
    number("WORKERS", [0, 0, 64], "threads", "threads that serve sockets; 0 = one for each core"),
    number("MAX_SESSIONS", [100_000, 1, 10_000_000], "sessions", "of this node; more are refused with 503"),
    number("SESSIONS_PER_USER", [100, 1, 10_000_000], "sessions", "of one user on one node; more are refused with 429, or closed with 4100 after their `auth` frame"),
    number("SESSIONS_PER_ADDRESS", [20_000, 1, 10_000_000], "sessions", "of one client address (IPv6: of one /64) on one node; more are refused with 429"),
    number("UNAUTHENTICATED_MAX", [2048, 1, 65_536], "sessions", "of one thread that have not sent their `auth` frame; more are closed with 4100"),
    number("CHANNELS_PER_SESSION", [128, 1, 65_536], "channels", "that one session may subscribe to"),
    number("MAX_MESSAGE_BYTES", [65_536, 1024, 1_048_576], "bytes", "longest frame or HTTP body of a publisher"),
    number("OUTBOX_BYTES", [262_144, 1024, 67_108_864], "bytes", "queued for a socket that does not read; more closes it with 4102"),
    word("COMPRESSION", "off", &["off", "on"], "`on`: messages of 256 bytes and more to clients that offer permessage-deflate (RFC 7692) are compressed, and theirs are taken compressed; it costs processor time and saves bytes ([docs/protocol.md](docs/protocol.md#compression))"),
    number("MESSAGE_RATE", [100, 0, 1_000_000], "1/s", "requests of one user on one node, through sockets and HTTP together, and of one session; 0 = unlimited"),
    number("MESSAGE_BURST", [200, 1, 1_000_000], "publishes", "how many may come at once"),
    number("IN_FLIGHT_PER_SESSION", [256, 1, 65_536], "publishes", "not yet settled, of one session"),
    number("PENDING_MAX", [65_536, 1, 4_194_304], "messages", "not yet settled, on this node"),
    number("HANDSHAKES_MAX", [2048, 1, 65_536], "connections", "handshakes at once, and as many other HTTP connections; a newcomer takes the slot of the longest idle one"),
    number("CONNECTIONS_PER_ADDRESS", [1024, 1, 65_536], "connections", "HTTP connections that are not sessions, of one client address (IPv6: of one /64); a newcomer takes the slot of the longest idle one"),
    // how long
    number("PING_INTERVAL_MS", [25_000, 100, 300_000], "ms", "between pings to a client"),
    number("PONG_TIMEOUT_MS", [10_000, 50, 300_000], "ms", "no answer to a ping by then closes with 4104"),
    number("AUTH_TIMEOUT_MS", [5_000, 100, 60_000], "ms", "from the handshake to the `auth` frame"),
    number("HEADER_TIMEOUT_MS", [5_000, 100, 60_000], "ms", "to send the head of a request, and as long again for its body"),
    number("HOOK_TIMEOUT_MS", [2_000, 100, 10_000], "ms", "for the application to decide; what it does not decide is refused with `unavailable`"),
    number("HOOK_CACHE_MS", [10_000, 0, 3_600_000], "ms", "how long a decision of the application counts; 0 = it is asked each time"),
    number("TICKET_TTL_MS", [30_000, 1_000, 300_000], "ms", "to open a session with a ticket of `POST /v1/tickets`"),
    number("RECEIPT_TIMEOUT_MS", [2_500, 100, 3_500], "ms", "how long a node may give no sign of a message before it is tried elsewhere, and then stored"),
    number("DRAIN_MS", [20_000, 0, 600_000], "ms", "from SIGTERM to the end, spent on moving clients to other nodes"),
    // mail of users who are away
    number("BOXES", [1024, 1, 16_384], "queues", "that hold the mail of all users who are away, each made on first need; the same on all nodes"),
    number("MAILBOX_TTL_MS", [604_800_000, 1000, 2_592_000_000], "ms", "how long a message waits for an absent user"),
    number("MAILBOX_MESSAGES", [10_000, 1, 1_000_000], "messages", "waiting for one user; more are refused as `mailbox_full`"),
    number("MAILBOX_BYTES", [16_777_216, 1024, 1_073_741_824], "bytes", "the same, as the sum of the messages"),
    number("SENDER_MAIL", [10_000, 1, 1_000_000], "messages", "from one user waiting for any users, of the last one to two days; more are refused as `rate_limited`"),
    number("SENDER_MAIL_RATE", [20, 1, 100_000], "messages per second", "from one user to users who are away, at each node; ten times as many at once"),
    // logs
    text("LOG", "info", "a tracing filter, e.g. info,warren::bus=debug", "what is logged"),
    word("LOG_FORMAT", "text", &["text", "json"], "how a line of the log looks"),
    word("TRACE", "watched", &["off", "watched", "always"], "when the node keeps what becomes of the latest messages (`warren trace`); `watched` = for 15 s after a console or a trace asked"),
];

/// The table of `docs/configuration.md`. Links to documents are from the root of the project.
pub fn markdown_table() -> String {
    let mut out = String::from("| variable | default | unit | allowed | meaning |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let default = match key.default() {
            none if none.is_empty() => none,
            some => format!("`{some}`"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| `{PREFIX}{}` | {default} | {} | {} | {} |",
            key.name,
            key.unit,
            key.range(),
            key.meaning
        );
    }
    out
}

/// The known name that a mistyped one probably means. Both without the prefix.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let unknown = unknown.to_ascii_uppercase();
    KEYS.iter()
        .map(|key| (edits(&unknown, key.name), key.name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(2))
        .map(|(_, name)| name)
}

/// Levenshtein distance: inserted, removed and replaced bytes.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_defaults_are_in_range() {
        let mut seen = std::collections::HashSet::new();
        for key in KEYS {
            assert!(seen.insert(key.name), "{} twice", key.name);
            if let Allowed::Number { default, min, max } = key.allowed {
                assert!((min..=max).contains(&default), "{}", key.name);
                assert!(!key.unit.is_empty(), "{}", key.name);
            }
        }
        assert_eq!(markdown_table().lines().count(), KEYS.len() + 2);
    }

    #[test]
    fn the_nearest_name_is_a_near_one() {
        assert_eq!(nearest("LISTN"), Some("LISTEN"));
        assert_eq!(nearest("JWT_SECERT"), Some("JWT_SECRET"));
        assert_eq!(nearest("max_sessions"), Some("MAX_SESSIONS"));
        assert_eq!(nearest("SOMETHING_ELSE_ALTOGETHER"), None);
    }
}
