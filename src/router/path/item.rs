//! One message on its way to sessions here: what its origins were told, and where it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::Effect;
use crate::bus::AckToken;
use crate::delivery::envelope::Origin;
use crate::delivery::peer_words::Receipt;
use crate::protocol::message::{Message, Stamp};

/// An origin is told that a message is held when no session has taken it for so long.
const HELD_AFTER: Duration = Duration::from_millis(100);
/// Before the origin gives up it is told what is known.
const ANSWER_MARGIN: Duration = Duration::from_millis(3_000);

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

    /// When [`Item::on_tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.told {
            _ if self.origins.is_empty() => None,
            Told::Nothing => Some(self.since + HELD_AFTER),
            Told::Queued | Told::Held => {
                self.answer_by.map(|at| at.checked_sub(ANSWER_MARGIN).unwrap_or(self.since))
            }
            Told::All => None,
        }
    }

    /// Tells the origins what they must know by now.
    pub(super) fn on_tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.origins.is_empty() {
            return;
        }
        if self.told == Told::Nothing && now >= self.since + HELD_AFTER {
            self.tell_place(effects);
        }
        let is_told = matches!(self.told, Told::Queued | Told::Held);
        if is_told && self.answer_by.is_some_and(|at| now + ANSWER_MARGIN >= at) {
            self.told = Told::All;
            if self.place == Place::PartlyTaken {
                answer_all(std::mem::take(&mut self.origins), Receipt::Delivered(1), effects);
            }
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
