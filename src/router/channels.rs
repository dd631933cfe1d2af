//! Messages for channels: at most once, to whoever subscribes, on every node.
//!
//! Subscribers on this node get a message from the hub at once, other nodes get it through the bus; this node's own
//! copy of a fanout is dropped as a repeat. So there is one way to each subscriber, and the messages of one publisher
//! cannot overtake each other: here they go through the hub in the order in which they were accepted, and all messages
//! for one channel leave with one order key, whichever exchange takes them.
//!
//! The session that wants no echo is always one of this node, the origin: nothing about it has to travel.
//!
//! Lock order: `held`, then the taken ids of broadcasts, then the hub.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::Notify;

use super::ask::{Found, USERS_LISTED_MAX};
use super::strategy::{spread, Spread};
use super::{failed, order_key, overloaded, unavailable, Router, Settle};
use crate::bus::{Destination, Outcome};
use crate::delivery::envelope::{Envelope, Scope};
use crate::delivery::peer_words::Ask;
use crate::delivery::seen::SeenKey;
use crate::directory::Key;
use crate::error::Code;
use crate::hub::Full;
use crate::ids::{ChannelName, UserId};
use crate::protocol::message::{Message, Rendered, Settlement};
use crate::protocol::target::Target;

/// Messages for subscribers here that wait for room at a worker. Overflow policy: the publisher is told `overloaded`.
const HELD_MAX: usize = 1_024;

/// A message that a worker had no room for.
#[derive(Debug)]
struct Held {
    channel: ChannelName,
    message: Arc<Rendered>,
    except: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Channels {
    held: Mutex<VecDeque<Held>>,
    /// Something was put into `held`.
    wake: Notify,
}

impl Channels {
    fn held(&self) -> MutexGuard<'_, VecDeque<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Router {
    /// [`Router::accept`] for a session that does not want its own message back. `counter`: see
    /// [`crate::hub::Local::counter`]. Only messages for channels come back to their publishers, so that it makes
    /// no difference for others.
    pub fn accept_without_echo(&self, message: Message, counter: u64, settle: Settle) {
        if !matches!(message.target, Target::Channel(_)) {
            return self.accept(message, settle);
        }
        let settle = self.traced(&message, settle);
        if !self.is_linked() {
            return settle(unavailable());
        }
        if message.is_expired(Instant::now()) {
            return settle(failed(Code::Expired, "the time to live is over"));
        }
        self.publish_to_channel(message, Some(counter), settle);
    }

    pub(super) fn publish_to_channel(&self, message: Message, except: Option<u64>, settle: Settle) {
        let Target::Channel(channel) = message.target.clone() else {
            return settle(failed(Code::BadRequest, "not a channel"));
        };
        let now = Instant::now();
        let key = order_key(&message.target);
        let envelope = Envelope { message, origin: None, answer_by: None };
        let audience = self.directory.audience(Key::channel(&channel));
        let to = match spread(audience.nodes, audience.peers, audience.is_sure) {
            Spread::Nobody => None,
            Spread::Nodes(nodes) => Some(Destination::Nodes(nodes)),
            Spread::Everyone => Some(Destination::Broadcast),
        };
        if let Some(to) = &to {
            self.trace_publish(&envelope.message, to);
        }
        let publish = to.map(|to| envelope.to_publish(to, now, key));
        let message = Rendered::new(Arc::new(envelope.message));
        if self.hand_to_subscribers(channel, message, except, now).is_err() {
            return settle(overloaded());
        }
        let Some(publish) = publish else { return settle(Settlement::Published) };
        let meant: Vec<_> = match &publish.to {
            Destination::Nodes(nodes) => {
                nodes.iter().map(|node| (node.clone(), self.directory.incarnation_of(node))).collect()
            }
            _ => Vec::new(),
        };
        let directory = self.directory.clone();
        let done = move |outcome| {
            settle(match outcome {
                Outcome::Confirmed => Settlement::Published,
                Outcome::Unroutable => {
                    // Nodes that are gone have no subscribers: those who are connected get it.
                    for (node, incarnation) in &meant {
                        directory.returned(node, *incarnation);
                    }
                    Settlement::Published
                }
                Outcome::Overloaded => overloaded(),
                Outcome::Refused | Outcome::Unavailable => unavailable(),
            })
        };
        self.bus.publish(publish, Box::new(done));
    }

