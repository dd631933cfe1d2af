//! From an HTTP request to a session: origin, credentials, the 101, and the bare socket to its worker.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Method, Response, StatusCode, Version};
use warp::reply::Response as Answer;
use warp::{Filter, Rejection};

use crate::auth::{AuthError, Identity, Verifier};
use crate::error::{Code, Error};
use crate::http::{answer, Gate};
use crate::lifecycle::Phase;
use crate::protocol::Codec;
use crate::protocol::wire::handshake::{self, Accepted};
use crate::session::Admission;

/// Longest query string, in bytes.
const QUERY_BYTES_MAX: usize = 1024;

/// `GET /ws`.
pub fn route(
    gate: Arc<Gate>,
    admissions: mpsc::Sender<Admission>,
) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path!("ws")
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(query)
        .and(warp::ext::optional::<OnUpgrade>())
        .map(move |method: Method, headers: HeaderMap, query: String, upgrade: Option<OnUpgrade>| {
            match accept(&gate, &method, &headers, &query) {
                Ok((accepted, identity)) => {
                    let Some(upgrade) = upgrade else {
                        return answer::error(&Error::bad_request("this connection cannot be upgraded"));
                    };
                    // Owned by the upgrade: hyper ends it when the connection ends.
                    let acknowledges = parameter(&query, "ack") == Some("client");
                    tokio::spawn(hand_over(upgrade, identity, acknowledges, admissions.clone()));
                    switch(accepted)
                }
                Err(refusal) => {
                    gate.metrics.handshake_refused();
                    *refusal
                }
            }
        })
}

fn accept(
    gate: &Gate,
    method: &Method,
    headers: &HeaderMap,
    query: &str,
) -> Result<(Accepted, Option<Identity>), Box<Answer>> {
    let accepted = handshake::check(method, Version::HTTP_11, headers).map_err(|refusal| {
        let error = Error::bad_request(refusal.reason);
        let mut answer = answer::error(&error);
        *answer.status_mut() = refusal.status;
        for (name, value) in refusal.headers() {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        Box::new(answer)
    })?;
    let refuse = |code, message: &str| Box::new(answer::error(&Error::new(code, message)));
    if !origin_may(gate, headers) {
        return Err(refuse(Code::Forbidden, "pages from this origin may not connect"));
    }
    if gate.lifecycle.phase() >= Phase::Draining {
        return Err(refuse(Code::Unavailable, "this node is shutting down"));
    }
    if gate.router.hub().sessions() >= gate.max_sessions {
        return Err(refuse(Code::Overloaded, "this node holds as many sessions as it may"));
    }
    let identity = identify(&gate.verifier, headers, &accepted, query).map_err(|error| match error {
        AuthError::Invalid("query") => {
            Box::new(answer::error(&Error::bad_request("a token does not belong in a URL")))
        }
        error => refuse(Code::Unauthorized, &error.to_string()),
    })?;
    Ok((accepted, identity))
}

/// A request without an Origin does not come from a web page (RFC 6455 section 10.2).
fn origin_may(gate: &Gate, headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    origins.next().is_none() && origin.to_str().is_ok_and(|origin| gate.origins.allow(origin, host))
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// `None`: no token came with the request, so the first frame must bring it.
fn identify(
    verifier: &Verifier,
    headers: &HeaderMap,
    accepted: &Accepted,
    query: &str,
) -> Result<Option<Identity>, AuthError> {
    let parameter = |name| parameter(query, name);
    if query.len() > QUERY_BYTES_MAX || parameter("token").is_some() || parameter("access_token").is_some() {
        return Err(AuthError::Invalid("query"));
    }
    let bearer = match headers.get(header::AUTHORIZATION) {
        Some(value) => Some(value.to_str().ok().and_then(answer_bearer).ok_or(AuthError::Missing)?),
        None => accepted.bearer.as_deref(),
    };
    match (bearer, verifier, parameter("user")) {
        (Some(token), _, _) => verifier.verify(token).map(Some),
        (None, Verifier::Insecure, Some(user)) => {
            let user = percent_decode_str(user).decode_utf8().map_err(|_| AuthError::Missing)?;
            verifier.verify(&user).map(Some)
        }
        (None, _, _) => Ok(None),
    }
}

/// The token of an `Authorization` header (RFC 6750 section 2.1).
pub(super) fn answer_bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn switch(accepted: Accepted) -> Answer {
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

async fn hand_over(
    upgrade: OnUpgrade,
    identity: Option<Identity>,
    acknowledges: bool,
    admissions: mpsc::Sender<Admission>,
) {
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
    // Copied, since these few bytes would keep all of hyper's read buffer alive.
    let early = parts.read_buf.to_vec();
    drop(parts.read_buf);
    let admission = Admission {
        stream: parts.io.into_inner(),
        early,
        identity,
        acknowledges,
        codec: Codec::WarrenV1,
    };
    // A worker that has ended needs no more sockets.
    let _ = admissions.send(admission).await;
}
