//! Frames from clients: warren.v1, one JSON object per text message.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::Error;
use crate::ids::MessageId;
use crate::protocol::message::{Guarantee, Message, Sender};
use crate::protocol::target::Target;

/// Longest event name, in bytes.
pub const EVENT_BYTES_MAX: usize = 128;
/// Longest request id that a client may choose, in bytes of JSON.
pub const REQUEST_ID_BYTES_MAX: usize = 140;
/// Longest time to live: 30 days, in milliseconds.
pub const TTL_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// Deepest nesting of a payload. Browsers parse deeper, but other receivers overflow their stacks.
pub const PAYLOAD_DEPTH_MAX: usize = 64;
/// Most messages in one `POST /v1/messages`.
pub const BATCH_MAX: usize = 256;

/// What a publisher may say about a message: the `publish` frame and the body of `POST /v1/messages`.
#[derive(Debug, Deserialize)]
pub struct PublishRequest<'a> {
    #[serde(borrow)]
    pub to: Cow<'a, str>,
    #[serde(borrow, default)]
    pub payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub event: Option<Cow<'a, str>>,
    /// Milliseconds.
    #[serde(default)]
    pub ttl: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    pub delivery: Guarantee,
    #[serde(borrow, default)]
    pub message_id: Option<Cow<'a, str>>,
}

/// `null` is the same as nothing.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl<'a> PublishRequest<'a> {
    /// Reads the fields; the error names the field.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| match wrong_field(text) {
            Some((field, error)) => Error::bad_request(format!("{field}: {error}")),
            None => Error::bad_request(format!("not a message: {error}")),
        })
    }
}

/// Which field of a message has a wrong type: serde_json says where it stands, and not its name.
fn wrong_field(text: &str) -> Option<(&'static str, serde_json::Error)> {
    fn check<T: serde::de::DeserializeOwned>(value: &RawValue) -> Option<serde_json::Error> {
        serde_json::from_str::<Option<T>>(value.get()).err()
    }
    let fields: std::collections::HashMap<Cow<str>, &RawValue> = serde_json::from_str(text).ok()?;
    let wrong = |field: &'static str| {
        let value = fields.get(field)?;
        let error = match field {
            "to" => serde_json::from_str::<String>(value.get()).err(),
            "ttl" => check::<u64>(value),
            "delivery" => check::<Guarantee>(value),
            _ => check::<String>(value),
        };
        error.map(|error| (field, error))
    };
    ["to", "event", "ttl", "delivery", "message_id"].into_iter().find_map(wrong)
}

impl PublishRequest<'_> {
    /// Checks every field; the error names the field.
    pub fn into_message(self, sender: Sender, now_ms: u64) -> Result<Message, Error> {
        let target = Target::parse(&self.to).map_err(|e| Error::bad_request(format!("to: {e}")))?;
        let id = match self.message_id {
            Some(id) => MessageId::new(&id).map_err(|e| Error::bad_request(format!("message_id: {e}")))?,
            None => MessageId::generate(),
        };
        if let Some(event) = &self.event {
            check_event(event)?;
        }
        if self.ttl.is_some_and(|ttl| ttl == 0 || ttl > TTL_MS_MAX) {
            return Err(Error::bad_request(format!("ttl: 1 to {TTL_MS_MAX} milliseconds")));
        }
        let payload = self.payload.map_or("null", RawValue::get);
        check_depth(payload.as_bytes())?;
        Ok(Message {
            id,
            target,
            sender,
            event: self.event.map(Cow::into_owned),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            is_base64: false,
            accepted_ms: now_ms,
            expires_ms: self.ttl.map(|ttl| now_ms + ttl),
            guarantee: self.delivery,
            redelivered: false,
        })
    }
}

