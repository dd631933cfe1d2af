//! Snapshots of everything that this node knows, on their way to nodes that asked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::counts::Counts;
use super::gossip::{Part, ENTRIES_MAX};
use super::senders::Senders;
use crate::ids::NodeId;

/// Nodes that are sent a snapshot at the same time; another one that asks is not answered and asks elsewhere.
const SNAPSHOTS_MAX: usize = 2;
/// Parts go in bursts of so many, so that they do not take up the window of unconfirmed publishes.
const BURST: usize = 4;
const BURST_EVERY: Duration = Duration::from_millis(10);

pub struct Snapshots {
    queue: VecDeque<(NodeId, VecDeque<Part>)>,
    burst_at: Instant,
}

impl Snapshots {
    pub fn new(now: Instant) -> Self {
        Self { queue: VecDeque::new(), burst_at: now }
    }

    pub fn has_room(&self) -> bool {
        self.queue.len() < SNAPSHOTS_MAX
    }

    pub fn add(&mut self, node: NodeId, parts: VecDeque<Part>) {
        self.queue.push_back((node, parts));
    }

    pub fn clear(&mut self) {
        self.queue.clear();
    }

    pub fn next_poll(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then_some(self.burst_at)
    }

    /// The parts that are to be sent now.
    pub fn poll(&mut self, now: Instant) -> Vec<(NodeId, Part)> {
        let mut burst = Vec::new();
        if self.burst_at > now {
            return burst;
        }
        while burst.len() < BURST {
            let Some((node, parts)) = self.queue.front_mut() else { break };
            match parts.pop_front() {
                Some(part) => burst.push((node.clone(), part)),
                None => drop(self.queue.pop_front()),
            }
        }
        self.burst_at = now + BURST_EVERY;
        burst
    }
}

/// All parts of a snapshot, of which there is at least one.
pub fn parts(request: u64, complete: bool, counts: &Counts, senders: &Senders) -> VecDeque<Part> {
    let (users, senders) = (counts.all(), senders.all());
    let (of_users, of_senders) = (users.chunks(ENTRIES_MAX), senders.chunks(ENTRIES_MAX));
    let number = (of_users.len() + of_senders.len()).max(1);
    let empty = Part {
        request,
        part: 0,
        parts: u32::try_from(number).unwrap_or(u32::MAX),
        complete,
        users: Vec::new(),
        senders: Vec::new(),
        readings: Vec::new(),
    };
    let of_users = of_users.map(|users| Part { users: users.to_vec(), ..empty.clone() });
    let of_senders = of_senders.map(|senders| Part { senders: senders.to_vec(), ..empty.clone() });
    let mut parts: VecDeque<_> = of_users.chain(of_senders).collect();
    if parts.is_empty() {
        parts.push_back(empty);
    }
    for (part, number) in parts.iter_mut().zip(0..) {
        part.part = number;
    }
    if let Some(first) = parts.front_mut() {
        first.readings = counts.readings();
    }
    parts
}
