//! How a client's message looks to a backend: the payload is the body, the rest stands in standard properties and flat
//! headers.

use std::time::Instant;

use smallvec::{smallvec, SmallVec};

use crate::bus::{Destination, Lane, Properties, Publish};
use crate::ids::{AppKey, NodeId};
use crate::protocol::message::{Guarantee, Message, Sender};

const HEADER_USER: &str = "warren-user";
const HEADER_SESSION: &str = "warren-session";
const HEADER_SERVICE: &str = "warren-service";
const HEADER_NODE: &str = "warren-node";

/// Where the answer to a request goes.
pub struct ReplyTo {
    pub queue: String,
    pub correlation_id: String,
}

/// The message as it is published to `warren.app`. The sender is what the gateway has verified; the broker vouches for
/// the gateway by `user_id`.
pub fn publish(
    key: AppKey,
    message: &Message,
    node: &NodeId,
    reply_to: Option<ReplyTo>,
    order_key: u64,
    now: Instant,
) -> Publish {
    let mut headers: SmallVec<[(String, String); 2]> = smallvec![(HEADER_NODE.to_owned(), node.to_string())];
    match &message.sender {
        Sender::Client { user, session } => {
            headers.push((HEADER_USER.to_owned(), user.to_string()));
            headers.push((HEADER_SESSION.to_owned(), session.to_string()));
        }
        Sender::User { user } => headers.push((HEADER_USER.to_owned(), user.to_string())),
        Sender::Service { service } => headers.push((HEADER_SERVICE.to_owned(), service.clone())),
    }
    let (reply_to, correlation_id) = reply_to.map(|to| (to.queue, to.correlation_id)).unzip();
    let properties = Properties {
        message_id: Some(message.id.to_string()),
        kind: message.event.clone(),
        content_type: Some(message.payload.form.media_type().to_owned()),
        correlation_id,
        reply_to,
        // A request that nobody waits for any more is not worth a backend's time.
        expiration: message.remaining(now).map(|left| left.as_millis().to_string()),
        timestamp: Some(message.accepted_ms / 1000),
        persistent: Some(message.guarantee == Guarantee::AtLeastOnce),
        headers,
        ..Properties::default()
    };
    let body = message.payload.bytes.clone();
    Publish { to: Destination::Application(key), properties, body, order_key, lane: Lane::Bulk }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{MessageId, SessionId, UserId};
    use crate::protocol::message::Payload;
    use crate::protocol::target::Target;
    use std::time::Duration;

    #[test]
    fn a_backend_sees_who_sent_what() {
        let now = Instant::now();
        let key = AppKey::new("orders.new").unwrap();
        let message = Message {
            id: MessageId::new("m1").unwrap(),
            target: Target::App(key.clone()),
            sender: Sender::Client {
                user: UserId::new("Zoë").unwrap(),
                session: SessionId::parse("n~1").unwrap(),
            },
            event: Some("order".into()),
            payload: Payload::json(&b"{}"[..]),
            accepted_ms: 12_345,
            expires: Some(now + Duration::from_secs(2)),
            guarantee: Guarantee::AtLeastOnce,
            redelivered: false,
            stamp: None,
        };
        let to = ReplyTo { queue: "q".into(), correlation_id: "c".into() };
        let publish = publish(key, &message, &NodeId::new("n").unwrap(), Some(to), 0, now);
        let properties = &publish.properties;
        for (name, value) in
            [("warren-user", Some("Zoë")), ("warren-session", Some("n~1")), ("warren-node", Some("n"))]
        {
            assert_eq!(properties.header(name), value);
        }
        assert_eq!((properties.kind.as_deref(), properties.timestamp), (Some("order"), Some(12)));
        assert_eq!(properties.expiration.as_deref(), Some("2000"));
        assert_eq!(
            (properties.reply_to.as_deref(), properties.correlation_id.as_deref()),
            (Some("q"), Some("c"))
        );
        assert_eq!(properties.persistent, Some(true));
    }
}
