//! Consistent hashing of users over nodes: which node is the home of a user. Pure.
//!
//! Every node has [`POINTS`] points on a ring of 64-bit numbers, and a user belongs to the node of the next point. So a
//! node that comes or goes moves only the users of its own share. Nothing depends on the process: nodes with the same
//! list of live nodes agree.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::key::Key;
use crate::ids::NodeId;

/// Points of each node. With so many the largest share is below one and a half of the average.
const POINTS: u64 = 160;

/// Stands for a list of live nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct View(u64);

#[derive(Debug, Clone, Default)]
pub struct Ring {
    nodes: Vec<NodeId>,
    /// Sorted by place; each with the index of its node.
    points: Vec<(u64, u32)>,
    view: View,
}

impl Ring {
    pub fn new(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
        nodes.sort();
        nodes.dedup();
        let mut points = Vec::with_capacity(nodes.len() * POINTS as usize);
        let mut listed = Vec::new();
        for (index, node) in (0u32..).zip(&nodes) {
            let name = node.as_str().as_bytes();
            points.extend((0..POINTS).map(|point| (xxh3_64_with_seed(name, point), index)));
            listed.extend_from_slice(name);
            // Not part of any node id.
            listed.push(0);
        }
        points.sort_unstable();
        Self { nodes, points, view: View(xxh3_64(&listed)) }
    }

    /// `None`: there is no node.
    pub fn home(&self, key: Key) -> Option<&NodeId> {
        let place = key.place();
        let at = self.points.partition_point(|(point, _)| *point < place);
        let (_, index) = self.points.get(at).or_else(|| self.points.first())?;
        self.nodes.get(*index as usize)
    }

    /// Nodes with the same view have the same ring.
    pub fn view(&self) -> View {
        self.view
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USERS: u64 = 20_000;

    fn nodes(seed: u16, count: usize) -> Vec<NodeId> {
        (0..count).map(|n| NodeId::new(&format!("warren-{seed}-{n}")).unwrap()).collect()
    }

    fn homes(ring: &Ring) -> Vec<NodeId> {
        (0..USERS).map(|user| ring.home(Key::for_test(user)).unwrap().clone()).collect()
    }

    #[test]
    fn homes_are_the_same_in_every_release() {
        let ring = Ring::new(["a", "b", "c"].map(|name| NodeId::new(name).unwrap()));
        let of = |user: &str| {
            ring.home(Key::user(&crate::ids::UserId::new(user).unwrap())).unwrap().as_str().to_owned()
        };
        let found: String = ["alice", "bob", "carol", "dave", "erin", "frank"].map(of).concat();
        assert_eq!((found.as_str(), ring.view()), ("cbaccc", View(7_481_124_173_643_337_706)));
        assert!(Ring::default().home(Key::for_test(1)).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A node that comes or goes moves the users of its share and no other, and no share is much above the average.
        #[test]
        fn a_change_moves_one_share(seed: u16, count in 1_usize..24, which: prop::sample::Index) {
            let all = nodes(seed, count + 1);
            let changed = &all[which.index(all.len())];
            let with = homes(&Ring::new(all.clone()));
            let without = homes(&Ring::new(all.iter().filter(|node| *node != changed).cloned()));
            let moved = with.iter().zip(&without).filter(|(before, after)| before != after).count();
            let of_changed = with.iter().filter(|home| *home == changed).count();
            prop_assert_eq!(moved, of_changed, "only what was or is on the changed node moves");
            let limit = 1.5 * USERS as f64 / all.len() as f64;
            prop_assert!(moved as f64 <= limit, "{} of {} users moved, {} nodes", moved, USERS, all.len());
        }

        /// The order in which nodes became known plays no part.
        #[test]
        fn nodes_with_the_same_list_agree(seed: u16, count in 1_usize..12, turn in 0_usize..12) {
            let listed = nodes(seed, count);
            let mut turned = listed.clone();
            turned.rotate_left(turn % count);
            let (one, other) = (Ring::new(listed.clone()), Ring::new(turned));
            prop_assert_eq!(one.view(), other.view());
            prop_assert_eq!(homes(&one), homes(&other));
            prop_assert_ne!(one.view(), Ring::new(listed.into_iter().skip(1)).view());
        }
    }
}
