//! A connection's stream with the filter on its reading side.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep_until, Instant, Sleep};

use super::Filter;

/// How much is read from the socket at once.
const READ_BYTES: usize = 64 << 10;
/// A buffer that one huge content header has made larger than this is given back.
const KEPT_BYTES: usize = 4 * READ_BYTES;

/// Reads what the filter makes of the broker's bytes; writes pass.
#[derive(Debug)]
pub struct Filtered<S> {
    inner: S,
    filter: Filter,
    scratch: Box<[u8]>,
    /// Filtered bytes; those before `taken` are read already.
    ready: Vec<u8>,
    taken: usize,
    /// When to give up the handshake, until it is over. The library waits for it on a thread of its own without
    /// any deadline, also when nobody waits for the connection any more.
    handshake: Option<Pin<Box<Sleep>>>,
}

impl<S> Filtered<S> {
    /// To be called inside a Tokio runtime.
    pub fn new(inner: S, filter: Filter, handshake_deadline: Instant) -> Self {
        let scratch = vec![0; READ_BYTES].into_boxed_slice();
        Self {
            inner,
            filter,
            scratch,
            ready: Vec::new(),
            taken: 0,
            handshake: Some(Box::pin(sleep_until(handshake_deadline))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.ready.shrink_to(KEPT_BYTES);
            this.taken = 0;
            let read = Pin::new(&mut this.inner).poll_read(cx, &mut this.scratch);
            if let (Poll::Pending, Some(handshake)) = (&read, &mut this.handshake) {
                ready!(handshake.as_mut().poll(cx));
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no AMQP handshake in time",
                )));
            }
            let count = ready!(read)?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            this.filter.push(&this.scratch[..count], &mut this.ready);
            if this.filter.opened() {
                this.handshake = None;
            }
        }
        let ready = &this.ready[this.taken..];
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        this.taken += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, parts)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}
