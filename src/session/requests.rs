//! What a client asks for: parsed, checked against what it may do, carried out, answered.

use std::rc::Rc;

use crate::clock::Now;
use crate::error::{Code, Error};
use crate::ids::SessionId;
use crate::protocol::client::{self, PublishRequest, Request, RequestBody};
use crate::protocol::close::CloseCode;
use crate::protocol::message::Sender;
use crate::protocol::server;
use crate::session::replies::Awaited;
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;

/// Requests refused by the rate limit in a row before the session is closed with 4101.
const REFUSED_MAX: u32 = 1_000;

/// Handles one text message. Whatever is wrong with it costs this session an answer, never more.
pub(super) fn handle(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    match session.phase.get() {
        Phase::Open => handle_open(worker, session, text),
        Phase::Unknown => handle_unknown(worker, session, text),
        Phase::Closing { .. } | Phase::Ended => {}
    }
}

fn handle_unknown(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    let identity = match client::parse(text).map(|request| request.body) {
        Ok(RequestBody::Auth(token)) => worker.settings.verifier.verify(&token).ok(),
        _ => None,
    };
    match identity {
        // Looked at when the socket came, but others may have said sooner who they are.
        Some(_) if worker.router.hub().sessions() >= worker.settings.sessions_max => {
            session.close(CloseCode::OverCapacity, 0, worker.now())
        }
        Some(identity) => worker.admit(session, identity),
        None => session.close(CloseCode::Unauthorized, 0, worker.now()),
    }
}

fn handle_open(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    let now = worker.now();
    let parsed = client::parse(text);
    // An acknowledgement is not answered, since it is an answer itself; and it is not limited, since there are no
    // more of them than messages, and without them no more messages.
    if let Ok(Request { body: RequestBody::Ack(ids), .. }) = &parsed {
        if session.acked(ids.iter().map(|id| &**id), now) {
            return;
        }
    }
    // Everything else takes a token, also what cannot be understood: nonsense must not be free.
    if !take_token(worker, session) {
        let id = parsed.as_ref().map_or(None, |request| request.id);
        let error = Error::new(Code::RateLimited, "too many requests; slow down");
        return session.send_text(&server::reply_error(id, &error), now);
    }
    let request = match parsed {
        Ok(request) => request,
        Err((id, error)) => return session.send_text(&server::reply_error(id, &error), now),
    };
    let id = request.id;
    let refused = match request.body {
        RequestBody::Publish(publish) => publish_from(worker, session, id, publish),
        RequestBody::Ping => {
            session.send_text(&server::reply_ok(id), now);
            Ok(())
        }
        RequestBody::Refresh(token) => refresh(worker, session, id, &token),
        RequestBody::Auth(_) => Err(Error::bad_request("auth: this session is authenticated already")),
        RequestBody::Ack(_) => Err(Error::bad_request("ack: this session was not opened with ?ack=client")),
    };
    if let Err(error) = refused {
        session.send_text(&server::reply_error(id, &error), now);
    }
}

/// Whether the session may make a request now. One that goes on all the same is closed.
pub(super) fn take_token(worker: &WorkerState, session: &Session) -> bool {
    match session.bucket.get().take(worker.settings.publish_rate, worker.now()) {
        Some(bucket) => {
            session.bucket.set(bucket);
            session.refused.set(0);
            true
        }
        None => {
            session.refused.set(session.refused.get() + 1);
            if session.refused.get() >= REFUSED_MAX {
                session.close(CloseCode::RateLimited, 0, worker.now());
            }
            false
        }
    }
}

fn refresh(
    worker: &Rc<WorkerState>,
    session: &Rc<Session>,
    id: Option<&str>,
    token: &str,
) -> Result<(), Error> {
    let refused = || Error::new(Code::Unauthorized, "the token is not valid for this session");
    let identity = worker.settings.verifier.verify(token).map_err(|_| refused())?;
    if session.identity().is_none_or(|current| current.user != identity.user) {
        return Err(refused());
    }
    *session.identity.borrow_mut() = Some(Rc::new(identity));
    session.send_text(&server::reply_ok(id), worker.now());
    Ok(())
}

fn publish_from(
    worker: &Rc<WorkerState>,
    session: &Rc<Session>,
    id: Option<&str>,
    publish: PublishRequest<'_>,
) -> Result<(), Error> {
    let Some(identity) = session.identity() else {
        return Err(Error::new(Code::Unauthorized, "not authenticated"));
    };
    let sender = Sender::Client {
        user: identity.user.clone(),
        session: SessionId { node: worker.router.node().clone(), counter: session.counter },
    };
    let message = publish.into_message(sender, Now::read())?;
    if !identity.caps.may_publish(&message.target) {
        return Err(Error::new(Code::Forbidden, "this session may not publish to that target"));
    }
    if session.in_flight.get() >= worker.settings.in_flight_max {
        return Err(Error::new(Code::Overloaded, "too many publishes await their reply"));
    }
    let room = worker.replies.reserve()?;
    session.in_flight.set(session.in_flight.get() + 1);
    let awaited =
        Awaited { counter: session.counter, request: id.map(str::to_owned), message: message.id.clone() };
    // Called within the router's deadlines, whatever happens to the session.
    worker.router.accept(message, Box::new(move |settlement| room.reply(awaited, settlement)));
    Ok(())
}
