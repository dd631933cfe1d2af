//! What the state machine of the mail index wants done.

use bytes::Bytes;

use super::gossip::{Gossip, Part};
use super::outgoing::{Announced, Step};
use crate::ids::NodeId;

pub enum Effect {
    /// Tell every node, and report the broker's answer to `Index::published`.
    Publish { seq: u64, body: Bytes },
    /// Tell every node, once.
    Ask { body: Bytes },
    /// Tell one node directly.
    Send { node: NodeId, body: Bytes },
    /// Call these.
    Tell { announced: Vec<Announced>, confirmed: bool },
}

impl From<Step> for Effect {
    fn from(step: Step) -> Self {
        match step {
            Step::Publish { seq, body } => Self::Publish { seq, body },
            Step::Tell { announced, confirmed } => Self::Tell { announced, confirmed },
        }
    }
}

pub fn send(node: NodeId, part: Part) -> Option<Effect> {
    encode(&Gossip::Part(part)).map(|body| Effect::Send { node, body })
}

pub fn ask(from: NodeId, to: NodeId, request: u64) -> Option<Effect> {
    encode(&Gossip::Ask { from, to, request }).map(|body| Effect::Ask { body })
}

fn encode(gossip: &Gossip) -> Option<Bytes> {
    let encoded = gossip.encode();
    encoded
        .map(Bytes::from)
        .inspect_err(|error| tracing::error!(%error, "mail gossip cannot be written"))
        .ok()
}
