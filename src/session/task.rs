//! Reads one socket and writes what is queued for it; one small task per session.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::protocol::close::CloseCode;
use crate::protocol::wire::{self, Event};
use crate::session::requests;
use crate::session::socket::Sent;
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;

/// Reads of one socket before others get their turn.
const READS_PER_TURN: usize = 4;

/// Ends when the session does, and then takes the session out of everything, also if it panics.
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
                Poll::Ready(Ok(read)) => hear(&self.worker, &self.session, &mut scratch[..read]),
            }
        }
        cx.waker().wake_by_ref();
    }
}

/// Takes in what the client sent.
pub(super) fn hear(worker: &Rc<WorkerState>, session: &Rc<Session>, bytes: &mut [u8]) {
    let now = worker.now();
    session.heard_at.set(now);
    session.awaits_pong.set(false);
    let mut on_event = |event: Event<'_>| {
        match event {
            Event::Text(text) => requests::handle(worker, session, text),
            Event::Binary(_) => session.close(CloseCode::BadRequest, 0, now),
            // A client that pings in a flood gets no answers beyond its limit, and is closed like any other.
            Event::Ping(payload) if requests::take_token(worker, session) => {
                session.send(&wire::pong_frame(payload), None, now)
            }
            Event::Ping(_) => {}
            Event::Pong(_) => {}
            Event::Close(close) => session.answer_close(close.map(|(code, _)| code), now),
        }
        match session.phase.get() {
            Phase::Unknown | Phase::Open => ControlFlow::Continue(()),
            // Only a close frame matters now, and the decoder must still see it.
            Phase::Closing { .. } => ControlFlow::Continue(()),
            Phase::Ended => ControlFlow::Break(()),
        }
    };
    let decoded = session.decoder.borrow_mut().decode(bytes, &mut on_event);
    if let Err(violation) = decoded {
        tracing::debug!(session = session.counter, %violation, "closing");
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
            Phase::Unknown | Phase::Open => Poll::Pending,
            Phase::Ended => Poll::Ready(()),
            Phase::Closing { until } => {
                if session.socket.borrow().is_flushed() {
                    session.socket.borrow().finish();
                }
                // Woken by the client's end of the stream, or by the worker's look when time is up.
                match self.worker.is_past(until) {
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
