//! Reads one box: an exclusive consumer without a prefetch limit, on a channel of its own.
//!
//! Closing the channel is the only way out: the broker then removes the consumer and puts back what is not acknowledged
//! in one step, so that the next reader is refused or sees all of it. Cancelling first and giving back later would let
//! it in between. The broker sends the whole box at once, and the client library keeps what is not taken out of its
//! consumer; so events are to be taken promptly.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, BoxFuture, OptionFuture};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout, Instant};
use tracing::debug;

use super::super::connection::LinkError;
use super::super::{convert, declare};
use super::admin::{in_time, Admin};
use super::deposits::Inbox;
use crate::bus::answer::Answer;
use crate::bus::boxes::BoxTask;
use crate::bus::marker::{Marker, Rounds};
use crate::bus::{AckToken, BoxEvent, BoxMail, BoxNumber, BoxReader, BoxRequest, Outcome, Verdict};
use crate::ids::UserKey;

/// For the broker to take back what is not acknowledged; it goes on when it is late.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// For a marker to be stored, all tries together.
const MARKER_DEADLINE: Duration = Duration::from_secs(5);
/// A full box takes a marker as soon as its mail has been handed to the reader, which takes it some milliseconds.
const MARKER_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// One verdict for each mail that is out; the room is counted, not reserved.
const VERDICTS_MAX: usize = 1 << 24;
/// Acknowledgements that are written together.
const ACKS: usize = 256;

/// What the broker says to somebody who wants to read.
pub enum Consuming {
    Missing,
    Busy,
    Started(Box<Source>),
}

/// A consumer and its channel.
///
/// Dropped without having been closed, it leaks the consumer on purpose: dropping that would cancel it.
pub struct Source {
    channel: Channel,
    consumer: Option<Consumer>,
}

impl Drop for Source {
    fn drop(&mut self) {
        std::mem::forget(self.consumer.take());
    }
}

impl Source {
    /// Whether the broker has answered: then it has carried out every acknowledgement before.
    pub async fn close(mut self) -> bool {
        let closed = timeout(CLOSE_MAX, self.channel.close(200, "done".into())).await;
        drop(self.consumer.take());
        matches!(closed, Ok(Ok(())))
    }

    pub async fn next(&mut self) -> Option<Result<LapinDelivery, LinkError>> {
        Some(self.consumer.as_mut()?.next().await?.map_err(LinkError::from))
    }

    pub async fn ack(&self, tags: &[u64]) -> Result<(), LinkError> {
        let options = BasicAckOptions { multiple: false };
        for tags in tags.chunks(ACKS) {
            for written in join_all(tags.iter().map(|tag| self.channel.basic_ack(*tag, options))).await {
                written?;
            }
        }
        Ok(())
    }
}

/// Begins to consume. Not to be dropped half-way: see [`Source`].
pub async fn start(admin: &Admin, queue: &str) -> Result<Consuming, LinkError> {
    let channel = in_time(admin.channel()).await?;
    match in_time(consume(&channel, queue)).await {
        Ok(consumer) => Ok(Consuming::Started(Box::new(Source { channel, consumer: Some(consumer) }))),
        Err(error) => {
            // A broker that is slow may still begin to consume, and nobody else could read the box for as long as the
            // connection lives.
            let _ = timeout(CLOSE_MAX, channel.close(200, "given up".into())).await;
            refused(error)
        }
    }
}

/// No prefetch limit: what is for others is not acknowledged, and must not stop the rest.
async fn consume(channel: &Channel, queue: &str) -> Result<Consumer, LinkError> {
    let options = BasicConsumeOptions { exclusive: true, ..Default::default() };
    let (queue, tag) = (ShortString::try_new(queue)?, ShortString::default());
    Ok(channel.basic_consume(queue, tag, options, FieldTable::default()).await?)
}

/// The same two codes say that the account may not read, and that the broker node of the queue is down.
fn refused(error: LinkError) -> Result<Consuming, LinkError> {
    let text = error.to_string();
    if declare::is(&error, AMQPSoftError::ACCESSREFUSED) && text.contains("exclusive") {
        return Ok(Consuming::Busy);
    }
    if declare::is(&error, AMQPSoftError::NOTFOUND) && text.contains("no queue") {
        return Ok(Consuming::Missing);
    }
    Err(error)
}

/// What a reading needs besides its source.
pub struct Terms {
    pub number: BoxNumber,
    pub account: Option<String>,
    pub ttl: Duration,
    pub deposits: Inbox,
    pub rounds: Rounds,
    /// Becomes true when the bus ends.
    pub stop: watch::Receiver<bool>,
}

/// The reader, and the task behind it.
pub fn reading(source: Source, terms: Terms) -> (BoxReader, Reading) {
    let (reader, task) = BoxReader::new();
    let (verdicts, settled) = mpsc::channel(VERDICTS_MAX);
    let reading = Reading { source, terms, task, verdicts, settled, marker: None, event: None };
    (reader, reading)
}

pub struct Reading {
    source: Source,
    terms: Terms,
    task: BoxTask,
    verdicts: mpsc::Sender<(u64, Verdict)>,
    settled: mpsc::Receiver<(u64, Verdict)>,
    /// The marker on its way into the box.
    marker: Option<BoxFuture<'static, Result<(), LinkError>>>,
    /// On its way to the reader.
    event: Option<BoxEvent>,
}

