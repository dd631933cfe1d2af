//! Faults between nodes and their broker: connections cut, half open, slow, silent.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::record::ALL_NODES;
use crate::relay::Mode;
use crate::world::World;

pub fn cut(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        for _ in 0..2 {
            world.relays.iter().for_each(|relay| relay.cut());
            world.recorder.harm(ALL_NODES, "cut");
            world.recorder.heal("all connections to the broker are cut");
            world.recovered().await;
        }
    }
    .boxed()
}

pub fn half_open(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let node = world.chance.pick(0..3) as usize;
        world.relays[node].half_open();
        world.recorder.harm(1 << node, "half open");
        world.recorder.heal(format!("the broker believes in connections of node{node} that are gone"));
        world.recovered().await;
    }
    .boxed()
}

pub fn slow(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.relays.iter().for_each(|relay| relay.set(Mode::Slow(Duration::from_millis(100))));
        world.recorder.harm(ALL_NODES, "the links are slow");
        sleep(Duration::from_secs(5)).await;
        world.relays.iter().for_each(|relay| relay.set(Mode::Pass));
        world.recorder.heal("the links are fast again");
        world.recovered().await;
    }
    .boxed()
}

pub fn silent(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let node = world.chance.pick(0..3) as usize;
        world.relays[node].set(Mode::Pause);
        world.recorder.harm(1 << node, format!("nothing passes between node{node} and the broker"));
        sleep(Duration::from_secs(8)).await;
        world.relays[node].set(Mode::Pass);
        world.recorder.heal(format!("the link of node{node} is back"));
        world.recovered().await;
    }
    .boxed()
}
