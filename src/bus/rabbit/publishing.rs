//! A publishing connection: opened, watched, torn down and opened again, for as long as the bus lives.
//!
//! A channel that the broker closes is opened again alone; the other lanes do not notice.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::{Connection, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, Instant};
use tracing::{info, warn};

use super::connection::{self, within, Backoff, LinkError};
use super::publisher::{Closures, LaneChannel};
use super::{declare, Shared, APPLICATION_LANE, STABLE_AFTER};
use crate::bus::Publishing;

/// Channels that a connection opens in its life. When their numbers come round again, the client library takes a new
/// channel for the one that the broker closed under the same number, and fails it with the old error.
const CHANNELS_MAX: usize = 1000;
/// How long a channel stays closed: the broker writes to its log for each.
const REOPEN_AFTER: Duration = Duration::from_millis(5);
/// The same for the application: until its exchange is there, what clients send closes each new channel.
const REOPEN_APPLICATION_AFTER: Duration = Duration::from_millis(250);
/// How long a connection that the broker closed for what was published on it stays closed.
const RECONNECT_AFTER: Duration = Duration::from_millis(50);

/// A lane as its supervisor sees it.
pub struct Port {
    pub channel: watch::Sender<Option<LaneChannel>>,
    pub closures: Closures,
}

/// What a publishing connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All that this node says; the state of the connection is that of the link.
    Main,
    /// What goes to names that strangers gave, which may cost the connection.
    Reply,
}

pub async fn supervise(shared: Shared, role: Role, lanes: Vec<Port>) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let error = match open(&shared, role, &lanes).await {
            Ok(mut open) => {
                info!(?role, "publishing link is up");
                let error = watch_over(&shared, role, &lanes, &mut open).await;
                if is_our_fault(&error) {
                    lanes.iter().for_each(|lane| lane.closures.add());
                }
                take_back(&shared, role, &lanes);
                connection::close(open.channels.connection).await;
                error
            }
            Err(error) => error,
        };
        take_back(&shared, role, &lanes);
        if started.elapsed() > STABLE_AFTER {
            backoff.reset();
        }
        let wait = match role {
            Role::Reply if is_our_fault(&error) => RECONNECT_AFTER,
            _ => backoff.next(rand::random()),
        };
        warn!(?role, %error, retry_ms = wait.as_millis() as u64, "publishing link is down");
        sleep(wait).await;
    }
}

/// Whether the broker closed the connection for something that was published, and not because it or a person wanted.
fn is_our_fault(error: &LinkError) -> bool {
    let LinkError::Amqp(error) = error else { return false };
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Hard(kind) if *kind != AMQPHardError::CONNECTIONFORCED)
}

struct Open {
    channels: Channels,
    events: BoxStream<'static, Event>,
    failures: mpsc::Receiver<usize>,
}

/// Where channels come from.
struct Channels {
    connection: Connection,
    failed: mpsc::Sender<usize>,
}

impl Channels {
    async fn open(&self, lane: usize) -> Result<LaneChannel, LinkError> {
        let channel = within("opening a channel", self.connection.create_channel()).await?;
        within("confirm mode", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        // A content header has to fit into one frame.
        let header_bytes_max = match self.connection.configuration().frame_max() {
            0 => 128 << 10,
            frame_max => frame_max as usize,
        };
        let rest = if lane == APPLICATION_LANE { REOPEN_APPLICATION_AFTER } else { Duration::ZERO };
        Ok(LaneChannel { channel, header_bytes_max, lane, rest, failed: self.failed.clone() })
    }
}

async fn open(shared: &Shared, role: Role, lanes: &[Port]) -> Result<Open, LinkError> {
    let purpose = if role == Role::Main { "publish" } else { "reply" };
    let name = format!("{}/{}/{purpose}", shared.topology.prefix(), shared.node);
    let connection = connection::open(&shared.urls, name).await?;
    // The only listener of this connection: two would take each other's events away.
    let events: BoxStream<'static, Event> = Box::pin(connection.events_listener());
    if role == Role::Main {
        declare::durable(&connection, &shared.topology).await?;
    }
    let (failed, failures) = mpsc::channel(lanes.len());
    let open = Open { channels: Channels { connection, failed }, events, failures };
    let mut channels = Vec::with_capacity(lanes.len());
    for lane in 0..lanes.len() {
        channels.push(open.channels.open(lane).await?);
    }
    for (lane, channel) in lanes.iter().zip(channels) {
        lane.channel.send_replace(Some(channel));
    }
    let blocked = open.channels.connection.status().blocked();
    report(shared, role, if blocked { Publishing::Blocked } else { Publishing::Ready });
    Ok(open)
}

fn report(shared: &Shared, role: Role, publishing: Publishing) {
    if role == Role::Main {
        shared.set_publishing(publishing);
    }
}

/// Returns why the connection is of no use any more.
async fn watch_over(shared: &Shared, role: Role, lanes: &[Port], open: &mut Open) -> LinkError {
    let mut opened = lanes.len();
    loop {
        tokio::select! {
            event = open.events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!(?role, reason, "the broker takes no messages");
                    report(shared, role, Publishing::Blocked);
                }
                Some(Event::ConnectionUnblocked) => {
                    info!(?role, "the broker takes messages again");
                    report(shared, role, Publishing::Ready);
                }
                // A channel's own error: the lane that uses it tells.
                Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                Some(Event::Error(error)) => return error.into(),
                Some(_) => {}
                None => return LinkError::Ended("the connection's events ended"),
            },
            Some(lane) = open.failures.recv() => {
                opened += 1;
                if opened > CHANNELS_MAX {
                    return LinkError::Ended("its channel numbers are used up");
                }
                sleep(REOPEN_AFTER).await;
                // The error of the whole connection, which tells more, waits among the events.
                if !open.channels.connection.status().connected() {
                    continue;
                }
                match open.channels.open(lane).await {
                    Ok(channel) => drop(lanes[lane].channel.send_replace(Some(channel))),
                    Err(_) if !open.channels.connection.status().connected() => {}
                    Err(error) => return error,
                }
            }
        }
    }
}

fn take_back(shared: &Shared, role: Role, lanes: &[Port]) {
    report(shared, role, Publishing::Down);
    for lane in lanes {
        lane.channel.send_replace(None);
    }
}
