//! A client's socket: plain, with TLS, or one end of a pair whose other end speaks HTTP for the client. A plain one costs
//! what a TCP stream costs.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::stream::TlsStream;
use super::Acceptor;

#[derive(Debug)]
pub enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
    Paired(Box<UnixStream>),
}

impl Transport {
    /// Shakes hands with a client that has sent `early` already. For as long as the client likes.
    pub async fn secure(tcp: TcpStream, early: &[u8], acceptor: &Acceptor) -> io::Result<Self> {
        TlsStream::accept(tcp, early, acceptor).await.map(|stream| Self::Tls(Box::new(stream)))
    }

    pub fn is_secure(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn sock(&self) -> socket2::SockRef<'_> {
        match self {
            Self::Plain(tcp) => tcp.into(),
            Self::Tls(tls) => tls.tcp().into(),
            Self::Paired(pair) => (&**pair).into(),
        }
    }

    /// How many of the bytes were taken: by the kernel, and with TLS up to a record of them by its layer.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(bytes),
            Self::Tls(tls) => tls.try_write(bytes),
            Self::Paired(pair) => pair.try_write(bytes),
        }
    }

    pub fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(slices),
            Self::Tls(tls) => tls.try_write_vectored(slices),
            Self::Paired(pair) => pair.try_write_vectored(slices),
        }
    }

    /// Whether bytes that were taken have yet to reach the kernel: [`Transport::send`] does it.
    pub fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Paired(_) => false,
            Self::Tls(tls) => tls.has_unsent(),
        }
    }

    pub fn send(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Paired(_) => Ok(()),
            Self::Tls(tls) => tls.send(),
        }
    }

    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(tls) => tls.tcp().poll_write_ready(cx),
            Self::Paired(pair) => pair.poll_write_ready(cx),
        }
    }

    /// Tells the peer that nothing more will come; may be called again. What it still sends can be read.
    pub fn finish(&mut self) {
        if let Self::Tls(tls) = self {
            tls.say_end();
            if tls.has_unsent() {
                return;
            }
        }
        // A peer that is gone needs to be told nothing.
        let _ = self.sock().shutdown(Shutdown::Write);
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Tls(tls) => {
                let read = ready!(tls.poll_read(cx, into.initialize_unfilled()))?;
                into.advance(read);
                Poll::Ready(Ok(()))
            }
            Self::Paired(pair) => Pin::new(&mut **pair).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => {
                ready!(tls.poll_flush(cx))?;
                Poll::Ready(tls.try_write(bytes))
            }
            Self::Paired(pair) => Pin::new(&mut **pair).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Tls(tls) => {
                ready!(tls.poll_flush(cx))?;
                Poll::Ready(tls.try_write_vectored(slices))
            }
            Self::Paired(pair) => Pin::new(&mut **pair).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) | Self::Paired(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let transport = self.get_mut();
        if let Self::Tls(tls) = transport {
            ready!(tls.poll_flush(cx))?;
        }
        transport.finish();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_socket_is_no_larger_than_without_tls() {
        assert_eq!(size_of::<Transport>(), size_of::<TcpStream>());
    }
}
