//! `warren trace`: asks a node what became of a message, and tells it to a person.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use percent_encoding::{utf8_percent_encode, NON_ALPHANUMERIC};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::auth;
use crate::config::Config;
use crate::delivery::trace::{Step, TraceEvent};
use crate::ids::{MessageId, UserId};

/// For the whole answer; the node waits two seconds for the others.
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
const TOKEN_TTL: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("no answer from {0}: {1}")]
    Unreachable(SocketAddr, String),
    #[error("{0} refuses: {1}")]
    Refused(SocketAddr, String),
    #[error("{0} answers something that is no trace")]
    Unreadable(SocketAddr),
}

#[derive(Debug, Deserialize)]
struct Answer {
    tracing: bool,
    partial: bool,
    events: Vec<TraceEvent>,
}

/// What a node of this configuration says, as text. `node`: its admin address, unless it is on this machine.
pub async fn trace(config: &Config, id: &MessageId, node: Option<SocketAddr>) -> Result<String, TraceError> {
    let node = node.unwrap_or_else(|| local(config.admin_listen));
    let failed = |error: String| TraceError::Unreachable(node, error);
    let asked = timeout(PATIENCE, ask(config, id, node)).await;
    let text = asked.map_err(|_| failed("too late".into()))?.map_err(|error| failed(error.to_string()))?;
    let unreadable = || TraceError::Unreadable(node);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(unreadable)?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(TraceError::Refused(node, body.trim().to_owned()));
    }
    let answer: Answer = serde_json::from_str(body).map_err(|_| unreadable())?;
    Ok(told(id, &answer))
}

/// An address that is for all interfaces is asked on this machine.
fn local(listen: SocketAddr) -> SocketAddr {
    match listen.ip().is_unspecified() {
        true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port()),
        false => listen,
    }
}

/// One request on a connection of its own; the node does not send its answer in chunks.
async fn ask(config: &Config, id: &MessageId, node: SocketAddr) -> std::io::Result<String> {
    let path = utf8_percent_encode(id.as_str(), NON_ALPHANUMERIC);
    let credentials = credentials(config).map(|token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "GET /v1/messages/{path}/trace HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n{}\r\n",
        credentials.unwrap_or_default()
    );
    let mut stream = TcpStream::connect(node).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await?;
    Ok(text)
}

/// An API key, or a token that this configuration can sign. `None`: in insecure mode none is needed.
fn credentials(config: &Config) -> Option<String> {
    if let Some(key) = config.api_keys.first() {
        return Some(key.key.expose().to_owned());
    }
    let user = UserId::new("trace").ok()?;
    auth::mint(&user, TOKEN_TTL, &["api".to_owned()], config).ok()
}

fn told(id: &MessageId, answer: &Answer) -> String {
    let mut text = String::new();
    let since = answer.events.first().map_or(0, |event| event.at_us);
    for event in &answer.events {
        let ms = event.at_us.saturating_sub(since) as f64 / 1_000.0;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{ms:>10.3} ms  {:<20} {}", event.node, step(&event.step));
    }
    if answer.events.is_empty() {
        let _ = writeln!(text, "{id}: no node knows of it");
        text += match answer.tracing {
            true => "Nodes keep the steps of the latest messages only.\n",
            false => "Nobody was looking: steps are kept while a console is open, for 15 s after a trace, or with WARREN_TRACE=always.\n",
        };
    }
    if answer.partial {
        text += "Some node did not answer.\n";
    }
    text
}

fn step(step: &Step) -> String {
    match step {
        Step::Accepted { from, to } => format!("accepted from {from} for {to}"),
        Step::Sent { nodes } => {
            let nodes: Vec<_> = nodes.iter().map(|node| node.as_str()).collect();
            format!("sent to {}", nodes.join(", "))
        }
        Step::SentToAll => "sent to all nodes".into(),
        Step::SentToBackends => "sent to the backends".into(),
        Step::Arrived { from: Some(from) } => format!("arrived from {from}"),
        Step::Arrived { from: None } => "arrived".into(),
        Step::ReadFromMail => "read from the mailbox".into(),
        Step::Written { session: Some(session), .. } => format!("written to session {session}"),
        Step::Written { sessions, .. } => format!("written to {sessions} sessions"),
        Step::Acknowledged { session } => format!("acknowledged by session {session}"),
        Step::Taken { sessions } => format!("taken by {sessions} sessions of this node"),
        Step::ToMail => "on its way into the mailbox".into(),
        Step::Settled { outcome, error: Some(error) } => format!("{outcome}: {error}"),
        Step::Settled { outcome, error: None } => outcome.clone(),
    }
}
