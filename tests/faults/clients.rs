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

use crate::record::{Chance, Heals, Key, Recorder, Seat};

pub type Socket = WebSocketStream<TcpStream>;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A server that pings every 4 s and says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(9);
const BACKOFF_FLOOR_MS: u64 = 100;
const BACKOFF_CEILING_MS: u64 = 2_000;

/// What a scenario asks of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everybody behaves: the figures to compare with.
    Calm,
    /// Each does what its habit is.
    Act,
    /// Everybody comes home and behaves; the run ends soon.
    Home,
}

/// How a device behaves while the scenario lets it.
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
    /// Promises acknowledgements and does not even read.
    Deaf,
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
    pub phase: watch::Receiver<Phase>,
    /// Counts orders to drop every connection at once.
    pub drops: watch::Receiver<u64>,
    pub seed: u64,
}

impl Site {
    fn acts(&self) -> bool {
        *self.phase.borrow() == Phase::Act
    }
}

/// Returns the socket and the name of its session.
pub async fn connect(port: u16, query: &str, narrow: bool) -> Option<(Socket, String)> {
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
        let Message::Text(text) = socket.next().await?.ok()? else { return None };
        let welcome: Value = serde_json::from_str(&text).ok().filter(|it: &Value| it["type"] == "welcome")?;
        let name = welcome["session"].as_str()?.to_owned();
        Some((socket, name))
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
        let narrow =
            matches!(device.habit, Habit::Crawls | Habit::Deaf) && *site.phase.borrow() != Phase::Home;
        let at = node % site.ports.len();
        match connect(site.ports[at], &query, narrow).await {
            Some((socket, name)) => {
                tries = 0;
                session += 1;
                let seat = Seat { device: device.index, session };
                site.recorder.opened(seat, at, name);
                let after = converse(device, seat, socket, &mut site, &mut chance).await;
                site.recorder.ended(seat);
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
    seat: Seat,
    mut socket: Socket,
    site: &mut Site,
    chance: &mut Chance,
) -> Duration {
    let mut ear = Ear { seat, recorder: site.recorder.clone(), after: Duration::ZERO };
    // The habit's next act; far away for those who have none.
    let mut act = Instant::now() + pause(device.habit, chance);
    let mut heard = Instant::now();
    let mut acts = site.acts();
    loop {
        let crawls = device.habit == Habit::Crawls && acts;
        let deaf = device.habit == Habit::Deaf && acts;
        let read_from = if crawls { Instant::now() + Duration::from_millis(400) } else { Instant::now() };
        let next = async {
            tokio::time::sleep_until(read_from).await;
            socket.next().await
        };
        tokio::select! {
            frame = next, if !deaf => {
                heard = Instant::now();
                let Some(Ok(frame)) = frame else {
                    site.recorder.closed(0);
                    return ear.after;
                };
                let answers = device.acks && (device.habit != Habit::NeverAcks || !acts);
                if let Some(ack) = ear.hear(frame).filter(|_| answers) {
                    if socket.send(Message::text(ack)).await.is_err() {
                        return Duration::ZERO;
                    }
                }
            }
            _ = tokio::time::sleep_until(act), if acts => {
                site.recorder.ended(seat);
                misbehave(device.habit, &mut socket, &mut ear).await;
                let away = if device.habit == Habit::Away { chance.pick(300..1500) } else { 0 };
                return Duration::from_millis(away);
            }
            _ = site.drops.changed() => {
                reset(&socket);
                return Duration::from_millis(chance.pick(0..1000));
            }
            _ = site.phase.changed() => {
                acts = site.acts();
                act = Instant::now() + pause(device.habit, chance);
                heard = Instant::now();
                if device.habit == Habit::NeverAcks && *site.phase.borrow() == Phase::Home {
                    return Duration::ZERO;
                }
            }
            _ = tokio::time::sleep_until(heard + SILENCE_MAX), if !deaf => {
                site.recorder.closed(1);
                let port = socket.get_ref().peer_addr().map_or(0, |peer| peer.port());
                let what = format!("device {} hears nothing on port {port}", device.index);
                site.recorder.note(what, Heals::No);
                return Duration::ZERO;
            }
        }
    }
}

fn pause(habit: Habit, chance: &mut Chance) -> Duration {
    match habit {
        Habit::Steady | Habit::NeverAcks | Habit::Crawls | Habit::Deaf => Duration::from_secs(86_400),
        Habit::Vanishes | Habit::Moves => Duration::from_millis(chance.pick(200..1500)),
        Habit::Away => Duration::from_millis(chance.pick(500..2000)),
    }
}

/// Ends the session in the way of the habit.
async fn misbehave(habit: Habit, socket: &mut Socket, ear: &mut Ear) {
    match habit {
        Habit::Steady | Habit::NeverAcks | Habit::Crawls | Habit::Deaf => {}
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
}

/// The next thing the server sees is a reset.
fn reset(socket: &Socket) {
    let _ = SockRef::from(socket.get_ref()).set_linger(Some(Duration::ZERO));
}

/// Records what one session hears.
struct Ear {
    seat: Seat,
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
        self.recorder.received(key, self.seat, redelivered);
        json!({"type": "ack", "ids": [id]}).to_string()
    }
}
