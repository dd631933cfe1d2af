//! Messages that went to the home of their target, which passes them on: whose receipts the origin awaits.
//!
//! The home says first to whom it passes a message on. Its word and the receipts of the others come by different queues,
//! so that a receipt may be there before.

use super::entry::Stage;
use super::origin::OriginSide;
use super::{Effect, World};
use crate::delivery::envelope::Tag;
use crate::ids::NodeId;

impl OriginSide {
    pub(super) fn on_relayed(
        &mut self,
        tag: Tag,
        home: &NodeId,
        nodes: &[NodeId],
        world: &impl World,
        effects: &mut Vec<Effect>,
    ) {
        let Some(at) = self.find(tag) else { return };
        let entry = &mut self.entries[at];
        let Stage::InFlight(flight) = &mut entry.stage else { return };
        if !flight.is_relaying || flight.via.as_ref() != Some(home) {
            return;
        }
        flight.is_relaying = false;
        if nodes.is_empty() {
            // Nobody, besides those to which this node sent it itself.
            entry.not_here.push(home.clone());
        }
        for node in nodes.iter().filter(|node| !flight.early.contains(node)) {
            match world.is_live(node) {
                true if flight.waiting.contains(node) => {}
                true => flight.waiting.push(node.clone()),
                // The home does not know yet that it is gone; this node will hear of it no more.
                false => entry.unknown = true,
            }
        }
        self.conclude(at, effects);
    }
}
