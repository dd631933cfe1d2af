//! What operators see of the cluster and order it to do: the reports of all nodes, and the drain of one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Router;
use crate::bus::{Publishing, TopologyState};
use crate::delivery::peer_words::{Ask, AskReply};
use crate::delivery::report::{ChannelReport, LinkReport, MailReport, Report, CHANNELS_NAMED_MAX};
use crate::delivery::trace::{Trace, TraceEvent};
use crate::directory::PeerInfo;
use crate::ids::{MessageId, NodeId};
use crate::metrics::Metrics;

/// A report is made at most once in so long, however many operators look: it walks over all channels.
const REPORT_AGE_MAX: Duration = Duration::from_millis(250);

/// What the router needs for operators alone.
pub struct Operators {
    metrics: Arc<Metrics>,
    public_url: Option<String>,
    standalone: bool,
    /// Its lock is taken for a look or a replacement, with no other lock.
    last: Mutex<Option<(Instant, Report)>>,
    drain: Notify,
    trace: Arc<Trace>,
}

impl Operators {
    pub fn new(
        metrics: Arc<Metrics>,
        trace: Arc<Trace>,
        public_url: Option<String>,
        standalone: bool,
    ) -> Self {
        Self { metrics, public_url, standalone, last: Mutex::default(), drain: Notify::new(), trace }
    }

    fn last(&self, now: Instant) -> Option<Report> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, report) =
            last.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < REPORT_AGE_MAX)?;
        Some(report.clone())
    }
}

/// All nodes that this one knows, by node id.
#[derive(Debug)]
pub struct Overview {
    pub reports: Vec<Report>,
    /// Nodes that did not answer in time, with what they last told about themselves.
    pub silent: Vec<PeerInfo>,
}

impl Router {
    /// The reports of all nodes; waits a second at most.
    pub async fn overview(self: &Arc<Self>) -> Overview {
        let mut found = self.ask(&self.reachable_nodes(), Ask::Report).await;
        found.reports.sort_by(|a, b| a.node.cmp(&b.node));
        let answered = |node: &NodeId| found.reports.iter().any(|report| report.node == *node);
        let silent = self.directory.peers().into_iter().filter(|peer| !answered(&peer.node)).collect();
        Overview { reports: found.reports, silent }
    }

    /// Without a link nobody hears a question.
    fn reachable_nodes(&self) -> Vec<NodeId> {
        if self.is_linked() {
            self.other_nodes()
        } else {
            Vec::new()
        }
    }

    pub fn trace(&self) -> &Arc<Trace> {
        &self.operators.trace
    }

    /// What became of a message on all nodes, by their clocks; and whether some node did not answer.
    pub async fn trace_of(self: &Arc<Self>, id: &MessageId) -> (Vec<TraceEvent>, bool) {
        let others = self.reachable_nodes();
        let mut found = self.ask(&others, Ask::Trace(id.clone())).await;
        found.trace.sort_by_key(|event| event.at_us);
        (found.trace, found.partial || !self.is_linked())
    }

    /// Has a node leave as after SIGTERM. `None`: it is not live; `Some(false)`: it did not answer.
    pub async fn drain_node(self: &Arc<Self>, node: &NodeId) -> Option<bool> {
        if node == self.node() {
            self.operators.drain.notify_one();
            return Some(true);
        }
        if !self.directory.is_live(node) {
            return None;
        }
        Some(self.ask_only(node, Ask::Drain).await.count > 0)
    }

    /// Returns when an operator wants this node to leave.
    pub async fn drain_ordered(&self) {
        self.operators.drain.notified().await;
    }

    /// This node's answer to the questions of operators.
    pub(super) fn answer_operators(&self, ask: &Ask, answer: &mut AskReply) {
        match ask {
            Ask::Report => {
                self.trace().look(Instant::now());
                answer.report = Some(Box::new(self.report()));
            }
            Ask::Trace(id) => {
                self.trace().look(Instant::now());
                answer.trace = self.trace().of(id);
            }
            Ask::Drain => {
                self.operators.drain.notify_one();
                answer.count = 1;
            }
            _ => {}
        }
    }

    fn report(&self) -> Report {
        let now = Instant::now();
        if let Some(report) = self.operators.last(now) {
            return report;
        }
        let this = self.directory.this_node();
        let mail = self.mail.total();
        let (channels, largest) = self.hub.largest_channels(CHANNELS_NAMED_MAX);
        let report = Report {
            node: self.node().clone(),
            url: self.operators.public_url.clone(),
            version: this.info.version,
            started_ms: this.info.started_ms,
            draining: this.info.draining,
            link: self.link_report(),
            sessions: self.hub.sessions() as u64,
            users: self.hub.users() as u64,
            pending: self.pending() as u64,
            totals: self.operators.metrics.totals(),
            channels: channels as u64,
            largest: (largest.into_iter())
                .map(|(channel, sessions)| ChannelReport { channel, sessions: sessions as u64 })
                .collect(),
            mail: MailReport { users: mail.users, messages: mail.messages, bytes: mail.bytes },
        };
        let mut last = self.operators.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((now, report.clone()));
        report
    }

    fn link_report(&self) -> LinkReport {
        if self.operators.standalone {
            return LinkReport::Standalone;
        }
        let link = *self.link.borrow();
        match link.publishing {
            _ if link.incarnation.is_none() => LinkReport::Down,
            Publishing::Down => LinkReport::Down,
            Publishing::Blocked => LinkReport::Blocked,
            Publishing::Silent => LinkReport::Silent,
            Publishing::Ready if link.topology == TopologyState::Damaged => LinkReport::Damaged,
            Publishing::Ready => LinkReport::Ready,
        }
    }
}
