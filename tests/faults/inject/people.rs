//! Faults of clients.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::record::Heals;
use crate::world::World;

/// The clients do what their habit is; this only gives them time.
async fn time(world: &mut World, seconds: u64) {
    world.recorder.note("clients misbehave", Heals::Served);
    sleep(Duration::from_secs(seconds)).await;
}

pub fn misbehave(world: &mut World) -> BoxFuture<'_, ()> {
    time(world, 4).boxed()
}

/// Longer than a message may stay unsettled.
pub fn hold_on(world: &mut World) -> BoxFuture<'_, ()> {
    time(world, 13).boxed()
}

/// Longer than a message may stay unacknowledged.
pub fn hold_out(world: &mut World) -> BoxFuture<'_, ()> {
    time(world, 33).boxed()
}

pub fn storm(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.drops.send_modify(|count| *count += 1);
        world.recorder.heal("every client loses its connection");
        world.recovered().await;
    }
    .boxed()
}
