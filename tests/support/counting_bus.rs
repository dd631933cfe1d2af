//! Counts the messages and receipts that nodes exchange, on whatever bus.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use warren::bus::{
    Attach, BoxError, BoxNumber, BoxSettings, Bus, Destination, Done, Link, Properties, Publish,
};
use warren::delivery::peer_words::kind;
use warren::ids::UserKey;

/// Messages and receipts, published and as copies in queues.
#[derive(Debug, Default)]
pub struct Counts {
    published: AtomicUsize,
    copies: AtomicUsize,
}

impl Counts {
    /// Published so far, and copies of that in queues.
    pub fn now(&self) -> (usize, usize) {
        (self.published.load(Ordering::Relaxed), self.copies.load(Ordering::Relaxed))
    }
}

/// A bus that counts what a node sends to others.
pub struct Counting {
    pub bus: Arc<dyn Bus>,
    pub counts: Arc<Counts>,
    /// How many nodes get what is for all.
    pub nodes: usize,
}

impl Bus for Counting {
    fn publish(&self, publish: Publish, done: Done) {
        if matches!(publish.properties.kind.as_deref(), Some(kind::MESSAGE | kind::RECEIPTS)) {
            let copies = match &publish.to {
                Destination::Nodes(nodes) => nodes.len(),
                _ => self.nodes,
            };
            self.counts.published.fetch_add(1, Ordering::Relaxed);
            self.counts.copies.fetch_add(copies, Ordering::Relaxed);
        }
        self.bus.publish(publish, done);
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.bus.link()
    }

    fn deposit(&self, to: BoxNumber, properties: Properties, body: Bytes, done: Done) {
        self.bus.deposit(to, properties, body, done);
    }

    fn attach_box(
        &self,
        number: BoxNumber,
        users: Vec<UserKey>,
    ) -> BoxFuture<'static, Result<Attach, BoxError>> {
        self.bus.attach_box(number, users)
    }

    fn boxes(&self) -> BoxSettings {
        self.bus.boxes()
    }

    fn account(&self) -> Option<&str> {
        self.bus.account()
    }

    fn reply_queue(&self) -> Option<String> {
        self.bus.reply_queue()
    }

    fn stop_ingress(&self) {
        self.bus.stop_ingress();
    }

    fn leave(&self) {
        self.bus.leave();
    }

    fn close(&self) {
        self.bus.close();
    }
}
