//! One test for each merge rule.

use super::*;
use crate::config::Routing;
use crate::directory::peers::DEATH_HOLDS;
use crate::directory::schedule::{HEARTBEAT_EVERY, ROUND_EVERY, SILENCE_MAX};

/// `a`, which has heard from the beginning that `b` (incarnation 7) has 1 and 2.
fn state_with_b() -> State {
    let mut state = state();
    state.receive(hello("b", 7), at(1));
    state.receive(delta("b", 7, 1, &[1, 2], &[]), at(2));
    assert_eq!(membership(&state.poll(at(3))), ["up b"]);
    state
}

fn own_heartbeat(state: &mut State, now: Duration) {
    for effect in state.poll(now) {
        if let Effect::Publish(gossip @ Gossip::Heartbeat(_)) = effect {
            state.receive(gossip, now);
        }
    }
}

fn b_is_synced(state: &State) -> bool {
    state.peers.get(&node("b")).unwrap().replica.synced()
}

#[test]
fn deltas_apply_in_order_and_once() {
    let mut state = state_with_b();
    assert!(b_is_synced(&state), "told from the beginning: nothing to repair");
    state.receive(delta("b", 7, 2, &[3], &[1]), at(10));
    state.receive(delta("b", 7, 1, &[1, 2], &[]), at(11));
    assert_eq!((holders(&state, 1), holders(&state, 3)), (vec![], vec![node("b")]));
    assert!(asked(&state.poll(at(12))).is_empty());
}

#[test]
fn a_gap_is_a_hint_and_is_repaired() {
    let mut state = state_with_b();
    state.receive(delta("b", 7, 3, &[3], &[]), at(10));
    assert_eq!(holders(&state, 3), [node("b")]);
    assert_eq!(asked(&state.poll(at(10))), [node("b")]);
    // Asked once a second, until it helps.
    state.receive(delta("b", 7, 5, &[5], &[]), at(500));
    assert!(asked(&state.poll(at(999))).is_empty());
    assert_eq!(asked(&state.poll(at(1_010 + 490))), [node("b")]);
    state.receive(snapshot("b", 7, 5, (0, 1), &[3, 4, 5]), at(1_600));
    assert!(b_is_synced(&state));
    assert_eq!((holders(&state, 1).len(), holders(&state, 4).len()), (0, 1));
    assert!(asked(&state.poll(at(5_000))).is_empty());
}

#[test]
fn heartbeats_show_what_was_lost() {
    let mut state = state_with_b();
    state.receive(heartbeat("b", 7, 1, &[1, 2]), at(10));
    assert!(b_is_synced(&state));
    state.receive(heartbeat("b", 7, 0, &[]), at(11));
    assert!(b_is_synced(&state), "an old one says nothing");
    state.receive(heartbeat("b", 7, 3, &[1, 2]), at(12));
    assert!(b_is_synced(&state), "what was lost made no difference");
    state.receive(heartbeat("b", 7, 3, &[1, 9]), at(13));
    assert_eq!(asked(&state.poll(at(13))), [node("b")]);
    state.receive(delta("b", 7, 4, &[9], &[2]), at(14));
    state.receive(heartbeat("b", 7, 4, &[1, 9]), at(15));
    assert!(b_is_synced(&state), "a copy that turns out to be right needs no snapshot");
}

#[test]
fn snapshots_come_in_parts_and_meet_deltas() {
    let mut state = state_with_b();
    state.receive(heartbeat("b", 7, 4, &[1, 2, 3, 4]), at(10));
    for (seq, n) in [(5, 5), (6, 6)] {
        state.receive(delta("b", 7, seq, &[n], &[1]), at(11));
    }
    // The snapshot was taken after delta 5, and is read after delta 6; its parts are shuffled and repeated.
    for part in [2, 0, 0, 2] {
        state.receive(snapshot("b", 7, 5, (part, 3), &[u64::from(part) + 2]), at(12));
        assert!(!b_is_synced(&state));
    }
    state.receive(snapshot("b", 7, 5, (1, 3), &[3, 5]), at(13));
    assert!(b_is_synced(&state));
    let copy = &state.peers.get(&node("b")).unwrap().replica;
    assert_eq!(copy.state(), (6, fingerprint(&[2, 3, 4, 5, 6])));
}

#[test]
fn a_snapshot_that_lacks_a_delta_is_only_a_better_hint() {
    let mut state = state_with_b();
    state.receive(delta("b", 7, 5, &[5], &[]), at(10));
    state.receive(snapshot("b", 7, 3, (0, 1), &[3]), at(11));
    assert!(!b_is_synced(&state));
    assert_eq!((holders(&state, 1).len(), holders(&state, 3).len(), holders(&state, 5).len()), (0, 1, 1));
}

