//! Messages from users of one node to users of another, sent at a fixed rate whatever comes back.
//!
//! A message carries the moment at which it was meant to be sent, so that a late sender makes the latency worse
//! and not better. Sender and receiver are one process: there is one clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{listen, Door};
use crate::crowd::{gather, histogram, quantiles};
use crate::frames::{masked, TEXT};
use crate::process::Process;

/// What messages that are still on their way get at the end.
const LINGER: Duration = Duration::from_secs(2);
/// Until the directories know everybody.
const SETTLE: Duration = Duration::from_secs(2);
/// How finely the sender's clock ticks.
const TICK: Duration = Duration::from_micros(100);
const CONNECTING_AT_ONCE: usize = 64;

#[derive(Debug, Args)]
pub struct Direct {
    /// The senders' node
    #[arg(long)]
    pub from: String,
    /// The receivers' node
    #[arg(long)]
    pub to: String,
    /// Messages per second
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Senders, and as many receivers
    #[arg(long, default_value_t = 100)]
    users: usize,
    /// Bytes of each payload, about
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Without receipts
    #[arg(long)]
    at_most_once: bool,
    /// The nodes' processes, for their processor time
    #[arg(long, num_args = 1..)]
    pid: Vec<u32>,
}

/// Microseconds, and what is no success.
struct Seen {
    began: Instant,
    frames: Mutex<Histogram<u64>>,
    replies: Mutex<Histogram<u64>>,
    failed: AtomicU64,
}

impl Seen {
    fn record(&self, histogram: &Mutex<Histogram<u64>>, sent_ns: u64) {
        let now = self.began.elapsed().as_nanos() as u64;
        let mut histogram = histogram.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(now.saturating_sub(sent_ns) / 1000);
    }

    fn frame(&self, text: &[u8]) {
        if let Some(sent) = number_after(text, b"\"at\":") {
            self.record(&self.frames, sent);
        }
    }

    fn reply(&self, text: &[u8]) {
        let outcome = [&br#""outcome":"delivered""#[..], br#""outcome":"published""#];
        if !outcome.iter().any(|outcome| contains(text, outcome)) {
            if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                eprintln!("first failure: {}", String::from_utf8_lossy(text));
            }
        } else if let Some(sent) = number_after(text, b"\"id\":") {
            self.record(&self.replies, sent);
        }
    }
}

impl Direct {
    pub async fn run(&self, from: &Door, to: &Door) -> Result<(), String> {
        let senders = gather(from, "sender", self.users, CONNECTING_AT_ONCE, None).await?;
        let receivers = gather(to, "receiver", self.users, CONNECTING_AT_ONCE, None).await?;
        if senders.failed + receivers.failed > 0 {
            return Err("not everybody could connect".into());
        }
        sleep(SETTLE).await;
        let seen = Arc::new(Seen {
            began: Instant::now(),
            frames: Mutex::new(histogram()),
            replies: Mutex::new(histogram()),
            failed: AtomicU64::new(0),
        });
        let mut listening = JoinSet::new();
        for stream in receivers.streams {
            let seen = seen.clone();
            listening.spawn(listen(stream, move |text| seen.frame(text)));
        }
        for stream in &senders.streams {
            let seen = seen.clone();
            listening.spawn(listen(stream.clone(), move |text| seen.reply(text)));
        }
        let cpu_before = self.cpu();
        let plan = Plan::new(self, seen.began, senders.streams);
        let pacing = tokio::task::spawn_blocking(move || plan.send_all());
        let (sent, blocked) = pacing.await.map_err(|error| error.to_string())?;
        sleep(LINGER).await;
        let cpu = self.cpu() - cpu_before;
        self.report(&seen, sent, blocked, cpu);
        Ok(())
    }

    fn cpu(&self) -> Duration {
        self.pid.iter().map(|pid| Process(*pid).cpu()).sum()
    }

    fn report(&self, seen: &Seen, sent: u64, blocked: u64, cpu: Duration) {
        let frames = seen.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let replies = seen.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = seen.failed.load(Ordering::Relaxed);
        println!(
            "sent           {sent} in {} s, {blocked} not sent because the socket was full",
            self.seconds
        );
        println!("reach          {} frames, {} replies, {failed} refused", frames.len(), replies.len());
        println!("to the frame   {}", quantiles(&frames));
        println!("to the reply   {}", quantiles(&replies));
        if !self.pid.is_empty() && !frames.is_empty() {
            let each = cpu.as_secs_f64() / frames.len() as f64;
            let (each_us, rate) = (each * 1e6, 1.0 / each);
            println!("nodes' CPU     {each_us:.1} us a message = {rate:.0} messages/s and core");
        }
    }
}

/// What is sent when.
struct Plan {
    streams: Vec<Arc<TcpStream>>,
    began: Instant,
    count: u64,
    interval_ns: u64,
    padding: String,
    delivery: &'static str,
}

impl Plan {
    fn new(load: &Direct, began: Instant, streams: Vec<Arc<TcpStream>>) -> Self {
        Self {
            streams,
            began,
            count: load.rate * load.seconds,
            interval_ns: 1_000_000_000 / load.rate.max(1),
            padding: "x".repeat(load.payload.saturating_sub(32)),
            delivery: if load.at_most_once { "at_most_once" } else { "at_least_once" },
        }
    }

    /// Returns how many were sent and how many were not.
    fn send_all(self) -> (u64, u64) {
        let start_ns = self.began.elapsed().as_nanos() as u64;
        let (mut sent, mut blocked) = (0, 0);
        for number in 0..self.count {
            let due_ns = start_ns + number * self.interval_ns;
            while (self.began.elapsed().as_nanos() as u64) < due_ns {
                sleep_of_thread(TICK);
            }
            let user = (number % self.streams.len() as u64) as usize;
            let frame = self.frame(user, due_ns);
            match self.streams[user].try_write(&frame) {
                Ok(written) if written == frame.len() => sent += 1,
                _ => blocked += 1,
            }
        }
        (sent, blocked)
    }

    fn frame(&self, user: usize, due_ns: u64) -> Vec<u8> {
        let Self { padding, delivery, .. } = self;
        let text = format!(
            r#"{{"type":"publish","id":{due_ns},"to":"user.receiver{user}","delivery":"{delivery}","payload":{{"at":{due_ns},"x":"{padding}"}}}}"#
        );
        masked(TEXT, text.as_bytes())
    }
}

/// The runtime's clock ticks in milliseconds, which is as coarse as what is measured.
#[allow(clippy::disallowed_methods)]
fn sleep_of_thread(time: Duration) {
    std::thread::sleep(time);
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn number_after(text: &[u8], name: &[u8]) -> Option<u64> {
    let at = text.windows(name.len()).position(|window| window == name)? + name.len();
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}
