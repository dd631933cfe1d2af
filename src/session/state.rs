//! The state of one session; every frame to its client goes through it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;

use crate::auth::Identity;
use crate::budgets::Share;
use crate::hub::Tally;
use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::protocol::message::Rendered;
use crate::protocol::reply::Reply;
use crate::protocol::wire::{self, Decoder};
use crate::protocol::Codec;
use crate::session::acks::{AckWindow, Admit};
use crate::session::deadlines::Unfinished;
use crate::session::limiter::Allowance;
use crate::session::socket::{Sent, Socket};
use crate::session::subscriptions::OwnChannels;

/// How long a closing session may take to flush its last frames, and to read the acknowledgements and the close frame
/// that are on their way from the client.
const CLOSE_GRACE_MS: u32 = 1_000;

/// Bytes that wait for a client before it gets nothing more of what may be left out.
const OFFER_BYTES_MAX: usize = 16 * 1024;

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
    pub(super) codec: Codec,
    pub(super) opened_at: u32,
    pub(super) phase: Cell<Phase>,
    pub(super) identity: RefCell<Option<Rc<Identity>>>,
    /// Of a session that has no user yet.
    unauthenticated: Cell<Option<Box<dyn Send>>>,
    pub(super) socket: RefCell<Socket>,
    pub(super) decoder: RefCell<Decoder>,
    pub(super) waker: RefCell<Option<Waker>>,
    /// Only of a client that acknowledges.
    pub(super) acks: RefCell<Option<Box<AckWindow>>>,
    /// `None` while the session subscribes to nothing.
    pub(super) channels: RefCell<Option<Box<OwnChannels>>>,
    pub(super) pinged_at: Cell<u32>,
    /// A ping was sent, and no byte has come since.
    pub(super) awaits_pong: Cell<bool>,
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
    outbox_bytes_max: u32,
}

/// The properties of a new session.
pub(super) struct Opening {
    pub(super) counter: u64,
    pub(super) codec: Codec,
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
        Self {
            counter: opening.counter,
            codec: opening.codec,
            opened_at: opening.now,
            phase: Cell::new(Phase::Unauthenticated),
            identity: RefCell::new(None),
            unauthenticated: Cell::new(unauthenticated),
            socket: RefCell::new(socket),
            decoder: RefCell::new(Decoder::new(opening.message_bytes_max)),
            waker: RefCell::new(None),
            acks: RefCell::new(opening.acknowledges.then(|| {
                let window = AckWindow::new(opening.outbox_bytes_max as usize);
                Box::new(window)
            })),
            channels: RefCell::new(None),
            pinged_at: Cell::new(opening.pinged_at),
            awaits_pong: Cell::new(false),
            owes_pong: Cell::new(false),
            unfinished: Cell::new(None),
            allowance: Cell::new(Allowance::FULL),
            share: opening.share,
            in_flight: Cell::new(0),
            close_code: Cell::new(1006),
            outbox_bytes_max: opening.outbox_bytes_max,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    fn is_closing(&self) -> bool {
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

    /// Sends what may be left out: `false` if the client has too much to read already.
    pub(super) fn offer(&self, piece: &Bytes, now: u32) -> bool {
        let queued = self.socket.borrow().queued();
        if queued > 0 && queued + piece.len() > OFFER_BYTES_MAX.min(self.outbox_bytes_max as usize / 4) {
            return false;
        }
        self.send(piece, None, now);
        true
    }

    /// Whether the client has read everything.
    pub(super) fn is_caught_up(&self) -> bool {
        self.socket.borrow().is_flushed()
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
        self.on_sent(sent, now);
    }

    /// Queues a frame that [`Session::flush`] will write together with others.
    pub(super) fn push(&self, frame: &Bytes, tally: Option<Tally>, now: u32) {
        if self.is_closing() {
            return;
        }
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
    pub(super) fn deliver(&self, message: &Rendered, tally: Tally, gather: bool, now: u32) {
        if !self.is_open() {
            return;
        }
        let frame = message.frame(self.codec);
        let id = &message.message().id;
        // In a session that acknowledges, the window counts and not the socket.
        let (admit, tally) = match self.acks.borrow_mut().as_mut() {
            Some(acks) => (acks.admit(frame, id, tally, now), None),
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
            let mut acks = self.acks.borrow_mut();
            let acks = acks.as_mut()?;
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

    /// Whether the client may still acknowledge something.
    pub(super) fn owes_acks(&self) -> bool {
        self.acks.borrow().as_ref().is_some_and(|acks| !acks.is_empty())
    }

    /// Drops the messages that the client has not taken, so that their senders are told.
    pub(super) fn release_pending(&self) {
        let acks = self.acks.borrow_mut().take();
        self.socket.borrow_mut().abandon();
        drop(acks);
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

    pub(super) fn reply(&self, id: Option<&str>, reply: &Reply, now: u32) {
        self.send(&self.codec.reply(id, reply), None, now);
    }

    /// Tells the reason, sends the close frame and ends the session soon after.
    pub(super) fn close(&self, code: CloseCode, after_ms: u32, now: u32) {
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
        socket.send(&self.codec.disconnect(code, after_ms), None, bytes_max);
        socket.send(&wire::close_frame(code.code(), code.reason()), None, bytes_max);
        drop(socket);
        self.begin_closing(now);
    }

    /// From now on nothing but the queued frames is written. Messages that were not sent yet are given up at once; those
    /// that were sent may still be acknowledged.
    fn begin_closing(&self, now: u32) {
        self.phase.set(Phase::Closing { until: now.wrapping_add(CLOSE_GRACE_MS) });
        let given_up = self.acks.borrow_mut().as_mut().map(|acks| acks.take_waiting());
        drop(given_up);
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
