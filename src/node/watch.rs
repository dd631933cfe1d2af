//! The small tasks that follow the link, the cluster and the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::supervise::Failures;
use crate::bus::{IngressDesk, Link};
use crate::directory::Membership;
use crate::hub::Command;
use crate::ingress::partitions;
use crate::lifecycle::{Lifecycle, Phase};
use crate::router::Router;

/// How often it is looked for what is overdue.
const TICK: Duration = Duration::from_millis(10);

pub(super) async fn follow_members(
    router: Arc<Router>,
    mut members: mpsc::Receiver<Membership>,
    failures: Failures,
) {
    while let Some(change) = members.recv().await {
        match change {
            Membership::Up(_) => {}
            Membership::Lost(node, _) => router.node_lost(&node),
            Membership::Conflict => {
                tracing::error!(
                    "another process uses this node id: give each node a WARREN_NODE_ID of its own"
                )
            }
            Membership::Stranger { node, dialect } => {
                let ours = router.routing().dialect();
                failures.misplaced(format!(
                    "node {node} routes by {dialect}, this one by \"{ours}\": WARREN_ROUTING must be the same on all \
                     nodes, and all must be stopped to change it"
                ));
            }
        }
    }
}

/// `None`: the bus needs no help.
pub(super) async fn share_ingress(router: Arc<Router>, desk: Option<IngressDesk>) {
    match desk {
        Some(desk) => partitions::run(desk, router.directory().clone()).await,
        None => std::future::pending().await,
    }
}

/// Serves once the link is up. When it is lost, everything that awaits the broker is settled at once; when it is back,
/// clients are told that they may have missed messages.
pub(super) async fn follow_link(router: Arc<Router>, lifecycle: Lifecycle, mut link: watch::Receiver<Link>) {
    let mut incarnation = None;
    let mut was_ready = false;
    loop {
        let now = *link.borrow_and_update();
        if was_ready && (!now.ready() || (incarnation.is_some() && incarnation != now.incarnation)) {
            router.link_lost();
        }
        was_ready = now.ready();
        if was_ready {
            lifecycle.advance(Phase::Serving);
            if incarnation.is_some() && incarnation != now.incarnation {
                tracing::info!("the broker link is back; messages for everyone may have been missed");
                router.hub().tell_all(|| Command::Gap { reason: "broker link was lost" }).await;
            }
            incarnation = now.incarnation;
        }
        if link.changed().await.is_err() {
            return;
        }
    }
}

pub(super) async fn keep_time(router: Arc<Router>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        router.tick(Instant::now());
        let hub = router.hub();
        router.directory().set_load(hub.sessions() as u64, hub.users() as u64);
    }
}
