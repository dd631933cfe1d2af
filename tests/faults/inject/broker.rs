//! Faults of the broker, and of those who operate it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::record::{Heals, ALL_NODES};
use crate::world::World;

pub fn restart(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.recorder.harm(ALL_NODES, "rabbitmqctl stop_app");
        world.stage.brokers[0].ctl(&["stop_app"]).await;
        world.recorder.note("the broker has stopped", Heals::No);
        sleep(Duration::from_millis(world.chance.pick(200..1500))).await;
        world.stage.brokers[0].ctl(&["start_app"]).await;
        world.recorder.heal("the broker has started");
        world.stage.managed().await;
        world.recovered().await;
    }
    .boxed()
}

pub fn kill(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.recorder.harm(ALL_NODES, "kill -9 of the broker");
        world.stage.brokers[0].kill().await;
        world.stage.brokers[0].start_again().await;
        world.recorder.heal("the broker takes connections");
        world.stage.managed().await;
        world.recovered().await;
    }
    .boxed()
}

/// From here on the broker takes no messages.
pub async fn alarm(world: &World) {
    world.recorder.harm(ALL_NODES, "memory alarm");
    world.stage.brokers[0].ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await;
}

pub async fn end_alarm(world: &World) {
    world.stage.brokers[0].ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"]).await;
}

pub fn memory_alarm(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        alarm(world).await;
        sleep(Duration::from_secs(5)).await;
        end_alarm(world).await;
        world.recorder.heal("the alarm is over");
        world.recovered().await;
    }
    .boxed()
}

/// The queues of two nodes: the one for messages of one, the one for gossip of the other.
pub fn delete_queues(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let first = world.chance.pick(0..3);
        let second = (first + 1) % 3;
        for kind in [format!("node.node{first}"), format!("control.node{second}")] {
            let name = format!("{}.{kind}.", world.prefix);
            let queues = world.stage.queues(&name).await;
            for (queue, ..) in queues {
                world.recorder.harm(ALL_NODES, format!("rabbitmqctl delete_queue {queue}"));
                world.stage.brokers[0].ctl(&["delete_queue", &queue]).await;
            }
        }
        world.recorder.heal("the queues are deleted");
        world.recovered().await;
    }
    .boxed()
}

pub fn close_connections(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.recorder.harm(ALL_NODES, "connections are closed");
        world.stage.brokers[0].ctl(&["close_all_connections", "by hand"]).await;
        world.recorder.heal("rabbitmqctl close_all_connections");
        world.recovered().await;
    }
    .boxed()
}
