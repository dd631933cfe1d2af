//! Whether a user has mail: asked at each connect.
//!
//! A look at a queue that does not exist closes its channel. Deleting what is empty and idle would answer the same
//! question on a channel that stays, but it takes away a mailbox that somebody is just filling.

use tracing::debug;

use super::admin::Admin;
use crate::bus::MailboxError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    Missing,
    Empty,
    /// There is mail, and nobody hands it out.
    InUse,
    /// Somebody hands it out.
    Consumed,
}

pub async fn probe(admin: &Admin, queue: &str) -> Result<Probed, MailboxError> {
    match admin.look(queue).await {
        Ok(None) => Ok(Probed::Missing),
        Ok(Some(content)) if content.consumed => Ok(Probed::Consumed),
        Ok(Some(content)) if content.ready > 0 => Ok(Probed::InUse),
        Ok(Some(_)) => Ok(Probed::Empty),
        Err(error) => {
            debug!(%error, queue, "cannot ask for a mailbox");
            Err(MailboxError)
        }
    }
}
