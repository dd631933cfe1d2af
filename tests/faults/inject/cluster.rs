//! Faults of a cluster of brokers.

use futures_util::future::BoxFuture;
use futures_util::FutureExt;

use crate::record::ALL_NODES;
use crate::world::World;

/// One of those that are not asked by the management API.
pub fn kill_one(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let broker = world.chance.pick(1..3) as usize;
        world.recorder.harm(ALL_NODES, "a broker is about to die");
        world.stage.brokers[broker].kill().await;
        world.recorder.heal(format!("kill -9 of broker {broker} of three"));
        world.recovered().await;
        world.stage.brokers[broker].start_again().await;
        world.recorder.heal(format!("broker {broker} takes connections again"));
        world.recovered().await;
    }
    .boxed()
}
