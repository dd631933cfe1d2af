//! Capabilities: what the holder of a token may do.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ChannelName, UserId};
use crate::protocol::target::Target;

/// Channels whose names begin like this need a capability that names them.
pub const PRIVATE: &str = "private.";

/// Cheap to clone: every session has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Caps {
    /// Of a token without the claim: publish to users, sessions and channels, subscribe to channels that are not
    /// [`PRIVATE`]; no broadcast, no API.
    Usual,
    /// Of everybody in insecure mode.
    All,
    /// What the claim names, and nothing else.
    Listed(Arc<[Cap]>),
}

/// One entry of the claim `caps`; between nodes it is its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Cap {
    /// `api`: all of the HTTP API.
    Api,
    /// `publish:<pattern>`, over the text of a target.
    Publish(Pattern),
    /// `subscribe:<pattern>`, over the channel's name or `channel.<name>`.
    Subscribe(Pattern),
    /// `presence:<pattern>`, over `user.<id>`, or over the channel's name or `channel.<name>`.
    Presence(Pattern),
}

/// A text that must match exactly, or the start of one if it ends with `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => text.starts_with(start),
            None => *self.0 == *text,
        }
    }
}

impl Cap {
    pub fn parse(text: &str) -> Option<Self> {
        let pattern = |text: &str| (!text.is_empty()).then(|| Pattern(text.into()));
        match text.split_once(':') {
            None => (text == "api").then_some(Cap::Api),
            Some(("publish", of)) => pattern(of).map(Cap::Publish),
            Some(("subscribe", of)) => pattern(of).map(Cap::Subscribe),
            Some(("presence", of)) => pattern(of).map(Cap::Presence),
            Some(_) => None,
        }
    }
}

impl From<Cap> for String {
    fn from(cap: Cap) -> Self {
        match cap {
            Cap::Api => "api".into(),
            Cap::Publish(pattern) => format!("publish:{}", pattern.0),
            Cap::Subscribe(pattern) => format!("subscribe:{}", pattern.0),
            Cap::Presence(pattern) => format!("presence:{}", pattern.0),
        }
    }
}

impl TryFrom<String> for Cap {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Cap::parse(&text).ok_or("no capability")
    }
}

impl Caps {
    /// Entries that mean nothing to this version grant nothing.
    pub fn from_claim<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        Caps::Listed(entries.into_iter().filter_map(Cap::parse).collect())
    }

    pub fn may_publish(&self, to: &Target) -> bool {
        match self {
            Caps::All => true,
            Caps::Usual => *to != Target::Broadcast,
            Caps::Listed(caps) => {
                let to = to.to_string();
                caps.iter().any(|cap| matches!(cap, Cap::Publish(pattern) if pattern.matches(&to)))
            }
        }
    }

    pub fn may_subscribe(&self, channel: &ChannelName) -> bool {
        match self {
            Caps::All => true,
            Caps::Usual => !channel.as_str().starts_with(PRIVATE),
            Caps::Listed(caps) => {
                let target = format!("channel.{channel}");
                let matches =
                    |pattern: &Pattern| pattern.matches(&target) || pattern.matches(channel.as_str());
                caps.iter().any(|cap| matches!(cap, Cap::Subscribe(pattern) if matches(pattern)))
            }
        }
    }

    /// Whether the holder, `own`, may ask whether a user is online. Without the claim everybody may ask for themselves.
    pub fn may_see_user(&self, user: &UserId, own: &UserId) -> bool {
        match self {
            Caps::All => true,
            Caps::Usual => user == own,
            Caps::Listed(caps) => {
                let target = format!("user.{user}");
                caps.iter().any(|cap| matches!(cap, Cap::Presence(pattern) if pattern.matches(&target)))
            }
        }
    }

    /// Whether the holder may ask who is in a channel. Without the claim those who are in it may.
    pub fn may_see_channel(&self, channel: &ChannelName, is_in_it: bool) -> bool {
        match self {
            Caps::All => true,
            Caps::Usual => is_in_it,
            Caps::Listed(caps) => {
                let target = format!("channel.{channel}");
                let matches =
                    |pattern: &Pattern| pattern.matches(&target) || pattern.matches(channel.as_str());
                caps.iter().any(|cap| matches!(cap, Cap::Presence(pattern) if matches(pattern)))
            }
        }
    }

    /// Whether the whole HTTP API is open.
    pub fn api(&self) -> bool {
        match self {
            Caps::All => true,
            Caps::Usual => false,
            Caps::Listed(caps) => caps.contains(&Cap::Api),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_exact_or_ends_with_a_star() {
        let target = |text: &str| Target::parse(text).unwrap();
        for (caps, allowed, refused) in [
            (&["publish:user.*"][..], &["user.1", "user.*"][..], &["channel.user.1", "broadcast"][..]),
            (&["publish:user.1"], &["user.1"], &["user.11", "user.2"]),
            (
                &["publish:channel.news.*", "publish:broadcast"],
                &["channel.news.x", "broadcast"],
                &["channel.new"],
            ),
            (&["publish:*"], &["user.1", "session.n~1", "broadcast"], &[]),
            (&["publish:"], &[], &["user.1"]),
            (&["PUBLISH:*", "publish", "admin", "subscribe:*", "api"], &[], &["user.1", "broadcast"]),
            (&[], &[], &["user.1", "channel.a"]),
        ] {
            let listed = Caps::from_claim(caps.iter().copied());
            for to in allowed {
                assert!(listed.may_publish(&target(to)), "{caps:?} {to}");
            }
            for to in refused {
                assert!(!listed.may_publish(&target(to)), "{caps:?} {to}");
            }
        }
    }

    #[test]
    fn usual_and_all_differ_in_broadcast_and_api() {
        let room = ChannelName::new("room").unwrap();
        for to in ["user.1", "session.n~1", "channel.a"] {
            assert!(Caps::Usual.may_publish(&Target::parse(to).unwrap()));
        }
        assert!(!Caps::Usual.may_publish(&Target::Broadcast) && !Caps::Usual.api());
        assert!(Caps::All.may_publish(&Target::Broadcast) && Caps::All.api());
        assert!(Caps::Usual.may_subscribe(&room));
        let private = ChannelName::new("private.x").unwrap();
        assert!(!Caps::Usual.may_subscribe(&private) && Caps::All.may_subscribe(&private));
        assert!(Caps::from_claim(["subscribe:private.*"]).may_subscribe(&private));
        assert!(Caps::from_claim(["subscribe:channel.ro*"]).may_subscribe(&room));
        assert!(!Caps::from_claim(["publish:channel.room"]).may_subscribe(&room));
        let [a, b] = ["a", "b"].map(|user| UserId::new(user).unwrap());
        assert!(Caps::Usual.may_see_user(&a, &a) && !Caps::Usual.may_see_user(&b, &a));
        assert!(Caps::Usual.may_see_channel(&room, true) && !Caps::Usual.may_see_channel(&room, false));
        let seeing = Caps::from_claim(["presence:user.b", "presence:ro*"]);
        assert!(seeing.may_see_user(&b, &a) && !seeing.may_see_user(&a, &a));
        assert!(seeing.may_see_channel(&room, false) && !seeing.may_see_channel(&private, true));
        assert!(Caps::from_claim(["api"]).api() && !Caps::from_claim(["publish:*"]).api());
    }
}
