//! How many users are in a channel, asked of the nodes with at most one question under way for each channel.
//!
//! Whoever comes while a question is under way waits for the next one, since the answers to the first may be older than
//! their own subscription. So a storm of subscriptions to one channel costs a question for each round trip, and not one
//! for each subscription.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Router;
use crate::ids::ChannelName;

/// What somebody who waits is told.
enum Turn {
    Counted(u64),
    /// To ask now, for oneself and for all who came since.
    Ask(Asking),
}

type Waiting = Vec<oneshot::Sender<Turn>>;

/// The channels for which a question is under way, each with those who wait for the next one. Their number is that of
/// the requests that have no reply yet, which sessions and workers bound.
#[derive(Default)]
pub(super) struct Counts(Mutex<HashMap<ChannelName, Waiting>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelName, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to ask, or, while somebody else asks, the end of a channel through which it will come.
    fn turn(self: &Arc<Self>, channel: &ChannelName) -> Result<Asking, oneshot::Receiver<Turn>> {
        let mut asked = self.lock();
        if let Some(waiting) = asked.get_mut(channel) {
            let (tell, told) = oneshot::channel();
            waiting.push(tell);
            return Err(told);
        }
        asked.insert(channel.clone(), Waiting::new());
        Ok(Asking { counts: Some(self.clone()), channel: channel.clone() })
    }
}

/// The right to ask for a channel. When it is dropped, wherever that is, the next one who waits gets it.
struct Asking {
    /// `None`: the right has gone to somebody else.
    counts: Option<Arc<Counts>>,
    channel: ChannelName,
}

impl Asking {
    /// Those who have come so far; what comes from now on waits for the next question.
    fn take_waiting(&self) -> Waiting {
        let Some(counts) = &self.counts else { return Waiting::new() };
        counts.lock().get_mut(&self.channel).map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(counts) = self.counts.take() else { return };
        loop {
            let next = {
                let mut asked = counts.lock();
                let next = asked.get_mut(&self.channel).and_then(Waiting::pop);
                if next.is_none() {
                    asked.remove(&self.channel);
                }
                next
            };
            let Some(next) = next else { return };
            let asking = Asking { counts: Some(counts.clone()), channel: self.channel.clone() };
            match next.send(Turn::Ask(asking)) {
                // One who has gone away does not take it.
                Err(Turn::Ask(mut refused)) => refused.counts = None,
                _ => return,
            }
        }
    }
}

impl Router {
    /// How many users subscribe to a channel, on all nodes: at least as new as the call. Above
    /// [`USERS_LISTED_MAX`](super::ask::USERS_LISTED_MAX) users with sessions on several nodes are counted on each of
    /// them. A node that does not answer delays it by the deadline of a question, and is not counted.
    pub async fn count_in(self: &Arc<Self>, channel: &ChannelName) -> u64 {
        let asking = match self.counts.turn(channel) {
            Ok(asking) => asking,
            Err(told) => match told.await {
                Ok(Turn::Ask(asking)) => asking,
                Ok(Turn::Counted(count)) => return count,
                // The one who asked for both has ended.
                Err(_) => return self.members_of(channel).await.count,
            },
        };
        let waiting = asking.take_waiting();
        let count = self.members_of(channel).await.count;
        for one in waiting {
            // One who has gone away needs no count.
            let _ = one.send(Turn::Counted(count));
        }
        count
    }
}
