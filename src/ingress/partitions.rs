//! Shares ingress among the nodes: tells the bus what the directory knows, and the other nodes what the bus consumes.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{interval, Instant, MissedTickBehavior};

use crate::bus::partitions::{IngressState, IngressView};
use crate::bus::IngressDesk;
use crate::directory::{Directory, PeerInfo};
use crate::ids::NodeId;

/// A partition changes hands after a few of these.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A disagreement is said again after so long.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// Runs until the node stops.
pub async fn run(desk: IngressDesk, directory: Directory) {
    let mut states = desk.state.subscribe();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut was_sure, mut said) = (false, None);
    directory.set_ingress(states.borrow_and_update().clone());
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = states.changed() => match changed {
                Ok(()) => directory.set_ingress(states.borrow_and_update().clone()),
                // The bus is gone.
                Err(_) => return std::future::pending().await,
            },
        }
        let this = directory.this_node();
        let is_sure = directory.has_heard_all();
        was_sure |= is_sure;
        // Without a link nothing is heard; and who has just come does not know the others yet.
        if this.incarnation.is_none() || !was_sure {
            continue;
        }
        let peers = directory.peers();
        let view = view(&this, &desk.state.borrow(), &peers, is_sure);
        say_disagreement(desk.partitions, &peers, &view, &mut said);
        desk.view.send_if_modified(|known| std::mem::replace(known, view.clone()) != view);
    }
}

/// What the bus is to know. `is_sure`: these are all the live peers.
fn view(this: &PeerInfo, own: &IngressState, peers: &[PeerInfo], is_sure: bool) -> IngressView {
    let wanted = partitions_of(own);
    // A node that has just been heard of for the first time has not said when it started.
    let is_known = |peer: &&PeerInfo| peer.info.started_ms != 0;
    let agrees = |peer: &&PeerInfo| partitions_of(&peer.info.ingress) == wanted;
    let consumes = |peer: &&PeerInfo| peer.info.ingress.is_up && !peer.info.draining && agrees(peer);
    let mut nodes: Vec<NodeId> = peers.iter().filter(consumes).map(|peer| peer.node.clone()).collect();
    if own.is_up && !this.info.draining {
        nodes.push(this.node.clone());
    }
    nodes.sort();
    let is_partial = !peers.iter().all(|peer| is_known(&peer));
    let is_disputed = peers.iter().filter(is_known).any(|peer| !agrees(&peer));
    IngressView {
        nodes,
        claimed: peers
            .iter()
            .flat_map(|peer| peer.info.ingress.holds.iter().copied())
            .collect::<BTreeSet<_>>(),
        is_partial,
        is_agreed: is_sure && !is_partial && !is_disputed,
        is_disputed,
        is_first: peers.iter().all(|peer| this.node < peer.node),
    }
}

fn partitions_of(ingress: &IngressState) -> u16 {
    ingress.partitions.max(1)
}

fn say_disagreement(own: u16, peers: &[PeerInfo], view: &IngressView, said: &mut Option<Instant>) {
    if !view.is_disputed {
        *said = None;
        return;
    }
    if said.is_some_and(|at| at.elapsed() < SAID_AGAIN) {
        return;
    }
    *said = Some(Instant::now());
    let others = peers.iter().map(|peer| (&peer.node, partitions_of(&peer.info.ingress)));
    let others: Vec<_> = others
        .filter(|(_, wanted)| *wanted != own)
        .map(|(node, wanted)| format!("{node}: {wanted}"))
        .collect();
    tracing::error!(
        own,
        others = others.join(", "),
        "the nodes disagree on WARREN_INGRESS_PARTITIONS: ingress stays as it is until all want the same"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::partitions::Partition;
    use crate::directory::Info;

    fn node(name: &str, partitions: u16, holds: &[u16]) -> PeerInfo {
        let holds = holds.iter().map(|number| Partition { of: partitions, number: *number }).collect();
        let ingress = IngressState { partitions, is_up: true, holds };
        PeerInfo {
            node: NodeId::new(name).unwrap(),
            incarnation: None,
            info: Info { started_ms: 1, ingress, ..Info::default() },
            keys: 0,
            synced: true,
            silent_for: Duration::ZERO,
        }
    }

    fn seen(this: &PeerInfo, peers: &[PeerInfo]) -> IngressView {
        view(this, &this.info.ingress, peers, true)
    }

    #[test]
    fn nodes_that_want_the_same_share_and_others_are_told_of() {
        let (a, b) = (node("a", 4, &[1]), node("b", 4, &[2, 3]));
        let both = seen(&a, std::slice::from_ref(&b));
        assert_eq!(both.nodes, [a.node.clone(), b.node.clone()]);
        assert_eq!(both.claimed, b.info.ingress.holds);
        assert!(both.is_agreed && both.is_first && !both.is_partial && !both.is_disputed);
        assert!(!view(&a, &a.info.ingress, std::slice::from_ref(&b), false).is_agreed);
        let other = seen(&a, &[b.clone(), node("c", 2, &[2])]);
        assert_eq!(other.nodes, [a.node.clone(), b.node.clone()]);
        assert!(other.claimed.contains(&Partition { of: 2, number: 2 }));
        assert!(!other.is_agreed && other.is_disputed);
        // A release that knows of no partitions.
        let mut old = node("d", 0, &[]);
        old.info.ingress = IngressState::default();
        assert!(seen(&a, std::slice::from_ref(&old)).is_disputed);
        assert!(seen(&node("a", 1, &[]), &[old]).is_agreed);
    }

    #[test]
    fn who_drains_or_has_no_link_gets_nothing_and_who_is_unknown_may_hold_something() {
        let (mut a, mut b, mut c) = (node("a", 4, &[]), node("b", 4, &[1]), node("c", 4, &[]));
        a.info.draining = true;
        b.info.ingress.is_up = false;
        c.info = Info::default();
        let view = seen(&a, &[b.clone(), c]);
        assert!(view.nodes.is_empty());
        assert_eq!(view.claimed, b.info.ingress.holds);
        assert!(view.is_partial && !view.is_agreed && !view.is_disputed);
    }
}
