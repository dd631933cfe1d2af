//! What is said on the sockets: the codecs, and RFC 6455 framing below them. Pure code, no I/O.
//!
//! A codec is a dialect that sessions speak. Everything that knows how a frame looks is in the codec's module; the
//! rest of the gateway sees [`message::Message`] and [`client::Request`].

pub mod client;
pub mod close;
pub mod message;
pub mod server;
pub mod target;
pub mod wire;

use bytes::Bytes;

use message::Message;

/// The dialect of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// JSON objects in text frames: [`client`] and [`server`].
    WarrenV1,
}

impl Codec {
    pub const COUNT: usize = 1;

    /// A message as the whole WebSocket frame that sessions of this codec get.
    pub fn message(self, message: &Message) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&server::message(message)),
        }
    }
}
