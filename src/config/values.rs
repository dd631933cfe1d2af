//! The types of configuration values that are more than a number or a text.

use std::fmt;
use std::num::NonZeroU32;

use jsonwebtoken::{Algorithm, DecodingKey};

use super::jwks::NamedKey;
use super::key_set::KeySet;

/// A text that no log and no error ever shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What the names of all exchanges and queues start with: 1 to 32 of `[a-z0-9-_.]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        ((1..=32).contains(&text.len()) && text.bytes().all(allowed)).then(|| Self(text.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Of what backends are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventKinds {
    pub sessions: bool,
    pub users: bool,
    pub channels: bool,
}

impl EventKinds {
    pub fn parse(text: &str) -> Option<Self> {
        let mut kinds = Self::default();
        if text == "none" {
            return Some(kinds);
        }
        for kind in text.split(',') {
            match kind.trim() {
                "sessions" => kinds.sessions = true,
                "users" => kinds.users = true,
                "channels" => kinds.channels = true,
                _ => return None,
            }
        }
        Some(kinds)
    }

    /// Whether it matters who is online or which channels are occupied in the cluster.
    pub fn are_of_cluster(self) -> bool {
        self.users || self.channels
    }

    pub fn are_any(self) -> bool {
        self != Self::default()
    }
}

/// What the application is asked about before it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HookKinds {
    pub connect: bool,
    pub publish: bool,
    pub subscribe: bool,
}

impl HookKinds {
    pub fn parse(text: &str) -> Option<Self> {
        let mut kinds = Self::default();
        if text == "none" {
            return Some(kinds);
        }
        for kind in text.split(',') {
            match kind.trim() {
                "connect" => kinds.connect = true,
                "publish" => kinds.publish = true,
                "subscribe" => kinds.subscribe = true,
                _ => return None,
            }
        }
        Some(kinds)
    }
}

/// How clients prove who they are.
#[derive(Debug, Clone)]
pub enum Auth {
    /// They do not: everybody is who they say. For development.
    Insecure,
    Jwt(Jwt),
}

#[derive(Debug, Clone)]
pub struct Jwt {
    /// Of HS256 tokens without a known `kid`. At least one of the four kinds is there.
    pub secret: Option<Secret>,
    pub public_key: Option<PublicKey>,
    /// Of tokens that name one of them.
    pub named_keys: Vec<NamedKey>,
    /// Where further named keys are published.
    pub key_set: Option<Box<KeySet>>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
}

/// A key together with the one algorithm that it may be used with (RFC 8725 section 3.1).
#[derive(Debug, Clone)]
pub struct PublicKey {
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

impl PublicKey {
    /// Recognises RSA (RS256), P-256 (ES256) and Ed25519 (EdDSA).
    pub fn parse(pem: &str) -> Result<Self, &'static str> {
        if pem.contains("PRIVATE KEY") {
            return Err("this is a private key; a gateway needs, and should have, only the public one");
        }
        if !pem.contains("PUBLIC KEY") {
            return Err("this is not a public key in PEM");
        }
        // DER of the modulus alone takes 256 bytes at 2048 bits; verification refuses shorter keys later.
        let long_enough = |key: &DecodingKey| key.try_get_as_bytes().is_ok_and(|der| der.len() > 256);
        if let Ok(key) = DecodingKey::from_ed_pem(pem.as_bytes()) {
            // An Ed448 key is longer, and not supported.
            if key.try_get_as_bytes().is_ok_and(|raw| raw.len() == 32) {
                return Ok(Self { algorithm: Algorithm::EdDSA, key });
            }
        } else if let Ok(key) = DecodingKey::from_ec_pem(pem.as_bytes()) {
            // An uncompressed point: P-384 and P-521 are longer.
            if key.try_get_as_bytes().is_ok_and(|point| point.len() == 65) {
                return Ok(Self { algorithm: Algorithm::ES256, key });
            }
        } else if let Ok(key) = DecodingKey::from_rsa_pem(pem.as_bytes()) {
            if long_enough(&key) {
                return Ok(Self { algorithm: Algorithm::RS256, key });
            }
            return Err("this RSA key has less than 2048 bits");
        }
        Err("this key is neither RSA, P-256 nor Ed25519")
    }
}

/// Which web pages may open a socket (RFC 6455 section 10.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Pages from the host that the request is for.
    SameHost,
    /// Pages from anywhere.
    Any,
    /// Pages from exactly these origins, written as browsers do.
    Listed(Vec<String>),
}

