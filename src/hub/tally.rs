//! How many sessions took a message: counted for all of its copies, told when the first session has taken it and when
//! the last copy is gone.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

type OnFirst = Box<dyn Fn() + Send + Sync>;
type OnAll = Box<dyn FnOnce(Taken) + Send + Sync>;

/// What became of all copies of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// How many sessions took it.
    pub sessions: u32,
    /// Some session did not want it.
    pub declined: bool,
}

struct Inner {
    /// Apart from the copies, so that a [`TallyView`] does not keep them alive.
    taken: Arc<AtomicU32>,
    declined: AtomicBool,
    first: Option<OnFirst>,
    all: Option<OnAll>,
}

/// Travels with each copy of a frame on this node. A session that has taken the message counts and drops its
/// copy; one that ends without having taken it only drops its copy. So the count is told exactly once, whatever
/// happens to the sessions and workers.
#[derive(Clone)]
pub struct Tally(Arc<Inner>);

/// Reads a [`Tally`] without being one of its copies.
#[derive(Debug, Clone)]
pub struct TallyView(Arc<AtomicU32>);

impl Tally {
    /// `all` runs once, with what became of the message, when the last copy is gone. `first` runs at
    /// most once and always before `all`: when a session has taken the message while other copies still exist. Both
    /// run on the thread that counts or drops the copy, must return at once and must take no lock that a caller of
    /// the hub may hold.
    pub fn new(first: Option<OnFirst>, all: impl FnOnce(Taken) + Send + Sync + 'static) -> (Self, TallyView) {
        let taken = Arc::new(AtomicU32::new(0));
        let view = TallyView(taken.clone());
        let inner = Inner { taken, declined: AtomicBool::new(false), first, all: Some(Box::new(all)) };
        (Self(Arc::new(inner)), view)
    }

    /// One session has taken the message.
    pub fn count(self) {
        let is_first = self.0.taken.fetch_add(1, Ordering::AcqRel) == 0;
        // This copy is still held, so `all` cannot run before `first` has returned.
        if let Some(first) = self.0.first.as_ref().filter(|_| is_first && Arc::strong_count(&self.0) > 1) {
            first();
        }
    }

    /// One session does not want the message, now or later.
    pub fn decline(self) {
        self.0.declined.store(true, Ordering::Release);
    }
}

impl TallyView {
    /// How many sessions have taken the message so far.
    pub fn taken(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(all) = self.all.take() {
            let sessions = self.taken.load(Ordering::Acquire);
            all(Taken { sessions, declined: self.declined.load(Ordering::Acquire) });
        }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tally({})", self.0.taken.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        First,
        All(u32),
    }

    fn tally() -> (Tally, TallyView, mpsc::Receiver<Told>) {
        let (tell, told) = mpsc::channel();
        let first = tell.clone();
        let (tally, view) =
            Tally::new(Some(Box::new(move || first.send(Told::First).unwrap())), move |taken| {
                tell.send(Told::All(taken.sessions)).unwrap()
            });
        (tally, view, told)
    }

    #[test]
    fn the_end_is_told_once_when_the_last_copy_is_gone() {
        let (tally, view, told) = tally();
        let (taken, also_taken, lost) = (tally.clone(), tally.clone(), tally.clone());
        drop(tally);
        assert_eq!(view.taken(), 0);
        taken.count();
        assert_eq!((told.try_recv(), view.taken()), (Ok(Told::First), 1));
        also_taken.count();
        assert!(told.try_recv().is_err(), "the first session is told of once");
        drop(lost);
        assert_eq!((told.try_recv(), view.taken()), (Ok(Told::All(2)), 2));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_session_that_declines_is_told_of_and_is_not_counted() {
        let (tell, told) = mpsc::channel();
        let (tally, view) = Tally::new(None, move |taken| tell.send(taken).unwrap());
        tally.clone().decline();
        assert_eq!(view.taken(), 0);
        tally.count();
        assert_eq!(told.try_recv(), Ok(Taken { sessions: 1, declined: true }));
    }

    #[test]
    fn the_only_copy_needs_no_word_of_the_first_session() {
        let (tally, view, told) = tally();
        tally.count();
        assert_eq!((told.try_recv(), view.taken()), (Ok(Told::All(1)), 1));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_view_does_not_hold_the_end_up() {
        let (tally, view, told) = tally();
        drop(tally);
        assert_eq!((told.try_recv(), view.taken()), (Ok(Told::All(0)), 0));
    }
}
