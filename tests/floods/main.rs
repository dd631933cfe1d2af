//! Thousands of sockets that hold what others need: a client that keeps the rules gets in all the same.
//!
//! A program of its own, since each of these tests uses all of the machine.

// Clippy knows tests by their attribute, and not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
#[allow(dead_code)] // Other test programs use the rest.
mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{timeout, Instant};

use support::eventually::eventually;
use support::nodes::{Cluster, PATIENCE};
use support::raw_ws::{upgrade_request, RawClient};

/// As many connections as a node has slots by default.
const SLOTS: usize = 2_048;
const HANDSHAKES: usize = 60;
/// What the slowest handshake may take beside an attack; and how many times longer than without one, which counts
/// on a machine that has other things to do.
const HANDSHAKE_MAX: Duration = Duration::from_secs(1);
const SLOWDOWN_MAX: u32 = 10;
const GET: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// One flood at a time: each uses up to half of the file descriptors that a process usually may open.
static FLOOD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn begin_flood() -> tokio::sync::MutexGuard<'static, ()> {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(limit >= 16_384, "{limit} open files are too few for this test");
    FLOOD.lock().await
}

async fn connect(addr: SocketAddr) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(addr)).await.expect("a connection in time").unwrap()
}

/// What a handshake may take here and now. Call it before the attack.
async fn handshake_max(addr: SocketAddr) -> Duration {
    HANDSHAKE_MAX.max(slowest_handshake(addr).await * SLOWDOWN_MAX)
}

/// Handshakes one after the other, of a client on the same address as the attackers; returns the slowest.
async fn slowest_handshake(addr: SocketAddr) -> Duration {
    let mut all = Vec::new();
    for at in 0..HANDSHAKES {
        let began = Instant::now();
        let mut client = RawClient::connect(addr, &format!("/ws?user=honest{at}")).await;
        client.read_frame().await.expect("a welcome");
        all.push(began.elapsed());
    }
    all.into_iter().max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_pipeline_and_never_read_keep_nobody_out() {
    let _alone = begin_flood().await;
    let cluster = Cluster::start(1, &[("CONNECTIONS_PER_ADDRESS", "65536")]).await;
    let addr = cluster.ws(0);
    let limit = handshake_max(addr).await;
    let block = GET.repeat(2_000);
    let stuck = join_all((0..SLOTS).map(|_| {
        let block = block.clone();
        async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            let mut stream = socket.connect(addr).await.unwrap();
            // Until the node takes no more of it.
            let _ = timeout(Duration::from_millis(500), stream.write_all(&block)).await;
            // It is served: the attack has begun.
            stream.readable().await.unwrap();
            stream
        }
    }));
    let stuck = timeout(PATIENCE * 3, stuck).await.expect("the attack begins");
    let slowest = slowest_handshake(addr).await;
    assert!(slowest < limit, "a handshake took {slowest:?}");
    // Who does not read gives its slot to somebody who does.
    let api = cluster.api(0);
    eventually("the API is reachable", PATIENCE, || async {
        let asked = api.request(Method::GET, "/v1/nodes").send().await;
        asked.is_ok_and(|response| response.status() == 200)
    })
    .await;
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_keep_asking_keep_nobody_out() {
    let _alone = begin_flood().await;
    let cluster = Cluster::start(1, &[("CONNECTIONS_PER_ADDRESS", "65536")]).await;
    let addr = cluster.ws(0);
    let limit = handshake_max(addr).await;
    let mut asking = JoinSet::new();
    let asked = Arc::new(AtomicUsize::new(0));
    for _ in 0..SLOTS {
        let asked = asked.clone();
        asking.spawn(async move {
            let mut answer = [0; 512];
            loop {
                let mut stream = connect(addr).await;
                let mut every = tokio::time::interval(Duration::from_secs(3));
                loop {
                    every.tick().await;
                    if stream.write_all(GET).await.is_err()
                        || !matches!(stream.read(&mut answer).await, Ok(1..))
                    {
                        break;
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    eventually("all slots are taken", PATIENCE * 3, || async { asked.load(Ordering::Relaxed) >= SLOTS })
        .await;
    let slowest = slowest_handshake(addr).await;
    assert!(slowest < limit, "a handshake took {slowest:?}");
    // A newcomer with one request takes the place of one that idles.
    let mut slowest = Duration::ZERO;
    for at in 0..HANDSHAKES {
        let began = Instant::now();
        let (status, _) = cluster.api(0).publish(&json!({"to": "broadcast", "payload": at})).await;
        assert_eq!(status, 200);
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < limit, "a publish took {slowest:?}");
    asking.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_half_heads_keep_nobody_out() {
    let _alone = begin_flood().await;
    let cluster = Cluster::start(1, &[]).await;
    let addr = cluster.ws(0);
    let limit = handshake_max(addr).await;
    const DRIPPING: usize = 5_000;
    let mut dripping = JoinSet::new();
    let connected = Arc::new(AtomicUsize::new(0));
    for at in 0..DRIPPING {
        let connected = connected.clone();
        dripping.spawn(async move {
            loop {
                let mut stream = connect(addr).await;
                connected.fetch_add(1, Ordering::Relaxed);
                let request = upgrade_request("/ws?user=a", "");
                let mut every = tokio::time::interval(Duration::from_millis(1_000 + at as u64 % 500));
                // A byte at a time; from the beginning once it is cut off.
                for byte in request.as_bytes() {
                    every.tick().await;
                    if stream.write_all(std::slice::from_ref(byte)).await.is_err() {
                        break;
                    }
                }
            }
        });
    }
    let all = || async { connected.load(Ordering::Relaxed) >= DRIPPING };
    eventually("all have connected", PATIENCE * 3, all).await;
    // Those that came before it have been accepted when this one is.
    RawClient::connect(addr, "/ws?user=first").await;
    let slowest = slowest_handshake(addr).await;
    assert!(slowest < limit, "a handshake took {slowest:?}");
    dripping.shutdown().await;
}

#[tokio::test]
async fn an_address_has_a_share_and_an_idle_connection_of_its_own_pays() {
    let cluster = Cluster::start(1, &[("CONNECTIONS_PER_ADDRESS", "4")]).await;
    let from = |last: u8| {
        let addr = cluster.ws(0);
        async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
            let mut stream = socket.connect(addr).await.unwrap();
            ask(&mut stream).await.then_some(stream)
        }
    };
    let mut other = from(2).await.expect("an answer");
    let mut many = Vec::new();
    for _ in 0..8 {
        many.push(from(3).await.expect("a newcomer gets in"));
    }
    let mut alive = Vec::new();
    for stream in &mut many {
        alive.push(ask(stream).await);
    }
    assert_eq!(alive, [false, false, false, false, true, true, true, true]);
    assert!(ask(&mut other).await, "another address does not pay");
}

#[tokio::test]
async fn clients_of_a_trusted_proxy_do_not_share_its_address() {
    let vars = [("CONNECTIONS_PER_ADDRESS", "1"), ("TRUSTED_PROXIES", "127.0.0.1")];
    let cluster = Cluster::start(1, &vars).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(connect(cluster.ws(0)).await);
    }
    for _ in 0..2 {
        for stream in &mut streams {
            assert!(ask(stream).await);
        }
    }
}

/// Whether a request on this connection is answered.
async fn ask(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 512];
    let asked =
        async { stream.write_all(GET).await.is_ok() && matches!(stream.read(&mut answer).await, Ok(1..)) };
    timeout(PATIENCE, asked).await.expect("an answer or an end") && answer.starts_with(b"HTTP/1.1 200")
}
