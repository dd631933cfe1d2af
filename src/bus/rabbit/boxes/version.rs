//! Which version of RabbitMQ the boxes lie in, as far as their arguments depend on it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::config::AmqpUrl;

/// For the broker's first frame.
const DEADLINE: Duration = Duration::from_millis(500);
/// `connection.start` is some 500 bytes.
const START_BYTES_MAX: usize = 16 << 10;
/// A field of the server's properties (AMQP 0-9-1, section 1.4.2.1): a name, and a long string.
const FIELD: &[u8] = b"\x07versionS";

/// Asked once, of the first broker that answers; the nodes of a cluster are of one version or of neighbouring ones.
#[derive(Debug)]
pub struct Version {
    urls: Vec<AmqpUrl>,
    lazy: OnceCell<bool>,
}

impl Version {
    pub fn new(urls: &[AmqpUrl]) -> Self {
        Self { urls: urls.to_vec(), lazy: OnceCell::new() }
    }

    /// Before 3.12 a classic queue keeps its messages in memory unless it is lazy: 650 MB instead of 100 MB for
    /// 300,000 mails. From 3.12 on all queues are; from 4.3 on the argument is refused. Over TLS the version cannot be
    /// asked like this, and the queues are as the broker makes them; a policy can make them lazy.
    pub async fn needs_lazy_queues(&self) -> bool {
        let ask = || async {
            for url in &self.urls {
                if let Ok(Some(version)) = timeout(DEADLINE, ask(url)).await {
                    return Ok(version < (3, 12));
                }
            }
            Err(())
        };
        self.lazy.get_or_try_init(ask).await.copied().unwrap_or(false)
    }
}

async fn ask(url: &AmqpUrl) -> Option<(u32, u32)> {
    if url.tls() {
        return None;
    }
    let mut stream = TcpStream::connect((url.host(), url.port())).await.ok()?;
    stream.write_all(b"AMQP\0\0\x09\x01").await.ok()?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.ok()?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let mut start = vec![0; size.min(START_BYTES_MAX)];
    stream.read_exact(&mut start).await.ok()?;
    version(&start)
}

/// The version in `connection.start`.
fn version(start: &[u8]) -> Option<(u32, u32)> {
    let at = start.windows(FIELD.len()).position(|bytes| bytes == FIELD)? + FIELD.len();
    let length = u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?) as usize;
    let text = std::str::from_utf8(start.get(at + 4..(at + 4).checked_add(length)?)?).ok()?;
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_the_first_frame() {
        let start = |text: &str| {
            let length = (text.len() as u32).to_be_bytes();
            [&b"\x00\x0a\x00\x0a\x00\x09\0\0\0\x20"[..], FIELD, &length, text.as_bytes(), b"\x08platformS"]
                .concat()
        };
        assert_eq!(version(&start("3.10.8")), Some((3, 10)));
        assert_eq!(version(&start("4.3.6")), Some((4, 3)));
        assert_eq!(version(&start("four")), None);
        assert_eq!(version(&start("3.10.8")[..20]), None);
    }
}
