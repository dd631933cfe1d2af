//! The fields that a publisher gives a message, and the checks that every door makes.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::clock::Now;
use crate::error::Error;
use crate::ids::MessageId;
use crate::protocol::message::{Form, Guarantee, Message, Payload, Sender};
use crate::protocol::target::Target;

/// Longest event name, in bytes.
pub const EVENT_BYTES_MAX: usize = 128;
/// Longest time to live: 30 days, in milliseconds.
pub const TTL_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// How long a request waits for its answer unless its `ttl` says, and the longest that it may wait, in milliseconds.
pub const REQUEST_TTL_MS: u64 = 10_000;
pub const REQUEST_TTL_MS_MAX: u64 = 60_000;
/// Deepest nesting of a payload. Browsers parse deeper, but other receivers overflow their stacks.
pub const PAYLOAD_DEPTH_MAX: usize = 64;
/// Most messages in one `POST /v1/messages`.
pub const BATCH_MAX: usize = 256;

/// A message as its publisher describes it: the `publish` frame of a codec and the body of `POST /v1/messages`.
#[derive(Debug)]
pub struct PublishRequest<'a> {
    pub to: Cow<'a, str>,
    /// Any JSON value, byte for byte; absent = `null`.
    pub payload: Option<&'a RawValue>,
    pub event: Option<Cow<'a, str>>,
    /// Milliseconds.
    pub ttl: Option<u64>,
    pub delivery: Guarantee,
    pub message_id: Option<Cow<'a, str>>,
    /// Of a message for a channel: whether the session that publishes it gets it too, if it subscribes.
    pub echo: bool,
    /// Of a message for the application: whether a backend is to answer it. `ttl` is the time that it has for that.
    pub reply: bool,
}

/// The fields of a [`PublishRequest`] as JSON. `null` in an optional field means the same as its absence.
#[derive(Debug, Default, Deserialize)]
pub struct PublishFields<'a> {
    #[serde(borrow, default)]
    pub to: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub ttl: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub delivery: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub message_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub echo: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub reply: Option<&'a RawValue>,
}

impl<'a> PublishFields<'a> {
    /// The error names the field.
    pub fn read(self) -> Result<PublishRequest<'a>, FieldError> {
        Ok(PublishRequest {
            to: text("to", self.to.ok_or(FieldError::missing("to"))?)?,
            payload: self.payload,
            event: self.event.map(|event| text("event", event)).transpose()?,
            ttl: self.ttl.map(|ttl| value("ttl", ttl)).transpose()?.map(|Whole(ttl)| ttl),
            delivery: match self.delivery {
                Some(delivery) => value("delivery", delivery)?,
                None => Guarantee::default(),
            },
            message_id: self.message_id.map(|id| text("message_id", id)).transpose()?,
            echo: self.echo.map_or(Ok(true), |echo| value("echo", echo))?,
            reply: self.reply.map_or(Ok(false), |reply| value("reply", reply))?,
        })
    }
}

impl<'a> PublishRequest<'a> {
    /// Reads a JSON object; the error names the field.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        // An array would be taken for the fields in their order.
        if !text.trim_start().starts_with('{') {
            return Err(Error::bad_request("not a message: a JSON object is expected"));
        }
        let fields: PublishFields = serde_json::from_str(text)
            .map_err(|error| Error::bad_request(format!("not a message: {error}")))?;
        fields.read().map_err(|error| Error::bad_request(error.to_string()))
    }
}

/// A field that cannot be read. The text is fit to be shown to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    pub field: &'static str,
    problem: String,
}

impl FieldError {
    pub(super) fn new(field: &'static str, problem: String) -> Self {
        Self { field, problem }
    }

    pub(super) fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing".into())
    }

    pub(super) fn unreadable(field: &'static str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        // Lines and columns count within the field and would mislead.
        let problem = text.split(" at line ").next().unwrap_or_default().to_owned();
        Self { field, problem }
    }
}

/// Reads a field of any type; the error names it.
pub fn value<'a, T: Deserialize<'a>>(field: &'static str, json: &'a RawValue) -> Result<T, FieldError> {
    serde_json::from_str(json.get()).map_err(|error| FieldError::unreadable(field, &error))
}

