//! The requests of a client of warren.v1: decoded, checked against the rate limit and the client's capabilities, carried out,
//! answered.

use std::rc::Rc;
use std::time::Instant;

use crate::auth::AuthError;
use crate::budgets::Share;
use crate::clock::Now;
use crate::delivery::trace::{unix_us, Step};
use crate::error::{Code, Error};
use crate::ids::MessageId;
use crate::protocol::close::CloseCode;
use crate::protocol::message::{Message, Sender};
use crate::protocol::publish::PublishRequest;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Refusal, Request, RequestBody};
use crate::protocol::warren_v1;
use crate::router::hooks::Way;
use crate::session::limiter::Verdict;
use crate::session::presence;
use crate::session::replies::{Awaited, Fate};
use crate::session::state::{Phase, Session};
use crate::session::subscriptions::{By, Put};
use crate::session::worker::WorkerState;

/// Acknowledgements of ids that the client does not owe, for one token.
const UNKNOWN_ACKS_PER_TOKEN: usize = 64;

/// Handles one text message of warren.v1. A bad message costs this session an answer or its socket, and others nothing.
pub(super) fn handle(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    match session.phase.get() {
        Phase::Open => handle_open(worker, session, text),
        Phase::Unauthenticated => handle_unauthenticated(worker, session, text),
        Phase::Closing { .. } => handle_closing(worker, session, text),
        Phase::Ended => {}
    }
}

fn handle_unauthenticated(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    let identity = match warren_v1::request::parse(text).map(|request| request.body) {
        Ok(RequestBody::Auth(token)) => worker.settings.verifier.verify(&token),
        _ => Err(AuthError::Missing),
    };
    match identity {
        // The limit was checked when the socket came, but other sessions may have authenticated since.
        Ok(_) if worker.router.hub().sessions() >= worker.settings.sessions_max => {
            session.close(CloseCode::OverCapacity, 0, worker.now())
        }
        // Whoever was let in by its token waits for the welcome.
        Ok(_) if session.is_undecided.get() => session.close(CloseCode::BadRequest, 0, worker.now()),
        Ok(identity) => worker.when_may_connect(session, identity, WorkerState::admit),
        Err(error) => session.close(refusal(worker, session, error), 0, worker.now()),
    }
}

/// How a socket is closed whose first frame was no good token. As over HTTP, an address may fail so often.
pub(super) fn refusal(worker: &WorkerState, session: &Session, error: AuthError) -> CloseCode {
    let address = session.share.as_ref().map(Share::address);
    tracing::debug!(?address, reason = error.reason(), "credentials refused");
    match (error, address) {
        (AuthError::Invalid(_), Some(address))
            if !worker.settings.bad_tokens.take(&address, 1, Instant::now()) =>
        {
            CloseCode::RateLimited
        }
        (AuthError::NoKeysYet, _) => CloseCode::OverCapacity,
        _ => CloseCode::Unauthorized,
    }
}

/// A client that is being closed may have acknowledged messages before it knew: those count, or they would be shown
/// again. Nothing else does.
fn handle_closing(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    if !session.owes_acks() {
        return;
    }
    if let Ok(Request { body: RequestBody::Ack(ids), .. }) = warren_v1::request::parse(text) {
        session.on_acks(ids.iter().map(|id| &**id), worker.now());
    }
}

fn handle_open(worker: &Rc<WorkerState>, session: &Rc<Session>, text: &str) {
    let now = worker.now();
    let traced_us = worker.router.trace().is_on().then(unix_us);
    let decoded = warren_v1::request::parse(text);
    let id = match &decoded {
        Ok(request) => request.id,
        Err(refusal) => refusal.id,
    };
    // An acknowledgement has no reply, since it is one itself. It is free as far as messages were delivered.
    if let Ok(Request { body: RequestBody::Ack(ids), .. }) = &decoded {
        if let Some(unknown) = session.on_acks(ids.iter().map(|id| &**id), now) {
            if let (0, Some(at_us)) = (unknown, traced_us) {
                trace_acks(worker, session, at_us, ids.iter().map(|id| &**id));
            }
            let useless = if ids.is_empty() { 1 } else { unknown };
            let tokens = useless.div_ceil(UNKNOWN_ACKS_PER_TOKEN) as u32;
            if tokens > 0 && !take_tokens(worker, session, tokens) {
                refuse_by_rate(session, id, now);
            }
            return;
        }
    }
    // Malformed frames take a token too.
    if !take_tokens(worker, session, 1) {
        return refuse_by_rate(session, id, now);
    }
    let done = match decoded {
        Ok(request) => carry_out(worker, session, request),
        Err(Refusal { error, .. }) => Err(error),
    };
    if let Err(error) = done {
        session.reply(id, &Reply::Error(&error), now);
    }
}

