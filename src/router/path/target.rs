//! The target's side of a path: messages for sessions on this node, in order, no faster than sessions take them.
//!
//! While mail may lie in the user's box a barrier holds back live messages. A round of reading hands over the mail; a
//! live message that the same origin accepted before a mail goes before that mail. When no notice of mail is left that a
//! round has not covered, the barrier opens. What does not fit into the queue is refused, and with it everything that
//! the same origin process sends until it says that it has stored what was refused: so the origin's order is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::item::{answer_all, in_order, Item, Place, Told};
use super::notices::Notices;
use super::{Effect, World};
use crate::delivery::envelope::{Envelope, Scope};
use crate::delivery::peer_words::Receipt;
use crate::delivery::seen::SeenKey;
use crate::hub::Taken;
use crate::ids::Life;
use crate::protocol::message::Stamp;
use crate::protocol::target::Target;

/// Live messages queued for one target. More than an origin has on its way, so that a target that reads is never full.
const QUEUE_MAX: usize = 1024;
/// The same in bytes.
const QUEUE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// What sessions may have without having taken it: below the queue of a socket, which must never overflow by this.
const WINDOW: usize = 64;
/// The same in bytes; a single message may be longer.
const WINDOW_BYTES: usize = 128 * 1024;
/// How soon the workers are asked again when they had no room.
const ROOM_AFTER: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(super) struct TargetSide {
    pub(super) items: HashMap<SeenKey, Item>,
    /// To be handed out next, in this order.
    pub(super) ready: VecDeque<SeenKey>,
    /// Live messages behind the barrier, in the order of their arrival.
    pub(super) parked: VecDeque<SeenKey>,
    pub(super) parked_bytes: usize,
    /// Messages and bytes that sessions have and have not taken.
    pub(super) out: usize,
    out_bytes: usize,
    /// The barrier is closed while one of them is not covered.
    pub(super) notices: Notices,
    /// Origin processes that were refused and have not said yet that they stored it.
    pub(super) refusing: SmallVec<[Life; 1]>,
    /// The highest number handed out of each origin process.
    last: SmallVec<[Stamp; 2]>,
    /// Mail of the reading under way was handed to sessions that have ended without taking it.
    pub(super) untaken: bool,
    /// Mails that sessions declined, on their way to the dead letters.
    refused: usize,
    /// The workers had no room: nothing is handed out before the next tick.
    no_room_since: Option<Instant>,
}

impl TargetSide {
    pub(super) fn is_idle(&self) -> bool {
        self.items.is_empty() && self.notices.are_none() && !self.untaken && self.refused == 0
    }

    pub(super) fn untaken_mail(&self) -> bool {
        self.untaken
    }

    pub(super) fn mail_wanted(&self) -> Option<u32> {
        self.notices.wanted()
    }

    pub(super) fn mail_covered(&self) -> u32 {
        self.notices.covered()
    }

    pub(super) fn holds_mail(&self) -> bool {
        self.refused > 0 || self.items.values().any(|item| item.mail.is_some())
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let room = self.no_room_since.map(|since| since + ROOM_AFTER);
        let items = self.items.values().filter_map(Item::due).min();
        items.into_iter().chain(room).chain(self.notices.due()).min()
    }

    // ---- what arrives ----

    pub(super) fn on_arrival(
        &mut self,
        target: &Target,
        envelope: Envelope,
        now: Instant,
        world: &impl World,
        effects: &mut Vec<Effect>,
    ) {
        let Envelope { message, origin, answer_by } = envelope;
        let key = SeenKey::new(Scope::of(&message.sender), &message.id, target);
        let answer = |receipt, effects: &mut Vec<Effect>| {
            effects.extend(origin.clone().map(|origin| Effect::Answer { origin, receipt }));
        };
        if let Some(sessions) = world.taken(key) {
            return answer(Receipt::Delivered(sessions), effects);
        }
        if let Some(item) = self.items.get_mut(&key) {
            item.origins.extend(origin);
            item.told = Told::Nothing;
            return;
        }
        if message.is_expired(now) || !world.is_here(target) {
            return answer(Receipt::NotHere, effects);
        }
        let life = origin.as_ref().map(|origin| origin.life);
        if life.is_some_and(|life| self.refusing.contains(&life)) {
            return answer(Receipt::Full, effects);
        }
        let bytes = message.bytes();
        let queued = self.parked.len() + self.ready.len();
        if queued >= QUEUE_MAX || (queued > 0 && self.queued_bytes() + bytes > QUEUE_BYTES_MAX) {
            self.refusing.extend(life);
            for item in self.items.values_mut().filter(|item| item.told == Told::Nothing) {
                item.tell_place(effects);
            }
            return answer(Receipt::Full, effects);
        }
        let item = Item {
            message: Arc::new(message),
            since: now,
            origins: origin.into_iter().collect(),
            told: Told::Nothing,
            answer_by,
            mail: None,
            left_in_box: false,
            place: Place::Queued,
        };
        self.items.insert(key, item);
        self.parked.push_back(key);
        self.parked_bytes += bytes;
    }

