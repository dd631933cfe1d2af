//! `POST /v1/revocations`: tokens that count no longer.

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use serde::Deserialize;
use serde_json::json;
use warp::http::header::HeaderMap;
use warp::http::StatusCode;
use warp::reply::Response;

use super::api::{allowed, Asked};
use super::body;
use super::response;
use crate::auth::{Revocation, Revoked, JTI_BYTES_MAX};
use crate::clock::unix_ms;
use crate::error::Error;
use crate::ids::UserId;
use crate::protocol::publish::Whole;

const DAY_S: u64 = 24 * 60 * 60;
/// How long a revocation is kept if it does not say so: longer than tokens should live.
const UNTIL_DEFAULT_S: u64 = 31 * DAY_S;
const UNTIL_MAX_S: u64 = 3_660 * DAY_S;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    user: Option<UserId>,
    jti: Option<String>,
    issued_before: Option<Whole>,
    until: Option<Whole>,
}

impl Body {
    fn revocation(self, now: u64) -> Result<Revocation, Error> {
        let seconds = |Whole(seconds)| seconds;
        let until = self.until.map_or(now + UNTIL_DEFAULT_S, seconds);
        if until <= now || until > now + UNTIL_MAX_S {
            return Err(Error::bad_request("until: seconds since 1970, within ten years from now"));
        }
        let (what, issued_before) = match (self.user, self.jti, self.issued_before.map(seconds)) {
            // Those of this second as well: whoever has just got one gets another.
            (Some(user), None, before) => (Revoked::User(user), before.unwrap_or(now + 1)),
            (None, Some(jti), None) if (1..=JTI_BYTES_MAX).contains(&jti.len()) => {
                (Revoked::Token(jti.into()), u64::MAX)
            }
            (None, Some(_), None) => return Err(Error::bad_request("jti: 1 to 128 bytes")),
            (None, None, Some(before)) => (Revoked::Everyone, before),
            _ => {
                let message =
                    "say user (with issued_before, if not all of them), jti, or issued_before for everybody";
                return Err(Error::bad_request(message));
            }
        };
        Ok(Revocation { what, issued_before, until })
    }
}

pub(super) async fn post(
    asked: Asked,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    let state = match allowed(asked) {
        Ok(state) => state,
        Err(error) => return response::error(&error),
    };
    let read = body::read_short::<Body>(&state, &headers, body, Arc::from("revocations")).await;
    let body = match read {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let revocation = match body.revocation(unix_ms() / 1_000) {
        Ok(revocation) => revocation,
        Err(error) => return response::error(&error),
    };
    match state.router.revoke(revocation).await {
        Ok(found) => {
            let body = json!({ "closed": found.count, "partial": found.partial });
            response::json(StatusCode::OK, &body)
        }
        Err(error) => response::error(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_says_whose_tokens_it_is_about() {
        let of = |text: &str| {
            let body: Body = serde_json::from_str(text).map_err(|error| error.to_string())?;
            body.revocation(1_000).map_err(|error| error.message)
        };
        let alice = || Revoked::User(UserId::new("alice").unwrap());
        let until = 1_000 + UNTIL_DEFAULT_S;
        for (text, what, issued_before, until) in [
            (r#"{"user":"alice"}"#, alice(), 1_001, until),
            (r#"{"user":"alice","issued_before":5,"until":2000}"#, alice(), 5, 2_000),
            (r#"{"jti":"t"}"#, Revoked::Token("t".into()), u64::MAX, until),
            (r#"{"issued_before":7}"#, Revoked::Everyone, 7, until),
            (r#"{"issued_before":7.0,"until":null}"#, Revoked::Everyone, 7, until),
        ] {
            assert_eq!(of(text), Ok(Revocation { what, issued_before, until }), "{text}");
        }
        for bad in [
            "{}",
            r#"{"user":""}"#,
            r#"{"user":"a","jti":"t"}"#,
            r#"{"jti":"t","issued_before":5}"#,
            r#"{"jti":""}"#,
            r#"{"user":"a","until":1000}"#,
            r#"{"user":"a","until":99999999999}"#,
            r#"{"user":"a","reason":"x"}"#,
            r#"{"issued_before":-1}"#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
