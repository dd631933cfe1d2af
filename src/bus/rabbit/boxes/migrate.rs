//! Moves the mail of version 1, which lay in one queue for each user, into boxes.
//!
//! A mail is acknowledged when its box has it: a break in between leaves it twice, never nowhere. A queue is removed by
//! the broker only if nothing is in it and nobody uses it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lapin::options::QueueDeleteOptions;
use lapin::types::ShortString;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::connection::LinkError;
use super::super::convert;
use super::admin::in_time;
use super::reader::{self, Consuming, Source};
use super::Boxes;
use crate::bus::answer::Answer;
use crate::bus::{BoxNumber, Outcome, Properties};

/// Mails that are moved together.
const BATCH: usize = 64;
/// A consumer that gets nothing for so long has all that was there.
const IDLE: Duration = Duration::from_millis(300);
/// How often a queue is read that is found not to be empty.
const ROUNDS: usize = 3;

/// What became of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Migrated {
    pub moved: u64,
    /// Mails that stay, because they cannot be read or their box does not take them.
    pub left: u64,
    /// The queue is gone.
    pub removed: bool,
}

/// Reads a mail of version 1: where it goes, and how it looks there. `None`: it stays where it is.
pub type Read<'a> = &'a (dyn Fn(&Properties, &[u8]) -> Option<(BoxNumber, Properties, Bytes)> + Sync);

impl Boxes {
    pub async fn migrate(&self, queue: &str, read: Read<'_>) -> Result<Migrated, LinkError> {
        let mut migrated = Migrated::default();
        for _ in 0..ROUNDS {
            let mut source = match reader::start(&self.admin, queue).await? {
                Consuming::Missing => return Ok(migrated),
                Consuming::Busy => return Err(LinkError::Ended("a node of version 1 reads the queue")),
                Consuming::Started(source) => *source,
            };
            let emptied = self.empty(&mut source, read, &mut migrated).await;
            source.close().await;
            emptied?;
            if migrated.left > 0 {
                break;
            }
            migrated.removed = self.remove_idle(queue).await.is_ok();
            if migrated.removed {
                break;
            }
        }
        Ok(migrated)
    }

    async fn empty(
        &self,
        source: &mut Source,
        read: Read<'_>,
        migrated: &mut Migrated,
    ) -> Result<(), LinkError> {
        loop {
            let (mut tags, mut answers, mut last) = (Vec::new(), Vec::new(), false);
            while tags.len() < BATCH && !last {
                let Ok(delivery) = timeout(IDLE, source.next()).await else {
                    last = true;
                    continue;
                };
                let delivery = delivery.ok_or(LinkError::Ended("the queue is gone"))??;
                let properties = convert::incoming(&delivery.properties);
                match read(&properties, &delivery.data) {
                    Some((to, properties, body)) => {
                        tags.push(delivery.delivery_tag);
                        answers.push(self.move_one(to, properties, body));
                    }
                    None => migrated.left += 1,
                }
            }
            let mut moved = Vec::new();
            for (tag, outcome) in tags.into_iter().zip(join_all(answers).await) {
                match outcome {
                    Ok(Outcome::Confirmed) => moved.push(tag),
                    _ => migrated.left += 1,
                }
            }
            source.ack(&moved).await?;
            migrated.moved += moved.len() as u64;
            if last || migrated.left > 0 {
                return Ok(());
            }
        }
    }

    fn move_one(&self, to: BoxNumber, properties: Properties, body: Bytes) -> oneshot::Receiver<Outcome> {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |outcome| {
            let _ = tell.send(outcome);
        });
        self.deposit(to, properties, body, Answer::new(done));
        told
    }

    /// Refused by the broker, with an error, if something is in it or somebody uses it.
    async fn remove_idle(&self, queue: &str) -> Result<(), LinkError> {
        let channel = in_time(self.admin.channel()).await?;
        let options = QueueDeleteOptions { if_unused: true, if_empty: true, nowait: false };
        let name = ShortString::try_new(queue)?;
        in_time(async { Ok(channel.queue_delete(name, options).await?) }).await?;
        Ok(())
    }
}
