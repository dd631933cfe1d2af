//! Tickets on all nodes: each is taken back by the node that issued it, which the others ask.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::{Identity, NotIssued, Ticket};
use crate::delivery::peer_words::Ask;
use crate::error::{Code, Error};
use crate::router::Router;

/// Whose a ticket is.
#[derive(Debug)]
pub enum Redeemed {
    By(Box<Identity>),
    /// No ticket of this cluster, or used, or too old.
    Refused,
    /// The node that issued it does not answer. It may be used up.
    Unanswered,
}

impl Router {
    pub fn issue_ticket(&self, identity: Identity) -> Result<Ticket, Error> {
        let secret = self.tickets.issue(identity, Instant::now()).map_err(|why| match why {
            NotIssued::OfUser => Error::new(Code::RateLimited, "as many tickets as one user may have"),
            NotIssued::OfNode => Error::new(Code::Overloaded, "as many tickets as a node may have"),
        })?;
        Ok(Ticket { node: self.node().clone(), secret })
    }

    pub fn ticket_ttl(&self) -> Duration {
        self.tickets.ttl()
    }

    /// Whether this node can tell without asking another one.
    pub fn is_own_ticket(&self, ticket: &Ticket) -> bool {
        ticket.node == *self.node()
    }

    pub async fn redeem_ticket(self: &Arc<Self>, ticket: &Ticket) -> Redeemed {
        let found = if self.is_own_ticket(ticket) {
            self.tickets.redeem(ticket.secret, Instant::now()).map(Box::new)
        } else if self.directory.is_live(&ticket.node) {
            let found = self.ask_only(&ticket.node, Ask::RedeemTicket(ticket.secret)).await;
            if found.partial {
                return Redeemed::Unanswered;
            }
            found.identity
        } else {
            None
        };
        found.map_or(Redeemed::Refused, Redeemed::By)
    }
}
