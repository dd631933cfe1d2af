//! Boxes at RabbitMQ: a fixed number of durable classic queues, made on first need and never deleted by a node.

mod admin;
mod deposits;
mod line;
mod migrate;
mod reader;
mod version;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::publisher::LaneInbox;
use super::{Shared, Topology};
use crate::bus::answer::Answer;
use crate::bus::marker::Rounds;
use crate::bus::{Attach, BoxError, BoxNumber, BoxSettings, Link, Outcome, Properties, Publishing};
use crate::ids::{Life, NodeId, UserKey};
use admin::Admin;
pub use migrate::{Migrated, Read};
use reader::{Consuming, Terms};
use version::Version;

/// Boxes that this node reads at a time; each takes a channel, and more wait.
const READS_MAX: usize = 64;
/// How long a reading waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(5);

/// Everything about boxes that one bus has.
#[derive(Clone)]
pub struct Boxes {
    topology: Topology,
    node: NodeId,
    life: Life,
    link: watch::Receiver<Link>,
    admin: Arc<Admin>,
    deposits: deposits::Inbox,
    turns: Arc<Semaphore>,
    readings: Arc<Mutex<JoinSet<()>>>,
    stop: watch::Sender<bool>,
}

impl Boxes {
    /// Its tasks besides the readings go into `tasks`.
    pub fn start(shared: &Shared, lane: LaneInbox, tasks: &mut JoinSet<()>) -> Self {
        let topology = shared.topology.clone();
        let admin =
            Arc::new(Admin::new(&shared.urls, format!("{}/{}/admin", topology.prefix(), shared.node)));
        let version = Arc::new(Version::new(&shared.urls));
        let (deposits, depositing) = deposits::start(topology.clone(), admin.clone(), lane, version);
        tasks.spawn(depositing);
        Self {
            topology,
            node: shared.node.clone(),
            life: Life::generate(),
            link: shared.link.subscribe(),
            admin,
            deposits,
            turns: Arc::new(Semaphore::new(READS_MAX)),
            readings: Arc::default(),
            stop: watch::Sender::new(false),
        }
    }

    pub fn settings(&self) -> BoxSettings {
        self.topology.boxes()
    }

    pub fn deposit(&self, to: BoxNumber, properties: Properties, body: Bytes, answer: Answer) {
        if self.link.borrow().publishing != Publishing::Ready {
            return answer.give(Outcome::Unavailable);
        }
        self.deposits.offer(to, properties, body, answer);
    }

    pub async fn attach(self, number: BoxNumber, users: Vec<UserKey>) -> Result<Attach, BoxError> {
        // A reading begins with a publish.
        if !self.link.borrow().ready() || *self.stop.borrow() {
            return Err(BoxError);
        }
        let turn = match timeout(TURN_DEADLINE, self.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => turn,
            _ => return Err(BoxError),
        };
        let (tell, told) = oneshot::channel();
        // A task of its own, since a consumer that has begun must be ended in its own way, whatever becomes of the caller.
        let reading = self.clone().read(number, users, turn, tell);
        {
            let mut readings = self.lock();
            while readings.try_join_next().is_some() {}
            readings.spawn(reading);
        }
        told.await.unwrap_or(Err(BoxError))
    }

    async fn read(
        self,
        number: BoxNumber,
        users: Vec<UserKey>,
        turn: OwnedSemaphorePermit,
        tell: oneshot::Sender<Result<Attach, BoxError>>,
    ) {
        let started = reader::start(&self.admin, &self.topology.box_name(number)).await;
        let source = match started {
            Ok(Consuming::Started(source)) => *source,
            other => {
                let answer = match other {
                    Ok(Consuming::Missing) => Ok(Attach::Missing),
                    Ok(_) => Ok(Attach::Busy),
                    Err(error) => {
                        debug!(%error, number = number.0, "cannot read a box");
                        Err(BoxError)
                    }
                };
                let _ = tell.send(answer);
                return;
            }
        };
        let terms = Terms {
            number,
            account: self.topology.account().map(str::to_owned),
            ttl: self.topology.boxes().ttl,
            deposits: self.deposits.clone(),
            rounds: Rounds::new(self.node.as_str().to_owned(), self.life.0, rand::random()),
            stop: self.stop.subscribe(),
        };
        let (reader, reading) = reader::reading(source, terms);
        // If nobody waits any more, the reader is dropped, and the reading ends at once.
        let _ = tell.send(Ok(Attach::Reading(reader)));
        reading.run(users).await;
        drop(turn);
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the connections. Readings end by themselves, each after its channel is closed: ended from outside,
    /// they would give their mail back in an order that lets others in between.
    pub fn close(&self) {
        self.stop.send_replace(true);
        self.lock().detach_all();
        self.admin.close();
    }
}
