//! `warren migrate-mailboxes`: moves the mail of version 1 out of one queue for each user into boxes.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;

use crate::bus::rabbit::{RabbitBus, RabbitSettings};
use crate::bus::{BoxNumber, BoxSettings, Bus, Properties};
use crate::clock;
use crate::config::Config;
use crate::delivery::{envelope, old_mail};
use crate::ids::{encode, UserKey};
use crate::protocol::target::Target;

/// For the link to come up.
const LINK_DEADLINE: Duration = Duration::from_secs(10);

/// What became of all queues.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    pub queues: u64,
    pub removed: u64,
    pub moved: u64,
    pub left: u64,
    /// Queues that could not be read, and why.
    pub failed: Vec<String>,
}

impl Summary {
    pub fn is_complete(&self) -> bool {
        self.left == 0 && self.failed.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queues, removed, moved, left, .. } = self;
        write!(f, "{queues} mailboxes: {moved} mails moved, {left} left, {removed} queues removed")?;
        self.failed.iter().try_for_each(|failed| write!(f, "\nnot read: {failed}"))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("there are no mailboxes without a broker: set WARREN_AMQP_URL")]
    Standalone,
    #[error("no link to the broker")]
    NoLink,
}

/// Moves what is in the queues of these names that are mailboxes; the others are passed over. Each mail is
/// acknowledged when its box has it, so that it may be repeated after a failure.
pub async fn mailboxes(config: &Config, names: &[String]) -> Result<Summary, MigrateError> {
    if config.standalone() {
        return Err(MigrateError::Standalone);
    }
    let boxes = BoxSettings { boxes: config.boxes, ttl: config.mailbox_ttl };
    let urls = config.amqp_urls.clone();
    let prefix = config.prefix.as_str().to_owned();
    let settings = RabbitSettings { prefix, boxes, ..RabbitSettings::new(urls) };
    move_all(settings, config.node_id.clone(), names).await
}

/// The same on a broker of these settings.
pub async fn move_all(
    settings: RabbitSettings,
    node: crate::ids::NodeId,
    names: &[String],
) -> Result<Summary, MigrateError> {
    let (boxes, first) = (settings.boxes, format!("{}.mailbox.", encode(&settings.prefix)));
    let (bus, _inboxes) = RabbitBus::start(settings, node);
    // What backends publish, and what others send, is for nodes that serve.
    bus.leave();
    let mut link = bus.link();
    match timeout(LINK_DEADLINE, link.wait_for(|link| link.ready())).await {
        Ok(Ok(_)) => {}
        _ => return Err(MigrateError::NoLink),
    }
    let read = |properties: &Properties, body: &[u8]| converted(properties, body, boxes);
    let mut summary = Summary::default();
    for name in names.iter().map(|name| name.trim()).filter(|name| name.starts_with(&first)) {
        summary.queues += 1;
        match bus.migrate(name, &read).await {
            Ok(done) => {
                summary.moved += done.moved;
                summary.left += done.left;
                summary.removed += u64::from(done.removed);
            }
            Err(error) => summary.failed.push(format!("{name}: {error}")),
        }
    }
    bus.close();
    Ok(summary)
}

fn converted(
    properties: &Properties,
    body: &[u8],
    boxes: BoxSettings,
) -> Option<(BoxNumber, Properties, Bytes)> {
    let now = Instant::now();
    let message = old_mail::read(properties, body, now, clock::unix_ms()).ok()?;
    let Target::User(user) = &message.target else { return None };
    let number = BoxNumber::of(UserKey::of(user), boxes.boxes);
    Some((number, envelope::properties(&message, now), message.payload.bytes))
}
