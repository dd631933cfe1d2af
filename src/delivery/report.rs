//! What a node tells operators about itself: load, link, totals, its largest channels.

use serde::{Deserialize, Serialize};

use crate::ids::{ChannelName, NodeId};
use crate::metrics::Totals;

/// Most channels that one report names.
pub const CHANNELS_NAMED_MAX: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub node: NodeId,
    /// Where browsers reach the node, if its configuration says so.
    pub url: Option<String>,
    pub version: String,
    /// When the process started, in milliseconds of Unix time.
    pub started_ms: u64,
    pub draining: bool,
    pub link: LinkReport,
    pub sessions: u64,
    pub users: u64,
    /// Messages that this node answers for and that are not settled.
    pub pending: u64,
    pub totals: Totals,
    /// Channels with a subscriber on this node.
    pub channels: u64,
    /// Those with the most sessions, the largest first; at most [`CHANNELS_NAMED_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub largest: Vec<ChannelReport>,
    /// Of the whole cluster, as this node knows it.
    pub mail: MailReport,
}

/// What waits in boxes, for all users together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MailReport {
    /// Users with mail.
    pub users: u64,
    pub messages: u64,
    pub bytes: u64,
}

/// Whether the node can use the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkReport {
    /// There is no broker: the node is alone.
    Standalone,
    Ready,
    /// The connections are there, but something that the node declared is missing, or a policy breaks a promise.
    Damaged,
    /// The broker takes no messages now: it is short of memory or disk.
    Blocked,
    /// The broker does not answer.
    Silent,
    Down,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    pub channel: ChannelName,
    /// Sessions on this node that subscribe to it.
    pub sessions: u64,
}
