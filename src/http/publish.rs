//! `POST /v1/messages`: one message, or an array of them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Buf;
use futures_util::future::join_all;
use futures_util::Stream;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use warp::http::header::{HeaderMap, CONTENT_LENGTH};
use warp::http::StatusCode;
use warp::reply::Response;

use super::body::{self, BodyLimits};
use super::guard::check_encoding;
use super::{response, AppState};
use crate::auth::Caller;
use crate::clock::Now;
use crate::error::{Code, Error};
use crate::ids::{MessageId, UserId};
use crate::metrics::Door;
use crate::protocol::message::{Message, Sender, Settlement};
use crate::protocol::publish::{PublishRequest, BATCH_MAX};
use crate::protocol::reply::Settled;
use crate::router::hooks::Way;

/// Longest body of an array of messages, in bytes.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a message's other fields may take beside its payload, in bytes.
const FIELDS_BYTES_MAX: usize = 8 * 1024;

pub(super) async fn post(
    state: Arc<AppState>,
    caller: Result<Caller, Error>,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    // The body of a request without good credentials is not even read.
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return response::error(&error),
    };
    if let Err(refusal) = check_encoding(&headers) {
        return refusal;
    }
    // Paid before the body is read, so that reading and parsing has its price as well.
    if !take_token(&state, &caller) {
        return response::error(&rate_limited());
    }
    let single = (state.max_message_bytes + FIELDS_BYTES_MAX).min(BATCH_BYTES_MAX);
    let limits = BodyLimits { single, batch: BATCH_BYTES_MAX, timeout: state.body_timeout };
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut reserved = state.bodies.reserve(caller_name(&caller));
    let body = match body::read(body, announced, limits, &mut reserved).await {
        Ok(body) => body,
        Err(error) => return error.response(),
    };
    let published = match idempotency_key(&headers) {
        Ok(key) if body::is_array(&body) => publish_all(&state, &caller, key.is_some(), &body).await,
        Ok(key) => publish_one(&state, &caller, key, &body).await,
        Err(error) => Err(error),
    };
    published.unwrap_or_else(|error| response::error(&error))
}

pub(super) fn caller_name(caller: &Caller) -> Arc<str> {
    match caller {
        Caller::Service(name) => format!("service.{name}").into(),
        Caller::User(identity) => format!("user.{}", identity.user).into(),
    }
}

/// Services are not limited: neither those with a key nor those with the capability `api`.
pub(super) fn take_token(state: &AppState, caller: &Caller) -> bool {
    match caller {
        Caller::User(identity) if !caller.api() => state.rates.take(&identity.user, 1, Instant::now()),
        _ => true,
    }
}

pub(super) fn rate_limited() -> Error {
    Error::new(Code::RateLimited, "more than this user may send; slow down")
}

/// The message id that the header `Idempotency-Key` gives.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let key = unquoted_key(headers)?;
    // Also if the message has an id of its own: a key that means nothing is a mistake of the caller's.
    if let Some(key) = &key {
        MessageId::new(key).map_err(|error| Error::bad_request(format!("Idempotency-Key: {error}")))?;
    }
    Ok(key)
}

/// The header `Idempotency-Key`: a string of structured fields (RFC 9651 section 3.3.3), as
/// draft-ietf-httpapi-idempotency-key-header says, or the bare key.
fn unquoted_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut lines = headers.get_all("idempotency-key").iter();
    let Some(line) = lines.next() else { return Ok(None) };
    let refuse = |why: &str| Error::bad_request(format!("Idempotency-Key: {why}"));
    if lines.next().is_some() {
        return Err(refuse("more than one"));
    }
    let text = line.to_str().map_err(|_| refuse("not ASCII"))?.trim();
    let Some(rest) = text.strip_prefix('"') else { return Ok(Some(text.to_owned())) };
    let mut key = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next() {
            Some('"') if chars.as_str().is_empty() => return Ok(Some(key)),
            Some('\\') => match chars.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(refuse("a bad escape in the quoted string")),
            },
            Some('"') | None => return Err(refuse("the quoted string does not end where the header does")),
            Some(char) => key.push(char),
        }
    }
}

fn unreadable(error: &serde_json::Error) -> Error {
    Error::bad_request(format!("body: {error}"))
}

async fn publish_one(
    state: &AppState,
    caller: &Caller,
    key: Option<String>,
    body: &[u8],
) -> Result<Response, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::bad_request("body: not UTF-8"))?;
    let mut request = PublishRequest::parse(text)?;
    if let Some(key) = key {
        request.message_id.get_or_insert(Cow::Owned(key));
    }
    let checked = check(state, caller, request)?;
    let id = checked.message.id.clone();
    let settlement = settle(state, checked).await;
    match &settlement {
        // Not settled: the caller still has the message, and the status code must say so.
        Settlement::Failed(error) if error.code.retry() => Err(error.clone()),
        settlement => Ok(response::json(StatusCode::OK, &Settled::new(&id, settlement))),
    }
}

