//! The directory's task: it keeps the timers, follows the link and carries out effects.

use std::collections::VecDeque;
use std::future::Future;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::gossip::Gossip;
use super::state::{Effect, Recipients};
use super::{Directory, Membership};
use crate::bus::{Destination, Lane, Link, Outcome, Properties, Publish, Publishing};
use crate::config::Routing;
use crate::ids::{Incarnation, NodeId};

/// AMQP `type` of gossip, on whichever exchange it comes.
pub const GOSSIP_KIND: &str = "gossip";
/// AMQP `type` of a probe. It has no body and needs no reply: that the broker routed it proves the queue's existence.
pub const PROBE_KIND: &str = "probe";
/// Notices that wait for room in the membership channel; see there.
pub(super) const NOTICES_KEPT: usize = 4_096;
/// All gossip has one order key: a heartbeat must not overtake the deltas that it counts.
const ORDER_KEY: u64 = 0xd12e_c702;

/// The service; dropping it ends it: this node publishes no more gossip.
pub(super) fn run(
    directory: Directory,
    membership: mpsc::Sender<Membership>,
) -> impl Future<Output = ()> + Send + 'static {
    Service { directory, membership, notices: VecDeque::new(), link: Link::default() }.run()
}

struct Service {
    directory: Directory,
    membership: mpsc::Sender<Membership>,
    notices: VecDeque<Membership>,
    link: Link,
}

impl Service {
    async fn run(mut self) {
        let shared = self.directory.shared.clone();
        let mut links = shared.bus.link();
        loop {
            let link = *links.borrow_and_update();
            self.follow(link);
            let (effects, next, is_touched) = {
                let now = self.directory.now();
                let mut state = self.directory.write();
                (state.poll(now), state.next_poll(), state.watched.is_touched())
            };
            self.directory.tell_touched(is_touched);
            for effect in effects {
                self.carry_out(effect);
            }
            let at = next.map(|next| shared.began + next);
            tokio::select! {
                changed = links.changed() => {
                    if changed.is_err() {
                        return; // The bus is closed for good.
                    }
                }
                () = shared.wake.notified() => {}
                () = async { if let Some(at) = at { sleep_until(at).await } }, if at.is_some() => {}
                permit = self.membership.reserve(), if !self.notices.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(notice) = self.notices.pop_front() {
                            permit.send(notice);
                        }
                    }
                    // The receiver is gone; the directory works without it.
                    Err(_) => self.notices.clear(),
                },
            }
        }
    }

    fn follow(&mut self, link: Link) {
        let now = self.directory.now();
        let mut state = self.directory.write();
        if link.incarnation != self.link.incarnation {
            match link.incarnation {
                Some(incarnation) => state.link_up(incarnation, now),
                None => state.link_down(),
            }
        }
        state.set_publishing(link.incarnation.is_some() && link.publishing == Publishing::Ready, now);
        self.link = link;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(gossip) => {
                if let Some(publish) = to_all(&gossip, self.directory.shared.routing) {
                    self.directory.shared.bus.publish(publish, Box::new(log_if_unconfirmed));
                }
            }
            Effect::SendTo { nodes, gossip } => {
                let destination = Destination::Nodes(nodes.iter().map(|(node, _)| node.clone()).collect());
                let is_of_ring = matches!(gossip, Gossip::Entries(_));
                if let Some(publish) = publish(destination, &gossip, self.directory.shared.routing) {
                    self.send(publish, nodes, is_of_ring);
                }
            }
            Effect::Probe { node, incarnation } => self.probe(node, incarnation),
            Effect::NodeUp { node } => {
                tracing::info!(%node, "node is up");
                self.tell(Membership::Up(node));
            }
            Effect::NodeLost { node, incarnation, reason } => {
                tracing::info!(%node, %incarnation, reason = reason.as_str(), "node is gone");
                self.tell(Membership::Lost(node, incarnation));
            }
            Effect::Confirmed(wait) => self.directory.confirmed(wait),
            Effect::Conflict { incarnation } => {
                tracing::error!(%incarnation, "another process uses this node id");
                self.tell(Membership::Conflict);
            }
            Effect::Stranger { node, dialect, is_refusal } => {
                let ours = self.directory.shared.routing.dialect();
                tracing::error!(
                    %node, theirs = %dialect, ours,
                    "a live node of this cluster routes in another way: WARREN_ROUTING must be the same on all; \
                     this node does not believe it"
                );
                if is_refusal {
                    self.tell(Membership::Stranger { node, dialect: dialect.to_string() });
                }
            }
        }
    }

    fn probe(&self, node: NodeId, incarnation: Incarnation) {
        let publish = Publish {
            to: Destination::Nodes([node.clone()].into_iter().collect()),
            properties: properties(PROBE_KIND),
            body: Bytes::new(),
            order_key: ORDER_KEY,
            lane: Lane::Urgent,
        };
        self.send(publish, [(node, incarnation)].into_iter().collect(), false);
    }

    /// Publishes directly. A return (`basic.return`) says that none of the nodes has a queue.
    fn send(&self, publish: Publish, nodes: Recipients, is_of_ring: bool) {
        let directory = self.directory.clone();
        let done = move |outcome| {
            if is_of_ring && outcome != Outcome::Confirmed {
                nodes.iter().for_each(|(node, _)| directory.entries_failed(node));
            }
            if outcome == Outcome::Unroutable {
                for (node, incarnation) in nodes {
                    directory.returned(&node, Some(incarnation));
                }
            } else {
                log_if_unconfirmed(outcome);
            }
        };
        self.directory.shared.bus.publish(publish, Box::new(done));
    }

    fn tell(&mut self, notice: Membership) {
        if self.notices.len() == NOTICES_KEPT {
            let dropped = self.notices.pop_front();
            tracing::error!(?dropped, "the router does not read membership notices; one was dropped");
        }
        self.notices.push_back(notice);
    }
}

/// Lost gossip is repaired without the sender: the next heartbeat shows the gap.
fn log_if_unconfirmed(outcome: Outcome) {
    if outcome != Outcome::Confirmed {
        tracing::debug!(?outcome, "gossip was not confirmed");
    }
}

pub(super) fn to_all(gossip: &Gossip, routing: Routing) -> Option<Publish> {
    publish(Destination::Control, gossip, routing)
}

fn publish(to: Destination, gossip: &Gossip, routing: Routing) -> Option<Publish> {
    match gossip.encode(routing) {
        Ok(body) => Some(Publish {
            to,
            properties: properties(GOSSIP_KIND),
            body: body.into(),
            order_key: ORDER_KEY,
            lane: Lane::Urgent,
        }),
        Err(error) => {
            tracing::error!(%error, "gossip cannot be written");
            None
        }
    }
}

fn properties(kind: &str) -> Properties {
    Properties {
        kind: Some(kind.to_owned()),
        content_type: (kind == GOSSIP_KIND).then(|| "application/json".to_owned()),
        persistent: Some(false),
        ..Properties::default()
    }
}
