//! The words of mailboxes: their limits, and what a node gets when it opens one.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Delivery;

/// What is on top of the mail's own time before an untouched mailbox is removed.
const EXPIRY_MARGIN: Duration = Duration::from_secs(24 * 3600);

/// How much one mailbox holds, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxLimits {
    /// Older mail is dropped; a message's own `expiration` may make it less.
    pub ttl: Duration,
    /// A mailbox that nobody deposits into or opens is removed after this: longer than `ttl`, so that no live
    /// mail is in it.
    pub expires: Duration,
    pub messages: usize,
    pub bytes: usize,
}

impl MailboxLimits {
    pub fn new(ttl: Duration, messages: usize, bytes: usize) -> Self {
        Self { ttl, expires: ttl + EXPIRY_MARGIN, messages, bytes }
    }
}

impl Default for MailboxLimits {
    fn default() -> Self {
        Self::new(Duration::from_secs(7 * 24 * 3600), 10_000, 16 << 20)
    }
}

/// What a node finds when it opens a mailbox.
#[derive(Debug)]
pub enum Opened {
    /// There is no mailbox, or nothing in it.
    Empty,
    Mail(Mailbox),
    /// Another node hands it out right now. After the sudden death of that node this may last until the broker
    /// misses its heartbeats.
    Busy,
}

/// The mailbox cannot be asked: no link, or no answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox cannot be reached")]
pub struct MailboxError;

/// A mailbox that this node hands out, exclusively. Dropping it hands back what is not acknowledged, in its
/// order.
///
/// One token that is dropped unsettled ends the handing out as well, instead of getting the same message again
/// at once and for ever: all of it waits for whoever opens the mailbox next.
#[derive(Debug)]
pub struct Mailbox {
    /// In order; a few at a time. It ends for one of the reasons of [`Ending`].
    pub mail: mpsc::Receiver<Delivery>,
    ending: oneshot::Receiver<Ending>,
}

/// Why a mailbox hands out no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Each delivery was acknowledged, and after that the mailbox was found empty. What is deposited from then
    /// on waits for the next opening.
    Emptied,
    /// The link was lost, a token was dropped, or the mailbox itself: there may be mail in it. Deliveries that
    /// are still in `mail` will be handed out again.
    Interrupted,
}

impl Mailbox {
    /// To be held by whoever fills the mailbox: the mail, and the way to say that it was emptied.
    pub(super) fn new(window: usize) -> (Self, mpsc::Sender<Delivery>, oneshot::Sender<Ending>) {
        let (sender, mail) = mpsc::channel(window);
        let (end, ending) = oneshot::channel();
        (Self { mail, ending }, sender, end)
    }

    /// To be asked when `mail` has ended.
    pub fn ending(&mut self) -> Ending {
        self.ending.try_recv().unwrap_or(Ending::Interrupted)
    }
}
