//! What a client that acknowledges has been sent and has not acknowledged, and what waits for room. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::hub::Tally;
use crate::ids::MessageId;

/// Messages of one session that may be unacknowledged at the same time.
pub(super) const WINDOW: usize = 64;
/// Messages that wait until there is room in the window. Few, since their senders wait as well.
const WAITING: usize = 64;
/// A client that leaves a message unacknowledged for so long is closed, in milliseconds.
const ACK_MS_MAX: u32 = 30_000;

#[derive(Debug)]
struct Unacked {
    id: MessageId,
    tally: Tally,
    /// Milliseconds on the worker's clock.
    since: u32,
}

#[derive(Debug)]
struct Waiting {
    frame: Bytes,
    id: MessageId,
    tally: Tally,
}

/// A message counts in its tally when the client acknowledges it; dropping the window tells that the rest did not
/// arrive.
#[derive(Debug, Default)]
pub(super) struct AckWindow {
    unacked: VecDeque<Unacked>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

/// What becomes of a message for a client that acknowledges.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admit {
    Send,
    Wait,
    /// More waits than may: the session does not take it, and it goes to the mailbox.
    Refuse,
}

impl AckWindow {
    /// A new message; [`WAITING`] and `bytes_max` bound what waits.
    pub(super) fn admit(
        &mut self,
        frame: &Bytes,
        id: MessageId,
        tally: Tally,
        bytes_max: usize,
        now: u32,
    ) -> Admit {
        if self.unacked.len() < WINDOW && self.waiting.is_empty() {
            self.unacked.push_back(Unacked { id, tally, since: now });
            return Admit::Send;
        }
        if self.waiting.len() >= WAITING || self.waiting_bytes + frame.len() > bytes_max {
            return Admit::Refuse;
        }
        self.waiting_bytes += frame.len();
        self.waiting.push_back(Waiting { frame: frame.clone(), id, tally });
        Admit::Wait
    }

    /// The client has taken care of a message. Ids that it does not owe change nothing.
    pub(super) fn acked(&mut self, id: &str) {
        if let Some(at) = self.unacked.iter().position(|unacked| unacked.id.as_str() == id) {
            if let Some(unacked) = self.unacked.remove(at) {
                unacked.tally.count();
            }
        }
    }

    /// The next message that there is room for now.
    pub(super) fn next(&mut self, now: u32) -> Option<Bytes> {
        if self.unacked.len() >= WINDOW {
            return None;
        }
        let Waiting { frame, id, tally } = self.waiting.pop_front()?;
        self.waiting_bytes -= frame.len();
        self.unacked.push_back(Unacked { id, tally, since: now });
        Some(frame)
    }

    /// Whether the client owes an acknowledgement for too long.
    pub(super) fn is_overdue(&self, now: u32) -> bool {
        self.unacked.front().is_some_and(|oldest| now.wrapping_sub(oldest.since) >= ACK_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn id(n: usize) -> MessageId {
        MessageId::new(&format!("m{n}")).unwrap()
    }

    #[test]
    fn the_window_is_kept_in_order_and_the_rest_is_told() {
        let (tell, told) = mpsc::channel();
        let tally = |n: usize| {
            let tell = tell.clone();
            Tally::new(move |taken| tell.send((n, taken)).unwrap())
        };
        let frame = Bytes::from_static(b"0123456789");
        let mut window = AckWindow::default();
        for n in 0..WINDOW {
            assert_eq!(window.admit(&frame, id(n), tally(n), 20, 0), Admit::Send);
        }
        for n in 0..2 {
            assert_eq!(window.admit(&frame, id(WINDOW + n), tally(WINDOW + n), 20, 0), Admit::Wait);
        }
        assert_eq!(window.admit(&frame, id(99), tally(99), 20, 0), Admit::Refuse);
        assert_eq!(told.try_recv(), Ok((99, 0)));
        assert_eq!(window.next(1), None);
        window.acked("stranger");
        window.acked("m3");
        window.acked("m3");
        assert_eq!(told.try_recv(), Ok((3, 1)));
        assert_eq!((window.next(1), window.next(1)), (Some(frame.clone()), None));
        assert!(!window.is_overdue(ACK_MS_MAX - 1) && window.is_overdue(ACK_MS_MAX));
        drop(window);
        assert_eq!(told.try_iter().filter(|(_, taken)| *taken == 0).count(), WINDOW + 1);
    }
}
