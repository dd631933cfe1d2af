//! Opening one connection to the broker: addresses, deadlines, heartbeat and the wait between two tries.

use std::future::Future;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// For each step of opening a link. A declare can hang for as long as a broker cluster has no majority.
pub const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// The broker and this node notice each other's silent death after two to three times this.
const HEARTBEAT_SECONDS: u16 = 10;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Amqp(#[from] lapin::Error),
    #[error("no answer in time to: {0}")]
    Late(&'static str),
    #[error("{0}")]
    Unreachable(#[from] std::io::Error),
    #[error("a name is longer than 255 bytes")]
    Name(#[from] lapin::types::ShortStringError),
    #[error("not an AMQP URL: {0}")]
    Url(String),
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

/// Checks an AMQP URL; the answer never repeats it, since it holds a password.
pub fn check_url(url: &str) -> Result<(), String> {
    parse(url).map(|_| ())
}

fn parse(url: &str) -> Result<AMQPUri, String> {
    let mut uri: AMQPUri = url.trim().parse()?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
}

/// The user of the URLs; `None` if they name different ones, so that nodes could not know each other by it.
pub fn account(urls: &[String]) -> Option<String> {
    let mut users = urls.iter().map(|url| parse(url).ok().map(|uri| uri.authority.userinfo.username));
    let first = users.next()??;
    users.all(|user| user.as_ref() == Some(&first)).then_some(first)
}

/// An AMQP URL with our heartbeat in it, for a pool that takes nothing but text.
pub fn with_heartbeat(url: &str) -> String {
    let url = url.trim();
    match url.split_once('?') {
        Some((_, query)) if query.contains("heartbeat=") => url.to_owned(),
        Some(_) => format!("{url}&heartbeat={HEARTBEAT_SECONDS}"),
        None => format!("{url}?heartbeat={HEARTBEAT_SECONDS}"),
    }
}

/// Connects to one of the brokers, picked at random so that a restart of one spreads the nodes evenly.
pub async fn open(urls: &[String], name: String) -> Result<Connection, LinkError> {
    let url = match urls.len() {
        0 => return Err(LinkError::Url("none given".into())),
        count => &urls[rand::rng().random_range(0..count)],
    };
    let uri = parse(url).map_err(LinkError::Url)?;
    within("greeting", greeted(&uri)).await?;
    // The client library's own recovery and retries stay off: the supervisors rebuild everything instead.
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .configure_backoff(|backoff| backoff.with_max_times(0));
    within("connecting", Connection::connect_uri(uri, properties)).await
}

/// Whether somebody there speaks AMQP. A connection attempt that is given up on leaves its thread waiting for
/// the broker for ever; so nothing is started before the broker has said its first byte.
async fn greeted(uri: &AMQPUri) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await?;
    if uri.scheme == AMQPScheme::AMQP {
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.read_u8().await?;
    }
    Ok(())
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

    #[test]
    fn a_url_is_checked_without_being_repeated() {
        assert!(check_url("amqp://u:secret@host:5672/vhost").is_ok());
        assert!(check_url("amqps://u:secret@host").is_ok());
        for bad in ["http://u:secret@host", "secret", ""] {
            assert!(!check_url(bad).unwrap_err().contains("secret"), "{bad}");
        }
    }

    #[test]
    fn the_heartbeat_is_ours_unless_given() {
        assert_eq!(parse("amqp://h").unwrap().query.heartbeat, Some(10));
        assert_eq!(parse("amqp://h/%2f?heartbeat=7").unwrap().query.heartbeat, Some(7));
        for (url, seconds) in
            [("amqp://h", 10), ("amqp://h/%2f?frame_max=9000", 10), ("amqp://h/%2f?heartbeat=7", 7)]
        {
            let parsed: AMQPUri = with_heartbeat(url).parse().unwrap();
            assert_eq!(parsed.query.heartbeat, Some(seconds), "{url}");
        }
    }
}
