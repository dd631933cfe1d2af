//! Newer before older: from one publisher to one target, at each device. Pure.

use std::collections::{HashMap, HashSet};

use super::Verdict;
use crate::record::{History, Key, Kind, Receipt, Sent};

/// The messages of one publisher to one target, as one device sees them.
#[derive(PartialEq, Eq, Hash)]
struct Line {
    device: u32,
    publisher: u32,
    target: Target,
}

#[derive(PartialEq, Eq, Hash)]
enum Target {
    User,
    Session(u32),
    Everybody,
}

impl Line {
    fn of(receipt: &Receipt, key: Key, sent: &Sent) -> Self {
        let target = match sent.letter.kind {
            Kind::User | Kind::Once | Kind::Brief => Target::User,
            Kind::Session => Target::Session(receipt.session),
            Kind::Broadcast => Target::Everybody,
        };
        Self { device: receipt.device, publisher: key.publisher, target }
    }
}

#[derive(Default)]
struct Seen {
    known: HashSet<u32>,
    /// The newest that counted: when it was handed over first, and its number.
    newest: Option<(u64, u32)>,
}

/// A publisher that hands a message over again makes a new place for it in the order, so the last hand-over of
/// the older one is compared with the first of the newer one. `marked`: a mark is no excuse.
pub fn check(history: &History, marked: bool, verdict: &mut Verdict) {
    let mut lines: HashMap<Line, Seen> = HashMap::new();
    for receipt in &history.receipts {
        let Some(key) = receipt.key else { continue };
        let Some(sent) = history.sent.get(&key) else { continue };
        let seen = lines.entry(Line::of(receipt, key, sent)).or_default();
        let again = !seen.known.insert(key.number);
        // What comes too early or too late is marked: one of the two, that is.
        if again || receipt.redelivered && !marked {
            continue;
        }
        if let Some((_, number)) = seen.newest.filter(|(turn, _)| sent.last_turn < *turn) {
            verdict.reordered += 1;
            verdict.offend("reordered", Some(key), format!("after number {number}: {receipt:?}"));
        }
        seen.newest = seen.newest.max(Some((sent.first_turn, key.number)));
    }
}
