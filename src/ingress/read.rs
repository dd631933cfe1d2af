//! Reads what a backend published: standard AMQP properties and any body (AMQP 0-9-1, basic class).

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::bus::{Delivery, Properties};
use crate::clock::Now;
use crate::ids::MessageId;
use crate::protocol::message::{Form, Guarantee, Message, Payload, Sender};
use crate::protocol::publish::{check_depth, check_event, TTL_MS_MAX};
use crate::protocol::target::Target;

/// Longest name of a service, in bytes.
const SERVICE_BYTES_MAX: usize = 128;

/// The message that a delivery from the ingress queue carries; the error names the property that is wrong.
pub(super) fn ingress(delivery: &Delivery, message_bytes_max: usize, now: Now) -> Result<Message, String> {
    let target = Target::parse(&delivery.routing_key).map_err(|error| format!("routing key: {error}"))?;
    message(delivery, target, message_bytes_max, now)
}

/// The same rules at every door of backends.
pub(super) fn message(
    delivery: &Delivery,
    target: Target,
    message_bytes_max: usize,
    now: Now,
) -> Result<Message, String> {
    if let Some(why) = &delivery.properties.unreadable {
        return Err(why.clone());
    }
    if delivery.body.len() > message_bytes_max {
        return Err(format!("body: longer than {message_bytes_max} bytes"));
    }
    let properties = &delivery.properties;
    let id = match &properties.message_id {
        Some(id) => MessageId::new(id).map_err(|error| format!("message_id: {error}"))?,
        None => MessageId::generate(),
    };
    if let Some(event) = &properties.kind {
        check_event(event).map_err(|error| format!("type: {}", error.message))?;
    }
    let expires = match properties.expiration.as_deref() {
        None => None,
        Some(text) => {
            let ms: u64 = text.parse().map_err(|_| "expiration: not milliseconds".to_owned())?;
            // Longer than any mail lies: as good as none, and it cannot overflow a clock.
            (ms <= TTL_MS_MAX).then(|| now.instant + std::time::Duration::from_millis(ms))
        }
    };
    Ok(Message {
        id,
        target,
        sender: Sender::Service { service: service(properties)? },
        event: properties.kind.clone(),
        payload: payload(&delivery.body, properties.content_type.as_deref())?,
        accepted_ms: now.unix_ms,
        expires,
        guarantee: match properties.persistent {
            Some(false) => Guarantee::AtMostOnce,
            _ => Guarantee::AtLeastOnce,
        },
        redelivered: delivery.redelivered,
        stamp: None,
    })
}

fn service(properties: &Properties) -> Result<String, String> {
    let service = properties.app_id.as_deref().or(properties.user_id.as_deref()).unwrap_or("backend");
    if service.len() > SERVICE_BYTES_MAX || service.chars().any(char::is_control) {
        return Err(format!("app_id: at most {SERVICE_BYTES_MAX} bytes without control characters"));
    }
    Ok(service.to_owned())
}

/// A JSON body stays as it is, one of `text/*` is text, any other bytes are binary. Media types are compared without
/// regard to case (RFC 9110 section 8.3.1).
fn payload(body: &Bytes, content_type: Option<&str>) -> Result<Payload, String> {
    const TEXT: &str = "text/";
    if body.is_empty() {
        return Ok(Payload::json(&b"null"[..]));
    }
    let Ok(text) = std::str::from_utf8(body) else {
        return Ok(Payload { form: Form::Binary, bytes: body.clone() });
    };
    let kind = content_type.unwrap_or_default().trim_start();
    if kind.get(..TEXT.len()).is_some_and(|start| start.eq_ignore_ascii_case(TEXT)) {
        return Ok(Payload { form: Form::Text, bytes: body.clone() });
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => {
            check_depth(json.get().as_bytes()).map_err(|error| error.message)?;
            Ok(Payload::json(body.slice_ref(json.get().as_bytes())))
        }
        Err(_) => Ok(Payload { form: Form::Binary, bytes: body.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_body_becomes_a_payload() {
        for (body, kind, expected, form) in [
            (&b""[..], None, &b"null"[..], Form::Json),
            (b" {\"a\":1} ", None, b"{\"a\":1}", Form::Json),
            (b"hello", None, b"hello", Form::Binary),
            (b"hello", Some("Text/Plain; charset=utf-8"), b"hello", Form::Text),
            (b"12", Some("TEXT/html"), b"12", Form::Text),
            (b"\xff\xfe", Some("text/plain"), b"\xff\xfe", Form::Binary),
        ] {
            let payload = payload(&Bytes::copy_from_slice(body), kind).unwrap();
            assert_eq!((&payload.bytes[..], payload.form), (expected, form));
        }
        assert!(payload(&Bytes::from("[".repeat(99) + &"]".repeat(99)), None).is_err());
    }
}
