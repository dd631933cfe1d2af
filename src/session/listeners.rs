//! The sessions of a worker that listen to who comes and goes in a channel. They speak warren.v1: STOMP has no frame for it.
//!
//! The worker keeps what its listeners were told last, and makes replies from it, so that replies and changes always fit
//! to each other. Frames about presence never fill a socket's queue: a session that does not read is left out, and is sent
//! the whole roster once it reads again.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Code, Error};
use crate::hub::{Answer, Ticket};
use crate::ids::ChannelName;
use crate::protocol::presence::{Roster, RosterUpdate};
use crate::protocol::reply::{Presence, Reply};
use crate::protocol::Framing;
use crate::session::notices;
use crate::session::replies::ReplyPermit;
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// Bytes that wait for a client before it gets nothing more of what may be left out.
const OFFER_BYTES_MAX: usize = 16 * 1024;

struct Listener {
    session: Rc<Session>,
    /// Its subscription was answered: from then on it is told of changes.
    is_told: bool,
    /// It did not read when something changed, and needs the roster.
    is_behind: bool,
}

/// A session that awaits the reply to a question.
struct Waiting {
    session: Rc<Session>,
    request: Option<String>,
    subscribes: bool,
    /// Of this worker's replies; it is given back with the reply.
    _room: ReplyPermit,
}

#[derive(Default)]
struct Listening {
    /// By the counter of the session.
    listeners: HashMap<u64, Listener>,
    /// By the number of the ticket.
    waiting: HashMap<u64, Waiting>,
    update: Option<Arc<RosterUpdate>>,
}

#[derive(Default)]
pub(super) struct Listeners {
    channels: HashMap<ChannelName, Listening>,
    last_number: u64,
    /// How many are behind, in all channels.
    behind: usize,
}

impl Listening {
    fn reply(&self, waiting: &Waiting, is_partial: bool, now: u32) {
        let roster = self.update.as_ref().map(|update| &update.roster);
        let (count, users) = roster.map_or((0, None), |Roster { count, users }| (*count, users.clone()));
        waiting.session.in_flight.set(waiting.session.in_flight.get().saturating_sub(1));
        let request = waiting.request.as_deref();
        match waiting.subscribes {
            true => waiting.session.reply(request, &Reply::Subscribed { count }, now),
            false => {
                let presence = Presence::Channel { count, users, partial: is_partial };
                waiting.session.reply(request, &Reply::Presence(&presence), now);
            }
        }
    }
}

impl Session {
    pub(super) fn listens_to(&self, channel: &ChannelName) -> bool {
        self.channels
            .borrow()
            .as_ref()
            .and_then(|channels| channels.get(channel))
            .is_some_and(|own| own.listens)
    }
}

impl WorkerState {
    /// The session listens from now on. Returns the ticket of its reply, which the caller has the nodes asked for when the
    /// subscription is known to them.
    pub(super) fn listen(
        &self,
        session: &Rc<Session>,
        id: Option<&str>,
        channel: &ChannelName,
        room: ReplyPermit,
    ) -> Ticket {
        let is_new = {
            let mut channels = session.channels.borrow_mut();
            let own = channels.as_mut().and_then(|channels| channels.get_mut(channel));
            own.is_some_and(|own| !std::mem::replace(&mut own.listens, true))
        };
        if is_new {
            let listener = Listener { session: session.clone(), is_told: false, is_behind: false };
            let mut listeners = self.listeners.borrow_mut();
            let listening = listeners.channels.entry(channel.clone()).or_default();
            listening.listeners.insert(session.counter, listener);
            self.router.begin_listening(channel, self.index());
        }
        self.await_roster(session, id, channel, true, room)
    }

    /// A session that listens waits for a reply with the roster.
    pub(super) fn await_roster(
        &self,
        session: &Rc<Session>,
        id: Option<&str>,
        channel: &ChannelName,
        subscribes: bool,
        room: ReplyPermit,
    ) -> Ticket {
        let mut listeners = self.listeners.borrow_mut();
        listeners.last_number += 1;
        let number = listeners.last_number;
        let (session, request) = (session.clone(), id.map(str::to_owned));
        let waiting = Waiting { session, request, subscribes, _room: room };
        listeners.channels.entry(channel.clone()).or_default().waiting.insert(number, waiting);
        Ticket { worker: self.index(), number }
    }

