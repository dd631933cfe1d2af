//! Dead letters: what cannot be delivered to anybody, kept in `warren.dead` with the reason.

use bytes::Bytes;
use smallvec::smallvec;

use super::amqp10;
use crate::bus::{Delivery, Destination, Lane, Properties, Publish};
use crate::ids;

/// Longest reason in a header, in bytes.
const REASON_BYTES_MAX: usize = 200;
/// Longest body in the dead queue, in bytes: enough to recognise the message, and never so much that the broker refuses
/// it. The full length stands in a header.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest text of a header that repeats what the backend wrote, in bytes.
const HEADER_BYTES_MAX: usize = 1024;

/// The dead letter of a delivery. It keeps what its backend needs to recognise it and to be answered later.
pub(super) fn publish(delivery: &Delivery, reason: &str) -> Publish {
    let from = &delivery.properties;
    let is_whole = delivery.body.len() <= BODY_BYTES_MAX;
    let mut headers = smallvec![
        ("warren-reason".to_owned(), shortened(reason, REASON_BYTES_MAX).to_owned()),
        ("warren-routing-key".to_owned(), ids::encode(shortened(&delivery.routing_key, HEADER_BYTES_MAX))),
    ];
    if !is_whole {
        headers.push(("warren-body-bytes".to_owned(), delivery.body.len().to_string()));
    }
    let properties = Properties {
        headers,
        message_id: from.message_id.clone(),
        // The broker decodes such a body for a reader that speaks AMQP 1.0, and fails over half of one.
        kind: from.kind.clone().filter(|kind| is_whole || kind != amqp10::ENCODED),
        content_type: from.content_type.clone(),
        correlation_id: from.correlation_id.clone(),
        reply_to: from.reply_to.clone(),
        app_id: from.app_id.clone(),
        persistent: Some(true),
        ..Properties::default()
    };
    let body: Bytes = delivery.body.slice(..delivery.body.len().min(BODY_BYTES_MAX));
    Publish { to: Destination::Dead, properties, body, order_key: 0, lane: Lane::Reply }
}

fn shortened(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{AckToken, Via};
    use tokio::sync::mpsc;

    #[test]
    fn a_dead_letter_fits_and_keeps_the_way_back() {
        let properties = Properties {
            reply_to: Some("replies".into()),
            correlation_id: Some("c".into()),
            ..Properties::default()
        };
        let delivery = Delivery {
            via: Via::Ingress,
            routing_key: "é".repeat(2_000),
            properties,
            body: vec![7; BODY_BYTES_MAX + 1].into(),
            redelivered: false,
            ack: AckToken::new(1, mpsc::channel(1).0),
        };
        let publish = publish(&delivery, &"ü".repeat(300));
        assert_eq!(publish.body.len(), BODY_BYTES_MAX);
        let properties = &publish.properties;
        assert_eq!(properties.header("warren-body-bytes"), Some("65537"));
        assert_eq!(properties.header("warren-reason").map(str::len), Some(REASON_BYTES_MAX));
        assert_eq!(
            (properties.reply_to.as_deref(), properties.correlation_id.as_deref()),
            (Some("replies"), Some("c"))
        );
    }
}
