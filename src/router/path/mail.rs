//! The target's mail: when its box is read, and where what a reading brings stands among live messages.

use std::time::Instant;

use super::item::{Item, Place};
use super::target::TargetSide;
use super::{Effect, Mail, World};
use crate::delivery::envelope::Scope;
use crate::delivery::seen::SeenKey;
use crate::ids::Life;
use crate::protocol::message::Stamp;

impl TargetSide {
    pub(super) fn want_mail(&mut self, effects: &mut Vec<Effect>) {
        self.notices.want();
        effects.push(Effect::ReadBox);
    }

    pub(super) fn on_announced(
        &mut self,
        from: Option<Life>,
        is_here: bool,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(life) = from {
            self.refusing.retain(|refused| *refused != life);
            self.forget_stored(life);
        }
        let is_taking = !self.notices.are_covered() || !self.has_room();
        match (is_here, from) {
            (false, _) => {}
            // The origin goes on sending, and what it sends next must not go first.
            (true, Some(_)) => self.want_mail(effects),
            // The user could take no more now.
            (true, None) if is_taking => self.notices.want_later(now),
            (true, None) => self.want_mail(effects),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.ready.is_empty() && self.out == 0
    }

    /// The origin has stored whatever it sent before and no session has yet: it comes with the mail, in its order.
    fn forget_stored(&mut self, life: Life) {
        let items = &mut self.items;
        let is_stored = |item: &Item| {
            let of_origin = item.origins.iter().all(|origin| origin.life == life);
            item.place == Place::Queued && item.mail.is_none() && !item.origins.is_empty() && of_origin
        };
        let mut bytes = 0;
        for (queue, is_parked) in [(&mut self.ready, false), (&mut self.parked, true)] {
            queue.retain(|key| {
                let stored = items.get(key).is_some_and(is_stored);
                if stored {
                    let gone = items.remove(key);
                    bytes += gone.filter(|_| is_parked).map_or(0, |item| item.message.bytes());
                }
                !stored
            });
        }
        self.parked_bytes -= bytes;
    }

    pub(super) fn on_mail(
        &mut self,
        mail: Vec<Mail>,
        covers: u32,
        now: Instant,
        world: &impl World,
        effects: &mut Vec<Effect>,
    ) {
        for Mail { message, ack } in mail {
            let key = SeenKey::new(Scope::of(&message.sender), &message.id, &message.target);
            if world.taken(key).is_some() {
                effects.push(Effect::Acknowledge { ack, message });
                continue;
            }
            self.release_older_than(message.stamp);
            match self.items.get_mut(&key) {
                // A copy of what is queued or out: one of the two is shown, and with it both are done.
                Some(item) => {
                    item.mail = Some(ack);
                    if let Some(at) = self.parked.iter().position(|parked| *parked == key) {
                        self.parked.remove(at);
                        self.parked_bytes -= message.bytes();
                        self.ready.push_back(key);
                    }
                }
                None => {
                    self.items.insert(key, Item::of_mail(message, ack, now));
                    self.ready.push_back(key);
                }
            }
        }
        self.notices.cover(covers);
    }

    /// Lets go before a mail what the same origin accepted before it.
    fn release_older_than(&mut self, stamp: Option<Stamp>) {
        let Some(stamp) = stamp else { return };
        let is_older = |key: &SeenKey| {
            let parked = self.items.get(key).and_then(|item| item.message.stamp);
            parked.is_some_and(|parked| parked.life == stamp.life && parked.number < stamp.number)
        };
        let Some(last) = self.parked.iter().rposition(is_older) else { return };
        for key in self.parked.drain(..=last) {
            self.parked_bytes -= self.items.get(&key).map_or(0, |item| item.message.bytes());
            self.ready.push_back(key);
        }
    }

    /// The box has everything again that no session took; what was not handed out is read anew.
    pub(super) fn on_given_back(&mut self, is_here: bool, effects: &mut Vec<Effect>) {
        self.untaken = false;
        let items = &mut self.items;
        let mut lost = false;
        self.ready.retain(|key| {
            let Some(item) = items.get_mut(key) else { return false };
            let was_mail = item.mail.take().is_some();
            lost |= was_mail;
            if was_mail && item.origins.is_empty() {
                items.remove(key);
                return false;
            }
            true
        });
        for item in items.values_mut().filter(|item| item.mail.is_some()) {
            item.mail = None;
            item.left_in_box = true;
        }
        if lost && is_here {
            self.want_mail(effects);
        }
    }
}
