//! Which boxes this node knows nothing of, and how it gets to know: from a peer's snapshot, or by reading them.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::gossip::Part;
use crate::bus::BoxNumber;
use crate::ids::NodeId;

/// A node that is asked and does not answer, or stops in the middle, is given up after so long.
pub const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// After the link came up it takes a moment until the directory knows the other nodes.
pub const PEERS_WAIT: Duration = Duration::from_millis(500);

enum Phase {
    /// Waits to hear of a peer.
    Looking {
        until: Instant,
    },
    Asking {
        request: u64,
        until: Instant,
        have: Vec<bool>,
        missing: usize,
    },
    /// Nobody can tell: the boxes are read.
    Sweeping,
}

pub struct Sync {
    unread: Vec<bool>,
    left: usize,
    /// Boxes in which a deposit may lie that no node knows of. No snapshot tells of it: they are read.
    doubtful: BTreeSet<BoxNumber>,
    /// Of these, those in which the deposit would be one of this node, and may be on its way still: only a reading of this
    /// node ends behind all that it has handed in.
    own: BTreeSet<BoxNumber>,
    /// Where the next look for an unread box begins.
    cursor: usize,
    /// The doubtful box that was handed out last, while every second look is for one of those.
    last_doubtful: Option<BoxNumber>,
    is_doubts_turn: bool,
    phase: Phase,
    asked: Vec<NodeId>,
    requests: u64,
}

impl Sync {
    /// `first`: which box is read first, so that nodes that begin together do not read the same boxes.
    pub fn new(boxes: NonZeroU32, first: u64, now: Instant) -> Self {
        let boxes = boxes.get() as usize;
        Self {
            unread: vec![true; boxes],
            left: boxes,
            doubtful: BTreeSet::new(),
            own: BTreeSet::new(),
            cursor: (first % boxes as u64) as usize,
            last_doubtful: None,
            is_doubts_turn: true,
            phase: Phase::Looking { until: now + PEERS_WAIT },
            asked: Vec::new(),
            requests: first,
        }
    }

    /// Gossip may have been missed.
    pub fn begin(&mut self, now: Instant) {
        self.unread.fill(true);
        self.left = self.unread.len();
        self.phase = Phase::Looking { until: now + PEERS_WAIT };
        self.asked.clear();
    }

    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    pub fn knows(&self, number: BoxNumber) -> bool {
        self.unread.get(number.0 as usize).is_none_or(|unread| !unread)
    }

    /// The broker may have taken a deposit for this box without saying so.
    pub fn doubt(&mut self, number: BoxNumber) {
        let was_complete = self.is_complete();
        let Some(unread) = self.unread.get_mut(number.0 as usize) else { return };
        self.left += usize::from(!std::mem::replace(unread, true));
        self.doubtful.insert(number);
        if was_complete {
            self.phase = Phase::Sweeping;
        }
    }

    /// The same of a deposit of this node.
    pub fn doubt_own(&mut self, number: BoxNumber) {
        self.own.insert(number);
        self.doubt(number);
    }

    /// Another node has read the box.
    pub fn is_read_elsewhere(&mut self, number: BoxNumber) {
        if !self.own.contains(&number) {
            self.is_read(number);
        }
    }

    /// This node has read the box.
    pub fn is_read(&mut self, number: BoxNumber) {
        self.own.remove(&number);
        self.doubtful.remove(&number);
        if let Some(unread) = self.unread.get_mut(number.0 as usize) {
            self.left -= usize::from(std::mem::replace(unread, false));
        }
    }

    pub fn next_unread(&mut self) -> Option<BoxNumber> {
        if self.is_complete() || !matches!(self.phase, Phase::Sweeping) {
            return None;
        }
        if let Some(next) = self.next_doubtful() {
            return Some(next);
        }
        let boxes = self.unread.len();
        let next = (0..boxes).map(|step| (self.cursor + step) % boxes).find(|number| self.unread[*number])?;
        self.cursor = (next + 1) % boxes;
        u32::try_from(next).ok().map(BoxNumber)
    }

