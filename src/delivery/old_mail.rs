//! Mail as version 1 stored it, a finished JSON frame in a mailbox of its user, read for the move into boxes.

use std::time::{Duration, Instant};

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::bus::Properties;
use crate::delivery::envelope::EnvelopeError;
use crate::ids::{MessageId, SessionId, UserId};
use crate::protocol::message::{Form, Guarantee, Message, Payload, Sender};
use crate::protocol::target::Target;

const HEADER_TARGET: &str = "warren-to";
/// Milliseconds since the Unix epoch.
const HEADER_EXPIRES: &str = "warren-expires";

#[derive(Deserialize)]
struct Frame<'a> {
    from: From,
    #[serde(default)]
    event: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(default)]
    encoding: Option<String>,
    ts: u64,
    #[serde(default)]
    redelivered: bool,
}

#[derive(Deserialize)]
struct From {
    user: Option<String>,
    session: Option<String>,
    service: Option<String>,
}

/// The message that an old mail holds.
pub fn read(
    properties: &Properties,
    body: &[u8],
    now: Instant,
    now_ms: u64,
) -> Result<Message, EnvelopeError> {
    let frame: Frame = serde_json::from_slice(body)?;
    let id = properties.message_id.as_deref().ok_or(EnvelopeError::Missing("a message id"))?;
    let target = properties.header(HEADER_TARGET).ok_or(EnvelopeError::Missing("a target"))?;
    let expires_ms: Option<u64> = properties.header(HEADER_EXPIRES).map(str::parse).transpose()?;
    let expires = expires_ms.map(|at| now + Duration::from_millis(at.saturating_sub(now_ms)));
    let payload = match frame.encoding.as_deref() {
        Some("base64") => {
            let text: String = serde_json::from_str(frame.payload.get())?;
            let bytes = STANDARD.decode(text).map_err(|_| EnvelopeError::Form("the payload"))?;
            Payload { form: Form::Binary, bytes: bytes.into() }
        }
        Some(_) => return Err(EnvelopeError::Form("the encoding")),
        None => Payload::json(Bytes::copy_from_slice(frame.payload.get().as_bytes())),
    };
    Ok(Message {
        id: MessageId::new(id)?,
        target: Target::from_header(target)?,
        sender: sender(frame.from)?,
        event: frame.event,
        payload,
        accepted_ms: frame.ts,
        expires,
        guarantee: Guarantee::AtLeastOnce,
        redelivered: frame.redelivered,
        stamp: None,
    })
}

fn sender(from: From) -> Result<Sender, EnvelopeError> {
    Ok(match (from.user, from.session, from.service) {
        (Some(user), Some(session), None) => {
            Sender::Client { user: UserId::new(&user)?, session: SessionId::parse(&session)? }
        }
        (Some(user), None, None) => Sender::User { user: UserId::new(&user)? },
        (None, None, Some(service)) => Sender::Service { service },
        _ => return Err(EnvelopeError::Form("the sender")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn an_old_mail_becomes_the_message_that_it_was() {
        let properties = Properties {
            message_id: Some("m-1".into()),
            headers: smallvec![
                ("warren-to".into(), Target::parse("user.zoë").unwrap().to_header()),
                ("warren-scope".into(), "ff".into()),
                ("warren-expires".into(), "5000".into())
            ],
            ..Properties::default()
        };
        let frame =
            |rest: &str| format!(r#"{{"type":"message","id":"m-1","from":{{"user":"bob"}},{rest},"ts":7}}"#);
        let now = Instant::now();
        let body = frame(r#""to":"user.zoë","event":"e","payload":{"a": [1]}"#);
        let message = read(&properties, body.as_bytes(), now, 4000).unwrap();
        assert_eq!(message.payload, Payload::json(&b"{\"a\": [1]}"[..]));
        assert_eq!((message.expires, message.accepted_ms), (Some(now + Duration::from_secs(1)), 7));
        assert_eq!(message.sender, Sender::User { user: UserId::new("bob").unwrap() });
        let body = frame(r#""payload":"//4=","encoding":"base64""#);
        let message = read(&properties, body.as_bytes(), now, 4000).unwrap();
        assert_eq!(message.payload, Payload { form: Form::Binary, bytes: Bytes::from_static(b"\xff\xfe") });
        assert!(read(&properties, b"junk", now, 4000).is_err());
    }
}
