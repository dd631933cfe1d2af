//! Whether a user has mail: asked at each connect, so it must cost next to nothing when there is none.
//!
//! Every request about a queue that does not exist closes its channel, except for the one that deletes it. So
//! the question is to delete the mailbox if it is empty and nobody consumes it: one round trip on a channel that
//! stays. Asked again and again it would take away a mailbox that is just being made, between its making and
//! its first message; so whoever has asked a moment ago looks instead, and pays for the channel.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::admin::{Admin, Removed};
use super::removal::Removal;
use crate::bus::MailboxError;

/// How long a question is remembered, at least.
const RECENT: Duration = Duration::from_secs(2);
/// Questions that are remembered; beyond, every question counts as one that was asked already.
const RECENT_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    Missing,
    Empty,
    /// There is mail, or somebody hands it out.
    InUse,
    /// Somebody hands it out.
    Consumed,
}

/// The queues that were asked for lately, in two generations, so that the old ones go all at once.
#[derive(Default)]
pub struct Recent(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    began: Option<Instant>,
    current: HashSet<String>,
    previous: HashSet<String>,
}

impl Recent {
    /// Remembers a queue; tells whether it was asked for lately.
    fn asked(&self, queue: &str, now: Instant) -> bool {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = generations.began.map_or(RECENT * 2, |began| now - began);
        if age >= RECENT {
            let previous = std::mem::take(&mut generations.current);
            generations.previous = if age < RECENT * 2 { previous } else { HashSet::new() };
            generations.began = Some(now);
        }
        if generations.current.len() >= RECENT_MAX {
            return true;
        }
        let known = generations.previous.contains(queue);
        !generations.current.insert(queue.to_owned()) || known
    }
}

pub async fn probe(
    admin: &Admin,
    removal: &Removal,
    recent: &Recent,
    queue: &str,
) -> Result<Probed, MailboxError> {
    let asked = recent.asked(queue, Instant::now());
    let answer = if asked || removal.waits_for(queue) {
        admin.look(queue).await.map(|content| match content {
            None => Probed::Missing,
            Some(content) if content.consumed => Probed::Consumed,
            Some(content) if content.ready > 0 => Probed::InUse,
            Some(_) => Probed::Empty,
        })
    } else {
        admin.remove_idle(queue).await.map(|removed| match removed {
            Removed::Gone => Probed::Missing,
            Removed::InUse => Probed::InUse,
        })
    };
    answer.map_err(|error| {
        debug!(%error, queue, "cannot ask for a mailbox");
        MailboxError
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_remembered_for_a_while() {
        let (recent, start) = (Recent::default(), Instant::now());
        assert!(!recent.asked("a", start));
        assert!(recent.asked("a", start + RECENT / 2));
        assert!(!recent.asked("b", start + RECENT * 3 / 4));
        assert!(recent.asked("b", start + RECENT * 5 / 4));
        assert!(!recent.asked("c", start + RECENT * 4));
        assert!(!recent.asked("b", start + RECENT * 4));
    }
}