/// A number without a fraction that is not negative, however it is written: to JSON 5, 5.0 and 5e0 are one number, and some
/// encoders have no other way to write it (RFC 8259 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole(pub u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reading;

        impl Visitor<'_> for Reading {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number that is not negative")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Whole, E> {
                /// Above it not every whole number has a floating-point one.
                const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
                match number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number) {
                    true => Ok(Whole(number as u64)),
                    false => Err(E::invalid_value(Unexpected::Float(number), &self)),
                }
            }
        }

        from.deserialize_u64(Reading)
    }
}

/// Reads a text, without a copy when it has no escapes; the error names the field.
pub fn text<'a>(field: &'static str, json: &'a RawValue) -> Result<Cow<'a, str>, FieldError> {
    let raw = json.get();
    match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if !inner.contains('\\') => Ok(Cow::Borrowed(inner)),
        _ => value::<String>(field, json).map(Cow::Owned),
    }
}

impl PublishRequest<'_> {
    /// Checks every field; the error names the field.
    pub fn into_message(self, sender: Sender, now: Now) -> Result<Message, Error> {
        let target = Target::parse(&self.to).map_err(|e| Error::bad_request(format!("to: {e}")))?;
        let payload = self.payload.map_or("null", RawValue::get);
        let payload = Payload::json(Bytes::copy_from_slice(payload.as_bytes()));
        let Self { event, ttl, delivery, message_id, reply, .. } = self;
        Draft { target, payload, event, ttl, delivery, message_id, reply }.into_message(sender, now)
    }
}

/// A message whose target and payload are read, and whose other fields are as its publisher gave them.
#[derive(Debug)]
pub struct Draft<'a> {
    pub target: Target,
    pub payload: Payload,
    pub event: Option<Cow<'a, str>>,
    /// Milliseconds.
    pub ttl: Option<u64>,
    pub delivery: Guarantee,
    pub message_id: Option<Cow<'a, str>>,
    /// The application is to answer.
    pub reply: bool,
}

