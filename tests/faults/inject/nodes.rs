//! Faults of gateway nodes: killed, stopped, told to end.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::record::Heals;
use crate::world::World;

/// Above the drain time that the nodes are given.
const DRAIN_MAX: Duration = Duration::from_secs(15);

pub async fn bring_back(world: &mut World, node: usize) {
    world.nodes[node].start_again();
    world.nodes[node].ready().await;
    world.recorder.note(format!("node{node} is back"), Heals::No);
}

async fn kill(world: &mut World, node: usize) {
    world.recorder.harm(0, "a node is about to die");
    world.nodes[node].kill();
    world.recorder.heal(format!("kill -9 node{node}"));
    world.recovered().await;
    bring_back(world, node).await;
}

/// The node that consumes ingress.
pub async fn origin(world: &World) -> usize {
    let holder = world.stage.ingress_holder(&world.prefix).await;
    let found = world.nodes.iter().position(|node| Some(&node.name) == holder.as_ref());
    found.expect("a node consumes ingress")
}

/// Stops another node than the one that consumes ingress for a moment, so that messages wait for its receipts.
async fn stop_target(world: &mut World) -> (usize, usize) {
    let origin = origin(world).await;
    let target = (origin + 1) % world.nodes.len();
    world.nodes[target].signal("STOP");
    world.recorder.harm(1 << target, format!("SIGSTOP node{target}"));
    sleep(Duration::from_millis(world.chance.pick(300..800))).await;
    (origin, target)
}

/// The node that consumes ingress, killed while messages wait for the receipts of a node that does not answer.
pub fn kill_origin(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let (origin, target) = stop_target(world).await;
        world.nodes[origin].kill();
        world.recorder.note(format!("kill -9 node{origin}, which consumes ingress"), Heals::No);
        world.nodes[target].signal("CONT");
        world.recorder.heal(format!("SIGCONT node{target}"));
        world.recovered().await;
        bring_back(world, origin).await;
    }
    .boxed()
}

/// The node that consumes ingress and one that it awaits receipts from, at the same moment: what was under way
/// between them exists nowhere but in the ingress queue and at its publishers.
pub fn kill_both(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let (origin, target) = stop_target(world).await;
        world.nodes[origin].kill();
        world.nodes[target].kill();
        world.recorder.heal(format!("kill -9 node{origin}, which consumes ingress, and node{target}"));
        world.recovered().await;
        bring_back(world, origin).await;
        bring_back(world, target).await;
    }
    .boxed()
}

pub fn kill_target(world: &mut World) -> BoxFuture<'_, ()> {
    async move { kill(world, 1).await }.boxed()
}

pub fn kill_bystander(world: &mut World) -> BoxFuture<'_, ()> {
    async move { kill(world, 2).await }.boxed()
}

async fn stop(world: &mut World, time: Duration) {
    let node = world.chance.pick(0..3) as usize;
    world.nodes[node].signal("STOP");
    world.recorder.harm(1 << node, format!("SIGSTOP node{node}"));
    sleep(time).await;
    world.nodes[node].signal("CONT");
    world.recorder.heal(format!("SIGCONT node{node} after {time:?}"));
    world.recovered().await;
}

pub fn stop_short(world: &mut World) -> BoxFuture<'_, ()> {
    async move { stop(world, Duration::from_secs(5)).await }.boxed()
}

pub fn stop_long(world: &mut World) -> BoxFuture<'_, ()> {
    async move { stop(world, Duration::from_secs(45)).await }.boxed()
}

async fn end(world: &mut World, node: usize) {
    world.recorder.harm(1 << node, format!("SIGTERM node{node}"));
    world.nodes[node].signal("TERM");
    let status = world.nodes[node].ended(DRAIN_MAX).await;
    assert!(status.success(), "node{node} ended with {status}");
    world.recorder.heal(format!("node{node} has ended"));
}

pub fn terminate(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let node = world.chance.pick(0..3) as usize;
        end(world, node).await;
        world.recovered().await;
        bring_back(world, node).await;
    }
    .boxed()
}

pub fn roll(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        for node in 0..world.nodes.len() {
            end(world, node).await;
            bring_back(world, node).await;
        }
        world.recovered().await;
    }
    .boxed()
}
