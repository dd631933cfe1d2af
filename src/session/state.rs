//! What is known of one session; every frame to a client goes through it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;

use crate::auth::Identity;
use crate::hub::Tally;
use crate::ids::MessageId;
use crate::protocol::close::CloseCode;
use crate::protocol::server;
use crate::protocol::wire::{self, Decoder};
use crate::session::acks::{AckWindow, Admit};
use crate::session::limiter::Bucket;
use crate::session::socket::{Sent, Socket};

/// How long a closing session may take to flush its last frames and to hear the client's close frame.
const CLOSE_GRACE_MS: u32 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connected, but nobody yet: the first frame must bring a token.
    Unknown,
    Open,
    /// The last frames are being written; nothing else is sent or heard.
    Closing {
        until: u32,
    },
    /// To be removed.
    Ended,
}

/// Times are milliseconds on the worker's clock, which wraps after 49 days: only differences are taken.
pub(super) struct Session {
    pub(super) counter: u64,
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
    pub(super) heard_at: Cell<u32>,
    pub(super) pinged_at: Cell<u32>,
    /// A ping was sent that no byte has followed yet.
    pub(super) awaits_pong: Cell<bool>,
    /// Which unfinished message was seen, and since when.
    pub(super) unfinished: Cell<Option<(u32, u32)>>,
    pub(super) bucket: Cell<Bucket>,
    pub(super) in_flight: Cell<u32>,
    /// Requests refused by the rate limit in a row.
    pub(super) refused: Cell<u32>,
    /// How it ended: 1006 is for a connection that was gone without a close frame (RFC 6455 section 7.4.1).
    pub(super) close_code: Cell<u16>,
    outbox_bytes_max: u32,
}

/// What a new session begins with.
pub(super) struct Opening {
    pub(super) counter: u64,
    pub(super) now: u32,
    /// In the past by a random part of the interval, so that sessions do not ping in step.
    pub(super) pinged_at: u32,
    pub(super) bucket: Bucket,
    pub(super) message_bytes_max: u32,
    pub(super) outbox_bytes_max: u32,
    pub(super) acknowledges: bool,
}

