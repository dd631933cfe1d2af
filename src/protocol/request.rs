//! The requests of clients, whatever the codec.

use std::borrow::Cow;

use crate::error::Error;
use crate::ids::{ChannelName, UserId};
use crate::protocol::publish::PublishRequest;

/// Most message ids in one acknowledgement: a client has at most 64 unacknowledged messages at a time, and may repeat
/// itself. More is a bad request, so that one frame costs a bounded number of look-ups.
pub const ACK_IDS_MAX: usize = 1_024;

/// One request of a client, with the id that its reply will carry.
#[derive(Debug)]
pub struct Request<'a> {
    /// In the codec's own form, which its replies repeat; `None`: the client gave none.
    pub id: Option<&'a str>,
    pub body: RequestBody<'a>,
}

/// A request that cannot be understood. The id is there if it could be read.
#[derive(Debug)]
pub struct Refusal<'a> {
    pub id: Option<&'a str>,
    pub error: Error,
}

/// Whose presence is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceOf {
    User(UserId),
    Channel(ChannelName),
}

#[derive(Debug)]
pub enum RequestBody<'a> {
    Publish(PublishRequest<'a>),
    /// The ids of messages that the client has taken care of; at most [`ACK_IDS_MAX`].
    Ack(Vec<Cow<'a, str>>),
    /// The token of a session that came without one.
    Auth(Cow<'a, str>),
    /// A new token in place of one that expires.
    Refresh(Cow<'a, str>),
    Subscribe {
        channel: ChannelName,
        /// Whether to be told who comes and goes; `None`: as before.
        presence: Option<bool>,
    },
    Unsubscribe(ChannelName),
    Presence(PresenceOf),
    Ping,
}
