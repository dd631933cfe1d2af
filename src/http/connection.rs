//! One HTTP connection: its deadlines, its share of requests and time, and when it must give its slot back.

use std::future::{poll_fn, Future};
use std::pin::{pin, Pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::upgrade::OnUpgrade;
use tokio::time::Sleep;

use super::slots::{Activity, Slot, Vacated};
use crate::auth::Identity;
use crate::budgets::Share;
use crate::protocol::close::CloseCode;
use crate::protocol::{Codec, Framing};

/// How long a connection may idle between two requests. Balancers reuse one for 60 s; a server that closes
/// earlier fails the request that is on its way.
const KEEP_ALIVE: Duration = Duration::from_secs(90);
/// To take a response. Responses are short: a client that has not taken one by then does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests on one connection; the response to the last one says that it closes.
const REQUESTS_MAX: u32 = 10_000;
/// Age of a connection from which on its next response says that it closes.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// How a connection ended that did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By its client, by an error, or as agreed.
    Normally,
    /// It gave its slot to another.
    Evicted,
    /// A head, or the taking of a response, took too long, or nothing more was asked.
    TimedOut,
}

/// A request that was answered with 101: what the session begins with.
pub(super) struct Upgrade {
    pub(super) socket: OnUpgrade,
    pub(super) identity: Option<Identity>,
    /// Of a client that has yet to say who it is.
    pub(super) unauthenticated: Option<Slot>,
    pub(super) share: Option<Share>,
    pub(super) acknowledges: bool,
    /// `None`: the first message will tell.
    pub(super) codec: Option<Codec>,
    pub(super) framing: Framing,
    /// To be told to the client once it is connected.
    pub(super) refused: Option<CloseCode>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle(Instant),
    /// A further request has begun.
    Head(Instant),
    Serving,
    /// The response goes on until its body ends.
    Streaming,
}

/// What the connection holds among those that compete for slots.
enum Place {
    /// Nothing: it is there for moments only.
    Unneeded,
    Slot(Slot),
    /// It is counted elsewhere for a while.
    Aside(Vacated),
}

struct State {
    phase: Phase,
    place: Place,
    /// Since when the client has not taken all of its responses; of one that streams, since when it took nothing.
    blocked_since: Option<Instant>,
    requests: u32,
    upgrade: Option<Upgrade>,
}

/// Shared by the socket, the service and the task of one connection; locked for moments.
pub(super) struct Connection {
    head_timeout: Duration,
    opened: Instant,
    state: Mutex<State>,
}

impl Connection {
    /// Of a client whose first head is there. `slot` is `None` if nobody competes for it, as it is held for moments only.
    pub(super) fn new(head_timeout: Duration, slot: Option<Slot>) -> Arc<Self> {
        let opened = Instant::now();
        let place = slot.map_or(Place::Unneeded, Place::Slot);
        let state =
            State { phase: Phase::Idle(opened), place, blocked_since: None, requests: 0, upgrade: None };
        Arc::new(Self { head_timeout, opened, state: Mutex::new(state) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is there.
    pub(super) fn arrived(&self) {
        let mut state = self.lock();
        state.phase = Phase::Serving;
        state.requests += 1;
    }

    /// The request is about to be served; `false` if the connection has lost its slot, and must not be served.
    pub(super) fn begin(&self) -> bool {
        self.lock().place.set(Activity::Serving, Instant::now())
    }

    /// The request waits for something that has a bound of its own, and gives up its slot meanwhile.
    pub(super) fn step_aside(&self) {
        let mut state = self.lock();
        state.place = match std::mem::replace(&mut state.place, Place::Unneeded) {
            Place::Slot(slot) => slot.vacate().map_or(Place::Unneeded, Place::Aside),
            other => other,
        };
    }

    /// The same, and the response will go on for long, until [`Connection::streamed`].
    pub(super) fn stream(&self) {
        self.step_aside();
        self.lock().phase = Phase::Streaming;
    }

    pub(super) fn streamed(&self) {
        self.lock().phase = Phase::Idle(Instant::now());
    }

    /// The response is there, or begins to stream; `true` if it must be the last one.
    pub(super) fn finish(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        if matches!(state.phase, Phase::Streaming) {
            return true;
        }
        state.phase = Phase::Idle(now);
        let has_slot = state.place.take_again(now);
        let activity = if state.blocked_since.is_none() { Activity::Idle } else { Activity::Blocked };
        state.place.set(activity, now);
        !has_slot || state.requests >= REQUESTS_MAX || now.saturating_duration_since(self.opened) >= AGE_MAX
    }

    pub(super) fn upgrade(&self, upgrade: Upgrade) {
        self.lock().upgrade = Some(upgrade);
    }

    pub(super) fn take_upgrade(&self) -> Option<Upgrade> {
        self.lock().upgrade.take()
    }

    /// Bytes came from the client.
    pub(super) fn heard(&self) {
        let mut state = self.lock();
        if let Phase::Idle(_) = state.phase {
            state.phase = Phase::Head(Instant::now());
        }
    }

    /// The client takes no more bytes right now.
    pub(super) fn blocked(&self) {
        let mut state = self.lock();
        if state.blocked_since.is_none() {
            let now = Instant::now();
            state.blocked_since = Some(now);
            if !matches!(state.phase, Phase::Serving) {
                state.place.set(Activity::Blocked, now);
            }
        }
    }

    /// The client's socket has taken something.
    pub(super) fn wrote(&self) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Streaming) {
            state.blocked_since = None;
        }
    }

    /// The client's socket has taken everything.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        if state.blocked_since.take().is_some() && !matches!(state.phase, Phase::Serving) {
            state.place.set(Activity::Idle, Instant::now());
        }
    }

    /// `None` while a request is served or a response streams, which have their own deadlines.
    fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let blocked = state.blocked_since.map(|since| since + WRITE_TIMEOUT);
        let phase = match state.phase {
            Phase::Idle(since) => Some(since + KEEP_ALIVE),
            Phase::Head(since) => Some(since + self.head_timeout),
            Phase::Serving | Phase::Streaming => None,
        };
        blocked.into_iter().chain(phase).min()
    }

    fn is_evicted(&self, cx: &mut Context<'_>) -> bool {
        matches!(&self.lock().place, Place::Slot(slot) if slot.poll_evicted(cx))
    }
}

