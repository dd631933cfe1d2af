//! The partitions of ingress, and which node consumes which: pure decisions.
//!
//! Every node computes the same shares from the same nodes. A partition that changes hands is not consumed by its new node
//! before the old one has said that nothing of it is left there; a broker's single active consumer serialises those
//! whose views differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::NodeId;

/// Most partitions that ingress may have, as the configuration says.
pub const PARTITIONS_MAX: u16 = 32;

/// How long a node waits for the first word of a peer that may hold what it is to consume.
const WORD_WAIT: Duration = Duration::from_secs(5);
/// For so long a node consumes what nobody consumed although it is another node's share.
const ADOPTED_FOR: Duration = Duration::from_secs(20);

/// One queue of ingress: `number` counts from 1 to `of`. The only one of 1 is `warren.ingress` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Partition {
    pub of: u16,
    pub number: u16,
}

impl Partition {
    pub fn all(of: u16) -> impl Iterator<Item = Self> {
        (1..=of).map(move |number| Self { of, number })
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.of, self.number)
    }
}

/// What the bus is told of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngressView {
    /// The live nodes that may consume: this one among them unless it drains or has no link.
    pub nodes: Vec<NodeId>,
    /// What other live nodes consume, or still have to settle something of.
    pub claimed: BTreeSet<Partition>,
    /// Some live node has not said what it consumes.
    pub is_partial: bool,
    /// All live nodes are known, and want as many partitions as this one.
    pub is_agreed: bool,
    /// Some live node wants another number.
    pub is_disputed: bool,
    /// This node acts where one has to act for all.
    pub is_first: bool,
}

/// What a node tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressState {
    /// How many it wants; 0 = it does not say, which means 1.
    pub partitions: u16,
    /// Its link is up: it consumes what is its share.
    pub is_up: bool,
    /// What it consumes, or still has to settle something of.
    pub holds: BTreeSet<Partition>,
}

impl IngressState {
    /// Of one partition, which every node consumes as the broker lets it: not worth a word.
    pub fn is_usual(&self) -> bool {
        self.partitions <= 1 && !self.is_up && self.holds.is_empty()
    }
}

/// Which node consumes which partition of one layout: rendezvous hashing in which no node has two more than another.
fn shares(nodes: &[NodeId], of: u16) -> BTreeMap<Partition, &NodeId> {
    let Some(least) = usize::from(of).checked_div(nodes.len()) else { return BTreeMap::new() };
    let mut with_one_more = usize::from(of) % nodes.len();
    let mut loads: BTreeMap<&NodeId, usize> = BTreeMap::new();
    let mut shares = BTreeMap::new();
    for partition in Partition::all(of) {
        let seed = u64::from(of) << 16 | u64::from(partition.number);
        let load = |node: &NodeId| loads.get(node).copied().unwrap_or(0);
        let has_room = |node: &&NodeId| load(node) < least + usize::from(with_one_more > 0);
        let weight = |node: &&NodeId| (xxh3_64_with_seed(node.as_str().as_bytes(), seed), (*node).clone());
        let Some(node) = nodes.iter().filter(has_room).max_by_key(weight) else { continue };
        with_one_more -= usize::from(load(node) == least);
        *loads.entry(node).or_default() += 1;
        shares.insert(partition, node);
    }
    shares
}

/// What this node is to consume, and since when.
#[derive(Debug, Default)]
pub struct Turns {
    since: BTreeMap<Partition, Instant>,
    adopted: BTreeMap<Partition, Instant>,
}

impl Turns {
    /// Nobody consumes these, whoever should.
    pub fn adopt(&mut self, orphans: impl IntoIterator<Item = Partition>, now: Instant) {
        self.adopted.extend(orphans.into_iter().map(|orphan| (orphan, now + ADOPTED_FOR)));
    }

