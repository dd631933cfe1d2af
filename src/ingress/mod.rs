//! What arrives by AMQP: from other nodes, and from backends.

pub mod backends;
pub mod peers;

use bytes::Bytes;
use smallvec::smallvec;

use crate::bus::{publish_confirmed, Bus, Delivery, Destination, Lane, Outcome, Properties, Publish};
use crate::ids;
use crate::metrics::Metrics;

/// Longest reason in a header of the dead queue, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// Moves a delivery that nobody can do anything with to the dead queue, where a person finds it with the reason.
/// It is acknowledged only once the dead queue has it.
async fn bury(bus: &dyn Bus, metrics: &Metrics, delivery: Delivery, reason: &str) {
    tracing::warn!(via = ?delivery.via, reason, "moved a message to the dead queue");
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let properties = Properties {
        headers: smallvec![
            ("warren-reason".to_owned(), reason[..end].to_owned()),
            ("warren-routing-key".to_owned(), ids::encode(&delivery.routing_key)),
        ],
        message_id: delivery.properties.message_id.clone(),
        kind: delivery.properties.kind.clone(),
        content_type: delivery.properties.content_type.clone(),
        app_id: delivery.properties.app_id.clone(),
        persistent: Some(true),
        ..Properties::default()
    };
    let body: Bytes = delivery.body.clone();
    let publish = Publish { to: Destination::Dead, properties, body, order_key: 0, lane: Lane::Bulk };
    if publish_confirmed(bus, publish).await == Outcome::Confirmed {
        metrics.message_dead();
        delivery.ack.ack();
    }
    // Else the delivery goes back to the broker, which hands it out again.
}
