//! How frames reach a client in a response: one in each, in a stream of lines, or as events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::http::connection::Connection;

/// Bytes of a response that streams, after which the client asks for the next one (sockjs-protocol 0.3.3): browsers keep
/// all of a response in memory.
const RESPONSE_BYTES_MAX: usize = 128 * 1024;
/// What comes first in a stream: browsers hold back the beginning of a response.
const PRELUDE: [u8; 2049] = {
    let mut bytes = [b'h'; 2049];
    bytes[2048] = b'\n';
    bytes
};
/// Pieces of a response on their way to its connection. Overflow policy: no more is read of the session.
const PIECES_MAX: usize = 1;

/// How a client receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Kind {
    /// `xhr`
    Polling,
    /// `xhr_streaming`
    Streaming,
    /// `eventsource`
    Events,
}

impl Kind {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Kind::Polling | Kind::Streaming => "application/javascript; charset=UTF-8",
            Kind::Events => "text/event-stream",
        }
    }

    fn prelude(self) -> &'static [u8] {
        match self {
            Kind::Polling => b"",
            Kind::Streaming => &PRELUDE,
            Kind::Events => b"\r\n",
        }
    }

    /// A frame as it stands in the response.
    pub(super) fn piece(self, frame: &[u8]) -> Bytes {
        let mut piece = BytesMut::with_capacity(frame.len() + 16);
        if self != Kind::Events {
            piece.extend_from_slice(frame);
            piece.extend_from_slice(b"\n");
            return piece.freeze();
        }
        piece.extend_from_slice(b"data: ");
        // The client decodes it like a URI. Line ends are escaped already, as JSON.
        for (at, part) in frame.split(|byte| *byte == b'%').enumerate() {
            if at > 0 {
                piece.extend_from_slice(b"%25");
            }
            piece.extend_from_slice(part);
        }
        piece.extend_from_slice(b"\r\n\r\n");
        piece.freeze()
    }
}

/// The session's end of a response. Dropping it completes the response.
#[derive(Debug)]
pub(super) struct Outlet {
    kind: Kind,
    pieces: mpsc::Sender<Bytes>,
    told: usize,
}

impl Outlet {
    pub(super) fn new(kind: Kind) -> (Self, mpsc::Receiver<Bytes>) {
        let (pieces, receiver) = mpsc::channel(PIECES_MAX);
        (Self { kind, pieces, told: 0 }, receiver)
    }

    /// Returns when a frame can be told; `false` if the response has broken off.
    pub(super) async fn has_room(&self) -> bool {
        self.pieces.reserve().await.is_ok()
    }

    /// Returns when the response breaks off.
    pub(super) async fn broken(&self) {
        self.pieces.closed().await;
    }

    /// There must be room. Returns whether the response goes on.
    pub(super) fn tell(&mut self, frame: &[u8]) -> bool {
        let piece = self.kind.piece(frame);
        self.told += piece.len();
        // A response that has broken off is noticed by the task that waits for room.
        let _ = self.pieces.try_send(piece);
        self.kind != Kind::Polling && self.told < RESPONSE_BYTES_MAX
    }
}

/// The body of a response that streams.
pub(super) struct Body {
    prelude: Option<Bytes>,
    pieces: mpsc::Receiver<Bytes>,
    connection: Arc<Connection>,
}

impl Body {
    pub(super) fn new(kind: Kind, pieces: mpsc::Receiver<Bytes>, connection: Arc<Connection>) -> Self {
        Self { prelude: Some(Bytes::from_static(kind.prelude())), pieces, connection }
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.prelude.take() {
            Some(prelude) => Poll::Ready(Some(Ok(prelude))),
            None => self.pieces.poll_recv(cx).map(|piece| piece.map(Ok)),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.connection.streamed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_as_they_stand_in_each_kind_of_response() {
        assert_eq!(&Kind::Polling.piece(b"o")[..], b"o\n");
        assert_eq!(&Kind::Streaming.piece(b"a[\"%\"]")[..], b"a[\"%\"]\n");
        assert_eq!(
            &Kind::Events.piece(b"a[\"100%\\u0000%41\"]")[..],
            b"data: a[\"100%25\\u0000%2541\"]\r\n\r\n"
        );
        assert_eq!(
            (Kind::Streaming.prelude().len(), Kind::Streaming.prelude().last()),
            (2_049, Some(&b'\n'))
        );
    }

    #[tokio::test]
    async fn a_poll_ends_with_its_frame_and_a_stream_with_its_limit() {
        let (mut poll, _pieces) = Outlet::new(Kind::Polling);
        assert!(!poll.tell(b"o"));
        for kind in [Kind::Streaming, Kind::Events] {
            let (mut outlet, mut pieces) = Outlet::new(kind);
            let (mut told, frame) = (0, [b'x'; 1_000]);
            loop {
                assert!(outlet.has_room().await);
                let goes_on = outlet.tell(&frame);
                told += pieces.recv().await.unwrap().len();
                assert_eq!(goes_on, told < RESPONSE_BYTES_MAX);
                if !goes_on {
                    break;
                }
            }
            assert!((RESPONSE_BYTES_MAX..RESPONSE_BYTES_MAX + 1_100).contains(&told), "{told}");
            drop(pieces);
            outlet.broken().await;
            assert!(!outlet.has_room().await);
        }
    }
}
