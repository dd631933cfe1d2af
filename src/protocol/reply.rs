//! The contents of frames to a client, whatever the codec.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::Error;
use crate::ids::{ChannelName, MessageId, NodeId, SessionId, UserId};
use crate::protocol::message::{Answer, Settlement};

/// The first frame of a session that has a user.
#[derive(Debug, Serialize)]
pub struct Welcome<'a> {
    pub session: &'a SessionId,
    pub user: &'a UserId,
    pub node: &'a NodeId,
    pub version: &'a str,
    /// Between the server's pings; in the frame as seconds, with a fraction if it is not whole.
    #[serde(serialize_with = "seconds")]
    pub ping_interval: Duration,
    pub limits: Limits,
    /// What the token has the session subscribe to.
    pub channels: &'a [ChannelName],
}

fn seconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    match duration.subsec_nanos() {
        0 => to.serialize_u64(duration.as_secs()),
        _ => to.serialize_f64(duration.as_secs_f64()),
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// Longest frame of the client.
    pub message_bytes: u32,
    /// 0 = unlimited.
    pub publishes_per_second: u32,
    /// Publishes that may await their reply.
    pub in_flight: u32,
}

/// The answer to a request.
#[derive(Debug)]
pub enum Reply<'a> {
    /// Nothing more to say than yes: `ping`, `refresh`, `unsubscribe`.
    Ok,
    /// The fate of a publish.
    Settled(Settled<'a>),
    /// The session gets the messages of a channel that has so many subscribers.
    Subscribed {
        count: u64,
    },
    Presence(&'a Presence),
    Error(&'a Error),
}

/// The answer to a question for presence.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Presence {
    User {
        online: bool,
        sessions: Vec<OneSession>,
        /// Some node did not answer in time.
        partial: bool,
    },
    Channel {
        /// How many users.
        count: u64,
        /// `None`: too many to be listed.
        #[serde(skip_serializing_if = "Option::is_none")]
        users: Option<Vec<UserId>>,
        /// Some node did not answer in time.
        partial: bool,
    },
}

/// A session of a user who is online.
#[derive(Debug, Serialize)]
pub struct OneSession {
    pub session: String,
    pub node: NodeId,
    /// Milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// The answer to a publish, in frames and over HTTP.
#[derive(Debug, Serialize)]
pub struct Settled<'a> {
    pub message_id: &'a MessageId,
    pub outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    /// Of a request: what the backend answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a Error>,
}

impl<'a> Settled<'a> {
    pub fn new(message_id: &'a MessageId, settlement: &'a Settlement) -> Self {
        let answer = match settlement {
            Settlement::Answered(answer) => Some(answer),
            _ => None,
        };
        Self {
            message_id,
            outcome: settlement.outcome(),
            sessions: match settlement {
                Settlement::Delivered { sessions } => Some(*sessions),
                _ => None,
            },
            payload: answer.map(Answer::payload),
            encoding: answer.and_then(Answer::encoding),
            error: match settlement {
                Settlement::Failed(error) => Some(error),
                _ => None,
            },
        }
    }
}
