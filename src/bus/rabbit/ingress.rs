//! The ingress connection: consumes what backends publish.
//!
//! It stands apart from the node's own queues, so that a drain can end it alone, and so that the broker's closing
//! of one does not disturb the other.

use futures_util::stream::BoxStream;
use lapin::options::BasicCancelOptions;
use lapin::protocol::AMQPSoftError;
use lapin::{Connection, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, Instant};
use tracing::{error, info, warn};

use super::connection::{self, within, Backoff, LinkError};
use super::consuming::failure;
use super::pulse::is_probe;
use super::{consumer, declare, shares, Shared, STABLE_AFTER};
use crate::bus::{Delivery, Via, INGRESS_WINDOW};

/// Each of these waits for its settlement, and all of them move to another node when this one dies.
pub const PREFETCH: u16 = INGRESS_WINDOW;

pub async fn supervise(shared: Shared, inbox: mpsc::Sender<Delivery>, leave: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    while !*leave.borrow() {
        let started = Instant::now();
        let error = live(&shared, &inbox, &leave).await;
        if started.elapsed() > STABLE_AFTER {
            backoff.reset();
        }
        let wait = backoff.next(rand::random());
        warn!(%error, retry_ms = wait.as_millis() as u64, "ingress link is down");
        sleep(wait).await;
    }
}

/// One life of the connection, from opening it to the error that ends it.
async fn live(shared: &Shared, inbox: &mpsc::Sender<Delivery>, leave: &watch::Receiver<bool>) -> LinkError {
    let name = format!("{}/{}/ingress", shared.topology.prefix(), shared.node);
    let connection = match connection::open(&shared.urls, name).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    let connection = Closing(Some(connection));
    let Some(open) = &connection.0 else { return LinkError::Ended("the connection is closed") };
    // The only listener of this connection: two would take each other's events away.
    let events: BoxStream<'static, Event> = Box::pin(open.events_listener());
    let error = tokio::select! {
        // The connection's own error says more than the consumer's, which only learns that it has ended.
        biased;
        error = failure(events) => error,
        Err(error) = consume(shared, open, inbox, leave) => error,
    };
    if shared.ingress.partitions > 1 {
        tell(shared, &error);
    }
    connection.now().await;
    error
}

/// Closes the connection also when its task is aborted, perhaps while a partition is handed over: the client library keeps it
/// open as long as a request is under way, and its consumers would hold messages that nobody settles.
struct Closing(Option<Connection>);

impl Closing {
    async fn now(mut self) {
        if let Some(connection) = self.0.take() {
            connection::close(connection).await;
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Handle::try_current();
        if let (Some(connection), Ok(runtime)) = (self.0.take(), runtime) {
            // Ends by itself: a close has a deadline.
            runtime.spawn(connection::close(connection));
        }
    }
}

/// What stands in the way of partitions: the node is not ready until it is gone.
fn tell(shared: &Shared, error: &LinkError) {
    let partitions = shared.ingress.partitions;
    let damage = match error {
        LinkError::Amqp(amqp) if amqp.to_string().contains("unknown exchange type") => format!(
            "WARREN_INGRESS_PARTITIONS={partitions} needs the broker's plugin rabbitmq_consistent_hash_exchange: \
             enable it (rabbitmq-plugins enable rabbitmq_consistent_hash_exchange), or set 1"
        ),
        error if declare::is(error, AMQPSoftError::ACCESSREFUSED) => format!(
            "WARREN_INGRESS_PARTITIONS={partitions} needs the permission to configure, write and read \
             {}.…: {error}",
            shared.topology.ingress()
        ),
        error => format!("ingress is not consumed: {error}"),
    };
    error!("{damage}");
    shared.ingress_damage.send_replace(Some(vec![damage]));
}

/// What came by the queue's name came through the default exchange, which has no name.
pub fn via(exchange: &str) -> Via {
    match exchange.is_empty() {
        true => Via::IngressQueue,
        false => Via::Ingress,
    }
}

async fn consume(
    shared: &Shared,
    connection: &Connection,
    inbox: &mpsc::Sender<Delivery>,
    leave: &watch::Receiver<bool>,
) -> Result<(), LinkError> {
    declare::durable(connection, &shared.topology).await?;
    if shared.ingress.partitions > 1 || declare::exists(connection, &shared.topology.ingress_hash()).await? {
        return Err(shares::consume(shared, connection, inbox, leave).await);
    }
    let channel = within("opening a channel", connection.create_channel()).await?;
    let consumer = consumer::consume(&channel, &shared.topology.ingress(), PREFETCH).await?;
    info!("ingress link is up");
    let tag = consumer.tag();
    let left = || *leave.borrow();
    let mut leaving = leave.clone();
    let cancelling = async {
        if leaving.wait_for(|left| *left).await.is_err() {
            std::future::pending::<()>().await;
        }
        within("basic.cancel", channel.basic_cancel(tag, BasicCancelOptions::default())).await
    };
    let takes = |delivery: &Delivery| is_probe(delivery, shared.topology.account());
    tokio::select! {
        error = consumer::run(channel.clone(), consumer, PREFETCH, inbox.clone(), via, takes, left) => Err(error),
        Err(error) = cancelling => Err(error),
    }
}
