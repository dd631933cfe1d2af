//! The replies of the router on their way back to the sessions that await them: written in batches, so that replies for
//! one socket share a system call.

use std::rc::Rc;

use tokio::sync::mpsc;

use crate::error::{Code, Error};
use crate::ids::MessageId;
use crate::metrics::Door;
use crate::protocol::message::Settlement;
use crate::protocol::reply::{Presence, Reply, Settled};
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Replies written together.
pub(super) const BATCH_MAX: usize = 256;

/// The reply to a request that the router carries out, for the session that awaits it.
#[derive(Debug)]
pub(super) struct LateReply {
    awaited: Awaited,
    fate: Fate,
}

/// A request that has no reply yet.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) counter: u64,
    pub(super) request: Option<String>,
}

/// The result of a request.
#[derive(Debug)]
pub(super) enum Fate {
    Settled(MessageId, Settlement),
    Subscribed { count: u64 },
    Presence(Presence),
    Refused(Error),
}

/// Takes replies from any thread. Overflow policy: a publish for whose reply no room is left is refused with
/// `overloaded`.
pub(super) struct Replies(mpsc::Sender<LateReply>);

/// Room for one reply.
pub(super) struct ReplyPermit(mpsc::OwnedPermit<LateReply>);

impl Replies {
    pub(super) fn new(max: usize) -> (Self, mpsc::Receiver<LateReply>) {
        let (replies, queue) = mpsc::channel(max);
        (Self(replies), queue)
    }

    pub(super) fn reserve(&self) -> Result<ReplyPermit, Error> {
        let permit = self.0.clone().try_reserve_owned();
        permit
            .map(ReplyPermit)
            .map_err(|_| Error::new(Code::Overloaded, "too many publishes await their reply"))
    }
}

impl ReplyPermit {
    pub(super) fn reply(self, awaited: Awaited, fate: Fate) {
        self.0.send(LateReply { awaited, fate });
    }
}

/// Writes replies to the sessions that still exist.
pub(super) fn write(worker: &WorkerState, batch: &mut Vec<LateReply>) {
    let now = worker.now();
    let mut touched: Vec<Rc<Session>> = Vec::with_capacity(batch.len());
    for LateReply { awaited, fate } in batch.drain(..) {
        if let Fate::Settled(_, settlement) = &fate {
            worker.settings.metrics.settled(Door::Session, settlement.outcome());
        }
        let Some(session) = worker.find(awaited.counter) else { continue };
        session.in_flight.set(session.in_flight.get() - 1);
        let reply = match &fate {
            Fate::Settled(message, settlement) => Reply::Settled(Settled::new(message, settlement)),
            Fate::Presence(presence) => Reply::Presence(presence),
            Fate::Refused(error) => Reply::Error(error),
            Fate::Subscribed { count } => Reply::Subscribed { count: *count },
        };
        session.push_reply(awaited.request.as_deref(), &reply, now);
        touched.push(session);
    }
    for session in touched {
        session.flush(now);
    }
}
