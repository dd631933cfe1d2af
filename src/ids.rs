//! The names of things: node, incarnation, session, user, channel, application and message ids, each
//! its own type.
//!
//! An id is checked once, where it enters the process; every later use may rely on its limits.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Longest user id and channel name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest key of an application target, in bytes. AMQP carries it as a routing key (at most 255 bytes).
pub const APP_KEY_BYTES_MAX: usize = 128;
/// Longest message id, in bytes. AMQP carries it as a short string (at most 255 bytes).
pub const MESSAGE_ID_BYTES_MAX: usize = 128;
/// Longest node id, in bytes.
pub const NODE_ID_BYTES_MAX: usize = 64;

/// Why a text is not a valid id. The message is fit to be shown to the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{what} must not be empty")]
    Empty { what: &'static str },
    #[error("{what} is longer than {max} bytes")]
    TooLong { what: &'static str, max: usize },
    #[error("{what} holds a character that is not allowed")]
    Character { what: &'static str },
    #[error("a session id is <node id>~<number>")]
    SessionForm,
}

fn check(what: &'static str, text: &str, max: usize, allowed: impl Fn(char) -> bool) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > max {
        return Err(IdError::TooLong { what, max });
    }
    if !text.chars().all(allowed) {
        return Err(IdError::Character { what });
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the limits named at the type.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check($what, text, $max, $allowed)?;
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        /// Tables with such keys can be asked by the bare text.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// One gateway process. `[A-Za-z0-9._-]`, at most 64 bytes: fit for an AMQP routing key as it stands.
    NodeId, "node id", NODE_ID_BYTES_MAX,
    |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);
text_id!(
    /// Who a token says somebody is. Any text without control characters, at most 128 bytes.
    UserId, "user id", NAME_BYTES_MAX, |c: char| !c.is_control()
);
text_id!(
    /// A room that sessions subscribe to. Any text without control characters, at most 128 bytes.
    ChannelName, "channel name", NAME_BYTES_MAX, |c: char| !c.is_control()
);
text_id!(
    /// Which backend a message for the application is for. `[A-Za-z0-9._-]`, at most 128 bytes: fit for an AMQP routing
    /// key as it stands, and without the `*` and `#` of binding keys.
    AppKey, "application key", APP_KEY_BYTES_MAX,
    |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);
text_id!(
    /// The identity of a message, by which duplicates are known. Printable ASCII, at most 128 bytes.
    MessageId, "message id", MESSAGE_ID_BYTES_MAX, |c: char| c.is_ascii_graphic()
);

impl MessageId {
    /// A fresh UUIDv7: unique, and sortable by the time it was made.
    pub fn generate() -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(&*Uuid::now_v7().as_hyphenated().encode_lower(&mut buffer)))
    }
}

/// A user as a number: the same on every node and in every version. Two users of one key share a box and a hint, which
/// costs a needless look and never a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserKey(pub u64);

impl UserKey {
    /// The seed keeps users apart from other things that are hashed.
    const SEED: u64 = 1;

    pub fn of(user: &UserId) -> Self {
        Self(xxh3_64_with_seed(user.as_str().as_bytes(), Self::SEED))
    }
}

/// One process of a node, as a random number: what belongs to a former process under the same node id is known by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Life(pub u64);

impl Life {
    pub fn generate() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One life of a node's AMQP connection. A UUIDv7, so that the newer of two is the greater.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(Uuid);

impl Incarnation {
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Only for tests and simulations, where incarnations must come out the same in each run.
    pub const fn from_u128(value: u128) -> Self {
        Self(Uuid::from_u128(value))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One socket: `<node id>~<number in base36>`. The id alone tells the node that holds it, and nothing about other ids.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId {
    pub node: NodeId,
    /// Unique within the node's process, whose hub alone knows which session it is.
    pub number: u64,
}

impl SessionId {
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let (node, number) = text.rsplit_once('~').ok_or(IdError::SessionForm)?;
        let canonical =
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if !canonical {
            return Err(IdError::SessionForm);
        }
        let number = u64::from_str_radix(number, 36).map_err(|_| IdError::SessionForm)?;
        Ok(Self { node: NodeId::new(node)?, number })
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0u8; 13];
        let mut at = digits.len();
        let mut rest = self.number;
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        let digits = std::str::from_utf8(&digits[at..]).map_err(|_| fmt::Error)?;
        write!(f, "{}~{digits}", self.node)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Writes any text with `[A-Za-z0-9._~-]` only, so that it may stand in an AMQP name or header:
/// other bytes, and `~` itself, become `~` and two upper-case hex digits. [`decode`] is its inverse.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            out.push(byte as char);
        } else {
            out.push('~');
            for digit in [byte >> 4, byte & 15] {
                out.push(b"0123456789ABCDEF"[digit as usize] as char);
            }
        }
    }
    out
}

/// The text that [`encode`] was given; `None` if `text` is not its output.
pub fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'~' {
            let hex = text.get(at + 1..at + 3)?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn session_ids_tell_their_node() {
        for (number, text) in [(0, "n-1~0"), (35, "n-1~z"), (36, "n-1~10"), (u64::MAX, "n-1~3w5e11264sgsf")] {
            let id = SessionId { node: NodeId::new("n-1").unwrap(), number };
            assert_eq!(id.to_string(), text);
            assert_eq!(SessionId::parse(text).unwrap(), id);
        }
        for bad in ["", "n-1", "n-1~", "~1", "n-1~Z", "n-1~-1", "n 1~1", "n-1~zzzzzzzzzzzzzz"] {
            assert!(SessionId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits_are_exact() {
        assert!(UserId::new(&"x".repeat(NAME_BYTES_MAX)).is_ok());
        assert!(UserId::new(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(UserId::new("a\nb").is_err());
        assert!(UserId::new("Zoë @ work").is_ok());
        assert!(NodeId::new("a~b").is_err());
        assert!(MessageId::new("a b").is_err());
        assert!(MessageId::generate() < MessageId::generate());
    }

    proptest! {
        #[test]
        fn encoding_is_reversible_and_safe(text in any::<String>()) {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b)));
            prop_assert_eq!(decode(&encoded), Some(text));
        }
    }

    #[test]
    fn fuzzed() {
        use crate::protocol::target::Target;
        let good = ["user.zo\u{eb} ~ x", "session.n-1~3w5e11264sgsf", "channel.a~2Fb", "broadcast", "a~FFb"];
        let words = ["~", "~0", "%", ".", "\u{0}", "\u{202e}", "user.", "session."];
        crate::tests::fuzz::fuzz("ids", &good.map(|text| text.as_bytes().to_vec()), &words, |input| {
            let text = String::from_utf8_lossy(input);
            assert_eq!(decode(&encode(&text)).as_deref(), Some(&*text));
            let session = SessionId::parse(&text);
            if let Ok(id) = &session {
                assert_eq!(SessionId::parse(&id.to_string()).as_ref(), Ok(id));
            }
            let target = Target::parse(&text);
            if let Ok(target) = &target {
                let header = target.to_header();
                assert!(
                    header.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte)),
                    "{header}"
                );
                assert_eq!(Target::from_header(&header).as_ref(), Ok(target));
            }
            let decoded = decode(&text).map(|text| text.len());
            let target =
                target.map(|target| std::mem::discriminant(&target)).map_err(|error| error.to_string());
            (
                session.map_err(|error| error.to_string()).map(|_| ()),
                target,
                decoded.is_some(),
                Target::from_header(&text).is_ok(),
            )
        });
    }
}
