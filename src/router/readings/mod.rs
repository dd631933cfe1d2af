//! Reads the boxes of users who are here and whose mail goes before what is newer.
//!
//! At most one reading of a box is under way on this node; it serves all users of the box who wait for it. Two limits
//! keep one box from holding up the others: how many rounds are read at the same time, and how many boxes are held
//! while their users take their mail.
//!
//! - `reader.rs`: one reading, from attaching to closing.
//! - `round.rs`: sorts what a round brings (pure).
//! - `sweep.rs`: reads boxes that this node knows nothing of, and those that were not read for long.

mod reader;
mod round;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, Instant};

use crate::bus::BoxNumber;
use crate::ids::{NodeId, UserId, UserKey};
use crate::router::Router;

/// Rounds that are read at the same time: this bounds the load of a reconnect storm on the broker.
const ROUNDS_MAX: usize = 8;
/// Boxes that this node holds at the same time; a reading beyond it waits for one that ends.
const HELD_MAX: usize = 256;
/// How long mail that was taken after its reading ended may lie in its box: it costs nobody anything.
const CLEAN_AFTER: Duration = Duration::from_millis(500);

/// AMQP `type` of the word by which a node asks for a box that another node reads.
const WANT_KIND: &str = "warren.box-want";

/// "I want to read this box and was refused."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Want {
    #[serde(rename = "box")]
    number: u32,
    from: NodeId,
}

/// What is known of one box on this node.
#[derive(Default)]
struct Desk {
    /// Users whose mail is to be read; the next round takes them.
    users: HashSet<UserId>,
    /// Not before: for what is not urgent, or was refused.
    not_before: Option<Instant>,
    /// Another node has asked for the box.
    yielded_until: Option<Instant>,
    /// A reading is under way; it is told of news by this.
    reading: Option<Arc<News>>,
}

/// What a reading is told from outside.
#[derive(Default)]
pub(super) struct News {
    changed: Notify,
    /// Another node wants the box.
    wanted_elsewhere: std::sync::atomic::AtomicBool,
}

/// A handle; all clones share the desks.
#[derive(Clone)]
pub struct Readings {
    shared: Arc<Shared>,
}

struct Shared {
    boxes: NonZeroU32,
    /// Held for moments only, with no other lock taken inside.
    desks: Mutex<HashMap<BoxNumber, Desk>>,
    wake: Notify,
    rounds: Arc<Semaphore>,
    held: Arc<Semaphore>,
}

impl Readings {
    pub fn new(boxes: NonZeroU32) -> Self {
        let shared = Shared {
            boxes,
            desks: Mutex::default(),
            wake: Notify::new(),
            rounds: Arc::new(Semaphore::new(ROUNDS_MAX)),
            held: Arc::new(Semaphore::new(HELD_MAX)),
        };
        Self { shared: Arc::new(shared) }
    }

    fn desks(&self) -> MutexGuard<'_, HashMap<BoxNumber, Desk>> {
        self.shared.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self, user: UserKey) -> BoxNumber {
        BoxNumber::of(user, self.shared.boxes)
    }

    /// The box of a user is to be read now: what is newer waits for it.
    pub fn want(&self, user: UserId) {
        self.put(user, None);
    }

    /// The same, but nothing waits for it.
    pub fn want_later(&self, user: UserId) {
        self.put(user, Some(Instant::now() + CLEAN_AFTER));
    }

    fn put(&self, user: UserId, not_before: Option<Instant>) {
        let number = self.number(UserKey::of(&user));
        let mut desks = self.desks();
        let desk = desks.entry(number).or_default();
        let is_new = desk.users.is_empty();
        desk.users.insert(user);
        desk.not_before = match (is_new, desk.not_before, not_before) {
            (true, _, at) => at,
            (false, Some(before), Some(at)) => Some(before.min(at)),
            (false, _, _) => None,
        };
        if let Some(news) = &desk.reading {
            news.changed.notify_one();
        }
        drop(desks);
        self.shared.wake.notify_one();
    }

    /// A mail of the user was acknowledged: its reading may be over.
    pub fn on_acknowledged(&self, user: UserKey) {
        if let Some(news) = self.desks().get(&self.number(user)).and_then(|desk| desk.reading.as_ref()) {
            news.changed.notify_one();
        }
    }

    /// Takes gossip that is meant for readings; `false` if it is not.
    pub fn on_gossip(&self, kind: &str, body: &[u8]) -> Result<bool, String> {
        if kind != WANT_KIND {
            return Ok(false);
        }
        let want: Want = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if let Some(news) = self.desks().get(&BoxNumber(want.number)).and_then(|desk| desk.reading.as_ref()) {
            news.wanted_elsewhere.store(true, std::sync::atomic::Ordering::Relaxed);
            news.changed.notify_one();
        }
        Ok(true)
    }

    /// What could wait waits no longer: the node is about to end.
    pub fn hurry(&self) {
        self.desks().values_mut().for_each(|desk| desk.not_before = None);
        self.shared.wake.notify_one();
    }

    /// Nothing is to be read, and nothing is being read.
    pub fn are_over(&self) -> bool {
        self.desks().is_empty()
    }

    /// The next box to read, and when the one after it is due.
    fn next(&self, now: Instant) -> (Option<(BoxNumber, Arc<News>)>, Option<Instant>) {
        let mut desks = self.desks();
        let mut later: Option<Instant> = None;
        for (number, desk) in
            desks.iter_mut().filter(|(_, desk)| desk.reading.is_none() && !desk.users.is_empty())
        {
            match desk.not_before.max(desk.yielded_until).filter(|at| *at > now) {
                Some(at) => later = Some(later.map_or(at, |before| before.min(at))),
                None => {
                    let news = Arc::new(News::default());
                    desk.reading = Some(news.clone());
                    return (Some((*number, news)), later);
                }
            }
        }
        (None, later)
    }

    /// The users of a box who wait to be read for.
    fn take_users(&self, number: BoxNumber) -> HashSet<UserId> {
        self.desks().get_mut(&number).map(|desk| std::mem::take(&mut desk.users)).unwrap_or_default()
    }

    /// The box is not read again for so long, whatever is wanted.
    fn leave_alone(&self, number: BoxNumber, pause: Duration) {
        if let Some(desk) = self.desks().get_mut(&number) {
            desk.yielded_until = Some(Instant::now() + pause);
        }
    }

    /// The reading of a box is over. `again`: users who still wait, to be read for after a pause.
    fn finish(&self, number: BoxNumber, again: HashSet<UserId>, pause: Duration) {
        let mut desks = self.desks();
        let Some(desk) = desks.get_mut(&number) else { return };
        desk.reading = None;
        if !again.is_empty() && desk.users.is_empty() {
            desk.not_before = Some(Instant::now() + pause);
        }
        desk.users.extend(again);
        if desk.users.is_empty() {
            desks.remove(&number);
        }
        drop(desks);
        self.shared.wake.notify_one();
    }

    /// Reads what is wanted, for ever. Owns every reading.
    pub async fn run(self, router: Arc<Router>) {
        let mut readings = JoinSet::new();
        loop {
            let (next, later) = self.next(Instant::now());
            if let Some((number, news)) = next {
                readings.spawn(reader::read(self.clone(), router.clone(), number, news));
                continue;
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                Some(ended) = readings.join_next() => if let Err(error) = ended {
                    // A panic must not leave its users waiting unnoticed: it ends this task, and with it the node.
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                },
                () = async { if let Some(at) = later { sleep_until(at).await } }, if later.is_some() => {}
            }
        }
    }
}

pub use sweep::sweep;
