//! The users: devices that connect, record what they get, come back after every loss, and behave badly on request.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{json, Value};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout, Instant};
use tokio_tungstenite::WebSocketStream;
use tungstenite::Message;

use crate::record::{Chance, Key, Recorder};

pub type Socket = WebSocketStream<TcpStream>;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A server that pings every 4 s and says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(9);
const BACKOFF_FLOOR_MS: u64 = 100;
const BACKOFF_CEILING_MS: u64 = 2_000;

/// How a device behaves until the scenario calls for calm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Stays connected and reads.
    Steady,
    /// Loses its connection without a word, again and again.
    Vanishes,
    /// Says goodbye and moves to another node, again and again.
    Moves,
    /// Promises acknowledgements and sends none.
    NeverAcks,
    /// Reads one frame in a while, through a narrow window.
    Crawls,
    /// Comes and goes, with pauses.
    Away,
}

#[derive(Debug, Clone, Copy)]
pub struct Device {
    pub index: u32,
    pub user: u32,
    pub habit: Habit,
    /// Acknowledges what it has seen; else what was written to its socket counts.
    pub acks: bool,
    /// The node that it tries first.
    pub home: usize,
}

/// Where clients and publishers find the gateway. The ports stay when nodes come and go.
#[derive(Clone)]
pub struct Site {
    pub ports: Arc<[u16]>,
    pub recorder: Arc<Recorder>,
    /// `true`: misbehave no more; the run ends soon.
    pub calm: watch::Receiver<bool>,
    /// Counts orders to drop every connection at once.
    pub drops: watch::Receiver<u64>,
    pub seed: u64,
}

impl Site {
    fn is_calm(&self) -> bool {
        *self.calm.borrow()
    }
}

pub async fn connect(port: u16, query: &str, narrow: bool) -> Option<Socket> {
    let connecting = async {
        let socket = TcpSocket::new_v4().ok()?;
        if narrow {
            // Before connecting, so that the window which the server sees is small.
            socket.set_recv_buffer_size(4096).ok()?;
        }
        let stream = socket.connect(([127, 0, 0, 1], port).into()).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let url = format!("ws://127.0.0.1:{port}/ws?{query}");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.ok()?;
        // Only a welcome says that the session exists.
        match socket.next().await? {
            Ok(Message::Text(text)) if text.contains("\"welcome\"") => Some(socket),
            _ => None,
        }
    };
    timeout(CONNECT_MAX, connecting).await.ok().flatten()
}

/// Lives until the task is aborted.
pub async fn live(device: Device, mut site: Site) {
    let mut chance = Chance::new(site.seed, 1000 + u64::from(device.index));
    let (mut node, mut tries, mut session) = (device.home, 0u32, 0);
    loop {
        let acks = if device.acks || device.habit == Habit::NeverAcks { "&ack=client" } else { "" };
        let query = format!("user=u{}{acks}", device.user);
        let narrow = device.habit == Habit::Crawls && !site.is_calm();
        match connect(site.ports[node % site.ports.len()], &query, narrow).await {
            Some(socket) => {
                tries = 0;
                session += 1;
                let after = converse(device, session, socket, &mut site, &mut chance).await;
                sleep(after).await;
            }
            None => {
                // Full jitter: those who failed together do not come back together.
                let ceiling = (BACKOFF_FLOOR_MS << tries.min(5)).min(BACKOFF_CEILING_MS);
                tries += 1;
                sleep(Duration::from_millis(chance.pick(0..ceiling))).await;
            }
        }
        node += 1 + chance.pick(0..site.ports.len() as u64 - 1) as usize;
    }
}

