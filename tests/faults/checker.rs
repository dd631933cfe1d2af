//! Judges a history: each column of the fault table is counted here, and must be 0. Pure.

use std::collections::HashSet;

use crate::record::{History, Key, Kind, Reason, Receipt, Seat, Sent, Told};

#[path = "checker_facts.rs"]
mod facts;
#[path = "checker_order.rs"]
mod order;
#[path = "checker_times.rs"]
mod times;

use facts::{Facts, LAG_US};

/// How many offending messages are kept for the report, of each kind.
const SHOWN_MAX: usize = 6;
/// After its time to live a message may still be on its way to the socket, or in it, for so long.
const LATE_US: u64 = 4_000_000;
/// How long after its confirm a settlement may come.
const SETTLED_US: u64 = 30_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    pub kind: &'static str,
    pub key: Option<Key>,
    pub what: String,
}

#[derive(Debug, Default, Clone)]
pub struct Verdict {
    pub sent: usize,
    /// Accepted, owed to somebody who was there or came back, and seen by no device of its user.
    pub lost: usize,
    /// Refused for good without a reason, or with `retry` while nothing was wrong.
    pub rejected: usize,
    /// Shown again to a device without a word that it is a repetition.
    pub duplicated: usize,
    /// Repetitions that said so, or that the publisher itself caused: a client library hides them.
    pub repeated: usize,
    /// Never sent, for another user or session, or shown after its time to live.
    pub unexpected: usize,
    /// Newer before older, in the order in which the publisher handed them over.
    pub reordered: usize,
    /// Marked as redelivered although nothing happened that could be the reason.
    pub marked: usize,
    /// A device that was connected all the time and did not get what others got, or what only those who are
    /// connected get.
    pub missed: usize,
    /// Senders that were told something else than what happened, nothing at all, or something too often.
    pub untrue: usize,
    /// Devices without a later receipt after the end of a fault, although there were messages for them.
    pub never: usize,
    /// From a healing action to the next delivery, in milliseconds, over all devices and actions; sorted.
    pub recovery_ms: Vec<u64>,
    /// From the publish to the receipt, p99 in milliseconds over the devices that do not misbehave: before the
    /// first fault, and from then on.
    pub calm_ms: Option<f64>,
    pub others_ms: Option<f64>,
    pub offences: Vec<Offence>,
}

/// What a run is measured by.
pub struct Rules<'a> {
    /// The devices that are meant to be connected all the time.
    pub served: &'a dyn Fn(u32) -> bool,
    /// So long after the end of a fault its traces are excused: repeats that say so, and devices that missed
    /// something on a node that was cut off.
    pub grace_us: u64,
    /// Nothing forces a redelivery: what is marked must be in order as well.
    pub ordered: bool,
}

impl Verdict {
    fn offend(&mut self, kind: &'static str, key: Option<Key>, what: String) {
        if self.offences.iter().filter(|offence| offence.kind == kind).count() < SHOWN_MAX {
            self.offences.push(Offence { kind, key, what });
        }
    }

    /// The `percent` percentile of the recovery times.
    pub fn recovery(&self, percent: usize) -> Option<u64> {
        let last = self.recovery_ms.len().checked_sub(1)?;
        self.recovery_ms.get((last * percent).div_ceil(100)).copied()
    }

    /// Every column that must be 0, as it is called.
    pub fn columns(&self) -> [(&'static str, usize); 9] {
        [
            ("lost", self.lost),
            ("wrongly rejected", self.rejected),
            ("unmarked repeats", self.duplicated),
            ("unexpected", self.unexpected),
            ("told wrong", self.untrue),
            ("out of order", self.reordered),
            ("marked", self.marked),
            ("missed", self.missed),
            ("never back", self.never),
        ]
    }

    pub fn holds(&self) -> bool {
        self.columns().iter().all(|(_, count)| *count == 0)
    }
}

/// Judges `history` by `rules`.
pub fn check(history: &History, rules: &Rules) -> Verdict {
    let mut verdict = Verdict { sent: history.sent.len(), ..Verdict::default() };
    let facts = Facts::new(history, rules.grace_us);
    check_receipts(&facts, &mut verdict);
    let mut keys: Vec<_> = history.sent.keys().copied().collect();
    keys.sort_unstable();
    for key in keys {
        let sent = &history.sent[&key];
        check_lost(key, sent, &facts, &mut verdict);
        check_rejected(key, sent, &facts, &mut verdict);
        check_told(key, sent, &facts, &mut verdict);
        check_missed(key, sent, &facts, &mut verdict);
    }
    order::check(history, rules.ordered, &mut verdict);
    times::check(history, rules, &mut verdict);
    verdict
}

fn check_receipts(facts: &Facts, verdict: &mut Verdict) {
    let mut first = std::collections::HashMap::new();
    for receipt in &facts.history.receipts {
        let Some((key, sent)) = receipt.key.and_then(|key| Some((key, facts.history.sent.get(&key)?))) else {
            verdict.unexpected += 1;
            verdict.offend("unexpected", receipt.key, format!("nobody sent {receipt:?}"));
            continue;
        };
        if let Some(why) = misdirected(facts, sent, receipt) {
            verdict.unexpected += 1;
            verdict.offend("unexpected", Some(key), format!("{why}: {receipt:?}"));
            continue;
        }
        if receipt.redelivered && !facts.may_repeat(sent, receipt) {
            verdict.marked += 1;
            verdict.offend("marked", Some(key), format!("nothing happened: {receipt:?}, {sent:?}"));
        }
        let Some(before) = first.insert((receipt.device, key), receipt.session) else { continue };
        // A repeat of the publisher's own making can be recognised only where the first one was seen: not by
        // the node that the client has moved to. Nor does that node know which broadcasts the client has seen.
        let elsewhere = before != receipt.session;
        let own_making = elsewhere && (sent.attempts > 1 || sent.letter.kind == Kind::Broadcast);
        if receipt.redelivered || own_making {
            verdict.repeated += 1;
        } else {
            verdict.duplicated += 1;
            verdict.offend("duplicated", Some(key), format!("seen before in session {before}: {receipt:?}"));
        }
    }
}

/// Why this device should not have got it.
fn misdirected(facts: &Facts, sent: &Sent, receipt: &Receipt) -> Option<&'static str> {
    let letter = &sent.letter;
    let right = match letter.kind {
        Kind::Broadcast => true,
        Kind::Session => letter.seat == Some(receipt.seat()),
        Kind::User | Kind::Once | Kind::Brief => {
            facts.history.devices.get(receipt.device as usize) == Some(&letter.user)
        }
    };
    let ttl_us = letter.ttl_ms.filter(|_| sent.attempts == 1).map(|ttl| ttl * 1000);
    if !right {
        Some("it was for somebody else")
    } else if ttl_us.is_some_and(|ttl| receipt.at_us > sent.at_us + ttl + LATE_US) {
        Some("its time to live was over")
    } else {
        None
    }
}

