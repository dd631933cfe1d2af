//! The deposits of one box in their order: which to send, and when to make the box first.

use std::collections::BTreeMap;

use crate::bus::Outcome;

/// Deposits by a number that ascends in the order in which they were handed in.
#[derive(Debug)]
pub struct Line<D> {
    /// The box was there when this node last heard of it.
    known: bool,
    /// It is being made.
    making: bool,
    waiting: BTreeMap<u64, D>,
    in_flight: BTreeMap<u64, D>,
}

impl<D> Default for Line<D> {
    fn default() -> Self {
        Self { known: false, making: false, waiting: BTreeMap::new(), in_flight: BTreeMap::new() }
    }
}

impl<D> Line<D> {
    pub fn add(&mut self, number: u64, deposit: D) {
        self.waiting.insert(number, deposit);
    }

    /// Somebody has seen the box, unless it is known to be gone.
    pub fn seen(&mut self) {
        self.known |= !self.making && self.waiting.is_empty() && self.in_flight.is_empty();
    }

    /// The numbers of what is to be sent now, in order; [`Line::in_flight`] finds it.
    pub fn send(&mut self) -> Vec<u64> {
        if !self.known {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut self.waiting);
        let numbers = waiting.keys().copied().collect();
        self.in_flight.extend(waiting);
        numbers
    }

    pub fn in_flight(&self, number: u64) -> Option<&D> {
        self.in_flight.get(&number)
    }

    /// Whether to make the box now. Not while something is in flight, which may come back, and then goes first.
    pub fn make(&mut self) -> bool {
        let make = !self.known && !self.making && self.in_flight.is_empty() && !self.waiting.is_empty();
        self.making |= make;
        make
    }

    /// The broker has answered: the deposit, unless it waits for the box to be made again.
    pub fn answered(&mut self, number: u64, outcome: Outcome, again: bool) -> Option<D> {
        let deposit = self.in_flight.remove(&number)?;
        if outcome != Outcome::Unroutable {
            return Some(deposit);
        }
        self.known = false;
        if !again {
            return Some(deposit);
        }
        self.waiting.insert(number, deposit);
        None
    }

    /// The box was made, or could not be: then all that waited for it.
    pub fn made(&mut self, made: bool) -> Vec<D> {
        self.making = false;
        self.known = made;
        if made {
            return Vec::new();
        }
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// Its time is over, unless it is in flight.
    pub fn expire(&mut self, number: u64) -> Option<D> {
        self.waiting.remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_made_before_its_first_deposit() {
        let mut line = Line::default();
        line.add(1, "a");
        assert!(line.send().is_empty());
        assert!(line.make());
        assert!(!line.make(), "once");
        line.add(2, "b");
        assert!(line.made(true).is_empty());
        assert_eq!(line.send(), [1, 2]);
        assert_eq!(line.answered(1, Outcome::Confirmed, true), Some("a"));
    }

    #[test]
    fn what_came_back_goes_before_what_followed() {
        let mut line = Line::default();
        line.seen();
        for number in 1..=3 {
            line.add(number, number);
        }
        assert_eq!(line.send(), [1, 2, 3]);
        assert_eq!(line.answered(1, Outcome::Unroutable, true), None);
        line.add(4, 4);
        line.seen();
        assert!(line.send().is_empty(), "it is known to be gone");
        assert!(!line.make(), "two are in flight");
        assert_eq!(line.answered(2, Outcome::Unavailable, true), Some(2));
        assert_eq!(line.answered(3, Outcome::Unroutable, true), None);
        assert!(line.make());
        assert_eq!(line.expire(4), Some(4));
        line.made(true);
        assert_eq!(line.send(), [1, 3]);
        assert_eq!(line.answered(1, Outcome::Unroutable, false), Some(1));
        assert_eq!(line.answered(3, Outcome::Unroutable, true), None);
        assert!(line.make());
        assert_eq!(line.made(false), [3]);
    }
}
