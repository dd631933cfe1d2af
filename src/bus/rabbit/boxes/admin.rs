//! Rare requests to the broker, over a few pooled connections that never publish.
//!
//! A connection that publishes stops answering while the broker is short of memory; these go on.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_lapin::{Connection, Manager, Pool, PoolConfig, Runtime, Timeouts};
use lapin::protocol::AMQPSoftError;
use lapin::Channel;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::super::connection::{self, LinkError};
use super::super::declare;
use super::super::dial::{self, Dialler};
use super::super::topology::Queue;
use crate::bus::PUBLISH_DEADLINE;
use crate::config::AmqpUrl;

/// For the answer to one request.
const ADMIN_DEADLINE: Duration = Duration::from_secs(2);
/// For a turn: as long as a deposit may wait for its box. Making a queue takes the broker some 3 ms, and longer while it
/// has much else to do, so there may be a crowd.
const SLOT_DEADLINE: Duration = PUBLISH_DEADLINE;
/// For each broker address; only the address in use has any.
const CONNECTIONS: usize = 2;
/// Requests at the same time: in a crowd all are served faster when few are served at a time.
const CHANNELS: usize = 8;
/// Channels that a connection gives out in its life. When their numbers come round again, the client library takes
/// a new channel for the one that the broker once closed under the same number, and fails it with the old error.
const CONNECTION_CHANNELS: u16 = 1000;
/// The client library remembers every queue that a channel has ever declared; an old channel is replaced.
const CHANNEL_USES: u32 = 256;

pub struct Admin {
    /// One for each broker of the cluster.
    pools: Vec<Pool>,
    /// The pool in use; the next one when it fails.
    current: AtomicUsize,
    /// Channels that wait for a request, and how many each has served.
    idle: Mutex<Vec<(Channel, u32)>>,
    slots: Semaphore,
}

struct Borrowed<'a> {
    admin: &'a Admin,
    channel: Channel,
    uses: u32,
    _slot: SemaphorePermit<'a>,
}

impl Borrowed<'_> {
    /// Only after a request that was answered: another one must not wait behind an answer that never comes.
    fn give_back(self) {
        if self.uses < CHANNEL_USES && self.channel.status().connected() {
            self.admin.lock().push((self.channel, self.uses + 1));
        }
    }
}

impl Admin {
    /// To be called inside a tokio runtime. Connects on first need.
    pub fn new(urls: &[AmqpUrl], name: String) -> Self {
        let pools: Vec<_> = urls.iter().filter_map(|url| pool(url, name.clone())).collect();
        let first = rand::random_range(0..pools.len().max(1));
        Self {
            pools,
            current: AtomicUsize::new(first),
            idle: Mutex::default(),
            slots: Semaphore::new(CHANNELS),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Channel, u32)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn close(&self) {
        self.slots.close();
        self.pools.iter().for_each(Pool::close);
        self.lock().clear();
    }

    /// A channel for the caller alone.
    pub async fn channel(&self) -> Result<Channel, LinkError> {
        // Each pooled connection may be one whose end nobody has noticed.
        for _ in 0..self.pools.len() + CONNECTIONS {
            let current = self.current.load(Ordering::Relaxed) % self.pools.len();
            match fresh(&self.pools[current]).await {
                Some(connection) => match connection.create_channel().await {
                    Ok(channel) => return Ok(channel),
                    Err(_) => drop(Connection::take(connection)),
                },
                None => self.current.store(current + 1, Ordering::Relaxed),
            }
        }
        Err(LinkError::Ended("no broker can be reached"))
    }

    /// The right to ask something: in a crowd, everybody is served faster when few are served at a time.
    pub async fn slot(&self) -> Result<SemaphorePermit<'_>, LinkError> {
        turn(&self.slots).await
    }

    async fn borrow(&self) -> Result<Borrowed<'_>, LinkError> {
        let slot = self.slot().await?;
        loop {
            let idle = self.lock().pop();
            let (channel, uses) = match idle {
                Some((channel, _)) if !channel.status().connected() => continue,
                Some(idle) => idle,
                None => (in_time(self.channel()).await?, 0),
            };
            return Ok(Borrowed { admin: self, channel, uses, _slot: slot });
        }
    }

    /// Makes a queue, if there is none.
    pub async fn declare(&self, queue: &Queue) -> Result<(), LinkError> {
        let borrowed = self.borrow().await?;
        in_time(async {
            match declare::declare_queue(&borrowed.channel, queue, false).await {
                // It is there with other arguments, which it keeps: made by a node with other settings, or for another
                // version of the broker.
                Err(error) if declare::is(&error, AMQPSoftError::PRECONDITIONFAILED) => {}
                answer => answer?,
            }
            borrowed.give_back();
            Ok(())
        })
        .await
    }
}

async fn turn(slots: &Semaphore) -> Result<SemaphorePermit<'_>, LinkError> {
    match timeout(SLOT_DEADLINE, slots.acquire()).await {
        Ok(slot) => slot.map_err(|_| LinkError::Ended("the bus is closed")),
        Err(_) => Err(LinkError::Late("a turn for a request about a box")),
    }
}

pub async fn in_time<T>(work: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    timeout(ADMIN_DEADLINE, work).await.unwrap_or(Err(LinkError::Late("a request about a box")))
}

/// A connection that has not given out many channels yet. One that has is left to the channels that still use
/// it, and closes with the last of them.
async fn fresh(pool: &Pool) -> Option<Connection> {
    loop {
        let connection = pool.get().await.ok()?;
        let most = CONNECTION_CHANNELS.min(connection.configuration().channel_max() / 2);
        // Each loan gives out one channel.
        if Connection::metrics(&connection).recycle_count < usize::from(most) {
            return Some(connection);
        }
        drop(Connection::take(connection));
    }
}

fn pool(url: &AmqpUrl, name: String) -> Option<Pool> {
    let timeouts =
        Timeouts { wait: Some(ADMIN_DEADLINE), create: Some(ADMIN_DEADLINE), recycle: Some(ADMIN_DEADLINE) };
    let config = PoolConfig { timeouts, ..PoolConfig::new(CONNECTIONS) };
    let text = dial::library_url(url).to_string();
    let manager =
        Manager::new(text, move || connection::properties(name.clone()), Dialler::runtime(url.clone()));
    Pool::builder(manager).config(config).runtime(Runtime::Tokio1).build().ok()
}