#[test]
fn the_newer_incarnation_wins() {
    let mut state = state_with_b();
    state.receive(delta("b", 8, 1, &[9], &[]), at(10));
    assert_eq!(membership(&state.poll(at(10))), ["lost b superseded", "up b"]);
    state.receive(delta("b", 7, 2, &[3], &[]), at(11));
    state.receive(heartbeat("b", 7, 2, &[]), at(12));
    state.receive(Gossip::Bye(Identity { node: node("b"), incarnation: inc(7) }), at(13));
    state.returned(&node("b"), Some(inc(7)), at(14));
    state.returned(&node("b"), None, at(14));
    assert_eq!((holders(&state, 3).len(), holders(&state, 1).len(), holders(&state, 9).len()), (0, 0, 1));
    assert!(membership(&state.poll(at(20))).is_empty());
}

#[test]
fn a_return_kills_at_once_and_tells_the_others() {
    let mut state = state_with_b();
    state.returned(&node("b"), Some(inc(7)), at(10));
    let effects = state.poll(at(10));
    assert_eq!(membership(&effects), ["lost b unroutable"]);
    let dead = Dead { node: node("b"), incarnation: inc(7), by: node("a") };
    assert!(effects.contains(&Effect::Publish(Gossip::Dead(dead))));
    assert!(holders(&state, 1).is_empty());
    state.returned(&node("b"), Some(inc(7)), at(11));
    assert!(state.poll(at(11)).is_empty(), "told once");
}

#[test]
fn the_dead_stay_dead_until_they_come_back_anew() {
    for farewell in [
        Gossip::Dead(Dead { node: node("b"), incarnation: inc(7), by: node("c") }),
        Gossip::Bye(Identity { node: node("b"), incarnation: inc(7) }),
    ] {
        let mut state = state_with_b();
        state.receive(farewell, at(10));
        for late in [
            delta("b", 7, 2, &[3], &[]),
            heartbeat("b", 7, 2, &[1, 2, 3]),
            hello("b", 7),
            hello("b", 6),
            snapshot("b", 7, 2, (0, 1), &[1]),
        ] {
            state.receive(late, at(20));
            assert!(state.peers.get(&node("b")).is_none());
        }
        state.poll(at(20));
        state.receive(hello("b", 8), at(30));
        assert_eq!(membership(&state.poll(at(30))), ["up b"]);
    }
}

#[test]
fn a_death_known_before_the_life_forbids_it() {
    let mut state = state();
    state.receive(Gossip::Dead(Dead { node: node("b"), incarnation: inc(7), by: node("c") }), at(1));
    state.receive(delta("b", 7, 2, &[3], &[]), at(2));
    state.receive(hello("b", 5), at(2));
    assert!(state.peers.get(&node("b")).is_none());
}

#[test]
fn a_wrong_death_is_outlived_by_heartbeats() {
    let mut state = state_with_b();
    state.receive(Gossip::Dead(Dead { node: node("b"), incarnation: inc(7), by: node("c") }), at(10));
    let later = at(10) + DEATH_HOLDS;
    state.receive(delta("b", 7, 2, &[3], &[]), later);
    assert!(state.peers.get(&node("b")).is_none(), "anything but a heartbeat may be late");
    state.receive(heartbeat("b", 7, 2, &[1, 2, 3]), later);
    let effects = state.poll(later);
    assert_eq!(
        (membership(&effects), asked(&effects)),
        (vec!["lost b unroutable".into(), "up b".into()], vec![node("b")])
    );
}

#[test]
fn a_node_that_moves_to_a_slow_clock_is_not_shut_out_for_ever() {
    let mut state = state_with_b();
    state.returned(&node("b"), Some(inc(7)), at(10));
    state.receive(hello("b", 6), at(20));
    state.receive(heartbeat("b", 6, 0, &[]), at(30));
    assert!(state.peers.get(&node("b")).is_none());
    state.receive(heartbeat("b", 6, 1, &[4]), at(10) + DEATH_HOLDS);
    state.receive(snapshot("b", 6, 1, (0, 1), &[4]), at(20) + DEATH_HOLDS);
    assert_eq!((b_is_synced(&state), holders(&state, 4)), (true, vec![node("b")]));
}

