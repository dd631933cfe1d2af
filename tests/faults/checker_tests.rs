//! The checker against made-up histories: each column must see what is wrong, and only that.
// The fault suite has a `main` of its own; these run with the other tests.
#![allow(dead_code, unused_imports)]

use super::{check, Rules, Verdict};
use crate::record::{
    Action, Disturbance, Heals, History, Key, Kind, Letter, Life, Reason, Receipt, Seat, Sent, Told,
};

const SECOND: u64 = 1_000_000;

fn key(number: u32) -> Key {
    Key { publisher: 1, number }
}

/// User 7 with device 0, connected all the time; messages 0, 1, … are sent 10 ms apart from second 10 on and told as
/// given 5 ms later.
fn history(told: &[Told]) -> History {
    let mut history = History { devices: vec![7], ..History::default() };
    connect(&mut history, 0, 0, None);
    for (number, told) in told.iter().enumerate() {
        let at_us = 10 * SECOND + number as u64 * 10_000;
        let turn = number as u64 + 1;
        let sent = Sent {
            letter: Letter::to_user(7),
            at_us,
            first_turn: turn,
            last_turn: turn,
            attempts: 1,
            retries: 0,
            refusals: 0,
            refusal: None,
            settlements: u32::from(*told != Told::Nothing && *told != Told::Confirmed),
            told: *told,
            told_us: at_us + 5_000,
        };
        history.sent.insert(key(number as u32), sent);
    }
    history
}

fn connect(history: &mut History, device: u32, from_us: u64, to_us: Option<u64>) {
    let session = history.lives.iter().filter(|life| life.seat.device == device).count() as u32;
    let seat = Seat { device, session };
    history.lives.push(Life { seat, node: 0, name: String::new(), from_us, to_us });
}

/// The message arrives 2 ms after it was sent, or later if `late_us` says so.
fn receive_late(history: &mut History, number: u32, seat: (u32, u32), redelivered: bool, late_us: u64) {
    let sent_us = history.sent.get(&key(number)).map_or(0, |sent| sent.at_us);
    let (device, session) = seat;
    let receipt =
        Receipt { at_us: sent_us + 2_000 + late_us, key: Some(key(number)), device, session, redelivered };
    history.receipts.push(receipt);
}

fn receive(history: &mut History, number: u32, session: u32, redelivered: bool) {
    receive_late(history, number, (0, session), redelivered, 0);
}

fn change(history: &mut History, number: u32, change: impl FnOnce(&mut Sent)) {
    change(history.sent.get_mut(&key(number)).unwrap());
}

fn of_kind(history: &mut History, number: u32, kind: Kind) {
    change(history, number, |sent| sent.letter.kind = kind);
}

fn disturb(history: &mut History, from_us: u64, to_us: Option<u64>, nodes: u8) {
    history.disturbances.push(Disturbance { from_us, to_us, nodes });
}

fn judge(history: &History, ordered: bool) -> Verdict {
    check(history, &Rules { served: &|_| true, grace_us: 5 * SECOND, ordered })
}

fn judged(history: &History) -> Verdict {
    judge(history, false)
}

/// The columns that are not 0.
fn wrong(history: &History) -> Vec<(&'static str, usize)> {
    judged(history).columns().into_iter().filter(|(_, count)| *count > 0).collect()
}

const ONE: Told = Told::Delivered(1);

#[test]
fn a_clean_run_holds() {
    let mut history = history(&[ONE, Told::Stored, ONE]);
    (0..3).for_each(|number| receive(&mut history, number, 0, false));
    assert_eq!(wrong(&history), []);
    assert!(judge(&history, true).holds());
    assert_eq!(judged(&history).sent, 3);
}

#[test]
fn accepted_and_not_seen_is_lost_and_untrue_if_more_was_said() {
    let mut history = history(&[ONE, Told::Stored, Told::Confirmed]);
    change(&mut history, 2, |sent| sent.letter.asks = false);
    assert_eq!(wrong(&history), [("lost", 3), ("told wrong", 2)]);
}

