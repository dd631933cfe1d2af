//! Sessions that take no messages for their user, and must be found all the same when it is disconnected.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use super::{Hub, Local};
use crate::ids::UserId;

/// Few: sessions that speak STOMP and have not subscribed to anything of their user. Bounded by the number of sessions.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<HashMap<UserId, SmallVec<[Local; 1]>>>);

impl Silent {
    fn lock(&self) -> MutexGuard<'_, HashMap<UserId, SmallVec<[Local; 1]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, user: &UserId, session: Local) {
        self.lock().entry(user.clone()).or_default().push(session);
    }

    /// Whether it was there.
    pub(super) fn remove(&self, user: &UserId, counter: u64) -> bool {
        let mut all = self.lock();
        let Some(sessions) = all.get_mut(user) else { return false };
        let before = sessions.len();
        sessions.retain(|session| session.counter != counter);
        let is_gone = sessions.len() < before;
        if sessions.is_empty() {
            all.remove(user);
        }
        is_gone
    }

    pub(super) fn of(&self, user: &UserId) -> SmallVec<[Local; 1]> {
        self.lock().get(user).cloned().unwrap_or_default()
    }
}

impl Hub {
    /// Adds a session that takes no messages for its user; whoever closes the user's sessions finds it.
    pub fn register_silent(&self, user: &UserId, session: Local) {
        self.silent.add(user, session);
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    /// The inverse of [`Hub::register_silent`].
    pub fn forget_silent(&self, user: &UserId, counter: u64) {
        if self.silent.remove(user, counter) {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Every session of the user on this node, also those that take no messages for it.
    pub fn all_sessions_of(&self, user: &UserId) -> SmallVec<[Local; 1]> {
        let mut sessions = self.sessions_of(user);
        let known = |session: &Local| sessions.iter().any(|of| of.counter == session.counter);
        let silent: SmallVec<[Local; 1]> =
            self.silent.of(user).into_iter().filter(|session| !known(session)).collect();
        sessions.extend(silent);
        sessions
    }
}
