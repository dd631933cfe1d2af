//! What nodes tell each other about who is in a channel, as JSON.

use serde::{Deserialize, Serialize};

use crate::ids::{ChannelName, NodeId, UserId};

/// AMQP `type` of these words.
pub const ROSTER_KIND: &str = "warren.roster";

/// One state of what a node tells about a channel. `stream` is another whenever the node begins to tell anew, `seq` counts
/// what it has told since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub stream: u64,
    pub seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Word {
    Watch(Watch),
    Told(Told),
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

/// The sender has listeners of these channels, and is to be told for a while of what changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub from: NodeId,
    pub channels: Vec<Watched>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    pub channel: ChannelName,
    /// What the sender has; `None`: nothing, or nothing that it could go on with.
    pub version: Option<Version>,
    /// The answer repeats it; 0: no answer is needed if nothing has changed.
    #[serde(default)]
    pub sync: u64,
    /// The sender has no listeners any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends: bool,
}

/// Who is in a channel on the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub from: NodeId,
    pub channel: ChannelName,
    /// After this word.
    pub version: Version,
    /// Of the question that it answers, or 0.
    #[serde(default)]
    pub sync: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Users(Vec<UserId>),
    /// There are too many to be listed.
    Count(u64),
    /// To the version before.
    Changed {
        joined: Vec<UserId>,
        left: Vec<UserId>,
    },
    Unchanged,
}