impl Origins {
    /// Whether a request with these `Origin` and `Host` headers may pass, which came by `scheme`: a page that came
    /// over http may have been changed on its way, and must not act for the same host over https. A request
    /// without an `Origin` does not come from a page, and is not asked here.
    pub fn allow(&self, origin: &str, scheme: &str, host: Option<&str>) -> bool {
        match self {
            Origins::Any => true,
            Origins::Listed(list) => list.iter().any(|listed| listed == origin),
            Origins::SameHost => host.is_some_and(|host| {
                origin.split_once("://").is_some_and(|(of_page, authority)| {
                    let host = host.to_ascii_lowercase();
                    of_page == scheme
                        && !authority.is_empty()
                        && authority == without_default_port(scheme, &host)
                })
            }),
        }
    }

    pub(super) fn parse(list: &str) -> Result<Self, String> {
        if list.trim() == "*" {
            return Ok(Origins::Any);
        }
        let listed: Result<Vec<_>, _> =
            list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(origin).collect();
        listed.map(|listed| if listed.is_empty() { Origins::SameHost } else { Origins::Listed(listed) })
    }
}

/// One entry of the list in the form in which browsers send it (RFC 6454 section 6.2): lower case, and
/// without a port that the scheme implies.
fn origin(entry: &str) -> Result<String, String> {
    let entry = entry.to_ascii_lowercase();
    let refuse = || format!("{entry:?} is not scheme://host[:port]");
    let (scheme, authority) = entry.split_once("://").ok_or_else(refuse)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    let form = !scheme.is_empty()
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !authority.is_empty()
        && !authority.starts_with(':')
        && authority.chars().all(plain);
    if !form {
        return Err(refuse());
    }
    Ok(format!("{scheme}://{}", without_default_port(scheme, authority)))
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return authority,
    };
    authority.strip_suffix(port).unwrap_or(authority)
}

/// How a node finds the sessions of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// Every node knows which nodes hold the user.
    Directory,
    /// Every node is asked.
    Broadcast,
    /// One node, the user's home on a hash ring, knows which nodes hold the user. A preview: the fault suite has not been
    /// passed with it, so that its name has to be said in full.
    Ring,
}

impl Routing {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Directory, Self::Broadcast, Self::Ring].into_iter().find(|routing| routing.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Broadcast => "broadcast",
            Self::Ring => "ring-preview",
        }
    }

    /// What a node tells the others, who must say the same. The number changes when nodes of two releases would not
    /// understand each other although the name is the same.
    pub fn dialect(self) -> &'static str {
        match self {
            Self::Directory => "directory/1",
            Self::Broadcast => "broadcast/1",
            Self::Ring => "ring/1",
        }
    }
}

/// When a node keeps what becomes of messages, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracing {
    Off,
    /// While an operator looks.
    Watched,
    Always,
}

/// The type of the durable ingress queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    Classic,
    Quorum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A token bucket for the publishes of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("canary")), "***");
    }

    #[test]
    fn origins_match_exactly() {
        let listed = Origins::parse("https://app.example.com:443, http://LOCALHOST:3000").unwrap();
        for good in ["https://app.example.com", "http://localhost:3000"] {
            assert!(listed.allow(good, "http", None), "{good}");
        }
        for bad in [
            "null",
            "",
            "https://app.example.com.evil.com",
            "https://evilapp.example.com",
            "https://app.example.com.",
            "https://app.example.com:8443",
            "http://app.example.com",
            "HTTPS://APP.EXAMPLE.COM",
            "https://app.example.com/",
            "https://app.example.com, http://localhost:3000",
        ] {
            assert!(!listed.allow(bad, "https", Some("app.example.com")), "{bad}");
        }
        assert_eq!(Origins::parse("").unwrap(), Origins::SameHost);
        assert!(Origins::Any.allow("null", "http", None));
        for bad in ["example.com", "https://", "https://a/b", "https://:1", "*, https://a", "https://u@a"] {
            assert!(Origins::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_host_is_compared_with_its_port() {
        for (origin, scheme, host, allowed) in [
            ("http://localhost:8080", "http", "localhost:8080", true),
            ("https://app.example.com", "https", "App.Example.com:443", true),
            ("https://app.example.com", "https", "app.example.com", true),
            ("http://app.example.com", "https", "app.example.com", false),
            ("https://app.example.com", "http", "app.example.com", false),
            ("https://app.example.com", "https", "app.example.com:8080", false),
            ("https://evil.com", "https", "app.example.com", false),
            ("null", "http", "app.example.com", false),
            ("https://", "https", "", false),
        ] {
            assert_eq!(Origins::SameHost.allow(origin, scheme, Some(host)), allowed, "{origin} {host}");
        }
        assert!(!Origins::SameHost.allow("https://a", "https", None));
    }
}
