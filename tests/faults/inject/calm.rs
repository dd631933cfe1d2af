//! No fault at all.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;

use crate::record::Heals;
use crate::world::World;

pub fn nothing(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.recorder.note("nothing is done", Heals::Served);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    .boxed()
}
