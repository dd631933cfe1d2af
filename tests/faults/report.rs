//! What a person reads: a line for each scenario, a timeline when one fails, and the table for the README.

use std::path::Path;

use crate::checker::Verdict;
use crate::nodes::NodeProcess;
use crate::record::History;

const LOG_LINES: usize = 25;

/// One row of the table; runs with several seeds are summed.
#[derive(Default, Clone)]
pub struct Row {
    pub name: &'static str,
    pub about: &'static str,
    pub seeds: Vec<u64>,
    pub sent: usize,
    pub lost: usize,
    pub duplicated: usize,
    pub unexpected: usize,
    pub untrue: usize,
    pub repeated: usize,
    /// The worst of the runs.
    pub recovery_ms: Option<u64>,
}

impl Row {
    pub fn add(&mut self, seed: u64, verdict: &Verdict) {
        self.seeds.push(seed);
        self.sent += verdict.sent;
        self.lost += verdict.lost;
        self.duplicated += verdict.duplicated;
        self.unexpected += verdict.unexpected;
        self.untrue += verdict.untrue;
        self.repeated += verdict.repeated;
        self.recovery_ms = self.recovery_ms.max(verdict.recovery(99));
    }
}

fn seconds(ms: Option<u64>) -> String {
    ms.map_or("–".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0))
}

pub fn line(verdict: &Verdict) -> String {
    format!(
        "{} sent, {} lost, {} duplicated, {} unexpected, {} untrue, {} reordered, {} repeated, recovery {}",
        verdict.sent,
        verdict.lost,
        verdict.duplicated,
        verdict.unexpected,
        verdict.untrue,
        verdict.reordered,
        verdict.repeated,
        seconds(verdict.recovery(99)),
    )
}

const HEAD: &str = "\
| fault | what is done | seeds | messages | lost | visible duplicates | unexpected | senders told wrong | recovery p99 |
|---|---|---:|---:|---:|---:|---:|---:|---:|
";

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seeds: Vec<_> = self.seeds.iter().map(u64::to_string).collect();
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.name,
            self.about,
            seeds.join(", "),
            self.sent,
            self.lost,
            self.duplicated,
            self.unexpected,
            self.untrue,
            seconds(self.recovery_ms)
        )
    }
}

const BEGIN: &str = "<!-- fault table: begin -->\n";
const END: &str = "<!-- fault table: end -->";

/// Puts the rows into the table between its marks, in the order of `names`. Rows of faults that were not run stay.
pub fn write_table(path: &Path, rows: &[Row], names: &[&str]) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let marked = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let (before, (old, after)) = marked.expect("the marks of the fault table");
    let mut table = String::from(HEAD);
    for name in names {
        let new = rows.iter().find(|row| row.name == *name).map(Row::to_string);
        let kept = || old.lines().find(|line| line.starts_with(&format!("| {name} |"))).map(str::to_owned);
        if let Some(row) = new.or_else(kept) {
            table.push_str(&row);
            table.push('\n');
        }
    }
    std::fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
}

/// What happened in which order: what was done, the first offences with their messages' lives, and the nodes' logs.
pub fn timeline(history: &History, verdict: &Verdict, nodes: &[NodeProcess]) -> Vec<String> {
    let mut events: Vec<(u64, String)> = vec![];
    for action in &history.actions {
        events.push((action.at_us, format!("** {}", action.what)));
    }
    let mut shown = std::collections::HashSet::new();
    for offence in &verdict.offences {
        let Some(key) = offence.key.filter(|key| shown.insert(*key)) else { continue };
        if let Some(sent) = history.sent.get(&key) {
            events.push((sent.at_us, format!("{} sent to user {}", key.id(), sent.user)));
            if sent.told_us > 0 {
                let told = format!("{} told {:?} after {} attempts", key.id(), sent.told, sent.attempts);
                events.push((sent.told_us, told));
            }
        }
        for receipt in history.receipts.iter().filter(|receipt| receipt.key == Some(key)) {
            let flag = if receipt.redelivered { ", redelivered" } else { "" };
            let at = format!("device {} session {}{flag}", receipt.device, receipt.session);
            events.push((receipt.at_us, format!("{} seen by {at}", key.id())));
        }
    }
    events.sort();
    let mut lines: Vec<String> =
        verdict.offences.iter().map(|one| format!("{} {:?}: {}", one.kind, one.key, one.what)).collect();
    lines.extend(events.into_iter().map(|(at, what)| format!("{:9.3} {what}", at as f64 / 1e6)));
    for node in nodes {
        lines.push(format!("-- the end of the log of {}", node.name));
        lines.extend(node.log_tail(LOG_LINES));
    }
    lines
}
