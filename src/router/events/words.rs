//! What nodes tell each other of the names behind the directory's keys, as JSON.

use serde::{Deserialize, Serialize};

use super::ledger::Name;
use crate::directory::Key;
use crate::ids::{ChannelName, NodeId, UserId};

/// AMQP `type` of these words.
pub const NAMES_KIND: &str = "warren.names";
/// Names, and keys, in one word at most: about 100 KB.
pub const NAMES_MAX: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NameWord {
    /// These are on some node now.
    Names(Names),
    /// The sender does not know the names of these keys, which the receiver has.
    Nameless { from: NodeId, keys: Vec<Key> },
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names {
    #[serde(default)]
    pub users: Vec<UserId>,
    #[serde(default)]
    pub channels: Vec<ChannelName>,
}

impl Names {
    pub fn of(names: &[Name]) -> Self {
        let mut all = Self::default();
        for name in names {
            match name {
                Name::User(user) => all.users.push(user.clone()),
                Name::Channel(channel) => all.channels.push(channel.clone()),
            }
        }
        all
    }

    pub fn into_names(self) -> impl Iterator<Item = Name> {
        self.users.into_iter().map(Name::User).chain(self.channels.into_iter().map(Name::Channel))
    }
}
