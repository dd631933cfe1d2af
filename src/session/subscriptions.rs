//! The subscriptions of a worker's sessions: which of them get the messages of a channel.

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;
use tokio::sync::oneshot;

use crate::error::{Code, Error};
use crate::hub::Tally;
use crate::ids::ChannelName;
use crate::protocol::reply::Reply;
use crate::router::presence::Subscribed;
use crate::session::replies::{Awaited, Fate, ReplyPermit};
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Kept by the worker, so that a message for a channel costs a walk over its subscribers and nothing for others.
#[derive(Default)]
pub(super) struct Subscriptions(HashMap<ChannelName, Slab<Rc<Session>>>);

/// The channels of one session.
pub(super) type OwnChannels = HashMap<ChannelName, Own>;

/// The subscription of one session to one channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// Among the subscribers.
    place: usize,
    by: By,
    /// The session is told who comes and goes.
    pub(super) listens: bool,
}

/// Who had a session subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Client,
    /// The claim `channels`.
    Token,
    /// The HTTP API: whatever tokens allow.
    Server,
}

/// What came of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    New,
    AlreadyIn,
    /// The session has as many channels as it may.
    NoRoom,
}

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
    /// `refused` undoes what was done before, if the application does not allow it.
    pub(super) fn subscribe(
        self: &Rc<Self>,
        session: &Rc<Session>,
        id: Option<&str>,
        channel: &ChannelName,
        presence: Option<bool>,
        refused: impl FnOnce(&Session) + 'static,
    ) -> Result<(), Error> {
        let identity = session.identity();
        if !identity.as_ref().is_some_and(|identity| identity.may_subscribe(channel)) {
            return Err(Error::new(Code::Forbidden, "this session may not subscribe to that channel"));
        }
        let may_see =
            || identity.as_ref().is_some_and(|identity| identity.caps.may_see_channel(channel, true));
        if presence == Some(true) && !may_see() {
            return Err(Error::new(Code::Forbidden, "this session may not see who is in that channel"));
        }
        self.check_room(session, channel)?;
        if session.in_flight.get() >= self.settings.in_flight_max {
            return Err(Error::new(Code::Overloaded, "too many requests await their reply"));
        }
        let permit = self.replies.reserve()?;
        session.in_flight.set(session.in_flight.get() + 1);
        let awaited = Awaited { counter: session.counter, request: id.map(str::to_owned) };
        self.subscribe_if_allowed(session, (awaited, permit), channel, presence, refused);
        Ok(())
    }

    pub(super) fn check_room(&self, session: &Session, channel: &ChannelName) -> Result<(), Error> {
        if self.room_for(session, channel) == Put::NoRoom {
            let max = self.settings.channels_max;
            return Err(Error::bad_request(format!("subscribe: at most {max} channels of one session")));
        }
        Ok(())
    }

    /// The same once nothing stands against it.
    pub(super) fn subscribe_now(
        &self,
        session: &Rc<Session>,
        awaited: Awaited,
        channel: &ChannelName,
        presence: Option<bool>,
        permit: ReplyPermit,
    ) {
        let (tell, told) = oneshot::channel();
        let done = move || {
            // The worker may have ended by then.
            let _ = tell.send(());
        };
        self.put_into(session, channel, By::Client, Box::new(done));
        let (router, name) = (self.router.clone(), channel.clone());
        // The tasks are owned by the worker's thread; they end by themselves with the deadlines of the directory and of
        // the question.
        if presence == Some(true) {
            let ticket = self.listen(session, awaited.request.as_deref(), channel, permit);
            tokio::task::spawn_local(async move {
                let _ = told.await;
                router.ask_roster(&name, ticket);
            });
            return;
        }
        if presence == Some(false) {
            self.stop_listening(session, channel);
        }
        tokio::task::spawn_local(async move {
            let _ = told.await;
            let count = router.count_in(&name).await;
            permit.reply(awaited, Fate::Subscribed { count });
        });
    }

    /// Subscribes a session, unless it has as many channels as it may; `done` is called otherwise, when messages that are
    /// published anywhere reach it.
    pub(super) fn put_into(
        &self,
        session: &Rc<Session>,
        channel: &ChannelName,
        by: By,
        done: Subscribed,
    ) -> Put {
        let Some(identity) = session.identity() else { return Put::NoRoom };
        match self.room_for(session, channel) {
            Put::New => {}
            Put::AlreadyIn => {
                self.router.confirm_subscription(channel, done);
                return Put::AlreadyIn;
            }
            Put::NoRoom => return Put::NoRoom,
        }
        // First here, then at the hub: a command for the channel finds its subscribers.
        let place = self.subscriptions.borrow_mut().add(channel, session);
        session
            .channels
            .borrow_mut()
            .get_or_insert_default()
            .insert(channel.clone(), Own { place, by, listens: false });
        self.router.open_subscription(channel, self.index(), &identity.user, done);
        Put::New
    }

    fn room_for(&self, session: &Session, channel: &ChannelName) -> Put {
        let channels = session.channels.borrow();
        let Some(channels) = channels.as_ref() else { return Put::New };
        match channels.contains_key(channel) {
            true => Put::AlreadyIn,
            false if channels.len() >= self.settings.channels_max => Put::NoRoom,
            false => Put::New,
        }
    }

    /// An order of the hub.
    pub(super) fn put_by_server(&self, session: &Rc<Session>, channel: &ChannelName, tally: Tally) {
        // Before any message for the channel can come.
        // In STOMP only the client can subscribe, since it names the subscription.
        if session.stomp().is_some() {
            return;
        }
        if self.room_for(session, channel) == Put::New {
            session.tell_subscribed(channel, self.now());
        }
        self.put_into(session, channel, By::Server, Box::new(move || tally.count()));
    }

    /// The inverse of [`WorkerState::put_by_server`].
    pub(super) fn take_out_by_server(&self, session: &Session, channel: &ChannelName, tally: Tally) {
        if session.subscribes_to(channel) {
            self.unsubscribe(session, channel);
            session.tell_unsubscribed(channel, "removed", self.now());
            tally.count();
        }
    }

    /// Has no effect on a channel that the session does not subscribe to.
    pub(super) fn unsubscribe(&self, session: &Session, channel: &ChannelName) {
        self.undecided.borrow_mut().remove(&(session.counter, channel.clone()));
        if session.listens_to(channel) {
            self.stop_listening(session, channel);
        }
        let own = session.channels.borrow_mut().as_mut().and_then(|channels| channels.remove(channel));
        if let (Some(own), Some(identity)) = (own, session.identity()) {
            self.subscriptions.borrow_mut().remove(channel, own.place);
            self.router.close_subscription(channel, self.index(), &identity.user);
        }
    }

    /// The session has ended.
    pub(super) fn unsubscribe_from_all(&self, session: &Session) {
        let channels = session.channels.borrow_mut().take();
        let Some(identity) = session.identity() else { return };
        for (channel, own) in channels.into_iter().flat_map(|channels| *channels) {
            if own.listens {
                self.stop_listening(session, &channel);
            }
            self.subscriptions.borrow_mut().remove(&channel, own.place);
            self.router.close_subscription(&channel, self.index(), &identity.user);
        }
    }

    /// A new token may allow less: the session leaves the channels that it may no longer have, and is told so.
    pub(super) fn leave_forbidden_channels(&self, session: &Session) {
        let Some(identity) = session.identity() else { return };
        let forbidden: Vec<ChannelName> = match session.channels.borrow().as_ref() {
            Some(channels) => {
                let forbidden = channels
                    .iter()
                    .filter(|(channel, own)| own.by != By::Server && !identity.may_subscribe(channel));
                forbidden.map(|(channel, _)| channel.clone()).collect()
            }
            None => return,
        };
        self.stop_listening_where_forbidden(session);
        for channel in forbidden {
            self.unsubscribe(session, &channel);
            session.tell_unsubscribed(&channel, "forbidden", self.now());
        }
    }

    pub(super) fn on_unsubscribe(&self, session: &Session, id: Option<&str>, channel: &ChannelName) {
        self.unsubscribe(session, channel);
        session.reply(id, &Reply::Ok, self.now());
    }
}
