//! What nodes say to each other on the bus: message envelopes, receipts, questions and answers.
//!
//! The body of a message between nodes is the finished frame for the browser; what a node needs to route it
//! stands in standard AMQP properties and one flat header, so that no node parses JSON on the way.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use xxhash_rust::xxh3::xxh3_64;

use crate::bus::{Destination, Lane, Properties, Publish};
use crate::ids::{IdError, MessageId, NodeId, SessionId, UserId};
use crate::protocol::message::{Message, Sender};
use crate::protocol::server;
use crate::protocol::target::{Target, TargetError};

/// AMQP `type` of what nodes send each other. Anything else on a node queue came from a backend.
pub mod kind {
    pub const MESSAGE: &str = "warren.message";
    pub const RECEIPTS: &str = "warren.receipts";
    pub const ASK: &str = "warren.ask";
    pub const ANSWER: &str = "warren.answer";
    pub const MAIL: &str = "warren.mail";
}

const HEADER_TARGET: &str = "warren-to";
const HEADER_SCOPE: &str = "warren-scope";
const HEADER_EXPIRES: &str = "warren-expires";
const HEADER_MAIL: &str = "warren-mail";

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

/// A number by which an origin knows one attempt to deliver one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tag(pub u64);

/// Who awaits a receipt, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub node: NodeId,
    pub tag: Tag,
}

/// A message on its way between nodes.
#[derive(Debug, Clone)]
pub struct Envelope {
    pub id: MessageId,
    pub scope: Scope,
    pub target: Target,
    /// `None`: nobody awaits a receipt (broadcasts, at-most-once).
    pub origin: Option<Origin>,
    /// Milliseconds since the Unix epoch after which the message is not to be shown any more.
    pub expires_ms: Option<u64>,
    /// It comes out of a mailbox, and so goes before what arrived since.
    pub is_mail: bool,
    /// The `message` frame as JSON text.
    pub frame: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("a message between nodes lacks {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("not a number: {0}")]
    Number(#[from] std::num::ParseIntError),
    #[error("not what it should be: {0}")]
    Json(#[from] serde_json::Error),
}

impl Envelope {
    /// The envelope of a message of which nobody awaits a receipt.
    pub fn of(message: &Message) -> Self {
        Self {
            id: message.id.clone(),
            scope: Scope::of(&message.sender),
            target: message.target.clone(),
            origin: None,
            expires_ms: message.expires_ms,
            is_mail: false,
            frame: server::message(message),
        }
    }

    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }

    pub fn to_publish(&self, to: Destination, now_ms: u64, order_key: u64) -> Publish {
        let properties = self.properties(now_ms);
        Publish { to, properties, body: self.frame.clone(), order_key, lane: Lane::Bulk }
    }

    /// The properties under which the message lies in a mailbox, and travels.
    pub fn properties(&self, now_ms: u64) -> Properties {
        let mut headers = smallvec![
            (HEADER_TARGET.to_owned(), self.target.to_header()),
            (HEADER_SCOPE.to_owned(), format!("{:x}", self.scope.0)),
        ];
        if let Some(expires_ms) = self.expires_ms {
            headers.push((HEADER_EXPIRES.to_owned(), expires_ms.to_string()));
        }
        if self.is_mail {
            headers.push((HEADER_MAIL.to_owned(), "1".to_owned()));
        }
        // The broker drops the message from a queue when its time is over.
        let ttl_ms = self.expires_ms.map(|at| at.saturating_sub(now_ms).max(1));
        Properties {
            message_id: Some(self.id.as_str().to_owned()),
            kind: Some(kind::MESSAGE.to_owned()),
            content_type: Some("application/json".to_owned()),
            correlation_id: self.origin.as_ref().map(|origin| origin.tag.0.to_string()),
            reply_to: self.origin.as_ref().map(|origin| origin.node.as_str().to_owned()),
            expiration: ttl_ms.map(|ttl| ttl.to_string()),
            persistent: Some(false),
            headers,
            ..Properties::default()
        }
    }

    pub fn from_delivery(properties: &Properties, body: Bytes) -> Result<Self, EnvelopeError> {
        let target = properties.header(HEADER_TARGET).ok_or(EnvelopeError::Missing("a target"))?;
        let scope = properties.header(HEADER_SCOPE).ok_or(EnvelopeError::Missing("a scope"))?;
        let id = properties.message_id.as_deref().ok_or(EnvelopeError::Missing("a message id"))?;
        Ok(Self {
            id: MessageId::new(id)?,
            scope: Scope(u64::from_str_radix(scope, 16)?),
            target: Target::from_header(target)?,
            origin: origin(properties)?,
            expires_ms: properties.header(HEADER_EXPIRES).map(str::parse).transpose()?,
            is_mail: properties.header(HEADER_MAIL).is_some(),
            frame: body,
        })
    }
}

/// Who is to be answered, for messages and asks.
pub fn origin(properties: &Properties) -> Result<Option<Origin>, EnvelopeError> {
    match (&properties.reply_to, &properties.correlation_id) {
        (Some(node), Some(tag)) => Ok(Some(Origin { node: NodeId::new(node)?, tag: Tag(tag.parse()?) })),
        _ => Ok(None),
    }
}

/// One target node's answers to one origin: for each attempt, how many sessions took the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    pub from: NodeId,
    pub receipts: Vec<(Tag, u32)>,
}

/// A question to nodes about the sessions they hold, or an order to close them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    SessionsOf(UserId),
    DisconnectUser(UserId),
    /// A session's id as text: only the node that is asked needs to understand it.
    DisconnectSession(String),
}

