//! What backends are told of, and how it looks on AMQP.

use bytes::Bytes;
use serde::Serialize;

use crate::bus::{Destination, Lane, Properties, Publish};
use crate::clock::unix_ms;
use crate::ids::{ChannelName, MessageId, NodeId, SessionId, UserId};

/// Names in one part of a snapshot at most: about 100 KB.
pub const PART_MAX: usize = 1_000;
/// What the events of one node have in common, so that they keep their order.
const ORDER_KEY: u64 = 0x6576_656e;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event")]
pub enum Event {
    #[serde(rename = "session.opened")]
    SessionOpened { session: SessionId, user: UserId },
    #[serde(rename = "session.closed")]
    SessionClosed { session: SessionId, user: UserId },
    #[serde(rename = "user.online")]
    UserOnline { user: UserId },
    #[serde(rename = "user.offline")]
    UserOffline { user: UserId },
    #[serde(rename = "channel.occupied")]
    ChannelOccupied { channel: ChannelName },
    #[serde(rename = "channel.vacated")]
    ChannelVacated { channel: ChannelName },
    /// All users who are online, in parts.
    #[serde(rename = "snapshot.users")]
    Users { part: usize, parts: usize, users: Vec<UserId> },
    /// All channels that somebody subscribes to, in parts.
    #[serde(rename = "snapshot.channels")]
    Channels { part: usize, parts: usize, channels: Vec<ChannelName> },
    /// All sessions of one node, in parts.
    #[serde(rename = "snapshot.sessions")]
    Sessions { node: NodeId, part: usize, parts: usize, sessions: Vec<OneSession> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OneSession {
    pub session: SessionId,
    pub user: UserId,
}

impl Event {
    /// Its routing key and AMQP `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Event::SessionOpened { .. } => "session.opened",
            Event::SessionClosed { .. } => "session.closed",
            Event::UserOnline { .. } => "user.online",
            Event::UserOffline { .. } => "user.offline",
            Event::ChannelOccupied { .. } => "channel.occupied",
            Event::ChannelVacated { .. } => "channel.vacated",
            Event::Users { .. } => "snapshot.users",
            Event::Channels { .. } => "snapshot.channels",
            Event::Sessions { .. } => "snapshot.sessions",
        }
    }

    /// As the node `by` tells it now.
    pub fn to_json(&self, by: &NodeId) -> Bytes {
        #[derive(Serialize)]
        struct Outer<'a> {
            #[serde(flatten)]
            event: &'a Event,
            by: &'a NodeId,
            ts: u64,
        }
        // Plain structs of strings and numbers cannot fail to serialize.
        serde_json::to_vec(&Outer { event: self, by, ts: unix_ms() }).unwrap_or_default().into()
    }

    pub fn to_publish(&self, body: Bytes) -> Publish {
        let properties = Properties {
            message_id: Some(MessageId::generate().as_str().to_owned()),
            kind: Some(self.name().to_owned()),
            content_type: Some("application/json".to_owned()),
            persistent: Some(true),
            ..Properties::default()
        };
        let to = Destination::Event(self.name().to_owned());
        Publish { to, properties, body, order_key: ORDER_KEY, lane: Lane::Bulk }
    }
}

/// A list in parts; an empty one is one empty part.
pub fn parts<T>(items: Vec<T>, event: impl Fn(usize, usize, Vec<T>) -> Event) -> Vec<Event> {
    let parts = items.len().div_ceil(PART_MAX).max(1);
    let mut items = items.into_iter();
    (0..parts).map(|part| event(part, parts, items.by_ref().take(PART_MAX).collect())).collect()
}