#[test]
fn silence_ends_with_the_next_heartbeat() {
    let mut state = state_with_b();
    let quiet = at(2) + SILENCE_MAX + HEARTBEAT_EVERY + ROUND_EVERY;
    let mut now = at(0);
    let mut told = Vec::new();
    while now < quiet {
        now += at(100);
        let effects = state.poll(now);
        told.extend(membership(&effects));
        for effect in effects {
            if let Effect::Publish(gossip) = effect {
                assert!(!matches!(gossip, Gossip::Dead(_)), "silence is one's own opinion");
                state.receive(gossip, now);
            }
        }
    }
    assert_eq!(told, ["lost b silent"]);
    state.receive(delta("b", 7, 2, &[3], &[]), now);
    assert!(state.peers.get(&node("b")).is_none(), "a late delta does not bring it back");
    state.receive(heartbeat("b", 7, 2, &[1, 2, 3]), now);
    let effects = state.poll(now);
    assert_eq!((membership(&effects), asked(&effects)), (vec!["up b".into()], vec![node("b")]));
}

#[test]
fn nobody_is_silent_while_we_are_deaf() {
    let mut state = state_with_b();
    own_heartbeat(&mut state, at(2_000));
    // Paused for a minute; then the timers run before the first delivery is read.
    assert!(membership(&state.poll(at(60_000))).is_empty());
    assert_eq!(state.control_read_to, Some(at(2_000)));
    // What piled up meanwhile is read in order: b first, then our own.
    state.receive(heartbeat("b", 7, 1, &[1, 2]), at(60_001));
    own_heartbeat(&mut state, at(62_000));
    assert!(membership(&state.poll(at(63_000))).is_empty());
}

#[test]
fn hello_is_answered_by_one_heartbeat_for_all() {
    let mut state = state();
    state.join(key(1), at(0));
    state.poll(at(100));
    for (name, ms) in [("b", 101), ("c", 102), ("d", 103)] {
        state.receive(hello(name, 7), at(ms));
    }
    let beats = |effects: Vec<Effect>| {
        effects.iter().filter(|e| matches!(e, Effect::Publish(Gossip::Heartbeat(_)))).count()
    };
    assert_eq!(beats(state.poll(at(103))), 0);
    assert_eq!(beats(state.poll(at(125))), 1);
    assert_eq!(beats(state.poll(at(1_000))), 0);
}

#[test]
fn one_snapshot_serves_all_who_ask_and_holds_what_was_told() {
    let mut state = state();
    for n in 0..7_000 {
        state.join(key(n), at(1));
    }
    state.poll(at(1));
    state.join(key(9_999), at(2));
    let ask = |name: &str| {
        Gossip::SnapshotRequest(SnapshotRequest { node: node(name), incarnation: inc(7), of: node("a") })
    };
    for name in ["b", "c", "b"] {
        state.receive(ask(name), at(3));
    }
    let mut parts = Vec::new();
    for effect in state.poll(at(20)) {
        if let Effect::SendTo { nodes, gossip: Gossip::Snapshot(part) } = effect {
            assert_eq!(nodes.len(), 2);
            parts.push(part);
        }
    }
    assert_eq!(
        parts.iter().map(|part| (part.seq, part.part, part.keys.len())).collect::<Vec<_>>(),
        [(7, 0, 5_000), (7, 1, 2_000)]
    );
    state.receive(ask("b"), at(100));
    assert!(!state
        .poll(at(200))
        .iter()
        .any(|e| matches!(e, Effect::SendTo { gossip: Gossip::Snapshot(_), .. })));
    let misled = SnapshotRequest { node: node("b"), incarnation: inc(7), of: node("z") };
    state.receive(Gossip::SnapshotRequest(misled), at(900));
    assert!(state.peers.get(&node("b")).unwrap().served_at < Some(at(900)));
}

#[test]
fn a_new_link_says_hello_and_tells_everything() {
    let mut state = state_with_b();
    state.join(key(1), at(3));
    state.poll(at(50));
    state.link_down();
    state.join(key(2), at(60));
    assert!(state.poll(at(9_000)).is_empty() && state.next_poll().is_none());
    assert_eq!(holders(&state, 1), [node("b")], "the copies serve as hints meanwhile");
    state.link_up(inc(101), at(9_001));
    assert!(state.poll(at(9_002)).is_empty(), "nothing is said into the void");
    state.set_publishing(true, at(9_003));
    let said: Vec<Gossip> = state
        .poll(at(9_003))
        .into_iter()
        .filter_map(|effect| if let Effect::Publish(gossip) = effect { Some(gossip) } else { None })
        .collect();
    assert!(matches!(&said[0], Gossip::Hello(who) if who.incarnation == inc(101)));
    assert!(matches!(&said[1], Gossip::Delta(delta) if delta.seq == 1 && delta.joined.len() == 2));
    assert!(matches!(&said[2], Gossip::Heartbeat(beat) if beat.seq == 1 && beat.count == 2));
    assert!(!b_is_synced(&state));
    state.receive(heartbeat("b", 7, 1, &[1, 2]), at(9_010));
    assert!(b_is_synced(&state), "nothing was missed: no snapshot");
    state.receive(hello("a", 100), at(9_020));
    assert!(membership(&state.poll(at(9_020))).is_empty(), "our own past is no conflict");
}