    /// Somebody may wait for what lies in a doubtful box: it does not wait for all boxes of a node that has just started.
    fn next_doubtful(&mut self) -> Option<BoxNumber> {
        self.is_doubts_turn = !self.is_doubts_turn;
        if self.is_doubts_turn {
            return None;
        }
        let after = self.last_doubtful.map_or(0, |last| last.0 + 1);
        let mut ahead = self.doubtful.range(BoxNumber(after)..);
        self.last_doubtful = ahead.next().or_else(|| self.doubtful.first()).copied();
        self.last_doubtful
    }

    pub fn next_poll(&self, now: Instant) -> Option<Instant> {
        match &self.phase {
            _ if self.is_complete() => None,
            // The directory does not say when it hears of a peer.
            Phase::Looking { .. } => Some(now + Duration::from_millis(50)),
            Phase::Asking { until, .. } => Some(*until),
            Phase::Sweeping => None,
        }
    }

    /// Whom to ask now, and the number of the request.
    pub fn poll(&mut self, now: Instant, peers: impl FnOnce() -> Vec<NodeId>) -> Option<(NodeId, u64)> {
        let is_looking = match &self.phase {
            _ if self.is_complete() => return None,
            Phase::Looking { until } => now < *until,
            Phase::Asking { until, .. } if now >= *until => false,
            Phase::Asking { .. } | Phase::Sweeping => return None,
        };
        match peers().into_iter().find(|peer| !self.asked.contains(peer)) {
            Some(peer) => {
                self.requests = self.requests.wrapping_add(1);
                self.asked.push(peer.clone());
                let (request, until) = (self.requests, now + ANSWER_WAIT);
                self.phase = Phase::Asking { request, until, have: Vec::new(), missing: 0 };
                Some((peer, request))
            }
            None => {
                if !is_looking {
                    self.phase = Phase::Sweeping;
                }
                None
            }
        }
    }

