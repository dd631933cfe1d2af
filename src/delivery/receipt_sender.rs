//! A target node's receipts, gathered for a moment and sent to each origin in one message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::delivery::envelope::Origin;
use crate::delivery::peer_words::{receipts_publish, Receipt, Receipts};
use crate::ids::{Life, NodeId};

/// Most receipts in one message.
const BATCH_MAX: usize = 256;
/// Between two batches. A receipt that comes after a longer silence goes at once.
const BATCH_EVERY: Duration = Duration::from_millis(4);
/// Receipts waiting for the sender. Overflow policy: the newest is dropped; its origin asks again when its
/// deadline runs out, and the ids this node has seen keep the repeat from being shown.
const QUEUE_MAX: usize = 65_536;

/// What an origin is told of one message.
#[derive(Debug)]
enum Word {
    Receipt(Receipt),
    /// This node has passed it on to these.
    Relayed(Vec<NodeId>),
}

/// Hands receipts to the sender task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReceiptSender {
    queue: mpsc::Sender<(Origin, Word)>,
}

impl ReceiptSender {
    /// The task ends when the last sender is dropped.
    pub fn start(node: NodeId, bus: Arc<dyn Bus>) -> (Self, JoinHandle<()>) {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, tokio::spawn(run(node, bus, receiver)))
    }

    pub fn send(&self, origin: Origin, receipt: Receipt) {
        // See QUEUE_MAX for what a full queue means.
        let _ = self.queue.try_send((origin, Word::Receipt(receipt)));
    }

    /// This node, the home of a message's target, has passed the message on to these nodes.
    pub fn send_relayed(&self, origin: Origin, nodes: Vec<NodeId>) {
        let _ = self.queue.try_send((origin, Word::Relayed(nodes)));
    }
}

async fn run(node: NodeId, bus: Arc<dyn Bus>, mut queue: mpsc::Receiver<(Origin, Word)>) {
    let mut batch: Vec<(Origin, Word)> = Vec::with_capacity(BATCH_MAX);
    let mut next = Instant::now();
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        if batch.len() < BATCH_MAX && Instant::now() < next {
            tokio::time::sleep_until(next).await;
            while batch.len() < BATCH_MAX {
                match queue.try_recv() {
                    Ok(word) => batch.push(word),
                    Err(_) => break,
                }
            }
        }
        next = Instant::now() + BATCH_EVERY;
        for (to, receipts) in by_origin(&node, &mut batch) {
            // A lost batch is as harmless as a full queue.
            bus.publish(receipts_publish(to, &receipts), Box::new(|_| ()));
        }
    }
}

fn by_origin(from: &NodeId, batch: &mut Vec<(Origin, Word)>) -> Vec<(NodeId, Receipts)> {
    let mut origins: HashMap<(NodeId, Life), Receipts> = HashMap::new();
    for (Origin { node, life, tag }, word) in batch.drain(..) {
        let of = origins.entry((node, life)).or_insert_with(|| Receipts {
            from: from.clone(),
            life,
            relayed: Vec::new(),
            receipts: Vec::new(),
        });
        match word {
            Word::Receipt(receipt) => of.receipts.push((tag, receipt)),
            Word::Relayed(nodes) => of.relayed.push((tag, nodes)),
        }
    }
    origins.into_iter().map(|((node, _), receipts)| (node, receipts)).collect()
}