fn check_lost(key: Key, sent: &Sent, facts: &Facts, verdict: &mut Verdict) {
    if sent.told.accepted() && facts.is_owed(sent) && !facts.is_seen(key) {
        verdict.lost += 1;
        verdict.offend("lost", Some(key), format!("accepted, never seen: {sent:?}"));
    }
}

fn check_rejected(key: Key, sent: &Sent, facts: &Facts, verdict: &mut Verdict) {
    let stuck = facts.history.stuck.contains(&sent.letter.user);
    let calm = !facts.disturbed(sent.at_us.saturating_sub(LAG_US), sent.told_us) && !stuck;
    let wrong = match sent.told {
        Told::Rejected(Reason::Expired) => {
            let ttl_us = sent.letter.ttl_ms.map_or(u64::MAX, |ttl| ttl * 1000);
            sent.told_us + 100_000 < sent.at_us.saturating_add(ttl_us)
        }
        Told::Rejected(Reason::Offline) => match sent.letter.kind {
            Kind::Once => calm && facts.connected(sent),
            Kind::Session => calm && facts.session_lasts(sent),
            Kind::User | Kind::Brief | Kind::Broadcast => true,
        },
        Told::Rejected(Reason::Other) => true,
        _ => false,
    };
    if wrong || sent.refusals > 0 && calm {
        verdict.rejected += 1;
        verdict.offend("rejected", Some(key), format!("without a reason: {sent:?}"));
    }
}

fn check_told(key: Key, sent: &Sent, facts: &Facts, verdict: &mut Verdict) {
    let (kind, seen) = (sent.letter.kind, facts.is_seen(key));
    let owed = facts.is_owed(sent);
    let untrue = match sent.told {
        Told::Delivered(sessions) => {
            !kind.at_least_once() || owed && (!seen || sessions as usize > facts.seats(key).len())
        }
        Told::Stored => !matches!(kind, Kind::User | Kind::Brief) || owed && !seen,
        Told::Published => kind.at_least_once(),
        // The node wrote the message to the session, and was killed before it acknowledged the message to the broker.
        // The broker redelivers it to another node, which finds that the session has ended.
        Told::Rejected(Reason::Offline)
            if facts.disturbed(sent.at_us, sent.told_us)
                && (kind == Kind::Session && !facts.session_lasts(sent)
                    || kind == Kind::Once && !facts.connected(sent)) =>
        {
            false
        }
        // An earlier attempt may have arrived although its sender got no answer.
        Told::Rejected(_) => seen && sent.attempts == 1,
        Told::Nothing => true,
        Told::Confirmed => sent.letter.asks && !facts.disturbed(sent.at_us, sent.told_us + SETTLED_US),
    };
    let too_often = sent.settlements > sent.attempts && !facts.disturbed(sent.at_us, sent.told_us);
    if untrue || too_often {
        verdict.untrue += 1;
        verdict.offend("untrue", Some(key), format!("seen: {seen}, but {sent:?}"));
    }
}

/// Devices that were there from before the message until after its settlement.
fn check_missed(key: Key, sent: &Sent, facts: &Facts, verdict: &mut Verdict) {
    let for_all = matches!(sent.letter.kind, Kind::Once | Kind::Broadcast);
    let settled = matches!(sent.told, Told::Delivered(_) | Told::Stored | Told::Published);
    // Seen by nobody is another column.
    let counts = if for_all { sent.attempts == 1 } else { facts.is_seen(key) };
    if !settled || !counts || sent.letter.kind == Kind::Session || sent.letter.ttl_ms.is_some() {
        return;
    }
    let seats = facts.seats(key);
    let seen: HashSet<u32> = seats.iter().map(|seat: &Seat| seat.device).collect();
    for device in facts.present(sent) {
        if !seen.contains(&device) {
            verdict.missed += 1;
            verdict.offend("missed", Some(key), format!("device {device} was connected: {sent:?}"));
        }
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