    /// What to consume now, of what there `is` to consume; `holds` is what this node consumes already.
    pub fn step(
        &mut self,
        own: &NodeId,
        view: &IngressView,
        is: &BTreeSet<Partition>,
        holds: &BTreeSet<Partition>,
        now: Instant,
    ) -> BTreeSet<Partition> {
        if !view.nodes.contains(own) {
            *self = Self::default();
            return BTreeSet::new();
        }
        let layouts: BTreeSet<u16> = is.iter().map(|partition| partition.of).collect();
        let mine: BTreeSet<Partition> = layouts
            .into_iter()
            .flat_map(|of| shares(&view.nodes, of))
            .filter_map(|(partition, node)| (node == own && is.contains(&partition)).then_some(partition))
            .collect();
        self.since.retain(|partition, _| mine.contains(partition));
        self.adopted.retain(|partition, until| now < *until && is.contains(partition));
        let mut turns: BTreeSet<Partition> = self.adopted.keys().copied().collect();
        for partition in mine {
            let since = *self.since.entry(partition).or_insert(now);
            let is_told = !view.is_partial || now >= since + WORD_WAIT;
            if holds.contains(&partition) || is_told && !view.claimed.contains(&partition) {
                turns.insert(partition);
            }
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(names: &BTreeSet<u8>) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::new(&format!("node-{name}")).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn shares_are_even_and_whole_whatever_the_order_of_the_nodes(
            names in prop::collection::btree_set(any::<u8>(), 1..12), of in 1..=PARTITIONS_MAX,
        ) {
            let (nodes, mut turned) = (nodes(&names), nodes(&names));
            turned.reverse();
            let all = shares(&nodes, of);
            prop_assert_eq!(&all, &shares(&turned, of));
            prop_assert_eq!(all.keys().copied().collect::<Vec<_>>(), Partition::all(of).collect::<Vec<_>>());
            let loads = nodes.iter().map(|node| all.values().filter(|owner| **owner == node).count());
            let (least, most) = loads.fold((usize::MAX, 0), |(least, most), load| (least.min(load), most.max(load)));
            prop_assert!(most - least <= 1, "{least}..{most}");
        }

        #[test]
        fn exactly_one_node_has_its_turn_once_nobody_else_holds_it(
            names in prop::collection::btree_set(any::<u8>(), 1..8), of in 1..=PARTITIONS_MAX,
        ) {
            let nodes = nodes(&names);
            let view = IngressView { nodes: nodes.clone(), ..IngressView::default() };
            let is: BTreeSet<_> = Partition::all(of).collect();
            let turns = |node| Turns::default().step(node, &view, &is, &BTreeSet::new(), Instant::now());
            let taken: Vec<_> = nodes.iter().flat_map(turns).collect();
            prop_assert_eq!(taken.len(), usize::from(of));
            prop_assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), is);
        }
    }

    #[test]
    fn few_partitions_move_when_a_node_comes() {
        let (mut moved, mut most) = (0, 0);
        for count in 1..12u8 {
            let before = nodes(&(0..count).collect());
            let after = nodes(&(0..=count).collect());
            let (old, new) = (shares(&before, 32), shares(&after, 32));
            moved += old.iter().filter(|(partition, node)| new[partition] != **node).count();
            most += 32_usize.div_ceil(usize::from(count) + 1);
        }
        assert!(moved <= 2 * most, "{moved} moved; with the least movement {most}");
    }

    #[test]
    fn a_partition_is_not_taken_before_its_holder_lets_it_go() {
        let now = Instant::now();
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let is: BTreeSet<_> = Partition::all(4).collect();
        let both = vec![a.clone(), b.clone()];
        let mine: BTreeSet<_> = shares(&both, 4)
            .into_iter()
            .filter(|(_, node)| **node == a)
            .map(|(partition, _)| partition)
            .collect();
        let mut view = IngressView { nodes: both, claimed: is.clone(), ..IngressView::default() };
        let mut turns = Turns::default();
        let none = BTreeSet::new();
        assert_eq!(turns.step(&a, &view, &is, &none, now), none);
        assert_eq!(turns.step(&a, &view, &is, &none, now + 2 * WORD_WAIT), none, "its holder lives");
        view.claimed = none.clone();
        view.is_partial = true;
        let mut turns = Turns::default();
        assert_eq!(turns.step(&a, &view, &is, &none, now), none, "somebody may hold it");
        assert_eq!(turns.step(&a, &view, &is, &none, now + WORD_WAIT), mine);
        assert_eq!(turns.step(&a, &view, &is, &is, now), mine, "the others are let go");
        view.nodes = vec![b];
        assert_eq!(turns.step(&a, &view, &is, &is, now), none, "it drains");
    }

    #[test]
    fn what_nobody_consumes_is_adopted_for_a_while() {
        let now = Instant::now();
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let is: BTreeSet<_> = Partition::all(1).collect();
        let (owner, other) =
            if shares(&[a.clone(), b.clone()], 1).values().all(|node| **node == a) { (a, b) } else { (b, a) };
        let view = IngressView { nodes: vec![owner, other.clone()], ..IngressView::default() };
        let (mut turns, none) = (Turns::default(), BTreeSet::new());
        assert_eq!(turns.step(&other, &view, &is, &none, now), none);
        turns.adopt(is.clone(), now);
        assert_eq!(turns.step(&other, &view, &is, &none, now), is);
        assert_eq!(turns.step(&other, &view, &is, &is, now + ADOPTED_FOR), none);
    }
}
