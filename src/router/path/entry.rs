//! One accepted message on its way to be settled: where it is, until when, and how it may end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::delivery::envelope::Tag;
use crate::error::{Code, Error};
use crate::ids::NodeId;
use crate::protocol::message::{Guarantee, Message, Settlement};
use crate::protocol::target::Target;
use crate::router::strategy::{Nodes, Ways};
use crate::router::Settle;

/// From acceptance to settlement, whatever happens.
pub const SETTLE_WITHIN: Duration = Duration::from_millis(9_700);
/// A message that nobody has taken by then is stored, which takes at most the rest of [`SETTLE_WITHIN`].
pub const STORE_AFTER: Duration = Duration::from_millis(7_500);

pub(super) struct Entry {
    pub(super) tag: Tag,
    pub(super) message: Arc<Message>,
    pub(super) settle: Settle,
    pub(super) accepted: Instant,
    pub(super) attempts: u8,
    /// A client may have seen it, although none has taken it.
    pub(super) shown: bool,
    /// A node did not answer, or the broker did not: whether the message arrived there is not known.
    pub(super) unknown: bool,
    /// Nodes that said that the target is not there.
    pub(super) not_here: Nodes,
    /// The target takes no more: this one is stored as soon as it is known where it is.
    pub(super) store_next: bool,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    Waiting,
    InFlight(Flight),
    /// To be stored as soon as the order allows.
    ToStore,
    Storing,
}

pub(super) struct Flight {
    /// Where it was sent, besides to a home.
    pub(super) sent_to: Nodes,
    /// The nodes whose receipts are awaited.
    pub(super) waiting: Nodes,
    /// By which home it went, if by one.
    pub(super) via: Option<NodeId>,
    /// The home has not said yet to whom it passed it on.
    pub(super) is_relaying: bool,
    /// Nodes that have answered before the home said that they would.
    pub(super) early: Nodes,
    /// Sessions that have taken it.
    pub(super) sessions: u32,
    pub(super) held: bool,
    /// Sessions did not want it.
    pub(super) declined: bool,
    pub(super) answer_by: Instant,
}

impl Flight {
    pub(super) fn new(ways: Ways, answer_by: Instant) -> Self {
        Self {
            sent_to: ways.nodes.clone(),
            waiting: ways.nodes,
            is_relaying: ways.relay.is_some(),
            via: ways.relay,
            early: Nodes::new(),
            sessions: 0,
            held: false,
            declined: false,
            answer_by,
        }
    }

    /// Whether somebody is still to answer.
    pub(super) fn is_open(&self) -> bool {
        self.is_relaying || !self.waiting.is_empty()
    }

    /// Nothing will be heard from these nodes. Whether something was to be heard.
    pub(super) fn without(&mut self, nodes: &[NodeId]) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| !nodes.contains(waiting));
        let lost_home = self.is_relaying && self.via.as_ref().is_some_and(|home| nodes.contains(home));
        self.is_relaying &= !lost_home;
        lost_home || self.waiting.len() < before
    }
}

impl Entry {
    pub(super) fn store_at(&self) -> Instant {
        self.accepted + STORE_AFTER
    }

    pub(super) fn give_up_at(&self) -> Instant {
        self.accepted + SETTLE_WITHIN
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(&self.stage, Stage::InFlight(flight) if flight.held)
    }

    /// A session that is gone has no mailbox.
    pub(super) fn can_be_stored(&self) -> bool {
        matches!(self.message.target, Target::User(_)) && self.message.guarantee == Guarantee::AtLeastOnce
    }

    pub(super) fn due(&self) -> Instant {
        match &self.stage {
            Stage::InFlight(flight) if !flight.held => flight.answer_by.min(self.store_at()),
            Stage::Waiting | Stage::InFlight(_) => self.store_at(),
            Stage::ToStore | Stage::Storing => self.give_up_at(),
        }
    }

    /// The message as it is sent or stored now.
    pub(super) fn outgoing(&self) -> Arc<Message> {
        match (self.shown || self.unknown) && !self.message.redelivered {
            true => Arc::new(Message { redelivered: true, ..(*self.message).clone() }),
            false => self.message.clone(),
        }
    }
}

pub(super) fn failed(code: Code, message: &str) -> Settlement {
    Settlement::Failed(Error::new(code, message))
}

/// The message's time is over. Whether it was shown before is not known of one that was sent before.
pub fn expired(message: &Message) -> Settlement {
    match message.redelivered {
        true => failed(Code::Unavailable, "the time to live is over, and nobody knows whether it was shown"),
        false => failed(Code::Expired, "the time to live is over"),
    }
}

/// Whether anybody was shown the message is not known.
pub(super) fn unanswered() -> Settlement {
    failed(Code::Unavailable, "the receiver's node did not answer; try again")
}

pub(super) fn unavailable() -> Settlement {
    failed(Code::Unavailable, "the broker cannot be reached; try again")
}

pub(super) fn overloaded() -> Settlement {
    failed(Code::Overloaded, "too many messages in flight; try again")
}