async fn publish_all(
    state: &AppState,
    caller: &Caller,
    has_key: bool,
    body: &[u8],
) -> Result<Response, Error> {
    if has_key {
        return Err(Error::bad_request("Idempotency-Key: names one message; give each its own message_id"));
    }
    let mut messages = Vec::new();
    for (index, element) in elements(body)?.into_iter().enumerate() {
        let message = PublishRequest::parse(element.get()).and_then(|request| check(state, caller, request));
        // All or none: what is wrong with one is said before any is published.
        messages.push(
            message.map_err(|error| Error { message: format!("[{index}].{}", error.message), ..error })?,
        );
    }
    let ids: Vec<MessageId> = messages.iter().map(|checked| checked.message.id.clone()).collect();
    // The first one was paid for with the request.
    let settling = messages.into_iter().enumerate().map(|(index, message)| async move {
        match index == 0 || take_token(state, caller) {
            true => settle(state, message).await,
            false => Settlement::Failed(rate_limited()),
        }
    });
    let settlements = join_all(settling).await;
    let settled: Vec<_> = ids.iter().zip(&settlements).map(|(id, of)| Settled::new(id, of)).collect();
    Ok(response::json(StatusCode::OK, &settled))
}

/// The elements of a JSON array, each as it stands. Ends at the first one too many.
fn elements(body: &[u8]) -> Result<Vec<&RawValue>, Error> {
    struct Elements<'s>(&'s mut bool);
    impl<'de> Visitor<'de> for Elements<'_> {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("an array of messages")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = seq.next_element()? {
                if elements.len() == BATCH_MAX {
                    *self.0 = true;
                    return Err(A::Error::custom("too many"));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }
    let mut too_many = false;
    let mut json = serde_json::Deserializer::from_slice(body);
    let elements = json.deserialize_seq(Elements(&mut too_many));
    match elements.and_then(|elements| json.end().map(|()| elements)) {
        Ok(elements) => Ok(elements),
        Err(_) if too_many => Err(Error::bad_request(format!("body: at most {BATCH_MAX} messages"))),
        Err(error) => Err(unreadable(&error)),
    }
}

/// A message that its caller may publish.
struct Checked {
    message: Message,
    wants_answer: bool,
    /// About whom the application may want to decide.
    user: Option<UserId>,
}

fn check(state: &AppState, caller: &Caller, request: PublishRequest) -> Result<Checked, Error> {
    let sender = match caller {
        Caller::Service(name) => Sender::Service { service: name.to_string() },
        Caller::User(identity) => Sender::User { user: identity.user.clone() },
    };
    let wants_answer = request.reply;
    let message = request.into_message(sender, Now::read())?;
    if message.payload.bytes.len() > state.max_message_bytes {
        return Err(Error::bad_request(format!("payload: at most {} bytes", state.max_message_bytes)));
    }
    if !caller.may_publish(&message.target) {
        return Err(Error::new(Code::Forbidden, "to: these credentials may not publish to that target"));
    }
    if state.router.is_reserved(&message.target) {
        return Err(Error::new(Code::Forbidden, "to: hooks are asked by the gateway alone"));
    }
    // Services are not asked about.
    let user = match caller {
        Caller::User(identity) if !caller.api() => Some(identity.user.clone()),
        _ => None,
    };
    Ok(Checked { message, wants_answer, user })
}

async fn settle(state: &AppState, checked: Checked) -> Settlement {
    let Checked { message, wants_answer, user } = checked;
    let way = if wants_answer { Way::Request(None) } else { Way::Usual };
    let settlement = state.router.deliver_as(user.as_ref(), message, way).await;
    state.metrics.settled(Door::Http, settlement.outcome());
    settlement
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_may_be_quoted() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", text.parse().unwrap());
            idempotency_key(&headers).map_err(|error| error.message)
        };
        assert_eq!(of("abc"), Ok(Some("abc".into())));
        assert_eq!(of("\"abc\""), Ok(Some("abc".into())));
        assert_eq!(of(r#""a\"b\\c""#), Ok(Some(r#"a"b\c"#.into())));
        for bad in ["", "\"\"", "a b", "\"abc", "\"a\"b", "\"a\\n\"", "\"\";x=1"] {
            assert!(of(bad).unwrap_err().starts_with("Idempotency-Key: "), "{bad}");
        }
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn an_array_ends_at_the_first_element_too_many() {
        let array = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        assert_eq!(elements(array(BATCH_MAX).as_bytes()).unwrap().len(), BATCH_MAX);
        // What follows is not even looked at.
        let endless = format!("[{},x", vec!["{}"; BATCH_MAX + 1].join(","));
        let error = elements(endless.as_bytes()).unwrap_err();
        assert!(error.message.contains("at most 256 messages"), "{error}");
        assert!(elements(b"[{}] x").is_err() && elements(b"[{}").is_err());
    }
}
