//! The language of sockets: the codecs, and RFC 6455 framing below them. Pure code, no I/O.
//!
//! Each codec has a module of its own that knows its frames; the rest of the gateway sees [`message::Message`],
//! [`request::Request`] and [`reply::Reply`]. What a session of a codec is told is chosen in one place,
//! `session/notices.rs`.

pub mod close;
pub mod message;
pub mod presence;
pub mod publish;
pub mod reply;
pub mod request;
pub mod sockjs;
pub mod stomp;
pub mod target;
pub mod warren_v1;
pub mod wire;

use bytes::Bytes;

/// How the frames of a session look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// JSON objects in text messages: [`warren_v1`].
    WarrenV1,
    /// STOMP 1.0, 1.1 or 1.2: [`stomp`].
    Stomp,
}

/// What lies between the frames of a codec and WebSocket messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Nothing: a message is a frame.
    WebSocket,
    /// The frames of [`sockjs`].
    SockJs,
    /// Nothing, and messages are compressed where that makes them shorter (RFC 7692). There is none for SockJS: its
    /// messages are escaped anew for each head, so that they could not be compressed once for all sessions.
    Deflated,
}

impl Framing {
    pub const COUNT: usize = 3;

    /// The same without compression.
    pub fn plain(self) -> Self {
        match self {
            Framing::WebSocket | Framing::Deflated => Framing::WebSocket,
            Framing::SockJs => Framing::SockJs,
        }
    }

    /// A WebSocket frame with one text, which lies in parts; none ends within a character.
    pub fn text(self, parts: &[&[u8]]) -> Bytes {
        match self {
            Framing::WebSocket => wire::message_frame(false, parts),
            Framing::Deflated => wire::deflated_frame(&wire::message_frame(false, parts)),
            Framing::SockJs => {
                let texts: Vec<_> = parts.iter().map(|part| String::from_utf8_lossy(part)).collect();
                let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
                wire::text_frame(&sockjs::message(&texts))
            }
        }
    }

    /// Whether bytes that are no text can be sent.
    pub fn takes_binary(self) -> bool {
        self != Framing::SockJs
    }
}
