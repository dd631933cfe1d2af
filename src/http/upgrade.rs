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
use super::credentials::{identify, refusal};
use super::slots::{Activity, Slot};
use super::{response, AppState};
use crate::auth::Identity;
use crate::budgets::Share;
use crate::error::{Code, Error};
use crate::lifecycle::Phase;
use crate::protocol::wire::handshake::{self, Accepted};

/// `GET /ws`.
pub(super) fn route(state: Arc<AppState>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path!("ws")
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query)
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<(Client, Arc<Connection>)>())
        .map(move |method, headers, query: String, socket, from: Option<(Client, Arc<Connection>)>| {
            let client = from.as_ref().map(|(client, _)| *client);
            let opened = accept(&state, client, &method, &headers, &query);
            let opened = opened.and_then(|(accepted, identity)| {
                let (Some(socket), Some((client, connection))) = (socket, from) else {
                    return Err(refuse(Code::BadRequest, "this connection cannot be upgraded"));
                };
                let share = share(&state, client)?;
                let unauthenticated = match identity {
                    Some(_) => None,
                    None => Some(unauthenticated(&state, client)?),
                };
                let acknowledges = query_value(&query, "ack") == Some("client");
                connection.upgrade(Upgrade { socket, identity, unauthenticated, share, acknowledges });
                Ok(switch(accepted))
            });
            opened.unwrap_or_else(|refusal| {
                state.metrics.handshake_refused();
                *refusal
            })
        })
}

type Opened = (Accepted, Option<Identity>);

fn refuse(code: Code, message: &str) -> Box<Response> {
    Box::new(response::error(&Error::new(code, message)))
}

/// The place of a session among those of its client's address; a proxy has none of its own.
fn share(state: &AppState, client: Client) -> Result<Option<Share>, Box<Response>> {
    if client.is_proxy {
        return Ok(None);
    }
    let share = state.sessions_by_address.take(counted(client.address));
    share.map(Some).ok_or_else(|| refuse(Code::RateLimited, "as many sessions as one address may have here"))
}

/// The slot of a socket that may keep it until the time for its token has run out.
fn unauthenticated(state: &AppState, client: Client) -> Result<Slot, Box<Response>> {
    let now = Instant::now();
    let slot = state.unauthenticated.admit(Some(counted(client.address)), now);
    let slot = slot.filter(|slot| slot.set(Activity::Serving, now));
    slot.ok_or_else(|| refuse(Code::Overloaded, "too many sockets have yet to say who they are"))
}

fn accept(
    state: &AppState,
    client: Option<Client>,
    method: &Method,
    headers: &HeaderMap,
    query: &str,
) -> Result<Opened, Box<Response>> {
    let accepted = handshake::check(method, Version::HTTP_11, headers).map_err(|refused| {
        let error = Error::bad_request(refused.reason);
        let mut response = response::error_with(refused.status, &error);
        for (name, value) in refused.headers() {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        Box::new(response)
    })?;
    if state.lifecycle.phase() >= Phase::Draining {
        return Err(refuse(Code::Unavailable, "this node is shutting down"));
    }
    if state.router.hub().sessions() >= state.max_sessions {
        return Err(refuse(Code::Overloaded, "this node holds as many sessions as it may"));
    }
    let identity = identify(&state.verifier, headers, accepted.bearer.as_deref(), query)
        .map_err(|error| Box::new(response::error(&refusal(state, client, error))))?;
    // The session will be counted exactly; this spares a socket that would be closed at once.
    let held = identity.as_ref().map_or(0, |identity| state.router.hub().sessions_of(&identity.user).len());
    if held >= state.sessions_per_user {
        return Err(refuse(Code::RateLimited, "as many sessions as one user may have here"));
    }
    Ok((accepted, identity))
}

fn switch(accepted: Accepted) -> Response {
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
    response
}
