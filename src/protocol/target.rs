//! A target: who a message is for. The same text in routing keys, HTTP bodies and frames.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{self, AppKey, ChannelName, IdError, SessionId, UserId};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// Every session of one user, on every node.
    User(UserId),
    /// One socket.
    Session(SessionId),
    /// The sessions that subscribed to a channel.
    Channel(ChannelName),
    /// Everybody who is connected.
    Broadcast,
    /// The backends that listen for this key.
    App(AppKey),
}

/// Why a text is no target. The message is fit to be shown to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("a target is user.<id>, session.<id>, channel.<name>, app.<key> or broadcast")]
    Form,
    #[error(transparent)]
    Id(#[from] IdError),
}

impl Target {
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text == "broadcast" {
            return Ok(Target::Broadcast);
        }
        match text.split_once('.') {
            Some(("user", id)) => Ok(Target::User(UserId::new(id)?)),
            Some(("session", id)) => Ok(Target::Session(SessionId::parse(id)?)),
            Some(("channel", name)) => Ok(Target::Channel(ChannelName::new(name)?)),
            Some(("app", key)) => Ok(Target::App(AppKey::new(key)?)),
            _ => Err(TargetError::Form),
        }
    }

    /// The form that may stand in an AMQP header: `[A-Za-z0-9._~-]` only.
    pub fn to_header(&self) -> String {
        ids::encode(&self.to_string())
    }

    /// The inverse of [`Target::to_header`].
    pub fn from_header(text: &str) -> Result<Self, TargetError> {
        Self::parse(&ids::decode(text).ok_or(TargetError::Form)?)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::User(id) => write!(f, "user.{id}"),
            Target::Session(id) => write!(f, "session.{id}"),
            Target::Channel(name) => write!(f, "channel.{name}"),
            Target::Broadcast => f.write_str("broadcast"),
            Target::App(key) => write!(f, "app.{key}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_header_forms_are_reversible() {
        for text in [
            "user.42",
            "user.a.b",
            "user.zoë@x y",
            "session.n-1~z",
            "channel.room~1",
            "app.orders.new",
            "broadcast",
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.to_string(), text);
            assert_eq!(Target::from_header(&target.to_header()).unwrap(), target);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "user",
            "user.",
            "users.1",
            "broadcast.x",
            "session.x",
            "channel.",
            "BROADCAST",
            "user.a\0",
            "app",
            "app.",
            "app.#",
            "app.a b",
            "app.é",
        ] {
            assert!(Target::parse(text).is_err(), "{text:?}");
        }
    }
}