    /// Takes note of a part of a snapshot. `false`: it was not asked for.
    pub fn on_part(&mut self, part: &Part, now: Instant) -> bool {
        let Phase::Asking { request, until, have, missing } = &mut self.phase else { return false };
        if *request != part.request {
            return false;
        }
        if have.is_empty() {
            *have = vec![false; part.parts as usize];
            *missing = have.len();
        }
        if let Some(had) = have.get_mut(part.part as usize) {
            *missing -= usize::from(!std::mem::replace(had, true));
        }
        *until = now + ANSWER_WAIT;
        if *missing == 0 {
            // If it is not complete, the next peer is asked.
            self.phase = Phase::Looking { until: now };
            if part.complete {
                self.unread.fill(false);
                self.left = 0;
                for number in self.doubtful.clone() {
                    self.doubt(number);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn part(request: u64, part: u32, complete: bool) -> Part {
        Part { request, part, parts: 2, complete, users: vec![], senders: vec![], readings: vec![] }
    }

    #[test]
    fn one_peer_after_the_other_is_asked_and_then_the_boxes_are_read() {
        let now = Instant::now();
        let mut sync = Sync::new(NonZeroU32::new(3).unwrap(), 1, now);
        assert_eq!(sync.poll(now, Vec::new), None);
        let peers = || vec![node("a"), node("b")];
        let (first, request) = sync.poll(now, peers).unwrap();
        assert_eq!((first, sync.poll(now, peers), sync.next_unread()), (node("a"), None, None));
        assert!(sync.on_part(&part(request, 1, false), now) && sync.on_part(&part(request, 0, false), now));
        assert_eq!(sync.poll(now, peers).unwrap().0, node("b"));
        assert_eq!(sync.poll(now + ANSWER_WAIT, peers), None);
        let read: Vec<_> = (0..4).map(|_| sync.next_unread().unwrap().0).collect();
        assert_eq!(read, [1, 2, 0, 1], "a box that could not be read comes again");
        (0..3).for_each(|number| sync.is_read(BoxNumber(number)));
        assert!(sync.is_complete() && sync.next_unread().is_none());
    }

    #[test]
    fn a_complete_snapshot_is_enough() {
        let now = Instant::now();
        let mut sync = Sync::new(NonZeroU32::new(3).unwrap(), 1, now);
        let (_, request) = sync.poll(now, || vec![node("a")]).unwrap();
        assert!(!sync.on_part(&part(request + 1, 0, true), now));
        assert!(sync.on_part(&part(request, 0, true), now) && sync.on_part(&part(request, 0, true), now));
        assert!(!sync.is_complete());
        assert!(sync.on_part(&part(request, 1, true), now) && sync.is_complete());
        sync.begin(now);
        assert!(!sync.is_complete() && !sync.knows(BoxNumber(0)));
    }

    #[test]
    fn a_box_with_an_uncertain_deposit_is_read_whatever_a_snapshot_says() {
        let now = Instant::now();
        let mut sync = Sync::new(NonZeroU32::new(3).unwrap(), 1, now);
        sync.doubt(BoxNumber(2));
        let (_, request) = sync.poll(now, || vec![node("a")]).unwrap();
        sync.on_part(&part(request, 0, true), now);
        sync.on_part(&part(request, 1, true), now);
        assert!(sync.knows(BoxNumber(0)) && !sync.knows(BoxNumber(2)));
        assert_eq!(sync.next_unread(), Some(BoxNumber(2)));
        sync.is_read(BoxNumber(2));
        assert!(sync.is_complete() && sync.next_unread().is_none());
        sync.doubt(BoxNumber(0));
        assert_eq!((sync.next_unread(), sync.next_poll(now)), (Some(BoxNumber(0)), None));
        sync.doubt(BoxNumber(3));
        sync.is_read(BoxNumber(0));
        assert!(sync.is_complete(), "there is no such box");
    }

    #[test]
    fn what_another_node_read_says_nothing_of_a_deposit_that_may_be_on_its_way() {
        let now = Instant::now();
        let mut sync = Sync::new(NonZeroU32::new(3).unwrap(), 1, now);
        (0..3).for_each(|number| sync.is_read(BoxNumber(number)));
        sync.doubt_own(BoxNumber(1));
        sync.doubt(BoxNumber(2));
        sync.is_read_elsewhere(BoxNumber(1));
        sync.is_read_elsewhere(BoxNumber(2));
        assert!(!sync.knows(BoxNumber(1)) && sync.knows(BoxNumber(2)));
        assert_eq!(sync.next_unread(), Some(BoxNumber(1)));
        sync.is_read(BoxNumber(1));
        assert!(sync.is_complete());
    }

    #[test]
    fn a_doubtful_box_does_not_wait_for_all_the_others() {
        let now = Instant::now();
        let mut sync = Sync::new(NonZeroU32::new(100).unwrap(), 0, now);
        sync.poll(now + PEERS_WAIT, Vec::new);
        sync.doubt(BoxNumber(98));
        sync.doubt(BoxNumber(99));
        let next: Vec<_> = (0..6).map(|_| sync.next_unread().unwrap().0).collect();
        assert_eq!(
            next,
            [98, 0, 99, 1, 98, 2],
            "both get their turns, also while the doubtful ones cannot be read"
        );
    }

    #[test]
    fn without_peers_the_boxes_are_read_soon() {
        let now = Instant::now();
        let mut sync = Sync::new(NonZeroU32::MIN, 0, now);
        assert_eq!((sync.poll(now, Vec::new), sync.next_unread()), (None, None));
        assert_eq!((sync.poll(now + PEERS_WAIT, Vec::new), sync.next_unread()), (None, Some(BoxNumber(0))));
    }
}