#[test]
fn a_session_is_owed_what_it_was_there_for() {
    let mut history = history(&[ONE]);
    of_kind(&mut history, 0, Kind::Session);
    change(&mut history, 0, |sent| sent.letter.seat = Some(Seat { device: 0, session: 0 }));
    assert_eq!(judged(&history).lost, 1);
    history.lives[0].to_us = Some(10 * SECOND + 3_000);
    assert_eq!(wrong(&history), [], "the session ended meanwhile");
    receive(&mut history, 0, 1, false);
    assert_eq!(judged(&history).unexpected, 1, "another session of the device");
}

#[test]
fn a_message_with_a_time_to_live_is_owed_to_those_who_are_there_within_it() {
    let mut history = history(&[Told::Stored]);
    of_kind(&mut history, 0, Kind::Brief);
    change(&mut history, 0, |sent| sent.letter.ttl_ms = Some(3_000));
    assert_eq!(judged(&history).lost, 1);
    history.lives[0].from_us = 12 * SECOND;
    assert_eq!(judged(&history).lost, 0, "came back too late");
    history.lives[0].from_us = 11 * SECOND;
    receive_late(&mut history, 0, (0, 0), false, 2 * SECOND);
    assert_eq!(wrong(&history), []);
    history.receipts[0].at_us += 6 * SECOND;
    assert_eq!(wrong(&history), [("unexpected", 1)], "after its time to live");
}

#[test]
fn senders_must_be_told_the_truth() {
    let mut history = history(&[Told::Rejected(Reason::Other), Told::Nothing, Told::Delivered(2), ONE]);
    receive(&mut history, 0, 0, false);
    receive(&mut history, 2, 0, false);
    receive(&mut history, 3, 0, false);
    assert_eq!(judged(&history).untrue, 3, "rejected but seen, told nothing, seen by one of two");
    change(&mut history, 0, |sent| sent.attempts = 2);
    assert_eq!(judged(&history).untrue, 2, "the first of two tries may have arrived");
    change(&mut history, 3, |sent| sent.settlements = 2);
    assert_eq!(judged(&history).untrue, 3, "settled twice");
    change(&mut history, 3, |sent| (sent.settlements, sent.told) = (1, Told::Published));
    assert_eq!(judged(&history).untrue, 3, "published is no word for what must arrive");
    of_kind(&mut history, 3, Kind::Once);
    assert_eq!(judged(&history).untrue, 2);
    change(&mut history, 3, |sent| sent.told = Told::Stored);
    assert_eq!(judged(&history).untrue, 3, "at-most-once is never stored");
}

#[test]
fn a_backend_that_asked_gets_its_settlement() {
    let mut history = history(&[Told::Confirmed]);
    receive(&mut history, 0, 0, false);
    assert_eq!(wrong(&history), [("told wrong", 1)]);
    disturb(&mut history, 11 * SECOND, Some(12 * SECOND), 0);
    assert_eq!(wrong(&history), [], "its connection may have gone");
}

#[test]
fn refusals_need_a_reason() {
    let mut history = history(&[Told::Rejected(Reason::Other), Told::Rejected(Reason::Offline), ONE]);
    receive(&mut history, 2, 0, false);
    assert_eq!(wrong(&history), [("wrongly rejected", 2)]);
    of_kind(&mut history, 1, Kind::Once);
    assert_eq!(judged(&history).rejected, 2, "at-most-once, but the user is there");
    history.lives[0].to_us = Some(10 * SECOND + 11_000);
    assert_eq!(judged(&history).rejected, 1, "the user leaves");
    change(&mut history, 2, |sent| (sent.refusals, sent.attempts, sent.settlements) = (1, 2, 2));
    assert_eq!(judged(&history).rejected, 2, "asked to try again although nothing happened");
    disturb(&mut history, 9 * SECOND, Some(11 * SECOND), 0);
    assert_eq!(judged(&history).rejected, 1, "a fault was about; for good is still wrong");
}

#[test]
fn offline_is_excused_only_when_the_session_ended_in_a_fault() {
    let mut history = history(&[Told::Rejected(Reason::Offline)]);
    of_kind(&mut history, 0, Kind::Session);
    change(&mut history, 0, |sent| sent.letter.seat = Some(Seat { device: 0, session: 0 }));
    receive(&mut history, 0, 0, false);
    disturb(&mut history, 9 * SECOND, Some(11 * SECOND), 0);
    assert_eq!(wrong(&history), [("told wrong", 1)], "the session is still there");
    history.lives[0].to_us = Some(10 * SECOND + 4_000);
    assert_eq!(wrong(&history), [], "the session ended with its node");
    history.disturbances.clear();
    assert_eq!(wrong(&history), [("told wrong", 1)], "no fault was about");
}

