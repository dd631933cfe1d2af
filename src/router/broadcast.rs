//! Messages for everyone: at most once, to whoever is connected, on every node.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::{overloaded, unavailable, Router, Settle};
use crate::bus::{Destination, Outcome};
use crate::delivery::envelope::{Envelope, Scope};
use crate::delivery::seen::SeenKey;
use crate::delivery::trace::Step;
use crate::hub::Full;
use crate::protocol::message::{Message, Rendered, Settlement};
use crate::protocol::target::Target;

impl Router {
    pub(super) fn publish_to_everyone(&self, message: Message, settle: Settle) {
        let done = move |outcome| {
            settle(match outcome {
                Outcome::Confirmed => Settlement::Published,
                Outcome::Overloaded => overloaded(),
                Outcome::Unroutable | Outcome::Refused | Outcome::Unavailable => unavailable(),
            })
        };
        self.trace_publish(&message, &Destination::Broadcast);
        let envelope = Envelope { message, origin: None, answer_by: None };
        self.bus.publish(envelope.to_publish(Destination::Broadcast, Instant::now(), 0), Box::new(done));
    }

    /// Hands a broadcast to every session here, or a message for a channel to its subscribers here, unless it came
    /// before. `Err`: a worker has no room; nothing has happened.
    pub fn show_everyone(&self, message: &Arc<Rendered>) -> Result<(), Full> {
        let now = Instant::now();
        let broadcast = message.message();
        if broadcast.is_expired(now) {
            return Ok(());
        }
        let key = SeenKey::new(Scope::of(&broadcast.sender), &broadcast.id, &broadcast.target);
        let mut seen = self.seen_broadcasts.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.get(key).is_none() {
            self.trace().note(&broadcast.id, || Step::Arrived { from: None });
            match &broadcast.target {
                Target::Channel(channel) => self.hub.deliver_channel(channel, message, None)?,
                _ => self.hub.deliver_all(message)?,
            }
            seen.note(key, 1, now);
        }
        Ok(())
    }
}
