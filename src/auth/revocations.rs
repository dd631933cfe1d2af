//! Tokens that count no longer although they have not expired: of a user, of everybody, or a single one.
//!
//! Each node keeps them all, and forgets one when every token that it is about has expired. Nodes tell each other: see
//! `router/revoke.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::Identity;
use crate::ids::UserId;

/// On each node. Overflow policy: a further one is refused.
const REVOCATIONS_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    User(UserId),
    /// The `jti` of a token (RFC 7519 section 4.1.7).
    Token(Arc<str>),
    Everyone,
}

/// Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revocation {
    pub what: Revoked,
    /// Tokens with an earlier `iat`; one without was issued long ago.
    pub issued_before: u64,
    /// When all these tokens have expired, so that this may be forgotten.
    pub until: u64,
}

/// There are as many as a node keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    issued_before: u64,
    until: u64,
}

/// Locked for one access; nothing is called meanwhile.
#[derive(Debug, Default)]
pub struct Revocations {
    spans: RwLock<HashMap<Revoked, Span>>,
    /// So that nodes without any look at no table.
    count: AtomicUsize,
}

impl Revocations {
    /// `true`: this says more than was known.
    pub fn add(&self, revocation: &Revocation, now_unix_s: u64) -> Result<bool, Full> {
        let Revocation { what, issued_before, until } = revocation.clone();
        if until <= now_unix_s {
            return Ok(false);
        }
        let mut spans = self.spans.write().unwrap_or_else(PoisonError::into_inner);
        if !spans.contains_key(&what) && spans.len() >= REVOCATIONS_MAX {
            spans.retain(|_, span| span.until > now_unix_s);
            if spans.len() >= REVOCATIONS_MAX {
                return Err(Full);
            }
        }
        let span = spans.entry(what).or_insert(Span { issued_before: 0, until: 0 });
        let wider =
            Span { issued_before: span.issued_before.max(issued_before), until: span.until.max(until) };
        let is_news = *span != wider;
        *span = wider;
        self.count.store(spans.len(), Ordering::Release);
        Ok(is_news)
    }

    /// Those that still count.
    pub fn list(&self, now_unix_s: u64) -> Vec<Revocation> {
        let spans = self.spans.read().unwrap_or_else(PoisonError::into_inner);
        let live = spans.iter().filter(|(_, span)| span.until > now_unix_s);
        let all = live.map(|(what, Span { issued_before, until })| Revocation {
            what: what.clone(),
            issued_before: *issued_before,
            until: *until,
        });
        all.collect()
    }

    /// The same on two nodes that know the same.
    pub fn digest(&self, now_unix_s: u64) -> u64 {
        let hash = |one: &Revocation| xxh3_64(&serde_json::to_vec(one).unwrap_or_default());
        self.list(now_unix_s).iter().map(hash).fold(0, |all, one| all ^ one)
    }

    /// Whether a token of this identity counts no longer.
    pub fn covers(&self, identity: &Identity) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let spans = self.spans.read().unwrap_or_else(PoisonError::into_inner);
        let token = identity.jti.clone().map(Revoked::Token);
        let whose = [Some(Revoked::Everyone), Some(Revoked::User(identity.user.clone())), token];
        let mut found = whose.iter().flatten().filter_map(|what| spans.get(what));
        found.any(|span| identity.issued_unix_s < span.issued_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caps;

    fn identity(user: &str, jti: Option<&str>, issued_unix_s: u64) -> Identity {
        Identity {
            user: UserId::new(user).unwrap(),
            expires_unix_s: None,
            issued_unix_s,
            jti: jti.map(Into::into),
            caps: Caps::Usual,
            channels: Arc::default(),
        }
    }

    fn of(what: Revoked, issued_before: u64, until: u64) -> Revocation {
        Revocation { what, issued_before, until }
    }

    #[test]
    fn what_is_revoked_is_what_was_said_and_no_more() {
        let revocations = Revocations::default();
        let alice = Revoked::User(UserId::new("alice").unwrap());
        assert!(!revocations.covers(&identity("alice", None, 0)));
        assert_eq!(revocations.add(&of(alice.clone(), 100, 1_000), 50), Ok(true));
        assert_eq!(revocations.add(&of(alice.clone(), 90, 900), 50), Ok(false), "less than is known");
        assert_eq!(revocations.add(&of(Revoked::Token("t".into()), u64::MAX, 1_000), 50), Ok(true));
        for (user, jti, issued, revoked) in [
            ("alice", None, 99, true),
            ("alice", None, 0, true),
            ("alice", None, 100, false),
            ("bob", None, 0, false),
            ("bob", Some("t"), 500, true),
            ("bob", Some("u"), 0, false),
        ] {
            assert_eq!(revocations.covers(&identity(user, jti, issued)), revoked, "{user} {jti:?} {issued}");
        }
        assert_eq!(revocations.add(&of(Revoked::Everyone, 200, 1_000), 50), Ok(true));
        assert!(
            revocations.covers(&identity("bob", None, 199))
                && !revocations.covers(&identity("bob", None, 200))
        );
    }

    #[test]
    fn nodes_that_know_the_same_agree_and_what_is_over_is_forgotten() {
        let (one, other) = (Revocations::default(), Revocations::default());
        let number = |at: u64| of(Revoked::Token(format!("t{at}").into()), u64::MAX, 100 + at % 2);
        for at in 0..REVOCATIONS_MAX as u64 {
            assert_eq!(one.add(&number(at), 50), Ok(true));
        }
        assert_ne!(one.digest(50), other.digest(50));
        one.list(50).iter().for_each(|known| assert_eq!(other.add(known, 50), Ok(true)));
        assert_eq!(one.digest(50), other.digest(50));
        assert_eq!(one.add(&number(1 << 40), 50), Err(Full));
        assert_eq!(one.add(&number(3), 50), Ok(false), "known already");
        assert_eq!(one.list(100).len(), REVOCATIONS_MAX / 2);
        assert_eq!(one.add(&number((1 << 40) + 1), 100), Ok(true), "there is room when some are over");
        assert_eq!(one.add(&number(5), 200), Ok(false), "over before it began");
    }
}
