//! The senders: a backend over AMQP, services over HTTP, users over sockets. They repeat what got no answer, under
//! the same id, until they know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::sync::watch;
use tokio::time::{interval, sleep, Interval, MissedTickBehavior};

use crate::clients::connect;
use crate::record::{Key, Kind, Letter, Reason, Recorder, Told};

const RETRY_AFTER: Duration = Duration::from_millis(150);
/// Above the longest that the gateway may take.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Shorter than any clock of the suite is wrong, and longer than a client that moves is away.
const TTL_MS: u64 = 3_000;
/// Publishes of one socket that await their reply.
const WINDOW: usize = 16;

/// What a publisher sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// At-least-once to users.
    Users,
    /// To users, every third message at-most-once: both keep one order.
    Mixed,
    Brief,
    Sessions,
    Broadcasts,
}

/// What a publisher needs to know.
#[derive(Clone)]
pub struct Job {
    pub publisher: u32,
    pub recorder: Arc<Recorder>,
    pub ports: Arc<[u16]>,
    /// The node that it uses until that fails.
    pub home: usize,
    pub mix: Mix,
    /// Messages go to these users in turn.
    pub users: Arc<[u32]>,
    /// So many in a row to each: close together, so that disorder shows.
    pub run: u32,
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

    /// The address of a message: the same for each attempt.
    pub fn letter(&self, number: u32) -> Letter {
        self.recorder.letter(self.key(number)).unwrap_or_else(|| self.address(number))
    }

    fn address(&self, number: u32) -> Letter {
        // Each publisher begins elsewhere, so that they do not all write to one user at a time.
        let user = self.users[(number / self.run + self.publisher * 17) as usize % self.users.len()];
        let letter = Letter::to_user(user);
        match self.mix {
            Mix::Users => letter,
            Mix::Mixed if number % 3 == 2 => Letter { kind: Kind::Once, ..letter },
            Mix::Mixed => letter,
            Mix::Brief => Letter { kind: Kind::Brief, ttl_ms: Some(TTL_MS), ..letter },
            Mix::Broadcasts => Letter { kind: Kind::Broadcast, target: "broadcast".into(), ..letter },
            Mix::Sessions => match self.recorder.lock().session_of(user) {
                Some((seat, name)) => Letter {
                    kind: Kind::Session,
                    seat: Some(seat),
                    target: format!("session.{name}"),
                    ..letter
                },
                None => letter,
            },
        }
    }

    /// Hands the message over to the record, and says how it is addressed.
    pub fn sending(&self, number: u32, retry: bool) -> Letter {
        let letter = self.letter(number);
        self.recorder.sending(self.key(number), &letter, retry);
        letter
    }

    pub fn payload(&self, number: u32) -> Value {
        json!({"n": number, "padding": "x".repeat(self.padding)})
    }

    fn body(&self, number: u32, retry: bool) -> Value {
        let letter = self.sending(number, retry);
        let id = self.key(number).id();
        let mut body = json!({"to": letter.target, "message_id": id, "payload": self.payload(number)});
        if let Some(ttl) = letter.ttl_ms {
            body["ttl"] = ttl.into();
        }
        if letter.kind == Kind::Once {
            body["delivery"] = "at_most_once".into();
        }
        body
    }

    /// Records what an answer says; `false`: try again.
    pub fn answered(&self, number: u32, answer: &Value) -> bool {
        match meaning(answer) {
            Some(told) => self.recorder.told(self.key(number), told),
            None => {
                let code = answer["error"]["code"].as_str().unwrap_or("no code");
                self.recorder.refused(self.key(number), code);
                return false;
            }
        }
        true
    }
}

/// What an answer of the gateway means; `None`: try again.
pub fn meaning(answer: &Value) -> Option<Told> {
    match answer["outcome"].as_str() {
        Some("delivered") => Some(Told::Delivered(answer["sessions"].as_u64().unwrap_or(0) as u32)),
        Some("stored") => Some(Told::Stored),
        Some("published") => Some(Told::Published),
        _ if answer["error"]["retry"] == true => None,
        _ => Some(Told::Rejected(match answer["error"]["code"].as_str() {
            Some("offline") => Reason::Offline,
            Some("expired") => Reason::Expired,
            _ => Reason::Other,
        })),
    }
}

/// One message after the other over HTTP.
pub async fn over_http(job: Job) {
    let http = reqwest::Client::builder().timeout(ANSWER_MAX).build().unwrap();
    let (mut pace, mut number, mut node) = (job.pace(), 0, job.home);
    while !job.stopped() {
        pace.tick().await;
        for _ in 0..=u8::from(job.twice) {
            let (mut settled, mut retry) = (false, false);
            while !settled {
                let url = format!("http://127.0.0.1:{}/v1/messages", job.ports[node % job.ports.len()]);
                let answer = http.post(url).json(&job.body(number, retry)).send().await;
                let answer: Option<Value> = match answer {
                    Ok(answer) => answer.json().await.ok(),
                    Err(_) => None,
                };
                settled = answer.is_some_and(|answer| job.answered(number, &answer));
                retry = true;
                if !settled {
                    node += 1;
                    sleep(RETRY_AFTER).await;
                }
            }
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
        if let Some((mut socket, _)) = connect(job.ports[node % job.ports.len()], &query, false).await {
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
    let frame = |number: u32, retry: bool| {
        let mut frame = job.body(number, retry);
        (frame["type"], frame["id"]) = (json!("publish"), json!(number));
        Message::text(frame.to_string())
    };
    for (number, again) in &mut state.open {
        *again = None;
        socket.send(frame(*number, true)).await.ok()?;
    }
    let (mut pace, mut heard) = (job.pace(), tokio::time::Instant::now());
    while !(job.stopped() && state.open.is_empty()) {
        let due = state.open.values().flatten().min().copied();
        tokio::select! {
            _ = pace.tick(), if !job.stopped() && state.open.len() < WINDOW => {
                state.open.insert(state.next, None);
                for _ in 0..=u8::from(job.twice) {
                    socket.send(frame(state.next, false)).await.ok()?;
                }
                state.next += 1;
            }
            incoming = socket.next() => {
                heard = tokio::time::Instant::now();
                let Message::Text(text) = incoming?.ok()? else { continue };
                let reply: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                let Some(number) = reply["id"].as_u64().map(|id| id as u32) else { continue };
                if job.answered(number, &reply) {
                    state.open.remove(&number);
                } else {
                    let again = heard + RETRY_AFTER;
                    state.open.entry(number).and_modify(|at| *at = Some(again));
                }
            }
            () = async { tokio::time::sleep_until(due.unwrap_or(heard)).await }, if due.is_some() => {
                let due = state.open.iter_mut().find(|(_, at)| **at == due);
                if let Some((number, at)) = due {
                    *at = None;
                    socket.send(frame(*number, true)).await.ok()?;
                }
            }
            // The node is gone without a word: it would have pinged.
            () = tokio::time::sleep_until(heard + ANSWER_MAX) => return None,
        }
    }
    Some(())
}
