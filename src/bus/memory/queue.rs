//! A queue in memory, and the task that hands its messages to one consumer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::bus::{AckToken, Delivery, Properties, Verdict, Via};

/// A message in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub via: Via,
    pub routing_key: String,
    pub properties: Properties,
    pub body: Bytes,
    pub redelivered: bool,
}

/// What a full queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    DropOldest,
    Refuse,
}

#[derive(Debug)]
pub struct Queue {
    messages: Mutex<VecDeque<Message>>,
    max: usize,
    overflow: Overflow,
    /// Changes with each message; closed when the queue is gone.
    news: watch::Sender<()>,
}

impl Queue {
    pub fn new(max: usize, overflow: Overflow) -> Arc<Self> {
        Arc::new(Self { messages: Mutex::default(), max, overflow, news: watch::Sender::new(()) })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the queue has taken the message.
    pub fn push(&self, message: Message) -> bool {
        let mut messages = self.lock();
        if messages.len() >= self.max {
            match self.overflow {
                Overflow::DropOldest => drop(messages.pop_front()),
                Overflow::Refuse => return false,
            }
        }
        messages.push_back(message);
        drop(messages);
        self.news.send_replace(());
        true
    }

    /// Puts messages back to where they came from, in their order.
    fn give_back(&self, taken: impl DoubleEndedIterator<Item = Message>) {
        let mut messages = self.lock();
        for message in taken.rev() {
            messages.push_front(Message { redelivered: true, ..message });
        }
        drop(messages);
        self.news.send_replace(());
    }

    fn pop(&self) -> Option<Message> {
        self.lock().pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub fn snapshot(&self) -> Vec<Message> {
        self.lock().iter().cloned().collect()
    }
}

/// Whether a consumer gets messages just now; others may take the queue over when it does not.
pub type Active = watch::Receiver<bool>;

/// What a consumer holds; dropping it puts everything that is unsettled back into the queue.
struct Unsettled {
    queue: Arc<Queue>,
    messages: BTreeMap<u64, Message>,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.queue.give_back(std::mem::take(&mut self.messages).into_values());
    }
}

/// Hands out messages while `active`, at most `prefetch` of them unsettled. Ends when its inbox closes.
pub async fn consume(queue: Arc<Queue>, inbox: mpsc::Sender<Delivery>, prefetch: usize, mut active: Active) {
    let (verdicts, mut settled) = mpsc::channel(prefetch);
    let mut news = queue.news.subscribe();
    let mut unsettled = Unsettled { queue: queue.clone(), messages: BTreeMap::new() };
    let mut tag = 0;
    let mut batch = Vec::new();
    loop {
        let wanted = *active.borrow_and_update() && unsettled.messages.len() < prefetch;
        news.mark_unchanged();
        let wanted = wanted && !queue.is_empty();
        tokio::select! {
            _ = settled.recv_many(&mut batch, prefetch) => {
                for (tag, verdict) in batch.drain(..) {
                    if let Some(message) = unsettled.messages.remove(&tag) {
                        if verdict == Verdict::Requeue {
                            queue.give_back(std::iter::once(message));
                        }
                    }
                }
            }
            permit = inbox.reserve(), if wanted => {
                let Ok(permit) = permit else { return };
                let Some(message) = queue.pop() else { continue };
                tag += 1;
                permit.send(Delivery {
                    via: message.via,
                    routing_key: message.routing_key.clone(),
                    properties: message.properties.clone(),
                    body: message.body.clone(),
                    redelivered: message.redelivered,
                    ack: AckToken::new(tag, verdicts.clone()),
                });
                unsettled.messages.insert(tag, message);
            }
            _ = news.changed(), if !wanted => {}
            changed = active.changed() => if changed.is_err() { return },
        }
    }
}
