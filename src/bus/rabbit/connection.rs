//! Opening one connection to the broker: addresses, deadlines, heartbeat and the wait between two tries.

use std::future::Future;
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use rand::RngExt;

use super::dial::{self, Dialler};
use crate::config::AmqpUrl;

/// For each step of opening a link. A declare can hang for as long as a broker cluster has no majority.
pub const STEP_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Amqp(#[from] lapin::Error),
    #[error("no answer in time to: {0}")]
    Late(&'static str),
    #[error("{address}: {cause}")]
    Connecting { address: String, cause: Box<LinkError> },
    #[error("a name is longer than 255 bytes")]
    Name(#[from] lapin::types::ShortStringError),
    #[error("{0}")]
    Ended(&'static str),
}

/// Gives up after [`STEP_DEADLINE`].
pub async fn within<T, E: Into<LinkError>>(
    step: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(STEP_DEADLINE, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(LinkError::Late(step)),
    }
}

/// The user of the URLs, which all name the same one ([`super::url::check_together`]).
pub fn account(urls: &[AmqpUrl]) -> Option<String> {
    urls.first().map(|url| url.user().to_owned())
}

/// Connects to one of the brokers, picked at random so that a restart of one spreads the nodes evenly.
pub async fn open(urls: &[AmqpUrl], name: String) -> Result<Connection, LinkError> {
    let url = match urls.len() {
        0 => return Err(LinkError::Ended("no broker is configured")),
        count => &urls[rand::rng().random_range(0..count)],
    };
    let runtime = Dialler::runtime(url.clone());
    let connecting = Connection::connect_uri_with_runtime(dial::library_url(url), properties(name), runtime);
    within("connecting", connecting)
        .await
        .map_err(|cause| LinkError::Connecting { address: url.address(), cause: Box::new(cause) })
}

/// What every connection has in common. The client library's own recovery and retries stay off: the supervisors
/// rebuild everything instead.
pub fn properties(name: String) -> ConnectionProperties {
    ConnectionProperties::default()
        .with_connection_name(name.into())
        .configure_backoff(|backoff| backoff.with_max_times(0))
}

/// Closes a connection that is no longer wanted, without waiting long for one that is dead.
pub async fn close(connection: Connection) {
    let goodbye = connection.close(200, "rebuilding".into());
    let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
}

/// The wait before the next try: full jitter under a doubling ceiling, without end.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    const FLOOR: Duration = Duration::from_millis(50);
    const FIRST: Duration = Duration::from_millis(100);
    /// All is to be well within 5 s after the broker's port opens again.
    const CEILING: Duration = Duration::from_secs(2);

    /// `random` is in `0.0..1.0`.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = Self::FIRST.saturating_mul(1 << self.tries.min(10)).min(Self::CEILING);
        self.tries = self.tries.saturating_add(1);
        ceiling.mul_f64(random).max(Self::FLOOR)
    }

    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_ceiling_and_never_ends() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..7).map(|_| backoff.next(0.999_999).as_millis()).collect();
        assert_eq!(waits, [99, 199, 399, 799, 1599, 1999, 1999]);
        assert_eq!((0..1_000_000).map(|_| backoff.next(0.0)).max(), Some(Backoff::FLOOR));
        backoff.reset();
        assert!(backoff.next(0.5) <= Duration::from_millis(50));
    }
}
