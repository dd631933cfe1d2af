//! Frames to clients: warren.v1, encoded once and shared by every socket that gets them.

use serde::Serialize;

use crate::ids::ChannelName;
use crate::protocol::close::{CloseCode, Reconnect};
use crate::protocol::message::{Form, Message, BASE64};
use crate::protocol::presence::{Change, Roster};
use crate::protocol::reply::{Reply, Welcome};

fn json(value: &impl Serialize, into: &mut Vec<u8>) {
    // Writing plain structs of strings and numbers to memory has no way to fail.
    let _ = serde_json::to_writer(into, value);
}

/// The `message` frame, as JSON text without WebSocket framing.
pub fn message(message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.payload.bytes.len() + 256);
    out.extend_from_slice(br#"{"type":"message""#);
    if message.redelivered {
        out.extend_from_slice(br#","redelivered":true"#);
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
    message.payload.write_json(&mut out);
    if message.payload.form == Form::Binary {
        out.extend_from_slice(b",\"encoding\":");
        json(&BASE64, &mut out);
    }
    out.extend_from_slice(b",\"ts\":");
    json(&message.accepted_ms, &mut out);
    out.push(b'}');
    out
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

fn reply_head(id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.extend_from_slice(br#"{"type":"reply","id":"#);
    out.extend_from_slice(id.unwrap_or("null").as_bytes());
    out
}

/// The answer to a request. `id` is the client's own JSON, as [`super::request::parse`] checked it.
pub fn reply(id: Option<&str>, reply: &Reply) -> Vec<u8> {
    let mut out = reply_head(id);
    match reply {
        Reply::Ok => out.extend_from_slice(br#","outcome":"ok"}"#),
        Reply::Settled(settled) => {
            let mut body = Vec::with_capacity(128);
            json(settled, &mut body);
            out.push(b',');
            out.extend_from_slice(&body[1..]);
        }
        Reply::Subscribed { count } => {
            out.extend_from_slice(br#","outcome":"ok","count":"#);
            json(count, &mut out);
            out.push(b'}');
        }
        Reply::Presence(presence) => {
            let mut body = Vec::with_capacity(128);
            json(presence, &mut body);
            out.extend_from_slice(br#","outcome":"ok","#);
            out.extend_from_slice(&body[1..]);
        }
        Reply::Error(error) => {
            out.extend_from_slice(b",\"error\":");
            json(error, &mut out);
            out.push(b'}');
        }
    }
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

/// Messages may have been missed: the application should reload its state. `reason` must need no escapes.
pub fn gap(reason: &'static str) -> Vec<u8> {
    format!(r#"{{"type":"gap","reason":"{reason}"}}"#).into_bytes()
}

/// The gateway put the session into a channel.
pub fn subscribed(channel: &ChannelName) -> Vec<u8> {
    #[derive(Serialize)]
    struct Subscribed<'a> {
        channel: &'a ChannelName,
    }
    let mut out = Vec::with_capacity(96);
    json(&Typed { kind: "subscribed", body: &Subscribed { channel } }, &mut out);
    out
}

#[derive(Serialize)]
struct InChannel<'a, T> {
    channel: &'a ChannelName,
    #[serde(flatten)]
    body: &'a T,
}

/// Somebody came to a channel or left it.
pub fn presence(channel: &ChannelName, change: &Change) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    json(&Typed { kind: "presence", body: &InChannel { channel, body: change } }, &mut out);
    out
}

/// Everybody who is in a channel, in place of what the client knows.
pub fn roster(channel: &ChannelName, roster: &Roster) -> Vec<u8> {
    #[derive(Serialize)]
    struct State<'a> {
        event: &'static str,
        #[serde(flatten)]
        roster: &'a Roster,
    }
    let mut out = Vec::with_capacity(1024);
    let state = State { event: "state", roster };
    json(&Typed { kind: "presence", body: &InChannel { channel, body: &state } }, &mut out);
    out
}

/// The gateway took the session out of a channel.
pub fn unsubscribed(channel: &ChannelName, reason: &'static str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Unsubscribed<'a> {
        channel: &'a ChannelName,
        reason: &'static str,
    }
    let mut out = Vec::with_capacity(96);
    json(&Typed { kind: "unsubscribed", body: &Unsubscribed { channel, reason } }, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, Error};
    use crate::ids::{MessageId, SessionId, UserId};
    use crate::protocol::message::{Guarantee, Payload, Sender, Settlement};
    use crate::protocol::reply::Settled;
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
            payload: Payload::json(&br#"{"text":"hi"}"#[..]),
            accepted_ms: 5,
            expires: None,
            guarantee: Guarantee::AtLeastOnce,
            redelivered: false,
            stamp: None,
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
    fn replies_are_json() {
        let id = MessageId::new("m").unwrap();
        let settlement = Settlement::Delivered { sessions: 2 };
        let value: Value =
            serde_json::from_slice(&reply(Some("\"x\""), &Reply::Settled(Settled::new(&id, &settlement))))
                .unwrap();
        assert_eq!(
            value,
            json!({"type":"reply","id":"x","outcome":"delivered","message_id":"m","sessions":2})
        );
        let error = Error::new(Code::Offline, "not \"here\"");
        let value: Value = serde_json::from_slice(&reply(None, &Reply::Error(&error))).unwrap();
        assert_eq!(value["error"], json!({"code":"offline","message":"not \"here\"","retry":false}));
        let value: Value = serde_json::from_slice(&disconnect(CloseCode::Drain, 9)).unwrap();
        assert_eq!(value["after_ms"], 9);
        assert_eq!(value["reconnect"], true);
        serde_json::from_slice::<Value>(&gap("broker link lost")).unwrap();
        serde_json::from_slice::<Value>(&reply(Some("1"), &Reply::Ok)).unwrap();
    }
}
