//! What became of the latest messages on this node, for operators: kept while one looks, and within a bound.
//!
//! While nobody looks, a step costs a look at a flag.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::Tracing;
use crate::ids::{MessageId, NodeId};

/// Steps that are kept, of about 200 bytes each. Overflow policy: the oldest is forgotten.
const STEPS_MAX: usize = 16_384;
/// Most steps of one message id that are told.
const TOLD_MAX: usize = 200;
/// So long after an operator has looked, steps are still kept.
const LOOKING: Duration = Duration::from_secs(15);

/// Something that happened to a message on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A source gave it to this node, which answers for it from then on.
    Accepted { from: String, to: String },
    /// Published for these nodes.
    Sent { nodes: Vec<NodeId> },
    /// Published for all nodes.
    SentToAll,
    /// Published for the application.
    SentToBackends,
    /// It came from the node that answers for it.
    Arrived {
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<NodeId>,
    },
    /// It came out of a mailbox.
    ReadFromMail,
    /// Written to sockets, or queued for them.
    Written {
        sessions: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<String>,
    },
    /// The client of the session has taken care of it.
    Acknowledged { session: String },
    /// So many sessions of this node have taken it; the node that answers for it is told.
    Taken { sessions: u32 },
    /// On its way into the mailbox of its user; how it is settled tells whether it got there.
    ToMail,
    /// The source was told.
    Settled {
        outcome: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

/// A step with its place and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    pub node: NodeId,
    /// On the node's wall clock, in microseconds of Unix time.
    pub at_us: u64,
    #[serde(flatten)]
    pub step: Step,
}

#[derive(Debug)]
struct Kept {
    id: MessageId,
    at_us: u64,
    step: Step,
}

#[derive(Debug, Default)]
struct State {
    steps: VecDeque<Kept>,
    /// `None`: nobody has looked.
    until: Option<Instant>,
}

#[derive(Debug)]
pub struct Trace {
    node: NodeId,
    when: Tracing,
    on: AtomicBool,
    /// The innermost lock: nothing is called while it is held.
    state: Mutex<State>,
}

impl Trace {
    pub fn new(node: NodeId, when: Tracing) -> Self {
        Self { node, when, on: AtomicBool::new(when == Tracing::Always), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// An operator looks.
    pub fn look(&self, now: Instant) {
        if self.when == Tracing::Watched {
            self.lock().until = Some(now + LOOKING);
            self.on.store(true, Ordering::Relaxed);
        }
    }

    /// Forgets everything when nobody looks any more.
    pub fn expire(&self, now: Instant) {
        if self.when == Tracing::Always || !self.is_on() {
            return;
        }
        let mut state = self.lock();
        if state.until.is_none_or(|until| now >= until) {
            self.on.store(false, Ordering::Relaxed);
            *state = State::default();
        }
    }

    /// `step` is called only if it is kept.
    pub fn note(&self, id: &MessageId, step: impl FnOnce() -> Step) {
        if self.is_on() {
            self.note_at(unix_us(), id, step());
        }
    }

    /// For a step that is known to have happened only after others that followed from it.
    pub fn note_at(&self, at_us: u64, id: &MessageId, step: Step) {
        let kept = Kept { id: id.clone(), at_us, step };
        let mut state = self.lock();
        if state.steps.len() >= STEPS_MAX {
            state.steps.pop_front();
        }
        state.steps.push_back(kept);
    }

    /// The steps of a message id, the oldest first: the latest [`TOLD_MAX`] of them.
    pub fn of(&self, id: &MessageId) -> Vec<TraceEvent> {
        let state = self.lock();
        let steps = state.steps.iter().rev().filter(|kept| kept.id == *id).take(TOLD_MAX);
        let event =
            |kept: &Kept| TraceEvent { node: self.node.clone(), at_us: kept.at_us, step: kept.step.clone() };
        let mut events: Vec<TraceEvent> = steps.map(event).collect();
        events.reverse();
        events
    }
}

/// The wall clock in microseconds of Unix time.
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> MessageId {
        MessageId::new(text).unwrap()
    }

    fn trace(when: Tracing) -> Trace {
        Trace::new(NodeId::new("n0").unwrap(), when)
    }

    fn taken(sessions: u32) -> Step {
        Step::Taken { sessions }
    }

    #[test]
    fn steps_are_kept_while_somebody_looks() {
        let trace = trace(Tracing::Watched);
        let now = Instant::now();
        trace.note(&id("a"), || panic!("nobody looks"));
        trace.look(now);
        trace.note(&id("a"), || taken(1));
        trace.note(&id("b"), || taken(2));
        trace.expire(now + LOOKING - Duration::from_millis(1));
        let events = trace.of(&id("a"));
        assert_eq!(events.iter().map(|event| &event.step).collect::<Vec<_>>(), [&taken(1)]);
        assert!(events[0].at_us > 1_600_000_000_000_000);
        trace.expire(now + LOOKING);
        assert!(!trace.is_on() && trace.of(&id("a")).is_empty());
        let never = super::Trace::new(NodeId::new("n0").unwrap(), Tracing::Off);
        never.look(now);
        assert!(!never.is_on());
    }

    #[test]
    fn what_is_kept_and_what_is_told_is_bounded() {
        let trace = trace(Tracing::Always);
        trace.expire(Instant::now());
        for n in 0..STEPS_MAX as u32 {
            trace.note(&id("many"), || taken(n));
        }
        trace.note(&id("one"), || taken(7));
        assert_eq!(trace.lock().steps.len(), STEPS_MAX);
        let told = trace.of(&id("many"));
        assert_eq!((told.len(), &told[TOLD_MAX - 1].step), (TOLD_MAX, &taken(STEPS_MAX as u32 - 1)));
        let json = serde_json::to_string(&told[0]).unwrap();
        assert_eq!(serde_json::from_str::<TraceEvent>(&json).unwrap(), told[0], "{json}");
    }
}
