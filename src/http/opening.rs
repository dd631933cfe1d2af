//! What comes on a connection before HTTP: the header of the PROXY protocol, the TLS handshake, the first head.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::proxy_header::{self, Seen};
use super::slots::{Slot, Slots};
use super::sockjs::Address;
use crate::tls::{Acceptor, Transport};

/// Longest head of a request, in bytes: its line and all its headers. Beyond it the response is 431.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Room for an ordinary head.
const HEAD_BYTES_USUAL: usize = 512;
/// RFC 8446 section 5.1: with what the first record of a client begins.
const HANDSHAKE_RECORD: u8 = 22;
/// For a client that speaks HTTP where TLS is spoken.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n\
    content-length: 95\r\n\r\n\
    {\"error\":{\"code\":\"bad_request\",\"message\":\"TLS is spoken here: use https or wss\",\"retry\":false}}";

/// TLS on a listener, and what handshakes may take.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    acceptor: Acceptor,
    /// Connections from the first byte of TLS to the first head of HTTP: some 10 KiB each. Overflow policy: a newcomer takes
    /// the slot of the one that has begun first, of its own address if that holds its share.
    slots: Arc<Slots>,
}

impl Tls {
    pub(super) fn new(acceptor: Acceptor, connections: usize, per_address: usize) -> Self {
        Self { acceptor, slots: Slots::new(connections, per_address) }
    }
}

/// What came on a connection before anything was answered.
pub(super) struct Begin {
    pub(super) stream: Transport,
    pub(super) head: Vec<u8>,
    /// The client, as a proxy has said in front of it.
    pub(super) client: Option<IpAddr>,
}

/// Returns when the head of a request is there. `by_proxy`: a header of the PROXY protocol must come first. `share` says as
/// whom a client counts that a proxy named. `None`: the client is gone, or what must come did not.
pub(super) async fn begin(
    stream: TcpStream,
    by_proxy: bool,
    tls: Option<&Tls>,
    share: impl Fn(Option<IpAddr>) -> Option<IpAddr>,
) -> Option<Begin> {
    let mut early = Vec::with_capacity(HEAD_BYTES_USUAL);
    let mut stream = Transport::Plain(stream);
    let client = match by_proxy {
        true => read_proxy_header(&mut stream, &mut early).await?,
        false => None,
    };
    match (tls, stream) {
        (Some(tls), Transport::Plain(tcp)) => {
            let (stream, slot) = secure(tcp, early, tls, share(client)).await?;
            tokio::select! {
                begin = read_head(stream, Vec::with_capacity(HEAD_BYTES_USUAL), client) => begin,
                () = slot.evicted() => None,
            }
        }
        (_, stream) => read_head(stream, early, client).await,
    }
}

/// A client that has not said anything costs as little as without TLS.
async fn secure(
    tcp: TcpStream,
    mut early: Vec<u8>,
    tls: &Tls,
    share: Option<IpAddr>,
) -> Option<(Transport, Slot)> {
    let mut stream = Transport::Plain(tcp);
    if early.is_empty() {
        fill(&mut stream, &mut early).await?;
    }
    if early.first() != Some(&HANDSHAKE_RECORD) {
        let _ = stream.try_write(NOT_TLS);
        return None;
    }
    let Transport::Plain(tcp) = stream else { return None };
    let slot = tls.slots.admit(share, Instant::now())?;
    let secured = tokio::select! {
        secured = Transport::secure(tcp, &early, &tls.acceptor) => secured,
        () = slot.evicted() => return None,
    };
    match secured {
        Ok(stream) => Some((stream, slot)),
        Err(error) => {
            tracing::debug!(%error, "no TLS with a client");
            None
        }
    }
}

/// Reads more; `None` at the end of the stream.
async fn fill(stream: &mut Transport, into: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(into).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

async fn read_proxy_header(stream: &mut Transport, bytes: &mut Vec<u8>) -> Option<Option<IpAddr>> {
    loop {
        fill(stream, bytes).await?;
        match proxy_header::read(bytes) {
            Seen::Begun => {}
            Seen::Wrong => return None,
            Seen::Header(length, client) => {
                drop(bytes.drain(..length));
                return Some(client);
            }
        }
    }
}

/// Reads until the head of a request is there, so that a client that never finishes one costs no more than it
/// sends: HTTP takes buffers of some 20 KiB as soon as it is asked to listen.
async fn read_head(mut stream: Transport, mut head: Vec<u8>, client: Option<IpAddr>) -> Option<Begin> {
    let mut seen = 0;
    while head.is_empty() || !is_whole(&head, seen) {
        seen = head.len();
        fill(&mut stream, &mut head).await?;
    }
    Some(Begin { stream, head, client })
}

/// Whether HTTP can say something to `bytes`, of which the first `seen` were not enough: the head ends, or is
/// too long, or is not HTTP.
fn is_whole(bytes: &[u8], seen: usize) -> bool {
    let is_http = bytes.first().is_none_or(|first| first.is_ascii_uppercase() || b"\r\n".contains(first));
    // The end may have begun in what was seen.
    let fresh = &bytes[seen.saturating_sub(3)..];
    let ends = fresh.windows(2).any(|pair| pair == b"\n\n") || fresh.windows(3).any(|end| end == b"\n\r\n");
    ends || !is_http || bytes.len() >= HEAD_BYTES_MAX
}

/// Whether the head asks for the address of a WebSocket.
pub(super) fn is_handshake(head: &[u8]) -> bool {
    let Some(rest) = head.strip_prefix(b"GET ") else { return false };
    let Some(end) = rest.iter().position(|byte| b" ?".contains(byte)) else { return false };
    match &rest[..end] {
        b"/ws" => true,
        path => std::str::from_utf8(path).ok().and_then(Address::of).is_some_and(Address::is_socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_whole_wherever_it_is_cut() {
        let head = b"GET /ws?user=a HTTP/1.1\r\nHost: x\r\n\r\n";
        for cut in 1..head.len() {
            assert!(!is_whole(&head[..cut], 0), "{cut}");
            assert!(is_whole(head, cut), "{cut}");
        }
        assert!(is_whole(b"GET / HTTP/1.1\nHost: x\n\n", 23));
        assert!(is_whole(b"\x16\x03\x01", 0), "TLS is refused at once");
        assert!(is_whole(&[b'A'; HEAD_BYTES_MAX], 0));
        assert!(is_handshake(head) && is_handshake(b"GET /ws HTTP/1.1"));
        assert!(is_handshake(b"GET /sockjs/0/a/websocket?t=1 ") && !is_handshake(b"GET /sockjs/info "));
        assert!(
            !is_handshake(b"GET /wsx HTTP/1.1") && !is_handshake(b"GET /ws") && !is_handshake(b"HEAD /ws ")
        );
    }

    #[test]
    fn the_refusal_has_the_length_that_it_says() {
        let text = std::str::from_utf8(NOT_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
