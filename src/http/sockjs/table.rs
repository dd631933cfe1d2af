//! The sessions whose clients speak HTTP, by the names that the clients gave them; bounded, and with a share for each address.
//!
//! Locks: the table's mutex is held for one access, and nothing is called meanwhile; that of the tasks is never held together
//! with it.

use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::bridge::{Bridge, Order};
use crate::budgets::{Share, Shares};

/// Longest name of a server or a session, in bytes. Those of sockjs-client have 3 and 8.
const NAME_BYTES_MAX: usize = 64;
/// A session that speaks HTTP costs three file descriptors instead of one: of a node's sessions, and of an address's, there
/// may be one in so many.
const PART: usize = 4;

/// `<server>/<session>`. A client that knows it has the session, so that it has no text for logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(Arc<str>);

impl Name {
    pub(super) fn new(server: &str, session: &str) -> Option<Self> {
        let fits = |name: &str| name.len() <= NAME_BYTES_MAX;
        (fits(server) && fits(session)).then(|| Self(format!("{server}/{session}").into()))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All sessions of a node that speak HTTP, with their tasks: dropping it ends them.
#[derive(Debug)]
pub struct Fallbacks {
    sessions_max: usize,
    /// Overflow policy: the request is refused with 429.
    shares: Arc<Shares>,
    /// The hasher is seeded, since strangers choose the keys. Overflow policy: the request is refused with 503.
    sessions: Mutex<HashMap<Name, mpsc::Sender<Order>>>,
    /// As many as sessions, and those that have ended since the last one began.
    tasks: Mutex<JoinSet<()>>,
}

/// A session's place in the table. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Listed {
    of: Arc<Fallbacks>,
    name: Name,
    _share: Option<Share>,
}

impl Fallbacks {
    /// For a node with so many sessions, `per_address` of them of one address.
    pub fn new(sessions: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            sessions_max: sessions.div_ceil(PART),
            shares: Shares::new(per_address.div_ceil(PART)),
            sessions: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, mpsc::Sender<Order>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, name: &Name) -> Option<mpsc::Sender<Order>> {
        self.lock().get(name).cloned()
    }

    /// Whether a session more fits in.
    pub(super) fn has_room(&self) -> bool {
        self.lock().len() < self.sessions_max
    }

    /// A place among those of the client's address.
    pub(super) fn share(&self, address: IpAddr) -> Option<Share> {
        self.shares.take(address)
    }

    /// Lists a session and runs its task; must be called in the runtime that its socket belongs to. `false`: another one has
    /// the name by now, or no session more fits in.
    pub(super) fn begin(
        self: &Arc<Self>,
        name: &Name,
        share: Option<Share>,
        (bridge, orders): (Bridge, mpsc::Sender<Order>),
    ) -> bool {
        {
            let mut sessions = self.lock();
            if sessions.len() >= self.sessions_max {
                return false;
            }
            match sessions.entry(name.clone()) {
                Entry::Occupied(_) => return false,
                Entry::Vacant(place) => place.insert(orders),
            };
        }
        let listed = Listed { of: self.clone(), name: name.clone(), _share: share };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a session over HTTP ended in a panic");
            }
        }
        tasks.spawn(bridge.run(listed));
        true
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.of.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::UnixStream;

    use super::*;

    fn bridge() -> (UnixStream, (Bridge, mpsc::Sender<Order>)) {
        let (session, client) = UnixStream::pair().unwrap();
        (session, Bridge::new(client, Instant::now()))
    }

    #[test]
    fn names_are_bounded_and_show_in_no_log() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert!(Name::new(&long, "a").is_none() && Name::new("a", &long).is_none());
        let name = Name::new("000", "a-secret").unwrap();
        assert_eq!(format!("{name:?}"), "***");
        assert!(name != Name::new("001", "a-secret").unwrap());
    }

    #[tokio::test]
    async fn the_table_is_bounded_and_nothing_is_left_behind() {
        let table = Fallbacks::new(8, 4);
        let address = IpAddr::from([10, 0, 0, 1]);
        let names = ["a", "b", "c"].map(|name| Name::new("000", name).unwrap());
        let (_one, first) = bridge();
        let share = table.share(address).unwrap();
        assert!(table.share(address).is_none(), "a share of the address's sessions");
        assert!(table.begin(&names[0], Some(share), first) && table.has_room());
        let (_two, second) = bridge();
        assert!(!table.begin(&names[0], None, second), "there is one of that name");
        let (_two, second) = bridge();
        assert!(table.begin(&names[1], None, second) && !table.has_room());
        let (_three, third) = bridge();
        assert!(!table.begin(&names[2], None, third));
        assert!(table.find(&names[0]).is_some() && table.find(&names[2]).is_none());
        // However they end.
        let mut tasks = std::mem::take(&mut *table.tasks.lock().unwrap());
        tasks.shutdown().await;
        assert!(table.lock().is_empty() && table.share(address).is_some());
    }
}
