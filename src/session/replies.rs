//! The fates of published messages on their way back to the sessions that await them: written in batches, so that
//! replies for one socket share a system call.

use std::rc::Rc;

use tokio::sync::mpsc;

use crate::error::{Code, Error};
use crate::ids::MessageId;
use crate::metrics::Door;
use crate::protocol::message::Settlement;
use crate::protocol::reply::{Reply, Settled};
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Replies written together.
pub(super) const BATCH_MAX: usize = 256;

/// The fate of a publish, for the session that awaits it.
#[derive(Debug)]
pub(super) struct PublishReply {
    awaited: Awaited,
    settlement: Settlement,
}

/// A publish that has no reply yet.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) counter: u64,
    pub(super) request: Option<String>,
    pub(super) message: MessageId,
}

/// Takes replies from any thread. Overflow policy: a publish for whose reply no room is left is refused with
/// `overloaded`.
pub(super) struct Replies(mpsc::Sender<PublishReply>);

/// Room for one reply.
pub(super) struct ReplyPermit(mpsc::OwnedPermit<PublishReply>);

impl Replies {
    pub(super) fn new(max: usize) -> (Self, mpsc::Receiver<PublishReply>) {
        let (replies, queue) = mpsc::channel(max);
        (Self(replies), queue)
    }

    pub(super) fn reserve(&self) -> Result<ReplyPermit, Error> {
        let permit = self.0.clone().try_reserve_owned();
        permit.map(ReplyPermit).map_err(|_| Error::new(Code::Overloaded, "too many publishes await their reply"))
    }
}

impl ReplyPermit {
    pub(super) fn reply(self, awaited: Awaited, settlement: Settlement) {
        self.0.send(PublishReply { awaited, settlement });
    }
}

/// Writes replies to the sessions that still exist.
pub(super) fn write(worker: &WorkerState, batch: &mut Vec<PublishReply>) {
    let now = worker.now();
    let mut touched: Vec<Rc<Session>> = Vec::with_capacity(batch.len());
    for PublishReply { awaited, settlement } in batch.drain(..) {
        worker.settings.metrics.settled(Door::Session, settlement.outcome());
        let Some(session) = worker.find(awaited.counter) else { continue };
        session.in_flight.set(session.in_flight.get() - 1);
        let reply = Reply::Settled(Settled::new(&awaited.message, &settlement));
        session.push(&session.codec.reply(awaited.request.as_deref(), &reply), None, now);
        touched.push(session);
    }
    for session in touched {
        session.flush(now);
    }
}
