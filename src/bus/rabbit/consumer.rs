//! One consuming channel: hands deliveries to their inbox and tells the broker what became of them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, Instant, MissedTickBehavior};

use super::ack_tracker::AckTracker;
use super::connection::{within, LinkError};
use super::convert;
use super::gather::{Pace, GATHER_FOR};
use crate::bus::{AckToken, Delivery, Verdict, Via};

/// How long an acknowledgement waits for those before it, so that one frame can speak for many.
const SINGLES_AFTER: Duration = Duration::from_millis(10);
/// How long one waits for those after it. The prefetch window must last for several times that.
const MULTIPLE_AFTER: Duration = Duration::from_millis(2);

/// Sets the prefetch and starts to consume. The order matters: a consumer keeps the prefetch of its start.
/// Dropping the result cancels the consumer, and with it an auto-delete queue.
pub async fn consume(channel: &Channel, queue: &str, prefetch: u16) -> Result<Consumer, LinkError> {
    within("basic.qos", channel.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
    let (queue, tag) = (ShortString::try_new(queue)?, ShortString::default());
    let options = BasicConsumeOptions::default();
    within("basic.consume", channel.basic_consume(queue, tag, options, FieldTable::default())).await
}

/// As [`work`], for a consumer that lives as long as its connection: once the node has `left` it still sees to what is
/// unsettled.
pub async fn run(
    channel: Channel,
    consumer: Consumer,
    prefetch: u16,
    inbox: mpsc::Sender<Delivery>,
    via: impl Fn(&str) -> Via,
    takes: impl Fn(&Delivery) -> bool,
    left: impl Fn() -> bool,
) -> LinkError {
    match work(&channel, consumer, prefetch, inbox, via, takes, left).await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

/// Hands everything to the inbox, apart from what the bus `takes` for itself. The end of the consumer means that the
/// connection has to be built anew; unless it was cancelled because the node `left`: then this ends when all that was
/// handed over is settled, and the broker has been told.
pub async fn work(
    channel: &Channel,
    consumer: Consumer,
    prefetch: u16,
    inbox: mpsc::Sender<Delivery>,
    via: impl Fn(&str) -> Via,
    takes: impl Fn(&Delivery) -> bool,
    left: impl Fn() -> bool,
) -> Result<(), LinkError> {
    let (verdicts, settled) = mpsc::channel(usize::from(prefetch));
    let mut settling = std::pin::pin!(settle(channel, settled));
    tokio::select! {
        handed = hand_over(consumer, verdicts, inbox, via, takes) => handed?,
        settled = &mut settling => return settled.and(Err(LinkError::Ended("nobody settles deliveries"))),
    }
    match left() {
        true => settling.await,
        false => Err(LinkError::Ended("a consumer was cancelled")),
    }
}

async fn hand_over(
    mut consumer: Consumer,
    verdicts: mpsc::Sender<(u64, Verdict)>,
    inbox: mpsc::Sender<Delivery>,
    via: impl Fn(&str) -> Via,
    takes: impl Fn(&Delivery) -> bool,
) -> Result<(), LinkError> {
    let mut pace = Pace::new(Instant::now());
    let mut taken = 0;
    loop {
        let next = match consumer.next().now_or_never() {
            Some(next) => next,
            None => {
                if pace.add(taken, Instant::now()) {
                    sleep(GATHER_FOR).await;
                }
                taken = 0;
                consumer.next().await
            }
        };
        let Some(delivery) = next else { return Ok(()) };
        taken += 1;
        let delivery = delivery?;
        let via = via(delivery.exchange.as_str());
        let delivery = delivered(delivery, via, &verdicts);
        if takes(&delivery) {
            delivery.ack.ack();
            continue;
        }
        if let Err(refused) = inbox.send(delivery).await {
            // Nobody reads any more. Held, not dropped: a requeued delivery would come back at once, for ever.
            std::future::pending::<()>().await;
            drop(refused);
        }
    }
}

/// A delivery in the bus's words.
pub fn delivered(from: LapinDelivery, via: Via, verdicts: &mpsc::Sender<(u64, Verdict)>) -> Delivery {
    Delivery {
        via,
        routing_key: from.routing_key.as_str().to_owned(),
        properties: convert::incoming(&from.properties),
        ack: AckToken::new(from.delivery_tag, verdicts.clone()),
        redelivered: from.redelivered,
        body: Bytes::from(from.data),
    }
}

/// The only place that acknowledges: acknowledgements that overtake one another kill the channel. Ends when nothing is
/// left that could be settled.
async fn settle(channel: &Channel, mut settled: mpsc::Receiver<(u64, Verdict)>) -> Result<(), LinkError> {
    let mut tracker = AckTracker::default();
    let mut batch = Vec::new();
    let mut tick = interval(SINGLES_AFTER);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut singles_due = false;
    loop {
        tokio::select! {
            count = settled.recv_many(&mut batch, 1024) => {
                if count == 0 {
                    return Ok(());
                }
                tokio::time::sleep(MULTIPLE_AFTER).await;
                while let Ok(verdict) = settled.try_recv() {
                    batch.push(verdict);
                }
            }
            _ = tick.tick(), if singles_due => {
                singles_due = false;
                for tag in tracker.single() {
                    channel.basic_ack(tag, BasicAckOptions { multiple: false }).await?;
                }
                continue;
            }
        }
        for (tag, verdict) in batch.drain(..) {
            tracker.settle(tag, verdict);
            if verdict == Verdict::Requeue {
                let options = BasicNackOptions { multiple: false, requeue: true };
                channel.basic_nack(tag, options).await?;
            }
        }
        if let Some(tag) = tracker.multiple() {
            channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        }
        singles_due = tracker.has_singles();
    }
}
