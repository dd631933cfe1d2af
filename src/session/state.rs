//! The state of one session; every frame to its client goes through it.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use crate::auth::Identity;
use crate::budgets::Share;
use crate::hub::Tally;
use crate::ids::{ChannelName, MessageId};
use crate::protocol::close::CloseCode;
use crate::protocol::message::Rendered;
use crate::protocol::wire::{self, Decoder};
use crate::protocol::{Codec, Framing};
use crate::session::acks::{AckWindow, Admit};
use crate::session::deadlines::Unfinished;
use crate::session::limiter::Allowance;
use crate::session::socket::{Sent, Socket};
use crate::session::stomp::Stomp;
use crate::session::subscriptions::OwnChannels;

/// How long a closing session may take to flush its last frames, and to read the acknowledgements and the close frame
/// that are on their way from the client.
const CLOSE_GRACE_MS: u32 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first frame must bring a token.
    Unauthenticated,
    Open,
    /// The last frames are being written. Of what the client sends, only acknowledgements and its close frame count.
    Closing {
        until: u32,
    },
    /// To be removed.
    Ended,
}

/// Times are milliseconds on the worker's clock, which wraps after 49 days: only differences are taken.
pub(super) struct Session {
    pub(super) counter: u64,
    /// `None`: the first message of the client will tell.
    codec: Cell<Option<Codec>>,
    pub(super) framing: Framing,
    /// Only of a session that speaks STOMP.
    stomp: OnceCell<Box<Stomp>>,
    pub(super) opened_at: u32,
    pub(super) phase: Cell<Phase>,
    pub(super) identity: RefCell<Option<Rc<Identity>>>,
    /// Of a session that has no user yet.
    unauthenticated: Cell<Option<Box<dyn Send>>>,
    pub(super) socket: RefCell<Socket>,
    pub(super) decoder: RefCell<Decoder>,
    pub(super) waker: RefCell<Option<Waker>>,
    /// Only of a client that acknowledges.
    acks: OnceCell<Box<RefCell<AckWindow>>>,
    /// `None` while the session subscribes to nothing.
    pub(super) channels: RefCell<Option<Box<OwnChannels>>>,
    pub(super) pinged_at: Cell<u32>,
    /// A ping was sent, and no byte has come since.
    pub(super) awaits_pong: Cell<bool>,
    /// The application is asked whether the user may connect.
    pub(super) is_undecided: Cell<bool>,
    /// A ping was sent, and its pong has not come. Any other pong is unsolicited (RFC 6455 section 5.5.3).
    pub(super) owes_pong: Cell<bool>,
    pub(super) unfinished: Cell<Option<Unfinished>>,
    pub(super) allowance: Cell<Allowance>,
    /// Counts the session among those of its client's address.
    pub(super) share: Option<Share>,
    /// Publishes and subscriptions that have no reply yet.
    pub(super) in_flight: Cell<u32>,
    /// 1006 is for a connection that ended without a close frame (RFC 6455 section 7.4.1).
    pub(super) close_code: Cell<u16>,
    pub(super) outbox_bytes_max: u32,
}

/// The properties of a new session.
pub(super) struct Opening {
    pub(super) counter: u64,
    pub(super) codec: Option<Codec>,
    pub(super) framing: Framing,
    pub(super) now: u32,
    /// In the past by a random part of the interval, so that sessions do not ping in step.
    pub(super) pinged_at: u32,
    pub(super) message_bytes_max: u32,
    pub(super) outbox_bytes_max: u32,
    pub(super) acknowledges: bool,
    pub(super) share: Option<Share>,
}

impl Session {
    pub(super) fn new(socket: Socket, unauthenticated: Option<Box<dyn Send>>, opening: Opening) -> Self {
        let session = Self {
            counter: opening.counter,
            codec: Cell::new(opening.codec),
            framing: opening.framing,
            stomp: OnceCell::new(),
            opened_at: opening.now,
            phase: Cell::new(Phase::Unauthenticated),
            identity: RefCell::new(None),
            unauthenticated: Cell::new(unauthenticated),
            socket: RefCell::new(socket),
            decoder: RefCell::new(
                Decoder::new(opening.message_bytes_max).deflating(opening.framing == Framing::Deflated),
            ),
            waker: RefCell::new(None),
            acks: OnceCell::new(),
            channels: RefCell::new(None),
            pinged_at: Cell::new(opening.pinged_at),
            awaits_pong: Cell::new(false),
            is_undecided: Cell::new(false),
            owes_pong: Cell::new(false),
            unfinished: Cell::new(None),
            allowance: Cell::new(Allowance::FULL),
            share: opening.share,
            in_flight: Cell::new(0),
            close_code: Cell::new(1006),
            outbox_bytes_max: opening.outbox_bytes_max,
        };
        if opening.acknowledges {
            session.acknowledges_from_now_on();
        }
        session
    }

