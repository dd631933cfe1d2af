//! Frames from clients: warren.v1, one JSON object per text message.

use std::borrow::Cow;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::error::Error;
use crate::ids::{ChannelName, UserId};
use crate::protocol::publish::{text, value, FieldError, PublishFields};
use crate::protocol::request::{PresenceOf, Refusal, Request, RequestBody, ACK_IDS_MAX};

/// Longest request id that a client may choose, in bytes of JSON.
pub const REQUEST_ID_BYTES_MAX: usize = 140;

/// Every field of every frame. Fields that the type of a frame does not have are ignored, `null` means absent.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    to: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ttl: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delivery: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    echo: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reply: Option<&'a RawValue>,
    #[serde(borrow, default)]
    ids: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user: Option<&'a RawValue>,
    #[serde(borrow, default)]
    presence: Option<&'a RawValue>,
}

/// Parses a text message. The refusal has the request id where one could be read.
pub fn parse(text: &str) -> Result<Request<'_>, Refusal<'_>> {
    let unreadable = |problem: &dyn fmt::Display| Refusal {
        id: None,
        error: Error::bad_request(format!("not a warren.v1 frame: {problem}")),
    };
    // An array would be taken for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(unreadable(&"a JSON object is expected"));
    }
    let frame: Frame = serde_json::from_str(text).map_err(|error| unreadable(&error))?;
    let id = request_id(frame.id).map_err(|error| Refusal { id: None, error })?;
    match read_body(frame) {
        Ok(body) => Ok(Request { id, body }),
        Err(error) => Err(Refusal { id, error }),
    }
}

/// The client's own JSON string or number, which the reply repeats byte for byte.
fn request_id(id: Option<&RawValue>) -> Result<Option<&str>, Error> {
    let Some(id) = id.map(RawValue::get) else { return Ok(None) };
    let scalar = id.starts_with('"') || id.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    match scalar && id.len() <= REQUEST_ID_BYTES_MAX {
        true => Ok(Some(id)),
        false => Err(Error::bad_request(format!(
            "id: a string or a number, at most {REQUEST_ID_BYTES_MAX} bytes of JSON"
        ))),
    }
}

fn read_body(frame: Frame<'_>) -> Result<RequestBody<'_>, Error> {
    let kind = required("type", frame.kind).map_err(|error| Error::bad_request(error.to_string()))?;
    let body = match &*kind {
        "publish" => {
            let Frame { to, payload, event, ttl, delivery, message_id, echo, reply, .. } = frame;
            let fields = PublishFields { to, payload, event, ttl, delivery, message_id, echo, reply };
            fields.read().map(RequestBody::Publish)
        }
        "ack" => (frame.ids.ok_or(FieldError::missing("ids")))
            .and_then(|ids| value::<Ids>("ids", ids))
            .map(|ids| RequestBody::Ack(ids.0)),
        "auth" => required("token", frame.token).map(RequestBody::Auth),
        "refresh" => required("token", frame.token).map(RequestBody::Refresh),
        "subscribe" => subscription(&frame),
        "unsubscribe" => channel(&frame).map(RequestBody::Unsubscribe),
        "presence" => presence_of(&frame).map(RequestBody::Presence),
        "ping" => Ok(RequestBody::Ping),
        _ => return Err(Error::bad_request("type: not known to this version")),
    };
    body.map_err(|error| Error::bad_request(format!("{kind}: {error}")))
}

fn required<'a>(field: &'static str, json: Option<&'a RawValue>) -> Result<Cow<'a, str>, FieldError> {
    text(field, json.ok_or(FieldError::missing(field))?)
}

fn channel(frame: &Frame<'_>) -> Result<ChannelName, FieldError> {
    let name = required("channel", frame.channel)?;
    ChannelName::new(&name).map_err(|error| FieldError::new("channel", error.to_string()))
}

fn subscription<'a>(frame: &Frame<'_>) -> Result<RequestBody<'a>, FieldError> {
    let presence = frame.presence.map(|presence| value::<bool>("presence", presence)).transpose()?;
    Ok(RequestBody::Subscribe { channel: channel(frame)?, presence })
}

fn presence_of(frame: &Frame<'_>) -> Result<PresenceOf, FieldError> {
    match (frame.user, frame.channel) {
        (Some(user), None) => {
            let user = text("user", user)?;
            let user = UserId::new(&user).map_err(|error| FieldError::new("user", error.to_string()))?;
            Ok(PresenceOf::User(user))
        }
        (None, Some(_)) => channel(frame).map(PresenceOf::Channel),
        (Some(_), Some(_)) => Err(FieldError::new("channel", "name it or a user, not both".into())),
        (None, None) => Err(FieldError::missing("user")),
    }
}

