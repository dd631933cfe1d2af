//! The whole cluster over HTTP: what all nodes report, what became of a message, and the order to a node to leave.

use std::collections::HashMap;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use warp::http::StatusCode;
use warp::reply::Response;

use super::api::{allowed, Asked};
use super::{response, AppState};
use crate::clock::unix_ms;
use crate::delivery::report::{MailReport, Report};
use crate::directory::PeerInfo;
use crate::error::{Code, Error};
use crate::ids::{ChannelName, MessageId, NodeId};
use crate::router::report::Overview;

/// Channels of the whole cluster that an answer names.
const CHANNELS_NAMED_MAX: usize = 50;

#[derive(Serialize)]
struct Cluster<'a> {
    /// The node that answers.
    asked: &'a NodeId,
    /// Its clock, in milliseconds of Unix time.
    at_ms: u64,
    nodes: Vec<Node>,
    channels: Vec<Channel>,
    /// Waiting for all users, as far as this node knows.
    mail: MailReport,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Node {
    Answered {
        answered: bool,
        #[serde(flatten)]
        report: Report,
    },
    Silent(SilentNode),
}

#[derive(Serialize)]
struct SilentNode {
    answered: bool,
    node: NodeId,
    version: String,
    started_ms: u64,
    draining: bool,
    sessions: u64,
    users: u64,
    /// Milliseconds since the node was last heard.
    silent_ms: u64,
}

#[derive(Serialize)]
struct Channel {
    channel: ChannelName,
    sessions: u64,
    /// Those on which it is one of the largest.
    nodes: Vec<NodeId>,
}

/// `GET /v1/cluster`
pub(super) async fn get(asked: Asked) -> Response {
    let state = match allowed(asked) {
        Ok(state) => state,
        Err(error) => return response::error(&error),
    };
    let Overview { reports, silent } = state.router.overview().await;
    let channels = largest(&reports);
    let here = reports.iter().find(|report| report.node == *state.router.node());
    let mail = here.map(|report| report.mail).unwrap_or_default();
    let mut nodes: Vec<Node> = reports.into_iter().map(answered).collect();
    nodes.extend(silent.into_iter().map(unanswered));
    let body = Cluster { asked: state.router.node(), at_ms: unix_ms(), nodes, channels, mail };
    response::json(StatusCode::OK, &body)
}

/// Without its channels, which are joined with those of the other nodes.
fn answered(report: Report) -> Node {
    Node::Answered { answered: true, report: Report { largest: Vec::new(), ..report } }
}

fn unanswered(peer: PeerInfo) -> Node {
    Node::Silent(SilentNode {
        answered: false,
        node: peer.node,
        version: peer.info.version,
        started_ms: peer.info.started_ms,
        draining: peer.info.draining,
        sessions: peer.info.sessions,
        users: peer.info.users,
        silent_ms: u64::try_from(peer.silent_for.as_millis()).unwrap_or(u64::MAX),
    })
}

/// The channels with the most sessions on all nodes. A channel counts where it is one of the largest of its node.
fn largest(reports: &[Report]) -> Vec<Channel> {
    let mut found: HashMap<&ChannelName, Channel> = HashMap::new();
    for report in reports {
        for large in &report.largest {
            let channel = &large.channel;
            let new = || Channel { channel: channel.clone(), sessions: 0, nodes: Vec::new() };
            let entry = found.entry(channel).or_insert_with(new);
            entry.sessions += large.sessions;
            entry.nodes.push(report.node.clone());
        }
    }
    let mut channels: Vec<Channel> = found.into_values().collect();
    channels.sort_by(|a, b| b.sessions.cmp(&a.sessions).then_with(|| a.channel.cmp(&b.channel)));
    channels.truncate(CHANNELS_NAMED_MAX);
    channels
}

fn node_id(segment: &str) -> Result<NodeId, Error> {
    NodeId::new(&percent_decode_str(segment).decode_utf8_lossy())
        .map_err(|error| Error::bad_request(error.to_string()))
}

fn to_node(asked: Asked, segment: &str) -> Result<(Arc<AppState>, NodeId), Error> {
    Ok((allowed(asked)?, node_id(segment)?))
}

/// `POST /v1/nodes/{id}/drain`
pub(super) async fn drain(asked: Asked, segment: String) -> Response {
    let (state, node) = match to_node(asked, &segment) {
        Ok(asked) => asked,
        Err(error) => return response::error(&error),
    };
    match state.router.drain_node(&node).await {
        Some(true) => {
            tracing::info!(%node, "an operator has it drained");
            response::json(StatusCode::ACCEPTED, &json!({ "node": node, "draining": true }))
        }
        Some(false) => response::error(&Error::new(Code::Unavailable, "the node did not answer")),
        None => response::error(&Error::new(Code::NotFound, "no such node is live")),
    }
}

fn of_message(asked: Asked, segment: &str) -> Result<(Arc<AppState>, MessageId), Error> {
    let state = allowed(asked)?;
    let id = MessageId::new(&percent_decode_str(segment).decode_utf8_lossy());
    Ok((state, id.map_err(|error| Error::bad_request(error.to_string()))?))
}

/// `GET /v1/messages/{id}/trace`
pub(super) async fn trace(asked: Asked, segment: String) -> Response {
    let (state, id) = match of_message(asked, &segment) {
        Ok(asked) => asked,
        Err(error) => return response::error(&error),
    };
    let was_on = state.router.trace().is_on();
    let (events, partial) = state.router.trace_of(&id).await;
    let body = json!({ "id": id, "tracing": was_on, "partial": partial, "events": events });
    response::json(StatusCode::OK, &body)
}
