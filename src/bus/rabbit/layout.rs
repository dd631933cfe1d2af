//! Where ingress flows: which partitions exist at the broker, and how their number is changed.
//!
//! ```text
//! warren.ingress ─#─▶ warren.ingress.hash ─▶ warren.ingress.4 ─▶ [warren.ingress.4.1] … [warren.ingress.4.4]
//!      topic             x-consistent-hash     x-consistent-hash
//! ```
//!
//! Each number of partitions is a layout of its own, whose ring is whole before anything gets there: so a target goes to
//! one queue of it for as long as it is in use. Layouts are changed at the first hash exchange, which hands a message
//! to exactly one of what is bound to it: the new one is bound, then the old one unbound, and a target moves over
//! once. The queue `warren.ingress` of a single partition takes part in that: while it is bound twice, directly and
//! through the hash exchange, the broker still gives it one copy. Nothing is lost or doubled at any step, and a step
//! that is done again changes nothing.
//!
//! Layouts are changed only when all live nodes want the same number. What lies in the queues of former layouts is
//! consumed first, and what is newer waits until then, so that the order for each target is kept.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::ShortString;
use lapin::{Channel, Connection};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

use super::connection::{within, LinkError};
use super::declare;
use super::topology::{Binding, Exchange, Queue};
use super::Shared;
use crate::bus::partitions::{IngressView, Partition, PARTITIONS_MAX};

/// Between two looks while something is about to change.
const SOON: Duration = Duration::from_millis(500);
/// And else: what an operator deletes is to be back within 30 s.
const ROUND_EVERY: Duration = Duration::from_secs(5);
/// Every binding of a hash exchange has this weight.
const WEIGHT: &str = "1";
const ALL: &str = "#";

/// What there is to consume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    pub partitions: BTreeSet<Partition>,
    /// Those of them that no node consumed at the last two looks.
    pub orphans: BTreeSet<Partition>,
}

pub struct Layout<'a> {
    shared: &'a Shared,
    connection: &'a Connection,
    channel: Option<Channel>,
    /// The number that this node is to see to.
    of: u16,
    /// Other layouts that may still have messages.
    former: BTreeSet<u16>,
    /// The own layout was there when it was looked for: messages may lie in its queues.
    is_there: bool,
    /// Everything that is published goes to the own layout.
    is_routed: bool,
    /// What is older was consumed.
    is_settled: bool,
    /// Without a consumer at the last look.
    lonely: BTreeSet<Partition>,
}

impl<'a> Layout<'a> {
    /// Looks for what is there, and whether the broker can do what is wanted.
    pub async fn open(shared: &'a Shared, connection: &'a Connection) -> Result<Self, LinkError> {
        let mut layout = Self {
            shared,
            connection,
            channel: None,
            of: shared.ingress.partitions,
            former: BTreeSet::new(),
            is_there: false,
            is_routed: false,
            is_settled: false,
            lonely: BTreeSet::new(),
        };
        layout.look().await?;
        if layout.of > 1 && !layout.is_there {
            // Of no meaning: the answer tells whether the plugin is on, and whether this account may make exchanges.
            let name = format!("{}.check", shared.topology.ingress());
            let check = Exchange { name, ..shared.topology.ingress_hash() };
            declare::declare_exchange(&layout.channel().await?, &check, false).await?;
            layout.delete_exchange(&check, false).await?;
        }
        Ok(layout)
    }

    /// Keeps it so, and tells what there is to consume.
    pub async fn keep(mut self, offer: &watch::Sender<Offer>) -> LinkError {
        loop {
            let view = self.shared.ingress.view.borrow().clone();
            let found = match self.round(&view).await {
                Ok(found) => found,
                Err(error) => return error,
            };
            let name = |orphan: &Partition| self.shared.topology.partition(*orphan).name;
            let damage = found.orphans.iter().map(|orphan| format!("no node consumes {}", name(orphan)));
            self.shared.ingress_damage.send_replace(Some(damage.collect()));
            offer.send_if_modified(|offer| std::mem::replace(offer, found.clone()) != found);
            sleep(if self.is_settled { ROUND_EVERY } else { SOON }).await;
        }
    }

