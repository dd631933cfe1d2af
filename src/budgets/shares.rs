//! How many things of one kind each address holds at the same time.
//!
//! Locks: the table's mutex is held for one access, and nothing is called meanwhile.

use std::collections::hash_map::{Entry, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The shares of all addresses. There are no more entries than things that are held.
#[derive(Debug)]
pub struct Shares {
    per_address: usize,
    /// The hasher is seeded, since strangers choose the keys.
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// One thing of an address. Dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    of: Arc<Shares>,
    address: IpAddr,
}

impl Shares {
    pub fn new(per_address: usize) -> Arc<Self> {
        Arc::new(Self { per_address, held: Mutex::default() })
    }

    /// `None`: the address holds as many as it may.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Share { of: self.clone(), address })
    }
}

impl Share {
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = held.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_share_and_none_is_left_behind() {
        let shares = Shares::new(2);
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let one = shares.take(address(1)).unwrap();
        let two = shares.take(address(1)).unwrap();
        assert!(shares.take(address(1)).is_none());
        let other = shares.take(address(2)).unwrap();
        drop(one);
        let again = shares.take(address(1)).unwrap();
        drop((two, other, again));
        assert!(shares.held.lock().unwrap().is_empty());
    }
}
