//! What the older messages of a path allow the newer ones, while all of them are looked at in order.

use std::time::Instant;

use super::entry::{Entry, Flight};
use super::World;
use crate::ids::NodeId;
use crate::router::strategy::Ways;

/// Messages of one target that may be on their way; further ones wait, and are stored if the target takes none.
const IN_FLIGHT_MAX: usize = 256;
/// The same in bytes: below what a target node queues for one target.
const IN_FLIGHT_BYTES_MAX: usize = 512 * 1024;

pub(super) struct Order {
    pub(super) now: Instant,
    /// Of what is sent now.
    pub(super) answer_by: Instant,
    /// Where the target is.
    ways: Ways,
    /// Where it may be, for what somebody did not answer.
    again: Option<Ways>,
    pub(super) sent: usize,
    sent_bytes: usize,
    /// An older one has gone to other nodes than those where the target is now. It may come back from there within moments,
    /// since the target has moved, and has to go before what is newer.
    elsewhere: bool,
    /// By which home the last of them went: what follows must not overtake it on another way.
    via: Option<NodeId>,
    pub(super) stored: bool,
    /// An older entry may go neither way now, so nothing newer may.
    pub(super) blocked: bool,
    /// As much is on its way as may be.
    pub(super) full: bool,
    /// Whether nodes that hold the target may be there and not be known yet.
    pub(super) peers_may_return: bool,
}

impl Order {
    pub(super) fn new(now: Instant, world: &impl World, ways: Ways, again: Option<Ways>) -> Self {
        Self {
            now,
            answer_by: now + world.answer_within(),
            ways,
            again,
            sent: 0,
            sent_bytes: 0,
            elsewhere: false,
            via: None,
            stored: false,
            blocked: false,
            full: false,
            peers_may_return: world.peers_may_return(),
        }
    }

    /// Where the entry may be sent: not to those that said that the target is not there.
    pub(super) fn ways_of(&self, entry: &Entry) -> Ways {
        let Ways { nodes, relay } = self.again.as_ref().filter(|_| entry.unknown).unwrap_or(&self.ways);
        let is_open = |node: &&NodeId| !entry.not_here.contains(node);
        Ways {
            nodes: nodes.iter().filter(is_open).cloned().collect(),
            relay: relay.as_ref().filter(is_open).cloned(),
        }
    }

    /// Whether there is no room for one more, or it might overtake on another way.
    pub(super) fn holds_up(&mut self, ways: &Ways) -> bool {
        self.full = self.sent >= IN_FLIGHT_MAX || self.sent_bytes >= IN_FLIGHT_BYTES_MAX;
        self.full || self.stored || self.elsewhere || self.sent > 0 && self.via != ways.relay
    }

    pub(super) fn note_sent(&mut self, bytes: usize, via: Option<NodeId>) {
        self.sent += 1;
        self.sent_bytes += bytes;
        self.via = via;
    }

    pub(super) fn note_in_flight(&mut self, entry: &Entry, flight: &Flight) {
        self.note_sent(entry.message.bytes(), flight.via.clone());
        // What a node holds it holds for a session that is there: that would be to wait for the session.
        let is_awaited = flight.via.is_none() && !flight.held;
        self.elsewhere |= is_awaited && self.ways.nodes.iter().any(|node| !flight.sent_to.contains(node));
        // Where it is will be known soon, and then it is stored before anything newer.
        self.blocked |= entry.store_next;
    }
}
