//! Which users' messages must wait so that they keep their order. Pure.
//!
//! A newer message must not overtake an older one on another way: while something is being stored, the straight
//! way is closed; while something is on the straight way, nothing newer is stored. What may go neither way is held.

use std::collections::{HashMap, VecDeque};

use crate::ids::UserId;

#[derive(Debug)]
struct Line<T> {
    /// Sent to nodes, not settled yet.
    attempts: u32,
    /// On their way into the mailbox.
    deposits: u32,
    held: VecDeque<T>,
    /// Somebody takes what is held, one after the other; anything new goes behind it.
    releasing: bool,
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
    /// It waits for its turn.
    Held,
    /// Too many wait.
    Overloaded(T),
}

impl<T> Line<T> {
    fn may_send(&self, attempts_max: u32) -> bool {
        self.deposits == 0 && self.attempts < attempts_max
    }

    fn may_store(&self) -> bool {
        self.attempts == 0
    }
}

impl<T> Lines<T> {
    /// `held_max`: messages waiting over all users. Overflow policy: the sender is told `overloaded`.
    pub(super) fn new(held_max: usize) -> Self {
        Self { lines: HashMap::new(), held: 0, held_max }
    }

    /// A new message for a user who is connected somewhere, or not. `attempts_max` bounds how many of one user may
    /// await receipts.
    pub(super) fn turn(&mut self, user: &UserId, item: T, connected: bool, attempts_max: u32) -> Turn<T> {
        let Some(line) = self.lines.get_mut(user) else {
            return if connected { Turn::Send(item) } else { Turn::Store(item) };
        };
        let first = line.held.is_empty() && !line.releasing;
        match connected {
            true if first && line.may_send(attempts_max) => Turn::Send(item),
            false if first && line.may_store() => Turn::Store(item),
            _ if self.held >= self.held_max => Turn::Overloaded(item),
            _ => {
                line.held.push_back(item);
                self.held += 1;
                Turn::Held
            }
        }
    }

    /// Whether the caller is to take what is held, by [`Lines::next`], until there is no next.
    pub(super) fn release(&mut self, user: &UserId) -> bool {
        match self.lines.get_mut(user) {
            Some(line) if !line.releasing && !line.held.is_empty() => {
                line.releasing = true;
                true
            }
            _ => false,
        }
    }

    /// The oldest that is held, if it may go now: to nodes, or, if the user is not connected, into the mailbox.
    pub(super) fn next(&mut self, user: &UserId, connected: bool, attempts_max: u32) -> Option<T> {
        let line = self.lines.get_mut(user)?;
        let may_go = if connected { line.may_send(attempts_max) } else { line.may_store() };
        let next = if may_go { line.held.pop_front() } else { None };
        match next {
            Some(_) => self.held -= 1,
            None => {
                line.releasing = false;
                self.sweep(user);
            }
        }
        next
    }

    /// What is held or being stored.
    pub(super) fn waiting(&self) -> usize {
        self.held + self.lines.values().map(|line| line.deposits as usize).sum::<usize>()
    }

    fn line(&mut self, user: &UserId) -> &mut Line<T> {
        let new = || Line { attempts: 0, deposits: 0, held: VecDeque::new(), releasing: false };
        self.lines.entry(user.clone()).or_insert_with(new)
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

    pub(super) fn deposit_ended(&mut self, user: &UserId) {
        self.line(user).deposits -= 1;
        self.sweep(user);
    }

    fn sweep(&mut self, user: &UserId) {
        let idle = |line: &Line<T>| {
            line.attempts == 0 && line.deposits == 0 && line.held.is_empty() && !line.releasing
        };
        if self.lines.get(user).is_some_and(idle) {
            self.lines.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        lines.deposit_ended(&user);
        assert!(lines.release(&user) && !lines.release(&user));
        assert_eq!(lines.next(&user, true, 9), None, "one is still being stored");
        lines.deposit_ended(&user);
        assert!(lines.release(&user));
        assert_eq!(lines.next(&user, true, 9), Some(4));
        assert_eq!(lines.turn(&user, 7, true, 9), Turn::Held, "5 goes before it");
        assert_eq!([lines.next(&user, true, 9), lines.next(&user, true, 9)], [Some(5), Some(7)]);
        assert_eq!(lines.next(&user, true, 9), None);
        assert!(lines.lines.is_empty() && lines.held == 0);
    }

    #[test]
    fn nothing_is_stored_while_something_older_is_on_its_way() {
        let (mut lines, user) = (Lines::new(9), UserId::new("42").unwrap());
        lines.attempt_began(&user);
        lines.attempt_began(&user);
        assert_eq!(lines.turn(&user, 3, true, 2), Turn::Held, "one user cannot have too many attempts");
        lines.attempt_ended(&user);
        assert!(lines.release(&user));
        assert_eq!(lines.next(&user, false, 2), None, "the user is gone, but something older is on its way");
        lines.attempt_ended(&user);
        assert!(lines.release(&user));
        assert_eq!([lines.next(&user, false, 2), lines.next(&user, false, 2)], [Some(3), None]);
        assert!(lines.lines.is_empty());
    }

    proptest! {
        /// Whatever the user does, messages leave in their order, and never on both ways at once.
        #[test]
        fn order_is_kept(steps in prop::collection::vec((0u8..4, any::<bool>()), 1..200)) {
            let (mut lines, user) = (Lines::new(1000), UserId::new("42").unwrap());
            let (mut new, mut left, mut attempts, mut deposits) = (0u32, Vec::new(), 0u32, 0u32);
            for (step, connected) in steps {
                let mut go = |lines: &mut Lines<u32>, item, send, attempts: &mut u32, deposits: &mut u32| {
                    left.push(item);
                    match send {
                        true => { lines.attempt_began(&user); *attempts += 1 }
                        false => { lines.deposit_began(&user); *deposits += 1 }
                    }
                };
                match step {
                    0 | 1 => {
                        match lines.turn(&user, new, connected, 4) {
                            Turn::Send(item) => go(&mut lines, item, true, &mut attempts, &mut deposits),
                            Turn::Store(item) => go(&mut lines, item, false, &mut attempts, &mut deposits),
                            Turn::Held | Turn::Overloaded(_) => {}
                        }
                        new += 1;
                    }
                    2 if attempts > 0 => { lines.attempt_ended(&user); attempts -= 1 }
                    3 if deposits > 0 => { lines.deposit_ended(&user); deposits -= 1 }
                    _ => {}
                }
                if step >= 2 && lines.release(&user) {
                    while let Some(item) = lines.next(&user, connected, 4) {
                        go(&mut lines, item, connected, &mut attempts, &mut deposits);
                    }
                }
                prop_assert!(attempts == 0 || deposits == 0);
            }
            prop_assert!(left.is_sorted(), "{:?}", left);
        }
    }
}
