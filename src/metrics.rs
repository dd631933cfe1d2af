//! Every metric: its name, its help, where it is counted.

use std::collections::BTreeMap;

use prometheus_client::encoding::{text, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

/// The door that a message came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    Session,
    Http,
    Ingress,
}

impl Door {
    const ALL: [Door; 3] = [Door::Session, Door::Http, Door::Ingress];

    fn name(self) -> &'static str {
        match self {
            Door::Session => "session",
            Door::Http => "http",
            Door::Ingress => "ingress",
        }
    }
}

/// The outcomes that [`Metrics::settled`] counts; see [`crate::protocol::message::Settlement::outcome`].
const OUTCOMES: [&str; 6] = ["delivered", "stored", "published", "answered", "expired", "rejected"];

/// Counts since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Messages by outcome, whichever door they came through.
    pub settled: BTreeMap<String, u64>,
    /// Copies of messages handed to sessions.
    pub handed: u64,
    pub opened: u64,
    pub refused: u64,
    pub dead: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    door: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CloseLabels {
    code: u16,
}

/// What is true at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Snapshot {
    pub sessions: usize,
    pub users: usize,
    pub nodes: usize,
    pub pending: usize,
    pub requests: usize,
    /// In all mailboxes, as far as this node knows.
    pub mail: u64,
    pub partitions: usize,
    pub link_ready: bool,
    /// Of the runtime, without those of the threads that serve sockets.
    pub tasks: usize,
    /// Since the start of the process.
    pub log_lines_dropped: u64,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    settled: Family<OutcomeLabels, Counter>,
    handed: Counter,
    opened: Counter,
    closed: Family<CloseLabels, Counter>,
    refused: Counter,
    dead: Counter,
    answers_ignored: Counter,
    sessions: Gauge,
    users: Gauge,
    nodes: Gauge,
    pending: Gauge,
    requests: Gauge,
    mail: Gauge,
    partitions: Gauge,
    link_ready: Gauge,
    tasks: Gauge,
    log_lines_dropped: Counter,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("warren");
        macro_rules! metric {
            ($metric:expr, $name:literal, $help:literal) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        Self {
            settled: metric!(Family::default(), "messages_settled", "Messages settled, by door and outcome"),
            handed: metric!(
                Counter::default(),
                "messages_handed",
                "Copies of messages handed to sessions, one for each session"
            ),
            opened: metric!(Counter::default(), "sessions_opened", "Sessions begun"),
            closed: metric!(
                Family::default(),
                "sessions_closed",
                "Sessions ended, by close code; 1006 = gone without a close frame"
            ),
            refused: metric!(Counter::default(), "handshakes_refused", "Upgrade requests refused"),
            dead: metric!(Counter::default(), "messages_dead", "Messages sent to the dead queue"),
            answers_ignored: metric!(
                Counter::default(),
                "answers_ignored",
                "Answers of backends that came late, twice, or for nobody"
            ),
            sessions: metric!(Gauge::default(), "sessions", "Sessions on this node"),
            users: metric!(Gauge::default(), "users", "Users with a session on this node"),
            nodes: metric!(Gauge::default(), "nodes", "Live nodes that this node knows, itself included"),
            pending: metric!(Gauge::default(), "messages_pending", "Messages that await a receipt"),
            requests: metric!(Gauge::default(), "requests_pending", "Requests that await a backend's answer"),
            mail: metric!(
                Gauge::default(),
                "mail_messages",
                "Messages in the mailboxes of all users, as far as this node knows"
            ),
            partitions: metric!(
                Gauge::default(),
                "ingress_partitions_held",
                "Partitions of ingress that this node consumes; 0 when there is only one"
            ),
            link_ready: metric!(Gauge::default(), "link_ready", "1 while the broker can be used"),
            tasks: metric!(
                Gauge::default(),
                "tasks",
                "Tasks that run, without those of the threads that serve sockets"
            ),
            log_lines_dropped: metric!(
                Counter::default(),
                "log_lines_dropped",
                "Log lines that stderr did not take in time"
            ),
            registry,
        }
    }

    pub fn settled(&self, door: Door, outcome: &'static str) {
        self.settled.get_or_create(&OutcomeLabels { door: door.name(), outcome }).inc();
    }

    /// Messages were handed to so many sessions, each counted.
    pub fn handed(&self, copies: usize) {
        self.handed.inc_by(copies as u64);
    }

    pub fn session_opened(&self) {
        self.opened.inc();
    }

    pub fn session_closed(&self, code: u16) {
        self.closed.get_or_create(&CloseLabels { code }).inc();
    }

    pub fn handshake_refused(&self) {
        self.refused.inc();
    }

    pub fn message_dead(&self) {
        self.dead.inc();
    }

    pub fn answer_ignored(&self) {
        self.answers_ignored.inc();
    }

    pub fn totals(&self) -> Totals {
        let settled = OUTCOMES.map(|outcome| {
            let of = |door: Door| self.settled.get(&OutcomeLabels { door: door.name(), outcome });
            let count = Door::ALL.into_iter().filter_map(|door| of(door).map(|count| count.get())).sum();
            (outcome.to_owned(), count)
        });
        Totals {
            settled: settled.into_iter().collect(),
            handed: self.handed.get(),
            opened: self.opened.get(),
            refused: self.refused.get(),
            dead: self.dead.get(),
        }
    }

    /// The OpenMetrics text, with these values for what is not counted but looked up.
    pub fn render(&self, now: Snapshot) -> String {
        self.sessions.set(now.sessions as i64);
        self.users.set(now.users as i64);
        self.nodes.set(now.nodes as i64);
        self.pending.set(now.pending as i64);
        self.requests.set(now.requests as i64);
        self.mail.set(i64::try_from(now.mail).unwrap_or(i64::MAX));
        self.partitions.set(now.partitions as i64);
        self.link_ready.set(now.link_ready.into());
        self.tasks.set(now.tasks as i64);
        self.log_lines_dropped.inc_by(now.log_lines_dropped.saturating_sub(self.log_lines_dropped.get()));
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.settled(Door::Http, "delivered");
        metrics.settled(Door::Ingress, "delivered");
        metrics.handed(5);
        metrics.session_closed(4102);
        let text = metrics.render(Snapshot { sessions: 3, ..Snapshot::default() });
        for line in [
            "warren_messages_settled_total{door=\"http\",outcome=\"delivered\"} 1",
            "warren_sessions_closed_total{code=\"4102\"} 1",
            "warren_messages_handed_total 5",
            "warren_sessions 3",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let totals = metrics.totals();
        assert_eq!((totals.settled["delivered"], totals.settled["stored"], totals.handed), (2, 0, 5));
    }
}
