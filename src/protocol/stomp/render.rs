//! Frames to clients. What is the same for all sessions that get a message is rendered once; the head that differs from
//! session to session goes before it.
//!
//! Clients of all versions read the same bytes, whether they know of escapes or not: what the gateway writes itself is
//! percent-encoded where it would need an escape, and what the client wrote goes back as it wrote it.

use std::fmt::Write as _;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use bytes::Bytes;
use smallvec::SmallVec;

use super::Version;
use crate::error::Error;
use crate::ids::{SessionId, UserId};
use crate::protocol::close::{CloseCode, Reconnect};
use crate::protocol::message::{Form, Message, Sender};
use crate::protocol::reply::Settled;
use crate::protocol::wire;

/// A line feed alone in its message: nothing else is taken for a heart-beat by every client.
pub const HEART_BEAT: &[u8] = b"\n";

/// A MESSAGE without its first lines: the rest of its headers, and the body.
#[derive(Debug, Clone)]
pub struct Tail {
    pub bytes: Bytes,
    /// To be sent as a binary message: the body is no text.
    pub is_binary: bool,
    /// `bytes` compressed for sessions that take that, if they become shorter.
    deflated: Option<Bytes>,
}

impl Tail {
    /// The same for sessions that take compressed messages.
    pub fn deflated(&self) -> Self {
        Self {
            deflated: wire::deflated_tail(&self.bytes),
            bytes: self.bytes.clone(),
            is_binary: self.is_binary,
        }
    }

    /// The WebSocket frame with this head, which lies in parts, for such sessions. A head is not compressed, so that the
    /// tail is once for all.
    pub fn frame(&self, head: &[&[u8]]) -> Bytes {
        let deflated = self.deflated.as_ref().and_then(|tail| wire::headed_frame(self.is_binary, head, tail));
        deflated.unwrap_or_else(|| {
            let parts: SmallVec<[&[u8]; 4]> = head.iter().copied().chain([&self.bytes[..]]).collect();
            wire::message_frame(self.is_binary, &parts)
        })
    }
}

/// Writes a header of the gateway's own.
fn header(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "{name}:");
    value_into(out, value);
    out.push('\n');
}

/// A colon, a backslash, a percent sign and control characters are percent-encoded (RFC 3986 section 2.1).
fn value_into(out: &mut String, value: &str) {
    for c in value.chars() {
        if matches!(c, ':' | '\\' | '%') || c.is_control() {
            let mut utf8 = [0; 4];
            for byte in c.encode_utf8(&mut utf8).bytes() {
                let _ = write!(out, "%{byte:02X}");
            }
        } else {
            out.push(c);
        }
    }
}

/// What all MESSAGE frames of a message have in common. Where no binary messages can be sent, a body that is no text goes
/// as base64.
pub fn tail(message: &Message, takes_binary: bool) -> Tail {
    let payload = &message.payload.bytes;
    // Other nodes and backends answer for the form; a text message must be UTF-8 whatever they say.
    let is_text = message.payload.form != Form::Binary && std::str::from_utf8(payload).is_ok();
    let body = if is_text || takes_binary { payload.clone() } else { STANDARD.encode(payload).into() };
    let mut head = String::with_capacity(256);
    header(&mut head, "message-id", message.id.as_str());
    if message.redelivered {
        head.push_str("redelivered:true\n");
    }
    if let Some(event) = &message.event {
        header(&mut head, "type", event);
    }
    match &message.sender {
        Sender::Client { user, session } => {
            header(&mut head, "from-user", user.as_str());
            header(&mut head, "from-session", &session.to_string());
        }
        Sender::User { user } => header(&mut head, "from-user", user.as_str()),
        Sender::Service { service } => header(&mut head, "app-id", service),
    }
    let media_type = match message.payload.form {
        Form::Json => "application/json",
        Form::Text => "text/plain;charset=utf-8",
        Form::Binary => "application/octet-stream",
    };
    if !is_text && !takes_binary {
        head.push_str("encoding:base64\n");
    }
    let (ms, length) = (message.accepted_ms, body.len());
    let _ = write!(head, "timestamp:{ms}\ncontent-type:{media_type}\ncontent-length:{length}\n\n");
    let mut bytes = Vec::with_capacity(head.len() + length + 1);
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(&body);
    bytes.push(0);
    Tail { bytes: bytes.into(), is_binary: !is_text && takes_binary, deflated: None }
}

/// The first lines of the MESSAGE frames of a subscription, in the client's own words.
pub fn message_head(subscription: Option<&str>, destination: &str) -> String {
    match subscription {
        Some(id) => format!("MESSAGE\nsubscription:{id}\ndestination:{destination}\n"),
        None => format!("MESSAGE\ndestination:{destination}\n"),
    }
}

/// The line by which a client of 1.2 acknowledges.
pub fn ack_line(number: u64) -> String {
    format!("ack:{number}\n")
}

