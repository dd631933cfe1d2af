//! `warren app-echo`: the demo service as a backend of its own, over RabbitMQ.

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::Channel;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

use super::connection::{self, within, Backoff, LinkError};
use super::topology::{Binding, Topology};
use super::{consumer, convert, declare, RabbitSettings};
use crate::bus::{echo, Via};
use crate::ids::AppKey;

/// Requests in hand.
const PREFETCH: u16 = 100;
/// What a header may have: the smallest frame that a broker agrees to.
const HEADER_BYTES_MAX: usize = 4096;

/// Answers every request to `app.<key>` with its own payload; connects again whenever the link is lost, without end.
pub async fn serve_echo(settings: &RabbitSettings, key: &AppKey) {
    let topology = settings.topology();
    let mut backoff = Backoff::default();
    loop {
        let name = format!("{}/app-echo", topology.prefix());
        let error = match connection::open(&settings.urls, name).await {
            Ok(connection) => {
                let error = match start(&connection, &topology, key).await {
                    Ok((channel, consumer)) => {
                        info!(%key, "answering requests");
                        backoff.reset();
                        answer_all(&channel, consumer, &topology).await
                    }
                    Err(error) => error,
                };
                connection::close(connection).await;
                error
            }
            Err(error) => error,
        };
        let wait = backoff.next(rand::random());
        warn!(%error, retry_ms = wait.as_millis() as u64, "not answering requests");
        sleep(wait).await;
    }
}

/// A queue that ends with the connection, bound for the key.
async fn start(
    connection: &lapin::Connection,
    topology: &Topology,
    key: &AppKey,
) -> Result<(Channel, lapin::Consumer), LinkError> {
    declare::durable(connection, topology).await?;
    let channel = within("opening a channel", connection.create_channel()).await?;
    let options = QueueDeclareOptions::exclusive();
    let declaring = channel.queue_declare(ShortString::default(), options, FieldTable::default());
    let queue = within("declaring a queue", declaring).await?.name().as_str().to_owned();
    let binding = Binding { queue: queue.clone(), exchange: topology.app(), key: key.as_str().to_owned() };
    declare::bind(&channel, &binding).await?;
    let consumer = consumer::consume(&channel, &queue, PREFETCH).await?;
    Ok((channel, consumer))
}

async fn answer_all(channel: &Channel, mut consumer: lapin::Consumer, topology: &Topology) -> LinkError {
    // Acknowledged here, on the channel itself: the token of a delivery is of no use.
    let (verdicts, _) = mpsc::channel(1);
    while let Some(delivery) = consumer.next().await {
        let answered = match delivery {
            Ok(delivery) => {
                let tag = delivery.delivery_tag;
                let request = consumer::delivered(delivery, Via::Direct, &verdicts);
                answer_one(channel, &request, tag, topology).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            return error.into();
        }
    }
    LinkError::Ended("the consumer was cancelled")
}

async fn answer_one(
    channel: &Channel,
    request: &crate::bus::Delivery,
    tag: u64,
    topology: &Topology,
) -> lapin::Result<()> {
    if let Some(publish) = echo::answer(request) {
        // An answer that does not fit into AMQP, to a name that is too long, cannot be given.
        if let Ok(out) = convert::outgoing(&publish, topology, 0, HEADER_BYTES_MAX) {
            let body: Bytes = publish.body;
            let options = BasicPublishOptions::default();
            channel.basic_publish(out.exchange, out.routing_key, options, &body, out.properties).await?;
        }
    }
    channel.basic_ack(tag, BasicAckOptions::default()).await
}
