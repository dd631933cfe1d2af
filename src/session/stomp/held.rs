//! Messages of the user that no subscription of the session asks for yet.
//!
//! A page subscribes to one destination after the other. What comes between two of them is for the second as much as if
//! it had come after it, so for a moment after the first it waits. Then it is declined.

use std::sync::Arc;

use super::Stomp;
use crate::hub::Tally;
use crate::protocol::message::Rendered;
use crate::session::deadlines::is_past;
use crate::session::state::Session;

/// How long messages wait for a subscription, from the first one of the session, in milliseconds.
const HELD_MS: u32 = 2_000;
/// Messages that wait. Overflow policy: the newest is declined. More than a path hands out to one target at a time.
const HELD_MAX: usize = 128;

pub(super) struct Held {
    until: u32,
    messages: Vec<(Arc<Rendered>, Tally)>,
}

impl Held {
    pub(super) fn new(now: u32) -> Box<Self> {
        Box::new(Self { until: now.wrapping_add(HELD_MS), messages: Vec::new() })
    }
}

impl Stomp {
    /// No subscription asks for a message.
    pub(super) fn hold_or_decline(&self, message: &Arc<Rendered>, tally: Tally) {
        if let Some(held) = self.held.borrow_mut().as_mut() {
            if held.messages.len() < HELD_MAX {
                return held.messages.push((message.clone(), tally));
            }
        }
        tally.decline();
    }

    /// There is another subscription: what it asks for goes out, before anything newer.
    pub(super) fn hand_out_held(&self, session: &Session, now: u32) {
        let held = self.held.borrow_mut().as_mut().map(|held| std::mem::take(&mut held.messages));
        for (message, tally) in held.into_iter().flatten() {
            self.deliver(session, &message, tally, true, now);
        }
        session.flush(now);
    }

    /// Declines what has waited long enough.
    pub(in crate::session) fn decline_held(&self, now: u32) {
        let is_over = self.held.borrow().as_ref().is_some_and(|held| is_past(held.until, now));
        if is_over {
            let held = self.held.take();
            let messages = held.into_iter().flat_map(|held| held.messages);
            messages.for_each(|(_, tally)| tally.decline());
        }
    }

    /// The session takes nothing for its user any more: what waits is not taken.
    pub(in crate::session) fn give_back_held(&self) {
        let held = self.held.take();
        drop(held);
    }
}
