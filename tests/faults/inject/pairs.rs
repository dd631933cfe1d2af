//! Two faults at once that no habit of the clients makes for itself.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::inject::{broker, nodes};
use crate::record::Heals;
use crate::relay::Mode;
use crate::world::World;

pub fn storm_and_restart(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        world.drops.send_modify(|count| *count += 1);
        broker::restart(world).await;
    }
    .boxed()
}

/// A node that sleeps for 5 s, while another one dies.
pub fn stop_and_kill(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let sleeper = world.chance.pick(0..3) as usize;
        let victim = (sleeper + 1) % 3;
        world.recorder.harm(1 << sleeper, format!("SIGSTOP node{sleeper}"));
        world.nodes[sleeper].signal("STOP");
        sleep(Duration::from_millis(world.chance.pick(200..1_500))).await;
        world.nodes[victim].kill();
        world.recorder.note(format!("kill -9 node{victim}"), Heals::No);
        sleep(Duration::from_secs(4)).await;
        world.nodes[sleeper].signal("CONT");
        world.recorder.heal(format!("SIGCONT node{sleeper}"));
        world.recovered().await;
        nodes::bring_back(world, victim).await;
    }
    .boxed()
}

/// The node that consumes ingress dies while the broker takes no messages.
pub fn alarm_and_kill(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let origin = nodes::origin(world).await;
        broker::alarm(world).await;
        sleep(Duration::from_secs(2)).await;
        world.nodes[origin].kill();
        world.recorder.note(format!("kill -9 node{origin}, which consumes ingress"), Heals::No);
        sleep(Duration::from_secs(3)).await;
        broker::end_alarm(world).await;
        world.recorder.heal("the alarm is over");
        world.recovered().await;
        nodes::bring_back(world, origin).await;
    }
    .boxed()
}

/// A node that its broker hears nothing of for 8 s, while another one dies.
pub fn silent_and_kill(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let silent = world.chance.pick(0..3) as usize;
        let victim = (silent + 1) % 3;
        world.recorder.harm(1 << silent, format!("nothing passes between node{silent} and the broker"));
        world.relays[silent].set(Mode::Pause);
        sleep(Duration::from_secs(3)).await;
        world.nodes[victim].kill();
        world.recorder.note(format!("kill -9 node{victim}"), Heals::No);
        sleep(Duration::from_secs(5)).await;
        world.relays[silent].set(Mode::Pass);
        world.recorder.heal(format!("the link of node{silent} is back"));
        world.recovered().await;
        nodes::bring_back(world, victim).await;
    }
    .boxed()
}
