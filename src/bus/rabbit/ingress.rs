//! The ingress connection: consumes what backends publish, and gets rid of what cannot be read.
//!
//! It stands apart from the node's own queues, because a backend can break it: the client library gives up a
//! whole connection over one property that is not UTF-8, and the broker then hands the same message out again.

use std::time::Duration;

use futures_util::future::join;
use futures_util::stream::BoxStream;
use lapin::options::{BasicCancelOptions, BasicGetOptions, BasicRejectOptions};
use lapin::types::ShortString;
use lapin::{Connection, ErrorKind, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, Instant};
use tracing::{error, info, warn};

use super::connection::{self, within, Backoff, LinkError};
use super::consuming::failure;
use super::{consumer, declare, Shared, STABLE_AFTER};
use crate::bus::{Delivery, Via};

/// Each of these waits for its settlement, and all of them move to another node when this one dies.
pub const PREFETCH: u16 = 1000;
/// How long messages are taken one by one after one of them broke the connection.
const CAREFUL_FOR: Duration = Duration::from_secs(3);

/// What is known about a message that breaks connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    None,
    /// One of the messages handed out is unreadable: they are taken one by one, so that those before it get
    /// out of its way.
    Somewhere,
    /// The very first message in the queue is unreadable.
    Head,
}

impl Suspicion {
    fn prefetch(self) -> u16 {
        match self {
            Suspicion::None => PREFETCH,
            Suspicion::Somewhere | Suspicion::Head => 1,
        }
    }

    /// What to think after a connection has ended.
    fn after(self, unreadable: bool) -> Self {
        match (self, unreadable) {
            (Suspicion::None, true) => Suspicion::Somewhere,
            (Suspicion::Somewhere | Suspicion::Head, true) => Suspicion::Head,
            (_, false) => Suspicion::None,
        }
    }
}

fn is_unreadable(error: &LinkError) -> bool {
    matches!(error, LinkError::Amqp(error) if matches!(error.kind(), ErrorKind::ParsingError(_)))
}

pub async fn supervise(shared: Shared, inbox: mpsc::Sender<Delivery>, leave: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    let mut suspicion = Suspicion::None;
    while !*leave.borrow() {
        let started = Instant::now();
        if suspicion == Suspicion::Head {
            match park_unreadable(&shared).await {
                Ok(()) => {}
                Err(error) => warn!(%error, "could not park an unreadable message"),
            }
            // There may be more of them.
            suspicion = Suspicion::Somewhere;
        }
        let error = live(&shared, &inbox, &leave, suspicion).await;
        suspicion = suspicion.after(is_unreadable(&error));
        if started.elapsed() > STABLE_AFTER {
            backoff.reset();
        }
        let wait = backoff.next(rand::random());
        warn!(%error, ?suspicion, retry_ms = wait.as_millis() as u64, "ingress link is down");
        sleep(wait).await;
    }
}

async fn open(shared: &Shared) -> Result<Connection, LinkError> {
    let name = format!("{}/{}/ingress", shared.topology.prefix(), shared.node);
    connection::open(&shared.urls, name).await
}

/// One life of the connection, from opening it to the error that ends it.
async fn live(
    shared: &Shared,
    inbox: &mpsc::Sender<Delivery>,
    leave: &watch::Receiver<bool>,
    suspicion: Suspicion,
) -> LinkError {
    let connection = match open(shared).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    // The only listener of this connection: two would take each other's events away.
    let events: BoxStream<'static, Event> = Box::pin(connection.events_listener());
    let work = consume(shared, &connection, inbox, leave, suspicion);
    let error = tokio::select! {
        // An unreadable message shows here first; the consumer only learns that it has ended.
        biased;
        error = failure(events) => error,
        Err(error) = work => error,
    };
    connection::close(connection).await;
    error
}

async fn consume(
    shared: &Shared,
    connection: &Connection,
    inbox: &mpsc::Sender<Delivery>,
    leave: &watch::Receiver<bool>,
    suspicion: Suspicion,
) -> Result<(), LinkError> {
    declare::durable(connection, &shared.topology).await?;
    let channel = within("opening a channel", connection.create_channel()).await?;
    let prefetch = suspicion.prefetch();
    let consumer = consumer::consume(&channel, &shared.topology.ingress(), prefetch).await?;
    info!(prefetch, "ingress link is up");
    let tag = consumer.tag();
    let left = || *leave.borrow();
    let mut leaving = leave.clone();
    let cancelling = async {
        if leaving.wait_for(|left| *left).await.is_err() {
            std::future::pending::<()>().await;
        }
        within("basic.cancel", channel.basic_cancel(tag, BasicCancelOptions::default())).await
    };
    let careful = async {
        match suspicion {
            Suspicion::None => std::future::pending().await,
            _ => sleep(CAREFUL_FOR).await,
        }
    };
    tokio::select! {
        error = consumer::run(channel.clone(), consumer, prefetch, inbox.clone(), |_| Via::Ingress, left) => Err(error),
        Err(error) = cancelling => Err(error),
        () = careful => Err(LinkError::Ended("all messages can be read again")),
    }
}

/// Sends the first message of the queue to the dead, if it cannot be read.
///
/// The answer to `basic.get` breaks the connection, so its delivery cannot be rejected afterwards. But the tag
/// will be 1: the rejection is sent along with the question, and the broker has both before it answers.
async fn park_unreadable(shared: &Shared) -> Result<(), LinkError> {
    match first_message(shared, false).await {
        Err(error) if is_unreadable(&error) => {}
        // Another node has taken it, or it has gone: what came instead is innocent, and goes back.
        other => return other.map(drop),
    }
    match first_message(shared, true).await {
        Err(error) if is_unreadable(&error) => error!("a message that cannot be read was dead-lettered"),
        Ok(None) => {}
        Ok(Some(id)) => error!(message_id = id, "a readable message was dead-lettered with unreadable ones"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Looks at the first message of the queue, on a connection of its own, and tells its id; it goes to the dead
/// if it is to be rejected, else back to its place.
async fn first_message(shared: &Shared, reject: bool) -> Result<Option<String>, LinkError> {
    let queue = ShortString::try_new(shared.topology.ingress())?;
    let connection = open(shared).await?;
    let events: BoxStream<'static, Event> = Box::pin(connection.events_listener());
    let channel = within("opening a channel", connection.create_channel()).await?;
    let get = channel.basic_get(queue, BasicGetOptions { no_ack: false });
    let rejection = async {
        if reject {
            channel.basic_reject(1, BasicRejectOptions { requeue: false }).await?;
        }
        Ok::<_, lapin::Error>(())
    };
    let looked = tokio::select! {
        // The question is never answered when its answer cannot be read; only the connection's error tells.
        biased;
        error = failure(events) => Err(error),
        (message, _) = join(within("basic.get", get), rejection) => message,
    };
    // What was neither acknowledged nor rejected returns to its place.
    connection::close(connection).await;
    let id = |message: lapin::message::BasicGetMessage| {
        message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default()
    };
    Ok(looked?.map(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_parked_only_when_it_is_known_to_be_the_first() {
        let first = Suspicion::None.after(true);
        assert_eq!((first, first.prefetch()), (Suspicion::Somewhere, 1));
        assert_eq!(first.after(true), Suspicion::Head);
        assert_eq!(first.after(false), Suspicion::None);
        assert_eq!(Suspicion::None.after(false).prefetch(), PREFETCH);
    }
}
