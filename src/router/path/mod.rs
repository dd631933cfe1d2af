//! The path of one target (a user or a session) on this node: a pure state machine for both of the node's roles.
//!
//! - `origin.rs`, with `entry.rs`, `order.rs` and `relay.rs`: messages that this node accepted for the target: sent, stored, settled, in order.
//! - `target.rs`, with `mail.rs`, `notices.rs` and `item.rs`: messages that arrive for the target's sessions here: mail first, in order, and no faster
//!   than they are taken.
//!
//! [`Path::step`] takes what happened and what time it is, changes the path, and returns what is to be done. It looks
//! things up in the [`World`] but calls nothing that waits or calls back.

mod entry;
mod item;
mod mail;
mod notices;
mod order;
mod origin;
mod relay;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bus::{AckToken, Outcome};
use crate::delivery::envelope::{Envelope, Origin, Tag};
use crate::delivery::peer_words::Receipt;
use crate::delivery::seen::SeenKey;
use crate::hub::Taken;
use crate::ids::{Life, NodeId};
use crate::protocol::message::{Message, Settlement, Stamp};
use crate::protocol::target::Target;
use crate::router::strategy::{Nodes, Ways};
use crate::router::Settle;

pub(super) use entry::expired;

/// A path without anything in it is kept for so long: a late copy of a message must still be known as late.
const IDLE_KEPT: Duration = Duration::from_secs(15);

/// What a path may look up. All of it may change at any moment, and nothing depends on its being right.
pub trait World {
    fn this_node(&self) -> &NodeId;
    /// Where the target is believed to be. `again`: somebody did not answer, and nothing should be taken for granted.
    fn ways(&self, target: &Target, again: bool) -> Ways;
    fn is_live(&self, node: &NodeId) -> bool;
    /// Whether nodes that hold the target may be there and not be known yet.
    fn peers_may_return(&self) -> bool;
    /// Whether sessions of the target are on this node.
    fn is_here(&self, target: &Target) -> bool;
    /// The next place among all messages that this process accepts.
    fn next_stamp(&self) -> Stamp;
    /// How many sessions of this node have taken a message lately.
    fn taken(&self, key: SeenKey) -> Option<u32>;
    /// Remembers that sessions of this node took a message.
    fn note_taken(&self, key: SeenKey, sessions: u32, now: Instant);
    /// How long a node may give no sign of a message before it is taken to hang.
    fn answer_within(&self) -> Duration;
    /// Whether this node's own messages await so much that what is held elsewhere should be stored now.
    fn is_under_pressure(&self) -> bool;
}

/// A mail that a reading of the user's box found.
#[derive(Debug)]
pub struct Mail {
    pub message: Arc<Message>,
    /// Acknowledged when the mail was shown, or had been.
    pub ack: AckToken,
}

/// What happens to a path.
pub enum Event {
    // ---- as origin ----
    Accepted {
        tag: Tag,
        message: Message,
        settle: Settle,
    },
    Receipt {
        tag: Tag,
        node: NodeId,
        receipt: Receipt,
    },
    /// The home of the target has passed a message on to these nodes, which may include itself.
    Relayed {
        tag: Tag,
        home: NodeId,
        nodes: Nodes,
    },
    /// The broker did not take a message for these nodes: no receipt will come from them.
    NotSent {
        tag: Tag,
        nodes: Nodes,
        outcome: Outcome,
    },
    NodeLost(NodeId),
    /// The broker's answer to a deposit, or the refusal of a limit.
    Deposited {
        tag: Tag,
        deposited: Deposited,
    },
    /// The notice of mail did not get through.
    NoticeFailed,
    /// The broker is away: nothing that awaits it can be known any more.
    LinkLost,
    // ---- as target ----
    Arrived(Envelope),
    /// The first session of the target opens here.
    SessionsOpened {
        may_have_mail: bool,
    },
    SessionsGone,
    /// Mail of the target lies in its box. `from`: the origin process that put it there and waits to send directly
    /// again.
    MailAnnounced {
        from: Option<Life>,
    },
    /// A round of reading the box has ended: the target's mail in it, oldest first.
    MailRead {
        mail: Vec<Mail>,
        covers: u32,
    },
    /// The reading ended: mail that was not yet handed to sessions is in the box again.
    MailGivenBack,
    /// One session has taken a message, others still have it.
    FirstTaken(SeenKey),
    /// No session has the message any more.
    Resolved {
        key: SeenKey,
        taken: Taken,
    },
    /// A mail that sessions declined is with the dead letters, or cannot get there now.
    MailRefused,
    /// The workers had no room for these, in this order.
    NoRoom(Vec<SeenKey>),
    // ---- both ----
    Tick,
}

/// What became of a deposit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deposited {
    /// Confirmed, and every node has been told.
    Stored,
    MailboxFull,
    /// The sender has stored as much as it may, or too fast.
    SenderLimit,
    Overloaded,
    Unavailable,
}

