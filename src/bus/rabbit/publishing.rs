//! The publishing connection: opened, watched, torn down and opened again, for as long as the bus lives.

use futures_util::stream::BoxStream;
use futures_util::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::{Connection, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, Instant};
use tracing::{info, warn};

use super::connection::{self, within, Backoff, LinkError};
use super::publisher::LaneChannel;
use super::{declare, Shared, STABLE_AFTER};
use crate::bus::Publishing;

/// The lanes' channels, as the lanes' tasks see them.
pub type LaneChannels = Vec<watch::Sender<Option<LaneChannel>>>;

pub async fn supervise(shared: Shared, lanes: LaneChannels) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let error = match open(&shared, &lanes).await {
            Ok(open) => {
                info!("publishing link is up");
                let error = watch_over(&shared, &lanes, &open.connection, open.events, open.failures).await;
                take_back(&shared, &lanes);
                connection::close(open.connection).await;
                error
            }
            Err(error) => error,
        };
        take_back(&shared, &lanes);
        if started.elapsed() > STABLE_AFTER {
            backoff.reset();
        }
        let wait = backoff.next(rand::random());
        warn!(%error, retry_ms = wait.as_millis() as u64, "publishing link is down");
        sleep(wait).await;
    }
}

struct Open {
    connection: Connection,
    events: BoxStream<'static, Event>,
    failures: Failures,
}

/// The lanes' own words about their channels.
struct Failures {
    told: mpsc::Receiver<usize>,
    tell: mpsc::Sender<usize>,
}

async fn open(shared: &Shared, lanes: &LaneChannels) -> Result<Open, LinkError> {
    let name = format!("{}/{}/publish", shared.topology.prefix(), shared.node);
    let connection = connection::open(&shared.urls, name).await?;
    // The only listener of this connection: two would take each other's events away.
    let events: BoxStream<'static, Event> = Box::pin(connection.events_listener());
    declare::durable(&connection, &shared.topology).await?;
    let (tell, told) = mpsc::channel(lanes.len());
    for (index, lane) in lanes.iter().enumerate() {
        lane.send_replace(Some(lane_channel(&connection, index, &tell).await?));
    }
    let blocked = connection.status().blocked();
    shared.set_publishing(if blocked { Publishing::Blocked } else { Publishing::Ready });
    Ok(Open { connection, events, failures: Failures { told, tell } })
}

async fn lane_channel(
    connection: &Connection,
    lane: usize,
    failed: &mpsc::Sender<usize>,
) -> Result<LaneChannel, LinkError> {
    let channel = within("opening a channel", connection.create_channel()).await?;
    within("confirm mode", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    // A content header has to fit into one frame.
    let header_bytes_max = match connection.configuration().frame_max() {
        0 => 128 << 10,
        frame_max => frame_max as usize,
    };
    Ok(LaneChannel { channel, header_bytes_max, failed: failed.clone(), lane })
}

/// Returns why the connection is of no use any more.
async fn watch_over(
    shared: &Shared,
    lanes: &LaneChannels,
    connection: &Connection,
    mut events: BoxStream<'static, Event>,
    mut failures: Failures,
) -> LinkError {
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!(reason, "the broker takes no messages");
                    shared.set_publishing(Publishing::Blocked);
                }
                Some(Event::ConnectionUnblocked) => {
                    info!("the broker takes messages again");
                    shared.set_publishing(Publishing::Ready);
                }
                // A channel's own error: the lane that uses it tells, and a look for a queue may miss.
                Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                Some(Event::Error(error)) => return error.into(),
                Some(_) => {}
                None => return LinkError::Ended("the connection's events ended"),
            },
            Some(lane) = failures.told.recv() => {
                if let Err(error) = replace(shared, lanes, connection, lane, &failures.tell).await {
                    return error;
                }
            }
        }
    }
}

/// A failed channel costs its own publishes alone. Most likely it named an exchange that was deleted.
async fn replace(
    shared: &Shared,
    lanes: &LaneChannels,
    connection: &Connection,
    lane: usize,
    failed: &mpsc::Sender<usize>,
) -> Result<(), LinkError> {
    warn!(lane, "a publishing channel failed and gets a successor");
    declare::durable(connection, &shared.topology).await?;
    let channel = lane_channel(connection, lane, failed).await?;
    if let Some(lane) = lanes.get(lane) {
        lane.send_replace(Some(channel));
    }
    Ok(())
}

fn take_back(shared: &Shared, lanes: &LaneChannels) {
    shared.set_publishing(Publishing::Down);
    for lane in lanes {
        lane.send_replace(None);
    }
}