/// `beats_ms`: the server sends something at least this often; 0 = never. It asks for no heart-beats, since WebSocket
/// pings tell more: tabs in the background cannot run timers. The header is always there: stomp.js 2.3.3 needs it.
pub fn connected(version: Version, session: &SessionId, user: &UserId, beats_ms: u32) -> Vec<u8> {
    let (version, release) = (version.as_str(), env!("CARGO_PKG_VERSION"));
    let head = format!(
        "CONNECTED\nversion:{version}\nheart-beat:{beats_ms},0\nsession:{session}\nuser-name:{user}\nserver:warren/{release}\n\n\0"
    );
    head.into_bytes()
}

/// Every version that is spoken, for a client that speaks none of them.
pub fn no_common_version() -> Vec<u8> {
    let all = Version::ALL;
    error_frame(
        "no common version",
        &format!("version:{all}\n"),
        &format!("versions that are spoken here: {all}"),
    )
}

/// `receipt` in the client's own words.
pub fn receipt(receipt: &str, settled: Option<&Settled>) -> Vec<u8> {
    let mut out = format!("RECEIPT\nreceipt-id:{receipt}\n");
    if let Some(settled) = settled {
        header(&mut out, "outcome", settled.outcome);
        header(&mut out, "message-id", settled.message_id.as_str());
        if let Some(sessions) = settled.sessions {
            let _ = writeln!(out, "sessions:{sessions}");
        }
    }
    out.push_str("\n\0");
    out.into_bytes()
}

/// The headers that say what went wrong.
fn error_headers(error: &Error, receipt: Option<&str>) -> String {
    let mut out = String::with_capacity(96);
    if let Some(receipt) = receipt {
        let _ = writeln!(out, "receipt-id:{receipt}");
    }
    let _ = writeln!(out, "code:{}\nretry:{}", error.code.as_str(), error.code.retry());
    out
}

/// A frame of the client could not be carried out; the connection ends with it.
pub fn error(error: &Error, receipt: Option<&str>) -> Vec<u8> {
    error_frame(&error.message, &error_headers(error, receipt), &error.message)
}

/// Why the connection ends, and when to come back.
pub fn disconnect(close: CloseCode, after_ms: u32) -> Vec<u8> {
    let (code, reconnect) = (close.code(), close.reconnect() != Reconnect::Never);
    let headers = format!("code:{code}\nreconnect:{reconnect}\nafter-ms:{after_ms}\n");
    error_frame(close.reason(), &headers, "")
}

/// The stream of the client could not be read any further.
pub fn violation(message: &str, close: CloseCode) -> Vec<u8> {
    error_frame(message, &format!("code:{}\nreconnect:false\n", close.code()), message)
}

/// What stands in the header is read by clients as it stands, so it has no characters that need an escape.
fn error_frame(message: &str, headers: &str, body: &str) -> Vec<u8> {
    let mut title = String::with_capacity(message.len());
    title.extend(message.chars().map(|c| match c {
        ':' => ';',
        '\\' => '/',
        c if c.is_control() => ' ',
        c => c,
    }));
    let length = body.len();
    let kind = if body.is_empty() { "" } else { "content-type:text/plain;charset=utf-8\n" };
    format!("ERROR\nmessage:{title}\n{headers}{kind}content-length:{length}\n\n{body}\0").into_bytes()
}

/// What a MESSAGE of the gateway itself tells, behind its [`message_head`]. `body` is JSON.
fn notice(id: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut out = format!(
        "message-id:{id}\napp-id:warren\n{headers}content-type:application/json\ncontent-length:{length}\n\n"
    )
    .into_bytes();
    out.extend_from_slice(body);
    out.push(0);
    out
}

/// For a session that subscribes to `/user/queue/errors`: a frame that could not be carried out, or a SEND whose message
/// was not taken.
pub fn error_notice(error: &Error, receipt: Option<&str>, settled: Option<&Settled>) -> Vec<u8> {
    let mut headers = error_headers(error, receipt);
    if let Some(settled) = settled {
        header(&mut headers, "outcome", settled.outcome);
        header(&mut headers, "of-message", settled.message_id.as_str());
    }
    // Plain structs of strings cannot fail to serialize.
    notice("error", &headers, &serde_json::to_vec(error).unwrap_or_default())
}

/// For a session that subscribes to `/user/queue/gaps`.
pub fn gap_notice(reason: &str) -> Vec<u8> {
    let body = serde_json::json!({ "reason": reason }).to_string();
    notice("gap", "", body.as_bytes())
}

/// For a session that subscribes to `/user/queue/errors`: a subscription has ended.
pub fn unsubscribed_notice(subscription: &str, destination: &str, reason: &str) -> Vec<u8> {
    let headers = format!("code:unsubscribed\nof-subscription:{subscription}\n");
    let body = serde_json::json!({ "code": "unsubscribed", "destination": destination, "reason": reason });
    notice("unsubscribed", &headers, body.to_string().as_bytes())
}

#[cfg(test)]
mod tests;
