//! Who is in the channels that somebody listens to: kept by the nodes that have listeners, told by the nodes that have
//! users.
//!
//! The directory carries only hashes, so names take a way of their own, and only where somebody asked for them. A node
//! whose first session subscribes with `presence: true` sends `watch` to the nodes that have the channel, as the directory
//! names them. Each answers with its users, and from then on tells what changes, as long as it is asked again every few
//! seconds. So a channel without listeners costs nothing, and one with listeners a word for each change and listening node,
//! at most twenty a second. Above [`USERS_LISTED_MAX`](super::ask::USERS_LISTED_MAX) users only numbers are told.
//!
//! What keeps it true:
//! - Both sides compare what they told last with what is true now, and tell the difference. A change that is noticed
//!   twice, or is undone in between, does no harm.
//! - A node whose word was not confirmed repeats all of it. A node that missed a word sees it by the number, and one that
//!   has got a new link asks all others. Every four seconds versions are compared in any case.
//! - Which nodes count is the directory's word: the users of a node that is gone go a little later, since it may only
//!   have got a new link.
//! - A reply with a number or a list is made by the worker from what its listeners were told last, after the nodes have
//!   been asked, so that the changes that follow fit to it.
//!
//! Reading order: `words` go over the wire; `members` compares and merges; `outgoing` (what others are told) and
//! `incoming` (what is known of others, and what listeners were told) are joined in `state`, a pure machine; `service`
//! is the task that lets it run.

mod incoming;
mod members;
mod outgoing;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::Router;
use crate::hub::Ticket;
use crate::ids::{ChannelName, NodeId};

pub use words::{Word, ROSTER_KIND};

/// Words of other nodes that wait for the service. Overflow policy: the newest is dropped; the next one, or the next
/// comparison of versions, shows that it is missing.
const WORDS_MAX: usize = 4_096;

/// What the service has to look at. Everything but the words is bounded by the channels and requests of sessions here,
/// which have bounds of their own.
#[derive(Debug, Default)]
struct Inbox {
    /// How many listeners each worker has.
    listeners: HashMap<ChannelName, SmallVec<[(usize, u32); 2]>>,
    /// Channels whose changes the service wants to know.
    followed: HashSet<ChannelName>,
    news: News,
}

#[derive(Debug, Default)]
struct News {
    /// Channels whose users here may be others.
    changed: HashSet<ChannelName>,
    /// Channels whose first listener came, or whose last one is gone.
    watched: HashSet<ChannelName>,
    tickets: Vec<(ChannelName, Ticket)>,
    words: Vec<Word>,
    /// What was not confirmed, and which nodes have no queue.
    failed: Vec<(ChannelName, SmallVec<[NodeId; 2]>)>,
}

/// Its lock is innermost, and nothing is called while it is held.
#[derive(Debug, Default)]
pub(super) struct Rosters {
    inbox: Mutex<Inbox>,
    /// There is news.
    wake: Notify,
}

impl Rosters {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The users of a channel here are others: to be called after the hub has changed.
    pub(super) fn changed(&self, channel: &ChannelName) {
        let is_news = {
            let Inbox { followed, news, .. } = &mut *self.lock();
            followed.contains(channel) && news.changed.insert(channel.clone())
        };
        if is_news {
            self.wake.notify_one();
        }
    }

    fn begin(&self, channel: &ChannelName, worker: usize) {
        {
            let Inbox { listeners, news, .. } = &mut *self.lock();
            let workers = listeners.entry(channel.clone()).or_default();
            match workers.iter_mut().find(|(of, _)| *of == worker) {
                Some((_, count)) => *count += 1,
                None => workers.push((worker, 1)),
            }
            news.watched.insert(channel.clone());
        }
        self.wake.notify_one();
    }

    fn end(&self, channel: &ChannelName, worker: usize) {
        {
            let Inbox { listeners, news, .. } = &mut *self.lock();
            let Some(workers) = listeners.get_mut(channel) else { return };
            let Some(at) = workers.iter().position(|(of, _)| *of == worker) else { return };
            workers[at].1 -= 1;
            if workers[at].1 == 0 {
                workers.swap_remove(at);
            }
            if workers.is_empty() {
                listeners.remove(channel);
                news.watched.insert(channel.clone());
            }
        }
        self.wake.notify_one();
    }

    fn ask(&self, channel: &ChannelName, ticket: Ticket) {
        self.lock().news.tickets.push((channel.clone(), ticket));
        self.wake.notify_one();
    }

    fn hear(&self, word: Word) {
        {
            let words = &mut self.lock().news.words;
            if words.len() >= WORDS_MAX {
                tracing::warn!("words about presence come faster than they are taken; one was dropped");
                return;
            }
            words.push(word);
        }
        self.wake.notify_one();
    }

    fn not_confirmed(&self, channel: ChannelName, gone: SmallVec<[NodeId; 2]>) {
        self.lock().news.failed.push((channel, gone));
        self.wake.notify_one();
    }
}

impl Router {
    /// A session of this worker listens to who comes and goes in a channel.
    pub fn begin_listening(&self, channel: &ChannelName, worker: usize) {
        self.rosters.begin(channel, worker);
    }

    /// The inverse of [`Router::begin_listening`].
    pub fn end_listening(&self, channel: &ChannelName, worker: usize) {
        self.rosters.end(channel, worker);
    }

    /// Has the nodes asked who is in a channel that the ticket's worker listens to. The worker is told with a
    /// [`Command::Roster`](crate::hub::Command::Roster) that names the ticket, within two seconds unless its queue is full.
    pub fn ask_roster(&self, channel: &ChannelName, ticket: Ticket) {
        self.rosters.ask(channel, ticket);
    }

    /// Another node's word about who is in a channel.
    pub fn on_roster_word(&self, word: Word) {
        self.rosters.hear(word);
    }
}
