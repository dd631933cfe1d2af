//! Messages for the application: published to the exchange that backends bind their queues to. A request also awaits
//! the answer of a backend, which comes to this node's reply queue.
//!
//! Nothing here is kept for later and nothing is sent twice: a message is the broker's once it is confirmed, and a
//! request whose answer does not come is the sender's to repeat, with the same message id.
//!
//! The lock of the requests is held for one access to their table; what is taken out is settled after that.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::requests::{Correlation, Full, Request, Requests};
use super::{failed, order_key, overloaded, unavailable, Router, Settle};
use crate::bus::Outcome;
use crate::delivery::application::{self, ReplyTo};
use crate::delivery::envelope::Scope;
use crate::delivery::trace::Step;
use crate::error::Code;
use crate::ids::AppKey;
use crate::protocol::message::{Message, Settlement};
use crate::protocol::publish::REQUEST_TTL_MS;
use crate::protocol::target::Target;

/// Overdue requests settled in one look.
const EXPIRED_MAX: usize = 4_096;

fn no_answer(why: &str) -> Settlement {
    failed(Code::NoAnswer, &format!("{why}; the request may or may not have been carried out"))
}

/// What the broker's answer says of a message for the application; `None`: a queue has it.
fn refusal(outcome: Outcome) -> Option<Settlement> {
    match outcome {
        Outcome::Confirmed => None,
        Outcome::Unroutable => Some(failed(Code::NoBackend, "no backend listens for this key")),
        Outcome::Refused => Some(failed(Code::Overloaded, "a backend's queue is full; try again")),
        Outcome::Overloaded => Some(overloaded()),
        Outcome::Unavailable => Some(unavailable()),
    }
}

impl Router {
    pub(super) fn publish_to_application(&self, key: AppKey, message: &Message, settle: Settle) {
        let order = order_key(&message.target);
        self.trace().note(&message.id, || Step::SentToBackends);
        let publish = application::publish(key, message, self.node(), None, order, Instant::now());
        let done = |outcome| settle(refusal(outcome).unwrap_or(Settlement::Published));
        self.bus.publish(publish, Box::new(done));
    }

    /// Takes a message for the application that a backend is to answer, and settles it with the answer. `session`: the
    /// counter of the socket that asks; when it ends, nobody waits any more.
    pub fn request(&self, message: Message, session: Option<u64>, settle: Settle) {
        let now = Instant::now();
        let Target::App(key) = message.target.clone() else { return self.accept(message, settle) };
        let settle = self.traced(&message, settle);
        let queue = self.is_linked().then(|| self.bus.reply_queue()).flatten();
        let Some(queue) = queue else { return settle(unavailable()) };
        if message.is_expired(now) {
            return settle(failed(Code::Expired, "the time to live is over"));
        }
        let id = Correlation::generate();
        let request = Request {
            session,
            sender: Scope::of(&message.sender),
            key: key.clone(),
            due: message.expires.unwrap_or(now + Duration::from_millis(REQUEST_TTL_MS)),
            settle,
        };
        let added = self.requests().add(id, request);
        if let Err(Full(settle)) = added {
            return settle(failed(Code::Overloaded, "too many requests await their answer; try again"));
        }
        let to = ReplyTo { queue, correlation_id: id.to_string() };
        let order = order_key(&message.target);
        self.trace().note(&message.id, || Step::SentToBackends);
        let publish = application::publish(key, &message, self.node(), Some(to), order, now);
        let requests = self.requests.clone();
        let done = move |outcome| {
            let Some(refused) = refusal(outcome) else { return };
            let taken = requests.lock().unwrap_or_else(PoisonError::into_inner).take(id);
            if let Some(settle) = taken {
                settle(refused);
            }
        };
        self.bus.publish(publish, Box::new(done));
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that await an answer.
    pub fn requests_pending(&self) -> usize {
        self.requests().len()
    }

    /// Takes the request that an answer is for: whoever has it settles it. `None`: the answer is late, or a second one,
    /// or for nobody here.
    pub fn take_request(&self, correlation_id: &str) -> Option<Settle> {
        let id = correlation_id.parse().ok()?;
        self.requests().take(id)
    }

    /// A session has ended: its requests have nobody to answer.
    pub fn drop_requests_of(&self, session: u64) {
        let taken = self.requests().take_of_session(session);
        taken.into_iter().for_each(|settle| settle(no_answer("the session has ended")));
    }

    /// No answer can come any more, for this reason.
    pub fn give_up_requests(&self, why: &str) {
        let taken = self.requests().take_all();
        taken.into_iter().for_each(|settle| settle(no_answer(why)));
    }

    pub(super) fn expire_requests(&self, now: Instant) {
        let taken = self.requests().take_due(now, EXPIRED_MAX);
        taken.into_iter().for_each(|settle| settle(no_answer("no backend has answered in time")));
    }
}
