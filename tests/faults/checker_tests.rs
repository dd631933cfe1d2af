//! The checker against made-up histories: it must see what is wrong, and only that.
// The fault suite has a `main` of its own; these run with the other tests.
#![allow(dead_code, unused_imports)]

use super::{check, Verdict};
use crate::record::{Action, History, Key, Receipt, Sent, Told};

fn key(number: u32) -> Key {
    Key { publisher: 1, number }
}

/// One user with one device, and messages 0, 1, … that were told as given.
fn history(told: &[Told]) -> History {
    let mut history = History { devices: vec![7], ..History::default() };
    for (number, told) in told.iter().enumerate() {
        let sent = Sent { user: 7, at_us: 0, attempts: 1, told: *told, told_us: 0 };
        history.sent.insert(key(number as u32), sent);
    }
    history
}

fn receive(history: &mut History, number: u32, session: u32, redelivered: bool) {
    let at_us = 1000 * history.receipts.len() as u64;
    let key = Some(key(number));
    history.receipts.push(Receipt { at_us, key, device: 0, session, redelivered });
}

fn judged(history: &History) -> Verdict {
    check(history, |_| true)
}

#[test]
fn a_clean_run_holds() {
    let mut history = history(&[Told::Delivered, Told::Stored, Told::Confirmed]);
    (0..3).for_each(|number| receive(&mut history, number, 0, false));
    let verdict = judged(&history);
    assert!(verdict.holds(true), "{verdict:?}");
    assert_eq!(verdict.sent, 3);
}

#[test]
fn accepted_and_not_seen_is_lost_and_untrue_if_more_was_said() {
    let verdict = judged(&history(&[Told::Delivered, Told::Stored, Told::Confirmed]));
    assert_eq!((verdict.lost, verdict.untrue), (3, 2));
    assert_eq!(verdict.offences.iter().filter(|offence| offence.kind == "lost").count(), 3);
}

#[test]
fn senders_must_be_told_the_truth() {
    let mut history = history(&[Told::Rejected, Told::Rejected, Told::Nothing]);
    receive(&mut history, 0, 0, false);
    assert_eq!(judged(&history).untrue, 2, "one rejected but seen, one told nothing");
    history.sent.get_mut(&key(0)).unwrap().attempts = 2;
    assert_eq!(judged(&history).untrue, 1, "the first of two tries may have arrived");
}

#[test]
fn a_repetition_counts_unless_it_says_so_or_is_the_publishers() {
    let mut history = history(&[Told::Delivered]);
    receive(&mut history, 0, 0, false);
    receive(&mut history, 0, 0, true);
    assert_eq!((judged(&history).duplicated, judged(&history).repeated), (0, 1));
    receive(&mut history, 0, 1, false);
    assert_eq!(judged(&history).duplicated, 1);
    history.sent.get_mut(&key(0)).unwrap().attempts = 2;
    assert_eq!(judged(&history).duplicated, 0, "sent twice, seen in two sessions");
    receive(&mut history, 0, 1, false);
    assert_eq!(judged(&history).duplicated, 1, "twice in one session is the gateway's fault");
}

#[test]
fn strangers_and_others_messages_are_unexpected() {
    let mut history = history(&[Told::Delivered]);
    receive(&mut history, 0, 0, false);
    receive(&mut history, 9, 0, false);
    history.receipts.push(Receipt { key: None, ..history.receipts[0] });
    history.devices.push(8);
    history.receipts.push(Receipt { device: 1, ..history.receipts[0] });
    let verdict = judged(&history);
    assert_eq!((verdict.unexpected, verdict.lost), (3, 0));
    assert!(!verdict.holds(false));
}

#[test]
fn order_counts_only_without_redelivery() {
    let mut history = history(&[Told::Delivered; 4]);
    receive(&mut history, 2, 1, true);
    receive(&mut history, 1, 0, false);
    assert_eq!(judged(&history).reordered, 0, "2 says that it is out of order");
    receive(&mut history, 0, 0, true);
    receive(&mut history, 3, 0, false);
    assert_eq!(judged(&history).reordered, 0, "0 says that it was redelivered");
    history.receipts.remove(0);
    receive(&mut history, 2, 0, false);
    let verdict = judged(&history);
    assert_eq!(verdict.reordered, 1);
    assert!(verdict.holds(false) && !verdict.holds(true));
}

#[test]
fn recovery_is_the_time_to_each_devices_next_delivery() {
    let mut history = history(&[Told::Delivered; 3]);
    (0..3).for_each(|number| receive(&mut history, number, 0, false));
    let action = |at_us, heals| Action { at_us, what: String::new(), heals };
    history.actions = vec![action(0, false), action(500, true), action(1_001, true), action(9_000, true)];
    let verdict = judged(&history);
    assert_eq!(verdict.recovery_ms, [0, 0]);
    history.receipts[2].at_us = 41_500;
    assert_eq!(judged(&history).recovery(99), Some(40));
    assert_eq!(check(&history, |_| false).recovery(99), None);
}
