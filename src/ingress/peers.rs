//! What other nodes send: messages, receipts, questions, gossip; and what backends broadcast directly.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{dead_letter, read};
use crate::bus::{Bus, Delivery, Via};
use crate::clock::Now;
use crate::delivery::envelope::{self, Envelope, EnvelopeError};
use crate::delivery::peer_words::{kind, Ask, AskReply, MailNotice, Receipts};
use crate::directory::{GOSSIP_KIND, PROBE_KIND};
use crate::mail::index::MAIL_INDEX_KIND;
use crate::metrics::Metrics;
use crate::protocol::message::Rendered;
use crate::protocol::target::Target;
use crate::router::events::{NameWord, NAMES_KIND};
use crate::router::roster::{Word, ROSTER_KIND};
use crate::router::Router;

/// Questions answered at once. Overflow policy: the node queue waits.
const ASKS_MAX: usize = 64;

/// Works off the node queue, one delivery at a time: that keeps their order.
pub struct NodeQueue {
    pub router: Arc<Router>,
    pub bus: Arc<dyn Bus>,
    pub metrics: Arc<Metrics>,
    pub message_bytes_max: usize,
    /// Answers under way; they end with the queue.
    asks: JoinSet<()>,
}

impl NodeQueue {
    pub fn new(
        router: Arc<Router>,
        bus: Arc<dyn Bus>,
        metrics: Arc<Metrics>,
        message_bytes_max: usize,
    ) -> Self {
        Self { router, bus, metrics, message_bytes_max, asks: JoinSet::new() }
    }

    pub async fn run(mut self, mut inbox: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = inbox.recv().await {
            if let Err(reason) = self.take(&delivery).await {
                self.dead_letter(&delivery, &reason);
            }
            // A node queue dies with its node: nothing gains by keeping a delivery unacknowledged in it.
            delivery.ack.ack();
        }
    }

    /// What nodes say to each other counts only if a node said it: a backend that may broadcast could otherwise put
    /// words into other mouths.
    async fn take(&mut self, delivery: &Delivery) -> Result<(), String> {
        let properties = &delivery.properties;
        if let Some(why) = &properties.unreadable {
            return Err(why.clone());
        }
        let text = |error: EnvelopeError| error.to_string();
        let is_from_node = is_from_node(&*self.bus, delivery);
        match properties.kind.as_deref().filter(|_| is_from_node) {
            Some(kind::MESSAGE) => {
                let now = Instant::now();
                let envelope =
                    Envelope::from_delivery(properties, delivery.body.clone(), now).map_err(text)?;
                match envelope.message.target {
                    Target::Broadcast | Target::Channel(_) => {
                        self.show_everyone(Rendered::new(Arc::new(envelope.message))).await;
                    }
                    _ => match envelope::relay_for(properties).map_err(text)? {
                        Some(by) => self.router.relay(envelope, &by),
                        None => self.router.arrive(envelope),
                    },
                }
            }
            Some(kind::RECEIPTS) => self.router.on_receipts(parse::<Receipts>(&delivery.body)?),
            Some(kind::MAIL) => self.router.on_mail_notice(parse::<MailNotice>(&delivery.body)?),
            Some(kind::ASK) => {
                let ask: Ask = parse(&delivery.body)?;
                let origin = envelope::origin(properties).map_err(text)?.ok_or("a question from nobody")?;
                while self.asks.len() >= ASKS_MAX {
                    self.asks.join_next().await;
                }
                while self.asks.try_join_next().is_some() {}
                let router = self.router.clone();
                self.asks.spawn(async move { router.asked(ask, origin).await });
            }
            Some(kind::ANSWER) => {
                let origin = envelope::origin(properties).map_err(text)?.ok_or("an answer to nobody")?;
                let answer: AskReply = parse(&delivery.body)?;
                self.router.answered(&origin, answer);
            }
            Some(NAMES_KIND) => self.router.on_name_word(parse::<NameWord>(&delivery.body)?),
            Some(ROSTER_KIND) => self.router.on_roster_word(parse::<Word>(&delivery.body)?),
            // It has arrived: that is all it is for.
            Some(PROBE_KIND) => {}
            // A part of a snapshot, which this node asked for, or the question for one.
            Some(kind @ MAIL_INDEX_KIND) => self.router.on_mail_gossip(kind, &delivery.body)?,
            Some(GOSSIP_KIND) => {
                self.router.directory().on_gossip(&delivery.body).map_err(|e| e.to_string())?
            }
            _ if delivery.via == Via::Broadcast => {
                let message =
                    read::message(delivery, Target::Broadcast, self.message_bytes_max, Now::read())?;
                self.show_everyone(Rendered::new(Arc::new(message))).await;
            }
            _ => return Err("not something that nodes send each other".into()),
        }
        Ok(())
    }

    /// Waits for room at the workers: the node queue is the place where messages wait.
    async fn show_everyone(&self, message: Arc<Rendered>) {
        while let Err(full) = self.router.show_everyone(&message) {
            self.router.hub().room(full).await;
        }
    }

    /// A broadcast reaches every node; one of them keeps the dead letter.
    fn dead_letter(&self, delivery: &Delivery, reason: &str) {
        let everywhere = delivery.via == Via::Broadcast;
        if everywhere && !self.router.directory().is_first_node() {
            return;
        }
        tracing::warn!(via = ?delivery.via, reason, "a message on the node queue cannot be read");
        self.metrics.message_dead();
        self.bus.publish(dead_letter::publish(delivery, reason), Box::new(|_| ()));
    }
}

/// Works off the control queue until it is closed. Only nodes speak there.
pub async fn run_control(router: Arc<Router>, bus: Arc<dyn Bus>, mut inbox: mpsc::Receiver<Delivery>) {
    while let Some(delivery) = inbox.recv().await {
        let heard = match is_from_node(&*bus, &delivery) {
            true => hear(&router, &delivery),
            false => Err("not from a node".to_owned()),
        };
        if let Err(error) = heard {
            // Not worth the dead queue: what nodes say to all is repeated, or is a hint.
            tracing::warn!(%error, "ignored a message on the control exchange");
        }
        delivery.ack.ack();
    }
}

fn hear(router: &Router, delivery: &Delivery) -> Result<(), String> {
    if let Some(why) = &delivery.properties.unreadable {
        return Err(why.clone());
    }
    match delivery.properties.kind.as_deref() {
        Some(GOSSIP_KIND) => router.directory().on_gossip(&delivery.body).map_err(|error| error.to_string()),
        Some(NAMES_KIND) => {
            router.on_name_word(parse::<NameWord>(&delivery.body)?);
            Ok(())
        }
        Some(other) => router.on_mail_gossip(other, &delivery.body),
        None => Err("gossip without a type".to_owned()),
    }
}

/// The broker vouches for `user_id`: nobody but the nodes' account can put it there.
fn is_from_node(bus: &dyn Bus, delivery: &Delivery) -> bool {
    bus.account().is_none_or(|account| delivery.properties.user_id.as_deref() == Some(account))
}

fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}
