//! The pending table: which messages await which nodes' receipts, and until when. Pure: `now` is passed in.
//!
//! An entry is completed exactly once: when each of its nodes has answered, is known to be lost, or is overdue.
//! Receipts for entries that are gone (late, repeated) change nothing.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::delivery::envelope::Tag;
use crate::ids::NodeId;

/// What became of an attempt, with whatever the caller gave for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Completed<T> {
    pub item: T,
    /// Sessions that took the message, over all nodes.
    pub sessions: u32,
    /// Nodes that answered that none of their sessions took it.
    pub not_here: SmallVec<[NodeId; 2]>,
    /// Nodes from which nothing is known: lost, unreachable or overdue.
    pub unknown: SmallVec<[NodeId; 2]>,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    waiting: SmallVec<[NodeId; 2]>,
    not_here: SmallVec<[NodeId; 2]>,
    unknown: SmallVec<[NodeId; 2]>,
    sessions: u32,
    deadline: Instant,
}

#[derive(Debug)]
pub struct Receipts<T> {
    entries: HashMap<Tag, Entry<T>>,
    /// By deadline; tags are unique and grow, so the pair is too.
    deadlines: BTreeMap<(Instant, Tag), ()>,
    next: u64,
    capacity: usize,
}

impl<T> Receipts<T> {
    /// `capacity`: entries at most; [`Receipts::open`] refuses beyond it (overflow policy: tell the sender).
    pub fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), deadlines: BTreeMap::new(), next: 1, capacity }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Awaits receipts from `nodes`, which must not be empty. `Err` gives the item back: the table is full.
    pub fn open(
        &mut self,
        item: T,
        nodes: SmallVec<[NodeId; 2]>,
        now: Instant,
        timeout: Duration,
    ) -> Result<Tag, T> {
        debug_assert!(!nodes.is_empty());
        if self.entries.len() >= self.capacity {
            return Err(item);
        }
        let tag = Tag(self.next);
        self.next += 1;
        let deadline = now + timeout;
        self.deadlines.insert((deadline, tag), ());
        let entry = Entry {
            item,
            waiting: nodes,
            not_here: SmallVec::new(),
            unknown: SmallVec::new(),
            sessions: 0,
            deadline,
        };
        self.entries.insert(tag, entry);
        Ok(tag)
    }

    /// A node's receipt: `sessions` took the message, 0 = not here.
    pub fn receipt(&mut self, tag: Tag, node: &NodeId, sessions: u32) -> Option<Completed<T>> {
        self.answer(tag, node, |entry, node| {
            entry.sessions = entry.sessions.saturating_add(sessions);
            if sessions == 0 {
                entry.not_here.push(node);
            }
        })
    }

    /// The publish to these nodes failed, so that no receipt will come from those that have not answered yet.
    pub fn unreachable(&mut self, tag: Tag, nodes: &[NodeId]) -> Option<Completed<T>> {
        let mut completed = None;
        for node in nodes {
            completed = completed.or(self.answer(tag, node, |entry, node| entry.unknown.push(node)));
        }
        completed
    }

    fn answer(
        &mut self,
        tag: Tag,
        node: &NodeId,
        note: impl FnOnce(&mut Entry<T>, NodeId),
    ) -> Option<Completed<T>> {
        let entry = self.entries.get_mut(&tag)?;
        let at = entry.waiting.iter().position(|waiting| waiting == node)?;
        let node = entry.waiting.swap_remove(at);
        note(entry, node);
        if entry.waiting.is_empty() {
            return self.complete(tag);
        }
        None
    }

    fn complete(&mut self, tag: Tag) -> Option<Completed<T>> {
        let mut entry = self.entries.remove(&tag)?;
        self.deadlines.remove(&(entry.deadline, tag));
        entry.unknown.append(&mut entry.waiting);
        Some(Completed {
            item: entry.item,
            sessions: entry.sessions,
            not_here: entry.not_here,
            unknown: entry.unknown,
        })
    }

    /// A node is gone: whatever awaits it is answered now, not when its deadline runs out. In tag order.
    pub fn node_lost(&mut self, node: &NodeId) -> Vec<Completed<T>> {
        let mut tags: Vec<Tag> = (self.entries.iter())
            .filter(|(_, entry)| entry.waiting.contains(node))
            .map(|(tag, _)| *tag)
            .collect();
        tags.sort_unstable();
        (tags.into_iter())
            .filter_map(|tag| self.answer(tag, node, |entry, node| entry.unknown.push(node)))
            .collect()
    }

    /// Completes what is overdue, oldest first.
    pub fn expire(&mut self, now: Instant) -> Vec<Completed<T>> {
        let mut completed = Vec::new();
        while let Some((&(deadline, tag), ())) = self.deadlines.first_key_value() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            completed.extend(self.complete(tag));
        }
        completed
    }

    /// When [`Receipts::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((deadline, _), ())| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smallvec::smallvec;

    fn node(n: u8) -> NodeId {
        NodeId::new(&format!("n{n}")).unwrap()
    }

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn completes_when_all_nodes_have_answered_and_sums_the_sessions() {
        let (mut table, now) = (Receipts::new(9), Instant::now());
        let tag = table.open("m", smallvec![node(1), node(2)], now, TIMEOUT).unwrap();
        assert_eq!(table.receipt(tag, &node(1), 2), None);
        assert_eq!(table.receipt(tag, &node(1), 2), None, "a repeated receipt counts once");
        assert_eq!(table.receipt(tag, &node(9), 2), None, "a stranger's receipt does not count");
        let done = table.receipt(tag, &node(2), 0).unwrap();
        assert_eq!((done.sessions, done.not_here.as_slice()), (2, &[node(2)][..]));
        assert!(table.is_empty() && table.next_deadline().is_none());
        assert_eq!(table.receipt(tag, &node(2), 5), None, "late");
    }

    #[test]
    fn overdue_and_lost_nodes_are_unknown() {
        let (mut table, now) = (Receipts::new(9), Instant::now());
        let first = table.open(1, smallvec![node(1), node(2)], now, TIMEOUT).unwrap();
        table.open(2, smallvec![node(2)], now + TIMEOUT, TIMEOUT).unwrap();
        table.receipt(first, &node(1), 1);
        assert_eq!(table.next_deadline(), Some(now + TIMEOUT));
        let overdue = table.expire(now + TIMEOUT);
        assert_eq!((overdue.len(), overdue[0].item, overdue[0].sessions), (1, 1, 1));
        assert_eq!(overdue[0].unknown.as_slice(), &[node(2)]);
        let lost = table.node_lost(&node(2));
        assert_eq!((lost.len(), lost[0].item), (1, 2));
        assert!(table.is_empty());
    }

    #[test]
    fn full_is_told() {
        let mut table = Receipts::new(1);
        assert!(table.open(1, smallvec![node(1)], Instant::now(), TIMEOUT).is_ok());
        assert_eq!(table.open(2, smallvec![node(1)], Instant::now(), TIMEOUT), Err(2));
    }

    proptest! {
        /// Whatever happens, in any order and repeated, each item completes exactly once.
        #[test]
        fn each_item_completes_exactly_once(
            steps in prop::collection::vec((0u8..5, 0u64..40, 0u8..4, 0u32..3), 1..300)
        ) {
            let (mut table, start) = (Receipts::new(16), Instant::now());
            let (mut opened, mut now, mut done) = (0u32, start, Vec::new());
            for (step, tag, n, sessions) in steps {
                now += Duration::from_millis(200);
                match step {
                    0 => {
                        if table.open(opened, smallvec![node(n), node((n + 1) % 4)], now, TIMEOUT).is_ok() {
                            opened += 1;
                        }
                    }
                    1 => done.extend(table.receipt(Tag(tag), &node(n), sessions)),
                    2 => done.extend(table.unreachable(Tag(tag), &[node(n)])),
                    3 => done.extend(table.node_lost(&node(n))),
                    _ => done.extend(table.expire(now)),
                }
            }
            done.extend(table.expire(now + TIMEOUT));
            let mut items: Vec<u32> = done.iter().map(|completed| completed.item).collect();
            items.sort_unstable();
            prop_assert_eq!(items, (0..opened).collect::<Vec<_>>());
            prop_assert!(table.is_empty() && table.deadlines.is_empty());
        }
    }
}
