//! Mailboxes at RabbitMQ: one durable queue for each user who has mail, made on first need and removed when empty.
//!
//! Removing a queue while others publish into it is the delicate part. The broker looks whether the queue is
//! empty and then forgets its name; a message that is routed to the queue in between is lost, *and confirmed*.
//! So a deposit counts only when its queue is seen alive after the confirm ([`deposits`]); otherwise it is made
//! again. A mailbox that was emptied is removed only after a while in which that look has long been taken, so that
//! a deposit which was handed out already is not mistaken for a lost one. And the look must not find another
//! queue of the same name: one that is gone is made anew only after a while, and one that was just made anew is
//! not removed ([`continuity`], [`removal`]).

mod admin;
mod continuity;
mod deposits;
mod drain;
mod probe;
mod removal;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{watch, Semaphore};
use tokio::task::JoinSet;

use super::publisher::LaneInbox;
use super::{Shared, Topology};
use crate::bus::answer::Answer;
use crate::bus::{Link, MailboxError, Opened, Outcome, Properties, Publishing};
use crate::ids::UserId;
use admin::Admin;
use drain::DRAINS_MAX;
use probe::{Probe, Probed};
use removal::Removal;

/// Everything about mailboxes that one bus has.
#[derive(Clone)]
pub struct Mail {
    topology: Topology,
    link: watch::Receiver<Link>,
    admin: Arc<Admin>,
    probe: Arc<Probe>,
    deposits: deposits::Inbox,
    removal: Removal,
    drains: Arc<Semaphore>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Mail {
    /// Its tasks go into `tasks`, and end with them.
    pub fn start(shared: &Shared, lane: LaneInbox, tasks: Arc<Mutex<JoinSet<()>>>) -> Self {
        let topology = shared.topology.clone();
        let admin =
            Arc::new(Admin::new(&shared.urls, format!("{}/{}/admin", topology.prefix(), shared.node)));
        let probe = Arc::new(Probe::new(admin.clone(), lane.clone()));
        let (deposits, depositing) = deposits::start(topology.clone(), admin.clone(), lane);
        let (removal, removing) = removal::start(admin.clone());
        {
            let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.spawn(depositing);
            tasks.spawn(removing);
        }
        let drains = Arc::new(Semaphore::new(DRAINS_MAX));
        Self { topology, link: shared.link.subscribe(), admin, probe, deposits, removal, drains, tasks }
    }

    pub fn deposit(&self, user: &UserId, properties: Properties, body: Bytes, answer: Answer) {
        if self.link.borrow().publishing != Publishing::Ready {
            return answer.give(Outcome::Unavailable);
        }
        self.deposits.offer(user, properties, body, answer);
    }

    pub async fn depth(self, user: UserId) -> Result<u64, MailboxError> {
        self.linked()?;
        let content = self.admin.look(&self.topology.mailbox_name(&user)).await;
        Ok(content.map_err(|_| MailboxError)?.map_or(0, |content| content.ready))
    }

    pub async fn open(self, user: UserId) -> Result<Opened, MailboxError> {
        self.linked()?;
        let queue = self.topology.mailbox_name(&user);
        let asks = self.link.borrow().publishing == Publishing::Ready;
        match self.probe.probe(&user, &queue, asks).await? {
            Probed::Missing => return Ok(Opened::Empty),
            Probed::Empty => {
                // Left behind by a node that ended before it removed it, or about to be removed.
                self.removal.later(queue);
                return Ok(Opened::Empty);
            }
            Probed::Consumed => return Ok(Opened::Busy),
            Probed::InUse => {}
        }
        let permit = drain::permit(&self.drains).await?;
        let started = drain::open(&self.admin, queue).await?;
        let (drain, mailbox) = match started {
            drain::Started::Empty => return Ok(Opened::Empty),
            drain::Started::Busy => return Ok(Opened::Busy),
            drain::Started::Mail(drain, mailbox) => (drain, mailbox),
        };
        let (admin, removal) = (self.admin.clone(), self.removal.clone());
        // The bus may have been closed meanwhile, and with it the tasks.
        self.linked()?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            drain.run(&admin, &removal).await;
            drop(permit);
        });
        Ok(Opened::Mail(mailbox))
    }

    /// Lets go of the connections.
    pub fn close(&self) {
        self.admin.close();
    }

    fn linked(&self) -> Result<(), MailboxError> {
        match self.link.borrow().incarnation {
            Some(_) => Ok(()),
            None => Err(MailboxError),
        }
    }
}
