//! From an HTTP request to a session: credentials, capacity, the 101.

use std::sync::Arc;
use std::time::Instant;

use hyper::upgrade::OnUpgrade;
use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Method, StatusCode, Version};
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::client::{counted, query_value, Client};
use super::connection::{Connection, Upgrade};
use super::credentials::identify;
use super::slots::{Activity, Slot};
use super::{response, AppState};
use crate::auth::Identity;
use crate::budgets::Share;
use crate::error::{Code, Error};
use crate::lifecycle::Phase;
use crate::protocol::close::CloseCode;
use crate::protocol::wire::extensions;
use crate::protocol::wire::handshake::{self, Accepted};
use crate::protocol::Framing;
use crate::router::hooks::Question;

/// `GET /ws`.
pub(super) fn route(state: Arc<AppState>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path!("ws")
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query)
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<(Client, Arc<Connection>)>())
        .then(move |method, headers, query: String, socket, from| {
            let state = state.clone();
            async move { open(&state, &method, &headers, &query, socket, from, Framing::WebSocket).await }
        })
}

/// Opens a session, or says why not.
pub(super) async fn open(
    state: &AppState,
    method: &Method,
    headers: &HeaderMap,
    query: &str,
    socket: Option<OnUpgrade>,
    from: Option<(Client, Arc<Connection>)>,
    framing: Framing,
) -> Response {
    let opened = async {
        let accepted = check(method, headers, framing)?;
        let extension = extension(state, headers, framing)?;
        let (Some(socket), Some((client, connection))) = (socket, from) else {
            return Err(Refusal::bad("this connection cannot be upgraded").response());
        };
        let admitted = admit(state, headers, query, accepted.bearer.as_deref(), client).await;
        // A client of SockJS that is refused by HTTP tries all of its transports, one after the other.
        let (admitted, refused) = match (admitted, framing) {
            (Ok(admitted), _) => (admitted, None),
            (Err(refusal), Framing::SockJs) => (Admitted::default(), Some(refusal.close)),
            (Err(refusal), Framing::WebSocket | Framing::Deflated) => return Err(refusal.response()),
        };
        if refused.is_some() {
            state.metrics.handshake_refused();
        }
        connection.upgrade(Upgrade {
            socket,
            identity: admitted.identity,
            unauthenticated: admitted.unauthenticated,
            share: admitted.share,
            acknowledges: query_value(query, "ack") == Some("client"),
            codec: accepted.codec,
            framing: if extension.is_some() { Framing::Deflated } else { framing },
            refused,
        });
        Ok(switch(accepted, extension))
    };
    opened.await.unwrap_or_else(|refusal: Box<Response>| {
        state.metrics.handshake_refused();
        *refusal
    })
}

/// Who comes, as far as the handshake tells.
#[derive(Default)]
pub(super) struct Admitted {
    pub(super) identity: Option<Identity>,
    pub(super) unauthenticated: Option<Slot>,
    pub(super) share: Option<Share>,
}

/// Why a client gets no session: as HTTP says it, and as a session that is closed for it.
pub(super) struct Refusal {
    error: Error,
    pub(super) close: CloseCode,
}

impl Refusal {
    fn new(code: Code, message: &str, close: CloseCode) -> Self {
        Self { error: Error::new(code, message), close }
    }

    fn bad(message: &str) -> Self {
        Self::new(Code::BadRequest, message, CloseCode::BadRequest)
    }

    fn response(&self) -> Box<Response> {
        Box::new(response::error(&self.error))
    }
}

/// The place of a session among those of its client's address; a proxy has none of its own.
fn share(state: &AppState, client: Client) -> Result<Option<Share>, Refusal> {
    if client.is_proxy {
        return Ok(None);
    }
    let text = "as many sessions as one address may have here";
    let share = state.sessions_by_address.take(counted(client.address));
    share.map(Some).ok_or_else(|| Refusal::new(Code::RateLimited, text, CloseCode::OverCapacity))
}