impl Place {
    /// `false`: the slot was lost.
    fn set(&self, activity: Activity, now: Instant) -> bool {
        match self {
            Place::Slot(slot) => slot.set(activity, now),
            Place::Unneeded | Place::Aside(_) => true,
        }
    }

    /// Whether the connection has what it needs to go on.
    fn take_again(&mut self, now: Instant) -> bool {
        if let Place::Aside(vacated) = self {
            match vacated.admit(now) {
                Some(slot) => *self = Place::Slot(slot),
                None => return false,
            }
        }
        true
    }
}

/// Drives the connection to its end.
pub(super) async fn drive(http: impl Future<Output = hyper::Result<()>>, of: &Connection) -> Ended {
    let mut http = pin!(http);
    let mut sleep = pin!(tokio::time::sleep(KEEP_ALIVE));
    poll_fn(|cx| {
        if let Poll::Ready(ended) = http.as_mut().poll(cx) {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            return Poll::Ready(Ended::Normally);
        }
        if of.is_evicted(cx) {
            return Poll::Ready(Ended::Evicted);
        }
        poll_deadline(sleep.as_mut(), of, cx).map(|()| Ended::TimedOut)
    })
    .await
}

/// The timer is moved only when it must ring earlier: a request that is over in time costs no timer.
fn poll_deadline(mut sleep: Pin<&mut Sleep>, of: &Connection, cx: &mut Context<'_>) -> Poll<()> {
    let Some(deadline) = of.deadline().map(tokio::time::Instant::from_std) else { return Poll::Pending };
    if deadline < sleep.deadline() {
        sleep.as_mut().reset(deadline);
    }
    while sleep.as_mut().poll(cx).is_ready() {
        if sleep.deadline() >= deadline {
            return Poll::Ready(());
        }
        sleep.as_mut().reset(deadline);
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use super::super::slots::Slots;
    use super::*;

    #[test]
    fn a_response_that_streams_needs_no_slot_and_ends_when_nothing_is_taken() {
        let slots = Slots::new(1, 1);
        let now = Instant::now();
        let connection = Connection::new(Duration::from_secs(5), slots.admit(None, now));
        connection.arrived();
        assert!(connection.begin());
        connection.stream();
        let other = slots.admit(None, now).unwrap();
        assert!(other.set(Activity::Serving, now), "the slot is another's, who is served");
        assert!(connection.finish(), "nothing comes after a response that streams");
        assert_eq!(connection.deadline(), None);
        connection.blocked();
        assert!(connection.deadline().unwrap() <= Instant::now() + WRITE_TIMEOUT);
        // However little it takes.
        connection.wrote();
        assert_eq!(connection.deadline(), None);
        connection.blocked();
        connection.streamed();
        assert!(connection.deadline().unwrap() <= Instant::now() + WRITE_TIMEOUT);
    }

    #[test]
    fn a_poll_gives_its_slot_back_and_needs_one_to_go_on() {
        let slots = Slots::new(1, 1);
        let now = Instant::now();
        let connection = Connection::new(Duration::from_secs(5), slots.admit(None, now));
        for is_free in [true, false] {
            connection.arrived();
            assert!(connection.begin());
            connection.step_aside();
            let other = slots.admit(None, now).unwrap();
            let activity = if is_free { Activity::Idle } else { Activity::Serving };
            assert!(other.set(activity, now));
            assert_eq!(connection.finish(), !is_free);
            assert_eq!(other.set(activity, now), !is_free, "whoever idles gives way");
        }
    }
}
