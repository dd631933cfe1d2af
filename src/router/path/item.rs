//! One message on its way to sessions here: what its origins were told, and where it is.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::Effect;
use crate::bus::AckToken;
use crate::delivery::envelope::Origin;
use crate::delivery::peer_words::Receipt;
use crate::protocol::message::{Message, Stamp};

/// A message that is queued for sessions here, or that they have and have not taken.
pub(super) struct Item {
    pub(super) message: Arc<Message>,
    pub(super) since: Instant,
    /// Who awaits a receipt: more than one after a repeated attempt.
    pub(super) origins: SmallVec<[Origin; 1]>,
    pub(super) told: Told,
    pub(super) answer_by: Option<Instant>,
    /// The mail in the box that this message is.
    pub(super) mail: Option<AckToken>,
    /// It lies in the box, and the reading that found it has ended.
    pub(super) left_in_box: bool,
    pub(super) place: Place,
}

/// What the origins have been told so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// That it waits here.
    Queued,
    /// That sessions have it.
    Held,
    /// What could be told before the origin gives up.
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind the barrier, or waiting for room in the window.
    Queued,
    /// Sessions have it; it counts in the window.
    Out,
    /// One session has taken it, others have not: it counts in the window no longer.
    PartlyTaken,
}

impl Item {
    /// Tells the origins where the message is, so that they neither send it elsewhere nor wait for it in vain.
    pub(super) fn tell_place(&mut self, effects: &mut Vec<Effect>) {
        let (told, receipt) = match self.place {
            Place::Queued => (Told::Queued, Receipt::Queued),
            Place::Out | Place::PartlyTaken => (Told::Held, Receipt::Held),
        };
        self.told = told;
        for origin in &self.origins {
            effects.push(Effect::Answer { origin: origin.clone(), receipt });
        }
    }

    pub(super) fn of_mail(message: Arc<Message>, ack: AckToken, now: Instant) -> Self {
        Self {
            message,
            since: now,
            origins: SmallVec::new(),
            told: Told::All,
            answer_by: None,
            mail: Some(ack),
            left_in_box: false,
            place: Place::Queued,
        }
    }
}

pub(super) fn answer_all(origins: SmallVec<[Origin; 1]>, receipt: Receipt, effects: &mut Vec<Effect>) {
    effects.extend(origins.into_iter().map(|origin| Effect::Answer { origin, receipt }));
}

/// The message; marked if a newer one of the same origin process was handed out before.
pub(super) fn in_order(last: &mut SmallVec<[Stamp; 2]>, message: &Arc<Message>) -> Arc<Message> {
    /// Origin processes that are remembered; the oldest is forgotten first.
    const KEPT: usize = 8;
    let Some(stamp) = message.stamp else { return message.clone() };
    match last.iter_mut().find(|last| last.life == stamp.life) {
        Some(last) if last.number > stamp.number && !message.redelivered => {
            return Arc::new(Message { redelivered: true, ..(**message).clone() })
        }
        Some(last) => last.number = last.number.max(stamp.number),
        None => {
            if last.len() == KEPT {
                last.remove(0);
            }
            last.push(stamp);
        }
    }
    message.clone()
}
