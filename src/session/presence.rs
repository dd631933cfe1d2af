//! Questions of a client: whether a user is online, and who is in a channel.

use std::rc::Rc;

use crate::error::{Code, Error};
use crate::protocol::reply::{OneSession, Presence};
use crate::protocol::request::PresenceOf;
use crate::router::ask::Found;
use crate::router::channels::Members;
use crate::session::replies::{Awaited, Fate};
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Asks the nodes; the reply comes when they have answered, or in a few seconds with what is known by then.
pub(super) fn ask(
    worker: &Rc<WorkerState>,
    session: &Rc<Session>,
    id: Option<&str>,
    of: PresenceOf,
) -> Result<(), Error> {
    let identity = session.identity();
    let may = identity.is_some_and(|identity| match &of {
        PresenceOf::User(user) => identity.caps.may_see_user(user, &identity.user),
        PresenceOf::Channel(channel) => {
            identity.caps.may_see_channel(channel, session.subscribes_to(channel))
        }
    });
    if !may {
        return Err(Error::new(Code::Forbidden, "this session may not see who is there"));
    }
    if let PresenceOf::Channel(channel) = &of {
        if session.listens_to(channel) {
            return worker.ask_as_listener(session, id, channel);
        }
    }
    if session.in_flight.get() >= worker.settings.in_flight_max {
        return Err(Error::new(Code::Overloaded, "too many requests await their reply"));
    }
    let permit = worker.replies.reserve()?;
    session.in_flight.set(session.in_flight.get() + 1);
    let awaited = Awaited { counter: session.counter, request: id.map(str::to_owned) };
    let router = worker.router.clone();
    // Owned by the worker's thread; ends by itself with the deadline of the question.
    tokio::task::spawn_local(async move {
        let presence = match of {
            PresenceOf::User(user) => of_user(router.sessions_of(&user).await),
            PresenceOf::Channel(channel) => {
                let Members { count, users, partial } = router.members_of(&channel).await;
                Presence::Channel { count, users, partial }
            }
        };
        permit.reply(awaited, Fate::Presence(presence));
    });
    Ok(())
}

fn of_user(found: Found) -> Presence {
    let Found { sessions, partial, .. } = found;
    let sessions: Vec<OneSession> = (sessions.into_iter())
        .map(|of| OneSession { session: of.session, node: of.node, since_ms: of.since_ms })
        .collect();
    Presence::User { online: !sessions.is_empty(), sessions, partial }
}
