//! Clients that break every rule, each at a pace that leaves the machine to the nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tungstenite::Message;

use crate::crowd::connect;
use crate::raw_ws::{upgrade_request, Length, RawFrame, TEXT};

const DRIPPING: usize = 200;
const OF_EACH: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// What one of them does with a node, again and again.
#[derive(Clone, Copy)]
enum Act {
    /// Publishes as fast as the socket takes it, and reads nothing.
    Flood,
    /// Subscribes to one channel after the other.
    Collect,
    /// Gets broadcasts and does not read.
    Deaf,
    /// Promises acknowledgements, writes to itself, and sends none.
    NeverAcks,
    /// Random bytes after the handshake.
    Noise,
    /// A frame that claims to be endless.
    Endless,
    /// Requests that no route has, bodies that are too long, heads that are none.
    BadRequests,
    /// A head, one byte at a time.
    Drip,
}

const ACTS: [Act; 7] =
    [Act::Flood, Act::Collect, Act::Deaf, Act::NeverAcks, Act::Noise, Act::Endless, Act::BadRequests];

pub fn come(there: &mut JoinSet<()>, ports: &Arc<[u16]>, chance: &mut StdRng) {
    let all = ACTS.iter().flat_map(|act| [*act; OF_EACH]).chain([Act::Drip; DRIPPING]);
    for (at, act) in all.enumerate() {
        let (ports, mut own) = (ports.clone(), StdRng::seed_from_u64(chance.random()));
        there.spawn(async move {
            loop {
                let port = ports[own.random_range(0..ports.len())];
                perform(act, port, at, &mut own).await;
                sleep(PAUSE).await;
            }
        });
    }
}

async fn perform(act: Act, port: u16, at: usize, chance: &mut StdRng) {
    match act {
        Act::Flood => flood(port, at).await,
        Act::Collect => collect(port, at, chance).await,
        Act::Deaf => deaf(port, at).await,
        Act::NeverAcks => never_acks(port, at).await,
        Act::Noise => {
            let mut noise = vec![0; 4_096];
            chance.fill_bytes(&mut noise);
            raw(port, at, &noise).await;
        }
        Act::Endless => {
            let frame = RawFrame { length: Length::Claimed(1 << 62), ..RawFrame::new(TEXT, *b"{") };
            raw(port, at, &frame.bytes()).await;
        }
        Act::BadRequests => bad_requests(port).await,
        Act::Drip => drip(port, at).await,
    }
}

async fn flood(port: u16, at: usize) {
    let Some(mut socket) = connect(port, format!("user=flood{at}")).await else { return };
    let publish =
        json!({"type": "publish", "id": 1, "to": format!("user.flood{at}"), "payload": 1}).to_string();
    // 4101 comes long before.
    for _ in 0..2_000 {
        if socket.send(Message::text(publish.clone())).await.is_err() {
            return;
        }
    }
}

async fn collect(port: u16, at: usize, chance: &mut StdRng) {
    let Some(mut socket) = connect(port, format!("user=collect{at}")).await else { return };
    for id in 0..300 {
        let channel = format!("heap{}", chance.random::<u32>());
        let subscribe = json!({"type": "subscribe", "id": id, "channel": channel, "presence": true});
        if socket.send(Message::text(subscribe.to_string())).await.is_err() {
            return;
        }
    }
}

async fn deaf(port: u16, at: usize) {
    let Some(mut socket) = connect(port, format!("user=deaf{at}")).await else { return };
    let payload = "x".repeat(16_000);
    let publish =
        json!({"type": "publish", "id": 1, "to": format!("user.deaf{at}"), "payload": payload}).to_string();
    // More than the queue of a socket and what the kernel takes.
    for _ in 0..100 {
        if timeout(PAUSE, socket.send(Message::text(publish.clone()))).await.is_err() {
            break;
        }
    }
    sleep(PAUSE * 10).await;
}

async fn never_acks(port: u16, at: usize) {
    let Some(mut socket) = connect(port, format!("user=mute{at}&ack=client")).await else { return };
    for id in 0..100 {
        let publish = json!({"type": "publish", "id": id, "to": format!("user.mute{at}"), "payload": id});
        if socket.send(Message::text(publish.to_string())).await.is_err() {
            return;
        }
    }
    sleep(PAUSE * 10).await;
}

/// Shakes hands and sends these bytes; reads whatever comes until the node ends it.
async fn raw(port: u16, at: usize, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await else { return };
    let request = upgrade_request(&format!("/ws?user=raw{at}"), "");
    let mut answers = Vec::new();
    let talk = async {
        stream.write_all(request.as_bytes()).await?;
        stream.write_all(bytes).await?;
        stream.read_to_end(&mut answers).await
    };
    let _ = timeout(PAUSE * 10, talk).await;
}

async fn bad_requests(port: u16) {
    let long = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n{}",
        "x".repeat(70_000)
    );
    for request in ["GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", "\0\0\0\0\r\n\r\n", &long] {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let mut answer = [0; 512];
        let talk = async {
            stream.write_all(request.as_bytes()).await?;
            stream.read(&mut answer).await
        };
        let _ = timeout(PAUSE * 3, talk).await;
    }
}

async fn drip(port: u16, at: usize) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let request = upgrade_request("/ws?user=drip", "");
    for byte in request.as_bytes() {
        sleep(Duration::from_millis(1_000 + at as u64 % 500)).await;
        if stream.write_all(std::slice::from_ref(byte)).await.is_err() {
            return;
        }
    }
}