    /// The session is told no more; it stays in the channel or has left it already.
    pub(super) fn stop_listening(&self, session: &Session, channel: &ChannelName) {
        if let Some(own) =
            session.channels.borrow_mut().as_mut().and_then(|channels| channels.get_mut(channel))
        {
            own.listens = false;
        }
        let mut listeners = self.listeners.borrow_mut();
        let Some(listening) = listeners.channels.get_mut(channel) else { return };
        let Some(listener) = listening.listeners.remove(&session.counter) else { return };
        self.router.end_listening(channel, self.index());
        // Whoever stops while waiting gets a reply nevertheless.
        let is_of_session = |_: &u64, waiting: &mut Waiting| waiting.session.counter == session.counter;
        let gone: Vec<_> = listening.waiting.extract_if(is_of_session).collect();
        gone.iter().for_each(|(_, waiting)| listening.reply(waiting, true, self.now()));
        if listening.listeners.is_empty() {
            listeners.channels.remove(channel);
        }
        listeners.behind -= usize::from(listener.is_behind);
    }

    /// A new token may show less: the session stays in its channels, and is told no more who comes and goes.
    pub(super) fn stop_listening_where_forbidden(&self, session: &Session) {
        let Some(identity) = session.identity() else { return };
        let forbidden: Vec<ChannelName> = {
            let channels = session.channels.borrow();
            let listens = channels.iter().flat_map(|channels| channels.iter()).filter(|(_, own)| own.listens);
            let forbidden = listens.filter(|(channel, _)| !identity.caps.may_see_channel(channel, true));
            forbidden.map(|(channel, _)| channel.clone()).collect()
        };
        forbidden.iter().for_each(|channel| self.stop_listening(session, channel));
    }

    /// Tells listeners what has changed, and answers those who asked.
    pub(super) fn on_roster(&self, channel: &ChannelName, update: &Arc<RosterUpdate>, answers: &[Answer]) {
        let now = self.now();
        let mut listeners = self.listeners.borrow_mut();
        let Listeners { channels, behind, .. } = &mut *listeners;
        let Some(listening) = channels.get_mut(channel) else { return };
        listening.update = Some(update.clone());
        let mut frames = [const { None }; Framing::COUNT];
        let told = listening.listeners.values_mut().filter(|of| of.is_told && !of.is_behind);
        for listener in told.filter(|_| update.is_anew || !update.changes.is_empty()) {
            let framing = listener.session.framing;
            let frames = frames[framing as usize].get_or_insert_with(|| match update.is_anew {
                true => notices::roster(framing, channel, &update.roster),
                false => notices::presence(framing, channel, &update.changes),
            });
            listener.is_behind = !listener.session.offer(frames, now);
            *behind += usize::from(listener.is_behind);
        }
        for Answer { ticket, is_partial } in answers.iter().filter(|of| of.ticket.worker == self.index()) {
            let Some(waiting) = listening.waiting.remove(&ticket.number) else { continue };
            listening.reply(&waiting, *is_partial, now);
            if let Some(listener) = listening.listeners.get_mut(&waiting.session.counter) {
                listener.is_told = true;
            }
        }
    }

    /// Sends the roster to those who did not read and do so again.
    pub(super) fn catch_up(&self) {
        let now = self.now();
        let mut listeners = self.listeners.borrow_mut();
        if listeners.behind == 0 {
            return;
        }
        let Listeners { channels, behind, .. } = &mut *listeners;
        for (channel, listening) in channels {
            let Some(update) = &listening.update else { continue };
            for listener in listening.listeners.values_mut().filter(|of| of.is_behind) {
                if listener.session.is_caught_up() {
                    let frame = notices::roster(listener.session.framing, channel, &update.roster);
                    listener.session.send(&frame, None, now);
                    listener.is_behind = false;
                    *behind -= 1;
                }
            }
        }
    }

    /// The reply to a question for who is in a channel that the session listens to.
    pub(super) fn ask_as_listener(
        &self,
        session: &Rc<Session>,
        id: Option<&str>,
        channel: &ChannelName,
    ) -> Result<(), Error> {
        if session.in_flight.get() >= self.settings.in_flight_max {
            return Err(Error::new(Code::Overloaded, "too many requests await their reply"));
        }
        let room = self.replies.reserve()?;
        session.in_flight.set(session.in_flight.get() + 1);
        let ticket = self.await_roster(session, id, channel, false, room);
        self.router.ask_roster(channel, ticket);
        Ok(())
    }
}

impl Session {
    /// Sends what may be left out: `false` if the client has too much to read already.
    pub(super) fn offer(&self, piece: &Bytes, now: u32) -> bool {
        let queued = self.socket.borrow().queued();
        if queued > 0 && queued + piece.len() > OFFER_BYTES_MAX.min(self.outbox_bytes_max as usize / 4) {
            return false;
        }
        self.send(piece, None, now);
        true
    }

    /// Whether the client has read everything.
    pub(super) fn is_caught_up(&self) -> bool {
        self.socket.borrow().is_flushed()
    }
}
