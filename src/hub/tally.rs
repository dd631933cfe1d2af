//! How many sessions took a message: counted wherever its copies go, told once when the last copy is gone.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

type Tell = Box<dyn FnOnce(u32) + Send + Sync>;

struct Inner {
    taken: AtomicU32,
    tell: Option<Tell>,
}

/// Travels with each copy of a frame on this node. A session that has taken the message counts and drops its
/// copy; one that ends without having taken it only drops. So the count is told exactly once, whatever happens.
#[derive(Clone)]
pub struct Tally(Arc<Inner>);

impl Tally {
    /// `tell` runs on whichever thread drops the last copy: it must return at once.
    pub fn new(tell: impl FnOnce(u32) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { taken: AtomicU32::new(0), tell: Some(Box::new(tell)) }))
    }

    /// One session has taken the message.
    pub fn count(self) {
        self.0.taken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(*self.taken.get_mut());
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

    #[test]
    fn tells_once_when_the_last_copy_is_gone() {
        let (tell, told) = std::sync::mpsc::channel();
        let tally = Tally::new(move |taken| tell.send(taken).unwrap());
        let (taken, lost) = (tally.clone(), tally.clone());
        drop(tally);
        taken.count();
        assert!(told.try_recv().is_err());
        drop(lost);
        assert_eq!(told.try_recv(), Ok(1));
    }
}
