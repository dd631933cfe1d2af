//! Requests that went out to backends and await an answer: a table, bounded, with a share for each sender and key. Pure.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;
use std::time::Instant;

use super::Settle;
use crate::delivery::envelope::Scope;
use crate::ids::AppKey;

/// Requests at once: 1 in so many of the unsettled messages of a node, so that slow backends leave room for others.
const REQUESTS_SHARE: usize = 2;
/// The share of those that one sender may have, and that may be for one key: 1 in so many.
const ONE_SHARE: usize = 4;

/// The name of a request towards backends. 128 random bits: who has not seen it cannot answer in another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Correlation(u128);

impl Correlation {
    pub fn generate() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not one that [`Correlation`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCorrelation;

impl FromStr for Correlation {
    type Err = NoCorrelation;

    fn from_str(text: &str) -> Result<Self, NoCorrelation> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(is_hex) {
            return Err(NoCorrelation);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NoCorrelation)
    }
}

/// A request under way.
pub struct Request {
    /// The socket that asked: see [`crate::ids::SessionId::counter`]. `None`: it was asked over HTTP.
    pub session: Option<u64>,
    pub sender: Scope,
    pub key: AppKey,
    pub due: Instant,
    pub settle: Settle,
}

/// The table has no room, or none for this sender or key.
pub struct Full(pub Settle);

pub struct Requests {
    max: usize,
    open: HashMap<Correlation, Request>,
    /// Soonest first.
    due: BTreeSet<(Instant, Correlation)>,
    of_session: HashMap<u64, Vec<Correlation>>,
    of_sender: HashMap<Scope, usize>,
    of_key: HashMap<AppKey, usize>,
}

impl Requests {
    pub fn new(pending_max: usize) -> Self {
        Self {
            max: (pending_max / REQUESTS_SHARE).max(1),
            open: HashMap::new(),
            due: BTreeSet::new(),
            of_session: HashMap::new(),
            of_sender: HashMap::new(),
            of_key: HashMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn add(&mut self, id: Correlation, request: Request) -> Result<(), Full> {
        let share = (self.max / ONE_SHARE).max(1);
        let of = |count: Option<&usize>| count.copied().unwrap_or_default();
        let is_full = self.open.len() >= self.max
            || of(self.of_sender.get(&request.sender)) >= share
            || of(self.of_key.get(&request.key)) >= share;
        if is_full {
            return Err(Full(request.settle));
        }
        self.due.insert((request.due, id));
        if let Some(session) = request.session {
            self.of_session.entry(session).or_default().push(id);
        }
        *self.of_sender.entry(request.sender).or_default() += 1;
        *self.of_key.entry(request.key.clone()).or_default() += 1;
        self.open.insert(id, request);
        Ok(())
    }

    /// Takes a request out: whoever does so settles it. `None`: it has been settled, or never was one.
    pub fn take(&mut self, id: Correlation) -> Option<Settle> {
        let request = self.open.remove(&id)?;
        self.due.remove(&(request.due, id));
        if let Some(session) = request.session {
            if let Some(ids) = self.of_session.get_mut(&session) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.of_session.remove(&session);
                }
            }
        }
        count_down(&mut self.of_sender, &request.sender);
        count_down(&mut self.of_key, &request.key);
        Some(request.settle)
    }

    /// Takes out the requests of a session.
    pub fn take_of_session(&mut self, session: u64) -> Vec<Settle> {
        let ids = self.of_session.get(&session).cloned().unwrap_or_default();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Takes out those that are due, at most so many; the others are due at the next look.
    pub fn take_due(&mut self, now: Instant, max: usize) -> Vec<Settle> {
        let due: Vec<_> =
            self.due.iter().take_while(|(at, _)| *at <= now).take(max).map(|(_, id)| *id).collect();
        due.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Takes out all of them.
    pub fn take_all(&mut self) -> Vec<Settle> {
        let fresh = Self { max: self.max, ..Self::new(1) };
        std::mem::replace(self, fresh).open.into_values().map(|request| request.settle).collect()
    }
}

fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;
    use std::time::Duration;

    fn request(session: u64, sender: u64, key: &str, due: Instant, settled: &Arc<AtomicUsize>) -> Request {
        let settled = settled.clone();
        Request {
            session: Some(session),
            sender: Scope(sender),
            key: AppKey::new(key).unwrap(),
            due,
            settle: Box::new(move |_| {
                settled.fetch_add(1, Ordering::Relaxed);
            }),
        }
    }

    #[test]
    fn ids_are_read_as_they_are_written_and_nothing_else() {
        let id = Correlation::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, Correlation::generate());
        for bad in
            ["", "0", &"g".repeat(32), &"F".repeat(32), &"0".repeat(33), &format!("+{}", "0".repeat(31))]
        {
            assert_eq!(bad.parse::<Correlation>(), Err(NoCorrelation), "{bad}");
        }
    }

    #[test]
    fn each_request_is_taken_once_whichever_way_it_ends() {
        let (now, settled) = (Instant::now(), Arc::default());
        let at = |ms| now + Duration::from_millis(ms);
        let mut requests = Requests::new(1000);
        let ids: Vec<_> = (0..6).map(Correlation).collect();
        for (n, id) in ids.iter().enumerate() {
            let request = request(n as u64 / 2, n as u64, &format!("k{n}"), at(n as u64), &settled);
            assert!(requests.add(*id, request).is_ok());
        }
        assert!(requests.take(ids[0]).is_some() && requests.take(ids[0]).is_none());
        assert_eq!(requests.take_of_session(0).len(), 1);
        assert_eq!(requests.take_of_session(0).len(), 0);
        assert_eq!(requests.take_due(at(2), 10).len(), 1);
        assert_eq!((requests.take_due(at(9), 2).len(), requests.len()), (2, 1));
        assert_eq!(requests.take_all().len(), 1);
        assert!(requests.due.is_empty() && requests.of_session.is_empty());
        assert!(requests.of_sender.is_empty() && requests.of_key.is_empty());
        assert_eq!(settled.load(Ordering::Relaxed), 0, "whoever takes one settles it");
    }

    #[test]
    fn neither_a_sender_nor_a_key_takes_the_room_of_others() {
        let (now, settled) = (Instant::now(), Arc::default());
        // 8 requests, 2 for each sender and key.
        let mut requests = Requests::new(16);
        let mut next = 0;
        let mut add = |requests: &mut Requests, sender, key: &str| {
            next += 1;
            requests.add(Correlation(next), request(1, sender, key, now, &settled)).is_ok()
        };
        assert!(add(&mut requests, 1, "a") && add(&mut requests, 1, "b"));
        assert!(!add(&mut requests, 1, "c"), "a third one of one sender");
        assert!(add(&mut requests, 2, "a"));
        assert!(!add(&mut requests, 3, "a"), "a third one for one key");
        for other in 4..9 {
            assert!(add(&mut requests, other, &other.to_string()));
        }
        assert!(!add(&mut requests, 9, "x"), "no room at all");
        requests.take_all();
        assert!(add(&mut requests, 1, "c"));
    }
}
