//! One socket's way out: written at once while the peer reads, queued within a bound of bytes while it does not.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::hub::Tally;
use crate::tls::Transport;

/// Frames written with one system call at most; Linux takes up to 1,024 (`UIO_MAXIOV`).
const SLICES_MAX: usize = 64;

/// The result of sending a frame or flushing the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Written,
    /// The peer does not read right now: the session's task must wait until the socket is writable.
    Queued,
    /// The queue is full: the peer is a slow consumer. The frame was not taken.
    Overflow,
    /// The connection is gone.
    Broken,
}

#[derive(Debug)]
struct Queued {
    bytes: Bytes,
    tally: Option<Tally>,
}

/// The queue exists while there is something in it: an idle socket costs one pointer.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Transport,
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Queued>,
    bytes: usize,
    /// The first frame was written in part, so it must be finished before anything else.
    begun: bool,
}

impl Socket {
    pub(super) fn new(stream: Transport) -> Self {
        Self { stream, queue: None }
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.queue.is_none() && !self.stream.has_unsent()
    }

    /// Bytes that wait for the peer.
    pub(super) fn queued(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.bytes)
    }

    /// Writes a frame if nothing is queued, else queues it. `bytes_max` bounds what waits behind the first frame of
    /// the queue, so that a frame of any size can be sent to a peer that reads. A frame counts in its tally once all of
    /// it has been handed to the kernel, or to TLS, which holds no more than a record of 16 KiB.
    pub(super) fn send(&mut self, frame: &Bytes, tally: Option<Tally>, bytes_max: usize) -> Sent {
        let written = match self.queue {
            Some(_) => 0,
            None => match self.stream.try_write(frame) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Sent::Broken,
            },
        };
        if written == frame.len() {
            if let Some(tally) = tally {
                tally.count();
            }
            return if self.stream.has_unsent() { Sent::Queued } else { Sent::Written };
        }
        self.enqueue(frame.slice(written..), tally, written > 0, bytes_max)
    }

    /// Queues a frame without trying to write it: for a caller that has more to send and then flushes.
    pub(super) fn push(&mut self, frame: &Bytes, tally: Option<Tally>, bytes_max: usize) -> Sent {
        self.enqueue(frame.clone(), tally, false, bytes_max)
    }

    fn enqueue(&mut self, bytes: Bytes, tally: Option<Tally>, begun: bool, bytes_max: usize) -> Sent {
        let queue = self.queue.get_or_insert_default();
        if let Some(first) = queue.frames.front() {
            if queue.bytes - first.bytes.len() + bytes.len() > bytes_max {
                return Sent::Overflow;
            }
        }
        queue.bytes += bytes.len();
        queue.begun |= begun;
        queue.frames.push_back(Queued { bytes, tally });
        Sent::Queued
    }

    /// Drops the queued frames, except the rest of a frame that was begun.
    pub(super) fn discard(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        queue.frames.truncate(usize::from(queue.begun));
        queue.bytes = queue.frames.iter().map(|queued| queued.bytes.len()).sum();
        if queue.frames.is_empty() {
            self.queue = None;
        }
    }

    /// Drops everything that is queued: nothing will be written any more.
    pub(super) fn abandon(&mut self) {
        self.queue = None;
    }

    /// Writes the queue until it is empty ([`Sent::Written`]) or the peer takes no more.
    pub(super) fn flush(&mut self) -> Sent {
        while let Some(queue) = &mut self.queue {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = queue.frames.len().min(SLICES_MAX);
            for (slice, queued) in slices.iter_mut().zip(&queue.frames) {
                *slice = IoSlice::new(&queued.bytes);
            }
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(written) => queue.written(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Queued,
                Err(_) => return Sent::Broken,
            }
            if queue.frames.is_empty() {
                self.queue = None;
            }
        }
        match self.stream.send() {
            Ok(()) => Sent::Written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Queued,
            Err(_) => Sent::Broken,
        }
    }

    /// Tells the peer that nothing more will come. What it still sends can be read, and must be: a socket that
    /// is closed with unread input is reset, and the last frames may be lost on the way.
    pub(super) fn finish(&mut self) {
        self.stream.finish();
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    /// Reads into `into`; `Ready(Ok(0))` is the end of the stream.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        // Unlike `try_read` this takes a read that did not fill the buffer for the last one: no second system
        // call is made to learn that there is nothing more.
        let mut into = ReadBuf::new(into);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut into);
        read.map_ok(|()| into.filled().len())
    }
}

