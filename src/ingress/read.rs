//! Reads what a backend published: standard AMQP properties and any body (AMQP 0-9-1, basic class).

use bytes::Bytes;
use serde_json::value::RawValue;

use super::amqp10::{self, Body, BodyError};
use crate::bus::{Delivery, Properties, Via, EVENT_HEADER};
use crate::clock::Now;
use crate::ids::MessageId;
use crate::protocol::message::{Form, Guarantee, Message, Payload, Sender};
use crate::protocol::publish::{check_depth, check_event, TTL_MS_MAX};
use crate::protocol::target::Target;

/// Longest name of a service, in bytes.
const SERVICE_BYTES_MAX: usize = 128;

/// The message that a delivery from the ingress queue carries; the error names the property that is wrong.
pub(super) fn ingress(delivery: &Delivery, message_bytes_max: usize, now: Now) -> Result<Message, String> {
    if delivery.via == Via::IngressQueue {
        return Err("published to the queue by its name: publish to the exchange".to_owned());
    }
    let target = Target::parse(&delivery.routing_key).map_err(|error| format!("routing key: {error}"))?;
    if let Target::App(_) = target {
        return Err(
            "routing key: app.… is the way from clients to backends; backends reach one another directly"
                .into(),
        );
    }
    message(delivery, target, message_bytes_max, now)
}

