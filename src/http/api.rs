//! The HTTP API: publish, look up, disconnect; `channels.rs` has what is about channels.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use warp::http::header::HeaderMap;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::client::Client;
use super::connection::Connection;
use super::credentials::{bearer, refusal};
use super::{channels, cluster, publish, response, revocations, tickets, AppState};
use crate::auth::Caller;
use crate::directory::Key;
use crate::error::{Code, Error};
use crate::ids::{SessionId, UserId};
use crate::router::ask::Found;

pub(super) fn routes(state: Arc<AppState>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let v1 = warp::path("v1").and(asked(state));
    let messages = v1
        .clone()
        .and(warp::path!("messages"))
        .and(warp::post())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|asked: Asked, headers, body| {
            let caller = asked.caller();
            publish::post(asked.state, caller, headers, body)
        });
    let revoke = v1
        .clone()
        .and(warp::path!("revocations"))
        .and(warp::post())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|asked: Asked, headers, body| revocations::post(asked, headers, body));
    let ticket = v1
        .clone()
        .and(warp::path!("tickets"))
        .and(warp::post())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|asked: Asked, headers, body| {
            let caller = asked.caller();
            tickets::post(asked.state, caller, headers, body)
        });
    let read = warp::get().or(warp::head()).unify();
    let nodes = v1.clone().and(warp::path!("nodes")).and(read).then(get_nodes);
    let whole = v1.clone().and(warp::path!("cluster")).and(read).then(cluster::get);
    let drain =
        v1.clone().and(warp::path!("nodes" / String / "drain")).and(warp::post()).then(cluster::drain);
    let trace = v1.clone().and(warp::path!("messages" / String / "trace")).and(read).then(cluster::trace);
    let nodes = nodes.or(trace).unify().or(whole).unify().or(drain).unify();
    let user = v1.clone().and(warp::path!("users" / String)).and(read).then(get_user);
    let home = v1.clone().and(warp::path!("users" / String / "home")).and(read).then(get_home);
    let user = user.or(home).unify();
    let user_sessions =
        v1.clone().and(warp::path!("users" / String / "sessions")).and(warp::delete()).then(delete_user);
    let channel = v1.clone().and(warp::path!("channels" / String)).and(read).then(channels::get);
    let place = v1.clone().and(warp::path!("users" / String / "channels" / String));
    let put = place.clone().and(warp::put()).then(channels::put);
    let delete = place.and(warp::delete()).then(channels::delete);
    let channels = channel.or(put).unify().or(delete).unify();
    let session = v1.and(warp::path!("sessions" / String)).and(warp::delete()).then(delete_session);
    messages
        .or(revoke)
        .unify()
        .or(ticket)
        .unify()
        .or(nodes)
        .unify()
        .or(user)
        .unify()
        .or(user_sessions)
        .unify()
        .or(session)
        .unify()
        .or(channels)
        .unify()
}

/// A request to the API. Each route that is tried gets one: the credentials are looked at by the one that answers.
pub(super) struct Asked {
    state: Arc<AppState>,
    headers: HeaderMap,
    client: Option<Client>,
}

impl Asked {
    fn caller(&self) -> Result<Caller, Error> {
        let caller = bearer(&self.headers).and_then(|token| self.state.verifier.api(token));
        caller.map_err(|error| refusal(&self.state, self.client, error))
    }
}

fn asked(state: Arc<AppState>) -> impl Filter<Extract = (Asked,), Error = std::convert::Infallible> + Clone {
    let from = warp::ext::optional::<(Client, Arc<Connection>)>();
    warp::header::headers_cloned().and(from).map(
        move |headers: HeaderMap, from: Option<(Client, Arc<Connection>)>| {
            let client = from.map(|(client, _)| client);
            Asked { state: state.clone(), headers, client }
        },
    )
}

/// Everything but publishing needs the whole API.
pub(super) fn allowed(asked: Asked) -> Result<Arc<AppState>, Error> {
    match asked.caller()?.api() {
        true => Ok(asked.state),
        false => Err(Error::new(Code::Forbidden, "these credentials do not open the API")),
    }
}

fn or_error(result: Result<Response, Error>) -> Response {
    result.unwrap_or_else(|error| response::error(&error))
}

