//! Settlements on their way back to the sessions that await them: gathered, so that replies for one socket share a
//! system call.

use std::rc::Rc;

use tokio::sync::mpsc;

use crate::error::{Code, Error};
use crate::ids::MessageId;
use crate::metrics::Door;
use crate::protocol::message::Settlement;
use crate::protocol::server::{self, Settled};
use crate::protocol::wire;
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Replies written together.
pub(super) const BATCH_MAX: usize = 256;

/// What became of a publish.
#[derive(Debug)]
pub(super) struct Reply {
    awaited: Awaited,
    settlement: Settlement,
}

/// Who awaits a reply, and to what.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) counter: u64,
    pub(super) request: Option<String>,
    pub(super) message: MessageId,
}

/// Where settlements are handed in, from any thread. Overflow policy: who has no room reserved publishes nothing.
pub(super) struct Replies(mpsc::Sender<Reply>);

/// Room for one reply.
pub(super) struct Room(mpsc::OwnedPermit<Reply>);

impl Replies {
    pub(super) fn new(max: usize) -> (Self, mpsc::Receiver<Reply>) {
        let (replies, queue) = mpsc::channel(max);
        (Self(replies), queue)
    }

    pub(super) fn reserve(&self) -> Result<Room, Error> {
        let room = self.0.clone().try_reserve_owned();
        room.map(Room).map_err(|_| Error::new(Code::Overloaded, "too many publishes await their reply"))
    }
}

impl Room {
    pub(super) fn reply(self, awaited: Awaited, settlement: Settlement) {
        self.0.send(Reply { awaited, settlement });
    }
}

/// Writes replies to the sessions that are still there.
pub(super) fn write(worker: &WorkerState, batch: &mut Vec<Reply>) {
    let now = worker.now();
    let mut touched: Vec<Rc<Session>> = Vec::with_capacity(batch.len());
    for Reply { awaited, settlement } in batch.drain(..) {
        worker.settings.metrics.settled(Door::Session, settlement.outcome());
        let Some(session) = worker.find(awaited.counter) else { continue };
        session.in_flight.set(session.in_flight.get() - 1);
        let settled = Settled::new(&awaited.message, &settlement);
        let text = server::reply_settled(awaited.request.as_deref(), &settled);
        session.push(&wire::text_frame(&text), None, now);
        touched.push(session);
    }
    for session in touched {
        session.flush(now);
    }
}
