//! What a session is told, in its codec and framing.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::protocol::presence::{Change, Roster};
use crate::protocol::reply::{Reply, Welcome};
use crate::protocol::{sockjs, stomp, warren_v1, wire, Codec, Framing};
use crate::session::state::Session;

/// Who came to a channel and left it: a frame for each, in one piece. Only clients of warren.v1 ask for it.
pub(super) fn presence(framing: Framing, channel: &ChannelName, changes: &[Change]) -> Bytes {
    let mut piece = BytesMut::new();
    for change in changes {
        piece.extend_from_slice(&framing.text(&[&warren_v1::reply::presence(channel, change)]));
    }
    piece.freeze()
}

/// Everybody who is in a channel. Only clients of warren.v1 ask for it.
pub(super) fn roster(framing: Framing, channel: &ChannelName, roster: &Roster) -> Bytes {
    framing.text(&[&warren_v1::reply::roster(channel, roster)])
}

impl Session {
    /// Sends one frame of the session's codec.
    pub(super) fn say(&self, frame: &[u8], now: u32) {
        self.send(&self.framing.text(&[frame]), None, now);
    }

    /// The first frame of a session of warren.v1 that has a user. It is never compressed: when all clients of another
    /// node come at once, that would cost a good part of what their handshakes cost.
    pub(super) fn welcome(&self, welcome: &Welcome, now: u32) {
        self.send(&self.framing.plain().text(&[&warren_v1::reply::welcome(welcome)]), None, now);
    }

    /// The answer to a request. `id` is that of the request, in the codec's own form. Frames are gathered for
    /// [`Session::flush`].
    pub(super) fn push_reply(&self, id: Option<&str>, reply: &Reply, now: u32) {
        match self.stomp() {
            None => self.push(&self.framing.text(&[&warren_v1::reply::reply(id, reply)]), None, now),
            Some(stomp) => stomp.reply(self, id, reply, now),
        }
    }

    pub(super) fn reply(&self, id: Option<&str>, reply: &Reply, now: u32) {
        self.push_reply(id, reply, now);
        self.flush(now);
    }

    /// Messages may have been missed: the application should reload its state.
    pub(super) fn tell_gap(&self, reason: &'static str, now: u32) {
        match self.stomp() {
            None => self.say(&warren_v1::reply::gap(reason), now),
            Some(stomp) => stomp.tell_gap(self, reason, now),
        }
    }

    /// The gateway put the session into a channel. Nobody does that to one that speaks STOMP.
    pub(super) fn tell_subscribed(&self, channel: &ChannelName, now: u32) {
        self.say(&warren_v1::reply::subscribed(channel), now);
    }

    /// The gateway took the session out of a channel.
    pub(super) fn tell_unsubscribed(&self, channel: &ChannelName, reason: &'static str, now: u32) {
        match self.stomp() {
            None => self.say(&warren_v1::reply::unsubscribed(channel, reason), now),
            Some(stomp) => stomp.tell_unsubscribed(self, channel, reason, now),
        }
    }

    /// The reason for a close, as the codec says it.
    pub(super) fn disconnect_frame(&self, code: CloseCode, after_ms: u32) -> Vec<u8> {
        match self.codec() {
            Codec::WarrenV1 => warren_v1::reply::disconnect(code, after_ms),
            Codec::Stomp => stomp::render::disconnect(code, after_ms),
        }
    }

    /// The last frames of a session: `reason` in its codec, then those of its framing.
    pub(super) fn last_frames(&self, reason: Option<&[u8]>, code: CloseCode) -> SmallVec<[Bytes; 3]> {
        let mut frames = SmallVec::new();
        frames.extend(reason.map(|reason| self.framing.text(&[reason])));
        if self.framing == Framing::SockJs {
            frames.push(wire::text_frame(&sockjs::close(code)));
        }
        frames.push(wire::close_frame(code.code(), code.reason()));
        frames
    }
}