#[test]
fn expired_is_no_reason_before_the_time() {
    let mut history = history(&[Told::Rejected(Reason::Expired)]);
    of_kind(&mut history, 0, Kind::Brief);
    change(&mut history, 0, |sent| sent.letter.ttl_ms = Some(3_000));
    assert_eq!(wrong(&history), [("wrongly rejected", 1)]);
    change(&mut history, 0, |sent| sent.told_us += 3 * SECOND);
    assert_eq!(wrong(&history), []);
}

#[test]
fn a_repetition_counts_unless_it_says_so_or_is_the_publishers() {
    let mut history = history(&[ONE]);
    disturb(&mut history, 0, None, 0);
    receive(&mut history, 0, 0, false);
    receive(&mut history, 0, 0, true);
    assert_eq!((judged(&history).duplicated, judged(&history).repeated), (0, 1));
    receive(&mut history, 0, 1, false);
    assert_eq!(judged(&history).duplicated, 1);
    change(&mut history, 0, |sent| sent.attempts = 2);
    assert_eq!(judged(&history).duplicated, 0, "sent twice, seen in two sessions");
    receive(&mut history, 0, 1, false);
    assert_eq!(judged(&history).duplicated, 1, "twice in one session is the gateway's fault");
}

#[test]
fn strangers_and_others_messages_are_unexpected() {
    let mut history = history(&[ONE]);
    receive(&mut history, 0, 0, false);
    receive(&mut history, 9, 0, false);
    history.receipts.push(Receipt { key: None, ..history.receipts[0] });
    history.devices.push(8);
    history.receipts.push(Receipt { device: 1, ..history.receipts[0] });
    assert_eq!(wrong(&history), [("unexpected", 3)]);
}

#[test]
fn a_mark_needs_a_reason() {
    let mut history = history(&[ONE]);
    receive(&mut history, 0, 0, true);
    assert_eq!(wrong(&history), [("marked", 1)]);
    receive(&mut history, 0, 0, true);
    assert_eq!(judged(&history).marked, 2, "so does a repeat that is marked");
    history.receipts.pop();
    let fault = |from_s: u64, to_s: u64| Disturbance {
        from_us: from_s * SECOND,
        to_us: Some(to_s * SECOND),
        nodes: 0,
    };
    history.disturbances = vec![fault(1, 2)];
    assert_eq!(judged(&history).marked, 1, "over for long");
    history.disturbances = vec![fault(1, 6)];
    assert_eq!(judged(&history).marked, 0, "just over");
    history.disturbances = vec![fault(12, 13)];
    assert_eq!(judged(&history).marked, 1, "not yet");
    change(&mut history, 0, |sent| (sent.attempts, sent.settlements) = (2, 2));
    assert_eq!(judged(&history).marked, 1, "published twice, with no failure between");
    change(&mut history, 0, |sent| sent.retries = 1);
    assert_eq!(judged(&history).marked, 0, "the publisher had no answer");
    change(&mut history, 0, |sent| sent.retries = 0);
    connect(&mut history, 0, SECOND, Some(10 * SECOND + 1_000));
    assert_eq!(judged(&history).marked, 0, "the user lost a socket meanwhile");
    history.lives.pop();
    history.stuck.insert(7);
    assert_eq!(judged(&history).marked, 0, "the user takes nothing");
}

#[test]
fn order_is_that_of_the_hand_overs() {
    let mut history = history(&[ONE; 4]);
    disturb(&mut history, 0, None, 0);
    receive(&mut history, 2, 0, true);
    receive(&mut history, 1, 0, false);
    assert_eq!(judged(&history).reordered, 0, "2 says that it is out of order");
    receive(&mut history, 0, 0, true);
    receive(&mut history, 3, 0, false);
    assert_eq!(judged(&history).reordered, 0, "0 says that it was redelivered");
    assert_eq!(judge(&history, true).reordered, 2, "where nothing forces a redelivery that is no excuse");
    history.receipts.remove(0);
    receive(&mut history, 2, 0, false);
    assert_eq!(wrong(&history), [("out of order", 1)]);
    change(&mut history, 2, |sent| sent.attempts = 2);
    assert_eq!(judged(&history).reordered, 1, "handed over twice, but both times before 3");
    change(&mut history, 2, |sent| sent.last_turn = 9);
    assert_eq!(judged(&history).reordered, 0, "handed over again after 3");
}