/// A list of ids that is given up as soon as it is too long.
struct Ids<'a>(Vec<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Ids<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reading;

        impl<'de> Visitor<'de> for Reading {
            type Value = Vec<Cow<'de, str>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {ACK_IDS_MAX} message ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut ids = Vec::new();
                while let Some(Id(id)) = seq.next_element()? {
                    if ids.len() >= ACK_IDS_MAX {
                        return Err(serde::de::Error::custom(format_args!("at most {ACK_IDS_MAX} ids")));
                    }
                    ids.push(id);
                }
                Ok(ids)
            }
        }

        from.deserialize_seq(Reading).map(Ids)
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Id<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::fuzz::fuzz;

    #[test]
    fn requests_are_read() {
        let request = parse(r#"{"type":"publish","id":"1","to":"user.42","payload":{"a": 1}}"#).unwrap();
        assert_eq!(request.id, Some("\"1\""));
        let RequestBody::Publish(publish) = request.body else { panic!("{request:?}") };
        assert_eq!(publish.payload.map(RawValue::get), Some(r#"{"a": 1}"#));
        let request = parse(r#"{"type":"ack","id":null,"ids":["a","\u0062"]}"#).unwrap();
        assert!(matches!(request, Request { id: None, body: RequestBody::Ack(ids) } if ids == ["a", "b"]));
        let request = parse(r#"{"ty\u0070e":"ping","id":-1.5,"to":7}"#).unwrap();
        assert!(matches!(request, Request { id: Some("-1.5"), body: RequestBody::Ping }));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "warren.v1"),
            ("[]", "warren.v1"),
            (r#"["ping",1]"#, "warren.v1"),
            ("{\"id\":1}", "type: is missing"),
            (r#"{"type":5,"id":1}"#, "type: invalid type"),
            (r#"{"type":"dance","id":1}"#, "type: not known"),
            (r#"{"type":"publish","id":1}"#, "publish: to: is missing"),
            (r#"{"type":"publish","id":1,"to":"user.1","ttl":1e300}"#, "publish: ttl: "),
            (r#"{"type":"publish","id":1,"to":"user.1","to":"user.2"}"#, "`to`"),
            (r#"{"type":"publish","id":{},"to":"user.1"}"#, "id: "),
            (r#"{"type":"auth"}"#, "auth: token: is missing"),
            (r#"{"type":"auth","token":7}"#, "auth: token: invalid type"),
            (r#"{"type":"subscribe"}"#, "subscribe: channel: is missing"),
            (r#"{"type":"subscribe","channel":""}"#, "subscribe: channel: "),
            (r#"{"type":"subscribe","channel":"x","presence":1}"#, "subscribe: presence: "),
            (r#"{"type":"unsubscribe","channel":{}}"#, "unsubscribe: channel: "),
            (r#"{"type":"presence"}"#, "presence: user: is missing"),
            (r#"{"type":"presence","user":""}"#, "presence: user: "),
            (r#"{"type":"presence","user":"a","channel":"b"}"#, "presence: channel: name it or"),
            (r#"{"type":"ack","ids":7}"#, "ack: ids: "),
            (r#"{"type":"ack","ids":[7]}"#, "ack: ids: "),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.error.message.contains(part), "{text}: {}", refusal.error);
        }
    }

    #[test]
    fn a_list_of_ids_is_bounded() {
        let ack = |count: usize| format!(r#"{{"type":"ack","ids":[{}]}}"#, vec!["\"m\""; count].join(","));
        assert!(parse(&ack(ACK_IDS_MAX)).is_ok());
        let text = ack(ACK_IDS_MAX + 1);
        assert!(parse(&text).unwrap_err().error.message.contains("at most 1024 ids"));
    }

    #[test]
    fn fuzzed() {
        let good = [
            r#"{"type":"publish","id":1,"to":"user.42","payload":{"a":[1,"\u00e9"]},"event":"e","ttl":5,"delivery":"at_most_once","message_id":"m","echo":false}"#,
            r#"{"type":"ack","ids":["a","b"]}"#,
            r#"{"type":"auth","token":"a.b.c"}"#,
            r#"{"type":"subscribe","id":"x","channel":"c"}"#,
            r#"{"type":"presence","id":1.5,"user":"a"}"#,
            r#"{"type":"refresh","id":null,"token":"t"}"#,
        ];
        let words = [
            "null",
            "{}",
            "[]",
            "\"\"",
            "\\u0000",
            "\\ud800",
            "channel.",
            "session.n~1",
            "broadcast",
            "true",
        ];
        fuzz("warren.v1", &good.map(|text| text.as_bytes().to_vec()), &words, |input| {
            let text = String::from_utf8_lossy(input);
            match parse(&text) {
                Ok(request) => {
                    let kind = match &request.body {
                        RequestBody::Publish(_) => 0,
                        RequestBody::Ack(_) => 1,
                        RequestBody::Subscribe { .. } | RequestBody::Unsubscribe(_) => 2,
                        _ => 3,
                    };
                    let RequestBody::Publish(publish) = request.body else {
                        return (Some(kind), String::new());
                    };
                    let sender = crate::protocol::message::Sender::Service { service: "s".into() };
                    let told = match publish.into_message(sender, crate::clock::Now::read()) {
                        Ok(message) => {
                            let frame = crate::protocol::warren_v1::reply::message(&message);
                            serde_json::from_slice::<&RawValue>(&frame).expect("a frame is JSON");
                            format!("{:?} {:?}", std::mem::discriminant(&message.target), message.guarantee)
                        }
                        Err(error) => error.message,
                    };
                    (Some(kind), told)
                }
                Err(refusal) => {
                    assert!(refusal.error.message.len() < 1_000, "{}", refusal.error);
                    let message = refusal.error.message;
                    (None, message.split_inclusive(':').take(2).collect())
                }
            }
        });
    }
}
