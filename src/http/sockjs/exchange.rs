//! What passes between a session and its client over HTTP: frames one way, messages the other, and when both end. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::protocol::sockjs;
use crate::protocol::wire::client_side::{put_pong, take_frame, ServerFrame};

/// A session without a receiver ends after so long, and so long its end is told to each receiver that asks (sockjs-protocol 0.3.3).
pub(super) const UNATTENDED_MAX: Duration = Duration::from_secs(5);

/// A frame for the receiver.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) frame: Bytes,
    /// The response ends behind it, whatever its kind.
    pub(super) ends: bool,
}

#[derive(Debug)]
pub(super) struct Exchange {
    /// Bytes of the session that are no whole frame yet.
    unread: BytesMut,
    /// Frames for the client. Nothing is read of the session while there is one: then its outbox fills up, whose bound counts.
    waiting: VecDeque<Bytes>,
    /// Bytes for the session.
    outgoing: BytesMut,
    /// A ping of the session. The next receiver answers it, since only that one shows that the client lives.
    ping: Option<Bytes>,
    has_receiver: bool,
    /// When the exchange ends; `None` while a receiver is there.
    deadline: Option<Instant>,
    /// What every receiver is told from now on.
    last: Option<Bytes>,
}

impl Exchange {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            unread: BytesMut::new(),
            waiting: VecDeque::new(),
            outgoing: BytesMut::new(),
            ping: None,
            has_receiver: false,
            deadline: Some(now + UNATTENDED_MAX),
            last: None,
        }
    }

    /// A receiver comes; `false` if there is one already.
    pub(super) fn attach(&mut self) -> bool {
        if self.has_receiver {
            return false;
        }
        self.has_receiver = true;
        if self.last.is_none() {
            self.deadline = None;
        }
        if let Some(payload) = self.ping.take() {
            put_pong(&payload, &mut self.outgoing);
        }
        true
    }

    /// The receiver's response is complete.
    pub(super) fn detach(&mut self, now: Instant) {
        self.has_receiver = false;
        self.deadline.get_or_insert(now + UNATTENDED_MAX);
    }

    /// The receiver broke: what it was told may be lost.
    pub(super) fn cut(&mut self, now: Instant) {
        self.detach(now);
        if self.last.is_none() {
            self.end_with(Bytes::from_static(sockjs::INTERRUPTED), now);
        }
    }

    fn end_with(&mut self, last: Bytes, now: Instant) {
        self.waiting.clear();
        self.last = Some(last);
        self.deadline = Some(now + UNATTENDED_MAX);
    }

    /// The session's socket is of no use any more.
    pub(super) fn is_over(&self) -> bool {
        self.last.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether to read more of the session.
    pub(super) fn wants_more(&self) -> bool {
        self.has_receiver && self.last.is_none() && self.waiting.is_empty()
    }

    pub(super) fn on_bytes(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        while let Some(frame) = take_frame(&mut self.unread) {
            match frame {
                ServerFrame::Text(frame) => self.waiting.push_back(frame),
                ServerFrame::Ping(payload) => self.ping = Some(payload),
                ServerFrame::Other => {}
            }
        }
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
        }
    }

    /// The session has ended, with or without a word.
    pub(super) fn on_end(&mut self) {
        if !self.waiting.back().is_some_and(|frame| sockjs::is_close(frame)) {
            self.waiting.push_back(Bytes::from_static(sockjs::INTERRUPTED));
        }
    }

    pub(super) fn has_next(&self) -> bool {
        self.has_receiver && (self.last.is_some() || !self.waiting.is_empty())
    }

    /// The next frame for the receiver; messages that wait together go together.
    pub(super) fn next(&mut self, now: Instant) -> Option<Next> {
        if let Some(frame) = self.last.clone() {
            return Some(Next { frame, ends: true });
        }
        let frame = self.waiting.pop_front()?;
        if sockjs::is_close(&frame) {
            self.end_with(frame.clone(), now);
            return Some(Next { frame, ends: true });
        }
        let is_message = |frame: &Bytes| sockjs::inside(frame).is_some();
        if is_message(&frame) && self.waiting.front().is_some_and(is_message) {
            return Some(Next { frame: self.together(&frame), ends: false });
        }
        // A client that lives asks again, and so answers the ping that a heart-beat goes with.
        let ends = frame == sockjs::HEART_BEAT;
        Some(Next { frame, ends })
    }

    fn together(&mut self, first: &Bytes) -> Bytes {
        let mut all = BytesMut::from(first.strip_suffix(b"]").unwrap_or(first));
        while let Some(inside) = self.waiting.front().and_then(|frame| sockjs::inside(frame)) {
            all.extend_from_slice(b",");
            all.extend_from_slice(inside);
            self.waiting.pop_front();
        }
        all.extend_from_slice(b"]");
        all.freeze()
    }

    /// What the client has said, as frames for the session.
    pub(super) fn say(&mut self, frames: BytesMut) {
        if !self.is_over() {
            self.outgoing.unsplit(frames);
        }
    }

    pub(super) fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    pub(super) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::close::CloseCode;
    use crate::protocol::wire::{close_frame, ping_frame, text_frame};

    fn heard(exchange: &mut Exchange, frames: &[Bytes]) {
        exchange.on_bytes(&frames.concat());
    }

    fn next(exchange: &mut Exchange, now: Instant) -> Option<(String, bool)> {
        exchange.next(now).map(|next| (String::from_utf8(next.frame.to_vec()).unwrap(), next.ends))
    }

    fn frame(text: &str, ends: bool) -> Option<(String, bool)> {
        Some((text.to_owned(), ends))
    }

    #[test]
    fn messages_that_wait_go_together_and_other_frames_alone() {
        let now = Instant::now();
        let mut exchange = Exchange::new(now);
        assert!(!exchange.wants_more() && exchange.attach() && exchange.wants_more());
        let frames = [&b"o"[..], b"a[\"1\"]", b"a[\"2\"]", b"a[\"3\"]", b"h", b"a[\"4\"]"].map(text_frame);
        heard(&mut exchange, &frames);
        assert!(!exchange.wants_more(), "nothing is read while something waits");
        assert_eq!(next(&mut exchange, now), frame("o", false));
        assert_eq!(next(&mut exchange, now), frame("a[\"1\",\"2\",\"3\"]", false));
        assert_eq!(next(&mut exchange, now), frame("h", true));
        assert_eq!(next(&mut exchange, now), frame("a[\"4\"]", false));
        assert!(next(&mut exchange, now).is_none() && exchange.wants_more());
    }

    #[test]
    fn one_receiver_at_a_time_and_five_seconds_without() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut exchange = Exchange::new(start);
        assert_eq!(exchange.deadline(), Some(at(5)));
        assert!(exchange.attach() && !exchange.attach());
        assert_eq!(exchange.deadline(), None);
        exchange.detach(at(7));
        assert_eq!(exchange.deadline(), Some(at(12)));
        assert!(exchange.attach() && !exchange.is_over());
        exchange.cut(at(8));
        assert!(exchange.is_over() && !exchange.wants_more());
        // A receiver that asks until then is told, and asking does not lengthen it.
        for _ in 0..2 {
            assert_eq!(exchange.deadline(), Some(at(13)));
            assert!(exchange.attach());
            assert_eq!(next(&mut exchange, at(9)), frame("c[1002,\"Connection interrupted\"]", true));
            exchange.detach(at(9));
        }
        exchange.say(BytesMut::from("late"));
        assert!(!exchange.has_outgoing());
    }

    #[test]
    fn a_ping_is_answered_by_the_next_receiver() {
        let now = Instant::now();
        let mut exchange = Exchange::new(now);
        assert!(exchange.attach());
        heard(&mut exchange, &[ping_frame(b""), text_frame(sockjs::HEART_BEAT)]);
        assert_eq!(next(&mut exchange, now), frame("h", true));
        exchange.detach(now);
        assert!(!exchange.has_outgoing());
        assert!(exchange.attach());
        assert_eq!(&exchange.outgoing()[..], [0x8a, 0x80, 0, 0, 0, 0]);
    }

    #[test]
    fn the_end_is_told_as_the_session_said_it_or_as_interrupted() {
        let now = Instant::now();
        let mut exchange = Exchange::new(now);
        assert!(exchange.attach());
        let end = sockjs::close(CloseCode::Drain);
        heard(&mut exchange, &[text_frame(b"a[\"bye\"]"), text_frame(&end), close_frame(4200, "")]);
        exchange.on_end();
        assert_eq!(next(&mut exchange, now), frame("a[\"bye\"]", false));
        for _ in 0..2 {
            assert_eq!(next(&mut exchange, now), frame("c[4200,\"node drains\"]", true));
        }
        let mut mute = Exchange::new(now);
        assert!(mute.attach());
        mute.on_end();
        assert_eq!(next(&mut mute, now), frame("c[1002,\"Connection interrupted\"]", true));
    }
}
