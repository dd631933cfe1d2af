//! What waits until the application has decided (hooks): an `auth` frame or CONNECT, and subscriptions. The sessions go on
//! meanwhile.

use std::collections::HashSet;
use std::rc::Rc;

use crate::auth::Identity;
use crate::budgets::Share;
use crate::error::{Code, Error};
use crate::ids::ChannelName;
use crate::protocol::close::CloseCode;
use crate::router::hooks::{Hook, Question};
use crate::session::replies::{Awaited, Fate, ReplyPermit};
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;

/// Subscriptions that wait, by the session's counter. No more than requests that have no reply.
pub(super) type Undecided = HashSet<(u64, ChannelName)>;

fn close_code(error: &Error) -> CloseCode {
    match error.code {
        Code::Forbidden => CloseCode::Forbidden,
        _ => CloseCode::OverCapacity,
    }
}

impl WorkerState {
    /// Goes on with a session whose first frame told its user, if that one may connect.
    pub(super) fn when_may_connect(
        self: &Rc<Self>,
        session: &Rc<Session>,
        identity: Identity,
        then: impl FnOnce(&Self, &Rc<Session>, Identity) + 'static,
    ) {
        if !self.router.has_hook(Hook::Connect) {
            return then(self, session, identity);
        }
        session.is_undecided.set(true);
        let question = Question::connect(&identity.user, session.share.as_ref().map(Share::address));
        let (worker, session) = (self.clone(), session.clone());
        // Owned by the worker's thread; the hook has a deadline.
        tokio::task::spawn_local(async move {
            let verdict = worker.router.allowed(question).await;
            session.is_undecided.set(false);
            match verdict {
                // It may have been closed meanwhile.
                _ if session.phase.get() != Phase::Unauthenticated => {}
                Ok(()) => then(&worker, &session, identity),
                Err(error) => session.close(close_code(&error), 0, worker.now()),
            }
        });
    }

    /// Subscribes a session that may do so as far as its token says, if the application lets it. `refused` undoes what was
    /// done before.
    pub(super) fn subscribe_if_allowed(
        self: &Rc<Self>,
        session: &Rc<Session>,
        (awaited, permit): (Awaited, ReplyPermit),
        channel: &ChannelName,
        presence: Option<bool>,
        refused: impl FnOnce(&Session) + 'static,
    ) {
        let Some(identity) = session.identity().filter(|_| self.router.has_hook(Hook::Subscribe)) else {
            return self.subscribe_now(session, awaited, channel, presence, permit);
        };
        let (question, key) =
            (Question::subscribe(&identity.user, channel), (session.counter, channel.clone()));
        self.undecided.borrow_mut().insert(key.clone());
        let (worker, session) = (self.clone(), session.clone());
        // The same.
        tokio::task::spawn_local(async move {
            let verdict = worker.router.allowed(question).await;
            let (_, channel) = &key;
            // The client may have gone, or left the channel meanwhile.
            let is_wanted = worker.undecided.borrow_mut().remove(&key) || session.subscribes_to(channel);
            let verdict = verdict.and_then(|()| match is_wanted {
                true => worker.check_room(&session, channel),
                false => Err(Error::bad_request("subscribe: taken back before it was decided")),
            });
            match verdict {
                _ if !session.is_open() => {}
                Ok(()) => worker.subscribe_now(&session, awaited, channel, presence, permit),
                Err(error) => {
                    refused(&session);
                    permit.reply(awaited, Fate::Refused(error));
                }
            }
        });
    }
}
