//! The messages of a client that acknowledges: which are unacknowledged, and which wait for room. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::hub::Tally;
use crate::ids::MessageId;

/// Messages of one session that may be unacknowledged at the same time. Their frames together may have as many bytes
/// as the session's outbox.
pub(super) const WINDOW: usize = 64;
/// A client that leaves a message unacknowledged for so long is closed, in milliseconds.
pub(super) const ACK_MS_MAX: u32 = 30_000;

#[derive(Debug)]
struct Unacked {
    tally: Tally,
    bytes: usize,
    /// Milliseconds on the worker's clock.
    since: u32,
}

/// A message that waits for room.
#[derive(Debug)]
pub(super) struct Waiting {
    frame: Bytes,
    id: MessageId,
    tally: Tally,
}

/// A message counts in its tally when the client acknowledges it; dropping the window tells that the rest did not
/// arrive.
#[derive(Debug)]
pub(super) struct AckWindow {
    /// For the unacknowledged frames, and again for those that wait.
    bytes_max: usize,
    /// By the order in which they were sent, so that the first one is the oldest.
    unacked: BTreeMap<u64, Unacked>,
    unacked_bytes: usize,
    /// The order numbers of the messages with an id, oldest first: two senders may use the same id.
    by_id: HashMap<MessageId, SmallVec<[u64; 1]>>,
    sent: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

/// What to do with a message for a client that acknowledges.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admit {
    Send,
    Wait,
    /// More bytes wait than may: the session must be closed, since a device must not miss a message and stay.
    Overflow,
}

impl AckWindow {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            unacked: BTreeMap::new(),
            unacked_bytes: 0,
            by_id: HashMap::new(),
            sent: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// A frame that is alone may be larger than the bound: a client that acknowledges gets messages of any size.
    fn has_room(&self, bytes: usize) -> bool {
        self.unacked.is_empty() || self.unacked.len() < WINDOW && self.unacked_bytes + bytes <= self.bytes_max
    }

    fn open(&mut self, id: MessageId, tally: Tally, bytes: usize, now: u32) {
        self.by_id.entry(id).or_default().push(self.sent);
        self.unacked.insert(self.sent, Unacked { tally, bytes, since: now });
        self.unacked_bytes += bytes;
        self.sent += 1;
    }

    /// A new message.
    pub(super) fn admit(&mut self, frame: &Bytes, id: &MessageId, tally: Tally, now: u32) -> Admit {
        if self.waiting.is_empty() {
            if self.has_room(frame.len()) {
                self.open(id.clone(), tally, frame.len(), now);
                return Admit::Send;
            }
        } else if self.waiting_bytes + frame.len() > self.bytes_max {
            return Admit::Overflow;
        }
        self.waiting_bytes += frame.len();
        self.waiting.push_back(Waiting { frame: frame.clone(), id: id.clone(), tally });
        Admit::Wait
    }

    /// The client has taken care of a message. `false`: the client owes no acknowledgement for this id.
    pub(super) fn acked(&mut self, id: &str) -> bool {
        let Some(tally) = self.give_up(id) else { return false };
        tally.count();
        true
    }

    /// The client will not take care of a message: its tally. `None`: the client does not owe it.
    pub(super) fn give_up(&mut self, id: &str) -> Option<Tally> {
        let numbers = self.by_id.get_mut(id)?;
        let number = numbers.remove(0);
        if numbers.is_empty() {
            self.by_id.remove(id);
        }
        let unacked = self.unacked.remove(&number)?;
        self.unacked_bytes -= unacked.bytes;
        Some(unacked.tally)
    }

    /// The next message that there is room for now.
    pub(super) fn next(&mut self, now: u32) -> Option<Bytes> {
        let bytes = self.waiting.front()?.frame.len();
        if !self.has_room(bytes) {
            return None;
        }
        let Waiting { frame, id, tally } = self.waiting.pop_front()?;
        self.waiting_bytes -= bytes;
        self.open(id, tally, bytes, now);
        Some(frame)
    }

