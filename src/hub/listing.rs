//! Everything that this node holds, for those who have to tell all of it.

use std::sync::PoisonError;

use super::Hub;
use crate::ids::{ChannelName, UserId};

impl Hub {
    /// All sessions, by their counters.
    pub fn all_sessions(&self) -> Vec<(UserId, u64)> {
        let mut all = Vec::with_capacity(self.sessions());
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for held in shard.values().flatten() {
                all.extend(held.sessions.iter().map(|session| (held.id.clone(), session.counter)));
            }
        }
        all
    }

    /// All channels that have a subscriber.
    pub fn all_channels(&self) -> Vec<ChannelName> {
        self.channels.all()
    }
}
