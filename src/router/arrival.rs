//! Messages that reach this node's sessions, from here or from another node; duplicates end here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::delivery::envelope::{Envelope, Origin};
use crate::delivery::seen::{Seen, SeenKey};
use crate::hub::{Counters, Full, Tally};
use crate::protocol::target::Target;
use crate::protocol::wire;
use crate::router::mail::Park;
use crate::router::{now_ms, Router};

/// Remembered arrivals: about 20 MB when full.
const SEEN_MAX: usize = 200_000;
/// Longer than any chain of attempts and redeliveries takes.
const SEEN_AGE_MAX: Duration = Duration::from_secs(600);

/// What is known of a message that arrived before.
#[derive(Debug)]
enum Arrival {
    /// On its way to sockets; these origins are answered when that is known.
    InFlight(SmallVec<[Origin; 1]>),
    Taken(u32),
}

#[derive(Debug)]
pub(super) struct Arrivals(Mutex<Seen<Arrival>>);

impl Arrivals {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Seen::new(SEEN_MAX, SEEN_AGE_MAX)))
    }

    fn lock(&self) -> MutexGuard<'_, Seen<Arrival>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the message is new here. If it is not, `known` answers for it.
    fn begin(&self, key: SeenKey, origin: Option<&Origin>, known: impl FnOnce(u32)) -> bool {
        let mut seen = self.lock();
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("no-dedup") {
            seen.forget(key);
        }
        match seen.get_mut(key) {
            None => {
                seen.insert(key, Arrival::InFlight(origin.cloned().into_iter().collect()), Instant::now());
                return true;
            }
            Some(Arrival::InFlight(origins)) => origins.extend(origin.cloned()),
            Some(Arrival::Taken(sessions)) => {
                let sessions = *sessions;
                drop(seen);
                known(sessions);
            }
        }
        false
    }

    /// Returns who is to be answered. A message that nobody took is forgotten: it may come again.
    fn end(&self, key: SeenKey, sessions: u32) -> SmallVec<[Origin; 1]> {
        let mut seen = self.lock();
        let Some(arrival) = seen.get_mut(key) else { return SmallVec::new() };
        let before = match sessions {
            0 => seen.forget(key),
            _ => Some(std::mem::replace(arrival, Arrival::Taken(sessions))),
        };
        match before {
            Some(Arrival::InFlight(origins)) => origins,
            _ => SmallVec::new(),
        }
    }
}

impl Router {
    /// Takes in a message that is for sessions here, and answers its origin when they have taken it. It may have
    /// to wait for the user's mail. `Err`: a worker has no room; nothing has happened, try again.
    pub fn arrive(self: &Arc<Self>, envelope: Envelope) -> Result<(), Full> {
        let Target::User(user) = &envelope.target else { return self.hand_over(envelope) };
        if envelope.is_mail {
            return self.hand_over(envelope);
        }
        let user = user.clone();
        match self.park(&user, envelope) {
            Park::Open(envelope) => self.hand_over(envelope),
            Park::Parked => Ok(()),
            Park::Full(Envelope { origin: Some(origin), .. }) => {
                self.answer(origin, 0);
                Ok(())
            }
            // At-most-once: dropped when in doubt.
            Park::Full(_) => Ok(()),
        }
    }

    /// Hands a message to the sessions here that it is for, unless it came before.
    pub(super) fn hand_over(self: &Arc<Self>, envelope: Envelope) -> Result<(), Full> {
        if envelope.is_expired(now_ms()) {
            // The origin sees for itself why nobody took it.
            envelope.origin.into_iter().for_each(|origin| self.answer(origin, 0));
            return Ok(());
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("shuffle") && crate::sabotage::every(8) {
            let router = self.clone();
            crate::sabotage::later(Duration::from_millis(50), move || {
                let _ = router.hand_over(envelope);
            });
            return Ok(());
        }
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("late-duplicate") && crate::sabotage::every(20) {
            let (router, again) = (self.clone(), envelope.clone());
            crate::sabotage::later(Duration::from_secs(20), move || {
                let Target::User(user) = &again.target else { return };
                let sessions = router.hub.reserve_user(user);
                let frame = wire::text_frame(&again.frame);
                let _ = sessions.map(|sessions| sessions.deliver(&frame, &again.id, Tally::new(|_| ())));
            });
        }
        let Envelope { id, scope, target, origin, frame, .. } = envelope;
        let key = SeenKey::new(scope, &id, &target);
        let reservation = match &target {
            Target::User(user) => self.hub.reserve_user(user)?,
            Target::Session(session) if session.node == *self.node() => {
                self.hub.reserve(Counters::from_slice(&[session.counter]))?
            }
            Target::Broadcast => return self.arrive_for_all(key, &frame),
            // A session of another life of this node, or a channel: nobody here.
            Target::Session(_) | Target::Channel(_) => self.hub.reserve(Counters::new())?,
        };
        let answer = |sessions| origin.iter().for_each(|origin| self.answer(origin.clone(), sessions));
        if self.arrivals.begin(key, origin.as_ref(), answer) {
            let router = self.clone();
            let tally = Tally::new(move |sessions| {
                if let (0, Target::User(user)) = (sessions, &target) {
                    // Refused, though the user may be here: it goes to the mailbox now, and before anything newer.
                    router.mail_for(user);
                }
                for origin in router.arrivals.end(key, sessions) {
                    router.answer(origin, sessions);
                }
            });
            reservation.deliver(&wire::text_frame(&frame), &id, tally);
        }
        Ok(())
    }

    fn arrive_for_all(&self, key: SeenKey, frame: &[u8]) -> Result<(), Full> {
        if self.arrivals.begin(key, None, |_| ()) {
            if let Err(full) = self.hub.deliver_all(&wire::text_frame(frame)) {
                self.arrivals.end(key, 0);
                return Err(full);
            }
            self.arrivals.end(key, 1);
        }
        Ok(())
    }

    fn answer(self: &Arc<Self>, origin: Origin, sessions: u32) {
        if origin.node == *self.node() {
            self.receipt(origin.tag, &origin.node, sessions);
        } else {
            self.receipts.send(origin, sessions);
        }
    }
}
