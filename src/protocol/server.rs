//! Frames to clients: warren.v1, encoded once and shared by every socket that gets them.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::error::Error;
use crate::ids::{MessageId, NodeId, SessionId, UserId};
use crate::protocol::close::{CloseCode, Reconnect};
use crate::protocol::message::{Message, Settlement};

/// Every message frame begins like this; [`mark_redelivered`] relies on it.
const MESSAGE_HEAD: &[u8] = br#"{"type":"message""#;
const REDELIVERED: &[u8] = br#","redelivered":true"#;

fn json(value: &impl Serialize, into: &mut Vec<u8>) {
    // Writing plain structs of strings and numbers to memory has no way to fail.
    let _ = serde_json::to_writer(into, value);
}

/// The `message` frame, as JSON text without WebSocket framing: what travels between nodes.
pub fn message(message: &Message) -> Bytes {
    let mut out = Vec::with_capacity(message.payload.len() + 256);
    out.extend_from_slice(MESSAGE_HEAD);
    if message.redelivered {
        out.extend_from_slice(REDELIVERED);
    }
    out.extend_from_slice(b",\"id\":");
    json(&message.id, &mut out);
    out.extend_from_slice(b",\"from\":");
    json(&message.sender, &mut out);
    out.extend_from_slice(b",\"to\":");
    json(&message.target, &mut out);
    if let Some(event) = &message.event {
        out.extend_from_slice(b",\"event\":");
        json(event, &mut out);
    }
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(&message.payload);
    if message.is_base64 {
        out.extend_from_slice(br#","encoding":"base64""#);
    }
    out.extend_from_slice(b",\"ts\":");
    json(&message.accepted_ms, &mut out);
    out.push(b'}');
    out.into()
}

/// The same message frame, saying that it may have been delivered before.
pub fn mark_redelivered(frame: &Bytes) -> Bytes {
    let Some(rest) = frame.strip_prefix(MESSAGE_HEAD) else { return frame.clone() };
    if rest.starts_with(REDELIVERED) {
        return frame.clone();
    }
    [MESSAGE_HEAD, REDELIVERED, rest].concat().into()
}

/// What a client is told when its session begins.
#[derive(Debug, Serialize)]
pub struct Welcome<'a> {
    pub session: &'a SessionId,
    pub user: &'a UserId,
    pub node: &'a NodeId,
    pub version: &'a str,
    /// Between the server's pings; sent in seconds.
    #[serde(serialize_with = "seconds")]
    pub ping_interval: Duration,
    pub limits: Limits,
}

/// A whole number where it is one; a client that adds its own patience must not be told 0 for 999 ms.
fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    match duration.subsec_millis() {
        0 => to.serialize_u64(duration.as_secs()),
        _ => to.serialize_f64(duration.as_millis() as f64 / 1000.0),
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    pub message_bytes: u32,
    pub publishes_per_second: u32,
    pub in_flight: u32,
}

#[derive(Serialize)]
struct Typed<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

pub fn welcome(welcome: &Welcome) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    json(&Typed { kind: "welcome", body: welcome }, &mut out);
    out
}

/// What is answered to a publish, in frames and over HTTP.
#[derive(Debug, Serialize)]
pub struct Settled<'a> {
    pub message_id: &'a MessageId,
    pub outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a Error>,
}

impl<'a> Settled<'a> {
    pub fn new(message_id: &'a MessageId, settlement: &'a Settlement) -> Self {
        Self {
            message_id,
            outcome: settlement.outcome(),
            sessions: match settlement {
                Settlement::Delivered { sessions } => Some(*sessions),
                _ => None,
            },
            error: match settlement {
                Settlement::Failed(error) => Some(error),
                _ => None,
            },
        }
    }
}

