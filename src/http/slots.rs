//! Which HTTP connections hold a slot, and which of them give it back when slots run short.
//!
//! A slot is a shared bound, so its holders are told apart by client address. A newcomer is not refused because
//! others idle: it takes the slot of the connection that has done nothing for the longest time, first from the
//! address that holds most. A connection whose request is being served is never closed for a newcomer.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use slab::Slab;

/// A connection that has not taken its response for so long may be closed for a newcomer.
const BLOCKED_GRACE: Duration = Duration::from_secs(1);

/// What a connection is doing, as far as its slot is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// The client owes a request or the rest of its head.
    Idle,
    /// The node owes a response.
    Serving,
    /// The client does not take its response.
    Blocked,
}

#[derive(Debug)]
struct Entry {
    /// `None`: a trusted proxy, which speaks for many clients.
    address: Option<IpAddr>,
    activity: Activity,
    since: Instant,
    eviction: Arc<Eviction>,
}

impl Entry {
    fn may_go(&self, now: Instant) -> bool {
        match self.activity {
            Activity::Idle => true,
            Activity::Serving => false,
            Activity::Blocked => now.saturating_duration_since(self.since) >= BLOCKED_GRACE,
        }
    }
}

#[derive(Debug, Default)]
struct Eviction {
    evicted: AtomicBool,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Table {
    entries: Slab<Entry>,
    /// By address; the hasher is seeded, since strangers choose the keys.
    held: HashMap<IpAddr, usize>,
}

/// The slots of one kind of connection, shared by all listeners.
#[derive(Debug)]
pub struct Slots {
    capacity: usize,
    per_address: usize,
    table: Mutex<Table>,
}

/// One connection's slot. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    key: usize,
    eviction: Arc<Eviction>,
}

/// The place of a connection that does without its slot for a while.
#[derive(Debug)]
pub(super) struct Vacated {
    slots: Arc<Slots>,
    address: Option<IpAddr>,
}

impl Vacated {
    /// A slot again, as a newcomer gets one.
    pub(super) fn admit(&self, now: Instant) -> Option<Slot> {
        self.slots.admit(self.address, now)
    }
}

impl Slots {
    /// At most `capacity` connections, and `per_address` of one client address.
    pub fn new(capacity: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { capacity, per_address, table: Mutex::default() })
    }

    /// Whether a newcomer gets a slot without anybody's leaving.
    pub(super) fn has_room(&self, address: Option<IpAddr>) -> bool {
        let table = self.lock();
        table.held_by(address) < self.per_address && table.entries.len() < self.capacity
    }

    /// A slot for a newcomer; `None` when every holder that it could replace is being served.
    pub(super) fn admit(self: &Arc<Self>, address: Option<IpAddr>, now: Instant) -> Option<Slot> {
        let mut table = self.lock();
        let is_over_share = table.held_by(address) >= self.per_address;
        if is_over_share || table.entries.len() >= self.capacity {
            let victim = table.victim(address.filter(|_| is_over_share), now)?;
            table.evict(victim);
        }
        if let Some(address) = address {
            *table.held.entry(address).or_default() += 1;
        }
        let eviction = Arc::new(Eviction::default());
        let entry = Entry { address, activity: Activity::Idle, since: now, eviction: eviction.clone() };
        let key = table.entries.insert(entry);
        Some(Slot { slots: self.clone(), key, eviction })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // Every change leaves the table whole, so that a panic elsewhere spoils nothing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn held_by(&self, address: Option<IpAddr>) -> usize {
        address.and_then(|address| self.held.get(&address)).copied().unwrap_or_default()
    }

    /// The connection to close: of `of` alone if given, else of the address that holds most, or of any if all of
    /// that one's are being served. Of those it is the one that has done nothing for the longest time.
    fn victim(&self, of: Option<IpAddr>, now: Instant) -> Option<usize> {
        if of.is_some() {
            return self.longest_idle(now, |address| address == of);
        }
        let largest = self.held.iter().max_by_key(|(_, held)| **held).map(|(address, _)| *address);
        let victim = self.longest_idle(now, |address| address.is_some() && address == largest);
        victim.or_else(|| self.longest_idle(now, |_| true))
    }

    fn longest_idle(&self, now: Instant, of: impl Fn(Option<IpAddr>) -> bool) -> Option<usize> {
        let asked = self.entries.iter().filter(|(_, entry)| of(entry.address) && entry.may_go(now));
        asked.min_by_key(|(_, entry)| entry.since).map(|(key, _)| key)
    }

    fn evict(&mut self, key: usize) {
        if let Some(eviction) = self.remove(key) {
            eviction.evicted.store(true, Ordering::Release);
            eviction.waker.wake();
        }
    }

    fn remove(&mut self, key: usize) -> Option<Arc<Eviction>> {
        let entry = self.entries.try_remove(key)?;
        if let Some(address) = entry.address {
            if let std::collections::hash_map::Entry::Occupied(mut held) = self.held.entry(address) {
                *held.get_mut() -= 1;
                if *held.get() == 0 {
                    held.remove();
                }
            }
        }
        Some(entry.eviction)
    }
}

