//! Frames of the client: who may send which when, and what an error in one of them costs.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::Stomp;
use crate::error::{Code, Error};
use crate::protocol::close::CloseCode;
use crate::protocol::reply::Reply;
use crate::protocol::stomp::frame::{Command, Frame};
use crate::protocol::stomp::parser::Violation;
use crate::protocol::stomp::{render, Version};
use crate::session::requests::take_tokens;
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;

/// Longest `receipt`, and longest `id` of a subscription, in bytes: the session keeps them.
pub(super) const NAME_BYTES_MAX: usize = 128;

/// What came of a frame.
enum Done {
    /// The answer comes later, or there is none.
    Later,
    /// The receipt, if the client wants one, comes now.
    Now,
}

impl WorkerState {
    /// A WebSocket message: some frames, a part of one, or nothing but line ends.
    pub(in crate::session) fn on_stomp(self: &Rc<Self>, session: &Rc<Session>, bytes: &[u8]) {
        let Some(stomp) = session.stomp() else { return };
        let mut frames = 0;
        let mut on_frame = |frame: Frame<'_>| {
            frames += 1;
            let version = self.on_frame(session, stomp, &frame);
            match session.phase.get() {
                Phase::Ended => ControlFlow::Break(()),
                _ => ControlFlow::Continue(version),
            }
        };
        let read = stomp.parser.borrow_mut().read(bytes, &mut on_frame);
        if let Err(Violation { message, is_too_big }) = read {
            let code = if is_too_big { CloseCode::TooBig } else { CloseCode::Protocol };
            return session.close_saying(Some(&render::violation(&message, code)), code, self.now());
        }
        // A part of a frame and a heart-beat cost as much as a frame, or a flood of them would cost nothing.
        if frames == 0 && !session.is_closing() {
            take_tokens(self, session, 1);
        }
    }

    fn on_frame(self: &Rc<Self>, session: &Rc<Session>, stomp: &Stomp, frame: &Frame<'_>) -> Option<Version> {
        match session.phase.get() {
            // Whoever has sent one waits for CONNECTED.
            Phase::Unauthenticated if frame.command == Command::Connect && !session.is_undecided.get() => {
                return self.on_connect(session, stomp, frame);
            }
            Phase::Unauthenticated => {
                let error = Error::new(Code::Unauthorized, "CONNECT comes first");
                let frame = render::error(&error, frame.raw("receipt"));
                session.close_saying(Some(&frame), CloseCode::Unauthorized, self.now());
            }
            // What follows DISCONNECT is not to be answered.
            Phase::Open if stomp.leaving.get().is_none() => self.on_open_frame(session, stomp, frame),
            // What was acknowledged before the client knew counts, or it would be shown again.
            Phase::Closing { .. } if matches!(frame.command, Command::Ack | Command::Nack) => {
                if let Ok(named) = super::subscribe::named(frame) {
                    self.acknowledge(session, stomp, frame.command, named);
                }
            }
            Phase::Open | Phase::Closing { .. } | Phase::Ended => {}
        }
        None
    }

    fn on_open_frame(self: &Rc<Self>, session: &Rc<Session>, stomp: &Stomp, frame: &Frame<'_>) {
        let receipt = frame.raw("receipt");
        // An acknowledgement is free as far as messages were delivered.
        let is_free = match frame.command {
            Command::Ack | Command::Nack => match super::subscribe::named(frame) {
                Ok(named) => self.acknowledge(session, stomp, frame.command, named),
                Err(_) => false,
            },
            _ => false,
        };
        if !is_free && !take_tokens(self, session, 1) {
            let error = Error::new(Code::RateLimited, "too many requests; slow down");
            return stomp.refuse(session, &error, receipt, self.now());
        }
        let is_too_long = receipt.is_some_and(|receipt| receipt.len() > NAME_BYTES_MAX);
        let receipt = receipt.filter(|_| !is_too_long);
        let done = match frame.raw("transaction") {
            _ if is_too_long => {
                Err(Error::bad_request(format!("receipt is longer than {NAME_BYTES_MAX} bytes")))
            }
            Some(_) => Err(Error::bad_request("transactions are not supported")),
            None => self.carry_out(session, stomp, frame),
        };
        match done {
            Ok(Done::Later) => {}
            Ok(Done::Now) => session.reply(receipt, &Reply::Ok, self.now()),
            Err(error) => {
                let name = frame.command.as_str();
                let error = Error::new(error.code, format!("{name}: {}", error.message));
                stomp.refuse(session, &error, receipt, self.now());
            }
        }
    }

    fn carry_out(
        self: &Rc<Self>,
        session: &Rc<Session>,
        stomp: &Stomp,
        frame: &Frame<'_>,
    ) -> Result<Done, Error> {
        match frame.command {
            Command::Send => self.on_send(session, frame).map(|()| Done::Later),
            Command::Subscribe => {
                let is_later = self.on_subscribe(session, stomp, frame)?;
                Ok(if is_later { Done::Later } else { Done::Now })
            }
            Command::Unsubscribe => self.on_unsubscribe_frame(session, stomp, frame).map(|()| Done::Now),
            // Done already, as far as it can be understood.
            Command::Ack | Command::Nack => super::subscribe::named(frame).map(|_| Done::Now),
            Command::Disconnect => {
                self.on_disconnect(session, stomp, frame.raw("receipt"));
                Ok(Done::Later)
            }
            Command::Begin | Command::Commit | Command::Abort => {
                Err(Error::bad_request("transactions are not supported"))
            }
            Command::Connect => Err(Error::bad_request("this session is connected already")),
        }
    }
}
