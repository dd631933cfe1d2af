//! Revoked tokens on all nodes: told to each when it happens, and asked for by a node that begins or has missed some.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::auth::{Full, Revocation};
use crate::clock::unix_ms;
use crate::delivery::peer_words::Ask;
use crate::error::{Code, Error};
use crate::hub::{Command, Tally};
use crate::router::ask::Found;
use crate::router::Router;

/// How often the others are asked whether they know more: also after a partition the nodes agree.
const ASK_EVERY: Duration = Duration::from_secs(20);
/// Until the first ones have been asked.
const FIRST_ASK_EVERY: Duration = Duration::from_millis(500);

fn now_unix_s() -> u64 {
    unix_ms() / 1_000
}

impl Router {
    /// On all live nodes; returns how many sessions were closed.
    pub async fn revoke(self: &Arc<Self>, revocation: Revocation) -> Result<Found, Error> {
        let full = |Full| Error::new(Code::Overloaded, "as many revocations as the nodes keep");
        self.revocations.add(&revocation, now_unix_s()).map_err(full)?;
        Ok(self.ask(&self.other_nodes(), Ask::Revoke(revocation)).await)
    }

    /// Here alone; returns how many sessions were closed.
    pub(super) async fn revoke_here(&self, revocations: &[Revocation]) -> u32 {
        for revocation in revocations {
            if self.revocations.add(revocation, now_unix_s()) == Err(Full) {
                tracing::error!("a revocation of another node finds no room: a revoked token is taken here");
            }
        }
        let (tell, told) = oneshot::channel();
        // A caller that has gone away needs no answer.
        let (tally, _) = Tally::new(None, move |closed| {
            let _ = tell.send(closed.sessions);
        });
        self.hub.tell_all(|| Command::CloseRevoked { tally: tally.clone() }).await;
        drop(tally);
        told.await.unwrap_or(0)
    }

    /// What this node knows, for one that knows something else.
    pub(super) fn revocations_unlike(&self, digest: u64) -> Vec<Revocation> {
        match self.revocations.digest(now_unix_s()) == digest {
            true => Vec::new(),
            false => self.revocations.list(now_unix_s()),
        }
    }

    /// Asks the others for what they know, soon after the start and then from time to time.
    pub async fn follow_revocations(self: Arc<Self>) {
        let mut has_asked = false;
        loop {
            tokio::time::sleep(if has_asked { ASK_EVERY } else { FIRST_ASK_EVERY }).await;
            let nodes = self.other_nodes();
            if !self.is_linked() || nodes.is_empty() {
                continue;
            }
            let digest = self.revocations.digest(now_unix_s());
            let found = self.ask(&nodes, Ask::Revocations { digest }).await;
            if !found.revocations.is_empty() {
                self.revoke_here(&found.revocations).await;
            }
            has_asked |= !found.partial;
        }
    }
}