    /// No further message will be sent: takes out those that wait, for the caller to drop, which tells that they were
    /// not taken. Messages that were sent may still be acknowledged.
    pub(super) fn take_waiting(&mut self) -> VecDeque<Waiting> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unacked.is_empty()
    }

    /// Whether the client has owed an acknowledgement for too long.
    pub(super) fn is_overdue(&self, now: u32) -> bool {
        let oldest = self.unacked.first_key_value();
        oldest.is_some_and(|(_, oldest)| now.wrapping_sub(oldest.since) >= ACK_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn id(n: usize) -> MessageId {
        MessageId::new(&format!("m{n}")).unwrap()
    }

    struct Tallies {
        tell: mpsc::Sender<(usize, u32)>,
        told: mpsc::Receiver<(usize, u32)>,
    }

    impl Tallies {
        fn new() -> Self {
            let (tell, told) = mpsc::channel();
            Self { tell, told }
        }

        fn of(&self, n: usize) -> Tally {
            let tell = self.tell.clone();
            Tally::new(None, move |taken| tell.send((n, taken.sessions)).unwrap()).0
        }
    }

    const FRAME: Bytes = Bytes::from_static(b"0123456789");

    #[test]
    fn the_window_is_kept_in_order_and_the_rest_is_told() {
        let tallies = Tallies::new();
        let mut window = AckWindow::new(WINDOW * FRAME.len());
        let admit = |window: &mut AckWindow, n| window.admit(&FRAME, &id(n), tallies.of(n), 0);
        for n in 0..WINDOW {
            assert_eq!(admit(&mut window, n), Admit::Send);
        }
        for n in WINDOW..2 * WINDOW {
            assert_eq!(admit(&mut window, n), Admit::Wait);
        }
        assert_eq!(admit(&mut window, 999), Admit::Overflow);
        assert_eq!(tallies.told.try_recv(), Ok((999, 0)));
        assert_eq!(window.next(1), None);
        assert!(!window.acked("stranger"));
        assert!(window.acked("m3"));
        assert!(!window.acked("m3"));
        assert_eq!(tallies.told.try_recv(), Ok((3, 1)));
        assert_eq!((window.next(1), window.next(1)), (Some(FRAME), None));
        assert!(!window.is_overdue(ACK_MS_MAX - 1) && window.is_overdue(ACK_MS_MAX));
        drop(window.take_waiting());
        assert_eq!(tallies.told.try_iter().count(), WINDOW - 1);
        assert!(window.acked("m4") && window.acked("m64"), "a closing session still counts");
        drop(window);
        assert_eq!(tallies.told.try_iter().filter(|(_, taken)| *taken == 0).count(), WINDOW - 2);
    }

    #[test]
    fn bytes_bound_the_window_and_a_large_frame_goes_alone() {
        let tallies = Tallies::new();
        let mut window = AckWindow::new(25);
        let large = Bytes::from_static(&[b'x'; 100]);
        assert_eq!(window.admit(&FRAME, &id(0), tallies.of(0), 0), Admit::Send);
        assert_eq!(window.admit(&FRAME, &id(1), tallies.of(1), 0), Admit::Send);
        assert_eq!(window.admit(&large, &id(2), tallies.of(2), 0), Admit::Wait, "alone it may wait");
        assert_eq!(window.admit(&FRAME, &id(3), tallies.of(3), 0), Admit::Overflow);
        assert!(window.acked("m0"));
        assert_eq!(window.next(0), None);
        assert!(window.acked("m1"));
        assert_eq!(window.next(0), Some(large));
        assert_eq!(window.admit(&FRAME, &id(4), tallies.of(4), 0), Admit::Wait);
        assert!(window.acked("m2") && window.is_empty());
        assert_eq!(window.next(0), Some(FRAME));
    }

    #[test]
    fn messages_that_share_an_id_are_acknowledged_one_by_one() {
        let tallies = Tallies::new();
        let mut window = AckWindow::new(1_000);
        for n in 0..3 {
            assert_eq!(window.admit(&FRAME, &id(7), tallies.of(n), 0), Admit::Send);
        }
        for n in 0..3 {
            assert!(window.acked("m7"));
            assert_eq!(tallies.told.try_recv(), Ok((n, 1)));
        }
        assert!(!window.acked("m7"));
    }
}
