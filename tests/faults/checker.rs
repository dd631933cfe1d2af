//! Judges a history: lost, duplicated, unexpected, reordered, untrue, and how long recovery took. Pure.

use std::collections::{HashMap, HashSet};

use crate::record::{History, Key, Receipt, Sent, Told};

/// How many offending messages are kept for the report.
const SHOWN_MAX: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    pub kind: &'static str,
    pub key: Option<Key>,
    pub what: String,
}

#[derive(Debug, Default, Clone)]
pub struct Verdict {
    pub sent: usize,
    /// Accepted, and seen by no device of its user.
    pub lost: usize,
    /// Shown again to a device without a word that it is a repetition.
    pub duplicated: usize,
    /// Repetitions that said so, or that the publisher itself caused: a client library hides them.
    pub repeated: usize,
    /// Never sent, or for another user.
    pub unexpected: usize,
    /// Newer before older, among messages that were handed over once and not marked as repeated or out of order.
    pub reordered: usize,
    /// Senders that were told something else than what happened, or nothing at all.
    pub untrue: usize,
    /// From a healing action to the next delivery, in milliseconds, over all devices and actions; sorted.
    pub recovery_ms: Vec<u64>,
    pub offences: Vec<Offence>,
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

    /// Whether everything that must hold did. Order is only promised while nothing is redelivered.
    pub fn holds(&self, ordered: bool) -> bool {
        let broken = self.lost + self.duplicated + self.unexpected + self.untrue;
        broken == 0 && (!ordered || self.reordered == 0)
    }
}

/// Judges `history`; recovery counts the devices that `served` names as connected through the fault.
pub fn check(history: &History, served: impl Fn(u32) -> bool) -> Verdict {
    let mut verdict = Verdict { sent: history.sent.len(), ..Verdict::default() };
    let seen = check_receipts(history, &mut verdict);
    let mut keys: Vec<_> = history.sent.keys().copied().collect();
    keys.sort_unstable();
    for key in keys {
        check_sent(key, &history.sent[&key], seen.contains(&key), &mut verdict);
    }
    check_order(history, &mut verdict);
    verdict.recovery_ms = recovery(history, served);
    verdict
}

/// Returns what was seen by the right users.
fn check_receipts(history: &History, verdict: &mut Verdict) -> HashSet<Key> {
    let mut seen = HashSet::new();
    let mut first: HashMap<(u32, Key), u32> = HashMap::new();
    for receipt in &history.receipts {
        let user = history.devices.get(receipt.device as usize).copied();
        let Some((key, sent)) = receipt.key.and_then(|key| Some((key, history.sent.get(&key)?))) else {
            verdict.unexpected += 1;
            verdict.offend("unexpected", receipt.key, format!("nobody sent {receipt:?}"));
            continue;
        };
        if user != Some(sent.user) {
            verdict.unexpected += 1;
            verdict.offend("unexpected", Some(key), format!("for user {}: {receipt:?}", sent.user));
            continue;
        }
        seen.insert(key);
        let Some(before) = first.insert((receipt.device, key), receipt.session) else { continue };
        // A repeat of the publisher's own making can be recognised only where the first one was seen: not by
        // the node that the client has moved to. The client library has the id.
        let own_making = sent.attempts > 1 && before != receipt.session;
        if receipt.redelivered || own_making {
            verdict.repeated += 1;
        } else {
            verdict.duplicated += 1;
            verdict.offend("duplicated", Some(key), format!("seen before in session {before}: {receipt:?}"));
        }
    }
    seen
}

fn check_sent(key: Key, sent: &Sent, seen: bool, verdict: &mut Verdict) {
    if sent.told.accepted() && !seen {
        verdict.lost += 1;
        verdict.offend("lost", Some(key), format!("accepted, never seen: {sent:?}"));
    }
    let untrue = match sent.told {
        Told::Delivered | Told::Stored => !seen,
        // An earlier try may have arrived although its sender could not hear of it.
        Told::Rejected => seen && sent.attempts == 1,
        Told::Nothing => true,
        Told::Confirmed => false,
    };
    if untrue {
        verdict.untrue += 1;
        verdict.offend("untrue", Some(key), format!("seen: {seen}, but {sent:?}"));
    }
}

fn check_order(history: &History, verdict: &mut Verdict) {
    let mut newest: HashMap<(u32, u32), (u32, HashSet<u32>)> = HashMap::new();
    for receipt in &history.receipts {
        let Some(key) = receipt.key else { continue };
        let Some(sent) = history.sent.get(&key) else { continue };
        let (newest, known) = newest.entry((receipt.device, key.publisher)).or_default();
        let again = !known.insert(key.number);
        // What comes too early or too late is marked: one of the two, that is.
        if again || receipt.redelivered || sent.attempts > 1 {
            continue;
        }
        if key.number < *newest {
            verdict.reordered += 1;
            verdict.offend("reordered", Some(key), format!("after number {newest}: {receipt:?}"));
        }
        *newest = key.number.max(*newest);
    }
}

fn recovery(history: &History, served: impl Fn(u32) -> bool) -> Vec<u64> {
    let mut by_device: HashMap<u32, Vec<&Receipt>> = HashMap::new();
    for receipt in history.receipts.iter().filter(|receipt| served(receipt.device)) {
        by_device.entry(receipt.device).or_default().push(receipt);
    }
    let mut gaps = Vec::new();
    for action in history.actions.iter().filter(|action| action.heals) {
        for receipts in by_device.values() {
            let next = receipts.partition_point(|receipt| receipt.at_us < action.at_us);
            gaps.extend(receipts.get(next).map(|next| (next.at_us - action.at_us) / 1000));
        }
    }
    gaps.sort_unstable();
    gaps
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
