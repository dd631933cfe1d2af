//! A message: the one type from the door that accepts it to the codec that renders it, and its fate.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{Life, MessageId, SessionId, UserId};
use crate::protocol::stomp::{self, render::Tail};
use crate::protocol::target::Target;
use crate::protocol::{warren_v1, wire, Framing};

/// How hard the gateway tries to deliver a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Kept and repeated until its fate is known.
    #[default]
    AtLeastOnce,
    /// Never stored, dropped when in doubt: typing hints, ticks.
    AtMostOnce,
}

/// Who sent a message. Stamped by the gateway from what it has verified, never taken from a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Sender {
    Client {
        user: UserId,
        session: SessionId,
    },
    /// A user's token used on the HTTP API: there is no socket.
    User {
        user: UserId,
    },
    Service {
        service: String,
    },
}

impl Sender {
    /// The user who sent it; `None` for a service.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Sender::Client { user, .. } | Sender::User { user } => Some(user),
            Sender::Service { .. } => None,
        }
    }
}

/// How the bytes of a payload are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A valid JSON value.
    Json,
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

impl Form {
    /// The media type that stands for the form between nodes (RFC 8259, RFC 2046).
    pub fn media_type(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Text => "text/plain",
            Form::Binary => "application/octet-stream",
        }
    }

    /// The inverse of [`Form::media_type`].
    pub fn of_media_type(text: &str) -> Option<Self> {
        [Form::Json, Form::Text, Form::Binary].into_iter().find(|form| form.media_type() == text)
    }
}

/// The encoding of bytes in JSON (RFC 4648 section 4), by its name in frames.
pub const BASE64: &str = "base64";

/// The bytes as the publisher gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub form: Form,
    pub bytes: Bytes,
}

impl Payload {
    pub fn json(bytes: impl Into<Bytes>) -> Self {
        Self { form: Form::Json, bytes: bytes.into() }
    }

    /// Appends the payload as a JSON value: text becomes a string, any other bytes a string of base64.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self.form {
            Form::Json => out.extend_from_slice(&self.bytes),
            Form::Text => {
                let text = String::from_utf8_lossy(&self.bytes);
                // Writing a string to memory has no way to fail.
                let _ = serde_json::to_writer(out, text.as_ref());
            }
            Form::Binary => {
                out.push(b'"');
                out.extend_from_slice(STANDARD.encode(&self.bytes).as_bytes());
                out.push(b'"');
            }
        }
    }
}

/// The place of a message among all that one origin process accepted for one target: later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub life: Life,
    pub number: u64,
}

#[derive(Debug, Clone)]
pub struct Message {
    pub id: MessageId,
    pub target: Target,
    pub sender: Sender,
    pub event: Option<String>,
    pub payload: Payload,
    /// Milliseconds since the Unix epoch, to be shown only: no decision rests on a wall clock.
    pub accepted_ms: u64,
    /// On this node's clock; between nodes the remaining time travels. `None` = never.
    pub expires: Option<Instant>,
    pub guarantee: Guarantee,
    /// It may have been shown before, or out of order: clients are told.
    pub redelivered: bool,
    /// Given by the origin when it accepts the message for a user or a session.
    pub stamp: Option<Stamp>,
}

impl Message {
    pub fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// The time that is left to show it.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.expires.map(|at| at.saturating_duration_since(now))
    }

    /// Bytes that it takes in memory and in a box, about: its payload and a share for everything else.
    pub fn bytes(&self) -> usize {
        const OVERHEAD: usize = 256;
        self.payload.bytes.len() + OVERHEAD
    }
}

/// A message on its way to sockets. What all sessions of a codec and framing share is rendered once for a node, when the
/// first of them needs it.
#[derive(Debug)]
pub struct Rendered {
    message: Arc<Message>,
    warren_v1: [OnceLock<Bytes>; Framing::COUNT],
    stomp: [OnceLock<Tail>; Framing::COUNT],
}

impl Rendered {
    pub fn new(message: Arc<Message>) -> Arc<Self> {
        Arc::new(Self { message, warren_v1: Default::default(), stomp: Default::default() })
    }

    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The whole WebSocket frame for sessions that speak warren.v1.
    pub fn warren_v1(&self, framing: Framing) -> &Bytes {
        let render = || match framing {
            Framing::Deflated => wire::deflated_frame(self.warren_v1(framing.plain())),
            _ => framing.text(&[&warren_v1::reply::message(&self.message)]),
        };
        self.warren_v1[framing as usize].get_or_init(render)
    }

    /// All of the frame but its first lines, for sessions that speak STOMP.
    pub fn stomp(&self, framing: Framing) -> &Tail {
        let render = || match framing {
            Framing::Deflated => self.stomp(framing.plain()).deflated(),
            _ => stomp::render::tail(&self.message, framing.takes_binary()),
        };
        self.stomp[framing as usize].get_or_init(render)
    }
}

/// What a backend answered to a request, as JSON.
#[derive(Debug, Clone)]
pub struct Answer {
    payload: Box<RawValue>,
    form: Form,
}

impl Answer {
    /// `None`: bytes that are said to be JSON and are not.
    pub fn new(payload: &Payload) -> Option<Self> {
        let mut json = Vec::with_capacity(payload.bytes.len() + 2);
        payload.write_json(&mut json);
        let payload_json = RawValue::from_string(String::from_utf8(json).ok()?).ok()?;
        Some(Self { payload: payload_json, form: payload.form })
    }

    pub fn payload(&self) -> &RawValue {
        &self.payload
    }

    /// How the payload is to be read, unless it is just what it is.
    pub fn encoding(&self) -> Option<&'static str> {
        (self.form == Form::Binary).then_some(BASE64)
    }
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        (self.form, self.payload.get()) == (other.form, other.payload.get())
    }
}

impl Eq for Answer {}

/// The known fate of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Taken by this many sessions.
    Delivered {
        sessions: u32,
    },
    /// In the durable mailbox of its user.
    Stored,
    /// Confirmed by the broker; the sessions that are connected get it (broadcast, channel), or a backend's queue has it
    /// (application).
    Published,
    /// A backend has answered the request.
    Answered(Answer),
    Failed(crate::error::Error),
}

impl Settlement {
    pub fn outcome(&self) -> &'static str {
        match self {
            Settlement::Delivered { .. } => "delivered",
            Settlement::Stored => "stored",
            Settlement::Published => "published",
            Settlement::Answered(_) => "answered",
            Settlement::Failed(error) if error.code == crate::error::Code::Expired => "expired",
            Settlement::Failed(_) => "rejected",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_payload_becomes_json() {
        for (form, bytes, json) in [
            (Form::Json, &b"{\"a\": 1}"[..], "{\"a\": 1}"),
            (Form::Text, b"say \"hi\"", "\"say \\\"hi\\\"\""),
            (Form::Binary, b"\xff\xfe", "\"//4=\""),
        ] {
            let mut out = Vec::new();
            Payload { form, bytes: Bytes::copy_from_slice(bytes) }.write_json(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), json);
            assert_eq!(Form::of_media_type(form.media_type()), Some(form));
        }
    }
}
