//! Who is in a channel, as those are told who listen to it.

use serde::Serialize;

use crate::ids::UserId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Join,
    Leave,
}

/// One user came or went; or, without a user, the number of a channel whose users are only counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub event: Event,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// How many users are in the channel then.
    pub count: u64,
}

/// Everybody who is in a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Roster {
    pub count: u64,
    /// `None`: too many to be listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<UserId>>,
}

/// What listeners are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterUpdate {
    pub changes: Vec<Change>,
    /// Listeners need the whole roster: what they know is not enough to understand a change.
    pub is_anew: bool,
    /// After the changes.
    pub roster: Roster,
}
