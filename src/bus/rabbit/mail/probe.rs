//! Whether a user has mail: asked at each connect, so it must cost next to nothing when there is none.
//!
//! Every request about a queue that does not exist closes its channel, except for the one that deletes it; and
//! that one would take away a mailbox which is just being made. So the question is a message: transient, expired
//! at birth, mandatory. It comes back when there is no queue, and vanishes in one; many of them share a channel.

use bytes::Bytes;
use tracing::debug;

use super::admin::Admin;
use super::deposits::publish_to;
use super::LaneInbox;
use crate::bus::{MailboxError, Outcome, Properties};

/// The `type` of the question. A node that hands out the mailbox meanwhile gets it, and drops it.
const KIND: &str = "warren.mailbox.probe";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    Missing,
    Empty,
    Mail,
    /// Somebody hands it out.
    Consumed,
}

pub fn is_probe(properties: &Properties) -> bool {
    properties.kind.as_deref() == Some(KIND)
}

/// Without a lane, while the broker takes no messages, the dear way.
pub async fn probe(lane: Option<&LaneInbox>, admin: &Admin, queue: &str) -> Result<Probed, MailboxError> {
    let properties = Properties {
        kind: Some(KIND.into()),
        expiration: Some("0".into()),
        persistent: Some(false),
        ..Default::default()
    };
    if let Some(lane) = lane {
        if publish_to(lane, queue, properties, Bytes::new()).await == Ok(Outcome::Unroutable) {
            return Ok(Probed::Missing);
        }
    }
    match admin.look(queue).await {
        Ok(None) => Ok(Probed::Missing),
        Ok(Some(content)) if content.consumed => Ok(Probed::Consumed),
        Ok(Some(content)) if content.ready > 0 => Ok(Probed::Mail),
        Ok(Some(_)) => Ok(Probed::Empty),
        Err(error) => {
            debug!(%error, queue, "cannot ask for a mailbox");
            Err(MailboxError)
        }
    }
}