    /// Hands a message of this origin to the subscribers here, unless it came before. Behind others that wait for room
    /// it waits too. `Err`: too many wait.
    fn hand_to_subscribers(
        &self,
        channel: ChannelName,
        message: Arc<Rendered>,
        except: Option<u64>,
        now: Instant,
    ) -> Result<(), NoRoom> {
        let mut held = self.channels.held();
        let mut seen = self.seen_broadcasts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = seen_key(message.message());
        if seen.get(key).is_some() {
            return Ok(());
        }
        let is_shown = held.is_empty() && self.hub.deliver_channel(&channel, &message, except).is_ok();
        if !is_shown {
            if held.len() >= HELD_MAX {
                return Err(NoRoom);
            }
            held.push_back(Held { channel, message, except });
            self.channels.wake.notify_one();
        }
        // Also without subscribers: whoever subscribes before this node's own copy of a fanout is back must not get it
        // behind a newer message.
        seen.note(key, 1, now);
        Ok(())
    }

    /// Puts a user's sessions, on all nodes, into a channel. The count is of those that are in it.
    pub async fn subscribe_user(self: &Arc<Self>, user: &UserId, channel: &ChannelName) -> Found {
        self.ask(&self.other_nodes(), Ask::Subscribe(user.clone(), channel.clone())).await
    }

    /// The inverse of [`Router::subscribe_user`]. The count is of those that were in it.
    pub async fn unsubscribe_user(self: &Arc<Self>, user: &UserId, channel: &ChannelName) -> Found {
        self.ask(&self.other_nodes(), Ask::Unsubscribe(user.clone(), channel.clone())).await
    }

    /// Who subscribes to a channel, on all nodes.
    pub async fn members_of(self: &Arc<Self>, channel: &ChannelName) -> Members {
        let nodes = self.directory.nodes_of(Key::channel(channel));
        let found = self.ask(&nodes, Ask::UsersIn(channel.clone())).await;
        Members::of(found)
    }

    /// Hands out what waits for room; endless.
    pub async fn hand_out_held(self: Arc<Self>) {
        loop {
            match self.next_held(Instant::now()) {
                Ok(true) => {}
                Ok(false) => self.channels.wake.notified().await,
                Err(full) => self.hub.room(full).await,
            }
        }
    }

    /// Hands out the oldest that waits. `false`: nothing waits.
    fn next_held(&self, now: Instant) -> Result<bool, Full> {
        let mut held = self.channels.held();
        let Some(Held { channel, message, except }) = held.front() else { return Ok(false) };
        if !message.message().is_expired(now) {
            self.hub.deliver_channel(channel, message, *except)?;
        }
        held.pop_front();
        Ok(true)
    }
}

/// The users with a session that subscribes to a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Members {
    /// How many users. Without a list, users with sessions on several nodes are counted on each of them.
    pub count: u64,
    /// `None`: more than [`USERS_LISTED_MAX`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<UserId>>,
    /// Some node did not answer in time.
    pub partial: bool,
}

impl Members {
    fn of(found: Found) -> Self {
        let Found { users, count, unlisted, partial, .. } = found;
        match unlisted {
            true => Self { count, users: None, partial },
            false => {
                let count = users.len();
                let users = (count <= USERS_LISTED_MAX).then(|| users.into_iter().collect());
                Self { count: count as u64, users, partial }
            }
        }
    }
}

/// See [`HELD_MAX`].
struct NoRoom;

fn seen_key(message: &Message) -> SeenKey {
    SeenKey::new(Scope::of(&message.sender), &message.id, &message.target)
}
