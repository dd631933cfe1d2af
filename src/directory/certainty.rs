//! How sure the directory may be of what it knows about the other nodes.

use std::time::Duration;

use super::state::State;
use super::Directory;

/// A node that has just got its link hears of the others within this time: each answers its hello with a heartbeat
/// ([`super::schedule::HELLO_ANSWER_WAIT`]).
const NEWCOMER_WAIT: Duration = Duration::from_secs(1);
/// After a loss of the link, other nodes that lost theirs with it may need so long to be back: twice the longest wait
/// between two tries, and the time of a try.
pub(super) const PEERS_RETURN: Duration = Duration::from_secs(5);

impl State {
    /// Whether every replica is known to be right and the control exchange has been heard since the link came up.
    pub(super) fn is_synced(&self) -> bool {
        self.control_read_to.is_some() && self.peers.iter().all(|(_, peer)| peer.replica.synced())
    }

    /// Whether, besides that, all live nodes have had the time to make themselves known.
    pub(super) fn is_sure(&self, now: Duration) -> bool {
        self.is_synced() && self.has_heard_all(now)
    }

    /// Whether all live nodes have had the time to make themselves known.
    pub(super) fn has_heard_all(&self, now: Duration) -> bool {
        self.control_read_to.is_some() && now >= self.linked_at + NEWCOMER_WAIT
    }

    /// Whether nodes that this one knew may be there and not be heard yet, because the broker was away for all of them.
    pub(super) fn peers_may_return(&self, now: Duration) -> bool {
        now < self.returning_until
    }
}

impl Directory {
    /// Whether every replica is known to be right and the control exchange has been heard since the link came up.
    /// Until then more lookups than usual find no node.
    pub fn synced(&self) -> bool {
        self.read().is_synced()
    }

    /// Whether nodes that this one knew may be there and not be heard yet, because the broker was away for all of them.
    pub fn peers_may_return(&self) -> bool {
        let now = self.now();
        self.read().peers_may_return(now)
    }

    /// How long ago this node sent the last heartbeat that came back to it through the broker. `None`: none
    /// has since the link came up.
    pub fn control_seen_ago(&self) -> Option<Duration> {
        let now = self.now();
        self.read().control_read_to.map(|at| now.saturating_sub(at))
    }
}
