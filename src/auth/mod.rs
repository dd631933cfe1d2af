//! Credentials: turns a token or an API key into who somebody is and what they may do.
//!
//! The rules are those of RFC 8725 (JSON Web Token best current practices): an algorithm belongs to a key and
//! is never the token's choice (3.1), every key comes from the configuration and none from a token's header
//! (3.10), `exp` and `sub` must be there, issuer and audience are checked when configured (3.8, 3.9), and a
//! token has a longest size.

mod caps;
mod keys;
mod revocations;
#[cfg(test)]
mod tests;
mod tickets;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::{encode, get_current_timestamp, Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};

use crate::config::{Auth, Config, NamedKey};
use crate::ids::{ChannelName, UserId};
use crate::protocol::target::Target;

pub use caps::{Cap, Caps};
use keys::Keys;
pub use keys::SelfTestFailed;
pub use revocations::{Full, Revocation, Revocations, Revoked};
pub use tickets::{NotIssued, Ticket, TicketSecret, Tickets};

/// Longest token or API key, in bytes: the parser never sees more from a stranger.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// The service that callers are in insecure mode.
const INSECURE_SERVICE: &str = "api";
/// Longest `jti`, in bytes: revocations name them.
pub const JTI_BYTES_MAX: usize = 128;
/// The end of the year 9999. Later expiry times are mistakes, and would overflow sums of times.
const EXPIRY_UNIX_S_MAX: u64 = 253_402_300_799;

/// Why credentials were refused. What it displays is fit for a stranger; [`AuthError::reason`] is for our
/// log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no credentials")]
    Missing,
    /// Told only to whoever has a genuine token.
    #[error("token expired")]
    Expired,
    /// The same.
    #[error("token revoked")]
    Revoked,
    #[error("invalid credentials")]
    Invalid(&'static str),
    /// The keys that tokens are signed with have not come yet from where they are published.
    #[error("this node has no keys for tokens yet; try again")]
    NoKeysYet,
}

impl AuthError {
    /// From a short, fixed list: also fit for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            AuthError::Missing => "missing",
            AuthError::Expired => "expired",
            AuthError::Revoked => "revoked",
            AuthError::Invalid(reason) => reason,
            AuthError::NoKeysYet => "no_keys_yet",
        }
    }
}

/// Who holds a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub user: UserId,
    /// When the session must have a new token; the allowance for clocks that differ is in it. `None` = never.
    pub expires_unix_s: Option<u64>,
    /// The claim `iat`; 0 = the token does not say.
    pub issued_unix_s: u64,
    /// The claim `jti`.
    pub jti: Option<Arc<str>>,
    pub caps: Caps,
    /// The claim `channels`: the holder's sessions subscribe to them at connect, whatever the capabilities say.
    pub channels: Arc<[ChannelName]>,
}

impl Identity {
    pub fn may_subscribe(&self, channel: &ChannelName) -> bool {
        self.channels.contains(channel) || self.caps.may_subscribe(channel)
    }
}

/// Who calls the HTTP API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A backend with an API key of this name.
    Service(Arc<str>),
    /// The holder of a user's token.
    User(Identity),
}

impl Caller {
    /// Whether all of the API is open; if not, only publishing is, as that user.
    pub fn api(&self) -> bool {
        match self {
            Caller::Service(_) => true,
            Caller::User(identity) => identity.caps.api(),
        }
    }

    pub fn may_publish(&self, to: &Target) -> bool {
        match self {
            Caller::Service(_) => true,
            Caller::User(identity) => identity.caps.api() || identity.caps.may_publish(to),
        }
    }
}

/// The fields of [`Keys`] are not shown: they are secrets.
pub struct Verifier {
    /// `None`: everybody is who they say, and the token is the user id. Locked for as long as it takes to copy or to
    /// replace the pointer.
    keys: Option<RwLock<Arc<Keys>>>,
    /// Held while other keys are made, which take the place of `keys` then: of two changes at once none is undone.
    changing: Mutex<()>,
    revocations: Arc<Revocations>,
}

