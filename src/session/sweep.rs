//! The worker's clock: pings, deadlines and the shutdown of its sessions.

use std::time::Duration;

use crate::clock::unix_ms;
use crate::protocol::close::CloseCode;
use crate::protocol::stomp::render::HEART_BEAT;
use crate::protocol::{sockjs, wire, Framing};
use crate::session::deadlines::{Due, Intervals, Unfinished, Watched};
use crate::session::state::{Phase, Session};
use crate::session::worker::WorkerState;
use crate::session::SessionSettings;

/// A sweep over all sessions is spread over so many ticks.
const TICKS_PER_SWEEP: u32 = 20;
/// The longest time between two checks of a session, in milliseconds: how late a deadline may be noticed.
const SWEEP_MS_MAX: u32 = 2_000;

pub(super) fn intervals(settings: &SessionSettings) -> Intervals {
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    Intervals {
        auth: millis(settings.auth_timeout),
        ping: millis(settings.ping_interval),
        pong: millis(settings.pong_timeout),
    }
}

/// A quarter of the shortest interval passes between two checks of a session, so that no deadline is far late.
pub(super) fn tick_interval(intervals: &Intervals) -> Duration {
    let shortest = intervals.ping.min(intervals.pong).min(intervals.auth);
    let sweep_ms = (shortest / 4).min(SWEEP_MS_MAX);
    Duration::from_millis((sweep_ms / TICKS_PER_SWEEP).max(5).into())
}

impl WorkerState {
    /// Checks every twentieth session, another twentieth with each tick; returns the next tick.
    pub(super) fn sweep(&self, tick: u32) -> u32 {
        let now = self.now();
        let unix_s = unix_ms() / 1000;
        let sessions = self.sessions.borrow();
        let mut slot = tick as usize;
        while slot < sessions.capacity() {
            if let Some(session) = sessions.get(slot) {
                self.check_deadlines(session, now, unix_s);
            }
            slot += TICKS_PER_SWEEP as usize;
        }
        (tick + 1) % TICKS_PER_SWEEP
    }

    fn check_deadlines(&self, session: &Session, now: u32, unix_s: u64) {
        let phase = session.phase.get();
        if matches!(phase, Phase::Closing { .. } | Phase::Ended) {
            return session.wake();
        }
        let frame = session.stomp().and_then(|stomp| stomp.unfinished());
        let serial = frame.or_else(|| session.decoder.borrow().unfinished());
        session.unfinished.set(Unfinished::follow(session.unfinished.get(), serial, now));
        let watched = Watched {
            opened_at: session.opened_at,
            is_authenticated: phase == Phase::Open,
            is_token_expired: is_token_expired(session, unix_s),
            unfinished: session.unfinished.get(),
            are_acks_overdue: session.are_acks_overdue(now),
            pinged_at: session.pinged_at.get(),
            awaits_pong: session.awaits_pong.get(),
        };
        match watched.due(&self.intervals, now) {
            Due::Nothing => {}
            Due::Ping => {
                session.pinged_at.set(now);
                session.awaits_pong.set(true);
                session.owes_pong.set(true);
                session.send(&wire::ping_frame(&[]), None, now);
                if session.framing == Framing::SockJs {
                    session.send(&wire::text_frame(sockjs::HEART_BEAT), None, now);
                }
            }
            Due::Close(code) => session.close(code, 0, now),
        }
        if let Some(stomp) = session.stomp() {
            stomp.decline_held(now);
            if stomp.beat_is_due(now) {
                session.say(HEART_BEAT, now);
            }
        }
    }

    /// Closes as many sessions of a draining node as are due, so that they come back elsewhere one after the other.
    pub(super) fn drain_due(&self) {
        let now = self.now();
        let due = match self.drain.borrow_mut().as_mut() {
            Some(drain) => drain.due(now),
            None => return,
        };
        for session in due.into_iter().filter_map(|counter| self.find(counter)) {
            session.close(CloseCode::Drain, rand::random_range(0..=1_000), now);
        }
    }
}

fn is_token_expired(session: &Session, unix_s: u64) -> bool {
    let identity = session.identity.borrow();
    identity.as_ref().and_then(|identity| identity.expires_unix_s).is_some_and(|at| at <= unix_s)
}
