//! What mailboxes cost a broker: makes many, one message each, opens them all, and prints a table.
//!
//! The broker should be private, since its memory is what is measured; its management plugin must be on:
//!
//! ```text
//! tests/support/broker.sh /tmp/broker 25672 15672 25673 4370 &
//! cargo run --release --example mailbox_cost -- \
//!     amqp://guest:guest@127.0.0.1:25672 http://guest:guest@127.0.0.1:15672 10000
//! ```
//!
//! Ten thousand take more than the gigabyte at which that broker stops taking messages:
//! `tests/support/broker.sh … ctl set_vm_memory_high_watermark absolute 3GB` first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{stream, StreamExt};
use tokio::sync::oneshot;
use warren::bus::rabbit::{AmqpUrl, RabbitBus, RabbitSettings};
use warren::bus::{Bus, Ending, Opened, Outcome, Properties};
use warren::ids::{NodeId, UserId};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const BODY: &[u8] = &[b'x'; 256];

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

async fn deposit(bus: &Arc<dyn Bus>, user: &UserId) -> Outcome {
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |outcome| {
        let _ = tell.send(outcome);
    });
    bus.deposit(user, Properties::default(), Bytes::from_static(BODY), done);
    told.await.unwrap_or(Outcome::Unavailable)
}

/// How many messages were in the mailbox; `None` if it could not be emptied.
async fn empty(bus: &Arc<dyn Bus>, user: &UserId) -> Option<usize> {
    let Ok(Opened::Mail(mut mailbox)) = bus.open_mailbox(user).await else { return None };
    let mut count = 0;
    while let Some(delivery) = mailbox.mail.recv().await {
        delivery.ack.ack();
        count += 1;
    }
    (mailbox.ending() == Ending::Emptied).then_some(count)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [amqp, management, rest @ ..] = arguments.as_slice() else {
        return Err("usage: mailbox_cost AMQP_URL MANAGEMENT_URL [MAILBOXES] [AT_A_TIME]".into());
    };
    let count: usize = rest.first().map_or(Ok(10_000), |text| text.parse())?;
    let at_a_time: usize = rest.get(1).map_or(Ok(64), |text| text.parse())?;
    let (bus, _inboxes) =
        RabbitBus::start(RabbitSettings::new(vec![AmqpUrl::parse(amqp)?]), NodeId::new("cost")?);
    let bus: Arc<dyn Bus> = bus;
    bus.link().wait_for(|link| link.ready()).await?;
    let users = (0..count).map(|n| UserId::new(&format!("user-{n}"))).collect::<Result<Vec<_>, _>>()?;
    let mut run = Run { bus, management: management.clone(), http: reqwest::Client::new(), last: 0 };

    println!("{count} mailboxes, {at_a_time} at a time, {} bytes each message", BODY.len());
    println!("| step | s | 1/s | broker MiB | KiB each |\n|---|---|---|---|---|");
    run.row("before", count, None).await?;
    for step in ["make, deposit one", "deposit one more"] {
        let (started, again) = (Instant::now(), AtomicUsize::new(0));
        let work = stream::iter(&users).for_each_concurrent(at_a_time, |user| {
            let (bus, again) = (&run.bus, &again);
            async move {
                while deposit(bus, user).await != Outcome::Confirmed {
                    again.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        work.await;
        let took = started.elapsed();
        run.row(&format!("{step} ({} tried again)", again.load(Ordering::Relaxed)), count, Some(took))
            .await?;
    }
    let started = Instant::now();
    let letters = AtomicUsize::new(0);
    let work = stream::iter(&users).for_each_concurrent(at_a_time, |user| {
        let (bus, letters) = (&run.bus, &letters);
        async move {
            loop {
                if let Some(count) = empty(bus, user).await {
                    letters.fetch_add(count, Ordering::Relaxed);
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    work.await;
    let took = started.elapsed();
    // A deposit that was tried again may be there twice.
    if letters.load(Ordering::Relaxed) < 2 * count {
        return Err(format!("{letters:?} messages instead of {}", 2 * count).into());
    }
    run.row("open, empty, remove", count, Some(took)).await?;
    let started = Instant::now();
    for user in &users {
        if !matches!(run.bus.open_mailbox(user).await, Ok(Opened::Empty)) {
            return Err("a mailbox that must not be".into());
        }
    }
    let took = started.elapsed();
    run.row("open one by one, nothing there", count, Some(took)).await?;
    run.bus.close();
    Ok(())
}
