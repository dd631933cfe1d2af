//! Users who keep the rules: each sends to the next once a second, and gets what the one before sends.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{json, Value};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, Instant};
use tokio_tungstenite::{client_async, WebSocketStream};
use tungstenite::Message;

use crate::eventually::eventually;

/// Half of them on each node; each sends to one on the other node.
pub const USERS: usize = 100;
const EVERY: Duration = Duration::from_secs(1);
/// The longest that a message may be under way, with everything that a round does to it.
const LATE: Duration = Duration::from_secs(20);

/// Times from the sender's frame to the receiver's.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn add(&mut self, more: &Self) {
        self.0.extend_from_slice(&more.0);
    }

    fn at(&self, share: f64) -> Duration {
        let mut all = self.0.clone();
        all.sort_unstable();
        all.get((all.len() as f64 * share) as usize).copied().unwrap_or_default()
    }

    pub fn p99(&self) -> Duration {
        self.at(0.99)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.at(share).as_secs_f64() * 1e3;
        write!(f, "{} messages, p50 {:.1} ms, p99 {:.1} ms", self.0.len(), ms(0.5), ms(0.99))
    }
}

#[derive(Default)]
struct Seen {
    sent: HashMap<u64, Instant>,
    got: HashSet<u64>,
    latencies: Latencies,
    mistakes: Vec<String>,
}

type Book = Arc<Mutex<Seen>>;

pub struct Honest {
    book: Book,
    /// Sending stops when it is dropped.
    sending: Option<tokio::sync::watch::Sender<()>>,
    users: JoinSet<()>,
}

impl Honest {
    /// Returns when all are connected.
    pub async fn start(ports: [u16; 2]) -> Self {
        let book = Book::default();
        let (sending, stop) = tokio::sync::watch::channel(());
        let mut users = JoinSet::new();
        for at in 0..USERS {
            let socket = connect(ports[at % 2], at).await;
            users.spawn(live(at, socket, book.clone(), stop.clone()));
        }
        Self { book, sending: Some(sending), users }
    }

    /// Those since the last call.
    pub fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut self.book.lock().unwrap().latencies)
    }

    /// Waits for what is under way; returns what went wrong.
    pub async fn finish(&mut self) -> Vec<String> {
        self.sending = None;
        let book = self.book.clone();
        let all = || async { book.lock().unwrap().sent.is_empty() };
        let waited = tokio::time::timeout(LATE, eventually("all has arrived", LATE * 2, all)).await;
        self.users.shutdown().await;
        let mut seen = self.book.lock().unwrap();
        let mut mistakes = std::mem::take(&mut seen.mistakes);
        if waited.is_err() {
            mistakes.push(format!("{} honest messages were lost", seen.sent.len()));
        }
        mistakes.truncate(20);
        mistakes
    }
}

async fn connect(port: u16, at: usize) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    client_async(format!("ws://127.0.0.1:{port}/ws?user=honest{at}"), stream).await.unwrap().0
}

async fn live(
    at: usize,
    mut socket: WebSocketStream<TcpStream>,
    book: Book,
    mut stop: tokio::sync::watch::Receiver<()>,
) {
    let mistake = |what: String| book.lock().unwrap().mistakes.push(format!("honest{at}: {what}"));
    // They do not all speak at the same moment.
    sleep(EVERY / USERS as u32 * at as u32).await;
    let (mut every, mut count, mut sends) = (interval(EVERY), 0, true);
    loop {
        tokio::select! {
            _ = every.tick(), if sends => {
                count += 1;
                let number = (at as u64) << 32 | count;
                let to = format!("user.honest{}", (at + 1) % USERS);
                let publish = json!({"type": "publish", "id": number, "to": to, "payload": number});
                book.lock().unwrap().sent.insert(number, Instant::now());
                if socket.send(Message::text(publish.to_string())).await.is_err() {
                    return mistake("could not send".into());
                }
            }
            _ = stop.changed(), if sends => sends = false,
            frame = socket.next() => match frame {
                Some(Ok(Message::Text(text))) => {
                    if let Err(what) = hear(&text, &book) {
                        mistake(what);
                    }
                }
                Some(Ok(Message::Close(frame))) => return mistake(format!("was closed: {frame:?}")),
                Some(Ok(_)) => {}
                other => return mistake(format!("lost its connection: {other:?}")),
            }
        }
    }
}

/// `Err`: what is wrong with the frame.
fn hear(text: &str, book: &Book) -> Result<(), String> {
    let frame: Value = serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
    match frame["type"].as_str() {
        Some("message") => {
            let Some(number) = frame["payload"].as_u64() else { return Ok(()) };
            let mut seen = book.lock().unwrap();
            if let Some(sent) = seen.sent.remove(&number) {
                seen.latencies.0.push(sent.elapsed());
            }
            match seen.got.insert(number) || frame["redelivered"] == true {
                true => Ok(()),
                false => Err(format!("got one twice: {text}")),
            }
        }
        // The first ones are stored where the receiver's node is not known yet.
        Some("reply") if frame["outcome"] != "delivered" && frame["outcome"] != "stored" => {
            Err(format!("was answered {text}"))
        }
        _ => Ok(()),
    }
}
