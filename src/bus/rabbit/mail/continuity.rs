//! Whether a mailbox has been there all the time: a queue of the same name may be another one.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{timeout, Instant};

use super::super::connection::LinkError;
use super::admin::{Admin, Content};

/// How long a mailbox that is gone stays gone: nobody makes it anew before this time is over from when it was seen
/// to be gone. Looks that are closer together do not miss that it was.
pub const GONE_FOR: Duration = Duration::from_millis(500);
/// How long work may take before somebody looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Begins now; the first look decides about the time from then on.
pub struct Watch<'a> {
    admin: &'a Admin,
    queue: &'a str,
    /// When the last look began.
    seen: Instant,
    unbroken: bool,
}

impl<'a> Watch<'a> {
    pub fn begin(admin: &'a Admin, queue: &'a str) -> Self {
        Self { admin, queue, seen: Instant::now(), unbroken: true }
    }

    /// What is in the queue; `None` unless it has been there since the watch began.
    pub async fn look(&mut self) -> Result<Option<Content>, LinkError> {
        let asked = Instant::now();
        let content = self.admin.look(self.queue).await?;
        self.unbroken &= content.is_some() && self.is_fresh();
        self.seen = asked;
        Ok(content.filter(|_| self.unbroken))
    }

    /// Whether the last look still tells about now.
    pub fn is_fresh(&self) -> bool {
        self.seen.elapsed() < GONE_FOR
    }

    /// Looks from time to time until the work is done. What looks may fail: the last one tells.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            if let Ok(done) = timeout(LOOK_EVERY, &mut work).await {
                return done;
            }
            tokio::select! {
                done = &mut work => return done,
                // A look that failed is one that was not taken.
                _ = self.look() => {}
            }
        }
    }
}
