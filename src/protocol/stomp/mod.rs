//! STOMP 1.0, 1.1 and 1.2 for browsers: frames in and out, and what destinations mean. Pure.
//!
//! - [`parser`]: bytes of any number of WebSocket messages in, [`frame::Frame`]s out.
//! - [`destination`]: from a destination to a target or a subscription.
//! - [`render`]: frames to clients.
//!
//! The specifications are those of stomp.github.io. Where clients differ from them (stomp.js 2.3.3 and webstomp-client
//! neither escape nor unescape, and cut what comes at NUL and LF), what is written suits both.

pub mod destination;
pub mod frame;
pub mod parser;
pub mod render;

/// What a session speaks once it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1_0,
    V1_1,
    V1_2,
}

impl Version {
    /// As an ERROR names what would be accepted.
    pub const ALL: &'static str = "1.0,1.1,1.2";

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V1_0 => "1.0",
            Version::V1_1 => "1.1",
            Version::V1_2 => "1.2",
        }
    }

    /// The highest that both know; without the header the client speaks 1.0.
    pub fn negotiate(accept_version: Option<&str>) -> Option<Self> {
        let Some(offered) = accept_version else { return Some(Version::V1_0) };
        [Version::V1_2, Version::V1_1, Version::V1_0]
            .into_iter()
            .find(|version| offered.split(',').any(|offer| offer.trim() == version.as_str()))
    }
}

/// The subprotocols, the best first (IANA's registry of WebSocket subprotocol names).
pub const SUBPROTOCOLS: [&str; 3] = ["v12.stomp", "v11.stomp", "v10.stomp"];

/// Whether the first message of a client without a subprotocol is STOMP: a command, or a line end before one.
pub fn is_stomp(first: u8) -> bool {
    first.is_ascii_uppercase() || matches!(first, b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_wins() {
        for (offered, chosen) in [
            (None, Some(Version::V1_0)),
            (Some("1.0,1.1,2.0"), Some(Version::V1_1)),
            (Some("1.2,1.1,1.0"), Some(Version::V1_2)),
            (Some("1.1, 1.0"), Some(Version::V1_1)),
            (Some("1.3"), None),
            (Some(""), None),
        ] {
            assert_eq!(Version::negotiate(offered), chosen, "{offered:?}");
        }
    }

    #[test]
    fn the_first_byte_tells_stomp_from_json() {
        assert!(b"CSA\r\n".iter().all(|first| is_stomp(*first)));
        assert!(!b"{ [\"\0c".iter().any(|first| is_stomp(*first)));
    }
}
