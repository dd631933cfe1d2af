//! `GET /warren-client.js`: the client library for browsers, served by the node that they talk to.

use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Method, Response, StatusCode};
use warp::reply::Response as Answer;
use warp::{Filter, Rejection};
use xxhash_rust::xxh3::xxh3_128;

const LIBRARY: &str = include_str!("../../sdk/js/warren-client.js");
/// Kept by browsers, but asked for again each time: a new release of the gateway brings its library at once.
const CACHE_CONTROL: &str = "public, no-cache";

/// Public and the same for everybody, so a page of any origin may load it.
pub fn route() -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let tag = format!("\"{:032x}\"", xxh3_128(LIBRARY.as_bytes()));
    warp::path!("warren-client.js")
        .and(warp::get().or(warp::head()).unify())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .map(move |method: Method, headers: HeaderMap| answer(&method, &headers, &tag))
}

fn answer(method: &Method, headers: &HeaderMap, tag: &str) -> Answer {
    let is_known = is_known(headers, tag);
    let body = if is_known || method == Method::HEAD { "" } else { LIBRARY };
    let mut answer = Response::new(body.into());
    let set = answer.headers_mut();
    set.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE_CONTROL));
    set.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        set.insert(header::ETAG, tag);
    }
    if is_known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return answer;
    }
    set.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8"));
    set.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set.insert(header::CONTENT_LENGTH, LIBRARY.len().into());
    answer
}

/// Whether the browser has this version (RFC 9110 section 13.1.2; the comparison is weak).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body is compared by the tests of the library.
    fn ask(method: &Method, known: Option<&str>) -> Answer {
        let known = known.map(|known| (header::IF_NONE_MATCH, HeaderValue::from_str(known).unwrap()));
        answer(method, &known.into_iter().collect(), "\"now\"")
    }

    #[test]
    fn browsers_get_the_library_and_keep_it_while_it_is_current() {
        for got in [ask(&Method::GET, None), ask(&Method::HEAD, None), ask(&Method::GET, Some("\"old\""))] {
            assert_eq!(got.status(), StatusCode::OK);
            assert_eq!(got.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
            assert_eq!(got.headers()[header::CONTENT_LENGTH], LIBRARY.len().to_string());
            assert_eq!(got.headers()[header::ETAG], "\"now\"");
        }
        for known in ["\"now\"", "\"old\", W/\"now\"", "*"] {
            let got = ask(&Method::GET, Some(known));
            assert_eq!(got.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(got.headers()[header::ETAG], "\"now\"");
            assert!(!got.headers().contains_key(header::CONTENT_LENGTH));
        }
    }
}
