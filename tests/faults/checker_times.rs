//! How long things took: recovery after faults, and what the others' messages took meanwhile. Pure.

use std::collections::{HashMap, HashSet};

use super::{Rules, Verdict};
use crate::record::{Action, Heals, History, Kind, Receipt};

/// Fewer measurements are no percentile.
const SAMPLES_MIN: usize = 50;

pub fn check(history: &History, rules: &Rules, verdict: &mut Verdict) {
    let mut by_device: HashMap<u32, Vec<&Receipt>> = HashMap::new();
    for receipt in &history.receipts {
        by_device.entry(receipt.device).or_default().push(receipt);
    }
    for action in history.actions.iter().filter(|action| action.heals != Heals::No) {
        recovery(history, action, rules, &by_device, verdict);
    }
    verdict.recovery_ms.sort_unstable();
    others(history, rules, verdict);
}

/// Users who were sent something that must arrive, after the action.
fn addressed(history: &History, action: &Action) -> HashSet<u32> {
    let after = history.sent.values().filter(|sent| sent.at_us >= action.at_us && sent.told.accepted());
    after.filter(|sent| sent.letter.kind == Kind::User).map(|sent| sent.letter.user).collect()
}

fn recovery(
    history: &History,
    action: &Action,
    rules: &Rules,
    receipts: &HashMap<u32, Vec<&Receipt>>,
    verdict: &mut Verdict,
) {
    let addressed = addressed(history, action);
    for (device, user) in history.devices.iter().enumerate() {
        let device = device as u32;
        if action.heals == Heals::Served && !(rules.served)(device) {
            continue;
        }
        let receipts = receipts.get(&device).map_or(&[][..], Vec::as_slice);
        let next = receipts.partition_point(|receipt| receipt.at_us < action.at_us);
        match receipts.get(next) {
            Some(next) => verdict.recovery_ms.push((next.at_us - action.at_us) / 1000),
            None if addressed.contains(user) => {
                verdict.never += 1;
                verdict.offend("never back", None, format!("device {device} after: {}", action.what));
            }
            None => {}
        }
    }
}

/// Only what was handed over once counts: how long a publisher waits before it tries again is its own affair.
fn others(history: &History, rules: &Rules, verdict: &mut Verdict) {
    let begin = history.disturbances.first().map(|one| one.from_us);
    let begin = begin.into_iter().chain(history.actions.first().map(|action| action.at_us)).min();
    let end = history.actions.iter().find(|action| action.heals == Heals::Everybody);
    let (Some(begin), Some(end)) = (begin, end.map(|action| action.at_us)) else { return };
    let (mut calm, mut others, mut known) = (vec![], vec![], HashSet::new());
    for receipt in history.receipts.iter().filter(|receipt| (rules.served)(receipt.device)) {
        let Some(key) = receipt.key.filter(|key| known.insert((receipt.device, *key))) else { continue };
        let Some(sent) = history.sent.get(&key) else { continue };
        if sent.letter.kind != Kind::User || sent.attempts > 1 || sent.at_us > end {
            continue;
        }
        let took_ms = receipt.at_us.saturating_sub(sent.at_us) as f64 / 1000.0;
        let times = if sent.at_us < begin { &mut calm } else { &mut others };
        times.push(took_ms);
    }
    (verdict.calm_ms, verdict.others_ms) = (p99(calm), p99(others));
}

fn p99(mut times: Vec<f64>) -> Option<f64> {
    times.sort_unstable_by(f64::total_cmp);
    let last = times.len().checked_sub(1).filter(|_| times.len() >= SAMPLES_MIN)?;
    times.get((last * 99).div_ceil(100)).copied()
}