/// What is to be done, in this order.
pub enum Effect {
    Settle(Settle, Settlement),
    /// Send to these nodes, which may include this one, and await receipts until `answer_by`.
    Send {
        tag: Tag,
        ways: Ways,
        message: Arc<Message>,
        answer_by: Instant,
    },
    /// Send without receipts.
    SendOnce {
        ways: Ways,
        message: Arc<Message>,
        settle: Settle,
    },
    Deposit {
        tag: Tag,
        message: Arc<Message>,
    },
    /// Tell these nodes that mail lies in the box, ahead of what is sent next.
    Notify {
        ways: Ways,
    },
    Answer {
        origin: Origin,
        receipt: Receipt,
    },
    /// Hand to the target's sessions here.
    HandOut {
        key: SeenKey,
        message: Arc<Message>,
    },
    Acknowledge {
        ack: AckToken,
        message: Arc<Message>,
    },
    /// Mail that sessions declined: to the dead letters, and out of the box.
    Refuse {
        ack: AckToken,
        message: Arc<Message>,
    },
    /// Read the target's box.
    ReadBox,
    /// Mail that was taken lies in the target's box still: read it some time.
    CleanBox,
}

/// One target's messages on this node.
pub struct Path {
    target: Target,
    origin: origin::OriginSide,
    inbound: target::TargetSide,
    touched: Instant,
}

impl Path {
    pub fn new(target: Target, now: Instant) -> Self {
        Self {
            target,
            origin: origin::OriginSide::default(),
            inbound: target::TargetSide::default(),
            touched: now,
        }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn step(&mut self, event: Event, now: Instant, world: &impl World, effects: &mut Vec<Effect>) {
        if !matches!(event, Event::Tick) {
            self.touched = now;
        }
        let Self { target, origin, inbound, .. } = self;
        match event {
            Event::Accepted { tag, mut message, settle } => {
                message.stamp = Some(world.next_stamp());
                origin.accept(tag, Arc::new(message), settle, now);
            }
            Event::Receipt { tag, node, receipt } => origin.on_receipt(tag, &node, receipt, effects),
            Event::Relayed { tag, home, nodes } => origin.on_relayed(tag, &home, &nodes, world, effects),
            Event::NotSent { tag, nodes, outcome } => origin.on_not_sent(tag, &nodes, outcome, effects),
            Event::NodeLost(node) => origin.on_node_lost(&node),
            Event::Deposited { tag, deposited } => {
                origin.on_deposited(tag, deposited, effects);
                // The other nodes are told by the mail index, and this one is not.
                if deposited == Deposited::Stored {
                    inbound.on_announced(None, world.is_here(target), now, effects);
                }
            }
            Event::NoticeFailed => origin.notice_due = true,
            Event::LinkLost => origin.on_link_lost(effects),
            Event::Arrived(envelope) => inbound.on_arrival(target, envelope, now, world, effects),
            Event::SessionsOpened { may_have_mail } => inbound.on_opened(may_have_mail, effects),
            Event::SessionsGone => inbound.on_gone(effects),
            Event::MailAnnounced { from } => inbound.on_announced(from, world.is_here(target), now, effects),
            Event::MailRead { mail, covers } => inbound.on_mail(mail, covers, now, world, effects),
            Event::MailGivenBack => inbound.on_given_back(world.is_here(target), effects),
            Event::FirstTaken(key) => inbound.on_first_taken(key),
            Event::Resolved { key, taken } => inbound.on_resolved(target, key, taken, now, world, effects),
            Event::MailRefused => inbound.on_refused(),
            Event::NoRoom(keys) => inbound.on_no_room(&keys, now),
            Event::Tick => inbound.on_tick(now, effects),
        }
        self.origin.advance(&self.target, now, world, effects);
        self.inbound.advance(now, effects);
    }

    /// Messages that this node has accepted and not settled.
    pub fn pending(&self) -> usize {
        self.origin.len()
    }

    /// Whether mail is to be read for the target, and which notices the next round covers.
    pub fn mail_wanted(&self) -> Option<u32> {
        self.inbound.mail_wanted()
    }

    /// The notices that the last round covered.
    pub fn mail_covered(&self) -> u32 {
        self.inbound.mail_covered()
    }

    /// Mail of a reading that is still to be handed out, or that sessions have and have not taken.
    pub fn holds_mail(&self) -> bool {
        self.inbound.holds_mail()
    }

    /// Mail of the reading under way was shown and not taken: it lies in the box again when the reading has ended, and is
    /// marked then if the reading leaves its marker.
    pub fn untaken_mail(&self) -> bool {
        self.inbound.untaken_mail()
    }

    /// When [`Event::Tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.origin.due().into_iter().chain(self.inbound.due()).min()
    }

    /// When the path may be forgotten; `None` while something is in it.
    pub fn forget_at(&self) -> Option<Instant> {
        (self.origin.len() == 0 && self.inbound.is_idle()).then(|| self.touched + IDLE_KEPT)
    }
}