impl Slot {
    /// Notes what the connection does from now on; `false` if it has lost its slot already.
    pub(super) fn set(&self, activity: Activity, now: Instant) -> bool {
        let mut table = self.slots.lock();
        match table.entries.get_mut(self.key).filter(|entry| Arc::ptr_eq(&entry.eviction, &self.eviction)) {
            Some(entry) => {
                (entry.activity, entry.since) = (activity, now);
                true
            }
            None => false,
        }
    }

    /// Gives the slot back, to ask for another one later. `None`: it was lost already.
    pub(super) fn vacate(self) -> Option<Vacated> {
        let table = self.slots.lock();
        let own = table.entries.get(self.key).filter(|entry| Arc::ptr_eq(&entry.eviction, &self.eviction));
        let address = own.map(|entry| entry.address);
        drop(table);
        address.map(|address| Vacated { slots: self.slots.clone(), address })
    }

    /// Returns when the connection must end.
    pub(super) async fn evicted(&self) {
        poll_fn(|cx| if self.poll_evicted(cx) { Poll::Ready(()) } else { Poll::Pending }).await
    }

    /// Whether the connection must end; if not, the task is woken when it must.
    pub(super) fn poll_evicted(&self, cx: &mut Context<'_>) -> bool {
        self.eviction.waker.register(cx.waker());
        self.eviction.evicted.load(Ordering::Acquire)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.lock();
        // The place in the table may belong to another connection by now.
        if table.entries.get(self.key).is_some_and(|entry| Arc::ptr_eq(&entry.eviction, &self.eviction)) {
            table.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.eviction.evicted.load(Ordering::Acquire)
    }

    #[test]
    fn a_newcomer_replaces_the_longest_idle_of_the_largest_holder() {
        let slots = Slots::new(4, 4);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let quiet = slots.admit(address(1), at(0)).unwrap();
        let held: Vec<_> = (1..4).map(|ms| slots.admit(address(2), at(ms)).unwrap()).collect();
        assert!(held[0].set(Activity::Idle, at(9)));
        let newcomer = slots.admit(address(3), at(10)).unwrap();
        let gone: Vec<bool> = held.iter().map(is_evicted).collect();
        assert_eq!((gone, is_evicted(&quiet)), (vec![false, true, false], false));
        assert!(!held[1].set(Activity::Serving, at(11)), "an evicted connection serves no request");
        drop((held, quiet, newcomer));
        assert!(slots.lock().entries.is_empty() && slots.lock().held.is_empty());
    }

    #[test]
    fn an_address_over_its_share_replaces_its_own() {
        let slots = Slots::new(10, 2);
        let now = Instant::now();
        let other = slots.admit(address(1), now).unwrap();
        let (first, second) = (slots.admit(address(2), now).unwrap(), slots.admit(address(2), now).unwrap());
        assert!(second.set(Activity::Serving, now));
        let third = slots.admit(address(2), now).unwrap();
        assert!(is_evicted(&first) && !is_evicted(&second) && !is_evicted(&other));
        assert!(third.set(Activity::Serving, now));
        assert!(slots.admit(address(2), now).is_none(), "nobody who is served is cut off");
        assert!(slots.admit(None, now).is_some(), "a proxy has no share");
    }

    #[test]
    fn whoever_steps_aside_comes_back_like_a_newcomer() {
        let slots = Slots::new(1, 1);
        let now = Instant::now();
        let first = slots.admit(address(1), now).unwrap();
        let aside = first.vacate().unwrap();
        let other = slots.admit(address(2), now).unwrap();
        assert!(other.set(Activity::Serving, now));
        assert!(aside.admit(now).is_none(), "nobody who is served is cut off");
        assert!(other.set(Activity::Idle, now));
        let again = aside.admit(now).unwrap();
        assert!(is_evicted(&other) && other.vacate().is_none());
        drop(again);
        assert!(slots.lock().entries.is_empty() && slots.lock().held.is_empty());
    }

    #[test]
    fn a_client_that_does_not_read_loses_its_slot_after_a_while() {
        let slots = Slots::new(1, 1);
        let now = Instant::now();
        let stuck = slots.admit(address(1), now).unwrap();
        assert!(stuck.set(Activity::Blocked, now));
        assert!(slots.admit(address(2), now).is_none());
        assert!(slots.admit(address(2), now + BLOCKED_GRACE).is_some());
        assert!(is_evicted(&stuck));
    }
}
