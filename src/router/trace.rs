//! The steps of messages that operators may want to see: noted in passing, and only while one looks.

use std::sync::Arc;

use super::strategy::Nodes;
use super::{Router, Settle};
use crate::bus::Destination;
use crate::delivery::trace::Step;
use crate::protocol::message::{Message, Sender, Settlement};

impl Router {
    /// Notes that this node has taken a message from its source and, later, how it was settled.
    pub(super) fn traced(&self, message: &Message, settle: Settle) -> Settle {
        let trace = self.trace();
        if !trace.is_on() {
            return settle;
        }
        let accepted = || Step::Accepted { from: described(&message.sender), to: message.target.to_string() };
        trace.note(&message.id, accepted);
        let (trace, id) = (Arc::clone(trace), message.id.clone());
        Box::new(move |settlement| {
            trace.note(&id, || settled(&settlement));
            settle(settlement);
        })
    }

    pub(super) fn trace_sent(&self, message: &Message, nodes: &Nodes) {
        if !nodes.is_empty() {
            self.trace().note(&message.id, || Step::Sent { nodes: nodes.to_vec() });
        }
    }

    pub(super) fn trace_publish(&self, message: &Message, to: &Destination) {
        match to {
            Destination::Nodes(nodes) => self.trace_sent(message, nodes),
            _ => self.trace().note(&message.id, || Step::SentToAll),
        }
    }
}

fn described(sender: &Sender) -> String {
    match sender {
        Sender::Client { session, .. } => format!("session {session}"),
        Sender::User { user } => format!("user {user}"),
        Sender::Service { service } => format!("service {service}"),
    }
}

fn settled(settlement: &Settlement) -> Step {
    let error = match settlement {
        Settlement::Failed(error) => Some(error.to_string()),
        _ => None,
    };
    Step::Settled { outcome: settlement.outcome().to_owned(), error }
}
