//! A message: what every door hands to the router.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{MessageId, SessionId, UserId};
use crate::protocol::target::Target;

/// What is promised for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Kept and repeated until its fate is known.
    #[default]
    AtLeastOnce,
    /// Never stored, dropped when in doubt: typing hints, ticks.
    AtMostOnce,
}

/// Who sent a message. Stamped by the gateway from what it has verified, never taken from a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Sender {
    Client {
        user: UserId,
        session: SessionId,
    },
    /// A user's token used on the HTTP API: there is no socket.
    User {
        user: UserId,
    },
    Service {
        service: String,
    },
}

/// Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: MessageId,
    pub target: Target,
    pub sender: Sender,
    pub event: Option<String>,
    /// A valid JSON value, kept as the bytes that came in.
    pub payload: Bytes,
    /// The payload is a JSON string of base64, since the publisher sent bytes that are no JSON.
    pub is_base64: bool,
    pub accepted_ms: u64,
    /// After this moment the message is `expired`; `None` = never.
    pub expires_ms: Option<u64>,
    pub guarantee: Guarantee,
    /// The source handed it over before: clients are told, so that order and repetition explain themselves.
    pub redelivered: bool,
}

/// The known fate of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Taken by this many sessions.
    Delivered {
        sessions: u32,
    },
    /// In the durable mailbox of its user.
    Stored,
    /// Confirmed by the broker for whoever is connected (broadcast, channel).
    Published,
    Failed(crate::error::Error),
}

impl Settlement {
    pub fn outcome(&self) -> &'static str {
        match self {
            Settlement::Delivered { .. } => "delivered",
            Settlement::Stored => "stored",
            Settlement::Published => "published",
            Settlement::Failed(error) if error.code == crate::error::Code::Expired => "expired",
            Settlement::Failed(_) => "rejected",
        }
    }
}
