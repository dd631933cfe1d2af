//! The backends' door: any AMQP client publishes with standard properties; the routing key is the target.

use std::sync::Arc;
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::Engine as _;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::bus::{Bus, Delivery, Destination, Lane, Properties, Publish};
use crate::error::Error;
use crate::ids::MessageId;
use crate::ingress::bury;
use crate::metrics::{Door, Metrics};
use crate::protocol::client::{check_depth, check_event};
use crate::protocol::message::{Guarantee, Message, Sender, Settlement};
use crate::protocol::server::Settled;
use crate::protocol::target::Target;
use crate::router::{now_ms, Router};

/// A message that could not be settled for now is tried again after so long.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Longest name of a service, in bytes.
const SERVICE_BYTES_MAX: usize = 128;

/// Works off the ingress queue until it is closed. Messages are accepted in their order, and each is
/// acknowledged when it is settled.
pub async fn run(
    router: Arc<Router>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
    message_bytes_max: usize,
    mut inbox: mpsc::Receiver<Delivery>,
) {
    while let Some(delivery) = inbox.recv().await {
        match read(&delivery, message_bytes_max) {
            Ok(message) => accept(&router, bus.clone(), metrics.clone(), message, delivery),
            Err(reason) => bury(&*bus, &metrics, delivery, &reason).await,
        }
    }
}

fn read(delivery: &Delivery, message_bytes_max: usize) -> Result<Message, String> {
    if delivery.body.len() > message_bytes_max {
        return Err(format!("body: longer than {message_bytes_max} bytes"));
    }
    let target = Target::parse(&delivery.routing_key).map_err(|error| format!("routing key: {error}"))?;
    message(delivery, target)
}

/// Reads the standard properties; the error names the one that is wrong.
pub(super) fn message(delivery: &Delivery, target: Target) -> Result<Message, String> {
    let properties = &delivery.properties;
    let id = match &properties.message_id {
        Some(id) => MessageId::new(id).map_err(|error| format!("message_id: {error}"))?,
        None => MessageId::generate(),
    };
    if let Some(event) = &properties.kind {
        check_event(event).map_err(|error| format!("type: {}", error.message))?;
    }
    let ttl_ms: Option<u64> = (properties.expiration.as_deref())
        .map(|text| text.parse().map_err(|_| "expiration: not milliseconds".to_owned()))
        .transpose()?;
    let service = properties.app_id.as_deref().or(properties.user_id.as_deref()).unwrap_or("backend");
    if service.len() > SERVICE_BYTES_MAX || service.chars().any(char::is_control) {
        return Err(format!("app_id: at most {SERVICE_BYTES_MAX} bytes without control characters"));
    }
    let (payload, is_base64) = payload(&delivery.body, properties.content_type.as_deref())?;
    let now_ms = now_ms();
    Ok(Message {
        id,
        target,
        sender: Sender::Service { service: service.to_owned() },
        event: properties.kind.clone(),
        payload,
        is_base64,
        accepted_ms: now_ms,
        expires_ms: ttl_ms.map(|ttl| now_ms.saturating_add(ttl)),
        guarantee: match properties.persistent {
            Some(false) => Guarantee::AtMostOnce,
            _ => Guarantee::AtLeastOnce,
        },
        redelivered: delivery.redelivered,
    })
}

/// JSON stays as it is, `text/*` becomes a JSON string, and any other bytes become base64 in a JSON string.
fn payload(body: &Bytes, content_type: Option<&str>) -> Result<(Bytes, bool), String> {
    if body.is_empty() {
        return Ok((Bytes::from_static(b"null"), false));
    }
    let text = std::str::from_utf8(body).ok();
    if let (Some(text), Some(kind)) = (text, content_type) {
        if kind.starts_with("text/") {
            return Ok((serde_json::to_vec(text).map_err(|error| error.to_string())?.into(), false));
        }
    }
    if let Some(json) = text.and_then(|text| serde_json::from_str::<&RawValue>(text).ok()) {
        check_depth(json.get().as_bytes()).map_err(|error| error.message)?;
        return Ok((body.slice_ref(json.get().as_bytes()), false));
    }
    Ok((format!("\"{}\"", STANDARD.encode(body)).into(), true))
}

fn accept(
    router: &Arc<Router>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
    message: Message,
    delivery: Delivery,
) {
    #[cfg(feature = "sabotage")]
    let delivery = match crate::sabotage::is("ack-early") {
        true => Delivery { ack: delivery.ack.ack_early(), ..delivery },
        false => delivery,
    };
    // What could not be settled may still have reached its receiver: whatever comes of a second try says so.
    let (again, retry) = (router.clone(), Message { redelivered: true, ..message.clone() });
    let settle = move |settlement: Settlement| {
        metrics.settled(Door::Ingress, settlement.outcome());
        if matches!(&settlement, Settlement::Failed(error) if error.code.retry()) {
            // Not settled, so it stays. Not handed back either: a queue may count how often that happens, and
            // throw the message away. The prefetch window bounds how many wait like this.
            tokio::spawn(async move {
                tokio::time::sleep(RETRY_AFTER).await;
                accept(&again, bus, metrics, retry, delivery);
            });
            return;
        }
        answer(&*bus, &retry.id, &settlement, &delivery.properties);
        delivery.ack.ack();
    };
    router.accept(message, Box::new(settle));
}

/// The settlement as a backend gets it.
#[derive(Serialize)]
struct Answer<'a> {
    id: &'a MessageId,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Error>,
}

/// Tells the backend what became of its message, if it named a queue for that.
fn answer(bus: &dyn Bus, id: &MessageId, settlement: &Settlement, properties: &Properties) {
    let Some(reply_to) = &properties.reply_to else { return };
    let Settled { outcome, sessions, error, .. } = Settled::new(id, settlement);
    // Plain structs cannot fail to serialise.
    let body = serde_json::to_vec(&Answer { id, outcome, sessions, error }).unwrap_or_default();
    let properties = Properties {
        correlation_id: properties.correlation_id.clone(),
        content_type: Some("application/json".to_owned()),
        ..Properties::default()
    };
    let publish = Publish {
        to: Destination::Queue(reply_to.clone()),
        properties,
        body: body.into(),
        order_key: 0,
        lane: Lane::Bulk,
    };
    #[cfg(feature = "sabotage")]
    if crate::sabotage::is("settle-twice") {
        bus.publish(publish.clone(), Box::new(|_| ()));
    }
    bus.publish(publish, Box::new(|_| ()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_body_becomes_a_payload() {
        for (body, kind, expected, is_base64) in [
            (&b""[..], None, "null", false),
            (b" {\"a\":1} ", None, "{\"a\":1}", false),
            (b"hello", None, "\"aGVsbG8=\"", true),
            (b"say \"hi\"", Some("text/plain"), "\"say \\\"hi\\\"\"", false),
            (b"\xff\xfe", Some("text/plain"), "\"//4=\"", true),
        ] {
            let (payload, base64) = payload(&Bytes::copy_from_slice(body), kind).unwrap();
            assert_eq!((&payload[..], base64), (expected.as_bytes(), is_base64));
        }
        assert!(payload(&Bytes::from("[".repeat(99) + &"]".repeat(99)), None).is_err());
    }
}
