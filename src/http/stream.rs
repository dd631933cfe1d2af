//! A client's socket below HTTP: gives back what was read of it already, and notes when the client stalls.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connection::Connection;
use super::proxy_header::{self, Seen};
use super::sockjs::Address;

/// Longest head of a request, in bytes: its line and all its headers. Beyond it the response is 431.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Room for an ordinary head.
const HEAD_BYTES_USUAL: usize = 512;

pub(super) struct ClientStream {
    stream: TcpStream,
    /// Read before HTTP was asked, and not yet given to it.
    early: Vec<u8>,
    connection: Arc<Connection>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, early: Vec<u8>, connection: Arc<Connection>) -> Self {
        Self { stream, early, connection }
    }

    /// The socket, and what HTTP has not taken of the early bytes.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.early)
    }

    fn noted<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_pending() {
            self.connection.blocked();
        }
        written
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let count = self.early.len().min(into.remaining());
            into.put_slice(&self.early[..count]);
            self.early.drain(..count);
            if self.early.is_empty() {
                self.early = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before {
            self.connection.heard();
        }
        read
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Called when everything before was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What came on a connection before anything was answered.
pub(super) struct Begin {
    pub(super) head: Vec<u8>,
    /// The client, as a proxy has said in front of it.
    pub(super) client: Option<IpAddr>,
}

/// Reads until the head of a request is there, so that a client that never finishes one costs no more than it
/// sends: HTTP takes buffers of some 20 KiB as soon as it is asked to listen. `by_proxy`: a header of the PROXY protocol
/// must come first. `None`: the client is gone, or the header is not there.
pub(super) async fn read_head(stream: &TcpStream, by_proxy: bool) -> Option<Begin> {
    let mut head = Vec::with_capacity(HEAD_BYTES_USUAL);
    let (mut awaits_proxy, mut client) = (by_proxy, None);
    loop {
        stream.readable().await.ok()?;
        let mut seen = head.len();
        match stream.try_read_buf(&mut head) {
            Ok(0) => return None,
            Ok(_) => {
                if awaits_proxy {
                    match proxy_header::read(&head) {
                        Seen::Begun => continue,
                        Seen::Wrong => return None,
                        Seen::Header(length, from) => {
                            drop(head.drain(..length));
                            (awaits_proxy, client, seen) = (false, from, 0);
                        }
                    }
                }
                if !head.is_empty() && is_whole(&head, seen) {
                    return Some(Begin { head, client });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
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

/// The address of the other end; unspecified when the client is gone already.
pub(super) fn peer(stream: &TcpStream) -> SocketAddr {
    stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
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
}
