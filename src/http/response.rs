//! How responses and errors are written: JSON, with honest status codes.

use std::convert::Infallible;

use serde::Serialize;
use warp::http::{header, StatusCode};
use warp::reply::Response;
use warp::Rejection;

use crate::error::{Code, Error};

#[derive(Serialize)]
struct Body<'a> {
    error: &'a Error,
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // What is written here are plain structs and maps with text keys: serialising them cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(super) fn text(status: StatusCode, kind: &'static str, body: impl Into<String>) -> Response {
    let mut response = Response::new(body.into().into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// `{"error":{"code","message","retry"}}`.
pub(super) fn error(error: &Error) -> Response {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = json(status, &Body { error });
    if error.code == Code::Unauthorized {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    if error.code.retry() {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// The error with another status than its code has.
pub(super) fn error_with(status: StatusCode, error: &Error) -> Response {
    json(status, &Body { error })
}

/// The client took too long to send its request.
pub(super) fn timeout(message: &str) -> Response {
    error_with(StatusCode::REQUEST_TIMEOUT, &Error::bad_request(message))
}

/// `allow` lists the methods that the address takes (RFC 9110 section 15.5.6: a 405 must say them).
pub(super) fn method_not_allowed(allow: &'static str) -> Response {
    let error = Error::bad_request("this address does not take that method");
    let mut response = error_with(StatusCode::METHOD_NOT_ALLOWED, &error);
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
    response
}

pub(super) fn nothing_here() -> Response {
    error(&Error::new(Code::NotFound, "there is nothing at this address"))
}

/// The connection ends after this response.
pub(super) fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// For a request that no route took, or that warp itself refused.
#[allow(clippy::unused_async, reason = "warp wants a future")]
pub(super) async fn rejection(rejection: Rejection) -> Result<Response, Infallible> {
    Ok(match rejection.is_not_found() {
        true => nothing_here(),
        false => error(&Error::bad_request("the request cannot be understood")),
    })
}