#[test]
fn another_process_with_our_id_is_a_conflict() {
    let mut state = state();
    state.receive(heartbeat("a", 200, 0, &[]), at(1));
    assert_eq!(membership(&state.poll(at(1))), ["conflict"]);
    state.receive(heartbeat("a", 200, 0, &[]), at(2));
    assert!(membership(&state.poll(at(2))).is_empty(), "said once");
    // The last word of the process before us is none; a second word is.
    state.receive(delta("a", 50, 9, &[1], &[]), at(3));
    assert!(membership(&state.poll(at(3))).is_empty());
    state.receive(heartbeat("a", 50, 9, &[1]), at(4));
    assert_eq!(membership(&state.poll(at(4))), ["conflict"]);
    assert!(holders(&state, 1).is_empty());
}

#[test]
fn probes_go_round_the_ring() {
    let probed = |state: &mut State, ms| {
        let find = |effect| if let Effect::Probe { node, .. } = effect { Some(node) } else { None };
        state.poll(at(ms)).into_iter().find_map(find)
    };
    let mut state = state();
    assert_eq!(probed(&mut state, 500), Some(node("a")), "alone, it probes itself");
    state.receive(hello("c", 7), at(501));
    state.receive(hello("b", 7), at(501));
    assert_eq!(probed(&mut state, 600), None);
    assert_eq!(probed(&mut state, 1_000), Some(node("b")));
    state.returned(&node("b"), Some(inc(7)), at(1_001));
    assert_eq!(probed(&mut state, 1_500), Some(node("c")));
    state.receive(hello("B", 7), at(1_501));
    state.returned(&node("c"), Some(inc(7)), at(1_502));
    assert_eq!(probed(&mut state, 2_000), Some(node("B")), "the ring closes");
}

#[test]
fn nothing_is_said_after_goodbye() {
    let mut state = state_with_b();
    assert!(matches!(state.bye(), Some(Gossip::Bye(_))));
    state.join(key(5), at(10));
    assert!(state.poll(at(9_000)).is_empty() && state.bye().is_none());
    state.link_up(inc(101), at(9_001));
    state.set_publishing(true, at(9_001));
    assert!(state.poll(at(20_000)).is_empty());
    state.receive(delta("b", 7, 2, &[3], &[]), at(20_001));
    assert_eq!(holders(&state, 3), [node("b")], "but it listens: it may still hold messages");
}

#[test]
fn a_newcomer_that_hears_of_another_strategy_refuses_and_a_node_that_is_at_home_does_not() {
    let dialect = || Gossip::decode(&hello("b", 7).encode(Routing::Broadcast).unwrap()).unwrap().0;
    let told = |state: &mut State, now| -> Vec<(String, bool)> {
        let effects = state.poll(now).into_iter();
        effects
            .filter_map(|effect| match effect {
                Effect::Stranger { node, is_refusal, .. } => Some((node.to_string(), is_refusal)),
                _ => None,
            })
            .collect()
    };
    let mut newcomer = state();
    newcomer.on_stranger(dialect(), &delta("b", 7, 1, &[1], &[]), at(10));
    newcomer.on_stranger(dialect(), &Gossip::Bye(Identity { node: node("b"), incarnation: inc(7) }), at(10));
    assert_eq!(told(&mut newcomer, at(10)), [], "neither proves that its sender lives");
    newcomer.on_stranger(dialect(), &heartbeat("b", 7, 1, &[1]), at(20));
    assert_eq!(told(&mut newcomer, at(20)), [("b".to_owned(), true)]);
    assert!(holders(&newcomer, 1).is_empty() && newcomer.peers.iter().next().is_none());

    let mut settled = state();
    settled.receive(heartbeat("a", 100, 0, &[]), at(10));
    settled.receive(hello("b", 6), at(20));
    settled.receive(delta("b", 6, 1, &[1], &[]), at(30));
    let mut now = at(0);
    while now < at(1_500) {
        now += at(50);
        settled.poll(now);
    }
    assert_eq!(holders(&settled, 1), [node("b")]);
    settled.on_stranger(dialect(), &hello("b", 7), now);
    settled.on_stranger(dialect(), &heartbeat("b", 7, 0, &[]), now);
    let effects = settled.poll(now);
    assert_eq!(membership(&effects), ["lost b superseded"], "the process that was believed is gone");
    let strangers =
        effects.iter().filter(|effect| matches!(effect, Effect::Stranger { is_refusal: false, .. }));
    assert_eq!(strangers.count(), 1, "each is told of once, and this node stays");
    assert!(holders(&settled, 1).is_empty());
}