/// The same rules at every door of backends.
pub(super) fn message(
    delivery: &Delivery,
    target: Target,
    message_bytes_max: usize,
    now: Now,
) -> Result<Message, String> {
    check_size(delivery, message_bytes_max)?;
    let properties = &delivery.properties;
    let id = match &properties.message_id {
        Some(id) => MessageId::new(id).map_err(|error| format!("message_id: {error}"))?,
        None => MessageId::generate(),
    };
    let (payload, event) = content(delivery, message_bytes_max)?;
    if let Some(event) = &event {
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
        event,
        payload,
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

fn check_size(delivery: &Delivery, bytes_max: usize) -> Result<(), String> {
    if let Some(why) = &delivery.properties.unreadable {
        return Err(why.clone());
    }
    match delivery.body.len() > bytes_max {
        true => Err(format!("body: longer than {bytes_max} bytes")),
        false => Ok(()),
    }
}

/// The payload alone, of what is no message: an answer.
pub(super) fn payload_of(delivery: &Delivery, bytes_max: usize) -> Result<Payload, String> {
    check_size(delivery, bytes_max)?;
    content(delivery, bytes_max).map(|(payload, _)| payload)
}

fn service(properties: &Properties) -> Result<String, String> {
    let service = properties.app_id.as_deref().or(properties.user_id.as_deref()).unwrap_or("backend");
    if service.len() > SERVICE_BYTES_MAX || service.chars().any(char::is_control) {
        return Err(format!("app_id: at most {SERVICE_BYTES_MAX} bytes without control characters"));
    }
    Ok(service.to_owned())
}

/// The payload and the event name.
fn content(delivery: &Delivery, bytes_max: usize) -> Result<(Payload, Option<String>), String> {
    let Properties { kind, content_type, .. } = &delivery.properties;
    let (kind, content_type) = (kind.as_deref(), content_type.as_deref());
    let header = delivery.properties.header(EVENT_HEADER);
    let named = |kind: Option<&str>| kind.or(header).map(str::to_owned);
    if kind == Some(amqp10::ENCODED) || content_type == Some(amqp10::ENCODED) {
        let payload = match amqp10::read(&delivery.body, bytes_max) {
            Ok(Body::Bytes(bytes)) => payload(&bytes.into(), content_type)?,
            Ok(Body::Text(text)) => of_text(text.into(), content_type)?,
            Ok(Body::Json(json)) => Payload::json(json),
            Err(BodyError::NoJson) => Payload { form: Form::Binary, bytes: delivery.body.clone() },
            // Not the broker's mark then, but the sender's own words.
            Err(BodyError::Malformed) => return Ok((payload(&delivery.body, content_type)?, named(kind))),
            Err(error @ (BodyError::Deep | BodyError::Long(_))) => return Err(format!("body: {error}")),
        };
        // The mark stands where the event name would stand.
        return Ok((payload, named(kind.filter(|kind| *kind != amqp10::ENCODED))));
    }
    Ok((payload(&delivery.body, content_type)?, named(kind)))
}

/// The sender says that it is a string; only the media type makes JSON of it.
fn of_text(text: Bytes, content_type: Option<&str>) -> Result<Payload, String> {
    let kind = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    if kind.trim().eq_ignore_ascii_case(Form::Json.media_type()) {
        let payload = payload(&text, content_type)?;
        if payload.form == Form::Json {
            return Ok(payload);
        }
    }
    Ok(Payload { form: Form::Text, bytes: text })
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
    use crate::bus::AckToken;

    fn delivery(properties: Properties, body: &[u8]) -> Delivery {
        Delivery {
            via: Via::Ingress,
            routing_key: "user.1".into(),
            properties,
            body: Bytes::copy_from_slice(body),
            redelivered: false,
            ack: AckToken::new(1, tokio::sync::mpsc::channel(1).0),
        }
    }

    /// As RabbitMQ 3.10 to 4.3 hand on what proton sends.
    #[test]
    fn a_body_of_amqp_1_0_is_decoded() {
        let json = Some("application/json");
        for (kind, content_type, header, body, expected, form, event) in [
            ("amqp-1.0", None, None, &b"\0Sw\xa1\x05hello"[..], &b"hello"[..], Form::Text, None),
            ("amqp-1.0", json, None, b"\0Sw\xa1\x03[1]", b"[1]", Form::Json, None),
            ("amqp-1.0", json, None, b"\0Sw\xa1\x01{", b"{", Form::Text, None),
            ("amqp-1.0", None, Some("e"), b"\0Sw\xa0\x02{}", b"{}", Form::Json, Some("e")),
            ("amqp-1.0", None, None, b"\0Sv\xd0\0\0\0\x08\0\0\0\x02U\x01U\x02", b"[1,2]", Form::Json, None),
            ("e", Some("amqp-1.0"), None, b"\0SwA", b"true", Form::Json, Some("e")),
            // An infinity, which has no JSON: as it came.
            ("amqp-1.0", None, None, b"\0Swr\x7f\x80\0\0", b"\0Swr\x7f\x80\0\0", Form::Binary, None),
            // Not of the broker's making.
            ("amqp-1.0", None, None, b"{}", b"{}", Form::Json, Some("amqp-1.0")),
            ("e", None, Some("other"), b"\0SwA", b"\0SwA", Form::Binary, Some("e")),
        ] {
            let mut properties = Properties {
                kind: Some(kind.into()),
                content_type: content_type.map(str::to_owned),
                ..Properties::default()
            };
            properties.headers.extend(header.map(|event| (EVENT_HEADER.to_owned(), event.to_owned())));
            let message = ingress(&delivery(properties, body), 100, Now::read()).unwrap();
            assert_eq!(
                (&message.payload.bytes[..], message.payload.form),
                (expected, form),
                "{kind} {body:?}"
            );
            assert_eq!(message.event.as_deref(), event);
        }
        // An array of 4,000,000,000 nulls.
        let bomb = b"\0Sw\xf0\0\0\0\x05\xee\x6b\x28\0\x40";
        let properties = Properties { kind: Some("amqp-1.0".into()), ..Properties::default() };
        let error = ingress(&delivery(properties, bomb), 100, Now::read()).unwrap_err();
        assert_eq!(error, "body: longer than 100 bytes as JSON");
    }

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

    #[test]
    fn fuzzed() {
        use crate::tests::fuzz::{delivery as parts, fuzz, input};
        let text = |text: &str| Some(text.to_owned());
        let plain = Properties {
            message_id: text("m-1"),
            kind: text("notice"),
            app_id: text("parcels"),
            expiration: text("900"),
            content_type: text("text/plain; charset=utf-8"),
            ..Properties::default()
        };
        let amqp10 = Properties { content_type: text("amqp-1.0"), ..Properties::default() };
        let good = [
            input(&plain, b"hello"),
            input(&Properties::default(), b"{\"a\":[1,2]}"),
            input(&amqp10, b"\0Sw\xa1\x05hello"),
            input(&amqp10, b"\0Sv\xd0\0\0\0\x08\0\0\0\x02U\x01U\x02"),
        ];
        let words = ["amqp-1.0", "application/json", "text/", "type", "-1", "\u{1}", "[[[["];
        fuzz("AMQP messages", &good, &words, |bytes| {
            let (properties, body) = parts(bytes);
            match ingress(&delivery(properties, &body), 500, Now::read()) {
                Ok(message) => {
                    assert!(message.payload.bytes.len() <= 500);
                    let frame = crate::protocol::warren_v1::reply::message(&message);
                    serde_json::from_slice::<&RawValue>(&frame).expect("a frame is JSON");
                    format!("{:?} {:?} {}", message.payload.form, message.guarantee, message.event.is_some())
                }
                Err(error) => error,
            }
        });
    }
}