    async fn round(&mut self, view: &IngressView) -> Result<Offer, LinkError> {
        if view.is_agreed {
            let was_routed = self.is_routed;
            self.is_routed = self.route(view.is_first).await?;
            if self.is_routed && !was_routed {
                info!(partitions = self.of, former = ?self.former, "ingress flows into the partitions");
                self.is_settled = false;
                if !self.is_there {
                    // What was on its way into the former queues gets there before the next look.
                    return Ok(self.offer(self.all_former()));
                }
            }
        }
        if !self.is_routed && !self.is_there {
            return Ok(self.offer(self.all_former()));
        }
        let (filled, is_consumed) = self.former_queues().await?;
        let is_former = |partition: &Partition| partition.of != self.of;
        let is_held = view.claimed.iter().any(is_former)
            || self.shared.ingress.state.borrow().holds.iter().any(is_former);
        // Nodes that want another number may consume for as long as they like.
        self.is_settled |= filled.is_empty() && !(view.is_agreed && (is_consumed || is_held));
        if self.is_settled && view.is_agreed && view.is_first {
            self.delete_former().await?;
        }
        let mut offer = self.offer(filled);
        if self.is_settled {
            offer.orphans = self.orphans().await?;
        }
        Ok(offer)
    }

    fn all_former(&self) -> BTreeSet<Partition> {
        self.former.iter().flat_map(|of| Partition::all(*of)).collect()
    }

    fn offer(&self, mut partitions: BTreeSet<Partition>) -> Offer {
        if self.is_settled {
            partitions.extend(Partition::all(self.of));
        }
        Offer { partitions, orphans: BTreeSet::new() }
    }

    // ---- looking ----

