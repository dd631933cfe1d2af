//! The HTTP API: publish, look up, disconnect.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use warp::http::header::HeaderMap;
use warp::http::StatusCode;
use warp::reply::Response as Answer;
use warp::{Filter, Rejection};

use crate::auth::Caller;
use crate::clock::Now;
use crate::error::{Code, Error};
use crate::http::upgrade::answer_bearer;
use crate::http::{answer, Gate};
use crate::ids::{MessageId, SessionId, UserId};
use crate::metrics::Door;
use crate::protocol::publish::{PublishRequest, BATCH_MAX};
use crate::protocol::message::{Message, Sender, Settlement};
use crate::protocol::reply::Settled;
use crate::router::ask::Found;

/// Longest body of `POST /v1/messages`, in bytes.
const BODY_BYTES_MAX: u64 = 4 * 1024 * 1024;

pub fn routes(gate: Arc<Gate>) -> impl Filter<Extract = (Answer,), Error = Rejection> + Clone {
    let v1 = warp::path("v1").and(with_caller(gate));
    let messages = v1
        .clone()
        .and(warp::path!("messages"))
        .and(warp::post())
        .and(warp::header::optional::<String>("idempotency-key"))
        .and(warp::body::content_length_limit(BODY_BYTES_MAX))
        .and(warp::body::stream())
        .then(post_messages);
    let nodes = v1.clone().and(warp::path!("nodes")).and(warp::get()).then(get_nodes);
    let user = v1.clone().and(warp::path!("users" / String)).and(warp::get()).then(get_user);
    let user_sessions =
        v1.clone().and(warp::path!("users" / String / "sessions")).and(warp::delete()).then(delete_user);
    let session = v1.and(warp::path!("sessions" / String)).and(warp::delete()).then(delete_session);
    messages.or(nodes).unify().or(user).unify().or(user_sessions).unify().or(session).unify()
}

type Asked = (Arc<Gate>, Result<Caller, Error>);

fn with_caller(gate: Arc<Gate>) -> impl Filter<Extract = (Asked,), Error = std::convert::Infallible> + Clone {
    warp::header::headers_cloned().map(move |headers: HeaderMap| {
        let header = headers.get("authorization").and_then(|value| value.to_str().ok());
        let caller = gate.verifier.api(header.and_then(answer_bearer));
        (gate.clone(), caller.map_err(|error| Error::new(Code::Unauthorized, error.to_string())))
    })
}

/// Everything but publishing needs the whole API.
fn allowed((gate, caller): Asked) -> Result<Arc<Gate>, Error> {
    match caller?.api() {
        true => Ok(gate),
        false => Err(Error::new(Code::Forbidden, "these credentials do not open the API")),
    }
}

fn or_error(result: Result<Answer, Error>) -> Answer {
    result.unwrap_or_else(|error| answer::error(&error))
}

async fn post_messages(
    (gate, caller): Asked,
    key: Option<String>,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Answer {
    // A stranger's body is not even read.
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return answer::error(&error),
    };
    match tokio::time::timeout(gate.body_timeout, read(body)).await {
        Ok(Ok(body)) => or_error(publish(&gate, &caller, key.as_deref(), &body).await),
        Ok(Err(_)) => answer::error(&Error::bad_request("body: incomplete")),
        Err(_) => answer::timeout("the body did not come in time"),
    }
}