fn reply_head(id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.extend_from_slice(br#"{"type":"reply","id":"#);
    out.extend_from_slice(id.unwrap_or("null").as_bytes());
    out
}

/// `id` is the client's own JSON, as [`crate::protocol::client::parse`] checked it.
pub fn reply_settled(id: Option<&str>, settled: &Settled) -> Vec<u8> {
    let mut out = reply_head(id);
    let mut body = Vec::with_capacity(128);
    json(settled, &mut body);
    out.push(b',');
    out.extend_from_slice(&body[1..]);
    out
}

pub fn reply_error(id: Option<&str>, error: &Error) -> Vec<u8> {
    let mut out = reply_head(id);
    out.extend_from_slice(b",\"error\":");
    json(error, &mut out);
    out.push(b'}');
    out
}

/// The answer to `ping`, `refresh` and whatever else has nothing more to say than yes.
pub fn reply_ok(id: Option<&str>) -> Vec<u8> {
    let mut out = reply_head(id);
    out.extend_from_slice(br#","outcome":"ok"}"#);
    out
}

/// Sent before the close frame, since a close frame has room for a code and a short reason only.
pub fn disconnect(close: CloseCode, after_ms: u32) -> Vec<u8> {
    #[derive(Serialize)]
    struct Disconnect {
        code: u16,
        reason: &'static str,
        reconnect: bool,
        after_ms: u32,
    }
    let mut out = Vec::with_capacity(96);
    let body = Disconnect {
        code: close.code(),
        reason: close.reason(),
        reconnect: close.reconnect() != Reconnect::Never,
        after_ms,
    };
    json(&Typed { kind: "disconnect", body: &body }, &mut out);
    out
}

/// Messages may have been missed: the application should reload its state.
pub fn gap(reason: &'static str) -> Vec<u8> {
    format!(r#"{{"type":"gap","reason":"{reason}"}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::protocol::message::{Guarantee, Sender};
    use crate::protocol::target::Target;
    use serde_json::{json, Value};

    fn sample() -> Message {
        Message {
            id: MessageId::new("m1").unwrap(),
            target: Target::parse("user.4\"2").unwrap(),
            sender: Sender::Client {
                user: UserId::new("7").unwrap(),
                session: SessionId::parse("n~1").unwrap(),
            },
            event: Some("chat".into()),
            payload: Bytes::from_static(br#"{"text":"hi"}"#),
            is_base64: false,
            accepted_ms: 5,
            expires_ms: None,
            guarantee: Guarantee::AtLeastOnce,
            redelivered: false,
        }
    }

    #[test]
    fn a_message_frame_has_every_field() {
        let value: Value = serde_json::from_slice(&message(&sample())).unwrap();
        assert_eq!(
            value,
            json!({"type":"message","id":"m1","from":{"user":"7","session":"n~1"},"to":"user.4\"2",
                   "event":"chat","payload":{"text":"hi"},"ts":5})
        );
    }

    #[test]
    fn marking_is_the_same_as_encoding_redelivered() {
        let mut sample = sample();
        let plain = message(&sample);
        sample.redelivered = true;
        assert_eq!(mark_redelivered(&plain), message(&sample));
        assert_eq!(mark_redelivered(&message(&sample)), message(&sample));
    }

    #[test]
    fn the_ping_interval_is_not_cut_to_whole_seconds() {
        for (ms, expected) in [(25_000, "25"), (999, "0.999"), (1_500, "1.5"), (100, "0.1")] {
            let (session, user) = (SessionId::parse("n~1").unwrap(), UserId::new("7").unwrap());
            let frame = welcome(&Welcome {
                session: &session,
                user: &user,
                node: &session.node,
                version: "1",
                ping_interval: Duration::from_millis(ms),
                limits: Limits { message_bytes: 1, publishes_per_second: 1, in_flight: 1 },
            });
            let text = String::from_utf8(frame).unwrap();
            assert!(text.contains(&format!("\"ping_interval\":{expected},")), "{text}");
        }
    }

    #[test]
    fn replies_are_json() {
        let id = MessageId::new("m").unwrap();
        let settlement = Settlement::Delivered { sessions: 2 };
        let value: Value =
            serde_json::from_slice(&reply_settled(Some("\"x\""), &Settled::new(&id, &settlement))).unwrap();
        assert_eq!(
            value,
            json!({"type":"reply","id":"x","outcome":"delivered","message_id":"m","sessions":2})
        );
        let error = Error::new(Code::Offline, "not \"here\"");
        let value: Value = serde_json::from_slice(&reply_error(None, &error)).unwrap();
        assert_eq!(value["error"], json!({"code":"offline","message":"not \"here\"","retry":false}));
        let value: Value = serde_json::from_slice(&disconnect(CloseCode::Drain, 9)).unwrap();
        assert_eq!(value["after_ms"], 9);
        assert_eq!(value["reconnect"], true);
        serde_json::from_slice::<Value>(&gap("broker link lost")).unwrap();
        serde_json::from_slice::<Value>(&reply_ok(Some("1"))).unwrap();
    }
}
