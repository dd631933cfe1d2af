//! A session that speaks STOMP: what it has besides other sessions.
//!
//! - `interests.rs`: its subscriptions, and the messages that it has yet to acknowledge (pure).
//! - `frames.rs`: frames of the client, and what an error in one of them costs.
//! - `held.rs`: messages that no subscription asks for yet.
//! - `connect.rs`: CONNECT, heart-beats, DISCONNECT. `subscribe.rs`: SUBSCRIBE, UNSUBSCRIBE, ACK, NACK. `send.rs`: SEND.
//! - `shown.rs`: messages and answers to the client.
//!
//! A session takes messages of its user from its first subscription to one of its `/user/` destinations on, and not
//! before: a page subscribes some moments after it is connected, and what came before would have nobody to be shown to.

mod connect;
mod frames;
mod held;
mod interests;
mod send;
mod shown;
mod subscribe;

use std::cell::{Cell, OnceCell, RefCell};

use crate::auth::Identity;
use crate::protocol::stomp::parser::Parser;
use crate::protocol::stomp::Version;
use held::Held;
use interests::Interests;

pub(super) use shown::OneHead;

pub(super) struct Stomp {
    parser: RefCell<Parser>,
    version: Cell<Version>,
    /// Whom the handshake named, until CONNECT comes.
    known: RefCell<Option<Identity>>,
    interests: RefCell<Interests>,
    /// For a moment after the first subscription to something of the user.
    held: RefCell<Option<Box<Held>>>,
    /// The session takes messages of its user.
    is_reachable: Cell<bool>,
    /// When the session opened, in milliseconds since the Unix epoch.
    since_ms: Cell<u64>,
    /// The client wants to read something at least this often, in milliseconds; 0 = it does not care.
    beats_ms: Cell<u32>,
    wrote_at: Cell<u32>,
    /// The client has sent DISCONNECT: its receipt, and that all of its messages are settled, are what it waits for.
    leaving: OnceCell<Option<Box<str>>>,
}

impl Stomp {
    pub(super) fn new(message_bytes_max: u32, now: u32) -> Self {
        Self {
            parser: RefCell::new(Parser::new(message_bytes_max)),
            version: Cell::new(Version::V1_0),
            known: RefCell::default(),
            interests: RefCell::default(),
            held: RefCell::default(),
            is_reachable: Cell::new(false),
            since_ms: Cell::new(0),
            beats_ms: Cell::new(0),
            wrote_at: Cell::new(now),
            leaving: OnceCell::new(),
        }
    }

    /// The handshake brought a token.
    pub(super) fn set_known(&self, identity: Identity) {
        *self.known.borrow_mut() = Some(identity);
    }

    /// Whether messages of its user come to the session.
    pub(super) fn is_reachable(&self) -> bool {
        self.is_reachable.get()
    }

    /// Names the frame of the client that waits for its rest.
    pub(super) fn unfinished(&self) -> Option<u32> {
        self.parser.borrow().unfinished()
    }

    pub(super) fn wrote(&self, now: u32) {
        self.wrote_at.set(now);
    }
}