#[test]
fn order_holds_across_sockets_and_guarantees_but_not_targets() {
    let mut history = history(&[ONE, Told::Published, ONE]);
    of_kind(&mut history, 1, Kind::Once);
    receive(&mut history, 1, 0, false);
    receive(&mut history, 0, 1, false);
    receive(&mut history, 2, 1, false);
    assert_eq!(wrong(&history), [("out of order", 1)]);
    of_kind(&mut history, 1, Kind::Broadcast);
    assert_eq!(wrong(&history), []);
}

#[test]
fn each_device_that_is_there_gets_it() {
    let mut history = history(&[Told::Delivered(1), Told::Published, Told::Published]);
    history.devices.push(7);
    connect(&mut history, 1, 0, None);
    of_kind(&mut history, 1, Kind::Broadcast);
    of_kind(&mut history, 2, Kind::Once);
    (0..3).for_each(|number| receive(&mut history, number, 0, false));
    assert_eq!(wrong(&history), [("missed", 3)]);
    history.receipts.truncate(2);
    assert_eq!(judged(&history).missed, 4, "nobody got the one that is at-most-once");
    history.lives[1].from_us = 10 * SECOND - 500_000;
    assert_eq!(judged(&history).missed, 1, "just connected");
    history.lives[1].from_us = 0;
    disturb(&mut history, 0, Some(5 * SECOND), 1);
    assert_eq!(judged(&history).missed, 0, "on a node that was cut off");
    history.disturbances[0].nodes = 2;
    assert_eq!(judged(&history).missed, 4, "on another node");
}

#[test]
fn recovery_is_the_time_to_each_devices_next_delivery() {
    let mut history = history(&[ONE; 3]);
    (0..3).for_each(|number| receive(&mut history, number, 0, false));
    let action = |at_us, heals| Action { at_us, what: String::new(), heals };
    let start = 10 * SECOND;
    history.actions = vec![
        action(0, Heals::No),
        action(start + 1_000, Heals::Served),
        action(start + 12_001, Heals::Everybody),
        action(start + SECOND, Heals::Served),
    ];
    assert_eq!(judged(&history).recovery_ms, [1, 9]);
    assert!(judged(&history).holds(), "nothing was sent after the last one");
    history.receipts[2].at_us = start + 52_500;
    assert_eq!(judged(&history).recovery(99), Some(40));
    let nobody = Rules { served: &|_| false, grace_us: 0, ordered: false };
    assert_eq!(check(&history, &nobody).recovery_ms, [40], "everybody's, whoever is served");
}

#[test]
fn a_device_that_gets_nothing_any_more_is_never_back() {
    let mut history = history(&[ONE, Told::Stored]);
    history.devices.push(7);
    receive(&mut history, 0, 0, false);
    receive(&mut history, 1, 0, false);
    receive_late(&mut history, 0, (1, 0), false, 0);
    let at_us = 10 * SECOND + 9_000;
    history.actions.push(Action { at_us, what: String::new(), heals: Heals::Served });
    assert_eq!(wrong(&history), [("never back", 1)]);
}

#[test]
fn the_others_are_compared_with_calm() {
    let mut history = history(&[ONE; 200]);
    (0..200).for_each(|number| {
        receive_late(&mut history, number, (0, 0), false, u64::from(number / 100) * 98_000)
    });
    let action = |at_us, heals| Action { at_us, what: String::new(), heals };
    history.actions = vec![action(11 * SECOND, Heals::Served), action(60 * SECOND, Heals::Everybody)];
    let verdict = judged(&history);
    assert_eq!((verdict.calm_ms, verdict.others_ms), (Some(2.0), Some(100.0)));
    history.sent.get_mut(&key(150)).unwrap().attempts = 2;
    assert_eq!(judged(&history).others_ms, Some(100.0));
}
