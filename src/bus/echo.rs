//! The demo service: a backend that answers each request with its own payload.

use super::{Delivery, Destination, Lane, Properties, Publish};

/// The answer to a request, as any AMQP library gives it: to `reply_to`, with the request's `correlation_id`. `None`:
/// nobody asked for one.
pub fn answer(request: &Delivery) -> Option<Publish> {
    let asked = &request.properties;
    let properties = Properties {
        correlation_id: asked.correlation_id.clone(),
        content_type: asked.content_type.clone(),
        persistent: Some(false),
        ..Properties::default()
    };
    let to = Destination::Queue(asked.reply_to.clone()?);
    Some(Publish { to, properties, body: request.body.clone(), order_key: 0, lane: Lane::Bulk })
}
