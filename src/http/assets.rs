//! Files that the binary carries for browsers, and how they are kept there.

use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Method, Response, StatusCode};
use warp::reply::Response as Answer;
use xxhash_rust::xxh3::xxh3_128;

/// Kept by browsers, but asked for again each time: a new release of the gateway brings its files at once.
const CACHE_CONTROL: &str = "public, no-cache";

/// One file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asset {
    pub(super) media_type: &'static str,
    pub(super) body: &'static [u8],
    /// What every answer bears besides; see RFC 9110 section 15.4.5 for a 304.
    pub(super) headers: &'static [(&'static str, &'static str)],
}

impl Asset {
    pub(super) fn answer(&self, method: &Method, headers: &HeaderMap) -> Answer {
        let tag = format!("\"{:032x}\"", xxh3_128(self.body));
        let is_known = is_known(headers, &tag);
        let body = if is_known || method == Method::HEAD { &[][..] } else { self.body };
        let mut answer = Response::new(body.into());
        let set = answer.headers_mut();
        set.insert(header::CACHE_CONTROL, HeaderValue::from_static(CACHE_CONTROL));
        for (name, value) in self.headers {
            set.insert(*name, HeaderValue::from_static(value));
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            set.insert(header::ETAG, tag);
        }
        if is_known {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return answer;
        }
        set.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        set.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        set.insert(header::CONTENT_LENGTH, self.body.len().into());
        answer
    }
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

    const FILE: Asset =
        Asset { media_type: "text/plain", body: b"some text", headers: &[("x-frame-options", "DENY")] };

    fn ask(method: &Method, known: Option<&str>) -> Answer {
        let known = known.map(|known| (header::IF_NONE_MATCH, HeaderValue::from_str(known).unwrap()));
        FILE.answer(method, &known.into_iter().collect())
    }

    #[test]
    fn browsers_get_a_file_and_keep_it_while_it_is_current() {
        let first = ask(&Method::GET, None);
        let tag = first.headers()[header::ETAG].to_str().unwrap();
        for got in [ask(&Method::GET, None), ask(&Method::HEAD, None), ask(&Method::GET, Some("\"old\""))] {
            assert_eq!(got.status(), StatusCode::OK);
            assert_eq!(got.headers()[header::CONTENT_TYPE], "text/plain");
            assert_eq!(got.headers()[header::CONTENT_LENGTH], "9");
            assert_eq!(got.headers()["x-frame-options"], "DENY");
        }
        for known in [tag, &format!("\"old\", W/{tag}"), "*"] {
            let got = ask(&Method::GET, Some(known));
            assert_eq!(got.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(got.headers()[header::ETAG], tag);
            assert_eq!(got.headers()["x-frame-options"], "DENY");
            assert!(!got.headers().contains_key(header::CONTENT_LENGTH));
        }
    }
}
