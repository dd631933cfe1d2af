//! What mail in boxes costs a broker: stores one message for each of many users, reads all boxes, and prints a table.
//!
//! The broker should be private, since its memory is what is measured; its management plugin must be on:
//!
//! ```text
//! tests/support/broker.sh /tmp/broker 25672 15672 25673 4370 &
//! RUST_MIN_STACK=67108864 cargo run --release --example box_cost -- \
//!     amqp://guest:guest@127.0.0.1:25672 http://guest:guest@127.0.0.1:15672 200000
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{stream, StreamExt};
use tokio::sync::oneshot;
use warren::bus::rabbit::{RabbitBus, RabbitSettings};
use warren::bus::{Attach, BoxEvent, BoxNumber, Bus, Outcome, Properties};
use warren::config::AmqpUrl;
use warren::ids::{NodeId, UserId, UserKey};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const BODY: &[u8] = &[b'x'; 300];

/// The statistics of the broker follow what happens by this much.
const STATISTICS_LAG: Duration = Duration::from_secs(8);

/// Before something is tried again.
const PAUSE: Duration = Duration::from_millis(100);

struct Run {
    bus: Arc<dyn Bus>,
    management: String,
    http: reqwest::Client,
    last: u64,
}

impl Run {
    /// Prints a row: how long the step took, and the memory of the broker after it.
    async fn row(&mut self, step: &str, count: usize, took: Option<Duration>) -> Result<(), AnyError> {
        tokio::time::sleep(STATISTICS_LAG).await;
        let nodes = self.http.get(format!("{}/api/nodes", self.management)).send().await?;
        let nodes: serde_json::Value = nodes.json().await?;
        let used = nodes[0]["mem_used"].as_u64().ok_or("no memory figure")?;
        let each = (used as f64 - self.last as f64) / 1024.0 / count.max(1) as f64;
        let (seconds, rate) = match took {
            Some(took) => (took.as_secs_f64(), count as f64 / took.as_secs_f64()),
            None => (0.0, 0.0),
        };
        let mebibytes = used as f64 / 1_048_576.0;
        println!("| {step} | {seconds:.2} | {rate:.0} | {mebibytes:.1} | {each:+.1} |");
        self.last = used;
        Ok(())
    }
}

async fn deposit(bus: &Arc<dyn Bus>, to: BoxNumber) -> Outcome {
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |outcome| {
        let _ = tell.send(outcome);
    });
    bus.deposit(to, Properties::default(), Bytes::from_static(BODY), done);
    told.await.unwrap_or(Outcome::Unavailable)
}

/// Reads a box to its end, gives everything back or acknowledges it, and tells how much there was.
async fn read(bus: &Arc<dyn Bus>, number: BoxNumber, take: bool) -> Result<usize, AnyError> {
    let Attach::Reading(mut reader) = bus.attach_box(number, vec![UserKey(1)]).await? else {
        return Ok(0);
    };
    let mut count = 0;
    while let Some(event) = reader.events.recv().await {
        match event {
            BoxEvent::Mail(mail) => {
                count += 1;
                if take {
                    mail.ack.ack();
                }
            }
            BoxEvent::RoundEnd { .. } => break,
        }
    }
    reader.close_cleanly().await;
    Ok(count)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [amqp, management, rest @ ..] = arguments.as_slice() else {
        return Err("usage: box_cost AMQP_URL MANAGEMENT_URL [USERS] [AT_A_TIME]".into());
    };
    let count: usize = rest.first().map_or(Ok(200_000), |text| text.parse())?;
    let at_a_time: usize = rest.get(1).map_or(Ok(1_000), |text| text.parse())?;
    let (bus, _inboxes) =
        RabbitBus::start(RabbitSettings::new(vec![AmqpUrl::parse(amqp)?]), NodeId::new("cost")?);
    let bus: Arc<dyn Bus> = bus;
    bus.link().wait_for(|link| link.ready()).await?;
    let boxes = bus.boxes().boxes;
    let mut run = Run { bus, management: management.clone(), http: reqwest::Client::new(), last: 0 };

    println!("{count} users in {boxes} boxes, {at_a_time} deposits at a time, {} bytes each", BODY.len());
    println!("| step | s | 1/s | broker MiB | KiB each |\n|---|---|---|---|---|");
    run.row("before", count, None).await?;
    for (step, first, last) in [
        ("make the boxes: one deposit each", 0, boxes.get() as usize),
        ("one deposit for each user", 0, count),
    ] {
        let (started, again) = (Instant::now(), AtomicUsize::new(0));
        let work = stream::iter(first..last).for_each_concurrent(at_a_time, |n| {
            let (bus, again) = (&run.bus, &again);
            let user = UserId::new(&format!("user-{n}")).map(|user| UserKey::of(&user)).unwrap_or(UserKey(0));
            let to = if last == count { BoxNumber::of(user, boxes) } else { BoxNumber(n as u32) };
            async move {
                while deposit(bus, to).await != Outcome::Confirmed {
                    again.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        work.await;
        let took = started.elapsed();
        let tried = again.load(Ordering::Relaxed);
        run.row(&format!("{step} ({tried} tried again)"), last - first, Some(took)).await?;
    }
    for (step, take) in [("read each box and give all back", false), ("read each box and take all", true)] {
        let started = Instant::now();
        let mut mails = 0;
        for number in 0..boxes.get() {
            mails += read(&run.bus, BoxNumber(number), take).await?;
        }
        let took = started.elapsed();
        let each = took.as_secs_f64() * 1_000.0 / f64::from(boxes.get());
        println!("{mails} mails: {each:.2} ms for each box");
        if mails < count {
            return Err(format!("{mails} messages of {count}").into());
        }
        run.row(step, boxes.get() as usize, Some(took)).await?;
    }
    run.bus.close();
    Ok(())
}
