//! What a person reads: a line for each scenario, a timeline when one fails, and the table for the README.

use std::path::Path;

use crate::checker::Verdict;
use crate::nodes::NodeProcess;
use crate::record::History;
use crate::scenario::Scenario;

const LOG_LINES: usize = 25;

/// One row of the table; runs with several seeds are summed.
#[derive(Default, Clone)]
pub struct Row {
    pub name: &'static str,
    about: &'static str,
    sent: usize,
    /// The columns that must be 0.
    counts: Vec<usize>,
    /// The worst of the runs.
    recovery_ms: Option<u64>,
    /// The others' p99 is compared with the calm one.
    compares: bool,
    times: Option<f64>,
}

impl Row {
    pub fn new(scenario: &Scenario) -> Self {
        let Scenario { name, about, compares, .. } = *scenario;
        Self { name, about, compares, ..Self::default() }
    }

    pub fn add(&mut self, verdict: &Verdict) {
        self.sent += verdict.sent;
        let columns = verdict.columns();
        self.counts.resize(columns.len(), 0);
        for (sum, (_, count)) in self.counts.iter_mut().zip(columns) {
            *sum += count;
        }
        self.recovery_ms = self.recovery_ms.max(verdict.recovery(99));
        let worst = self.times.unwrap_or(0.0);
        self.times = times(verdict).map_or(self.times, |times| Some(times.max(worst)));
    }
}

/// How many times as long the others' messages took, at p99, as in calm.
fn times(verdict: &Verdict) -> Option<f64> {
    Some(verdict.others_ms? / verdict.calm_ms?.max(0.1))
}

fn seconds(ms: Option<u64>) -> String {
    ms.map_or("–".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0))
}

pub fn line(verdict: &Verdict) -> String {
    let bad = verdict.columns().into_iter().filter(|(_, count)| *count > 0);
    let bad: Vec<_> = bad.map(|(name, count)| format!("{count} {name}")).collect();
    let bad = if bad.is_empty() { "all columns 0".to_owned() } else { bad.join(", ") };
    let p99 = |ms: Option<f64>| ms.map_or("–".into(), |ms| format!("{ms:.0}"));
    format!(
        "{} sent, {bad}; {} marked repeats, recovery {}, others' p99 {} ms, calm {} ms",
        verdict.sent,
        verdict.repeated,
        seconds(verdict.recovery(99)),
        p99(verdict.others_ms),
        p99(verdict.calm_ms),
    )
}

const HEAD: &str = "\
| fault | what is done | messages | lost | rejected | repeats | unexpected | told wrong | order | marked | missed | never | recovers | others |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
";

/// What the table's figures mean, below it.
const MEANING: &str = "
A 0 means, for each accepted message and each client, until 35 s after the last traffic (longer than every timeout in play):
*lost*: nobody who was owed an accepted at-least-once message (to a user; to a session that stayed; with a TTL, to a user who was there
within it) went without it. *rejected*: no sender was refused without a reason, or asked to try again while nothing was wrong.
*repeats*: no device was shown a message again without `redelivered`. *unexpected*: nothing came for somebody else, that nobody sent, or after
its TTL. *told wrong*: no sender was told another outcome than the clients saw, none twice, and none nothing. *order*: no unmarked message came
after one that its publisher handed over later; where nothing forces a redelivery, no marked one either. *marked*: none said `redelivered` without a fault, a
lost socket or a repeated publish as the reason. *missed*: no device that was connected all the time went without what the user's other
devices got, or without a broadcast or at-most-once message. *never*: every device got messages again after each fault.
*recovers*: p99 from the end of the fault to each device's next message. *others*: the p99 latency of well-behaved users' messages while
others are stuck, as a multiple of the same run's calm (fails above 2 × calm, where a calm p99 below 50 ms counts as 50 ms).
The nodes run with their defaults, except that they ping every 4 s, drain for 4 s and do not limit the rate of one session, and where the name of a row says so.
";

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts: Vec<_> = self.counts.iter().map(usize::to_string).collect();
        let times =
            self.times.filter(|_| self.compares).map_or("–".into(), |times| format!("{times:.1} ×"));
        write!(
            f,
            "| {} | {} | {} | {} | {} | {times} |",
            self.name,
            self.about,
            self.sent,
            counts.join(" | "),
            seconds(self.recovery_ms)
        )
    }
}

/// A row of a former table may have others.
fn columns(line: &str) -> usize {
    line.matches('|').count()
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
        let mut kept = old.lines().filter(|line| columns(line) == columns(HEAD.lines().next().unwrap_or("")));
        let kept = || kept.find(|line| line.starts_with(&format!("| {name} |"))).map(str::to_owned);
        if let Some(row) = new.or_else(kept) {
            table.push_str(&row);
            table.push('\n');
        }
    }
    table.push_str(MEANING);
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
            events.push((sent.at_us, format!("{} sent to {}", key.id(), sent.letter.target)));
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