    fn queued_bytes(&self) -> usize {
        let ready = self.ready.iter().filter_map(|key| self.items.get(key));
        self.parked_bytes + ready.map(|item| item.message.bytes()).sum::<usize>()
    }

    // ---- sessions ----

    pub(super) fn on_opened(&mut self, may_have_mail: bool, effects: &mut Vec<Effect>) {
        if may_have_mail {
            self.want_mail(effects);
        }
    }

    /// Nobody is left to hand anything to. What sessions had is resolved when they have let go of it.
    pub(super) fn on_gone(&mut self, effects: &mut Vec<Effect>) {
        for key in self.ready.drain(..).chain(self.parked.drain(..)) {
            if let Some(item) = self.items.remove(&key) {
                answer_all(item.origins, Receipt::NotHere, effects);
            }
        }
        self.parked_bytes = 0;
        self.notices.void();
    }

    // ---- what sessions do with it ----

    pub(super) fn on_first_taken(&mut self, key: SeenKey) {
        let Some(item) = self.items.get_mut(&key) else { return };
        if item.place == Place::Out {
            item.place = Place::PartlyTaken;
            self.out -= 1;
            self.out_bytes -= item.message.bytes();
        }
    }

    pub(super) fn on_resolved(
        &mut self,
        target: &Target,
        key: SeenKey,
        taken: Taken,
        now: Instant,
        world: &impl World,
        effects: &mut Vec<Effect>,
    ) {
        let Some(item) = self.items.remove(&key) else { return };
        if item.place == Place::Out {
            self.out -= 1;
            self.out_bytes -= item.message.bytes();
        }
        if taken.sessions > 0 {
            let sessions = taken.sessions;
            world.note_taken(key, sessions, now);
            answer_all(item.origins, Receipt::Delivered(sessions), effects);
            let message = item.message;
            match item.mail {
                Some(ack) => effects.push(Effect::Acknowledge { ack, message }),
                // The next reading finds it and acknowledges it.
                None if item.left_in_box => effects.push(Effect::CleanBox),
                None => {}
            }
            return;
        }
        let receipt = if taken.declined { Receipt::Declined } else { Receipt::NotTaken };
        answer_all(item.origins, receipt, effects);
        let is_mail = item.mail.is_some() || item.left_in_box;
        if let Some(ack) = item.mail {
            if taken.declined {
                // The reading must not end before the dead letters have it.
                self.refused += 1;
                return effects.push(Effect::Refuse { ack, message: item.message });
            }
            self.untaken = true;
        }
        if is_mail && world.is_here(target) {
            // The session ended without taking it, and the user is here with another one.
            self.want_mail(effects);
        }
    }

    /// A mail that sessions declined is out of the box, or in it again.
    pub(super) fn on_refused(&mut self) {
        self.refused = self.refused.saturating_sub(1);
    }

    /// Puts back what the workers had no room for.
    pub(super) fn on_no_room(&mut self, keys: &[SeenKey], now: Instant) {
        for key in keys.iter().rev() {
            if let Some(item) = self.items.get_mut(key) {
                item.place = Place::Queued;
                self.out -= 1;
                self.out_bytes -= item.message.bytes();
                self.ready.push_front(*key);
            }
        }
        self.no_room_since = Some(now);
    }

    // ---- time ----

    pub(super) fn on_tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.no_room_since = None;
        self.items.values_mut().for_each(|item| item.on_tick(now, effects));
    }

    /// Hands out what the barrier and the window allow.
    pub(super) fn advance(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.notices.is_more_due(self.has_room(), now) {
            self.want_mail(effects);
        }
        if self.notices.are_covered() && !self.parked.is_empty() {
            self.ready.extend(self.parked.drain(..));
            self.parked_bytes = 0;
        }
        while let Some(&key) = self.ready.front() {
            let Some(item) = self.items.get_mut(&key) else {
                self.ready.pop_front();
                continue;
            };
            let bytes = item.message.bytes();
            let fits = self.out == 0 || (self.out < WINDOW && self.out_bytes + bytes <= WINDOW_BYTES);
            if !fits || self.no_room_since.is_some() {
                return;
            }
            self.ready.pop_front();
            if item.message.is_expired(now) {
                if let Some(item) = self.items.remove(&key) {
                    answer_all(item.origins, Receipt::NotHere, effects);
                    let message = item.message;
                    effects.extend(item.mail.map(|ack| Effect::Acknowledge { ack, message }));
                }
                continue;
            }
            item.place = Place::Out;
            if item.told == Told::Queued {
                item.tell_place(effects);
            }
            self.out += 1;
            self.out_bytes += bytes;
            let message = in_order(&mut self.last, &item.message);
            effects.push(Effect::HandOut { key, message });
        }
    }
}
