//! The path as a whole, on two simulated nodes with a box between them: in any order of events nothing is lost, nothing
//! newer is shown before something older without a mark, and everything is settled by its deadline.

mod sim;

use proptest::prelude::*;

use super::*;
use sim::Sim;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Users come and go, read slowly or not, and no process dies: nothing is lost, shown twice or out of order.
    #[test]
    fn nothing_is_lost_repeated_or_reordered(has_home: bool, steps in prop::collection::vec(0u8..37, 1..400)) {
        let mut sim = Sim::new(has_home);
        for step in steps {
            sim.step(step);
        }
        sim.settle_down();
        for (n, fates) in sim.fates.lock().unwrap().iter() {
            prop_assert_eq!(fates.len(), 1, "message {} is settled {:?}", n, fates);
            let told = &fates[0].0;
            let promised = matches!(told, Settlement::Delivered { .. } | Settlement::Stored);
            let was_shown = sim.shown.iter().flatten().any(|(shown, _)| shown == n);
            prop_assert!(was_shown || !promised, "message {} was {:?} and never shown", n, told);
        }
        prop_assert!(sim.stored.is_empty(), "{} mails are left", sim.stored.len());
        for session in &sim.shown {
            let unmarked: Vec<u64> = session.iter().filter(|(_, marked)| !marked).map(|(n, _)| *n).collect();
            prop_assert!(unmarked.is_sorted_by(|a, b| a < b), "{:?}", session);
        }
        let all: Vec<u64> = sim.shown.iter().flatten().filter(|(_, marked)| !marked).map(|(n, _)| *n).collect();
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), all.len(), "shown twice without a mark: {:?}", sim.shown);
    }

    /// Whatever gets stuck, a sender is told in time.
    #[test]
    fn everything_is_settled_by_its_deadline(has_home: bool, steps in prop::collection::vec(0u8..37, 1..200)) {
        let mut sim = Sim::new(has_home);
        for step in steps {
            sim.step(step);
        }
        // Nothing moves any more but the clock.
        for _ in 0..200 {
            sim.pass_time(50);
        }
        for (n, fates) in sim.fates.lock().unwrap().iter() {
            prop_assert_eq!(fates.len(), 1, "message {} is settled {:?}", n, fates);
        }
        prop_assert_eq!(sim.a.1.pending(), 0);
    }

    #[test]
    fn a_lost_link_settles_everything_at_once(has_home: bool, steps in prop::collection::vec(0u8..27, 1..200)) {
        let mut sim = Sim::new(has_home);
        for step in steps {
            sim.step(step);
        }
        sim.at_a(Event::LinkLost);
        prop_assert_eq!(sim.a.1.pending(), 0);
        prop_assert!(sim.fates.lock().unwrap().values().all(|fates| fates.len() == 1));
    }
}

#[test]
fn a_user_who_takes_nothing_costs_an_origin_little_time() {
    let mut sim = Sim::new(false);
    sim.connect();
    sim.gossip();
    for _ in 0..300 {
        sim.accept();
    }
    for _ in 0..20 {
        while sim.is_under_way() {
            sim.pass_home();
            sim.pass_lane();
            sim.pass_receipt();
            sim.confirm_deposit();
        }
        sim.pass_time(20);
    }
    let told = sim.fates.lock().unwrap().values().filter(|fates| !fates.is_empty()).count();
    assert!(told > 280, "only {told} of 300 are settled after 400 ms");
}

/// What a user had not taken when it moved comes back, and goes to where the user is now before what is newer.
#[test]
fn a_user_who_moves_gets_everything_in_order() {
    let mut sim = Sim::new(false);
    sim.move_to("b");
    sim.accept();
    sim.move_to("c");
    sim.accept();
    let to = |node: &str| [NodeId::new(node).unwrap()].into_iter().collect::<Nodes>();
    assert_eq!(sim.sent, [(1, to("b"))], "the second waits for what becomes of the first");
    sim.answer(1, "b", Receipt::NotTaken);
    assert_eq!(sim.sent, [(1, to("b")), (1, to("c")), (2, to("c"))]);
    // A session that has a message and takes its time keeps nothing from another device.
    sim.answer(1, "c", Receipt::Held);
    sim.answer(2, "c", Receipt::Held);
    sim.move_to("d");
    sim.accept();
    assert_eq!(sim.sent.last(), Some(&(3, to("d"))));
}
