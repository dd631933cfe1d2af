//! A target node's receipts, gathered for a moment and sent to each origin in one message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::bus::Bus;
use crate::delivery::envelope::{Origin, Tag};
use crate::delivery::peer_words::{receipts_publish, Receipt, Receipts};
use crate::ids::{Life, NodeId};

/// Most receipts in one message.
const BATCH_MAX: usize = 256;
/// Between two batches. A receipt that comes after a longer silence goes at once.
const BATCH_EVERY: Duration = Duration::from_millis(4);
/// Receipts waiting for the sender. Overflow policy: the newest is dropped; its origin asks again when its
/// deadline runs out, and the ids this node has seen keep the repeat from being shown.
const QUEUE_MAX: usize = 65_536;

/// Hands receipts to the sender task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReceiptSender {
    queue: mpsc::Sender<(Origin, Receipt)>,
}

impl ReceiptSender {
    /// The task ends when the last sender is dropped.
    pub fn start(node: NodeId, bus: Arc<dyn Bus>) -> (Self, JoinHandle<()>) {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, tokio::spawn(run(node, bus, receiver)))
    }

    pub fn send(&self, origin: Origin, receipt: Receipt) {
        // See QUEUE_MAX for what a full queue means.
        let _ = self.queue.try_send((origin, receipt));
    }
}

async fn run(node: NodeId, bus: Arc<dyn Bus>, mut queue: mpsc::Receiver<(Origin, Receipt)>) {
    let mut batch: Vec<(Origin, Receipt)> = Vec::with_capacity(BATCH_MAX);
    let mut next = Instant::now();
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        if batch.len() < BATCH_MAX && Instant::now() < next {
            tokio::time::sleep_until(next).await;
            while batch.len() < BATCH_MAX {
                match queue.try_recv() {
                    Ok(receipt) => batch.push(receipt),
                    Err(_) => break,
                }
            }
        }
        next = Instant::now() + BATCH_EVERY;
        for ((to, life), receipts) in by_origin(&mut batch) {
            // A lost batch is as harmless as a full queue.
            let receipts = Receipts { from: node.clone(), life, receipts };
            bus.publish(receipts_publish(to, &receipts), Box::new(|_| ()));
        }
    }
}

fn by_origin(batch: &mut Vec<(Origin, Receipt)>) -> HashMap<(NodeId, Life), Vec<(Tag, Receipt)>> {
    let mut origins: HashMap<(NodeId, Life), Vec<(Tag, Receipt)>> = HashMap::new();
    for (origin, receipt) in batch.drain(..) {
        origins.entry((origin.node, origin.life)).or_default().push((origin.tag, receipt));
    }
    origins
}