    async fn channel(&mut self) -> Result<Channel, LinkError> {
        if let Some(channel) = self.channel.take().filter(|channel| channel.status().connected()) {
            self.channel = Some(channel.clone());
            return Ok(channel);
        }
        let channel = within("opening a channel", self.connection.create_channel()).await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    async fn exists(&mut self, exchange: &Exchange) -> Result<bool, LinkError> {
        found(declare::declare_exchange(&self.channel().await?, exchange, true).await).map(|it| it.is_some())
    }

    /// Which layouts there are. Each one that is not there costs a channel.
    async fn look(&mut self) -> Result<(), LinkError> {
        for of in 2..=PARTITIONS_MAX {
            let exchange = self.shared.topology.ingress_layout(of);
            match (self.exists(&exchange).await?, of == self.of) {
                (true, false) => drop(self.former.insert(of)),
                (is_there, true) => self.is_there = is_there,
                (false, false) => {}
            }
        }
        if self.of > 1 {
            self.former.insert(1);
        }
        self.is_there &= self.exists(&self.shared.topology.ingress_hash()).await?;
        Ok(())
    }

    /// The queues of former layouts in which messages wait, and whether some have consumers.
    async fn former_queues(&mut self) -> Result<(BTreeSet<Partition>, bool), LinkError> {
        let (mut filled, mut is_consumed, mut gone) = (BTreeSet::new(), false, self.former.clone());
        for partition in self.all_former() {
            let queue = self.shared.topology.partition(partition);
            let Some((messages, consumers)) = found(declare::depth(&self.channel().await?, &queue).await)?
            else {
                continue;
            };
            gone.remove(&partition.of);
            is_consumed |= consumers > 0;
            if messages > 0 {
                filled.insert(partition);
            }
        }
        self.former.retain(|of| *of == 1 || !gone.contains(of));
        Ok((filled, is_consumed))
    }

    /// Those without a consumer now and at the last look.
    async fn orphans(&mut self) -> Result<BTreeSet<Partition>, LinkError> {
        let mut lonely = BTreeSet::new();
        for partition in Partition::all(self.of) {
            let queue = self.shared.topology.partition(partition);
            let found = found(declare::depth(&self.channel().await?, &queue).await)?;
            if found.is_some_and(|(_, consumers)| consumers == 0) {
                lonely.insert(partition);
            }
        }
        let before = std::mem::replace(&mut self.lonely, lonely);
        Ok(self.lonely.intersection(&before).copied().collect())
    }

    // ---- changing ----

    /// Leads everything into the own layout, or sees that it still is. `false`: another node has to do something first.
    async fn route(&mut self, is_first: bool) -> Result<bool, LinkError> {
        let topology = &self.shared.topology;
        let (ingress, hash) = (topology.ingress(), topology.ingress_hash());
        let has_hash = self.exists(&hash).await?;
        if self.of == 1 {
            return match has_hash {
                true => self.route_to_one(&ingress, &hash.name).await.map(|()| true),
                false => Err(LinkError::Ended("ingress is one queue again")),
            };
        }
        let own = topology.ingress_layout(self.of);
        let is_made = self.exists(&own).await?;
        if !(has_hash && (is_made || self.former.len() > 1)) {
            if !is_first {
                return Ok(false);
            }
            self.put_hash_before_queue(&ingress, &hash).await?;
        }
        let channel = self.channel().await?;
        declare::declare_exchange(&channel, &own, false).await?;
        for partition in Partition::all(self.of) {
            let queue = topology.partition(partition);
            declare::declare_queue(&channel, &queue, false).await?;
            declare::bind(&channel, &weighed(&queue, &own)).await?;
        }
        declare::bind_exchange(&channel, &own.name, &hash.name, WEIGHT).await?;
        declare::bind_exchange(&channel, &hash.name, &ingress, ALL).await?;
        self.unbind_former(&hash).await?;
        let queue = topology.partition(Partition { of: 1, number: 1 });
        found(declare::unbind(&self.channel().await?, &weighed(&queue, &hash)).await)?;
        found(declare::unbind(&self.channel().await?, &topology.ingress_binding()).await)?;
        Ok(true)
    }

    /// From one queue to the hash exchange before it.
    async fn put_hash_before_queue(&mut self, ingress: &str, hash: &Exchange) -> Result<(), LinkError> {
        let topology = &self.shared.topology;
        let queue = topology.partition(Partition { of: 1, number: 1 });
        let channel = self.channel().await?;
        declare::declare_exchange(&channel, hash, false).await?;
        declare::bind(&channel, &weighed(&queue, hash)).await?;
        // Twice on its way to the queue, a message gets there once.
        declare::bind_exchange(&channel, &hash.name, ingress, ALL).await?;
        declare::unbind(&channel, &topology.ingress_binding()).await
    }

    async fn route_to_one(&mut self, ingress: &str, hash: &str) -> Result<(), LinkError> {
        let topology = &self.shared.topology;
        let queue = topology.partition(Partition { of: 1, number: 1 });
        let exchange = topology.ingress_hash();
        declare::bind(&self.channel().await?, &weighed(&queue, &exchange)).await?;
        self.unbind_former(&exchange).await?;
        declare::bind(&self.channel().await?, &topology.ingress_binding()).await?;
        found(declare::unbind_exchange(&self.channel().await?, hash, ingress, ALL).await)?;
        Ok(())
    }

    async fn unbind_former(&mut self, hash: &Exchange) -> Result<(), LinkError> {
        for of in self.former.clone() {
            let former = self.shared.topology.ingress_layout(of).name;
            if of > 1 {
                let channel = self.channel().await?;
                found(declare::unbind_exchange(&channel, &former, &hash.name, WEIGHT).await)?;
            }
        }
        Ok(())
    }

    /// Removes what is of no use any more. What is in use, or holds a message, the broker does not delete.
    async fn delete_former(&mut self) -> Result<(), LinkError> {
        let topology = &self.shared.topology;
        for of in self.former.clone() {
            // The broker knows no condition for quorum queues, so that these are left to the operator.
            if of == 1 || topology.is_quorum() {
                continue;
            }
            let mut are_gone = true;
            for partition in Partition::all(of) {
                are_gone &= self.delete_queue(&topology.partition(partition)).await?;
            }
            if are_gone && self.delete_exchange(&topology.ingress_layout(of), true).await? {
                self.former.remove(&of);
            }
        }
        if self.of == 1 {
            let (queue, hash) = (topology.partition(Partition { of: 1, number: 1 }), topology.ingress_hash());
            found(declare::unbind(&self.channel().await?, &weighed(&queue, &hash)).await)?;
            self.delete_exchange(&hash, true).await?;
        }
        Ok(())
    }

    /// Whether it is gone.
    async fn delete_queue(&mut self, queue: &Queue) -> Result<bool, LinkError> {
        let options = QueueDeleteOptions { if_unused: true, if_empty: true, nowait: false };
        let name = ShortString::try_new(queue.name.as_str())?;
        let channel = self.channel().await?;
        is_deleted(within("deleting a queue", channel.queue_delete(name, options)).await.map(drop))
    }

    async fn delete_exchange(&mut self, exchange: &Exchange, if_unused: bool) -> Result<bool, LinkError> {
        let options = ExchangeDeleteOptions { if_unused, nowait: false };
        let name = ShortString::try_new(exchange.name.as_str())?;
        let channel = self.channel().await?;
        is_deleted(within("deleting an exchange", channel.exchange_delete(name, options)).await)
    }
}

fn weighed(queue: &Queue, exchange: &Exchange) -> Binding {
    Binding { queue: queue.name.clone(), exchange: exchange.name.clone(), key: WEIGHT.to_owned() }
}

/// `None`: it is not there.
fn found<T>(looked: Result<T, LinkError>) -> Result<Option<T>, LinkError> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if declare::is(&error, AMQPSoftError::NOTFOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_deleted(done: Result<(), LinkError>) -> Result<bool, LinkError> {
    let may_stay = [AMQPSoftError::PRECONDITIONFAILED, AMQPSoftError::ACCESSREFUSED];
    match done {
        Ok(()) => Ok(true),
        Err(error) if declare::is(&error, AMQPSoftError::NOTFOUND) => Ok(true),
        Err(error) if may_stay.iter().any(|reason| declare::is(&error, reason.clone())) => {
            debug!(%error, "an unused part of ingress stays");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
