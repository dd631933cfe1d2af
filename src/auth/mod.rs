//! Credentials: turns a token or an API key into who somebody is and what they may do.
//!
//! The rules are those of RFC 8725 (JSON Web Token best current practices): an algorithm belongs to a key and
//! is never the token's choice (3.1), every key comes from the configuration and none from a token's header
//! (3.10), `exp` and `sub` must be there, issuer and audience are checked when configured (3.8, 3.9), and a
//! token has a longest size.

mod caps;
mod revocations;
#[cfg(test)]
mod tests;
mod tickets;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    decode, decode_header, encode, get_current_timestamp, Algorithm, DecodingKey, EncodingKey, Header,
    Validation,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::config::{ApiKey, Auth, Config, Jwt};
use crate::ids::{ChannelName, UserId};
use crate::protocol::target::Target;

pub use caps::{Cap, Caps};
pub use revocations::{Full, Revocation, Revocations, Revoked};
pub use tickets::{NotIssued, Ticket, TicketSecret, Tickets};

/// Longest token or API key, in bytes: the parser never sees more from a stranger.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the clock of whoever issues tokens may differ from ours.
const LEEWAY_S: u64 = 10;
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
}

impl AuthError {
    /// From a short, fixed list: also fit for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            AuthError::Missing => "missing",
            AuthError::Expired => "expired",
            AuthError::Revoked => "revoked",
            AuthError::Invalid(reason) => reason,
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

/// Signing or verifying does not work in this build: better known at the start than at the first client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library failed its self-test")]
pub struct SelfTestFailed;

/// The fields of [`Keys`] are not shown: they are secrets.
pub struct Verifier {
    /// `None`: everybody is who they say, and the token is the user id. Locked for as long as it takes to copy or to
    /// replace the pointer.
    keys: Option<RwLock<Arc<Keys>>>,
    revocations: Arc<Revocations>,
}

pub struct Keys {
    keys: Vec<TokenKey>,
    issuer: Option<String>,
    /// The name and the SHA-256 of each API key.
    api_keys: Vec<(Arc<str>, [u8; 32])>,
}

/// A key, and what is asked of tokens that it has signed.
struct TokenKey {
    /// `None`: of tokens that name no key that we know, at most one for each algorithm.
    kid: Option<String>,
    key: DecodingKey,
    rules: Validation,
}

#[derive(Deserialize)]
struct Claims {
    sub: UserId,
    /// NumericDate of RFC 7519 section 2: it may have a fraction.
    exp: f64,
    iss: Option<String>,
    iat: Option<f64>,
    jti: Option<Arc<str>>,
    caps: Option<Vec<String>>,
    channels: Option<Vec<ChannelName>>,
}

impl Verifier {
    pub fn new(config: &Config) -> Result<Self, SelfTestFailed> {
        let keys = match &config.auth {
            Auth::Insecure => None,
            Auth::Jwt(jwt) => Some(RwLock::new(Arc::new(Keys::new(jwt, &config.api_keys)?))),
        };
        Ok(Self { keys, revocations: Arc::default() })
    }

    /// Takes the keys of another configuration from now on. Who is connected stays so: a session ends with its token.
    /// Whether tokens are checked at all does not change.
    pub fn replace_keys(&self, config: &Config) -> Result<(), SelfTestFailed> {
        if let (Some(current), Auth::Jwt(jwt)) = (&self.keys, &config.auth) {
            let keys = Arc::new(Keys::new(jwt, &config.api_keys)?);
            *current.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
        Ok(())
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

impl Keys {
    fn new(jwt: &Jwt, api_keys: &[ApiKey]) -> Result<Self, SelfTestFailed> {
        let mut keys = Vec::new();
        let mut add =
            |kid, key, algorithm| keys.push(TokenKey { kid, key, rules: validation(algorithm, jwt) });
        if let Some(secret) = &jwt.secret {
            add(None, DecodingKey::from_secret(secret.expose().as_bytes()), Algorithm::HS256);
        }
        if let Some(public) = &jwt.public_key {
            add(None, public.key.clone(), public.algorithm);
        }
        for named in &jwt.named_keys {
            add(Some(named.kid.clone()), named.key.clone(), named.algorithm);
        }
        self_test(&keys)?;
        let digest = |key: &ApiKey| (key.name.as_str().into(), Sha256::digest(key.key.expose()).into());
        let api_keys = api_keys.iter().map(digest).collect();
        Ok(Self { keys, issuer: jwt.issuer.clone(), api_keys })
    }

    fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        let header = decode_header(token).map_err(|_| AuthError::Invalid("malformed"))?;
        // We understand no extension, so one that must be understood is a refusal (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(AuthError::Invalid("crit"));
        }
        let TokenKey { key, rules, .. } = self.key_for(&header)?;
        let claims = decode::<Claims>(token, key, rules).map_err(|error| refusal(&error))?.claims;
        // jsonwebtoken takes a list of issuers that holds ours; RFC 7519 section 4.1.1 knows one issuer.
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(AuthError::Invalid("issuer"));
        }
        // Validated as a number that is not negative.
        let expires = claims.exp as u64;
        if expires > EXPIRY_UNIX_S_MAX || claims.jti.as_ref().is_some_and(|jti| jti.len() > JTI_BYTES_MAX) {
            return Err(AuthError::Invalid("claims"));
        }
        let caps = claims.caps.map(|caps| Caps::from_claim(caps.iter().map(String::as_str)));
        Ok(Identity {
            user: claims.sub,
            expires_unix_s: Some(expires + LEEWAY_S),
            // A time before 1970 is no time that we would wait for.
            issued_unix_s: claims.iat.unwrap_or_default() as u64,
            jti: claims.jti,
            caps: caps.unwrap_or(Caps::Usual),
            channels: claims.channels.unwrap_or_default().into(),
        })
    }

