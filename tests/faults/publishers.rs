//! The senders: a backend over AMQP, services over HTTP, users over sockets. They repeat what got no answer, under
//! the same id, until they know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::sync::watch;
use tokio::time::{interval, sleep, Interval, MissedTickBehavior};

use crate::clients::connect;
use crate::record::{Key, Recorder, Told};

const RETRY_AFTER: Duration = Duration::from_millis(150);
/// Above the longest that the gateway may take: two attempts of 5 s and a deposit of 2 s.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Publishes of one socket that await their reply.
const WINDOW: usize = 16;

/// What a publisher needs to know.
#[derive(Clone)]
pub struct Job {
    pub publisher: u32,
    pub recorder: Arc<Recorder>,
    pub ports: Arc<[u16]>,
    /// The node that it uses until that fails.
    pub home: usize,
    /// Messages go to users `0..users` in turn.
    pub users: u32,
    pub every: Duration,
    /// Bytes that make each payload longer.
    pub padding: usize,
    /// Sends every message twice.
    pub twice: bool,
    pub amqp_urls: Vec<String>,
    pub ingress: String,
    /// `true`: no new messages; the publisher ends when it knows what became of the old ones.
    pub stop: watch::Receiver<bool>,
}

impl Job {
    pub fn pace(&self) -> Interval {
        let mut pace = interval(self.every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    }

    pub fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    pub fn key(&self, number: u32) -> Key {
        Key { publisher: self.publisher, number }
    }

    /// Each publisher begins elsewhere, so that they do not all write to one user at a time.
    pub fn user(&self, number: u32) -> u32 {
        (number + self.publisher * 17) % self.users
    }

    pub fn payload(&self, number: u32) -> Value {
        json!({"n": number, "padding": "x".repeat(self.padding)})
    }

    fn body(&self, number: u32) -> Value {
        let id = self.key(number).id();
        json!({"to": format!("user.u{}", self.user(number)), "message_id": id, "payload": self.payload(number)})
    }
}

/// What an answer of the gateway means; `None`: try again.
pub fn meaning(answer: &Value) -> Option<Told> {
    match answer["outcome"].as_str() {
        Some("delivered") => Some(Told::Delivered),
        Some("stored") => Some(Told::Stored),
        _ if answer["error"]["retry"] == true => None,
        _ => Some(Told::Rejected),
    }
}

/// One message after the other over HTTP.
pub async fn over_http(job: Job) {
    let http = reqwest::Client::builder().timeout(ANSWER_MAX).build().unwrap();
    let (mut pace, mut number, mut node) = (job.pace(), 0, job.home);
    while !job.stopped() {
        pace.tick().await;
        for _ in 0..=u8::from(job.twice) {
            let mut told = None;
            while told.is_none() {
                job.recorder.sending(job.key(number), job.user(number));
                let url = format!("http://127.0.0.1:{}/v1/messages", job.ports[node % job.ports.len()]);
                let answer = http.post(url).json(&job.body(number)).send().await;
                told = match answer {
                    Ok(answer) => answer.json().await.ok().and_then(|answer| meaning(&answer)),
                    Err(_) => None,
                };
                if told.is_none() {
                    node += 1;
                    sleep(RETRY_AFTER).await;
                }
            }
            job.recorder.told(job.key(number), told.unwrap_or(Told::Nothing));
        }
        number += 1;
    }
}

/// Pipelined over one socket, which is opened elsewhere when it is lost.
pub async fn over_socket(job: Job) {
    let mut state = Pipeline { next: 0, open: BTreeMap::new() };
    let mut node = job.home;
    while !(job.stopped() && state.open.is_empty()) {
        let query = format!("user=publisher{}", job.publisher);
        if let Some(mut socket) = connect(job.ports[node % job.ports.len()], &query, false).await {
            // Until the connection is lost.
            let _ = pipeline(&job, &mut state, &mut socket).await;
        }
        node += 1;
        sleep(RETRY_AFTER).await;
    }
}

struct Pipeline {
    next: u32,
    /// What awaits its reply, and when it is to be sent again if an answer asked for that.
    open: BTreeMap<u32, Option<tokio::time::Instant>>,
}

async fn pipeline(job: &Job, state: &mut Pipeline, socket: &mut crate::clients::Socket) -> Option<()> {
    use futures_util::{SinkExt, StreamExt};
    use tungstenite::Message;
    let frame = |number: u32| {
        let mut frame = job.body(number);
        (frame["type"], frame["id"]) = (json!("publish"), json!(number));
        job.recorder.sending(job.key(number), job.user(number));
        Message::text(frame.to_string())
    };
    for (number, again) in &mut state.open {
        *again = None;
        socket.send(frame(*number)).await.ok()?;
    }
    let (mut pace, mut heard) = (job.pace(), tokio::time::Instant::now());
    while !(job.stopped() && state.open.is_empty()) {
        let due = state.open.values().flatten().min().copied();
        tokio::select! {
            _ = pace.tick(), if !job.stopped() && state.open.len() < WINDOW => {
                state.open.insert(state.next, None);
                for _ in 0..=u8::from(job.twice) {
                    socket.send(frame(state.next)).await.ok()?;
                }
                state.next += 1;
            }
            incoming = socket.next() => {
                heard = tokio::time::Instant::now();
                let Message::Text(text) = incoming?.ok()? else { continue };
                let reply: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                let Some(number) = reply["id"].as_u64().map(|id| id as u32) else { continue };
                match meaning(&reply) {
                    Some(told) => {
                        job.recorder.told(job.key(number), told);
                        state.open.remove(&number);
                    }
                    None => {
                        let again = heard + RETRY_AFTER;
                        state.open.entry(number).and_modify(|at| *at = Some(again));
                    }
                }
            }
            () = async { tokio::time::sleep_until(due.unwrap_or(heard)).await }, if due.is_some() => {
                let due = state.open.iter_mut().find(|(_, at)| **at == due);
                if let Some((number, at)) = due {
                    *at = None;
                    socket.send(frame(*number)).await.ok()?;
                }
            }
            // The node is gone without a word: it would have pinged.
            () = tokio::time::sleep_until(heard + ANSWER_MAX) => return None,
        }
    }
    Some(())
}