/// One session as `GET /v1/users/{id}` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub session: String,
    pub node: NodeId,
    /// Milliseconds since the Unix epoch.
    pub since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub from: NodeId,
    /// The sessions that the question was about.
    pub sessions: Vec<SessionInfo>,
}

fn json_publish(to: NodeId, kind: &str, body: &impl Serialize, origin: Option<&Origin>) -> Publish {
    let properties = Properties {
        kind: Some(kind.to_owned()),
        content_type: Some("application/json".to_owned()),
        correlation_id: origin.map(|origin| origin.tag.0.to_string()),
        reply_to: origin.map(|origin| origin.node.as_str().to_owned()),
        persistent: Some(false),
        ..Properties::default()
    };
    // Plain structs of strings and numbers cannot fail to serialize.
    let body = serde_json::to_vec(body).unwrap_or_default().into();
    Publish { to: Destination::Nodes(smallvec![to]), properties, body, order_key: 0, lane: Lane::Urgent }
}

/// Users in whose mailboxes something has been put: a node that holds one of them hands it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mail {
    pub users: Vec<UserId>,
}

/// To the nodes that hold a user: it overtakes nothing that was published before with the same order key, and is
/// overtaken by nothing that is published after.
pub fn mail_publish(to: Destination, mail: &Mail, order_key: u64) -> Publish {
    let properties = Properties {
        kind: Some(kind::MAIL.to_owned()),
        content_type: Some("application/json".to_owned()),
        persistent: Some(false),
        ..Properties::default()
    };
    // Plain structs of strings cannot fail to serialize.
    let body = serde_json::to_vec(mail).unwrap_or_default().into();
    Publish { to, properties, body, order_key, lane: Lane::Bulk }
}

pub fn receipts_publish(to: NodeId, receipts: &Receipts) -> Publish {
    json_publish(to, kind::RECEIPTS, receipts, None)
}

pub fn ask_publish(to: NodeId, ask: &Ask, origin: &Origin) -> Publish {
    json_publish(to, kind::ASK, ask, Some(origin))
}

pub fn answer_publish(to: &Origin, answer: &Answer) -> Publish {
    json_publish(to.node.clone(), kind::ANSWER, answer, Some(to))
}

impl SessionInfo {
    pub fn new(session: &SessionId, since_ms: u64) -> Self {
        Self { session: session.to_string(), node: session.node.clone(), since_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_survives_the_trip() {
        let envelope = Envelope {
            id: MessageId::new("m-1").unwrap(),
            scope: Scope(u64::MAX),
            target: Target::parse("user.zoë ~ x").unwrap(),
            origin: Some(Origin { node: NodeId::new("n").unwrap(), tag: Tag(7) }),
            expires_ms: Some(109),
            is_mail: true,
            frame: Bytes::from_static(b"{}"),
        };
        let publish = envelope.to_publish(Destination::Broadcast, 100, 0);
        assert_eq!(publish.properties.expiration.as_deref(), Some("9"));
        let back = Envelope::from_delivery(&publish.properties, publish.body).unwrap();
        assert_eq!(
            (back.id, back.target, back.origin, back.scope),
            (envelope.id, envelope.target, envelope.origin, envelope.scope)
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Envelope::from_delivery(&Properties::default(), Bytes::new()).unwrap_err();
        assert!(error.to_string().contains("target"));
    }
}