/// The slot of a socket that may keep it until the time for its token has run out.
fn unauthenticated(state: &AppState, client: Client) -> Result<Slot, Refusal> {
    let now = Instant::now();
    let slot = state.unauthenticated.admit(Some(counted(client.address)), now);
    let slot = slot.filter(|slot| slot.set(Activity::Serving, now));
    let text = "too many sockets have yet to say who they are";
    slot.ok_or_else(|| Refusal::new(Code::Overloaded, text, CloseCode::OverCapacity))
}

/// Whether the request is a WebSocket's.
fn check(method: &Method, headers: &HeaderMap, framing: Framing) -> Result<Accepted, Box<Response>> {
    handshake::check(method, Version::HTTP_11, headers).map_err(|refusal| {
        let error = Error::bad_request(refusal.reason);
        let is_sockjs = framing == Framing::SockJs && refusal.status == StatusCode::UPGRADE_REQUIRED;
        // SockJS wants 400 (sockjs-protocol, "WebsocketHttpErrors").
        let status = if is_sockjs { StatusCode::BAD_REQUEST } else { refusal.status };
        let mut response = response::error_with(status, &error);
        for (name, value) in refusal.headers().iter().filter(|_| !is_sockjs) {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        Box::new(response)
    })
}

/// What the response says of compression, where it is allowed and the client offers it. Offers that are not read are those of
/// a server without extensions: it ignores them (RFC 6455 section 9.1).
fn extension(
    state: &AppState,
    headers: &HeaderMap,
    framing: Framing,
) -> Result<Option<&'static str>, Box<Response>> {
    if !state.compression || framing != Framing::WebSocket {
        return Ok(None);
    }
    let malformed = |_| Refusal::bad("Sec-WebSocket-Extensions is not a list of extensions").response();
    extensions::negotiate(headers).map_err(malformed)
}

/// Whether the application lets the user connect, if it is to be asked.
async fn allowed(state: &AppState, client: Client, identity: &Identity) -> Result<(), Refusal> {
    let address = (!client.is_proxy).then(|| counted(client.address));
    let verdict = state.router.allowed(Question::connect(&identity.user, address)).await;
    verdict.map_err(|error| {
        let is_refused = error.code == Code::Forbidden;
        let close = if is_refused { CloseCode::Forbidden } else { CloseCode::OverCapacity };
        Refusal { error, close }
    })
}

/// Whether there may be a session, and whose. `offered` is a token among the subprotocols.
pub(super) async fn admit(
    state: &AppState,
    headers: &HeaderMap,
    query: &str,
    offered: Option<&str>,
    client: Client,
) -> Result<Admitted, Refusal> {
    if state.lifecycle.phase() >= Phase::Draining {
        return Err(Refusal::new(Code::Unavailable, "this node is shutting down", CloseCode::Drain));
    }
    if state.router.hub().sessions() >= state.max_sessions {
        let text = "this node holds as many sessions as it may";
        return Err(Refusal::new(Code::Overloaded, text, CloseCode::OverCapacity));
    }
    let identity = identify(state, client, headers, offered, query).await;
    let identity = identity.map_err(|error| {
        let close = match error.code {
            Code::Unauthorized => CloseCode::Unauthorized,
            Code::Unavailable => CloseCode::OverCapacity,
            _ => CloseCode::RateLimited,
        };
        Refusal { error, close }
    })?;
    // The session will be counted exactly; this spares a socket that would be closed at once.
    let held =
        identity.as_ref().map_or(0, |identity| state.router.hub().all_sessions_of(&identity.user).len());
    if held >= state.sessions_per_user {
        let text = "as many sessions as one user may have here";
        return Err(Refusal::new(Code::RateLimited, text, CloseCode::OverCapacity));
    }
    if let Some(identity) = &identity {
        allowed(state, client, identity).await?;
    }
    let share = share(state, client)?;
    let unauthenticated = match identity {
        Some(_) => None,
        None => Some(unauthenticated(state, client)?),
    };
    Ok(Admitted { identity, unauthenticated, share })
}

fn switch(accepted: Accepted, extension: Option<&'static str>) -> Response {
    let mut response = Response::new(String::new().into());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accepted.accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(subprotocol) = accepted.subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
    if let Some(extension) = extension {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extension));
    }
    response
}
