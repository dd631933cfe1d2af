//! How answers and errors are written: JSON, with honest status codes.

use std::convert::Infallible;

use serde::Serialize;
use warp::http::{header, Response, StatusCode};
use warp::reply::Response as Answer;
use warp::Rejection;

use crate::error::{Code, Error};

#[derive(Serialize)]
struct Body<'a> {
    error: &'a Error,
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    // What is written here are plain structs and maps with text keys: serialising them cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

pub(super) fn text(status: StatusCode, kind: &'static str, body: impl Into<String>) -> Answer {
    let mut answer = Response::new(body.into().into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

/// `{"error":{"code","message","retry"}}`.
pub(super) fn error(error: &Error) -> Answer {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = json(status, &Body { error });
    if error.code == Code::Unauthorized {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    if error.code.retry() {
        answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    answer
}

/// The client took too long to say what it wants.
pub(super) fn timeout(message: &str) -> Answer {
    json(StatusCode::REQUEST_TIMEOUT, &Body { error: &Error::bad_request(message) })
}

/// What no route took, or what warp itself refused.
#[allow(clippy::unused_async, reason = "warp wants a future")]
pub(super) async fn rejection(rejection: Rejection) -> Result<Answer, Infallible> {
    let (status, message) = if rejection.is_not_found() {
        (StatusCode::NOT_FOUND, "there is nothing at this address")
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        (StatusCode::METHOD_NOT_ALLOWED, "this address does not take that method")
    } else if rejection.find::<warp::reject::PayloadTooLarge>().is_some() {
        (StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than the limit")
    } else if rejection.find::<warp::reject::LengthRequired>().is_some() {
        (StatusCode::LENGTH_REQUIRED, "the request needs a Content-Length")
    } else {
        (StatusCode::BAD_REQUEST, "the request cannot be understood")
    };
    let code = if status == StatusCode::NOT_FOUND { Code::NotFound } else { Code::BadRequest };
    Ok(json(status, &Body { error: &Error::new(code, message) }))
}