impl Queue {
    fn written(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.frames.front_mut() {
            if written < first.bytes.len() {
                self.begun = written > 0 || self.begun;
                first.bytes.advance(written);
                return;
            }
            written -= first.bytes.len();
            self.begun = false;
            if let Some(tally) = self.frames.pop_front().and_then(|queued| queued.tally) {
                tally.count();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.writable().await.unwrap();
        (Socket::new(Transport::Plain(server)), client)
    }

    fn tally() -> (Tally, mpsc::Receiver<u32>) {
        let (tell, told) = mpsc::channel();
        (Tally::new(None, move |taken| tell.send(taken.sessions).unwrap()).0, told)
    }

    #[tokio::test]
    async fn what_a_blocked_peer_reads_later_arrives_whole_and_is_counted_then() {
        let (mut socket, mut client) = pair().await;
        let frame = Bytes::from(vec![7u8; 60_000]);
        let mut sent = 0;
        while socket.send(&frame, None, 1 << 20) == Sent::Written {
            sent += 1;
        }
        sent += 1;
        let (tally, told) = tally();
        assert_eq!(socket.send(&frame, Some(tally), 1 << 20), Sent::Queued);
        sent += 1;
        assert!(told.try_recv().is_err(), "not written, so not counted");
        let mut left = sent * frame.len();
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            left -= client.read(&mut buffer).await.unwrap();
            socket.flush();
            tokio::task::yield_now().await;
        }
        assert!(socket.is_flushed());
        assert_eq!(told.try_recv(), Ok(1));
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_a_begun_frame_survives_discard() {
        let (mut socket, _client) = pair().await;
        let frame = Bytes::from(vec![7u8; 60_000]);
        while socket.send(&frame, None, 150_000) != Sent::Overflow {}
        assert!(socket.queue.as_ref().unwrap().bytes <= 150_000 + frame.len());
        let (tally, told) = tally();
        assert_eq!(socket.send(&frame, Some(tally), 150_000), Sent::Overflow);
        socket.discard();
        assert_eq!(told.try_recv(), Ok(0));
        assert!(socket.queue.as_ref().is_none_or(|queue| queue.begun && queue.frames.len() == 1));
    }

    #[tokio::test]
    async fn a_frame_above_the_bound_is_sent_to_a_peer_that_reads() {
        let (mut socket, mut client) = pair().await;
        let large = Bytes::from(vec![7u8; 8 << 20]);
        let small = Bytes::from_static(b"small");
        assert_eq!(socket.send(&large, None, 1_000), Sent::Queued);
        assert_eq!(socket.send(&small, None, 1_000), Sent::Queued, "the first frame leaves room for others");
        assert_eq!(socket.push(&Bytes::from(vec![7u8; 1_000]), None, 1_000), Sent::Overflow);
        let mut left = large.len() + small.len();
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            left -= client.read(&mut buffer).await.unwrap();
            socket.flush();
            tokio::task::yield_now().await;
        }
        assert!(socket.is_flushed());
        // The last frames of a session have no bound.
        assert_eq!(socket.send(&large, None, 1_000), Sent::Queued);
        assert_eq!(socket.send(&large, None, usize::MAX), Sent::Queued);
        socket.abandon();
        // The same frame queued before anything is written.
        assert_eq!(socket.push(&large, None, 1_000), Sent::Queued);
    }
}
