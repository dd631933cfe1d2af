//! Whether a user has mail: asked at each connect, so that a storm of reconnects asks it thousands of times.
//!
//! Nearly always there is no mailbox. A look at a queue that does not exist closes its channel, which is slow.
//! Deleting what is empty and idle would answer on a channel that stays, but takes away a mailbox that somebody is
//! just filling. So the question is a message that expires at once: it comes back if there is no queue.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::debug;

use super::super::publisher::LaneInbox;
use super::admin::Admin;
use crate::bus::answer::Answer;
use crate::bus::{Destination, Lane, MailboxError, Outcome, Properties, Publish};
use crate::ids::UserId;

/// The AMQP `type` of a question. Whoever is handing out the mailbox gets it, and throws it away.
pub const QUESTION: &str = "warren.mailbox.question";
/// Mailboxes known to be there. Overflow policy: others are asked for again.
const THERE_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    Missing,
    Empty,
    /// There is mail, and nobody hands it out.
    InUse,
    /// Somebody hands it out.
    Consumed,
}

pub struct Probe {
    admin: Arc<Admin>,
    lane: LaneInbox,
    /// A question that meets mail waits behind it and counts with it, so it is asked once.
    there: Mutex<HashSet<UserId>>,
}

impl Probe {
    pub fn new(admin: Arc<Admin>, lane: LaneInbox) -> Self {
        Self { admin, lane, there: Mutex::default() }
    }

    fn there(&self) -> MutexGuard<'_, HashSet<UserId>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `asks`: the broker takes messages.
    pub async fn probe(&self, user: &UserId, queue: &str, asks: bool) -> Result<Probed, MailboxError> {
        if asks && !self.there().contains(user) && self.is_missing(queue).await {
            return Ok(Probed::Missing);
        }
        let probed = match self.admin.look(queue).await {
            Ok(None) => Probed::Missing,
            Ok(Some(content)) if content.consumed => Probed::Consumed,
            Ok(Some(content)) if content.ready > 0 => Probed::InUse,
            Ok(Some(_)) => Probed::Empty,
            Err(error) => {
                debug!(%error, queue, "cannot ask for a mailbox");
                return Err(MailboxError);
            }
        };
        let mut there = self.there();
        match probed {
            Probed::InUse | Probed::Consumed if there.len() < THERE_MAX => there.insert(user.clone()),
            _ => there.remove(user),
        };
        Ok(probed)
    }

    /// `false` also when nobody knows.
    async fn is_missing(&self, queue: &str) -> bool {
        let (tell, told) = oneshot::channel();
        let properties = Properties {
            kind: Some(QUESTION.into()),
            expiration: Some("0".into()),
            persistent: Some(false),
            ..Properties::default()
        };
        let publish = Publish {
            to: Destination::Queue(queue.to_owned()),
            properties,
            body: Bytes::new(),
            order_key: 0,
            lane: Lane::Bulk,
        };
        let done = Box::new(move |outcome| {
            let _ = tell.send(outcome);
        });
        self.lane.offer(publish, Answer::new(done));
        told.await == Ok(Outcome::Unroutable)
    }
}