/// One session, from welcome to its end. Returns how long to stay away.
async fn converse(
    device: Device,
    session: u32,
    mut socket: Socket,
    site: &mut Site,
    chance: &mut Chance,
) -> Duration {
    let mut ear = Ear { device, session, recorder: site.recorder.clone(), after: Duration::ZERO };
    // The habit's next act; far away for those who have none.
    let mut act = Instant::now() + pause(device.habit, chance);
    let mut heard = Instant::now();
    let mut calm = site.is_calm();
    loop {
        let crawls = device.habit == Habit::Crawls && !calm;
        let read_from = if crawls { Instant::now() + Duration::from_millis(400) } else { Instant::now() };
        let next = async {
            tokio::time::sleep_until(read_from).await;
            socket.next().await
        };
        tokio::select! {
            frame = next => {
                heard = Instant::now();
                let Some(Ok(frame)) = frame else {
                    site.recorder.closed(0);
                    return ear.after;
                };
                let answers = device.acks && (device.habit != Habit::NeverAcks || calm);
                if let Some(ack) = ear.hear(frame).filter(|_| answers) {
                    if socket.send(Message::text(ack)).await.is_err() {
                        return Duration::ZERO;
                    }
                }
            }
            _ = tokio::time::sleep_until(act), if !calm => {
                if !misbehave(device.habit, &mut socket, &mut ear).await {
                    act = Instant::now() + pause(device.habit, chance);
                    continue;
                }
                let away = if device.habit == Habit::Away { chance.pick(300..1500) } else { 0 };
                return Duration::from_millis(away);
            }
            _ = site.drops.changed() => {
                reset(&socket);
                return Duration::from_millis(chance.pick(0..1000));
            }
            _ = site.calm.changed() => {
                calm = true;
                if device.habit == Habit::NeverAcks {
                    return Duration::ZERO;
                }
            }
            _ = tokio::time::sleep_until(heard + SILENCE_MAX) => {
                site.recorder.closed(1);
                let port = socket.get_ref().peer_addr().map_or(0, |peer| peer.port());
                site.recorder.act(format!("device {} hears nothing on port {port}", device.index));
                return Duration::ZERO;
            }
        }
    }
}

fn pause(habit: Habit, chance: &mut Chance) -> Duration {
    match habit {
        Habit::Steady | Habit::NeverAcks | Habit::Crawls => Duration::from_secs(86_400),
        Habit::Vanishes | Habit::Moves => Duration::from_millis(chance.pick(200..1500)),
        Habit::Away => Duration::from_millis(chance.pick(500..2000)),
    }
}

/// Does what the habit is about; `true` if the session is over with that.
async fn misbehave(habit: Habit, socket: &mut Socket, ear: &mut Ear) -> bool {
    match habit {
        Habit::Steady | Habit::NeverAcks | Habit::Crawls => return false,
        Habit::Vanishes => reset(socket),
        Habit::Moves | Habit::Away => {
            if socket.close(None).await.is_ok() {
                // What the server wrote before it heard of that counts as delivered, so it is read.
                let rest = async {
                    while let Some(Ok(frame)) = socket.next().await {
                        ear.hear(frame);
                    }
                };
                let _ = timeout(Duration::from_secs(3), rest).await;
            }
        }
    }
    true
}

/// The next thing the server sees is a reset.
fn reset(socket: &Socket) {
    let _ = SockRef::from(socket.get_ref()).set_linger(Some(Duration::ZERO));
}

/// Records what one session hears.
struct Ear {
    device: Device,
    session: u32,
    recorder: Arc<Recorder>,
    /// What the server asked for before it closed.
    after: Duration,
}

impl Ear {
    /// Returns the acknowledgement of a message.
    fn hear(&mut self, frame: Message) -> Option<String> {
        match frame {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                match frame["type"].as_str() {
                    Some("message") => return Some(self.message(&frame)),
                    Some("disconnect") => {
                        self.after =
                            Duration::from_millis(frame["after_ms"].as_u64().unwrap_or(0).min(5_000));
                    }
                    _ => {}
                }
            }
            Message::Close(close) => self.recorder.closed(close.map_or(0, |close| close.code.into())),
            _ => {}
        }
        None
    }

    fn message(&self, frame: &Value) -> String {
        let id = frame["id"].as_str().unwrap_or_default();
        // What travels in the message must be what its id says, too.
        let key = Key::parse(id).filter(|key| frame["payload"]["n"].as_u64() == Some(key.number.into()));
        let redelivered = frame["redelivered"] == true;
        self.recorder.received(key, self.device.index, self.session, redelivered);
        json!({"type": "ack", "ids": [id]}).to_string()
    }
}
