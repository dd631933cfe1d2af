//! `/sockjs`: what sockjs-client 1.x asks for, with the transports that are WebSockets.
//!
//! Other transports, and the iframe pages for browsers without WebSocket, are not there: 404 has the client go on.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::client::Client;
use super::connection::Connection;
use super::{response, upgrade, AppState};
use crate::protocol::Framing;

/// Where SockJS is.
const BASE: &str = "/sockjs";
const GREETING: &str = "Welcome to SockJS!\n";
const NO_CACHE: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";
/// How long browsers may keep what OPTIONS answered, in seconds: a year.
const PREFLIGHT_CACHE: &str = "public, max-age=31536000";

/// What stands at an address under [`BASE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    Greeting,
    Info,
    /// A WebSocket as it is.
    Raw,
    /// A WebSocket with the frames of SockJS.
    WebSocket,
}

impl Address {
    /// `None`: nothing is there.
    pub(super) fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix(BASE)?;
        match *rest.split('/').collect::<Vec<_>>() {
            [""] | ["", ""] => Some(Address::Greeting),
            ["", "info"] => Some(Address::Info),
            ["", "websocket"] => Some(Address::Raw),
            ["", server, session, "websocket"] if is_name(server) && is_name(session) => {
                Some(Address::WebSocket)
            }
            _ => None,
        }
    }

    pub(super) fn is_socket(self) -> bool {
        matches!(self, Address::Raw | Address::WebSocket)
    }
}

/// The names of servers and sessions are the client's; a dot would look like a file.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('.')
}

/// Everything under `/sockjs`. Who may come, and by which methods, was checked before.
pub(super) fn route(state: Arc<AppState>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path("sockjs")
        .and(warp::path::full())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query)
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<(Client, Arc<Connection>)>())
        .and_then(move |path: FullPath, method: Method, headers: HeaderMap, query: String, socket, from| {
            let state = state.clone();
            async move {
                match Address::of(path.as_str()) {
                    Some(Address::Greeting) => {
                        Ok(response::text(StatusCode::OK, "text/plain; charset=UTF-8", GREETING))
                    }
                    Some(Address::Info) => Ok(info(&method, &headers)),
                    Some(Address::Raw) => {
                        Ok(upgrade::open(&state, &method, &headers, &query, socket, from, Framing::WebSocket)
                            .await)
                    }
                    Some(Address::WebSocket) => {
                        Ok(upgrade::open(&state, &method, &headers, &query, socket, from, Framing::SockJs)
                            .await)
                    }
                    None => Err(warp::reject::not_found()),
                }
            }
        })
}

/// What a client asks first. The origin may use this node, or it would not have come here.
fn info(method: &Method, headers: &HeaderMap) -> Response {
    let mut answer = if method == Method::OPTIONS {
        let mut answer = response::text(StatusCode::NO_CONTENT, "text/plain; charset=UTF-8", "");
        answer.headers_mut().remove(header::CONTENT_TYPE);
        answer
    } else {
        let entropy: u32 = rand::random();
        let body =
            format!(r#"{{"websocket":true,"origins":["*:*"],"cookie_needed":false,"entropy":{entropy}}}"#);
        response::text(StatusCode::OK, "application/json; charset=UTF-8", body)
    };
    let set = answer.headers_mut();
    let fixed = HeaderValue::from_static;
    if method == Method::OPTIONS {
        set.insert(header::CACHE_CONTROL, fixed(PREFLIGHT_CACHE));
        set.insert(header::ACCESS_CONTROL_MAX_AGE, fixed("31536000"));
        set.insert(header::ACCESS_CONTROL_ALLOW_METHODS, fixed("OPTIONS, GET"));
    } else {
        set.insert(header::CACHE_CONTROL, fixed(NO_CACHE));
    }
    if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        set.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    match headers.get(header::ORIGIN) {
        Some(origin) => {
            set.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            set.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, fixed("true"));
        }
        None => {
            set.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, fixed("*"));
        }
    }
    set.insert(header::VARY, fixed("Origin"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (path, expected) in [
            ("/sockjs", Some(Address::Greeting)),
            ("/sockjs/", Some(Address::Greeting)),
            ("/sockjs/info", Some(Address::Info)),
            ("/sockjs/websocket", Some(Address::Raw)),
            ("/sockjs/000/abcd1234/websocket", Some(Address::WebSocket)),
            ("/sockjs//abcd/websocket", None),
            ("/sockjs/000//websocket", None),
            ("/sockjs/a.b/c/websocket", None),
            ("/sockjs/a/c.d/websocket", None),
            ("/sockjs/a/b/c/websocket", None),
            ("/sockjs/a/b/websocket/", None),
            ("/sockjs/a/b/xhr", None),
            ("/sockjs/iframe.html", None),
            ("/sockjsx", None),
            ("/ws", None),
        ] {
            assert_eq!(Address::of(path), expected, "{path}");
        }
    }
}