impl Reading {
    pub async fn run(mut self, users: Vec<UserKey>) {
        self.begin(users);
        let ended = match self.read().await {
            Ok(clean) => self.finish(clean).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &ended {
            debug!(%error, number = self.terms.number.0, "a reading was interrupted");
        }
        let is_closed = self.source.close().await;
        self.task.carried_out.store(is_closed && ended.is_ok(), Ordering::Release);
        // Last: who sees the end of the events may read again.
        drop(self.task);
    }

    fn begin(&mut self, users: Vec<UserKey>) {
        let marker = self.terms.rounds.begin(users);
        self.marker =
            Some(publish(self.terms.deposits.clone(), self.terms.number, marker, self.terms.ttl).boxed());
    }

    /// Until the reader asks for the end; whether for a clean one.
    async fn read(&mut self) -> Result<bool, LinkError> {
        let mut batch = Vec::new();
        let events = self.task.events.clone();
        loop {
            let marker = OptionFuture::from(self.marker.as_mut());
            tokio::select! {
                request = self.task.requests.recv() => match request {
                    Some(BoxRequest::NewRound(users)) => self.begin(users),
                    Some(BoxRequest::CloseCleanly) => return Ok(true),
                    None => return Ok(false),
                },
                _ = self.settled.recv_many(&mut batch, ACKS) => self.settle(&mut batch).await?,
                Some(stored) = marker => {
                    self.marker = None;
                    stored?;
                }
                permit = events.reserve(), if self.event.is_some() => {
                    // A reader that is gone, or about to ask for the end, takes no more.
                    if let (Ok(permit), Some(event)) = (permit, self.event.take()) {
                        permit.send(event);
                    }
                }
                delivery = self.source.next(), if self.event.is_none() => {
                    let delivery = delivery.ok_or(LinkError::Ended("the box is gone"))??;
                    self.event = self.arrive(delivery).await?;
                }
                () = stopped(&mut self.terms.stop) => return Ok(false),
            }
        }
    }

    /// What the reader is told of a message that came out of the box.
    async fn arrive(&mut self, from: LapinDelivery) -> Result<Option<BoxEvent>, LinkError> {
        let properties = convert::incoming(&from.properties);
        let tag = from.delivery_tag;
        if let Some(marker) = Marker::read(&properties, &from.data, self.terms.account.as_deref()) {
            let found = self.terms.rounds.marker(tag, marker);
            self.source.ack(&found.acks).await?;
            return Ok(found.round_end.map(|abandoned| BoxEvent::RoundEnd { abandoned }));
        }
        Ok(Some(BoxEvent::Mail(BoxMail {
            number: self.terms.rounds.mail(tag),
            properties,
            body: Bytes::from(from.data),
            redelivered: from.redelivered,
            ack: AckToken::of_box(tag, self.verdicts.clone()),
        })))
    }

    async fn settle(&mut self, batch: &mut Vec<(u64, Verdict)>) -> Result<(), LinkError> {
        let acked: Vec<u64> =
            batch.drain(..).filter(|(_, verdict)| *verdict == Verdict::Ack).map(|(tag, _)| tag).collect();
        self.source.ack(&acked).await?;
        let markers = self.terms.rounds.settled(acked.into_iter());
        self.source.ack(&markers).await
    }

    /// Acknowledges what was settled, and at a clean end the marker, which may still be on its way.
    async fn finish(&mut self, clean: bool) -> Result<(), LinkError> {
        // From now on a token says that it is too late.
        self.settled.close();
        let mut batch = Vec::new();
        while let Some(verdict) = self.settled.recv().await {
            batch.push(verdict);
        }
        self.settle(&mut batch).await?;
        if !clean {
            return Ok(());
        }
        let _ = timeout(CLOSE_MAX, self.wait_for_marker()).await;
        let marker = self.terms.rounds.close_cleanly();
        self.source.ack(marker.as_slice()).await
    }

    async fn wait_for_marker(&mut self) -> Result<(), LinkError> {
        while !self.terms.rounds.is_back() {
            let marker = OptionFuture::from(self.marker.as_mut());
            tokio::select! {
                Some(stored) = marker => {
                    self.marker = None;
                    stored?;
                }
                delivery = self.source.next() => {
                    let delivery = delivery.ok_or(LinkError::Ended("the box is gone"))??;
                    drop(self.arrive(delivery).await?);
                }
            }
        }
        Ok(())
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Puts a marker behind all that lies in the box and all that this node has handed in before.
async fn publish(deposits: Inbox, to: BoxNumber, marker: Marker, ttl: Duration) -> Result<(), LinkError> {
    let deadline = Instant::now() + MARKER_DEADLINE;
    loop {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |outcome| {
            let _ = tell.send(outcome);
        });
        deposits.offer_existing(to, Marker::properties(ttl), marker.body(), Answer::new(done));
        match told.await {
            Ok(Outcome::Confirmed) => return Ok(()),
            Ok(Outcome::Unroutable) => return Err(LinkError::Ended("the box is gone")),
            _ if Instant::now() >= deadline => return Err(LinkError::Late("a marker")),
            _ => sleep(MARKER_AGAIN_AFTER).await,
        }
    }
}
