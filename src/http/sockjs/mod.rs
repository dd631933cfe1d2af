//! `/sockjs`: what sockjs-client 1.x asks for. The iframe pages and the transports of old browsers are not there: 404 has the
//! client go on.
//!
//! - `answers.rs`: what all answers have in common, and `/info`.
//! - `transports.rs`: the transports over HTTP; `table.rs`: their sessions, by name.
//! - `bridge.rs`: the task of such a session, which is a client to the session's socket; `exchange.rs`: what it decides.
//! - `receiver.rs`: how frames stand in a response.

mod answers;
mod bridge;
mod exchange;
mod receiver;
mod table;
mod transports;

use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use hyper::upgrade::OnUpgrade;
use tokio::sync::mpsc;
use warp::http::header::HeaderMap;
use warp::http::{Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::client::Client;
use super::connection::Connection;
use super::{response, upgrade, AppState};
use crate::protocol::Framing;
use crate::session::Admission;
pub use table::Fallbacks;
use table::Name;
use transports::Over;

/// Where SockJS is.
const BASE: &str = "/sockjs";
const GREETING: &str = "Welcome to SockJS!\n";

/// What stands at an address under [`BASE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address<'a> {
    Greeting,
    Info,
    /// A WebSocket as it is.
    Raw,
    /// A WebSocket with the frames of SockJS.
    WebSocket,
    /// A transport over HTTP, with the names of the server and the session.
    Http(Over, &'a str, &'a str),
}

impl<'a> Address<'a> {
    /// `None`: nothing is there.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix(BASE)?;
        match *rest.split('/').collect::<Vec<_>>() {
            [""] | ["", ""] => Some(Address::Greeting),
            ["", "info"] => Some(Address::Info),
            ["", "websocket"] => Some(Address::Raw),
            ["", server, session, transport] if is_name(server) && is_name(session) => match transport {
                "websocket" => Some(Address::WebSocket),
                _ => Over::of(transport).map(|over| Address::Http(over, server, session)),
            },
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

/// Who asks, on which connection.
struct Peer(Client, Arc<Connection>);

/// A request to an address of SockJS.
struct Asked {
    state: Arc<AppState>,
    /// Where sessions begin.
    admissions: mpsc::Sender<Admission>,
    method: Method,
    headers: HeaderMap,
    query: String,
    from: Option<Peer>,
}

/// Everything under `/sockjs`. Who may come, and by which methods, was checked before.
pub(super) fn route(
    state: Arc<AppState>,
    admissions: mpsc::Sender<Admission>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let from = warp::ext::optional::<(Client, Arc<Connection>)>();
    let asked = warp::method().and(warp::header::headers_cloned()).and(query).and(from).map(
        move |method, headers, query, from: Option<(Client, Arc<Connection>)>| Asked {
            state: state.clone(),
            admissions: admissions.clone(),
            method,
            headers,
            query,
            from: from.map(|(client, connection)| Peer(client, connection)),
        },
    );
    warp::path("sockjs")
        .and(warp::path::full())
        .and(asked)
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::body::stream())
        .and_then(
            |path: FullPath, asked, socket, body| async move { answer(&path, asked, socket, body).await },
        )
}

async fn answer(
    path: &FullPath,
    asked: Asked,
    socket: Option<OnUpgrade>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Rejection> {
    let framing = match Address::of(path.as_str()) {
        Some(Address::Greeting) => {
            return Ok(response::text(StatusCode::OK, "text/plain; charset=UTF-8", GREETING));
        }
        Some(Address::Info) => {
            let over_http = asked.state.fallbacks.is_some();
            return Ok(answers::info(&asked.method, &asked.headers, over_http));
        }
        Some(Address::Http(over, server, session)) => {
            return Ok(match Name::new(server, session) {
                Some(name) => transports::answer(asked, name, over, body).await,
                None => response::nothing_here(),
            });
        }
        Some(Address::Raw) => Framing::WebSocket,
        Some(Address::WebSocket) => Framing::SockJs,
        None => return Err(warp::reject::not_found()),
    };
    let Asked { state, method, headers, query, from, .. } = asked;
    let from = from.map(|Peer(client, connection)| (client, connection));
    Ok(upgrade::open(&state, &method, &headers, &query, socket, from, framing).await)
}

#[cfg(test)]
mod tests {
    use super::receiver::Kind;
    use super::*;

    #[test]
    fn addresses() {
        let over = |over| Some(Address::Http(over, "a", "b"));
        for (path, expected) in [
            ("/sockjs", Some(Address::Greeting)),
            ("/sockjs/", Some(Address::Greeting)),
            ("/sockjs/info", Some(Address::Info)),
            ("/sockjs/websocket", Some(Address::Raw)),
            ("/sockjs/000/abcd1234/websocket", Some(Address::WebSocket)),
            ("/sockjs/a/b/xhr", over(Over::Receive(Kind::Polling))),
            ("/sockjs/a/b/xhr_streaming", over(Over::Receive(Kind::Streaming))),
            ("/sockjs/a/b/eventsource", over(Over::Receive(Kind::Events))),
            ("/sockjs/a/b/xhr_send", over(Over::Send)),
            ("/sockjs//abcd/websocket", None),
            ("/sockjs/000//websocket", None),
            ("/sockjs/000//xhr", None),
            ("/sockjs/a.b/c/websocket", None),
            ("/sockjs/a/c.d/xhr_send", None),
            ("/sockjs/a/b/c/websocket", None),
            ("/sockjs/a/b/websocket/", None),
            ("/sockjs/a/b/xhr/", None),
            ("/sockjs/a/b/htmlfile", None),
            ("/sockjs/a/b/jsonp", None),
            ("/sockjs/iframe.html", None),
            ("/sockjsx", None),
            ("/ws", None),
        ] {
            assert_eq!(Address::of(path), expected, "{path}");
        }
    }
}