impl Session {
    pub(super) fn new(socket: Socket, unauthenticated: Option<Box<dyn Send>>, opening: Opening) -> Self {
        Self {
            counter: opening.counter,
            opened_at: opening.now,
            phase: Cell::new(Phase::Unknown),
            identity: RefCell::new(None),
            unauthenticated: Cell::new(unauthenticated),
            socket: RefCell::new(socket),
            decoder: RefCell::new(Decoder::new(opening.message_bytes_max)),
            waker: RefCell::new(None),
            acks: RefCell::new(opening.acknowledges.then(Box::default)),
            heard_at: Cell::new(opening.now),
            pinged_at: Cell::new(opening.pinged_at),
            awaits_pong: Cell::new(false),
            unfinished: Cell::new(None),
            bucket: Cell::new(opening.bucket),
            in_flight: Cell::new(0),
            refused: Cell::new(0),
            close_code: Cell::new(1006),
            outbox_bytes_max: opening.outbox_bytes_max,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    pub(super) fn identify(&self, identity: Identity) {
        *self.identity.borrow_mut() = Some(Rc::new(identity));
        self.unauthenticated.take();
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
    pub(super) fn send(&self, frame: &Bytes, tally: Option<&Tally>, now: u32) {
        if matches!(self.phase.get(), Phase::Closing { .. } | Phase::Ended) {
            return;
        }
        let sent = self.socket.borrow_mut().send(frame, tally, self.outbox_bytes_max as usize);
        self.sent(sent, now);
    }

    /// Queues a frame that [`Session::flush`] will write together with others.
    pub(super) fn push(&self, frame: &Bytes, tally: Option<&Tally>, now: u32) {
        if matches!(self.phase.get(), Phase::Closing { .. } | Phase::Ended) {
            return;
        }
        let mut sent = self.socket.borrow_mut().push(frame, tally, self.outbox_bytes_max as usize);
        if sent == Sent::Overflow {
            // The queue may be full only because it was gathered: see what the client takes.
            self.flush(now);
            sent = self.socket.borrow_mut().send(frame, tally, self.outbox_bytes_max as usize);
        }
        if sent != Sent::Queued {
            self.sent(sent, now);
        }
    }

    /// Sends a message, or queues it for [`Session::flush`] (`gather`); or lets it wait until the client has
    /// acknowledged earlier ones.
    pub(super) fn deliver(&self, frame: &Bytes, id: &MessageId, tally: &Tally, gather: bool, now: u32) {
        let admit = (self.acks.borrow_mut().as_mut())
            .map(|acks| acks.admit(frame, id.clone(), tally.clone(), self.outbox_bytes_max as usize, now));
        // In an acknowledging session the window counts, not the socket.
        let tally = match admit {
            None => Some(tally),
            Some(Admit::Send) => None,
            Some(Admit::Wait | Admit::Refuse) => return,
        };
        match gather {
            true => self.push(frame, tally, now),
            false => self.send(frame, tally, now),
        }
    }

    /// The client has taken care of these messages, so that others may follow. `false`: this session does not
    /// acknowledge.
    pub(super) fn acked<'a>(&self, ids: impl Iterator<Item = &'a str>, now: u32) -> bool {
        let mut freed = Vec::new();
        match self.acks.borrow_mut().as_mut() {
            None => return false,
            Some(acks) => {
                ids.for_each(|id| acks.acked(id));
                freed.extend(std::iter::from_fn(|| acks.next(now)));
            }
        }
        for frame in freed {
            self.push(&frame, None, now);
        }
        self.flush(now);
        true
    }

    /// Gives up what the client has not taken: whoever waits for it is told so.
    pub(super) fn let_go(&self) {
        if let Some(acks) = self.acks.borrow_mut().as_mut() {
            **acks = AckWindow::default();
        }
        self.socket.borrow_mut().abandon();
    }

    pub(super) fn flush(&self, now: u32) {
        let sent = self.socket.borrow_mut().flush();
        self.sent(sent, now);
    }

    fn sent(&self, sent: Sent, now: u32) {
        match sent {
            Sent::Written => {}
            Sent::Queued => self.wake(),
            Sent::Overflow => self.close(CloseCode::SlowConsumer, 0, now),
            Sent::Broken => self.end(),
        }
    }

    pub(super) fn send_text(&self, text: &[u8], now: u32) {
        self.send(&wire::text_frame(text), None, now);
    }

    /// Says why, sends the close frame and ends the session soon after.
    pub(super) fn close(&self, code: CloseCode, after_ms: u32, now: u32) {
        if matches!(self.phase.get(), Phase::Closing { .. } | Phase::Ended) {
            return;
        }
        self.close_code.set(code.code());
        let mut socket = self.socket.borrow_mut();
        if code == CloseCode::SlowConsumer {
            socket.discard();
        }
        // Beyond the bound: these are the last frames, and short.
        let bytes_max = usize::MAX;
        socket.send(&wire::text_frame(&server::disconnect(code, after_ms)), None, bytes_max);
        socket.send(&wire::close_frame(code.code(), code.reason()), None, bytes_max);
        drop(socket);
        self.phase.set(Phase::Closing { until: now.wrapping_add(CLOSE_GRACE_MS) });
        self.wake();
    }

    /// Answers the client's close frame (RFC 6455 section 5.5.1): the same code back, and no more. If it answers
    /// ours, both have said all there is to say, and the connection ends without waiting for the client's part.
    pub(super) fn answer_close(&self, code: Option<u16>, now: u32) {
        if matches!(self.phase.get(), Phase::Closing { .. } | Phase::Ended) {
            if self.socket.borrow().is_flushed() {
                self.end();
            }
            return;
        }
        let code = code.unwrap_or(CloseCode::Normal.code());
        self.close_code.set(code);
        self.socket.borrow_mut().send(&wire::close_frame(code, ""), None, usize::MAX);
        // What the client has not taken by now, it does not want.
        self.phase.set(Phase::Closing { until: now.wrapping_add(CLOSE_GRACE_MS) });
        self.wake();
    }

    /// Ends without another word: the connection is gone.
    pub(super) fn end(&self) {
        self.phase.set(Phase::Ended);
        self.wake();
    }
}
