//! `POST /v1/tickets`: for clients that cannot set headers, and must not have a token in a URL.

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use serde::Deserialize;
use serde_json::json;
use warp::http::header::{HeaderMap, HeaderValue, CACHE_CONTROL};
use warp::http::StatusCode;
use warp::reply::Response;

use super::publish::{caller_name, rate_limited, take_token};
use super::{body, response, AppState};
use crate::auth::{Caller, Cap, Caps, Identity};
use crate::clock::unix_ms;
use crate::error::{Code, Error};
use crate::ids::{ChannelName, UserId};

/// How long a session lives that a ticket of a service opens, if the service does not say.
const SESSION_S_DEFAULT: u64 = 60 * 60;
const SESSION_S_MAX: u64 = 31 * 24 * 60 * 60;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    user: Option<UserId>,
    caps: Option<Vec<String>>,
    #[serde(default)]
    channels: Vec<ChannelName>,
    session_seconds: Option<u64>,
}

impl Body {
    /// Whom the ticket is for: the caller, or whom a caller names that has the whole API.
    fn identity(self, caller: Caller, now_unix_s: u64) -> Result<Identity, Error> {
        let is_own = self.user.is_none();
        match caller {
            Caller::User(identity) if is_own => {
                if self.caps.is_some() || !self.channels.is_empty() || self.session_seconds.is_some() {
                    let message = "a ticket for oneself opens what the token opens: leave the body empty";
                    return Err(Error::bad_request(message));
                }
                return Ok(identity);
            }
            caller if !caller.api() => {
                return Err(Error::new(Code::Forbidden, "these credentials open tickets for oneself only"));
            }
            _ => {}
        }
        let user = self.user.ok_or_else(|| Error::bad_request("user: whom the ticket is for"))?;
        let seconds = self.session_seconds.unwrap_or(SESSION_S_DEFAULT);
        if !(1..=SESSION_S_MAX).contains(&seconds) {
            return Err(Error::bad_request(format!("session_seconds: 1 to {SESSION_S_MAX}")));
        }
        let caps = match &self.caps {
            None => Caps::Usual,
            Some(caps) => match caps.iter().find(|cap| Cap::parse(cap).is_none()) {
                Some(_) => return Err(Error::bad_request("caps: one of them is no capability")),
                None => Caps::from_claim(caps.iter().map(String::as_str)),
            },
        };
        Ok(Identity {
            user,
            expires_unix_s: Some(now_unix_s + seconds),
            issued_unix_s: now_unix_s,
            jti: None,
            caps,
            channels: self.channels.into(),
        })
    }
}

pub(super) async fn post(
    state: Arc<AppState>,
    caller: Result<Caller, Error>,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return response::error(&error),
    };
    if !take_token(&state, &caller) {
        return response::error(&rate_limited());
    }
    let body = match body::read_short::<Body>(&state, &headers, body, caller_name(&caller)).await {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let issued = body.identity(caller, unix_ms() / 1_000).and_then(|identity| {
        let user = identity.user.clone();
        state.router.issue_ticket(identity).map(|ticket| (user, ticket))
    });
    match issued {
        Ok((user, ticket)) => {
            let expires_in_ms = u64::try_from(state.router.ticket_ttl().as_millis()).unwrap_or(u64::MAX);
            let body = json!({ "ticket": ticket.expose(), "user": user, "expires_in_ms": expires_in_ms });
            let mut response = response::json(StatusCode::OK, &body);
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => response::error(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_api_names_others() {
        let user = |caps: Caps| {
            Caller::User(Identity {
                user: UserId::new("own").unwrap(),
                expires_unix_s: Some(99),
                issued_unix_s: 1,
                jti: Some("t".into()),
                caps,
                channels: Arc::default(),
            })
        };
        let of = |text: &str, caller: Caller| {
            let body: Body = serde_json::from_str(text).map_err(|error| error.to_string())?;
            body.identity(caller, 1_000).map_err(|error| error.code.as_str().to_owned())
        };
        let service = || Caller::Service("orders".into());
        let own = of("{}", user(Caps::Usual)).unwrap();
        assert_eq!((own.user.as_str(), own.expires_unix_s, own.jti.as_deref()), ("own", Some(99), Some("t")));
        for named in [r#"{"user":"other"}"#, r#"{"user":"own"}"#] {
            assert_eq!(of(named, user(Caps::Usual)), Err("forbidden".into()));
        }
        assert_eq!(of(r#"{"caps":["api"]}"#, user(Caps::Usual)), Err("bad_request".into()));
        let text = r#"{"user":"a","caps":["publish:user.b"],"channels":["c"],"session_seconds":60}"#;
        for caller in [service(), user(Caps::from_claim(["api"]))] {
            let named = of(text, caller).unwrap();
            assert_eq!(
                (named.user.as_str(), named.expires_unix_s, named.channels.len()),
                ("a", Some(1_060), 1)
            );
            assert_eq!(named.caps, Caps::from_claim(["publish:user.b"]));
        }
        for bad in [
            "{}",
            r#"{"user":""}"#,
            r#"{"user":"a","caps":["x"]}"#,
            r#"{"user":"a","session_seconds":0}"#,
            r#"{"user":"a","token":1}"#,
        ] {
            assert!(of(bad, service()).is_err(), "{bad}");
        }
    }
}
