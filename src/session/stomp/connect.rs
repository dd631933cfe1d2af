//! The beginning and the end: CONNECT, heart-beats, DISCONNECT.

use std::rc::Rc;

use super::held::Held;
use super::Stomp;
use crate::auth::{AuthError, Identity, Verifier};
use crate::clock::unix_ms;
use crate::error::{Code, Error};
use crate::hub::Local;
use crate::protocol::close::CloseCode;
use crate::protocol::stomp::frame::Frame;
use crate::protocol::stomp::{render, Version};
use crate::session::deadlines::elapsed;
use crate::session::requests;
use crate::session::state::Session;
use crate::session::worker::WorkerState;

/// The shortest and the longest time between two heart-beats of the server, in milliseconds.
const BEATS_MS: std::ops::RangeInclusive<u32> = 5_000..=60_000;
/// How much earlier than promised a heart-beat is sent, in milliseconds: more than passes between two looks.
const BEAT_MARGIN_MS: u32 = 2_500;

impl WorkerState {
    /// CONNECT or STOMP: the version from then on.
    pub(super) fn on_connect(
        self: &Rc<Self>,
        session: &Rc<Session>,
        stomp: &Stomp,
        frame: &Frame<'_>,
    ) -> Option<Version> {
        let now = self.now();
        let Some(version) = Version::negotiate(frame.raw("accept-version")) else {
            session.close_saying(Some(&render::no_common_version()), CloseCode::BadRequest, now);
            return None;
        };
        let beats_ms = match frame.raw("heart-beat").map_or(Some((0, 0)), parse_beats) {
            Some((_, wanted)) if version >= Version::V1_1 && wanted > 0 => {
                wanted.clamp(*BEATS_MS.start(), *BEATS_MS.end())
            }
            Some(_) => 0,
            None => {
                let error =
                    Error::bad_request("CONNECT: heart-beat is two numbers of milliseconds, as 10000,10000");
                session.close_saying(Some(&render::error(&error, None)), CloseCode::BadRequest, now);
                return None;
            }
        };
        let was_known = stomp.known.borrow().is_some();
        let identity = match identify(&self.settings.verifier, stomp, frame) {
            Ok(identity) => identity,
            Err(error) => {
                let text = format!(
                    "CONNECT: {error}; the token goes into passcode or Authorization, never into the URL"
                );
                let code = requests::refusal(self, session, error);
                let error = Error::new(Code::Unauthorized, text);
                session.close_saying(Some(&render::error(&error, None)), code, now);
                return None;
            }
        };
        let then = move |worker: &Self, session: &Rc<Session>, identity| {
            worker.connected(session, version, beats_ms, identity);
        };
        match was_known {
            // It was decided with the handshake.
            true => then(self, session, identity),
            false => self.when_may_connect(session, identity, then),
        }
        Some(version)
    }

    fn connected(&self, session: &Rc<Session>, version: Version, beats_ms: u32, identity: Identity) {
        let Some(stomp) = session.stomp() else { return };
        let now = self.now();
        stomp.since_ms.set(unix_ms());
        // The limits were checked when the socket came, but other sessions may have begun since.
        let local = stomp.local(session);
        if self.router.hub().sessions() >= self.settings.sessions_max
            || !self.router.open_silent_session(&identity.user, local, self.settings.sessions_per_user)
        {
            return session.close(CloseCode::OverCapacity, 0, now);
        }
        stomp.version.set(version);
        stomp.beats_ms.set(beats_ms);
        let id = self.router.session_id(session.counter);
        session.say(&render::connected(version, &id, &identity.user, beats_ms), now);
        self.begin(session, identity, &[]);
    }

    /// The client will send nothing more; it waits for the receipt.
    pub(super) fn on_disconnect(&self, session: &Session, stomp: &Stomp, receipt: Option<&str>) {
        let _ = stomp.leaving.set(receipt.map(Into::into));
        stomp.leave_if_settled(session, self.now());
    }

    /// Messages of the user come to the session from now on, or no longer.
    pub(super) fn set_reachable(&self, session: &Session, stomp: &Stomp, reachable: bool) {
        let Some(identity) = session.identity() else { return };
        if stomp.is_reachable.replace(reachable) == reachable {
            return;
        }
        // In both places for a moment, so that an order to close it finds it always.
        match reachable {
            true => {
                *stomp.held.borrow_mut() = Some(Held::new(self.now()));
                // It was counted when it began.
                let _ = self.router.open_session(&identity.user, stomp.local(session), usize::MAX);
                self.router.hub().forget_silent(&identity.user, session.counter);
            }
            false => {
                stomp.give_back_held();
                self.router.hub().register_silent(&identity.user, stomp.local(session));
                self.router.close_session(&identity.user, session.counter);
            }
        }
    }
}

impl Stomp {
    fn local(&self, session: &Session) -> Local {
        Local { counter: session.counter, since_ms: self.since_ms.get() }
    }

    /// After DISCONNECT: every SEND before it is settled, so the client may go.
    pub(in crate::session) fn leave_if_settled(&self, session: &Session, now: u32) {
        let Some(receipt) = self.leaving.get().filter(|_| session.in_flight.get() == 0) else { return };
        let receipt = receipt.as_deref().map(|receipt| render::receipt(receipt, None));
        session.close_saying(receipt.as_deref(), CloseCode::Normal, now);
    }

    pub(in crate::session) fn beat_is_due(&self, now: u32) -> bool {
        let beats_ms = self.beats_ms.get();
        beats_ms > 0 && elapsed(self.wrote_at.get(), now) >= beats_ms - BEAT_MARGIN_MS
    }
}

/// `<cx>,<cy>`
fn parse_beats(header: &str) -> Option<(u32, u32)> {
    let (can, wants) = header.split_once(',')?;
    Some((can.trim().parse().ok()?, wants.trim().parse().ok()?))
}

/// The first of: the token of the handshake, `Authorization` of CONNECT, `passcode`. In insecure mode the name is enough.
fn identify(verifier: &Verifier, stomp: &Stomp, frame: &Frame<'_>) -> Result<Identity, AuthError> {
    if let Some(identity) = stomp.known.borrow_mut().take() {
        return Ok(identity);
    }
    if let Some(line) = frame.header_in_any_case("authorization") {
        let token = match line.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(AuthError::Invalid("scheme")),
        };
        return verifier.verify(token);
    }
    let names = match verifier.is_insecure() {
        true => ["login", "passcode"],
        false => ["passcode", "passcode"],
    };
    let token = names.iter().find_map(|name| frame.header(name)).ok_or(AuthError::Missing)?;
    verifier.verify(&token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heart_beats_are_two_numbers() {
        assert_eq!(parse_beats("10000,20000"), Some((10_000, 20_000)));
        assert_eq!(parse_beats("0, 0"), Some((0, 0)));
        for bad in ["", "1", "1,", "1,2,3", "-1,0", "a,b", "4294967296,0"] {
            assert_eq!(parse_beats(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_heart_beat_is_sent_before_the_client_waits_for_it() {
        let stomp = Stomp::new(1, u32::MAX - 10);
        assert!(!stomp.beat_is_due(1_000_000), "nobody asked for any");
        stomp.beats_ms.set(5_000);
        let at = |ms: u32| (u32::MAX - 10).wrapping_add(ms);
        assert!(!stomp.beat_is_due(at(2_499)) && stomp.beat_is_due(at(2_500)));
        stomp.wrote(at(2_500));
        assert!(!stomp.beat_is_due(at(4_999)) && stomp.beat_is_due(at(5_000)));
    }
}
