//! Homes of the ring in the simulated cluster: they know the truth at rest, and are silent about what they cannot know.

use proptest::prelude::*;

use super::simulation::{action, Action, Cluster, NAMES, STEP};
use super::*;
use crate::directory::homes::Home;

const KEYS: u64 = 12;
/// A change waits for its batch and takes a step to its home.
const TOLD_WITHIN: Duration = at(60);

/// At rest: all live nodes name the same home for a user, and that one knows exactly which nodes have the user.
pub(super) fn check_homes(cluster: &Cluster) -> Result<(), TestCaseError> {
    let living = || {
        (0..).zip(&cluster.processes).filter_map(|(n, process): (usize, _)| {
            process.as_ref().filter(|process| !process.left).map(|process| (NAMES[n], process))
        })
    };
    for number in 0..KEYS {
        let homes =
            living().filter_map(|(name, process)| match process.state.home_of(key(number), cluster.now) {
                Home::Holders(nodes) => Some((name, nodes)),
                _ => None,
            });
        let homes: Vec<_> = homes.collect();
        prop_assert!(homes.len() == 1 || living().next().is_none(), "{} has the homes {:?}", number, homes);
        let Some((home, mut nodes)) = homes.into_iter().next() else { continue };
        for (name, process) in living().filter(|(name, _)| *name != home) {
            let told = process.state.home_of(key(number), cluster.now);
            prop_assert_eq!(told, Home::At(node(home)), "as {} has it", name);
        }
        nodes.sort();
        let has = |(name, process): (&'static str, &super::simulation::Process)| {
            (name != home && process.keys.contains(&number)).then(|| node(name))
        };
        prop_assert_eq!(
            nodes.to_vec(),
            living().filter_map(has).collect::<Vec<_>>(),
            "{} at {}",
            number,
            home
        );
    }
    Ok(())
}

/// A home that says who has a user names every node that it knows and that has had the user for a moment.
fn check_sure(cluster: &Cluster) -> Result<(), TestCaseError> {
    for (h, home) in cluster.processes.iter().enumerate() {
        let Some(home) = home.as_ref().filter(|home| !home.left) else { continue };
        for number in 0..KEYS {
            let Home::Holders(nodes) = home.state.home_of(key(number), cluster.now) else { continue };
            for (s, holder) in cluster.processes.iter().enumerate().filter(|(s, _)| *s != h) {
                let Some(holder) = holder.as_ref().filter(|holder| holder.keys.contains(&number)) else {
                    continue;
                };
                let known = home.state.peers.get(&node(NAMES[s])).map(|peer| peer.replica.incarnation());
                let is_old = holder.since[&number] + TOLD_WITHIN < cluster.now;
                if known == Some(holder.incarnation) && is_old && !holder.left {
                    prop_assert!(
                        nodes.contains(&node(NAMES[s])),
                        "at {:?} {} is sure of {} and does not know of {}",
                        cluster.now,
                        NAMES[h],
                        number,
                        NAMES[s]
                    );
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Nodes come and go at any moment, users too; nothing is lost on the way.
    #[test]
    fn a_home_that_is_sure_misses_nobody(
        (nodes, actions) in (2..=5usize).prop_flat_map(|n| (Just(n), prop::collection::vec(action(n), 1..60))),
        seed in any::<u64>(),
    ) {
        let mut cluster = Cluster::new(nodes, seed, 0);
        for action in &actions {
            match action {
                Action::Mute(..) | Action::Pause(..) | Action::Block(..) => {}
                Action::Wait(ms) => {
                    let end = cluster.now + at(u64::from(*ms % 3_000));
                    while cluster.now < end {
                        cluster.run(STEP);
                        check_sure(&cluster)?;
                    }
                }
                other => cluster.act(other),
            }
            cluster.run(STEP);
            check_sure(&cluster)?;
        }
    }
}

#[test]
fn a_change_of_members_asks_everyone_for_a_moment_only() {
    let mut cluster = Cluster::new(4, 1, 0);
    for number in 0..2_000 {
        cluster.act(&Action::Join(number as usize % 3, number));
    }
    cluster.run(at(2_500));
    check_homes(&cluster).unwrap();
    cluster.act(&Action::Kill(3));
    cluster.run(at(700));
    check_homes(&cluster).unwrap();
    cluster.act(&Action::Start(3));
    cluster.run(at(1_500));
    check_homes(&cluster).unwrap();
}

#[test]
fn a_lost_part_is_asked_for() {
    let mut cluster = Cluster::new(3, 1, 0);
    cluster.run(at(2_000));
    cluster.act(&Action::Mute(1, true));
    for number in 0..KEYS {
        cluster.act(&Action::Join(1, number));
    }
    cluster.run(at(100));
    cluster.act(&Action::Mute(1, false));
    // What comes next is behind a gap; where nothing comes, the heartbeats tell.
    cluster.act(&Action::Leave(1, 0));
    cluster.run(at(8_000));
    check_homes(&cluster).unwrap();
}