    /// The key that a token names, or the one without a name for its algorithm. A name only chooses among our keys, and
    /// an algorithm belongs to its key.
    fn key_for(&self, header: &Header) -> Result<&TokenKey, AuthError> {
        let named =
            header.kid.as_ref().and_then(|kid| self.keys.iter().find(|key| key.kid.as_ref() == Some(kid)));
        let key = match named {
            Some(key) => Some(key).filter(|key| key.rules.algorithms.contains(&header.alg)),
            None => {
                self.keys.iter().find(|key| key.kid.is_none() && key.rules.algorithms.contains(&header.alg))
            }
        };
        let unknown = self.keys.iter().all(|key| key.kid.is_some());
        key.ok_or(AuthError::Invalid(if unknown && named.is_none() { "kid" } else { "algorithm" }))
    }

    /// The service whose key this is. Looks at every key in full, so that the time taken tells nothing about any
    /// of them.
    fn service(&self, bearer: &str) -> Option<Arc<str>> {
        if bearer.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(bearer).into();
        let mut found = u32::MAX;
        for (index, (_, key)) in (0u32..).zip(&self.api_keys) {
            found.conditional_assign(&index, key.ct_eq(&digest));
        }
        self.api_keys.get(found as usize).map(|(name, _)| name.clone())
    }
}

fn validation(algorithm: Algorithm, jwt: &Jwt) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY_S;
    validation.validate_nbf = true;
    let mut required = vec!["exp", "sub"];
    if let Some(issuer) = &jwt.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    if let Some(audience) = &jwt.audience {
        validation.set_audience(&[audience]);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn refusal(error: &jsonwebtoken::errors::Error) -> AuthError {
    match error.kind() {
        ErrorKind::ExpiredSignature => AuthError::Expired,
        ErrorKind::ImmatureSignature => AuthError::Invalid("not_yet_valid"),
        ErrorKind::InvalidSignature => AuthError::Invalid("signature"),
        ErrorKind::InvalidIssuer => AuthError::Invalid("issuer"),
        ErrorKind::InvalidAudience => AuthError::Invalid("audience"),
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => AuthError::Invalid("claims"),
        _ => AuthError::Invalid("malformed"),
    }
}

/// Signs and verifies once, and has a bad signature refused by each configured key.
fn self_test(keys: &[TokenKey]) -> Result<(), SelfTestFailed> {
    let secret = b"only for the self-test, and known";
    let claims = serde_json::json!({ "sub": "self-test", "exp": get_current_timestamp() + 60 });
    let token = encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
        .map_err(|_| SelfTestFailed)?;
    let (own, rules) = (DecodingKey::from_secret(secret), Validation::new(Algorithm::HS256));
    decode::<Claims>(&token, &own, &rules).map_err(|_| SelfTestFailed)?;
    for TokenKey { key, rules, .. } in keys {
        let algorithm = rules.algorithms.first().ok_or(SelfTestFailed)?;
        if jsonwebtoken::crypto::verify("bm8", b"forged", key, *algorithm) != Ok(false) {
            return Err(SelfTestFailed);
        }
    }
    Ok(())
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