/// For operators: the client has acknowledged these at that time.
fn trace_acks<'a>(worker: &WorkerState, session: &Session, at_us: u64, ids: impl Iterator<Item = &'a str>) {
    let session = worker.router.session_id(session.counter).to_string();
    for id in ids.filter_map(|id| MessageId::new(id).ok()) {
        worker.router.trace().note_at(at_us, &id, Step::Acknowledged { session: session.clone() });
    }
}

fn refuse_by_rate(session: &Session, id: Option<&str>, now: u32) {
    let error = Error::new(Code::RateLimited, "too many requests; slow down");
    session.reply(id, &Reply::Error(&error), now);
}

fn carry_out(worker: &Rc<WorkerState>, session: &Rc<Session>, request: Request<'_>) -> Result<(), Error> {
    let id = request.id;
    match request.body {
        RequestBody::Publish(publish) => publish_from(worker, session, id, publish)?,
        RequestBody::Ping => session.reply(id, &Reply::Ok, worker.now()),
        RequestBody::Subscribe { channel, presence } => {
            worker.subscribe(session, id, &channel, presence, |_| ())?;
        }
        RequestBody::Unsubscribe(channel) => worker.on_unsubscribe(session, id, &channel),
        RequestBody::Presence(of) => presence::ask(worker, session, id, of)?,
        RequestBody::Refresh(token) => refresh(worker, session, id, &token)?,
        RequestBody::Auth(_) => {
            return Err(Error::bad_request("auth: this session is authenticated already"));
        }
        RequestBody::Ack(_) => {
            return Err(Error::bad_request("ack: this session was not opened with ?ack=client"));
        }
    }
    Ok(())
}

/// Whether the session, and its user through all doors, may make a request that costs so many tokens now. A session
/// that goes on after refusals is closed.
pub(super) fn take_tokens(worker: &WorkerState, session: &Session, tokens: u32) -> bool {
    let Some(pace) = worker.pace else { return true };
    let identity = session.identity();
    let may_user =
        || identity.is_none_or(|identity| worker.settings.rates.take(&identity.user, tokens, Instant::now()));
    let (left, verdict) = session.allowance.get().ask(pace, tokens, worker.uptime_ms(), may_user);
    session.allowance.set(left);
    if verdict == Verdict::Close {
        session.close(CloseCode::RateLimited, 0, worker.now());
    }
    verdict == Verdict::Granted
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
    let claimed = identity.channels.clone();
    let before = session.identity.borrow_mut().replace(Rc::new(identity));
    worker.leave_forbidden_channels(session);
    // What the old token named as well was subscribed to before, and the client may have left it.
    let was_claimed = |channel| before.as_ref().is_some_and(|before| before.channels.contains(channel));
    for channel in claimed.iter().filter(|channel| !was_claimed(channel)) {
        if worker.put_into(session, channel, By::Token, Box::new(|| ())) == Put::New {
            session.tell_subscribed(channel, worker.now());
        }
    }
    session.reply(id, &Reply::Ok, worker.now());
    Ok(())
}

fn publish_from(
    worker: &Rc<WorkerState>,
    session: &Rc<Session>,
    id: Option<&str>,
    publish: PublishRequest<'_>,
) -> Result<(), Error> {
    let way = match (publish.reply, publish.echo) {
        (true, _) => Way::Request(Some(session.counter)),
        (false, true) => Way::Usual,
        (false, false) => Way::WithoutEcho(session.counter),
    };
    accept(worker, session, id, way, |sender| publish.into_message(sender, Now::read()))
}

/// Accepts a message of the client; `id` is that of the request, for the reply.
pub(super) fn accept(
    worker: &Rc<WorkerState>,
    session: &Rc<Session>,
    id: Option<&str>,
    way: Way,
    read: impl FnOnce(Sender) -> Result<Message, Error>,
) -> Result<(), Error> {
    let Some(identity) = session.identity() else {
        return Err(Error::new(Code::Unauthorized, "not authenticated"));
    };
    let sender =
        Sender::Client { user: identity.user.clone(), session: worker.router.session_id(session.counter) };
    let message = read(sender)?;
    if !identity.caps.may_publish(&message.target) {
        return Err(Error::new(Code::Forbidden, "this session may not publish to that target"));
    }
    if worker.router.is_reserved(&message.target) {
        return Err(Error::new(Code::Forbidden, "hooks are asked by the gateway alone"));
    }
    if session.in_flight.get() >= worker.settings.in_flight_max {
        return Err(Error::new(Code::Overloaded, "too many publishes await their reply"));
    }
    let permit = worker.replies.reserve()?;
    session.in_flight.set(session.in_flight.get() + 1);
    let awaited = Awaited { counter: session.counter, request: id.map(str::to_owned) };
    let message_id = message.id.clone();
    // The router settles within its deadlines, also when the session has ended.
    let settle = move |settlement| permit.reply(awaited, Fate::Settled(message_id, settlement));
    worker.router.publish_as(Some(&identity.user), message, way, Box::new(settle));
    Ok(())
}
