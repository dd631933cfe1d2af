//! How a message looks on AMQP between nodes and in boxes: the payload is the body, the rest stands in standard
//! properties and flat headers.
//!
//! A version header lets two releases share a cluster: a node that meets a newer version than its own leaves the
//! message alone instead of guessing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::smallvec;
use xxhash_rust::xxh3::xxh3_64;

use crate::bus::{Destination, Lane, Properties, Publish};
use crate::delivery::peer_words::kind;
use crate::ids::{self, IdError, Life, MessageId, NodeId, SessionId, UserId};
use crate::protocol::message::{Form, Guarantee, Message, Payload, Sender, Stamp};
use crate::protocol::target::{Target, TargetError};

/// The version of this layout. Version 1 was a finished JSON frame.
const VERSION: &str = "2";
const HEADER_VERSION: &str = "warren-version";
const HEADER_TARGET: &str = "warren-to";
const HEADER_USER: &str = "warren-from-user";
const HEADER_SESSION: &str = "warren-from-session";
const HEADER_EVENT: &str = "warren-event";
const HEADER_TIME: &str = "warren-ts";
const HEADER_STAMP: &str = "warren-stamp";
/// The node that sent the message to the home of its target, which is to pass it on.
const HEADER_RELAY: &str = "warren-relay";
const HEADER_REDELIVERED: &str = "warren-redelivered";
/// Milliseconds that the origin still has to settle the message.
const HEADER_BUDGET: &str = "warren-budget";

/// Whose message ids these are, as a hash of the sender: ids of different senders never collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(pub u64);

impl Scope {
    /// A user is one sender whatever session it uses, so that a repeat after a reconnect is recognised.
    pub fn of(sender: &Sender) -> Self {
        match sender {
            Sender::Client { user, .. } | Sender::User { user } => Self(xxh3_64(user.as_str().as_bytes())),
            Sender::Service { service } => Self(!xxh3_64(service.as_bytes())),
        }
    }
}

/// A number by which an origin process knows one attempt to deliver one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Tag(pub u64);

/// Who awaits a receipt, and for what. The life keeps a late receipt for a former process of the same node apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    pub node: NodeId,
    pub life: Life,
    pub tag: Tag,
}

impl Origin {
    fn correlation_id(&self) -> String {
        format!("{}.{}", self.life, self.tag.0)
    }
}

/// A message on its way to a target node, and who awaits the receipt for it.
#[derive(Debug, Clone)]
pub struct Envelope {
    pub message: Message,
    /// `None`: nobody awaits a receipt (broadcasts, at-most-once, mail).
    pub origin: Option<Origin>,
    /// When the origin gives up waiting, on this node's clock.
    pub answer_by: Option<Instant>,
}

/// The publish of a message that its receiver is to pass on, for the node that has it done.
pub fn relayed_for(node: &NodeId, publish: Publish) -> Publish {
    let mut publish = publish;
    publish.properties.headers.push((HEADER_RELAY.to_owned(), node.as_str().to_owned()));
    publish
}

