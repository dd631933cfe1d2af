//! How answers of SockJS look: what browsers may do with them, and what a client is told before it connects.

use warp::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use crate::http::response;

const NO_CACHE: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";
/// How long browsers may keep what OPTIONS answered, in seconds: a year.
const PREFLIGHT_CACHE: &str = "public, max-age=31536000";
/// Has nginx pass on each piece of a response as it comes.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Lets the page read the answer. Its origin may use this node, or the request would not have come here.
pub(super) fn shared(mut answer: Response, asked: &HeaderMap) -> Response {
    let set = answer.headers_mut();
    match asked.get(header::ORIGIN) {
        Some(origin) => {
            set.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            set.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        None => {
            set.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
    }
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        set.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    set.insert(header::VARY, HeaderValue::from_static("Origin"));
    answer
}

/// The same for an answer that is good once.
pub(super) fn fresh(mut answer: Response, asked: &HeaderMap) -> Response {
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_CACHE));
    shared(answer, asked)
}

/// The head of a response that streams.
pub(super) fn streaming(mut answer: Response, kind: &'static str, asked: &HeaderMap) -> Response {
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(UNBUFFERED, HeaderValue::from_static("no"));
    fresh(answer, asked)
}

/// What a browser asks before it asks.
pub(super) fn preflight(methods: &'static str, asked: &HeaderMap) -> Response {
    let mut answer = Response::default();
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let set = answer.headers_mut();
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static(PREFLIGHT_CACHE));
    set.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("31536000"));
    set.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    shared(answer, asked)
}

/// What a client asks first. sockjs-client tries all transports whatever `transports` says.
pub(super) fn info(method: &Method, asked: &HeaderMap, over_http: bool) -> Response {
    if method == Method::OPTIONS {
        return preflight("OPTIONS, GET", asked);
    }
    let entropy: u32 = rand::random();
    let transports = match over_http {
        true => r#"["websocket","xhr-streaming","eventsource","xhr-polling"]"#,
        false => r#"["websocket"]"#,
    };
    let body = format!(
        r#"{{"websocket":true,"origins":["*:*"],"cookie_needed":false,"transports":{transports},"entropy":{entropy}}}"#
    );
    fresh(response::text(StatusCode::OK, "application/json; charset=UTF-8", body), asked)
}
