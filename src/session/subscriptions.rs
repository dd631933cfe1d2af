//! The subscriptions of a worker's sessions: which of them get the messages of a channel.

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;

use crate::error::{Code, Error};
use crate::ids::ChannelName;
use crate::protocol::reply::Reply;
use crate::session::replies::{Awaited, Fate};
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Kept by the worker, so that a message for a channel costs a walk over its subscribers and nothing for others.
#[derive(Default)]
pub(super) struct Subscriptions(HashMap<ChannelName, Slab<Rc<Session>>>);

/// The channels of one session, each with the session's place among the subscribers.
pub(super) type OwnChannels = HashMap<ChannelName, usize>;

impl Subscriptions {
    pub(super) fn of(&self, channel: &ChannelName) -> impl Iterator<Item = &Rc<Session>> {
        let sessions = self.0.get(channel).into_iter().flatten();
        sessions.map(|(_, session)| session).filter(|session| session.is_open())
    }

    fn add(&mut self, channel: &ChannelName, session: &Rc<Session>) -> usize {
        self.0.entry(channel.clone()).or_default().insert(session.clone())
    }

    fn remove(&mut self, channel: &ChannelName, place: usize) {
        let Some(sessions) = self.0.get_mut(channel) else { return };
        sessions.try_remove(place);
        if sessions.is_empty() {
            self.0.remove(channel);
        }
    }
}

impl WorkerState {
    /// The session gets the channel's messages from now on; the reply tells that messages published anywhere do.
    pub(super) fn subscribe(
        &self,
        session: &Rc<Session>,
        id: Option<&str>,
        channel: &ChannelName,
    ) -> Result<(), Error> {
        let identity = session.identity();
        if !identity.is_some_and(|identity| identity.caps.may_subscribe(channel)) {
            return Err(Error::new(Code::Forbidden, "this session may not subscribe to that channel"));
        }
        let is_new = {
            let channels = session.channels.borrow();
            let count = channels.as_ref().map_or(0, |channels| channels.len());
            let is_new = !channels.as_ref().is_some_and(|channels| channels.contains_key(channel));
            if is_new && count >= self.settings.channels_max {
                let max = self.settings.channels_max;
                return Err(Error::bad_request(format!("subscribe: at most {max} channels of one session")));
            }
            is_new
        };
        if session.in_flight.get() >= self.settings.in_flight_max {
            return Err(Error::new(Code::Overloaded, "too many requests await their reply"));
        }
        let permit = self.replies.reserve()?;
        session.in_flight.set(session.in_flight.get() + 1);
        let awaited = Awaited { counter: session.counter, request: id.map(str::to_owned) };
        let done = move |count| permit.reply(awaited, Fate::Subscribed { count });
        if !is_new {
            self.router.confirm_subscription(channel, Box::new(done));
            return Ok(());
        }
        // First here, then at the hub: a command for the channel finds its subscribers.
        let place = self.subscriptions.borrow_mut().add(channel, session);
        session.channels.borrow_mut().get_or_insert_default().insert(channel.clone(), place);
        self.router.open_subscription(channel, self.index(), Box::new(done));
        Ok(())
    }

    /// Has no effect on a channel that the session does not subscribe to.
    pub(super) fn unsubscribe(&self, session: &Session, channel: &ChannelName) {
        let place = session.channels.borrow_mut().as_mut().and_then(|channels| channels.remove(channel));
        if let Some(place) = place {
            self.subscriptions.borrow_mut().remove(channel, place);
            self.router.close_subscription(channel, self.index());
        }
    }

    /// The session has ended.
    pub(super) fn unsubscribe_from_all(&self, session: &Session) {
        let channels = session.channels.borrow_mut().take();
        for (channel, place) in channels.into_iter().flat_map(|channels| *channels) {
            self.subscriptions.borrow_mut().remove(&channel, place);
            self.router.close_subscription(&channel, self.index());
        }
    }

    /// A new token may allow less: the session leaves the channels that it may no longer have, and is told so.
    pub(super) fn leave_forbidden_channels(&self, session: &Session) {
        let Some(identity) = session.identity() else { return };
        let forbidden: Vec<ChannelName> = match session.channels.borrow().as_ref() {
            Some(channels) => {
                (channels.keys()).filter(|channel| !identity.caps.may_subscribe(channel)).cloned().collect()
            }
            None => return,
        };
        for channel in forbidden {
            self.unsubscribe(session, &channel);
            session.send(&session.codec.unsubscribed(&channel, "forbidden"), None, self.now());
        }
    }

    pub(super) fn on_unsubscribe(&self, session: &Session, id: Option<&str>, channel: &ChannelName) {
        self.unsubscribe(session, channel);
        session.reply(id, &Reply::Ok, self.now());
    }
}