impl Verifier {
    pub fn new(config: &Config) -> Result<Self, SelfTestFailed> {
        let keys = match &config.auth {
            Auth::Insecure => None,
            Auth::Jwt(jwt) => Some(RwLock::new(Arc::new(Keys::new(jwt, &config.api_keys, None)?))),
        };
        Ok(Self { keys, changing: Mutex::default(), revocations: Arc::default() })
    }

    /// Takes the keys of another configuration from now on. Who is connected stays so: a session ends with its token.
    /// Whether tokens are checked at all does not change.
    pub fn replace_keys(&self, config: &Config) -> Result<(), SelfTestFailed> {
        let Auth::Jwt(jwt) = &config.auth else { return Ok(()) };
        self.change(|former| Keys::new(jwt, &config.api_keys, former.published()))
    }

    /// Takes the keys that the URL of the configuration holds now, in place of those that it held before.
    pub fn take_published(&self, published: Vec<NamedKey>) -> Result<(), SelfTestFailed> {
        self.change(|former| former.with_published(published))
    }

    fn change(&self, to: impl FnOnce(&Keys) -> Result<Keys, SelfTestFailed>) -> Result<(), SelfTestFailed> {
        let Some(current) = &self.keys else { return Ok(()) };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let former = current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let keys = Arc::new(to(&former)?);
        *current.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Whether every key that the configuration speaks of is here.
    pub fn has_keys(&self) -> bool {
        self.keys().is_none_or(|keys| !keys.are_awaited())
    }

    /// `None`: nothing is checked.
    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.as_ref().map(|keys| keys.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Everybody is who they say.
    pub fn is_insecure(&self) -> bool {
        self.keys.is_none()
    }

    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Checks a user's token.
    pub fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Invalid("too_long"));
        }
        let identity = match self.keys() {
            None => Identity {
                user: UserId::new(token).map_err(|_| AuthError::Invalid("user"))?,
                expires_unix_s: None,
                issued_unix_s: 0,
                jti: None,
                caps: Caps::All,
                channels: Arc::default(),
            },
            Some(keys) => keys.verify(token)?,
        };
        match self.revocations.covers(&identity) {
            true => Err(AuthError::Revoked),
            false => Ok(identity),
        }
    }

    /// Checks what came as `Authorization: Bearer` to the HTTP API: an API key, or a user's token. In insecure
    /// mode everybody is a service, with or without it.
    pub fn api(&self, bearer: Option<&str>) -> Result<Caller, AuthError> {
        let Some(keys) = self.keys() else { return Ok(Caller::Service(INSECURE_SERVICE.into())) };
        let bearer = bearer.ok_or(AuthError::Missing)?;
        if let Some(name) = keys.service(bearer) {
            return Ok(Caller::Service(name));
        }
        self.verify(bearer).map(Caller::User)
    }
}

/// Why no token could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    #[error("a token needs WARREN_JWT_SECRET (in insecure mode the token is the user id)")]
    NoSecret,
    #[error("{0:?} is no capability: api, publish:<target or start*>, subscribe:channel.<name or start*> or presence:<the same>")]
    Cap(String),
    #[error("the cryptographic library failed")]
    Signing,
}

/// Makes a token that nodes of this configuration take, for `warren token` and for tests. Without `caps` the
/// token has the usual ones.
pub fn mint(user: &UserId, ttl: Duration, caps: &[String], config: &Config) -> Result<String, MintError> {
    #[derive(Serialize)]
    struct Minted<'a> {
        sub: &'a UserId,
        iat: u64,
        exp: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        caps: &'a [String],
    }
    let Auth::Jwt(jwt) = &config.auth else { return Err(MintError::NoSecret) };
    let secret = jwt.secret.as_ref().ok_or(MintError::NoSecret)?;
    if let Some(cap) = caps.iter().find(|cap| Cap::parse(cap).is_none()) {
        return Err(MintError::Cap(cap.clone()));
    }
    let now = get_current_timestamp();
    let claims = Minted {
        sub: user,
        iat: now,
        exp: now.saturating_add(ttl.as_secs()).min(EXPIRY_UNIX_S_MAX),
        iss: jwt.issuer.as_deref(),
        aud: jwt.audience.as_deref(),
        caps,
    };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(|_| MintError::Signing)
}