/// The length is known and bounded already.
async fn read(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Bytes, warp::Error> {
    let mut whole = BytesMut::new();
    let mut body = std::pin::pin!(body);
    while let Some(part) = body.next().await {
        whole.put(part?);
    }
    Ok(whole.freeze())
}

async fn publish(gate: &Gate, caller: &Caller, key: Option<&str>, body: &[u8]) -> Result<Answer, Error> {
    let unreadable = |error: serde_json::Error| Error::bad_request(format!("body: {error}"));
    let is_batch = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if !is_batch {
        let mut request: PublishRequest = serde_json::from_slice(body).map_err(unreadable)?;
        if let Some(key) = key {
            request.message_id.get_or_insert(Cow::Borrowed(key));
        }
        let message = check(gate, caller, request)?;
        let id = message.id.clone();
        let settlement = settle(gate, message).await;
        return match &settlement {
            // Not settled: the caller still has the message, and the status code must say so.
            Settlement::Failed(error) if error.code.retry() => Err(error.clone()),
            settlement => Ok(answer::json(StatusCode::OK, &Settled::new(&id, settlement))),
        };
    }
    let requests: Vec<PublishRequest> = serde_json::from_slice(body).map_err(unreadable)?;
    if requests.len() > BATCH_MAX || key.is_some() {
        return Err(Error::bad_request(format!(
            "at most {BATCH_MAX} messages, each with its own message_id"
        )));
    }
    let checked: Result<Vec<_>, _> =
        requests.into_iter().map(|request| check(gate, caller, request)).collect();
    let (ids, settling): (Vec<MessageId>, Vec<_>) =
        checked?.into_iter().map(|message| (message.id.clone(), settle(gate, message))).unzip();
    let settlements = join_all(settling).await;
    let settled: Vec<_> = ids.iter().zip(&settlements).map(|(id, of)| Settled::new(id, of)).collect();
    Ok(answer::json(StatusCode::OK, &settled))
}

fn check(gate: &Gate, caller: &Caller, request: PublishRequest) -> Result<Message, Error> {
    let sender = match caller {
        Caller::Service => Sender::Service { service: "api".into() },
        Caller::User(identity) => Sender::User { user: identity.user.clone() },
    };
    let message = request.into_message(sender, Now::read())?;
    if message.payload.bytes.len() > gate.max_message_bytes {
        return Err(Error::bad_request(format!("payload: at most {} bytes", gate.max_message_bytes)));
    }
    match caller.may_publish(&message.target) {
        true => Ok(message),
        false => Err(Error::new(Code::Forbidden, "these credentials may not publish to that target")),
    }
}

async fn settle(gate: &Gate, message: Message) -> Settlement {
    let settlement = gate.router.deliver(message).await;
    gate.metrics.settled(Door::Http, settlement.outcome());
    settlement
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
async fn get_nodes(asked: Asked) -> Answer {
    or_error(allowed(asked).map(|gate| {
        let directory = gate.router.directory();
        let mut peers = directory.peers();
        let mut this = directory.this_node();
        // What the others are told may be a heartbeat old; what we are told ourselves need not be.
        this.info.sessions = gate.router.hub().sessions() as u64;
        this.info.users = gate.router.hub().users() as u64;
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
            "strategy": "directory",
            "sessions": nodes.iter().map(|node| node.sessions).sum::<u64>(),
            "users": nodes.iter().map(|node| node.users).sum::<u64>(),
            "nodes": nodes,
        });
        answer::json(StatusCode::OK, &body)
    }))
}

fn user_id(segment: &str) -> Result<UserId, Error> {
    let decoded = percent_decode_str(segment).decode_utf8();
    let text = decoded.map_err(|_| Error::bad_request("user id: not UTF-8"))?;
    UserId::new(&text).map_err(|error| Error::bad_request(error.to_string()))
}

async fn get_user(asked: Asked, segment: String) -> Answer {
    let (gate, user) = match allowed(asked).and_then(|gate| Ok((gate, user_id(&segment)?))) {
        Ok(asked) => asked,
        Err(error) => return answer::error(&error),
    };
    let Found { sessions, partial } = gate.router.sessions_of(&user).await;
    let body = json!({
        "user": user,
        "online": !sessions.is_empty(),
        "sessions": sessions,
        "mail": gate.router.mail_waiting(&user),
        "partial": partial,
    });
    answer::json(StatusCode::OK, &body)
}

fn closed(found: &Found) -> Answer {
    let body =
        json!({ "closed": found.sessions.len(), "sessions": found.sessions, "partial": found.partial });
    answer::json(StatusCode::OK, &body)
}

async fn delete_user(asked: Asked, segment: String) -> Answer {
    match allowed(asked).and_then(|gate| Ok((gate, user_id(&segment)?))) {
        Ok((gate, user)) => closed(&gate.router.disconnect_user(&user).await),
        Err(error) => answer::error(&error),
    }
}

async fn delete_session(asked: Asked, segment: String) -> Answer {
    let session = |segment: &str| {
        SessionId::parse(&percent_decode_str(segment).decode_utf8_lossy())
            .map_err(|error| Error::bad_request(error.to_string()))
    };
    let (gate, session) = match allowed(asked).and_then(|gate| Ok((gate, session(&segment)?))) {
        Ok(asked) => asked,
        Err(error) => return answer::error(&error),
    };
    let found = gate.router.disconnect_session(&session).await;
    if found.sessions.is_empty() && !found.partial {
        return answer::error(&Error::new(Code::NotFound, "no such session is connected"));
    }
    closed(&found)
}
