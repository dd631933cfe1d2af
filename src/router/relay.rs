//! What this node does as the home of users, with the strategy `ring`: it passes messages on to the nodes that have them.
//!
//! Messages and notices of mail are passed on in the order in which they came, with the order key of their target. So they
//! keep the order in which their origin sent them. The origin is told to which nodes a message went and goes on to answer
//! for it: the receipts go to the origin.

use std::time::Instant;

use super::strategy::Nodes;
use super::{order_key, Router};
use crate::bus::{Destination, Outcome, Publish};
use crate::delivery::envelope::Envelope;
use crate::delivery::peer_words::{mail_publish, MailNotice};
use crate::directory::{Home, Key};
use crate::ids::{NodeId, UserId};
use crate::protocol::target::Target;

impl Router {
    /// Passes on a message that `by` has sent here since this node is the home of the target.
    pub fn relay(&self, envelope: Envelope, by: &NodeId) {
        let Target::User(user) = &envelope.message.target else { return self.arrive(envelope) };
        let (is_here, others) = self.holders_for(user, by);
        if let Some(origin) = &envelope.origin {
            let here = is_here.then(|| self.node().clone());
            self.receipts.send_relayed(origin.clone(), others.iter().cloned().chain(here).collect());
        }
        if !others.is_empty() {
            self.trace_sent(&envelope.message, &others);
            let to = self.way_to(others.clone());
            self.pass_on(self.envelope_publish(&envelope, to, Instant::now()), others);
        }
        if is_here {
            self.arrive(envelope);
        }
    }

    /// Passes on the word that mail of a user lies in its box.
    pub(super) fn relay_notice(&self, notice: &MailNotice) {
        let (_, others) = self.holders_for(&notice.user, &notice.from);
        if !others.is_empty() {
            let notice = MailNotice { relay: false, ..notice.clone() };
            let key = order_key(&Target::User(notice.user.clone()));
            self.pass_on(mail_publish(self.way_to(others.clone()), &notice, key), others);
        }
    }

    /// Whether this node is to show a message for the user, and which others are. `by` has done what it can itself. When this
    /// node is not sure, or is not the user's home as it knows the cluster, it is all of them.
    fn holders_for(&self, user: &UserId, by: &NodeId) -> (bool, Nodes) {
        match self.directory.home_of(Key::user(user)) {
            Home::Holders(nodes) => {
                (self.hub.holds(user), nodes.into_iter().filter(|node| node != by).collect())
            }
            Home::Unsure | Home::At(_) => {
                let nodes = self.directory.live_nodes();
                (true, nodes.into_iter().filter(|node| node != by).collect())
            }
        }
    }

    /// What gets lost here the origin finds out by its receipts that do not come.
    fn pass_on(&self, publish: Publish, nodes: Nodes) {
        let is_direct = matches!(publish.to, Destination::Nodes(_));
        let meant: Vec<_> = (nodes.into_iter())
            .map(|node| {
                let incarnation = self.directory.incarnation_of(&node);
                (node, incarnation)
            })
            .collect();
        let directory = self.directory.clone();
        let done = move |outcome| {
            if outcome == Outcome::Unroutable && is_direct {
                for (node, incarnation) in &meant {
                    directory.returned(node, *incarnation);
                }
            }
        };
        self.bus.publish(publish, Box::new(done));
    }
}
