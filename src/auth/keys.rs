//! The keys of tokens and services, and what is asked of a token that one of them has signed.

use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    decode, decode_header, encode, get_current_timestamp, Algorithm, DecodingKey, EncodingKey, Header,
    Validation,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::{AuthError, Caps, Identity, EXPIRY_UNIX_S_MAX, JTI_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::config::{ApiKey, Jwt, NamedKey};
use crate::ids::{ChannelName, UserId};

/// How far the clock of the issuer of tokens may differ from this node's.
pub(super) const LEEWAY_S: u64 = 10;

/// Signing or verifying does not work in this build: better known at the start than at the first client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library failed its self-test")]
pub struct SelfTestFailed;

/// The name and the SHA-256 of each API key.
type Digests = Arc<[(Arc<str>, [u8; 32])]>;

pub(super) struct Keys {
    keys: Vec<TokenKey>,
    jwt: Jwt,
    /// What the URL of the configuration holds. `None`: there is no such URL, or nothing has come from it yet.
    published: Option<Vec<NamedKey>>,
    api_keys: Digests,
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

impl Keys {
    pub(super) fn new(
        jwt: &Jwt,
        api_keys: &[ApiKey],
        published: Option<Vec<NamedKey>>,
    ) -> Result<Self, SelfTestFailed> {
        let digest = |key: &ApiKey| (key.name.as_str().into(), Sha256::digest(key.key.expose()).into());
        Self::build(jwt.clone(), api_keys.iter().map(digest).collect(), published)
    }

    /// The same with what the URL holds now.
    pub(super) fn with_published(&self, published: Vec<NamedKey>) -> Result<Self, SelfTestFailed> {
        Self::build(self.jwt.clone(), self.api_keys.clone(), Some(published))
    }

    fn build(jwt: Jwt, api_keys: Digests, published: Option<Vec<NamedKey>>) -> Result<Self, SelfTestFailed> {
        let mut keys = Vec::new();
        let mut add =
            |kid, key, algorithm| keys.push(TokenKey { kid, key, rules: validation(algorithm, &jwt) });
        if let Some(secret) = &jwt.secret {
            add(None, DecodingKey::from_secret(secret.expose().as_bytes()), Algorithm::HS256);
        }
        if let Some(public) = &jwt.public_key {
            add(None, public.key.clone(), public.algorithm);
        }
        for named in jwt.named_keys.iter().chain(published.iter().flatten()) {
            add(Some(named.kid.clone()), named.key.clone(), named.algorithm);
        }
        self_test(&keys)?;
        Ok(Self { keys, jwt, published, api_keys })
    }

    pub(super) fn published(&self) -> Option<Vec<NamedKey>> {
        self.published.clone()
    }

    /// Keys that the configuration promises have not come yet.
    pub(super) fn are_awaited(&self) -> bool {
        self.jwt.key_set.is_some() && self.published.is_none()
    }

    pub(super) fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        let header = decode_header(token).map_err(|_| AuthError::Invalid("malformed"))?;
        // We understand no extension, so one that must be understood is a refusal (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(AuthError::Invalid("crit"));
        }
        let TokenKey { key, rules, .. } = self.key_for(&header)?;
        let claims = decode::<Claims>(token, key, rules).map_err(|error| refusal(&error))?.claims;
        // jsonwebtoken takes a list of issuers that holds ours; RFC 7519 section 4.1.1 knows one issuer.
        if self.jwt.issuer.is_some() && claims.iss != self.jwt.issuer {
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
        if key.is_none() && named.is_none() && self.are_awaited() {
            return Err(AuthError::NoKeysYet);
        }
        let unknown = self.keys.iter().all(|key| key.kid.is_some());
        key.ok_or(AuthError::Invalid(if unknown && named.is_none() { "kid" } else { "algorithm" }))
    }

    /// The service whose key this is. Looks at every key in full, so that the time taken tells nothing about any
    /// of them.
    pub(super) fn service(&self, bearer: &str) -> Option<Arc<str>> {
        if bearer.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(bearer).into();
        let mut found = u32::MAX;
        for (index, (_, key)) in (0u32..).zip(self.api_keys.iter()) {
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
