//! The language of sockets: the codecs, and RFC 6455 framing below them. Pure code, no I/O.
//!
//! A codec is the dialect of a session. Each codec has a module of its own that knows its frames; the rest of the
//! gateway sees [`message::Message`], [`request::Request`] and [`reply::Reply`], and calls [`Codec`].

pub mod close;
pub mod message;
pub mod presence;
pub mod publish;
pub mod reply;
pub mod request;
pub mod target;
pub mod warren_v1;
pub mod wire;

use bytes::{Bytes, BytesMut};

use crate::ids::ChannelName;
use close::CloseCode;
use message::Message;
use presence::{Change, Roster};
use reply::{Reply, Welcome};
use request::{Refusal, Request};

/// The dialect of a session. All frames that it returns are whole WebSocket frames, ready to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// JSON objects in text frames: [`warren_v1`].
    WarrenV1,
}

impl Codec {
    pub const COUNT: usize = 1;

    /// Reads what a client sent in one text message.
    pub fn decode(self, text: &str) -> Result<Request<'_>, Refusal<'_>> {
        match self {
            Codec::WarrenV1 => warren_v1::request::parse(text),
        }
    }

    /// The first frame of a session that has a user.
    pub fn welcome(self, welcome: &Welcome) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::welcome(welcome)),
        }
    }

    /// The answer to a request. `id` is that of the request, as [`Codec::decode`] returned it.
    pub fn reply(self, id: Option<&str>, reply: &Reply) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::reply(id, reply)),
        }
    }

    /// A message as sessions of this codec get it.
    pub fn message(self, message: &Message) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::message(message)),
        }
    }

    /// Messages may have been missed: the application should reload its state.
    pub fn gap(self, reason: &'static str) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::gap(reason)),
        }
    }

    /// The gateway put the session into a channel.
    pub fn subscribed(self, channel: &ChannelName) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::subscribed(channel)),
        }
    }

    /// Who came to a channel and left it: a frame for each, in one piece.
    pub fn presence(self, channel: &ChannelName, changes: &[Change]) -> Bytes {
        let mut piece = BytesMut::new();
        for change in changes {
            match self {
                Codec::WarrenV1 => {
                    let frame = wire::text_frame(&warren_v1::reply::presence(channel, change));
                    piece.extend_from_slice(&frame);
                }
            }
        }
        piece.freeze()
    }

    /// Everybody who is in a channel.
    pub fn roster(self, channel: &ChannelName, roster: &Roster) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::roster(channel, roster)),
        }
    }

    /// The gateway took the session out of a channel.
    pub fn unsubscribed(self, channel: &ChannelName, reason: &'static str) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::unsubscribed(channel, reason)),
        }
    }

    /// The last frame before the close frame: why, and when to come back.
    pub fn disconnect(self, code: CloseCode, after_ms: u32) -> Bytes {
        match self {
            Codec::WarrenV1 => wire::text_frame(&warren_v1::reply::disconnect(code, after_ms)),
        }
    }
}
