//! When a session must be pinged or closed. Pure.
//!
//! Times are milliseconds on the worker's clock, which wraps after 49 days: only differences are taken.

use crate::protocol::close::CloseCode;

/// How long a client may take to finish a message that it has begun, in milliseconds.
const UNFINISHED_MS_MAX: u32 = 10_000;

/// The intervals of the configuration, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Intervals {
    /// From the handshake to the token.
    pub(super) auth: u32,
    pub(super) ping: u32,
    pub(super) pong: u32,
}

/// A message that the client has begun and not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// The decoder's number of the message.
    serial: u32,
    since: u32,
}

impl Unfinished {
    /// `serial` is what the decoder holds now. The time of a message that was seen before goes on, whatever control
    /// frames came in between.
    pub(super) fn follow(seen: Option<Self>, serial: Option<u32>, now: u32) -> Option<Self> {
        let serial = serial?;
        seen.filter(|seen| seen.serial == serial).or(Some(Self { serial, since: now }))
    }
}

/// The state of an open session that deadlines depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched {
    pub(super) opened_at: u32,
    pub(super) is_authenticated: bool,
    pub(super) is_token_expired: bool,
    pub(super) unfinished: Option<Unfinished>,
    pub(super) are_acks_overdue: bool,
    pub(super) pinged_at: u32,
    /// A ping was sent, and no byte has come since.
    pub(super) awaits_pong: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Ping,
    Close(CloseCode),
}

impl Watched {
    pub(super) fn due(&self, intervals: &Intervals, now: u32) -> Due {
        let is_past = |since: u32, limit: u32| elapsed(since, now) >= limit;
        if !self.is_authenticated && is_past(self.opened_at, intervals.auth) {
            return Due::Close(CloseCode::Unauthorized);
        }
        if self.is_token_expired {
            return Due::Close(CloseCode::TokenExpired);
        }
        if self.unfinished.is_some_and(|unfinished| is_past(unfinished.since, UNFINISHED_MS_MAX)) {
            return Due::Close(CloseCode::Protocol);
        }
        if self.are_acks_overdue {
            return Due::Close(CloseCode::NoAcks);
        }
        match self.awaits_pong {
            true if is_past(self.pinged_at, intervals.pong) => Due::Close(CloseCode::PingTimeout),
            false if is_past(self.pinged_at, intervals.ping) => Due::Ping,
            _ => Due::Nothing,
        }
    }
}

pub(super) fn elapsed(since: u32, now: u32) -> u32 {
    now.wrapping_sub(since)
}

/// Whether a moment lies in the past; moments are at most 24 days away.
pub(super) fn is_past(deadline: u32, now: u32) -> bool {
    elapsed(deadline, now) < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals { auth: 100, ping: 1_000, pong: 400 };

    fn calm(now: u32) -> Watched {
        Watched {
            opened_at: now,
            is_authenticated: true,
            is_token_expired: false,
            unfinished: None,
            are_acks_overdue: false,
            pinged_at: now,
            awaits_pong: false,
        }
    }

    #[test]
    fn each_deadline_is_exact_also_where_the_clock_wraps() {
        for start in [0, 5_000, u32::MAX - 50] {
            let calm = calm(start);
            let due = |watched: Watched, after: u32| watched.due(&INTERVALS, start.wrapping_add(after));
            assert_eq!((due(calm, 999), due(calm, 1_000)), (Due::Nothing, Due::Ping));
            let unknown = Watched { is_authenticated: false, ..calm };
            assert_eq!(
                (due(unknown, 99), due(unknown, 100)),
                (Due::Nothing, Due::Close(CloseCode::Unauthorized))
            );
            let silent = Watched { awaits_pong: true, ..calm };
            assert_eq!(
                (due(silent, 399), due(silent, 400)),
                (Due::Nothing, Due::Close(CloseCode::PingTimeout))
            );
            let unfinished = Unfinished::follow(None, Some(7), start);
            let slow = Watched { unfinished, pinged_at: start.wrapping_add(9_500), ..calm };
            assert_eq!(
                (due(slow, 9_999), due(slow, 10_000)),
                (Due::Nothing, Due::Close(CloseCode::Protocol))
            );
            let overdue = Watched { are_acks_overdue: true, ..calm };
            assert_eq!(due(overdue, 0), Due::Close(CloseCode::NoAcks));
            let expired = Watched { is_token_expired: true, ..calm };
            assert_eq!(due(expired, 0), Due::Close(CloseCode::TokenExpired));
            assert!(is_past(start, start.wrapping_add(1)) && !is_past(start.wrapping_add(1), start));
        }
    }

    #[test]
    fn the_time_of_an_unfinished_message_begins_with_each_message() {
        let first = Unfinished::follow(None, Some(1), 10);
        assert_eq!(Unfinished::follow(first, Some(1), 20), first);
        assert_eq!(Unfinished::follow(first, Some(2), 20), Some(Unfinished { serial: 2, since: 20 }));
        assert_eq!(Unfinished::follow(first, None, 20), None);
    }
}
