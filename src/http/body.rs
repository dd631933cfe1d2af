//! Bodies of requests: bounded each, in time, and in the bytes that all requests and one caller have in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use warp::http::header::{HeaderMap, CONTENT_LENGTH};
use warp::http::StatusCode;
use warp::reply::Response;

use super::guard::check_encoding;
use super::{response, AppState};
use crate::error::{Code, Error};

/// Bodies of all requests at once, in bytes. Overflow policy: `overloaded`.
const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bodies of one caller at once, in bytes: four of the longest. Overflow policy: `overloaded`.
const CALLER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    TooLong { bytes_max: usize },
    NoRoom,
    Incomplete,
    TimedOut,
}

impl BodyError {
    pub(super) fn response(self) -> Response {
        match self {
            Self::TooLong { bytes_max } => {
                let error = Error::bad_request(format!("body: longer than {bytes_max} bytes"));
                // What follows of it is not read.
                response::closing(response::error_with(StatusCode::PAYLOAD_TOO_LARGE, &error))
            }
            Self::NoRoom => response::closing(response::error(&Error::new(
                Code::Overloaded,
                "body: too many bytes are in flight at the moment",
            ))),
            Self::Incomplete => response::error(&Error::bad_request("body: incomplete")),
            Self::TimedOut => response::closing(response::timeout("body: did not come in time")),
        }
    }
}

/// The bytes of bodies in flight, by caller.
#[derive(Debug, Default)]
pub struct BodyBudget(Mutex<InFlight>);

#[derive(Debug, Default)]
struct InFlight {
    total: usize,
    by_caller: HashMap<Arc<str>, usize>,
}

/// A caller's part of the budget, given back when it is dropped.
pub(super) struct Reserved<'a> {
    budget: &'a BodyBudget,
    caller: Arc<str>,
    bytes: usize,
}

impl BodyBudget {
    pub(super) fn reserve(&self, caller: Arc<str>) -> Reserved<'_> {
        Reserved { budget: self, caller, bytes: 0 }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InFlight> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved<'_> {
    /// Takes more; `false` if there is none.
    fn grow(&mut self, bytes: usize) -> bool {
        let mut in_flight = self.budget.lock();
        let own = in_flight.by_caller.get(&self.caller).copied().unwrap_or_default();
        if in_flight.total + bytes > TOTAL_BYTES_MAX || own + bytes > CALLER_BYTES_MAX {
            return false;
        }
        in_flight.total += bytes;
        in_flight.by_caller.insert(self.caller.clone(), own + bytes);
        self.bytes += bytes;
        true
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.budget.lock();
        in_flight.total -= self.bytes;
        if let Some(own) = in_flight.by_caller.get_mut(&self.caller) {
            *own -= self.bytes;
            if *own == 0 {
                in_flight.by_caller.remove(&self.caller);
            }
        }
    }
}

/// How long bodies may be, in bytes and in time.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// Of one message.
    pub(super) single: usize,
    /// Of an array of messages.
    pub(super) batch: usize,
    pub(super) timeout: Duration,
}

/// Longest body of a request that is no message, in bytes.
const SHORT_BYTES_MAX: usize = 4 * 1024;

/// Reads the short body of a request that is no message; an empty one is `{}`.
pub(super) async fn read_short<T: DeserializeOwned>(
    state: &AppState,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    caller: Arc<str>,
) -> Result<T, Box<Response>> {
    check_encoding(headers).map_err(Box::new)?;
    let limits = BodyLimits { single: SHORT_BYTES_MAX, batch: SHORT_BYTES_MAX, timeout: state.body_timeout };
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut reserved = state.bodies.reserve(caller);
    let body =
        read(body, announced, limits, &mut reserved).await.map_err(|error| Box::new(error.response()))?;
    let body = if body.is_empty() { &b"{}"[..] } else { &body };
    serde_json::from_slice(body)
        .map_err(|error| Box::new(response::error(&Error::bad_request(format!("body: {error}")))))
}

/// Reads a body, whether or not its length was announced. Its part of the budget grows as it comes, so that a
/// length that is only claimed costs nothing.
pub(super) async fn read(
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    announced: Option<u64>,
    limits: BodyLimits,
    reserved: &mut Reserved<'_>,
) -> Result<Bytes, BodyError> {
    if announced.is_some_and(|length| length > limits.batch as u64) {
        return Err(BodyError::TooLong { bytes_max: limits.batch });
    }
    let whole = async {
        let mut whole = BytesMut::new();
        let mut body = std::pin::pin!(body);
        while let Some(part) = body.next().await {
            let part = part.map_err(|_| BodyError::Incomplete)?;
            let bytes_max = if is_array(&whole) || whole.is_empty() && is_array(part.chunk()) {
                limits.batch
            } else {
                limits.single
            };
            if whole.len() + part.remaining() > bytes_max {
                return Err(BodyError::TooLong { bytes_max });
            }
            if !reserved.grow(part.remaining()) {
                return Err(BodyError::NoRoom);
            }
            whole.put(part);
        }
        Ok(whole.freeze())
    };
    tokio::time::timeout(limits.timeout, whole).await.unwrap_or(Err(BodyError::TimedOut))
}

/// Whether a JSON text is an array.
pub(super) fn is_array(json: &[u8]) -> bool {
    json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_a_share_and_gives_it_back() {
        let budget = BodyBudget::default();
        let mut one = budget.reserve("one".into());
        assert!(one.grow(CALLER_BYTES_MAX) && !one.grow(1));
        let mut others: Vec<_> = (0..3).map(|n| budget.reserve(format!("{n}").into())).collect();
        assert!(others.iter_mut().all(|other| other.grow(CALLER_BYTES_MAX)));
        let mut late = budget.reserve("late".into());
        assert!(!late.grow(1), "the total is used up");
        drop(one);
        assert!(late.grow(1));
        drop((late, others));
        let in_flight = budget.lock();
        assert_eq!((in_flight.total, in_flight.by_caller.len()), (0, 0));
    }

    #[tokio::test]
    async fn lengths_are_bounded_as_they_come() {
        let budget = BodyBudget::default();
        let limits = BodyLimits { single: 8, batch: 16, timeout: Duration::from_secs(5) };
        for (parts, announced, expected) in [
            (&["{1234567", ""][..], None, Ok(8)),
            (&["{1234567", "8"], None, Err(BodyError::TooLong { bytes_max: 8 })),
            (&[" [", "1234567890123"], None, Ok(15)),
            (&["[", "123456789012345", "6"], None, Err(BodyError::TooLong { bytes_max: 16 })),
            (&[], Some(17), Err(BodyError::TooLong { bytes_max: 16 })),
        ] {
            let stream = futures_util::stream::iter(parts.iter().map(|part| Ok(part.as_bytes())));
            let mut reserved = budget.reserve("a".into());
            let read = read(stream, announced, limits, &mut reserved).await;
            assert_eq!(read.map(|body| body.len()), expected, "{parts:?}");
        }
    }
}
