//! The messages of a client on their way to its codec: out of their framing, and to the codec that the first of them
//! shows if nobody named one.

use std::rc::Rc;

use crate::protocol::close::CloseCode;
use crate::protocol::{sockjs, stomp, Codec, Framing};
use crate::session::requests;
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;

pub(super) fn on_text(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    match session.framing {
        Framing::WebSocket | Framing::Deflated => on_frame(worker, session, text),
        Framing::SockJs => match sockjs::messages(text) {
            Some(frames) => {
                // An array may be empty, and costs no less than a frame.
                if frames.is_empty() {
                    requests::take_tokens(worker, session, 1);
                }
                for frame in frames {
                    if session.phase.get() == Phase::Ended {
                        return;
                    }
                    on_frame(worker, session, &frame);
                }
            }
            None => session.close(CloseCode::BadRequest, 0, worker.now()),
        },
    }
}

/// What is no text may only be STOMP.
pub(super) fn on_binary(worker: &Rc<WorkerState>, session: &Rc<Session>, bytes: &[u8]) {
    match codec(worker, session, bytes) {
        Codec::Stomp if session.framing.takes_binary() => worker.on_stomp(session, bytes),
        _ => session.close(CloseCode::BadRequest, 0, worker.now()),
    }
}

fn on_frame(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    match codec(worker, session, text.as_bytes()) {
        Codec::WarrenV1 => requests::handle(worker, session, text),
        Codec::Stomp => worker.on_stomp(session, text.as_bytes()),
    }
}

fn codec(worker: &WorkerState, session: &Session, message: &[u8]) -> Codec {
    if session.chosen_codec().is_none() {
        let codec = match message.first().copied().is_some_and(stomp::is_stomp) {
            true => Codec::Stomp,
            false => Codec::WarrenV1,
        };
        session.choose_codec(codec, worker.settings.message_bytes_max, worker.now());
    }
    session.codec()
}
