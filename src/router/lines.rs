//! Which users' messages must wait so that they keep their order. Pure.
//!
//! While a message for a user is being stored, a newer one must not reach the user by the straight way: it is
//! stored behind it, or, if the user has come back meanwhile, held until the mailbox has it.

use std::collections::{HashMap, VecDeque};

use crate::ids::UserId;

#[derive(Debug)]
struct Line<T> {
    /// Sent to nodes, not settled yet.
    attempts: u32,
    /// On their way into the mailbox.
    deposits: u32,
    held: VecDeque<T>,
}

#[derive(Debug)]
pub(super) struct Lines<T> {
    lines: HashMap<UserId, Line<T>>,
    held: usize,
    held_max: usize,
}

/// What to do with a message for a user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<T> {
    /// Send it to the nodes that hold the user.
    Send(T),
    Store(T),
    /// It waits for what is being stored.
    Held,
    /// Too many wait.
    Overloaded(T),
}

impl<T> Lines<T> {
    /// `held_max`: messages waiting over all users. Overflow policy: the sender is told `overloaded`.
    pub(super) fn new(held_max: usize) -> Self {
        Self { lines: HashMap::new(), held: 0, held_max }
    }

    /// A new message for a user who is connected somewhere, or not. `attempts_max` bounds how many may await
    /// receipts of one user; more are stored, so that one slow client cannot use up what all share.
    pub(super) fn turn(&mut self, user: &UserId, item: T, connected: bool, attempts_max: u32) -> Turn<T> {
        let Some(line) = self.lines.get_mut(user) else {
            return if connected { Turn::Send(item) } else { Turn::Store(item) };
        };
        let straight = line.deposits == 0 && line.held.is_empty();
        match (connected, straight) {
            (true, true) if line.attempts < attempts_max => Turn::Send(item),
            (false, _) if line.held.is_empty() => Turn::Store(item),
            (true, true) => Turn::Store(item),
            _ if self.held >= self.held_max => Turn::Overloaded(item),
            _ => {
                line.held.push_back(item);
                self.held += 1;
                Turn::Held
            }
        }
    }

    fn line(&mut self, user: &UserId) -> &mut Line<T> {
        self.lines.entry(user.clone()).or_insert(Line { attempts: 0, deposits: 0, held: VecDeque::new() })
    }

    pub(super) fn attempt_began(&mut self, user: &UserId) {
        self.line(user).attempts += 1;
    }

    pub(super) fn attempt_ended(&mut self, user: &UserId) {
        self.line(user).attempts -= 1;
        self.sweep(user);
    }

    pub(super) fn deposit_began(&mut self, user: &UserId) {
        self.line(user).deposits += 1;
    }

    /// Returns what waited for the last deposit, in order.
    pub(super) fn deposit_ended(&mut self, user: &UserId) -> VecDeque<T> {
        let line = self.line(user);
        line.deposits -= 1;
        let released = match line.deposits {
            0 => std::mem::take(&mut line.held),
            _ => VecDeque::new(),
        };
        self.held -= released.len();
        self.sweep(user);
        released
    }

    fn sweep(&mut self, user: &UserId) {
        let idle = |line: &Line<T>| line.attempts == 0 && line.deposits == 0 && line.held.is_empty();
        if self.lines.get(user).is_some_and(idle) {
            self.lines.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_newer_waits_for_what_is_being_stored() {
        let (mut lines, user) = (Lines::new(2), UserId::new("42").unwrap());
        assert_eq!(lines.turn(&user, 1, true, 9), Turn::Send(1));
        assert_eq!(lines.turn(&user, 2, false, 9), Turn::Store(2));
        lines.deposit_began(&user);
        assert_eq!(lines.turn(&user, 3, false, 9), Turn::Store(3));
        lines.deposit_began(&user);
        assert_eq!(lines.turn(&user, 4, true, 9), Turn::Held, "the user is back, but 2 and 3 come first");
        assert_eq!(lines.turn(&user, 5, false, 9), Turn::Held, "gone again, but 4 comes first");
        assert_eq!(lines.turn(&user, 6, true, 9), Turn::Overloaded(6));
        assert!(lines.deposit_ended(&user).is_empty());
        assert_eq!(lines.deposit_ended(&user), [4, 5]);
        assert!(lines.lines.is_empty());
        assert_eq!(lines.turn(&user, 7, true, 9), Turn::Send(7));
    }

    #[test]
    fn one_user_cannot_have_too_many_attempts() {
        let (mut lines, user) = (Lines::new(9), UserId::new("42").unwrap());
        lines.attempt_began(&user);
        lines.attempt_began(&user);
        assert_eq!(lines.turn(&user, 3, true, 2), Turn::Store(3));
        lines.attempt_ended(&user);
        assert_eq!(lines.turn(&user, 4, true, 2), Turn::Send(4));
        lines.attempt_ended(&user);
        assert!(lines.lines.is_empty());
    }
}