impl Draft<'_> {
    /// Checks every field; the error names the field.
    pub fn into_message(self, sender: Sender, now: Now) -> Result<Message, Error> {
        let id = match self.message_id {
            Some(id) => MessageId::new(&id).map_err(|e| Error::bad_request(format!("message_id: {e}")))?,
            None => MessageId::generate(),
        };
        if let Some(event) = &self.event {
            check_event(event)?;
        }
        if self.reply && !matches!(self.target, Target::App(_)) {
            return Err(Error::bad_request("reply: only of messages to app.<key>"));
        }
        let (usual_ttl, ttl_max) = match self.reply {
            true => (Some(REQUEST_TTL_MS), REQUEST_TTL_MS_MAX),
            false => (None, TTL_MS_MAX),
        };
        let ttl = self.ttl.or(usual_ttl);
        if ttl.is_some_and(|ttl| ttl == 0 || ttl > ttl_max) {
            return Err(Error::bad_request(format!("ttl: 1 to {ttl_max} milliseconds")));
        }
        if self.payload.form == Form::Json {
            check_depth(&self.payload.bytes)?;
        }
        Ok(Message {
            id,
            target: self.target,
            sender,
            event: self.event.map(Cow::into_owned),
            payload: self.payload,
            accepted_ms: now.unix_ms,
            expires: ttl.map(|ttl| now.instant + Duration::from_millis(ttl)),
            guarantee: self.delivery,
            redelivered: false,
            stamp: None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn parse(body: &str) -> Result<Message, String> {
        let request = PublishRequest::parse(body).map_err(|error| error.message)?;
        let sender = Sender::Service { service: "test".into() };
        let now = Now { unix_ms: 7, ..Now::read() };
        request.into_message(sender, now).map_err(|error| {
            assert_eq!(error.code, Code::BadRequest);
            error.message
        })
    }

    #[test]
    fn the_error_names_the_field() {
        for (body, part) in [
            (r#"["user.1"]"#, "not a message: a JSON object"),
            (r#"{"to":"user.1","to":"user.2"}"#, "not a message: duplicate field `to`"),
            (r#"{}"#, "to: is missing"),
            (r#"{"to":null}"#, "to: is missing"),
            (r#"{"to":5}"#, "to: invalid type: integer `5`"),
            (r#"{"to":"nobody"}"#, "to: "),
            (r#"{"to":"user.1","message_id":"a b"}"#, "message_id: "),
            (r#"{"to":"user.1","message_id":1}"#, "message_id: "),
            (r#"{"to":"user.1","ttl":0}"#, "ttl: "),
            (r#"{"to":"user.1","ttl":-1}"#, "ttl: "),
            (r#"{"to":"user.1","ttl":"5"}"#, "ttl: "),
            (r#"{"to":"user.1","ttl":5.5}"#, "ttl: "),
            (r#"{"to":"user.1","ttl":-5.0}"#, "ttl: "),
            (r#"{"to":"user.1","ttl":1e300}"#, "ttl: "),
            (r#"{"to":"user.1","event":"a\nb"}"#, "event: "),
            (r#"{"to":"user.1","event":[]}"#, "event: "),
            (r#"{"to":"user.1","delivery":"twice"}"#, "delivery: "),
            (r#"{"to":"channel.a","echo":"no"}"#, "echo: "),
            (r#"{"to":"app.a","reply":1}"#, "reply: "),
            (r#"{"to":"user.a","reply":true}"#, "reply: only of messages to app"),
            (r#"{"to":"app.a","reply":true,"ttl":60001}"#, "ttl: 1 to 60000"),
            (r#"{"to":"app.a*"}"#, "to: application key"),
        ] {
            let error = parse(body).unwrap_err();
            assert!(error.starts_with(part), "{body}: {error}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_in_any_way() {
        for text in ["5", "5.0", "5e0", "50e-1"] {
            assert_eq!(serde_json::from_str::<Whole>(text).unwrap(), Whole(5), "{text}");
        }
        assert_eq!(serde_json::from_str::<Whole>("18446744073709551615").unwrap(), Whole(u64::MAX));
        assert!(serde_json::from_str::<Whole>("18446744073709551616").is_err());
    }

    #[test]
    fn null_means_absent_in_every_optional_field() {
        let nulls = r#"{"to":"user.1","payload":null,"event":null,"ttl":null,"delivery":null,"message_id":null,"echo":null,"reply":null}"#;
        let message = parse(nulls).unwrap();
        assert_eq!(&message.payload.bytes[..], b"null");
        assert_eq!((message.event, message.expires), (None, None));
        assert_eq!(message.guarantee, Guarantee::AtLeastOnce);
    }

    #[test]
    fn a_payload_is_kept_byte_for_byte_and_escapes_in_other_fields_are_read() {
        let text = r#"{"to":"user.\u0034\"2","payload":{"a": 1.0, "b":"\u00e9"},"x":1}"#;
        let message = parse(text).unwrap();
        assert_eq!(&message.payload.bytes[..], br#"{"a": 1.0, "b":"\u00e9"}"#);
        assert_eq!(message.target, Target::parse("user.4\"2").unwrap());
        assert_eq!((message.accepted_ms, message.expires), (7, None));
    }

    #[test]
    fn nesting_is_bounded_and_strings_do_not_count() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(check_depth(deep(PAYLOAD_DEPTH_MAX).as_bytes()).is_ok());
        assert!(check_depth(deep(PAYLOAD_DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(check_depth(format!("\"{}\\\"[\"", "[".repeat(99)).as_bytes()).is_ok());
    }

    #[test]
    fn fuzzed() {
        let good = [
            r#"{"to":"user.42","payload":{"a":[1]},"event":"e","ttl":5,"delivery":"at_least_once","message_id":"m"}"#,
            r#"{"to":"channel.c","payload":"x","echo":true}"#,
            r#"{"to":"session.n~1"}"#,
        ];
        let words = ["null", "{}", "[", "\"", "\\u0000", "broadcast", "encoding", "base64", "at_most_once"];
        crate::tests::fuzz::fuzz("publish", &good.map(|text| text.as_bytes().to_vec()), &words, |input| {
            match parse(&String::from_utf8_lossy(input)) {
                Ok(message) => {
                    assert!(check_depth(&message.payload.bytes).is_ok());
                    format!("{:?} {:?}", std::mem::discriminant(&message.target), message.payload.form)
                }
                Err(error) => error.split_inclusive(':').take(1).collect(),
            }
        });
    }
}
