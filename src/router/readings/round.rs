//! Sorts what a round of reading brings: the mail of the users who are read for, and a count of everything. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::bus::{may_have_been_shown, Abandoned, AckToken, BoxMail};
use crate::delivery::envelope::{self, EnvelopeError};
use crate::ids::{UserId, UserKey};
use crate::protocol::message::Message;
use crate::protocol::target::Target;
use crate::router::path::Mail;

/// Mail of one user that is kept in memory at a time; what is over it stays in the box for the next reading.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

struct Kept {
    number: u64,
    redelivered: bool,
    message: Message,
    ack: AckToken,
}

#[derive(Default)]
struct Reader {
    mail: Vec<Kept>,
    bytes: usize,
    /// There is more in the box than was kept.
    more: bool,
}

/// One reading of a box.
#[derive(Default)]
pub(super) struct Round {
    readers: HashMap<UserId, Reader>,
    /// Messages and bytes of every user in the box.
    found: HashMap<UserKey, (u32, u64)>,
}

/// What a round brings for one user.
pub(super) struct Brought {
    pub(super) mail: Vec<Mail>,
    pub(super) more: bool,
}

impl Round {
    pub(super) fn new(users: impl IntoIterator<Item = UserId>) -> Self {
        let readers = users.into_iter().map(|user| (user, Reader::default())).collect();
        Self { readers, found: HashMap::new() }
    }

    pub(super) fn users(&self) -> impl Iterator<Item = &UserId> {
        self.readers.keys()
    }

    pub(super) fn serves(&self, user: &UserId) -> bool {
        self.readers.contains_key(user)
    }

    pub(super) fn keys(&self) -> Vec<UserKey> {
        self.readers.keys().map(UserKey::of).collect()
    }

    /// Takes in a mail, oldest first. `Err` gives back what cannot be read.
    #[allow(clippy::result_large_err, reason = "unreadable mail is rare, and is moved on once")]
    pub(super) fn add(&mut self, mail: BoxMail, now: Instant) -> Result<(), (BoxMail, EnvelopeError)> {
        let message = match envelope::message(&mail.properties, mail.body.clone(), now) {
            Ok(message) => message,
            Err(error) => return Err((mail, error)),
        };
        let Target::User(user) = &message.target else {
            return Err((mail, EnvelopeError::Form("the target of a mail")));
        };
        let bytes = message.bytes();
        let found = self.found.entry(UserKey::of(user)).or_default();
        found.0 += 1;
        found.1 += bytes as u64;
        if let Some(reader) = self.readers.get_mut(user) {
            // Once something was left, all that follows is left: what is handed out is in order.
            reader.more |= reader.bytes > 0 && reader.bytes + bytes > KEPT_BYTES_MAX;
            if !reader.more {
                reader.bytes += bytes;
                let BoxMail { number, redelivered, ack, .. } = mail;
                reader.mail.push(Kept { number, redelivered, message, ack });
            }
        }
        Ok(())
    }

    /// The round has ended: the mail of each user who is read for.
    pub(super) fn end(&mut self, abandoned: &[Abandoned]) -> Vec<(UserId, Brought)> {
        let mut brought = Vec::with_capacity(self.readers.len());
        for (user, reader) in &mut self.readers {
            let key = UserKey::of(user);
            let mail = reader.mail.drain(..).map(|kept| {
                let mut message = kept.message;
                message.redelivered |= kept.redelivered && may_have_been_shown(kept.number, key, abandoned);
                Mail { message: Arc::new(message), ack: kept.ack }
            });
            brought.push((user.clone(), Brought { mail: mail.collect(), more: reader.more }));
        }
        brought
    }

    /// Everything that the first round found in the box; later mail is counted by those who deposit it.
    pub(super) fn take_found(&mut self) -> Vec<(UserKey, u32, u64)> {
        self.found.drain().map(|(key, (count, bytes))| (key, count, bytes)).collect()
    }
}
