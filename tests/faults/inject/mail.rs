//! Mail in quantities: for very many users, much for some, and long ones for a slow line.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::json;
use tokio::time::{sleep, timeout, Instant};

use crate::line::Line;
use crate::record::{Heals, Key, Letter, Told};
use crate::world::World;

/// Apart from those of the usual publishers and users.
const PUBLISHER: u32 = 900;
const FIRST_ABSENT: u32 = 1_000_000;
const FIRST_RETURNING: u32 = 2_000_000;
const SLOW: u32 = 3_000_000;
/// Messages that await the broker's confirm.
const WINDOW: usize = 256;
const LINE_BYTES_PER_S: u32 = 100_000;
/// Of so many absent users one comes home in the end and must find its mail.
const SAMPLE: u32 = 25;

/// Mail for users who are away.
struct Flood {
    first_user: u32,
    users: u32,
    /// Messages for each user, in turn.
    each: u32,
    /// Of so many users one is recorded.
    sample: u32,
    padding: usize,
    /// How long the last message may take to be settled, from the moment that it was published.
    settled_max: Duration,
}

/// Publishes it and waits until the last message is settled. What is before that one may still be under way.
async fn pour(world: &mut World, flood: &Flood) {
    let url = world.stage.brokers[0].url.clone();
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.unwrap();
    let reply_to = queue.name().clone();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let replies = channel.basic_consume(reply_to.clone(), "".into(), options, FieldTable::default()).await;
    let mut replies = replies.unwrap();
    let exchange = ShortString::try_new(format!("{}.ingress", world.prefix)).unwrap();
    let mut confirms = FuturesUnordered::new();
    let count = flood.users * flood.each;
    // Each run of the fault goes on with its numbers.
    let base = {
        let history = world.recorder.lock();
        let before = history.sent.keys().filter(|key| key.publisher == PUBLISHER).map(|key| key.number);
        before.max().map_or(0, |number| number + SAMPLE)
    };
    for at in 0..count {
        let user = flood.first_user + at % flood.users;
        let key = Key { publisher: PUBLISHER, number: base + at };
        let letter = Letter { asks: false, ..Letter::to_user(user) };
        if user.is_multiple_of(flood.sample) {
            world.recorder.sending(key, &letter, false);
        }
        let mut properties = BasicProperties::default()
            .with_message_id(ShortString::try_new(key.id()).unwrap())
            .with_app_id("backend".into())
            .with_delivery_mode(2);
        if at + 1 == count {
            properties = properties.with_reply_to(reply_to.clone());
        }
        let body = json!({"n": key.number, "padding": "x".repeat(flood.padding)}).to_string();
        let target = ShortString::try_new(letter.target).unwrap();
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let sent = channel.basic_publish(exchange.clone(), target, options, body.as_bytes(), properties);
        confirms.push(sent.await.unwrap().map(move |confirm| (key, confirm)));
        while confirms.len() >= WINDOW || at + 1 == count && !confirms.is_empty() {
            let Some((key, confirm)) = confirms.next().await else { break };
            assert!(matches!(confirm, Ok(lapin::Confirmation::Ack(None))), "not confirmed: {confirm:?}");
            world.recorder.told(key, Told::Confirmed);
        }
    }
    world.recorder.note(format!("{count} mails are published"), Heals::No);
    if timeout(flood.settled_max, replies.next()).await.is_err() {
        let trouble = format!("the last of {count} mails was not settled for {:?}", flood.settled_max);
        world.troubles.push(trouble);
    }
    world.recorder.note("the last mail is settled", Heals::No);
}

/// One message for each of very many users who never come; some of them do, in the end.
pub fn absent(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let users = if world.plan.long { 100_000 } else { 5_000 };
        let settled_max = Duration::from_secs(30 + u64::from(users) / 1_000);
        let flood =
            Flood { first_user: FIRST_ABSENT, users, each: 1, sample: SAMPLE, padding: 200, settled_max };
        world.recorder.note(format!("mail for {users} absent users"), Heals::Served);
        pour(world, &flood).await;
        world
            .late
            .extend((0..users).map(|user| FIRST_ABSENT + user).filter(|user| user.is_multiple_of(SAMPLE)));
        world.late.sort_unstable();
        world.late.dedup();
    }
    .boxed()
}

/// Much mail for a hundred users, who all come home.
pub fn many(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let mails = world.plan.mails.unwrap_or(if world.plan.long { 12_000 } else { 2_000 });
        let (users, settled_max) = (100, Duration::from_secs(30 + u64::from(mails) / 200));
        let flood = Flood {
            first_user: FIRST_RETURNING,
            users,
            each: mails.div_ceil(users),
            sample: 1,
            padding: 200,
            settled_max,
        };
        world.recorder.note(format!("{mails} mails for {users} users"), Heals::Served);
        pour(world, &flood).await;
        world.late = (0..users).map(|user| FIRST_RETURNING + user).collect();
    }
    .boxed()
}

/// Long mails for one user, who comes back over a slow line and acknowledges what it reads.
pub fn large(world: &mut World) -> BoxFuture<'_, ()> {
    async move {
        let each = if world.plan.long { 64 } else { 32 };
        let user = SLOW + world.recorder.lock().devices.len() as u32;
        let flood = Flood {
            first_user: user,
            users: 1,
            each,
            sample: 1,
            padding: 60_000,
            settled_max: Duration::from_secs(30),
        };
        world.recorder.note(format!("{each} mails of 60 KB"), Heals::Served);
        pour(world, &flood).await;
        let mut ports = vec![];
        for node in 0..world.nodes.len() {
            let line = Line::start(world.nodes[node].port, LINE_BYTES_PER_S).await;
            ports.push(line.port);
            world.lines.push(line);
        }
        let ports: Arc<[u16]> = ports.into();
        world.arrive(user, ports);
        let device = world.recorder.lock().devices.len() as u32 - 1;
        // Twice the time that the line needs.
        let end =
            Instant::now() + Duration::from_secs(u64::from(each) * 120_000 / u64::from(LINE_BYTES_PER_S));
        while read(world, device).0 < each as usize && Instant::now() < end {
            sleep(Duration::from_millis(100)).await;
        }
        let (count, sockets) = read(world, device);
        if count < each as usize || sockets > 1 {
            world.troubles.push(format!("{count} of {each} long mails came, over {sockets} sockets"));
        }
    }
    .boxed()
}

/// How many messages a device has got, over how many sockets.
fn read(world: &World, device: u32) -> (usize, usize) {
    let history = world.recorder.lock();
    let mine = history.receipts.iter().filter(|receipt| receipt.device == device);
    let keys: std::collections::HashSet<_> = mine.filter_map(|receipt| receipt.key).collect();
    // Broadcasts are for this one as well.
    let mails = keys.iter().filter(|key| key.publisher == PUBLISHER).count();
    (mails, history.lives.iter().filter(|life| life.seat.device == device).count())
}
