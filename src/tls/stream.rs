//! TLS on one socket. Nothing waits here: what the kernel does not take stays, within a bound, until the socket is writable.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use super::Acceptor;

/// Plaintext that is encrypted ahead of the kernel, in bytes: one record (RFC 8446 section 5.1).
const AHEAD_BYTES_MAX: usize = 16 * 1024;
/// Reads of one socket that may lead to nothing readable, before others get their turn: a peer may send records without
/// content.
const FRUITLESS_READS_MAX: usize = 8;

#[derive(Debug)]
pub struct TlsStream {
    tcp: TcpStream,
    tls: ServerConnection,
}

/// The kernel's side of a socket, as the TLS library wants it.
struct Out<'a>(&'a TcpStream);

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Has the task woken when more can be read.
struct In<'a, 'b>(&'a mut TcpStream, &'a mut Context<'b>);

impl Read for In<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        match Pin::new(&mut *self.0).poll_read(self.1, &mut into) {
            Poll::Ready(read) => read.map(|()| into.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl TlsStream {
    /// Shakes hands with a client that has sent `early` already.
    pub(super) async fn accept(tcp: TcpStream, mut early: &[u8], acceptor: &Acceptor) -> io::Result<Self> {
        let mut tls = acceptor.accept().map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(AHEAD_BYTES_MAX));
        let mut stream = Self { tcp, tls };
        while !early.is_empty() {
            stream.tls.read_tls(&mut early)?;
            stream.process()?;
        }
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Whether the kernel has yet to take something.
    pub(super) fn has_unsent(&self) -> bool {
        self.tls.wants_write()
    }

    /// Has the kernel take what is encrypted.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut Out(&self.tcp))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Takes bytes until the kernel does not; up to [`AHEAD_BYTES_MAX`] of them wait here.
    pub(super) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send()?;
        let taken = self.tls.writer().write_vectored(slices)?;
        match self.send() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.try_write_vectored(&[IoSlice::new(&bytes[taken..])]) {
                Ok(0) => break,
                Ok(more) => taken += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(cx))?;
                }
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// `Ready(Ok(0))` is the end of the stream, whether the peer said so or only closed the connection: what is inside
    /// tells its ends itself.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        for _ in 0..FRUITLESS_READS_MAX {
            match self.tls.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(0)),
                read => return Poll::Ready(read),
            }
            ready!(self.poll_receive(cx))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once from the socket.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.tls.read_tls(&mut In(&mut self.tcp, cx)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
            Ok(read) => Poll::Ready(self.process().map(|()| read)),
        }
    }

    fn process(&mut self) -> io::Result<()> {
        let processed = self.tls.process_new_packets();
        // Tickets, answers to key updates, and the alert that says what was wrong. What the kernel does not take now goes
        // before the next bytes.
        let _ = self.send();
        processed.map(|_| ()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Says that nothing more will come (RFC 8446 section 6.1), once everything before it is sent.
    pub(super) fn say_end(&mut self) {
        self.tls.send_close_notify();
        // Without it the end of the connection says the same.
        let _ = self.send();
    }
}