/// For which node this one is to pass the message on, if for one.
pub fn relay_for(from: &Properties) -> Result<Option<NodeId>, EnvelopeError> {
    Ok(from.header(HEADER_RELAY).map(NodeId::new).transpose()?)
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("a message between nodes lacks {0}")]
    Missing(&'static str),
    #[error("a message between nodes has version {0:?}, which this release does not know")]
    Version(String),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("not a number: {0}")]
    Number(#[from] std::num::ParseIntError),
    #[error("{0} is not well-formed")]
    Form(&'static str),
    #[error("cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl Envelope {
    pub fn to_publish(&self, to: Destination, now: Instant, order_key: u64) -> Publish {
        let mut properties = properties(&self.message, now);
        if let Some(origin) = &self.origin {
            properties.correlation_id = Some(origin.correlation_id());
            properties.reply_to = Some(origin.node.as_str().to_owned());
        }
        if let Some(at) = self.answer_by {
            let budget = at.saturating_duration_since(now);
            properties.headers.push((HEADER_BUDGET.to_owned(), budget.as_millis().to_string()));
        }
        let body = self.message.payload.bytes.clone();
        Publish { to, properties, body, order_key, lane: Lane::Bulk }
    }

    pub fn from_delivery(from: &Properties, body: Bytes, now: Instant) -> Result<Self, EnvelopeError> {
        let budget = from.header(HEADER_BUDGET).map(str::parse).transpose()?;
        Ok(Self {
            message: message(from, body, now)?,
            origin: origin(from)?,
            answer_by: budget.map(|ms| now + Duration::from_millis(ms)),
        })
    }
}

/// The properties under which a message travels and lies in a box.
pub fn properties(message: &Message, now: Instant) -> Properties {
    let mut headers = smallvec![
        (HEADER_VERSION.to_owned(), VERSION.to_owned()),
        (HEADER_TARGET.to_owned(), message.target.to_header()),
        (HEADER_TIME.to_owned(), message.accepted_ms.to_string()),
    ];
    let mut add = |name: &str, value: String| headers.push((name.to_owned(), value));
    let mut app_id = None;
    match &message.sender {
        Sender::Client { user, session } => {
            add(HEADER_USER, ids::encode(user.as_str()));
            add(HEADER_SESSION, session.to_string());
        }
        Sender::User { user } => add(HEADER_USER, ids::encode(user.as_str())),
        Sender::Service { service } => app_id = Some(service.clone()),
    }
    if let Some(event) = &message.event {
        add(HEADER_EVENT, ids::encode(event));
    }
    if let Some(Stamp { life, number }) = message.stamp {
        add(HEADER_STAMP, format!("{life}.{number}"));
    }
    if message.redelivered {
        add(HEADER_REDELIVERED, "1".to_owned());
    }
    // The broker drops the message from a queue when its time is over.
    let ttl_ms = message.remaining(now).map(|left| left.as_millis().max(1));
    Properties {
        message_id: Some(message.id.as_str().to_owned()),
        kind: Some(kind::MESSAGE.to_owned()),
        content_type: Some(message.payload.form.media_type().to_owned()),
        expiration: ttl_ms.map(|ttl| ttl.to_string()),
        persistent: Some(false),
        app_id,
        headers,
        ..Properties::default()
    }
}

/// The inverse of [`properties`]. The remaining time begins to run on this node's clock now.
pub fn message(from: &Properties, body: Bytes, now: Instant) -> Result<Message, EnvelopeError> {
    match from.header(HEADER_VERSION) {
        Some(VERSION) => {}
        other => return Err(EnvelopeError::Version(other.unwrap_or_default().to_owned())),
    }
    let needed = |name, what| from.header(name).ok_or(EnvelopeError::Missing(what));
    let id = from.message_id.as_deref().ok_or(EnvelopeError::Missing("a message id"))?;
    let form = from.content_type.as_deref().and_then(Form::of_media_type);
    let event =
        from.header(HEADER_EVENT).map(|event| ids::decode(event).ok_or(EnvelopeError::Form("the event")));
    let ttl_ms: Option<u64> = from.expiration.as_deref().map(str::parse).transpose()?;
    Ok(Message {
        id: MessageId::new(id)?,
        target: Target::from_header(needed(HEADER_TARGET, "a target")?)?,
        sender: sender(from)?,
        event: event.transpose()?,
        payload: Payload { form: form.ok_or(EnvelopeError::Form("the content type"))?, bytes: body },
        accepted_ms: needed(HEADER_TIME, "a time")?.parse()?,
        expires: ttl_ms.map(|ttl| now + Duration::from_millis(ttl)),
        guarantee: Guarantee::AtLeastOnce,
        redelivered: from.header(HEADER_REDELIVERED).is_some(),
        stamp: from.header(HEADER_STAMP).map(stamp).transpose()?,
    })
}

fn sender(from: &Properties) -> Result<Sender, EnvelopeError> {
    let Some(user) = from.header(HEADER_USER) else {
        let service = from.app_id.clone().ok_or(EnvelopeError::Missing("a sender"))?;
        return Ok(Sender::Service { service });
    };
    let user = UserId::new(&ids::decode(user).ok_or(EnvelopeError::Form("the sender"))?)?;
    Ok(match from.header(HEADER_SESSION) {
        Some(session) => Sender::Client { user, session: SessionId::parse(session)? },
        None => Sender::User { user },
    })
}

/// `<life>.<number>`.
fn numbered(text: &str) -> Option<(Life, u64)> {
    let (life, number) = text.split_once('.')?;
    Some((Life(u64::from_str_radix(life, 16).ok()?), number.parse().ok()?))
}

fn stamp(text: &str) -> Result<Stamp, EnvelopeError> {
    numbered(text).map(|(life, number)| Stamp { life, number }).ok_or(EnvelopeError::Form("the stamp"))
}

/// Who is to be answered, for messages and questions.
pub fn origin(from: &Properties) -> Result<Option<Origin>, EnvelopeError> {
    let (Some(node), Some(id)) = (&from.reply_to, &from.correlation_id) else { return Ok(None) };
    let (life, tag) = numbered(id).ok_or(EnvelopeError::Form("the correlation id"))?;
    Ok(Some(Origin { node: NodeId::new(node)?, life, tag: Tag(tag) }))
}

/// The properties that say who is to be answered: the inverse of [`origin`].
pub fn answered_to(origin: &Origin) -> Properties {
    Properties {
        correlation_id: Some(origin.correlation_id()),
        reply_to: Some(origin.node.as_str().to_owned()),
        persistent: Some(false),
        ..Properties::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        let now = Instant::now();
        Envelope {
            message: Message {
                id: MessageId::new("m-1").unwrap(),
                target: Target::parse("user.zoë ~ x").unwrap(),
                sender: Sender::Client {
                    user: UserId::new("bob é").unwrap(),
                    session: SessionId::parse("n~1").unwrap(),
                },
                event: Some("chat/é".into()),
                payload: Payload { form: Form::Binary, bytes: Bytes::from_static(b"\xff\0") },
                accepted_ms: 7,
                expires: Some(now + Duration::from_millis(900)),
                guarantee: Guarantee::AtLeastOnce,
                redelivered: true,
                stamp: Some(Stamp { life: Life(u64::MAX), number: 12 }),
            },
            origin: Some(Origin { node: NodeId::new("n").unwrap(), life: Life(3), tag: Tag(7) }),
            answer_by: Some(now + Duration::from_secs(9)),
        }
    }

    #[test]
    fn an_envelope_survives_the_trip() {
        let (envelope, now) = (envelope(), Instant::now());
        let publish = envelope.to_publish(Destination::Broadcast, now, 0);
        assert!(publish.properties.expiration.as_ref().is_some_and(|ms| ms.parse::<u64>().unwrap() <= 900));
        let later = now + Duration::from_secs(100);
        let back = Envelope::from_delivery(&publish.properties, publish.body, later).unwrap();
        let (was, is) = (&envelope.message, &back.message);
        assert_eq!((&was.id, &was.target, &was.sender), (&is.id, &is.target, &is.sender));
        assert_eq!((&was.event, &was.payload, was.accepted_ms), (&is.event, &is.payload, is.accepted_ms));
        assert_eq!((was.redelivered, was.stamp, &envelope.origin), (is.redelivered, is.stamp, &back.origin));
        assert!(is.expires.unwrap() > later, "the remaining time runs from the arrival on");
    }

    #[test]
    fn what_is_missing_or_newer_is_named() {
        let error =
            Envelope::from_delivery(&Properties::default(), Bytes::new(), Instant::now()).unwrap_err();
        assert!(error.to_string().contains("version"), "{error}");
        let mut publish = envelope().to_publish(Destination::Broadcast, Instant::now(), 0);
        publish.properties.headers.retain(|(name, _)| name != HEADER_TARGET);
        let error = Envelope::from_delivery(&publish.properties, publish.body, Instant::now()).unwrap_err();
        assert!(error.to_string().contains("target"), "{error}");
    }

    #[test]
    fn fuzzed() {
        use crate::tests::fuzz::{delivery, fuzz, input};
        let publish = envelope().to_publish(Destination::Broadcast, Instant::now(), 0);
        let good = [input(&publish.properties, &publish.body)];
        let words = ["broadcast", "user.", "~FF", "session.n~zzzzzzzzzzzzz", "\u{0}", "application/json"];
        fuzz("envelope", &good, &words, |bytes| {
            let (now, (properties, body)) = (Instant::now(), delivery(bytes));
            match Envelope::from_delivery(&properties, body, now) {
                Ok(read) => {
                    let again = read.to_publish(Destination::Broadcast, now, 0);
                    let back = Envelope::from_delivery(&again.properties, again.body, now).unwrap();
                    let (was, is) = (&read.message, &back.message);
                    assert_eq!((&was.id, &was.target, &was.sender), (&is.id, &is.target, &is.sender));
                    assert_eq!((&was.event, &was.payload, was.stamp), (&is.event, &is.payload, is.stamp));
                    assert_eq!(read.origin, back.origin);
                    format!(
                        "{:?} {:?}",
                        std::mem::discriminant(&was.target),
                        std::mem::discriminant(&was.sender)
                    )
                }
                Err(error) => error.to_string().split_inclusive(':').take(1).collect(),
            }
        });
    }
}
