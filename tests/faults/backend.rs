//! A backend over AMQP: publisher confirms, settlements by `reply_to`, and everything unconfirmed again after a loss.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde_json::Value;
use tokio::time::{sleep, sleep_until, timeout, Instant};

use crate::publishers::Job;
use crate::record::{Key, Kind, Told};

/// Messages that await the broker's confirm.
const WINDOW: usize = 256;
/// A broker that confirms nothing for so long is tried anew.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long settlements are waited for in the end. Those of an earlier connection will not come.
const SETTLED_MAX: Duration = Duration::from_secs(20);

/// What is not confirmed, in order.
struct Unconfirmed {
    next: u32,
    open: BTreeMap<u32, ()>,
}

pub async fn over_amqp(job: Job) {
    let mut state = Unconfirmed { next: 0, open: BTreeMap::new() };
    let mut broker = 0;
    while !(job.stopped() && state.open.is_empty()) {
        let url = &job.amqp_urls[broker % job.amqp_urls.len()];
        // Ends with the connection; whatever it was, what is unconfirmed is sent again.
        if let Some((_connection, channel, replies)) = open(url).await {
            let _ = converse(&job, &mut state, &channel, replies).await;
        }
        broker += 1;
        sleep(RETRY_AFTER).await;
    }
}

async fn open(url: &str) -> Option<(Connection, Channel, (ShortString, Consumer))> {
    let opening = async {
        let properties =
            ConnectionProperties::default().configure_backoff(|backoff| backoff.with_max_times(0));
        let connection = Connection::connect(url, properties).await.ok()?;
        let channel = connection.create_channel().await.ok()?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
        let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await.ok()?;
        let name = queue.name().clone();
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let replies =
            channel.basic_consume(name.clone(), "".into(), options, FieldTable::default()).await.ok()?;
        Some((connection, channel, (name, replies)))
    };
    timeout(Duration::from_secs(10), opening).await.ok().flatten()
}

async fn publish(
    job: &Job,
    channel: &Channel,
    reply_to: &ShortString,
    number: u32,
    retry: bool,
) -> Option<impl std::future::Future<Output = (u32, bool)>> {
    let letter = job.sending(number, retry);
    let mut properties = BasicProperties::default()
        .with_message_id(ShortString::try_new(job.key(number).id()).ok()?)
        .with_app_id("backend".into())
        .with_delivery_mode(if letter.kind == Kind::Once { 1 } else { 2 })
        .with_reply_to(reply_to.clone());
    if let Some(ttl) = letter.ttl_ms {
        properties = properties.with_expiration(ShortString::try_new(ttl.to_string()).ok()?);
    }
    let target = ShortString::try_new(letter.target).ok()?;
    let exchange = ShortString::try_new(job.ingress.clone()).ok()?;
    let body = job.payload(number).to_string();
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let sending = channel.basic_publish(exchange, target, options, body.as_bytes(), properties);
    // A blocked broker takes nothing, for as long as it likes.
    let confirm = timeout(SILENCE_MAX, sending).await.ok()?.ok()?;
    Some(confirm.map(move |confirmed| (number, matches!(confirmed, Ok(Confirmation::Ack(None))))))
}

async fn converse(
    job: &Job,
    state: &mut Unconfirmed,
    channel: &Channel,
    (reply_to, mut replies): (ShortString, Consumer),
) -> Option<()> {
    let mut confirms = FuturesUnordered::new();
    let mut unsettled = HashSet::new();
    for number in state.open.keys() {
        unsettled.insert(*number);
        confirms.push(publish(job, channel, &reply_to, *number, true).await?);
    }
    let (mut pace, mut heard) = (job.pace(), Instant::now());
    while !(job.stopped() && state.open.is_empty()) {
        tokio::select! {
            _ = pace.tick(), if !job.stopped() && state.open.len() < WINDOW => {
                let number = state.next;
                state.next += 1;
                state.open.insert(number, ());
                unsettled.insert(number);
                for _ in 0..=u8::from(job.twice) {
                    confirms.push(publish(job, channel, &reply_to, number, false).await?);
                }
            }
            Some((number, confirmed)) = confirms.next(), if !confirms.is_empty() => {
                heard = Instant::now();
                if !confirmed {
                    return None;
                }
                job.recorder.told(job.key(number), Told::Confirmed);
                state.open.remove(&number);
            }
            reply = replies.next() => {
                unsettled.remove(&settled(job, &reply?.ok()?.data));
            }
            () = sleep_until(heard + SILENCE_MAX), if !state.open.is_empty() => return None,
        }
    }
    let rest = async {
        while !unsettled.is_empty() {
            let Some(Ok(reply)) = replies.next().await else { return };
            unsettled.remove(&settled(job, &reply.data));
        }
    };
    let _ = timeout(SETTLED_MAX, rest).await;
    Some(())
}

/// Returns the number of the message that the settlement is about.
fn settled(job: &Job, body: &[u8]) -> u32 {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let key = answer["id"].as_str().and_then(Key::parse);
    let Some(key) = key else { return u32::MAX };
    // The gateway tries by itself whatever may be tried again.
    job.answered(key.number, &answer);
    key.number
}
