//! Faults of clients.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::world::World;

/// The clients do what their habit is; this only gives them time.
pub fn misbehave(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.recorder.heal("clients misbehave");
        sleep(Duration::from_secs(4)).await;
    }
    .boxed()
}

pub fn storm(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.drops.send_modify(|count| *count += 1);
        world.recorder.heal("every client loses its connection");
        world.recovered().await;
    }
    .boxed()
}
