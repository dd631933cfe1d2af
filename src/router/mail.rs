//! Mail as the router sees it: notices of it, and what readings of boxes bring.

use std::sync::Arc;
use std::time::Instant;

use smallvec::smallvec;

use super::path::{Event, Mail, Path, World};
use super::readings::Readings;
use super::table::Cell;
use super::Router;
use crate::bus::{AckToken, BoxMail, Destination, Lane, Outcome, Properties, Publish};
use crate::delivery::envelope::{properties, Scope};
use crate::delivery::peer_words::MailNotice;
use crate::delivery::seen::SeenKey;
use crate::delivery::trace::Step;
use crate::error::Code;
use crate::ids::{NodeId, UserId, UserKey};
use crate::protocol::message::Message;
use crate::protocol::target::Target;

impl Router {
    /// An origin has put mail into the box of a user who is here.
    pub fn on_mail_notice(&self, notice: MailNotice) {
        if notice.relay {
            self.relay_notice(&notice);
        }
        let target = Target::User(notice.user);
        if self.paths.find(&target).is_some() || World::is_here(self, &target) {
            let event = Event::MailAnnounced { from: Some(notice.life) };
            self.paths.step(&target, event, Instant::now(), self);
        }
    }

    /// Gossip about boxes and about who has mail.
    pub fn on_mail_gossip(&self, kind: &str, body: &[u8]) -> Result<(), String> {
        if self.readings.on_gossip(kind, body)? {
            return Ok(());
        }
        for key in self.mail.on_gossip(kind, body)? {
            self.mail_for(key);
        }
        Ok(())
    }

    /// Mail lies in the box of a user: it is read if the user is here.
    pub fn mail_for(&self, key: UserKey) {
        for user in self.hub.users_of_key(key) {
            self.paths.step(&Target::User(user), Event::MailAnnounced { from: None }, Instant::now(), self);
        }
    }

    /// Messages waiting in the box of a user, as far as is known.
    pub fn mail_waiting(&self, user: &UserId) -> u64 {
        u64::from(self.mail.waiting(user).0)
    }

    // ---- for readings ----

    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    pub(super) fn live_nodes_and_this(&self) -> Vec<NodeId> {
        let others = self.directory.peers().into_iter().map(|peer| peer.node);
        others.chain([self.node().clone()]).collect()
    }

    fn ask_path<T>(&self, user: &UserId, question: impl FnOnce(&Path) -> T) -> Option<T> {
        self.paths.find(&Target::User(user.clone())).map(|cell| cell.ask(question))
    }

    /// Which notices a round that begins now covers; `None` if no mail of the user is wanted.
    pub(super) fn mail_wanted(&self, user: &UserId) -> Option<u32> {
        self.ask_path(user, Path::mail_wanted).flatten()
    }

    pub(super) fn mail_covered(&self, user: &UserId) -> u32 {
        self.ask_path(user, Path::mail_covered).unwrap_or_default()
    }

    pub(super) fn holds_mail(&self, user: &UserId) -> bool {
        self.ask_path(user, Path::holds_mail).unwrap_or_default()
    }

    pub(super) fn has_untaken_mail(&self, user: &UserId) -> bool {
        self.ask_path(user, Path::untaken_mail).unwrap_or_default()
    }

    /// A round has brought the mail of a user, perhaps one who is gone by now: then what they took is acknowledged.
    pub(super) fn mail_read(&self, user: &UserId, mail: Vec<Mail>, covers: u32) {
        for mail in &mail {
            self.trace().note(&mail.message.id, || Step::ReadFromMail);
        }
        let target = Target::User(user.clone());
        if self.paths.find(&target).is_some() {
            let event = Event::MailRead { mail, covers };
            return self.paths.step_if_there(&target, event, Instant::now(), self);
        }
        for Mail { message, ack } in mail {
            let key = SeenKey::new(Scope::of(&message.sender), &message.id, &message.target);
            if World::taken(self, key).is_some() && ack.ack() {
                self.mail_taken(&message);
            }
        }
    }

    pub(super) fn mail_given_back(&self, user: &UserId) {
        let target = Target::User(user.clone());
        self.paths.step_if_there(&target, Event::MailGivenBack, Instant::now(), self);
    }

    /// Moves mail that sessions declined to the dead letters. Without a broker that takes it there it stays in its box.
    pub(super) fn refuse_mail(&self, cell: &Arc<Cell>, ack: AckToken, message: Arc<Message>) {
        let mut properties = properties(&message, Instant::now());
        properties.headers.push(("warren-reason".to_owned(), Code::Declined.as_str().to_owned()));
        properties.persistent = Some(true);
        let body = message.payload.bytes.clone();
        let publish = Publish { to: Destination::Dead, properties, body, order_key: 0, lane: Lane::Reply };
        let (this, step) = (self.this.get().cloned().unwrap_or_default(), self.stepper(cell));
        let done = move |outcome| {
            let is_gone = outcome == Outcome::Confirmed && ack.ack();
            step(Event::MailRefused);
            if let (true, Some(router)) = (is_gone, this.upgrade()) {
                router.mail_taken(&message);
            }
        };
        self.bus.publish(publish, Box::new(done));
    }

    /// Moves something that is no mail out of a box. It stays there if the dead letters do not take it.
    pub(super) fn dead_letter_mail(&self, mail: BoxMail, reason: &str) {
        let BoxMail { properties, body, ack, .. } = mail;
        let properties = Properties {
            message_id: properties.message_id,
            kind: properties.kind,
            content_type: properties.content_type,
            app_id: properties.app_id,
            headers: smallvec![("warren-reason".to_owned(), reason.to_owned())],
            persistent: Some(true),
            ..Properties::default()
        };
        let publish = Publish { to: Destination::Dead, properties, body, order_key: 0, lane: Lane::Reply };
        let done = move |outcome| {
            if outcome == Outcome::Confirmed {
                ack.ack();
            }
        };
        self.bus.publish(publish, Box::new(done));
    }
}
