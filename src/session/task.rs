//! Reads one socket and writes its queued frames; one small task per session.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::protocol::wire::{self, Event};
use crate::session::deadlines::is_past;
use crate::session::inbound;
use crate::session::requests;
use crate::session::socket::Sent;
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;

/// Reads of one socket before others get their turn.
const READS_PER_TURN: usize = 4;

/// Ends when the session ends, and then takes the session out of every table, also if the task panics.
pub(super) struct SessionTask {
    worker: Rc<WorkerState>,
    session: Rc<Session>,
}

impl SessionTask {
    pub(super) fn new(worker: Rc<WorkerState>, session: Rc<Session>) -> Self {
        Self { worker, session }
    }

    fn poll_write(&self, cx: &mut Context<'_>) {
        let mut socket = self.session.socket.borrow_mut();
        while !socket.is_flushed() {
            match socket.poll_writable(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {
                    if socket.flush() == Sent::Broken {
                        return self.session.phase.set(Phase::Ended);
                    }
                }
                Poll::Ready(Err(_)) => return self.session.phase.set(Phase::Ended),
            }
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>) {
        for _ in 0..READS_PER_TURN {
            if self.session.phase.get() == Phase::Ended {
                return;
            }
            let mut scratch = self.worker.scratch.borrow_mut();
            let read = self.session.socket.borrow_mut().poll_read(cx, &mut scratch);
            match read {
                Poll::Pending => return,
                Poll::Ready(Ok(0) | Err(_)) => return self.session.phase.set(Phase::Ended),
                Poll::Ready(Ok(read)) => on_bytes(&self.worker, &self.session, &mut scratch[..read]),
            }
        }
        cx.waker().wake_by_ref();
    }
}

/// Decodes bytes of the client and acts on each complete message and control frame.
pub(super) fn on_bytes(worker: &Rc<WorkerState>, session: &Rc<Session>, bytes: &mut [u8]) {
    let now = worker.now();
    session.awaits_pong.set(false);
    let mut on_event = |event: Event<'_>| {
        match event {
            Event::Text(text) => inbound::on_text(worker, session, text),
            Event::Binary(bytes) => inbound::on_binary(worker, session, bytes),
            // A ping takes a token. Without one it gets no pong, and counts among the refusals.
            Event::Ping(payload) => {
                if requests::take_tokens(worker, session, 1) {
                    session.send(&wire::pong_frame(payload), None, now);
                }
            }
            // The pong of our ping is free; an unsolicited one takes a token as any frame does.
            Event::Pong(_) => {
                if !session.owes_pong.replace(false) {
                    requests::take_tokens(worker, session, 1);
                }
            }
            Event::Close(close) => session.answer_close(close.map(|(code, _)| code), now),
        }
        match session.phase.get() {
            // A closing session still reads acknowledgements and the client's close frame.
            Phase::Unauthenticated | Phase::Open | Phase::Closing { .. } => ControlFlow::Continue(()),
            Phase::Ended => ControlFlow::Break(()),
        }
    };
    let decoded = session.decoder.borrow_mut().decode(bytes, &mut on_event);
    if let Err(violation) = decoded {
        tracing::debug!(session = %worker.router.session_id(session.counter), %violation, "closing");
        session.close(violation.close_code(), 0, now);
    }
}

impl Future for SessionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let session = &self.session;
        {
            let mut waker = session.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.poll_write(cx);
        self.poll_read(cx);
        // Reading may have produced answers that the client does not take at once.
        self.poll_write(cx);
        match session.phase.get() {
            Phase::Unauthenticated | Phase::Open => Poll::Pending,
            Phase::Ended => Poll::Ready(()),
            Phase::Closing { until } => {
                if session.socket.borrow().is_flushed() {
                    session.socket.borrow_mut().finish();
                    // TLS has a last word, which a full socket takes later.
                    self.poll_write(cx);
                }
                // Woken by the end of the client's stream, or by the worker's sweep when the time is up.
                match is_past(until, self.worker.now()) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            }
        }
    }
}

impl Drop for SessionTask {
    fn drop(&mut self) {
        self.worker.remove(&self.session);
    }
}
