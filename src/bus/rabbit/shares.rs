//! Consumes this node's share of the partitions of ingress: one channel for each, on one connection.
//!
//! A partition is handed over in three steps: the consumer is cancelled, so that nothing more comes; what came is settled;
//! and the channel is closed. Only then does the node say that it holds the partition no longer, and the next one begins.
//! What is not settled in time goes back where it was with the closing of the channel, in one step, and comes to the next
//! node marked as a repeat.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicCancelOptions;
use lapin::Connection;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout, Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::connection::{within, LinkError};
use super::consumer;
use super::ingress::{via, PREFETCH};
use super::layout::{Layout, Offer};
use super::pulse::is_probe;
use super::Shared;
use crate::bus::partitions::{IngressView, Partition, Turns};
use crate::bus::Delivery;

/// For the settlement of what a node holds of a partition that it hands over.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub async fn consume(
    shared: &Shared,
    connection: &Connection,
    inbox: &mpsc::Sender<Delivery>,
    leave: &watch::Receiver<bool>,
) -> LinkError {
    let layout = match Layout::open(shared, connection).await {
        Ok(layout) => layout,
        Err(error) => return error,
    };
    let offer = watch::Sender::new(Offer::default());
    shared.ingress.state.send_modify(|state| state.is_up = true);
    let offered = offer.subscribe();
    let error = tokio::select! {
        error = layout.keep(&offer) => error,
        error = share(shared, connection, inbox, offered, leave) => error,
    };
    shared.ingress.state.send_modify(|state| {
        state.is_up = false;
        state.holds.clear();
    });
    error
}

type Ended = (Partition, Result<(), LinkError>);

/// Takes and hands over as the cluster changes.
async fn share<'a>(
    shared: &'a Shared,
    connection: &'a Connection,
    inbox: &'a mpsc::Sender<Delivery>,
    mut offered: watch::Receiver<Offer>,
    leave: &watch::Receiver<bool>,
) -> LinkError {
    let mut tasks: FuturesUnordered<BoxFuture<'a, Ended>> = FuturesUnordered::new();
    let mut running: BTreeMap<Partition, watch::Sender<bool>> = BTreeMap::new();
    let mut turns = Turns::default();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((partition, result)) = tasks.next() => {
                running.remove(&partition);
                if let Err(error) = result {
                    return error;
                }
                info!(%partition, "handed over");
            }
            _ = tick.tick() => {}
        }
        let now = Instant::now();
        let offer = offered.borrow_and_update().clone();
        let view = match *leave.borrow() {
            true => IngressView::default(),
            false => shared.ingress.view.borrow().clone(),
        };
        let holds: BTreeSet<Partition> = running.keys().copied().collect();
        if !offer.orphans.is_empty() {
            turns.adopt(offer.orphans.iter().copied().filter(|orphan| !holds.contains(orphan)), now);
        }
        let wanted = turns.step(&shared.node, &view, &offer.partitions, &holds, now);
        for (_, stop) in running.iter().filter(|(partition, _)| !wanted.contains(partition)) {
            stop.send_replace(true);
        }
        for partition in wanted.difference(&holds) {
            let (stop, stopped) = watch::channel(false);
            running.insert(*partition, stop);
            tasks.push(one(shared, connection, *partition, inbox.clone(), stopped).boxed());
        }
        shared.ingress.state.send_if_modified(|state| {
            let is_news = !state.holds.iter().eq(running.keys());
            state.holds = running.keys().copied().collect();
            is_news
        });
    }
}

/// One partition, until it is handed over or the connection is of no use.
async fn one(
    shared: &Shared,
    connection: &Connection,
    partition: Partition,
    inbox: mpsc::Sender<Delivery>,
    stopped: watch::Receiver<bool>,
) -> Ended {
    (partition, work(shared, connection, partition, inbox, stopped).await)
}

async fn work(
    shared: &Shared,
    connection: &Connection,
    partition: Partition,
    inbox: mpsc::Sender<Delivery>,
    stopped: watch::Receiver<bool>,
) -> Result<(), LinkError> {
    let channel = within("opening a channel", connection.create_channel()).await?;
    // All partitions together fill the window that the node has for ingress.
    let prefetch = PREFETCH / partition.of;
    let consumer = consumer::consume(&channel, &shared.topology.partition(partition).name, prefetch).await?;
    info!(%partition, "consuming");
    let tag = consumer.tag();
    let is_stopped = || *stopped.borrow();
    let takes = |delivery: &Delivery| is_probe(delivery, shared.topology.account());
    let mut working =
        std::pin::pin!(consumer::work(&channel, consumer, prefetch, inbox, via, takes, is_stopped));
    let mut stopping = stopped.clone();
    tokio::select! {
        ended = &mut working => return ended,
        _ = stopping.wait_for(|stopped| *stopped) => {}
    }
    let cancelled = within("basic.cancel", channel.basic_cancel(tag, BasicCancelOptions::default()));
    let (cancelled, settled) = tokio::join!(cancelled, timeout(HAND_OVER_MAX, &mut working));
    cancelled?;
    match settled {
        Ok(settled) => settled?,
        Err(_) => warn!(%partition, "what is not settled goes back to the broker"),
    }
    within("closing a channel", channel.close(200, "handed over".into())).await
}
