//! Clients that are slow, stuck, many or mean: they hurt themselves and nobody else.

use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{timeout, Instant};

use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::raw_ws::{close_code, upgrade_request, RawClient, RawFrame, CLOSE, PING, TEXT};
use crate::support::user::User;

/// With so small a window that a client that does not read is noticed early.
async fn connect_with_window(cluster: &Cluster, bytes: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    socket.connect(cluster.ws(0)).await.unwrap()
}

/// A session that reads nothing.
async fn stuck(cluster: &Cluster, name: &str) -> TcpStream {
    let mut stream = connect_with_window(cluster, 4_096).await;
    let request = upgrade_request(&format!("/ws?user={name}"), "");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_cut_off_and_nobody_else_notices() {
    const COUNT: usize = 300;
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let addr = cluster.ws(0);
    let mut stuck = stuck(&cluster, "stuck").await;
    let users =
        join_all((0..20).map(|at| async move { User::connect(addr, &format!("user{at}")).await })).await;
    let hub = cluster.nodes[0].router().hub();
    eventually("all are here", PATIENCE, || async { hub.sessions() == 21 }).await;

    // 4 KiB each, so that the stuck one's share is beyond every buffer: its outbox, and the kernel's.
    let filler = "x".repeat(4_096);
    let began = Instant::now();
    let sending = async {
        let api = cluster.api(0);
        for at in 0..COUNT {
            let sent = began.elapsed().as_millis() as u64;
            let body = json!({"to": "broadcast", "payload": [at, sent, filler]});
            assert_eq!(api.publish(&body).await.1["outcome"], "published");
        }
    };
    let reading = users.into_iter().map(|mut user| async move {
        let mut worst = 0;
        for at in 0..COUNT {
            let payload = user.message().await["payload"].take();
            assert_eq!(payload[0], at);
            let now = began.elapsed().as_millis() as u64;
            worst = worst.max(now.saturating_sub(payload[1].as_u64().unwrap()));
        }
        worst
    });
    let ((), worst) = tokio::join!(sending, join_all(reading));
    let worst = worst.into_iter().max().unwrap();
    assert!(worst < 2_000, "a message took {worst} ms");
    eventually("the stuck one is gone", PATIENCE, || async { hub.sessions() == 0 }).await;
    let metrics = cluster.admin(0).request(reqwest::Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains(r#"warren_sessions_closed_total{code="4102"} 1"#), "{metrics}");
    // What it reads at last ends, by a close frame or by a reset.
    let mut read = Vec::new();
    let end = timeout(PATIENCE, stuck.read_to_end(&mut read)).await.expect("an end");
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_client_that_reads_broadcasts_too_slowly_is_told_why_it_was_closed() {
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let stream = connect_with_window(&cluster, 65_536).await;
    let mut slow = RawClient::connect_on(stream, "/ws?user=slow").await;
    slow.read_frame().await.expect("a welcome");
    let api = cluster.api(0);
    let metrics = || async {
        let response = cluster.admin(0).request(reqwest::Method::GET, "/metrics").send().await.unwrap();
        response.text().await.unwrap()
    };
    // Far more than its outbox and the kernel's buffers hold, in one request: the client has to begin to read while the
    // node still waits for it.
    let batch: Value = vec![json!({"to": "broadcast", "payload": "x".repeat(60_000)}); 50].into();
    api.publish(&batch).await;
    let mut disconnect = Value::Null;
    let mut messages = 0;
    loop {
        let frame = slow.read_frame().await.expect("a close frame");
        match frame.opcode {
            TEXT => disconnect = serde_json::from_slice(&frame.payload).unwrap(),
            CLOSE => {
                assert_eq!(close_code(&frame.payload), Some(4102));
                break;
            }
            _ => {}
        }
        messages += usize::from(disconnect["type"] == "message");
    }
    assert_eq!((&disconnect["type"], &disconnect["code"]), (&json!("disconnect"), &json!(4102)));
    assert!((1..50).contains(&messages), "{messages} of 50 came");
    drop(slow);
    eventually("it is counted", PATIENCE, || async {
        metrics().await.contains(r#"warren_sessions_closed_total{code="4102"} 1"#)
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_late_gets_every_message_for_it() {
    const COUNT: usize = 60;
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let mut slow = RawClient::connect(cluster.ws(0), "/ws?user=slow").await;
    slow.read_frame().await.expect("a welcome");
    let filler = "x".repeat(60_000);
    let much: Vec<_> = (0..COUNT).map(|at| json!({"to": "user.slow", "payload": [at, filler]})).collect();
    let api = cluster.api(0);
    let publishing = tokio::spawn(async move { api.publish(&much.into()).await.1 });
    let router = cluster.nodes[0].router();
    eventually("messages are on their way", PATIENCE, || async { router.pending() > 0 }).await;
    for at in 0..COUNT {
        let frame = slow.read_frame().await.expect("an open session");
        let message: Value = serde_json::from_slice(&frame.payload).unwrap();
        assert_eq!(message["payload"][0], at, "{}", message["type"]);
    }
    let settled = publishing.await.unwrap();
    let outcomes: Vec<_> = settled.as_array().unwrap().iter().map(|one| &one["outcome"]).collect();
    assert!(outcomes.iter().all(|outcome| **outcome == "delivered"), "{outcomes:?}");
}

#[tokio::test]
async fn half_a_handshake_is_dropped_in_time_while_others_connect() {
    let vars = [("HEADER_TIMEOUT_MS", "500"), ("HANDSHAKES_MAX", "200")];
    let cluster = Cluster::start(1, &vars).await;
    let addr = cluster.ws(0);
    let began = Instant::now();
    let mut slow = Vec::new();
    for at in 0..150 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // Some say nothing at all, others half of it.
        if at % 2 == 0 {
            stream.write_all(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
        }
        slow.push(stream);
    }
    for at in 0..20 {
        let before = Instant::now();
        User::connect(addr, &format!("user{at}")).await.leave().await;
        assert!(before.elapsed() < Duration::from_millis(500), "{:?}", before.elapsed());
    }
    for stream in &mut slow {
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed in time");
        assert!(end.is_err() || rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_connection_stays_and_a_slow_head_does_not() {
    let cluster = Cluster::start(1, &[("HEADER_TIMEOUT_MS", "300")]).await;
    let get = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut idle = TcpStream::connect(cluster.ws(0)).await.unwrap();
    let mut slow = TcpStream::connect(cluster.ws(0)).await.unwrap();
    for stream in [&mut idle, &mut slow] {
        stream.write_all(get).await.unwrap();
        read_until(stream, b"alive\n").await;
    }
    let began = Instant::now();
    slow.write_all(&get[..20]).await.unwrap();
    let mut rest = Vec::new();
    let end = timeout(PATIENCE, slow.read_to_end(&mut rest)).await.expect("a slow head is cut in time");
    assert!(end.is_err() || rest.is_empty(), "{rest:?}");
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    idle.write_all(get).await.unwrap();
    read_until(&mut idle, b"alive\n").await;
}

async fn read_until(stream: &mut TcpStream, end: &[u8]) {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        let more = timeout(PATIENCE, stream.read_buf(&mut read)).await.expect("a response in time").unwrap();
        assert!(more > 0, "the stream ends: {}", String::from_utf8_lossy(&read));
    }
}

#[tokio::test]
async fn heads_are_bounded() {
    let cluster = Cluster::start(1, &[]).await;
    let many: String = (0..2_000).map(|at| format!("X-{at}: 1\r\n")).collect();
    for lines in [format!("X: {}\r\n", "x".repeat(64 * 1024)), many] {
        let mut stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
        // The answer may come, and the connection end, before all of it is sent.
        let _ = stream.write_all(upgrade_request("/ws?user=a", &lines).as_bytes()).await;
        let mut answer = [0; 12];
        if stream.read_exact(&mut answer).await.is_ok() {
            assert_eq!(&answer, b"HTTP/1.1 431", "{}", String::from_utf8_lossy(&answer));
        }
    }
    let path = format!("/ws?user=a&x={}", "x".repeat(2_000));
    let (head, _) = RawClient::request(cluster.ws(0), &upgrade_request(&path, "")).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let mut http2 = TcpStream::connect(cluster.ws(0)).await.unwrap();
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, http2.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
}

#[tokio::test]
async fn a_flood_is_closed_and_does_not_delay_another() {
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "100")]).await;
    let mut flooding = RawClient::connect(cluster.ws(0), "/ws?user=flood").await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let ping = RawFrame::new(PING, "x").bytes();
    let nonsense = RawFrame::new(TEXT, "{").bytes();
    let block: Vec<u8> = ping.iter().chain(&nonsense).copied().collect::<Vec<_>>().repeat(2_000);
    let flood = async {
        flooding.send(&block).await;
        let mut answers = 0;
        loop {
            let frame = flooding.read_frame().await.expect("a close frame comes first");
            match frame.opcode {
                CLOSE => break assert_eq!(frame.payload[..2], 4101u16.to_be_bytes()),
                _ => answers += 1,
            }
        }
        assert!(answers < 2_000, "{answers} answers to {} requests", 2 * 2_000);
    };
    let asking = async {
        let mut worst = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            alice.ask(json!({"type": "ping"})).await;
            worst = worst.max(began.elapsed());
        }
        worst
    };
    let ((), worst) = tokio::join!(flood, asking);
    assert!(worst < Duration::from_millis(500), "{worst:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cut_sockets_come_back_and_others_lose_nothing() {
    const COUNT: usize = 1_000;
    let cluster = Cluster::start(2, &[("WORKERS", "2")]).await;
    let addr = cluster.ws(0);
    let connect = || async {
        join_all((0..COUNT).map(|at| async move { User::connect(addr, &format!("storm{at}")).await })).await
    };
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    cluster.knows("alice", &[0]).await;
    let storm = connect().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let talking = async {
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            let reply = bob.publish("user.alice", sent).await;
            assert_eq!(reply["outcome"], "delivered", "{reply}");
            sent += 1;
        }
        sent
    };
    let storming = async {
        // Without a goodbye.
        drop(storm);
        let began = Instant::now();
        let back = connect().await;
        let took = began.elapsed();
        stop.send(()).unwrap();
        (back, took)
    };
    let (sent, (back, took)) = tokio::join!(talking, storming);
    assert_eq!(alice.payloads(sent).await, (0..sent).map(Value::from).collect::<Vec<_>>());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let router = cluster.nodes[0].router();
    eventually("nobody is counted twice", PATIENCE, || async {
        (router.hub().sessions(), router.hub().users()) == (COUNT + 1, COUNT + 1)
    })
    .await;
    let mut last = back.into_iter().last().unwrap();
    cluster.knows(&format!("storm{}", COUNT - 1), &[0]).await;
    assert_eq!(bob.publish(&format!("user.storm{}", COUNT - 1), "hi").await["outcome"], "delivered");
    assert_eq!(last.message().await["payload"], "hi");
}