    /// What the session speaks; warren.v1 while nobody knows.
    pub(super) fn codec(&self) -> Codec {
        self.codec.get().unwrap_or(Codec::WarrenV1)
    }

    /// The codec, if the session has one already.
    pub(super) fn chosen_codec(&self) -> Option<Codec> {
        self.codec.get()
    }

    /// Called once, before the session has a user.
    pub(super) fn choose_codec(&self, codec: Codec, message_bytes_max: u32, now: u32) {
        self.codec.set(Some(codec));
        if codec == Codec::Stomp {
            self.stomp.get_or_init(|| Box::new(Stomp::new(message_bytes_max, now)));
        }
    }

    pub(super) fn stomp(&self) -> Option<&Stomp> {
        self.stomp.get().map(|stomp| &**stomp)
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase.get(), Phase::Closing { .. } | Phase::Ended)
    }

    pub(super) fn identify(&self, identity: Identity) {
        *self.identity.borrow_mut() = Some(Rc::new(identity));
        self.unauthenticated.take();
    }

    pub(super) fn subscribes_to(&self, channel: &ChannelName) -> bool {
        self.channels.borrow().as_ref().is_some_and(|channels| channels.contains_key(channel))
    }

    pub(super) fn identity(&self) -> Option<Rc<Identity>> {
        self.identity.borrow().clone()
    }

    /// Runs the session's task, which acts on what has changed.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Sends a whole WebSocket frame: at once if the client takes it.
    pub(super) fn send(&self, frame: &Bytes, tally: Option<Tally>, now: u32) {
        if self.is_closing() {
            return;
        }
        let sent = self.socket.borrow_mut().send(frame, tally, self.outbox_bytes_max as usize);
        self.wrote(now);
        self.on_sent(sent, now);
    }

    fn wrote(&self, now: u32) {
        if let Some(stomp) = self.stomp() {
            stomp.wrote(now);
        }
    }

    /// Queues a frame that [`Session::flush`] will write together with others.
    pub(super) fn push(&self, frame: &Bytes, tally: Option<Tally>, now: u32) {
        if self.is_closing() {
            return;
        }
        self.wrote(now);
        let mut sent = self.socket.borrow_mut().push(frame, tally.clone(), self.outbox_bytes_max as usize);
        if sent == Sent::Overflow {
            // The queue may be full only because frames were gathered: write them first.
            self.flush(now);
            sent = self.socket.borrow_mut().send(frame, tally, self.outbox_bytes_max as usize);
        }
        if sent != Sent::Queued {
            self.on_sent(sent, now);
        }
    }

    /// Sends a message, or queues it for [`Session::flush`] (`gather`). A client that acknowledges may have to
    /// acknowledge earlier ones first.
    pub(super) fn deliver(&self, message: &Arc<Rendered>, tally: Tally, gather: bool, now: u32) {
        if !self.is_open() {
            return;
        }
        match self.stomp() {
            None => {
                self.deliver_frame(message.warren_v1(self.framing), &message.message().id, tally, gather, now)
            }
            Some(stomp) => stomp.deliver(self, message, tally, gather, now),
        }
    }

    /// [`Session::deliver`] for a frame that the client acknowledges if it acknowledges any.
    pub(super) fn deliver_frame(&self, frame: &Bytes, id: &MessageId, tally: Tally, gather: bool, now: u32) {
        // In a session that acknowledges, the window counts and not the socket.
        let (admit, tally) = match self.acks() {
            Some(mut acks) => (acks.admit(frame, id, tally, now), None),
            None => (Admit::Send, Some(tally)),
        };
        match admit {
            Admit::Send if gather => self.push(frame, tally, now),
            Admit::Send => self.send(frame, tally, now),
            Admit::Wait => {}
            Admit::Overflow => self.close(CloseCode::SlowConsumer, 0, now),
        }
    }

    /// The client has taken care of these messages; sends others in their place. Returns how many of the ids are of no
    /// message that it owes an acknowledgement for; `None`: this session does not acknowledge.
    pub(super) fn on_acks<'a>(&self, ids: impl Iterator<Item = &'a str>, now: u32) -> Option<usize> {
        let mut unknown = 0;
        let mut freed = Vec::new();
        {
            let mut acks = self.acks()?;
            for id in ids {
                unknown += usize::from(!acks.acked(id));
            }
            freed.extend(std::iter::from_fn(|| acks.next(now)));
        }
        for frame in &freed {
            self.push(frame, None, now);
        }
        if !freed.is_empty() {
            self.flush(now);
        }
        Some(unknown)
    }

    /// The client does not want these messages, now or later.
    pub(super) fn on_declined<'a>(&self, ids: impl Iterator<Item = &'a str>, now: u32) {
        let given_up: Vec<Tally> = match self.acks() {
            Some(mut acks) => ids.filter_map(|id| acks.give_up(id)).collect(),
            None => return,
        };
        given_up.into_iter().for_each(Tally::decline);
        self.on_acks(std::iter::empty(), now);
    }

    /// The client is in no position to acknowledge these messages any more, nor those that wait: they are not taken.
    pub(super) fn give_back<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        let given_back = self.acks().map(|mut acks| {
            let given_up: Vec<Tally> = ids.filter_map(|id| acks.give_up(id)).collect();
            (given_up, acks.take_waiting())
        });
        drop(given_back);
    }

    /// From now on messages count when the client acknowledges them.
    pub(super) fn acknowledges_from_now_on(&self) {
        self.acks.get_or_init(|| Box::new(RefCell::new(AckWindow::new(self.outbox_bytes_max as usize))));
    }

    /// Whether the client may still acknowledge something.
    pub(super) fn owes_acks(&self) -> bool {
        self.acks().is_some_and(|acks| !acks.is_empty())
    }

    pub(super) fn are_acks_overdue(&self, now: u32) -> bool {
        self.acks().is_some_and(|acks| acks.is_overdue(now))
    }

    /// Of a client that acknowledges.
    fn acks(&self) -> Option<RefMut<'_, AckWindow>> {
        self.acks.get().map(|acks| acks.borrow_mut())
    }

    /// Drops the messages that the client has not taken, so that their senders are told.
    pub(super) fn release_pending(&self) {
        let acks = self.acks().map(|mut acks| std::mem::replace(&mut *acks, AckWindow::new(0)));
        self.socket.borrow_mut().abandon();
        drop(acks);
        self.give_back_held();
    }

    fn give_back_held(&self) {
        if let Some(stomp) = self.stomp() {
            stomp.give_back_held();
        }
    }

    pub(super) fn flush(&self, now: u32) {
        let sent = self.socket.borrow_mut().flush();
        self.on_sent(sent, now);
    }

    fn on_sent(&self, sent: Sent, now: u32) {
        match sent {
            Sent::Written => {}
            Sent::Queued => self.wake(),
            Sent::Overflow => self.close(CloseCode::SlowConsumer, 0, now),
            Sent::Broken => self.end(),
        }
    }

    /// Tells the reason, sends the close frame and ends the session soon after.
    pub(super) fn close(&self, code: CloseCode, after_ms: u32, now: u32) {
        self.close_saying(Some(&self.disconnect_frame(code, after_ms)), code, now);
    }

    /// [`Session::close`] with another last frame of the codec, or none.
    pub(super) fn close_saying(&self, reason: Option<&[u8]>, code: CloseCode, now: u32) {
        if self.is_closing() {
            return;
        }
        self.close_code.set(code.code());
        let mut socket = self.socket.borrow_mut();
        if code == CloseCode::SlowConsumer {
            socket.discard();
        }
        // Beyond the bound: these are the last frames, and short.
        let bytes_max = usize::MAX;
        for frame in self.last_frames(reason, code) {
            socket.send(&frame, None, bytes_max);
        }
        drop(socket);
        self.begin_closing(now);
    }

    /// From now on nothing but the queued frames is written. Messages that were not sent yet are given up at once; those
    /// that were sent may still be acknowledged.
    fn begin_closing(&self, now: u32) {
        self.phase.set(Phase::Closing { until: now.wrapping_add(CLOSE_GRACE_MS) });
        let given_up = self.acks().map(|mut acks| acks.take_waiting());
        drop(given_up);
        self.give_back_held();
        self.wake();
    }

    /// Answers the client's close frame (RFC 6455 section 5.5.1): the same code back, and no more. If it answers
    /// ours, both have said all there is to say, and the connection ends without waiting for the client's part.
    pub(super) fn answer_close(&self, code: Option<u16>, now: u32) {
        if self.is_closing() {
            if self.socket.borrow().is_flushed() {
                self.end();
            }
            return;
        }
        let code = code.unwrap_or(CloseCode::Normal.code());
        self.close_code.set(code);
        self.socket.borrow_mut().send(&wire::close_frame(code, ""), None, usize::MAX);
        self.begin_closing(now);
    }

    /// Ends without a close frame: the connection is gone.
    pub(super) fn end(&self) {
        self.phase.set(Phase::Ended);
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What only some sessions need is allocated when they need it.
    #[test]
    fn an_idle_session_is_small() {
        assert!(size_of::<Session>() <= 280, "{}", size_of::<Session>());
    }
}
