//! Hands out one mailbox: exclusively, in order, until it is empty or interrupted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot, OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, sleep, timeout, Interval, MissedTickBehavior};
use tracing::debug;

use super::super::ack_tracker::AckTracker;
use super::super::connection::LinkError;
use super::super::consumer::delivered;
use super::super::declare;
use super::admin::{self, in_time, Admin};
use super::probe::QUESTION;
use super::removal::Removal;
use crate::bus::{Delivery, Ending, Mailbox, MailboxError, Verdict, Via};

/// Mailboxes that this node hands out at a time; each takes a channel, and more wait.
pub const DRAINS_MAX: usize = 256;
/// How long an opening waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(5);
const PREFETCH: u16 = 64;
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Messages that are handed out and not acknowledged: what the broker gives before it hears of acknowledgements.
const WINDOW: usize = PREFETCH as usize;
/// How long an acknowledgement waits for those before it, so that one frame can speak for many.
const SINGLES_AFTER: Duration = Duration::from_millis(10);
/// Messages that were counted may expire before they are handed out.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

pub async fn permit(drains: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, MailboxError> {
    match timeout(TURN_DEADLINE, drains.clone().acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(MailboxError),
    }
}

pub enum Started {
    Empty,
    Busy,
    Mail(Box<Drain>, Mailbox),
}

pub async fn open(admin: &Admin, queue: String) -> Result<Started, MailboxError> {
    let slot = admin.slot().await.map_err(|_| MailboxError)?;
    let consuming = start(admin, &queue).await;
    drop(slot);
    match consuming {
        Ok((channel, consumer)) => {
            let (mailbox, mail, end) = Mailbox::new(WINDOW);
            Ok(Started::Mail(Box::new(Drain { channel, queue, consumer, mail, end }), mailbox))
        }
        Err(error) if declare::is(&error, AMQPSoftError::NOTFOUND) => Ok(Started::Empty),
        Err(error) if declare::is(&error, AMQPSoftError::ACCESSREFUSED) => Ok(Started::Busy),
        Err(error) => {
            debug!(%error, queue, "cannot open a mailbox");
            Err(MailboxError)
        }
    }
}

async fn start(admin: &Admin, queue: &str) -> Result<(Channel, Consumer), LinkError> {
    let channel = in_time(admin.channel()).await?;
    let consuming = in_time(async {
        // Before the consumer, which keeps the prefetch of its start.
        channel.basic_qos(PREFETCH, BasicQosOptions { global: false }).await?;
        consume(&channel, queue).await
    });
    match consuming.await {
        Ok(consumer) => Ok((channel, consumer)),
        Err(error) => {
            // A broker that is slow may still begin to consume, and nobody else could open the mailbox for as
            // long as the connection lives.
            let _ = timeout(CLOSE_MAX, channel.close(200, "given up".into())).await;
            Err(error)
        }
    }
}

async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, LinkError> {
    let options = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let (queue, tag) = (ShortString::try_new(queue)?, ShortString::default());
    Ok(channel.basic_consume(queue, tag, options, FieldTable::default()).await?)
}

pub struct Drain {
    channel: Channel,
    queue: String,
    consumer: Consumer,
    mail: mpsc::Sender<Delivery>,
    end: oneshot::Sender<Ending>,
}

impl Drain {
    pub async fn run(self, admin: &Admin, removal: &Removal) {
        let Self { mut channel, queue, mut consumer, mail, end } = self;
        let ending = loop {
            let handed_out = HandOut::new(&channel, &queue, &mail).run(&mut consumer).await;
            // First the channel, so that nobody who hears of the end finds the mailbox busy.
            let _ = timeout(CLOSE_MAX, channel.close(200, "done".into())).await;
            // Not before: it would cancel itself, and leave an unused queue with messages that are out.
            drop(consumer);
            let emptied = match handed_out {
                Ok(Ending::Emptied) => restart(admin, &queue).await,
                Ok(Ending::Interrupted) => break Ending::Interrupted,
                Err(error) => Err(error),
            };
            match emptied {
                Ok(None) => break Ending::Emptied,
                Ok(Some(again)) => (channel, consumer) = again,
                Err(error) => {
                    debug!(%error, queue, "a mailbox was interrupted");

                    break Ending::Interrupted;
                }
            }
        };
        if ending == Ending::Emptied {
            removal.later(queue);
        }
        let _ = end.send(ending);
        // The end of the mail comes last: whoever sees it may ask for the reason.
        drop(mail);
    }
}

/// Looks again after the channel was closed, and begins again unless the mailbox is empty.
///
/// The broker may answer a look before it sends what it has already taken out of the queue for the consumer: only
/// after the closing is all of it counted again.
async fn restart(admin: &Admin, queue: &str) -> Result<Option<(Channel, Consumer)>, LinkError> {
    match admin.look(queue).await? {
        Some(content) if content.ready > 0 => {}
        _ => return Ok(None),
    }
    let slot = admin.slot().await?;
    let started = start(admin, queue).await.map(Some);
    drop(slot);
    started
}

fn ticks() -> Interval {
    let mut tick = interval(SINGLES_AFTER);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

struct HandOut<'a> {
    channel: &'a Channel,
    queue: &'a str,
    mail: &'a mpsc::Sender<Delivery>,
    verdicts: mpsc::Sender<(u64, Verdict)>,
    settled: mpsc::Receiver<(u64, Verdict)>,
    tracker: AckTracker,
    unsettled: usize,
    tick: Interval,
}

impl<'a> HandOut<'a> {
    fn new(channel: &'a Channel, queue: &'a str, mail: &'a mpsc::Sender<Delivery>) -> Self {
        let (verdicts, settled) = mpsc::channel(WINDOW);
        let tracker = AckTracker::default();
        Self { channel, queue, mail, verdicts, settled, tracker, unsettled: 0, tick: ticks() }
    }

    /// Hands out until everything is acknowledged and nothing is waiting. What the broker gives to the consumer
    /// after that goes back into the mailbox when the channel is closed: there is no moment in which messages
    /// are out and the queue looks empty and unused.
    async fn run(mut self, consumer: &mut Consumer) -> Result<Ending, LinkError> {
        let mut batch = Vec::new();
        let mut look = true;
        loop {
            if look && self.unsettled == 0 {
                look = false;
                let ready = self.ready().await?;
                match consumer.next().now_or_never() {
                    Some(Some(delivery)) => self.hand(delivery?),
                    Some(None) => return Err(LinkError::Ended("a consumer was cancelled")),
                    None if ready == 0 => return Ok(Ending::Emptied),
                    None => {}
                }
            }
            tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(delivery) => self.hand(delivery?),
                    None => return Err(LinkError::Ended("a consumer was cancelled")),
                },
                _ = self.settled.recv_many(&mut batch, WINDOW) => {
                    if !self.settle(&mut batch).await? {
                        return Ok(Ending::Interrupted);
                    }
                    look = true;
                }
                _ = self.tick.tick(), if self.tracker.has_singles() => self.ack_singles().await?,
                _ = sleep(LOOK_AGAIN_AFTER), if self.unsettled == 0 => look = true,
                _ = self.mail.closed() => {
                    while let Ok(verdict) = self.settled.try_recv() {
                        batch.push(verdict);
                    }
                    self.settle(&mut batch).await?;
                    self.ack_singles().await?;
                    return Ok(Ending::Interrupted);
                }
            }
        }
    }

    async fn ready(&self) -> Result<u64, LinkError> {
        Ok(in_time(admin::look(self.channel, self.queue)).await?.ready)
    }

    fn hand(&mut self, delivery: LapinDelivery) {
        let delivery = delivered(delivery, Via::Mailbox, &self.verdicts);
        self.unsettled += 1;
        if delivery.properties.kind.as_deref() == Some(QUESTION) {
            return delivery.ack.ack();
        }
        // There is always room, see [`WINDOW`]; a reader that is gone is seen by its own.
        let _ = self.mail.try_send(delivery);
    }

    /// Acknowledges; false when a token was dropped, which leaves the rest to the closing of the channel.
    async fn settle(&mut self, batch: &mut Vec<(u64, Verdict)>) -> Result<bool, LinkError> {
        let mut go_on = true;
        for (tag, verdict) in batch.drain(..) {
            self.unsettled -= 1;
            match verdict {
                Verdict::Ack => self.tracker.settle(tag, verdict),
                Verdict::Requeue => go_on = false,
            }
        }
        if let Some(tag) = self.tracker.multiple() {
            self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        }
        if !go_on {
            self.ack_singles().await?;
        }
        Ok(go_on)
    }

    async fn ack_singles(&mut self) -> Result<(), LinkError> {
        for tag in self.tracker.single() {
            self.channel.basic_ack(tag, BasicAckOptions { multiple: false }).await?;
        }
        Ok(())
    }
}
