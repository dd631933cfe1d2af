//! What a path may look up, as the router knows it.

use std::sync::atomic::Ordering;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::path::World;
use super::strategy::{route, Lookup, Nodes, Route, Ways};
use super::{Router, PRESSURE_SHARE};
use crate::delivery::seen::SeenKey;
use crate::directory::{Home, Key};
use crate::ids::{NodeId, UserId};
use crate::protocol::message::Stamp;
use crate::protocol::target::Target;

impl Lookup for Router {
    fn this_node(&self) -> &NodeId {
        self.node()
    }

    fn user_is_here(&self, user: &UserId) -> bool {
        self.hub.holds(user)
    }

    fn nodes_of(&self, user: &UserId) -> Nodes {
        self.directory.nodes_of(Key::user(user))
    }

    fn home_of(&self, user: &UserId) -> Home {
        self.directory.home_of(Key::user(user))
    }

    fn live_nodes(&self) -> Nodes {
        self.directory.live_nodes()
    }

    fn is_live(&self, node: &NodeId) -> bool {
        self.directory.is_live(node)
    }
}

impl World for Router {
    fn this_node(&self) -> &NodeId {
        self.node()
    }

    fn ways(&self, target: &Target, again: bool) -> Ways {
        match route(self.settings.routing, target, again, self) {
            #[cfg(feature = "sabotage")]
            Route::Ways(ways) if crate::sabotage::is("one-device") => {
                Ways { nodes: ways.nodes.into_iter().take(1).collect(), ..ways }
            }
            Route::Ways(ways) => ways,
            Route::Everyone | Route::Unsupported => Ways::default(),
        }
    }

    fn is_live(&self, node: &NodeId) -> bool {
        node == self.node() || self.directory.is_live(node)
    }

    fn peers_may_return(&self) -> bool {
        self.directory.peers_may_return()
    }

    fn is_here(&self, target: &Target) -> bool {
        match target {
            Target::User(user) => self.hub.holds(user),
            // Its worker says whether the session is there.
            Target::Session(session) => session.node == *self.node(),
            Target::Channel(_) | Target::Broadcast | Target::App(_) => false,
        }
    }

    fn next_stamp(&self) -> Stamp {
        Stamp { life: self.life, number: self.stamps.fetch_add(1, Ordering::Relaxed) }
    }

    fn taken(&self, key: SeenKey) -> Option<u32> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(key)
    }

    fn note_taken(&self, key: SeenKey, sessions: u32, now: Instant) {
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("no-dedup") {
            return;
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(key, sessions, now);
    }

    fn answer_within(&self) -> Duration {
        self.settings.receipt_timeout
    }

    fn is_under_pressure(&self) -> bool {
        self.pending() > self.settings.pending_max / PRESSURE_SHARE
            || self.ingress_is_pressed.load(Ordering::Relaxed)
    }
}
