//! The connection of the node's own queues: a new incarnation each time, until the bus ends.
//!
//! It never publishes, so a broker that stops taking messages does not stop acknowledgements.

use std::future::Future;

use futures_util::stream::BoxStream;
use futures_util::StreamExt;
use lapin::{Channel, Connection, Consumer, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, Instant};
use tracing::{info, warn};

use super::connection::{self, within, Backoff, LinkError};
use super::publisher::LaneInbox;
use super::topology::{Binding, Queue};
use super::verify::Verifier;
use super::{consumer, declare, Shared, STABLE_AFTER};
use crate::bus::{Delivery, Via};
use crate::ids::Incarnation;

/// Deep enough to keep a node busy for some milliseconds of broker latency; each is a message in memory.
pub const NODE_PREFETCH: u16 = 1000;
/// Gossip comes in batches of a thousand entries; a node that starts gets many snapshots at once.
pub const CONTROL_PREFETCH: u16 = 1000;
/// Answers are taken at once; each is a message in memory.
pub const REPLIES_PREFETCH: u16 = 1000;
/// Where deliveries go. The same inboxes serve one connection after the other.
#[derive(Clone)]
pub struct InboxSenders {
    pub node: mpsc::Sender<Delivery>,
    pub control: mpsc::Sender<Delivery>,
    pub replies: mpsc::Sender<Delivery>,
}

pub async fn supervise(
    shared: Shared,
    inboxes: InboxSenders,
    urgent: LaneInbox,
    leave: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let error = live(&shared, &inboxes, &urgent, &leave).await;
        shared.set_incarnation(None);
        if started.elapsed() > STABLE_AFTER {
            backoff.reset();
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("no-recovery") {
            std::future::pending::<()>().await;
        }
        let wait = backoff.next(rand::random());
        warn!(%error, retry_ms = wait.as_millis() as u64, "consuming link is down");
        sleep(wait).await;
    }
}

/// One life of the connection, from opening it to the error that ends it.
async fn live(
    shared: &Shared,
    inboxes: &InboxSenders,
    urgent: &LaneInbox,
    leave: &watch::Receiver<bool>,
) -> LinkError {
    let name = format!("{}/{}/consume", shared.topology.prefix(), shared.node);
    let connection = match connection::open(&shared.urls, name).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    // The only listener of this connection: two would take each other's events away.
    let events: BoxStream<'static, Event> = Box::pin(connection.events_listener());
    let left = *leave.borrow();
    let error = match start(shared, &connection, left).await {
        Ok(started) => {
            let verifier = Verifier {
                shared,
                connection: &connection,
                incarnation: started.incarnation,
                control_binding: started.control_binding.clone(),
                node_bindings: started.node_bindings.clone(),
                has_hash: started.has_hash,
                urgent: urgent.clone(),
            };
            serve(shared, started, inboxes, events, verifier.run(leave)).await
        }
        Err(error) => error,
    };
    shared.set_incarnation(None);
    connection::close(connection).await;
    error
}

struct Consuming {
    channel: Channel,
    consumer: Consumer,
}

struct Started {
    incarnation: Incarnation,
    node: Consuming,
    control: Consuming,
    replies: Consuming,
    control_binding: Binding,
    /// Empty if the node has left.
    node_bindings: Vec<Binding>,
    /// Ingress has, or had, more than one partition.
    has_hash: bool,
}

/// Declare, set prefetch, consume, bind: nothing can arrive before there is somebody to take it.
async fn start(shared: &Shared, connection: &Connection, left: bool) -> Result<Started, LinkError> {
    let topology = &shared.topology;
    declare::durable(connection, topology).await?;
    let has_hash = declare::exists(connection, &topology.ingress_hash()).await?;
    let incarnation = Incarnation::generate();
    let node_queue = topology.node_queue(&shared.node, incarnation);
    let control_queue = topology.control_queue(&shared.node, incarnation);
    let node = own_queue(connection, &node_queue, NODE_PREFETCH).await?;
    let control = own_queue(connection, &control_queue, CONTROL_PREFETCH).await?;
    let replies = topology.replies_queue(&shared.node, incarnation);
    let replies = own_queue(connection, &replies, REPLIES_PREFETCH).await?;
    let control_binding = topology.control_binding(&control_queue);
    declare::bind(&control.channel, &control_binding).await?;
    let node_bindings = if left { Vec::new() } else { topology.node_bindings(&shared.node, &node_queue) };
    for binding in &node_bindings {
        declare::bind(&node.channel, binding).await?;
    }
    Ok(Started { incarnation, node, control, replies, control_binding, node_bindings, has_hash })
}

async fn own_queue(connection: &Connection, queue: &Queue, prefetch: u16) -> Result<Consuming, LinkError> {
    let channel = within("opening a channel", connection.create_channel()).await?;
    declare::declare_queue(&channel, queue, false).await?;
    let consumer = consumer::consume(&channel, &queue.name, prefetch).await?;
    Ok(Consuming { channel, consumer })
}

async fn serve(
    shared: &Shared,
    started: Started,
    inboxes: &InboxSenders,
    events: BoxStream<'static, Event>,
    verifying: impl Future<Output = LinkError>,
) -> LinkError {
    let Started { incarnation, node, control, replies, .. } = started;
    let broadcast = shared.topology.broadcast();
    let via = move |exchange: &str| if exchange == broadcast { Via::Broadcast } else { Via::Direct };
    let takes = |delivery: &Delivery| shared.pulse.takes(delivery, shared.topology.account(), incarnation);
    let inbox = inboxes.node.clone();
    let node = consumer::run(node.channel, node.consumer, NODE_PREFETCH, inbox, via, takes, || false);
    let control = consumer::run(
        control.channel,
        control.consumer,
        CONTROL_PREFETCH,
        inboxes.control.clone(),
        |_| Via::Control,
        takes,
        || false,
    );
    let inbox = inboxes.replies.clone();
    let via = |_: &str| Via::Replies;
    let replies =
        consumer::run(replies.channel, replies.consumer, REPLIES_PREFETCH, inbox, via, |_| false, || false);
    shared.pulse.restart();
    shared.set_incarnation(Some(incarnation));
    info!(%incarnation, "consuming link is up");
    tokio::select! {
        error = node => error,
        error = control => error,
        error = replies => error,
        error = failure(events) => error,
        error = verifying => error,
    }
}

/// Waits for the error of a whole connection.
pub async fn failure(mut events: BoxStream<'static, Event>) -> LinkError {
    while let Some(event) = events.next().await {
        match event {
            // A channel's own error, such as a look for a queue that is not there; whoever uses it sees to it.
            Event::Error(error) if error.is_amqp_soft_error() => {}
            Event::Error(error) => return error.into(),
            _ => {}
        }
    }
    LinkError::Ended("the connection's events ended")
}