/// An event name: at most [`EVENT_BYTES_MAX`] bytes, no control characters.
pub fn check_event(event: &str) -> Result<(), Error> {
    if event.len() > EVENT_BYTES_MAX || event.chars().any(char::is_control) {
        return Err(Error::bad_request(format!(
            "event: at most {EVENT_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

/// Refuses JSON that is nested deeper than [`PAYLOAD_DEPTH_MAX`]. `json` must be valid JSON.
pub fn check_depth(json: &[u8]) -> Result<(), Error> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > PAYLOAD_DEPTH_MAX {
                    return Err(Error::bad_request(format!(
                        "payload: nested deeper than {PAYLOAD_DEPTH_MAX}"
                    )));
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// One request of a client, with the id that its reply will carry.
#[derive(Debug)]
pub struct Request<'a> {
    /// The client's own JSON string or number; `None` is answered with `null`.
    pub id: Option<&'a str>,
    pub body: RequestBody<'a>,
}

#[derive(Debug)]
pub enum RequestBody<'a> {
    Publish(PublishRequest<'a>),
    Ack(Vec<Cow<'a, str>>),
    Auth(Cow<'a, str>),
    Refresh(Cow<'a, str>),
    Ping,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct AckBody<'a> {
    #[serde(borrow)]
    ids: Vec<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct TokenBody<'a> {
    #[serde(borrow)]
    token: Cow<'a, str>,
}

/// Parses a text message. The error comes with the request id where one could be read.
pub fn parse(text: &str) -> Result<Request<'_>, (Option<&str>, Error)> {
    let head: Head = serde_json::from_str(text)
        .map_err(|e| (None, Error::bad_request(format!("not a warren.v1 frame: {e}"))))?;
    let id = head.id.map(RawValue::get).filter(|id| *id != "null");
    if let Some(id) = id {
        let scalar = id.starts_with('"') || id.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        if !scalar || id.len() > REQUEST_ID_BYTES_MAX {
            return Err((None, Error::bad_request("id: a string or a number, at most 140 bytes")));
        }
    }
    let body = match &*head.kind {
        "publish" => match PublishRequest::parse(text) {
            Ok(publish) => Ok(RequestBody::Publish(publish)),
            Err(error) => return Err((id, error)),
        },
        "ack" => serde_json::from_str(text).map(|body: AckBody| RequestBody::Ack(body.ids)),
        "auth" => serde_json::from_str(text).map(|body: TokenBody| RequestBody::Auth(body.token)),
        "refresh" => serde_json::from_str(text).map(|body: TokenBody| RequestBody::Refresh(body.token)),
        "ping" => Ok(RequestBody::Ping),
        _ => return Err((id, Error::bad_request("type: not known to this version"))),
    };
    match body {
        Ok(body) => Ok(Request { id, body }),
        Err(e) => Err((id, Error::bad_request(format!("{}: {e}", head.kind)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn sender() -> Sender {
        Sender::Service { service: "test".into() }
    }

    #[test]
    fn a_publish_keeps_its_payload_byte_for_byte() {
        let text = r#"{"type":"publish","id":"1","to":"user.42","payload":{"a": 1.0, "b":"\u00e9"},"x":1}"#;
        let request = parse(text).unwrap();
        assert_eq!(request.id, Some("\"1\""));
        let RequestBody::Publish(publish) = request.body else { panic!("{request:?}") };
        let message = publish.into_message(sender(), 7).unwrap();
        assert_eq!(&message.payload[..], br#"{"a": 1.0, "b":"\u00e9"}"#);
        assert_eq!((message.accepted_ms, message.expires_ms), (7, None));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "warren.v1"),
            ("[]", "warren.v1"),
            ("{\"id\":1}", "type"),
            (r#"{"type":"dance","id":1}"#, "type"),
            (r#"{"type":"publish","id":1}"#, "to"),
            (r#"{"type":"publish","id":{},"to":"user.1"}"#, "id"),
            (r#"{"type":"auth"}"#, "token"),
        ] {
            let (_, error) = parse(text).unwrap_err();
            assert!(error.message.contains(part), "{text}: {error}");
        }
        for (body, part) in [
            (r#"{"to":"nobody"}"#, "to"),
            (r#"{"to":"user.1","message_id":"a b"}"#, "message_id"),
            (r#"{"to":"user.1","ttl":0}"#, "ttl"),
            (r#"{"to":"user.1","event":"a\nb"}"#, "event"),
        ] {
            let request: PublishRequest = serde_json::from_str(body).unwrap();
            let error = request.into_message(sender(), 0).unwrap_err();
            assert_eq!(error.code, Code::BadRequest);
            assert!(error.message.starts_with(part), "{body}: {error}");
        }
    }

    #[test]
    fn null_is_nothing_and_a_wrong_type_is_named() {
        let text =
            r#"{"to":"user.1","payload":null,"event":null,"ttl":null,"delivery":null,"message_id":null}"#;
        let request = PublishRequest::parse(text).unwrap();
        assert!(request.event.is_none() && request.ttl.is_none() && request.message_id.is_none());
        assert_eq!(request.delivery, Guarantee::AtLeastOnce);
        for (field, value) in [
            ("to", "1"),
            ("to", "null"),
            ("event", "{}"),
            ("ttl", "-1"),
            ("ttl", "1.5"),
            ("ttl", "\"1\""),
            ("delivery", "\"never\""),
            ("message_id", "7"),
        ] {
            let others = if field == "to" { "" } else { r#""to":"user.1","# };
            let error = PublishRequest::parse(&format!("{{{others}\"{field}\":{value}}}")).unwrap_err();
            assert!(error.message.starts_with(&format!("{field}: ")), "{field} {value}: {error}");
            let framed = format!(r#"{{"type":"publish","id":1,{others}"{field}":{value}}}"#);
            assert_eq!(parse(&framed).unwrap_err().1.message.split(':').next(), Some(field));
        }
    }

    #[test]
    fn nesting_is_bounded_and_strings_do_not_count() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(check_depth(deep(PAYLOAD_DEPTH_MAX).as_bytes()).is_ok());
        assert!(check_depth(deep(PAYLOAD_DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(check_depth(format!("\"{}\\\"[\"", "[".repeat(99)).as_bytes()).is_ok());
    }
}