#[derive(Serialize)]
struct NodeInfo<'a> {
    node: &'a str,
    sessions: u64,
    users: u64,
    started_ms: u64,
    version: &'a str,
    draining: bool,
}

#[allow(clippy::unused_async, reason = "a handler like the others")]
async fn get_nodes(asked: Asked) -> Response {
    or_error(allowed(asked).map(|state| {
        let directory = state.router.directory();
        let mut peers = directory.peers();
        let mut this = directory.this_node();
        // What the others are told may be a heartbeat old; what we are told ourselves need not be.
        this.info.sessions = state.router.hub().sessions() as u64;
        this.info.users = state.router.hub().users() as u64;
        peers.push(this);
        peers.sort_by(|a, b| a.node.cmp(&b.node));
        let nodes: Vec<_> = (peers.iter())
            .map(|peer| NodeInfo {
                node: peer.node.as_str(),
                sessions: peer.info.sessions,
                users: peer.info.users,
                started_ms: peer.info.started_ms,
                version: &peer.info.version,
                draining: peer.info.draining,
            })
            .collect();
        let body = json!({
            "strategy": state.router.routing().as_str(),
            "sessions": nodes.iter().map(|node| node.sessions).sum::<u64>(),
            "users": nodes.iter().map(|node| node.users).sum::<u64>(),
            "nodes": nodes,
        });
        response::json(StatusCode::OK, &body)
    }))
}

pub(super) fn user_id(segment: &str) -> Result<UserId, Error> {
    let decoded = percent_decode_str(segment).decode_utf8();
    let text = decoded.map_err(|_| Error::bad_request("user id: not UTF-8"))?;
    UserId::new(&text).map_err(|error| Error::bad_request(error.to_string()))
}

async fn get_user(asked: Asked, segment: String) -> Response {
    let (state, user) = match allowed(asked).and_then(|state| Ok((state, user_id(&segment)?))) {
        Ok(asked) => asked,
        Err(error) => return response::error(&error),
    };
    let Found { sessions, partial, .. } = state.router.sessions_of(&user).await;
    let body = json!({
        "user": user,
        "online": !sessions.is_empty(),
        "sessions": sessions,
        "mail": state.router.mail_waiting(&user),
        "partial": partial,
    });
    response::json(StatusCode::OK, &body)
}

/// `GET /v1/users/{id}/home`: for the API, and for the user.
#[allow(clippy::unused_async, reason = "a handler like the others")]
async fn get_home(asked: Asked, segment: String) -> Response {
    let home = asked.caller().and_then(|caller| {
        let user = user_id(&segment)?;
        if !caller.api() && !matches!(&caller, Caller::User(identity) if identity.user == user) {
            return Err(Error::new(Code::Forbidden, "these credentials are of another user"));
        }
        let router = &asked.state.router;
        let (node, url) = router.directory().place_for(Key::user(&user));
        let body = json!({ "user": user, "node": node, "url": url, "routing": router.routing().as_str() });
        Ok(response::json(StatusCode::OK, &body))
    });
    or_error(home)
}

fn closed(found: &Found) -> Response {
    let body =
        json!({ "closed": found.sessions.len(), "sessions": found.sessions, "partial": found.partial });
    response::json(StatusCode::OK, &body)
}

async fn delete_user(asked: Asked, segment: String) -> Response {
    match allowed(asked).and_then(|state| Ok((state, user_id(&segment)?))) {
        Ok((state, user)) => closed(&state.router.disconnect_user(&user).await),
        Err(error) => response::error(&error),
    }
}

async fn delete_session(asked: Asked, segment: String) -> Response {
    let session = |segment: &str| {
        SessionId::parse(&percent_decode_str(segment).decode_utf8_lossy())
            .map_err(|error| Error::bad_request(error.to_string()))
    };
    let (state, session) = match allowed(asked).and_then(|state| Ok((state, session(&segment)?))) {
        Ok(asked) => asked,
        Err(error) => return response::error(&error),
    };
    let found = state.router.disconnect_session(&session).await;
    if found.sessions.is_empty() && !found.partial {
        return response::error(&Error::new(Code::NotFound, "no such session is connected"));
    }
    closed(&found)
}
