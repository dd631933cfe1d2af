//! Objects that an operator deletes at the broker: the gateway must notice and make them again.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use serde_json::{json, Value};
use tokio::time::{sleep, Instant};

use crate::inject::poison;
use crate::record::ALL_NODES;
use crate::world::World;

/// Within this a node must have made again what is missing.
const NOTICED_MAX: Duration = Duration::from_secs(32);
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub fn direct(world: &mut World) -> BoxFuture<'_, ()> {
    exchange(world, "direct").boxed()
}

pub fn control(world: &mut World) -> BoxFuture<'_, ()> {
    exchange(world, "control").boxed()
}

pub fn broadcast(world: &mut World) -> BoxFuture<'_, ()> {
    exchange(world, "broadcast").boxed()
}

pub fn ingress(world: &mut World) -> BoxFuture<'_, ()> {
    exchange(world, "ingress").boxed()
}

/// Bindings from one of our exchanges, as the broker names them.
async fn bindings_of(world: &World, wanted: impl Fn(&str) -> bool) -> Vec<Value> {
    let all = world.stage.brokers[0].management.get("bindings/%2f").await;
    let ours = |binding: &&Value| {
        let destination = binding["destination"].as_str().unwrap_or_default();
        let source = binding["source"].as_str().unwrap_or_default();
        source.starts_with(&format!("{}.", world.prefix)) && (wanted(source) || wanted(destination))
    };
    all.as_array().into_iter().flatten().filter(ours).cloned().collect()
}

fn path(binding: &Value) -> String {
    let text = |key: &str| binding[key].as_str().unwrap_or_default();
    format!("bindings/%2f/e/{}/q/{}", text("source"), text("destination"))
}

/// Whether a binding is there again. A queue of another incarnation counts for the one that it replaces.
fn is_there(all: &[Value], lost: &Value) -> bool {
    let stem = |binding: &Value| {
        let destination = binding["destination"].as_str().unwrap_or_default().to_owned();
        let fixed = ["ingress", "dead"].iter().any(|name| destination.ends_with(name));
        let stem =
            if fixed { &destination } else { destination.rsplit_once('.').map_or("", |(stem, _)| stem) };
        (binding["source"].clone(), stem.to_owned(), binding["routing_key"].clone())
    };
    all.iter().any(|one| stem(one) == stem(lost))
}

async fn exchange(world: &mut World, kind: &str) {
    let name = format!("{}.{kind}", world.prefix);
    let management = world.stage.brokers[0].management.clone();
    let lost = bindings_of(world, |end| end == name).await;
    let exchange = management.get(&format!("exchanges/%2f/{name}")).await;
    world.recorder.harm(ALL_NODES, format!("an operator deletes the exchange {name}"));
    management.delete(&format!("exchanges/%2f/{name}")).await;
    made_again(world, lost, Some(exchange)).await;
}

/// The bindings of ingress and of all queues of one node.
pub fn bindings(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let (ingress, node) = (format!("{}.ingress", world.prefix), world.chance.pick(0..3));
        let lost = bindings_of(world, |end| end == ingress || end.contains(&format!(".node{node}."))).await;
        world.recorder.harm(ALL_NODES, format!("an operator deletes {} bindings", lost.len()));
        let management = world.stage.brokers[0].management.clone();
        for binding in &lost {
            let key = binding["properties_key"].as_str().unwrap_or_default().replace('#', "%23");
            management.delete(&format!("{}/{key}", path(binding))).await;
        }
        made_again(world, lost, None).await;
    }
    .boxed()
}

/// Waits until all is there again, else says so and mends it, so that the run can go on.
async fn made_again(world: &mut World, lost: Vec<Value>, exchange: Option<Value>) {
    assert!(!lost.is_empty(), "there was nothing to delete");
    let (management, end) = (world.stage.brokers[0].management.clone(), Instant::now() + NOTICED_MAX);
    let began = Instant::now();
    loop {
        let now = bindings_of(world, |_| true).await;
        let missing: Vec<_> = lost.iter().filter(|binding| !is_there(&now, binding)).collect();
        if missing.is_empty() {
            break;
        }
        if Instant::now() > end {
            let trouble = format!("{} bindings are not made again within {NOTICED_MAX:?}", missing.len());
            world.troubles.push(trouble);
            if let Some(exchange) = &exchange {
                let name = exchange["name"].as_str().unwrap_or_default();
                let body = json!({"type": exchange["type"], "durable": exchange["durable"]});
                management.put(&format!("exchanges/%2f/{name}"), body).await;
            }
            for binding in missing {
                let body = json!({"routing_key": binding["routing_key"], "arguments": binding["arguments"]});
                management.post(&path(binding), body).await;
            }
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    world.recorder.heal(format!("all is there again after {:?}", began.elapsed()));
    world.recovered().await;
}

/// What cannot be read belongs into a queue that is gone.
pub fn dead(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let name = format!("{}.dead", world.prefix);
        world.recorder.harm(ALL_NODES, format!("an operator deletes the queue {name}"));
        world.stage.brokers[0].management.delete(&format!("queues/%2f/{name}")).await;
        world.dead = 0;
        poison::send(world).await;
        let end = Instant::now() + NOTICED_MAX;
        while world.stage.queues(&name).await.is_empty() {
            if Instant::now() > end {
                world.troubles.push(format!("{name} is not made again within {NOTICED_MAX:?}"));
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        world.recorder.heal(format!("{name} is there again"));
        world.recovered().await;
    }
    .boxed()
}
