//! The answer to one publish: given exactly once, whatever happens to the tasks on its way.

use super::{Done, Outcome};

/// The answer that a publisher waits for. Dropping it, for whatever reason, answers `Unavailable`.
pub struct Answer(Option<Done>);

impl Answer {
    pub fn new(done: Done) -> Self {
        Self(Some(done))
    }

    pub fn give(mut self, outcome: Outcome) {
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Outcome::Unavailable);
        }
    }
}
