//! Messages that nobody can read, among good ones.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tokio::time::sleep;

use crate::raw_amqp::publish_unreadable;
use crate::record::Heals;
use crate::world::World;

const ROUNDS: u64 = 5;

/// Each of a kind that the gateway must refuse: routing key, properties, body.
fn kinds() -> Vec<(&'static str, BasicProperties, Vec<u8>)> {
    let plain = BasicProperties::default;
    vec![
        ("nobody", plain(), b"{}".to_vec()),
        ("user.", plain(), b"{}".to_vec()),
        ("user.u1", plain().with_message_id("not an id".into()), b"{}".to_vec()),
        ("user.u1", plain().with_type("a\nb".into()), b"{}".to_vec()),
        ("user.u1", plain().with_app_id("a\u{7}b".into()), b"{}".to_vec()),
        ("user.u1", plain(), vec![b'x'; 100_000]),
        ("user.u1", plain(), format!("{}{}", "[".repeat(100), "]".repeat(100)).into_bytes()),
    ]
}

pub fn inject(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        for _ in 0..ROUNDS {
            send(world).await;
            sleep(Duration::from_millis(200)).await;
        }
        world.recorder.note(format!("{} unreadable messages so far", world.dead), Heals::Served);
        world.recovered().await;
    }
    .boxed()
}

/// One of each kind.
pub async fn send(world: &mut World) {
    let url = world.stage.brokers[0].url.clone();
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exchange = ShortString::try_new(format!("{}.ingress", world.prefix)).unwrap();
    for (key, properties, body) in kinds() {
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange.clone(), key.into(), options, &body, properties);
        sent.await.unwrap().await.unwrap();
        world.dead += 1;
    }
    // lapin cannot read the last one: its header's name is not UTF-8.
    let queue = format!("{}.ingress", world.prefix);
    publish_unreadable(world.stage.brokers[0].port, "/", &queue).await;
    world.dead += 1;
}
