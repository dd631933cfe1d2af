//! What backends are told of sessions, users and channels, over the exchange `warren.events`.
//!
//! Whether a user is online in the cluster is known to every node's directory, by hash. So every node that tells events
//! keeps the same ledger, and tells the others the names behind its own keys. One node speaks for all: the oldest, so that
//! a node that joins changes nothing. When it is gone the next one repeats what it found in the last second, in case the
//! other had no time to say it, and then tells everything in a snapshot. Each node tells of its own sessions; those of a
//! node that died end with an empty snapshot, told by the node that speaks.
//!
//! Events wait in a bounded queue until the broker has confirmed them, in order. When the link to the broker is lost, or
//! too many wait, they are dropped, and a snapshot takes their place. So a backend that applies events and snapshots in
//! the order in which they come ends with the truth.
//!
//! Reading order: `event` is what backends get; `ledger` who is online (pure); `outbox` what waits (pure); `words` what
//! nodes tell each other; `service` the task that lets it run.

mod event;
mod ledger;
mod outbox;
mod service;
mod words;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use self::event::Event;
use self::ledger::Name;
use self::outbox::Sent;
use super::Router;
use crate::config::EventKinds;
use crate::ids::{ChannelName, SessionId, UserId};

pub use words::{NameWord, NAMES_KIND};

/// News that waits for the service, of each kind. Overflow policy: it is dropped, and everything is looked at again.
const NEWS_MAX: usize = 65_536;

/// What the service has to look at.
#[derive(Debug, Default)]
struct News {
    /// Names that came to this node or left it.
    names: Vec<(Name, bool)>,
    sessions: Vec<Event>,
    words: Vec<NameWord>,
    answers: Vec<(Sent, bool)>,
    /// Some names or sessions were dropped.
    is_lost: bool,
}

/// Its lock is innermost, and nothing is called while it is held.
#[derive(Debug)]
pub(super) struct Events {
    kinds: EventKinds,
    news: Mutex<News>,
    wake: Notify,
}

impl Events {
    pub(super) fn new(kinds: EventKinds) -> Self {
        Self { kinds, news: Mutex::default(), wake: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put<T>(&self, item: T, list: impl Fn(&mut News) -> &mut Vec<T>) {
        {
            let mut news = self.lock();
            let items = list(&mut news);
            if items.len() < NEWS_MAX {
                items.push(item);
            } else {
                news.is_lost = true;
            }
        }
        self.wake.notify_one();
    }

    /// The user's first session is here, or the last one is gone: to be called after the directory has been told. Names of
    /// both kinds are needed, since the directory's keys do not tell which they are of.
    pub(super) fn user(&self, user: &UserId, is_here: bool) {
        if self.kinds.are_of_cluster() {
            self.put((Name::User(user.clone()), is_here), |news| &mut news.names);
        }
    }

    /// The same of a channel's first and last subscriber.
    pub(super) fn channel(&self, channel: &ChannelName, is_here: bool) {
        if self.kinds.are_of_cluster() {
            self.put((Name::Channel(channel.clone()), is_here), |news| &mut news.names);
        }
    }

    pub(super) fn session(&self, session: impl FnOnce() -> SessionId, user: &UserId, is_open: bool) {
        if self.kinds.sessions {
            let (session, user) = (session(), user.clone());
            let event = match is_open {
                true => Event::SessionOpened { session, user },
                false => Event::SessionClosed { session, user },
            };
            self.put(event, |news| &mut news.sessions);
        }
    }
}

impl Router {
    /// Another node's word about names.
    pub fn on_name_word(&self, word: NameWord) {
        if self.events.kinds.are_of_cluster() {
            self.events.put(word, |news| &mut news.words);
        }
    }
}
