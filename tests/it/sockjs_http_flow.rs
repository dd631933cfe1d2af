//! SockJS over HTTP: receivers that come and go, wait, do not read, and the end of a node.

use std::future::pending;

use reqwest::Method;
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::sockjs_http::{payloads, sessions, Page, ALL};
use crate::support::nodes::{Cluster, PATIENCE};

#[tokio::test]
async fn a_response_ends_after_128_kib_and_nothing_is_lost_between_two() {
    const COUNT: usize = 40;
    let cluster = Cluster::start(1, &[ALL]).await;
    let page = Page::new(&cluster, "much", "?user=alice");
    let api = cluster.api(0);
    let mut lines = page.stream().await;
    lines.expect("o").await;
    assert!(lines.next().await.unwrap().contains("welcome"));
    let filler = "x".repeat(10_000);
    let much: Vec<_> = (0..COUNT).map(|at| json!({"to": "user.alice", "payload": [at, filler]})).collect();
    let publishing = tokio::spawn(async move { api.publish(&much.into()).await.1 });
    let (mut seen, mut told) = (Vec::new(), vec![0]);
    while seen.len() < COUNT {
        match lines.next().await {
            Some(line) => {
                *told.last_mut().unwrap() += line.len();
                seen.extend(payloads(&line).into_iter().map(|payload| payload[0].as_u64().unwrap()));
            }
            None => {
                told.push(0);
                lines = page.stream().await;
            }
        }
    }
    assert_eq!(seen, (0..COUNT as u64).collect::<Vec<_>>());
    assert!(told.len() >= 3, "{told:?}");
    let whole = &told[..told.len() - 1];
    // The last frame is told to its end, and may be as long as what was read at once, or a whole message.
    assert!(whole.iter().all(|bytes| (125_000..165_000).contains(bytes)), "{told:?}");
    let settled = publishing.await.unwrap();
    assert!(settled.as_array().unwrap().iter().all(|one| one["outcome"] == "delivered"), "{settled}");
}

#[tokio::test]
async fn whoever_receives_answers_pings_by_coming_back() {
    let cluster = Cluster::start(1, &[ALL, ("PING_INTERVAL_MS", "200"), ("PONG_TIMEOUT_MS", "1000")]).await;
    let page = Page::new(&cluster, "beats", "?user=alice");
    let mut lines = page.stream().await;
    lines.expect("o").await;
    assert!(lines.next().await.unwrap().contains("welcome"));
    for _ in 0..8 {
        lines.expect("h").await;
        assert_eq!(lines.next().await, None, "a heart-beat ends the response");
        lines = page.stream().await;
    }
    sessions(&cluster, 1).await;
}

#[tokio::test]
async fn receivers_that_wait_keep_nobody_out() {
    let cluster = Cluster::start(1, &[ALL, ("HANDSHAKES_MAX", "4"), ("CONNECTIONS_PER_ADDRESS", "4")]).await;
    let mut waiting = Vec::new();
    for at in 0..6 {
        let page = Page::new(&cluster, &format!("waits{at}"), "?user=alice");
        assert_eq!(page.poll().await, "o");
        assert!(page.poll().await.contains("welcome"));
        // Half of them poll, on the connection that they had before.
        waiting.push(match at % 2 {
            0 => tokio::spawn(async move { page.poll().await }),
            _ => tokio::spawn(async move {
                let mut lines = page.stream().await;
                lines.next().await.unwrap()
            }),
        });
    }
    sessions(&cluster, 6).await;
    assert_eq!(cluster.api(0).publish(&json!({"to": "user.alice", "payload": 1})).await.1["sessions"], 6);
    for told in waiting {
        assert_eq!(payloads(&told.await.unwrap()), [1]);
    }
}

/// Asks for a stream and reads nothing of it.
async fn stuck(cluster: &Cluster, name: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(cluster.ws(0)).await.unwrap();
    let head = format!("POST /sockjs/000/{name}/xhr_streaming?user={name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_does_not_read_is_a_slow_consumer() {
    let cluster = Cluster::start(1, &[ALL, ("OUTBOX_BYTES", "65536")]).await;
    let mut stuck = stuck(&cluster, "stuck").await;
    sessions(&cluster, 1).await;
    let batch: Value = vec![json!({"to": "broadcast", "payload": "x".repeat(20_000)}); 60].into();
    cluster.api(0).publish(&batch).await;
    sessions(&cluster, 0).await;
    let metrics =
        cluster.admin(0).request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"warren_sessions_closed_total{code="4102"} 1"#), "{metrics}");
    // What it reads at last ends.
    let mut read = Vec::new();
    timeout(PATIENCE, stuck.read_to_end(&mut read)).await.expect("an end").ok();
}

#[tokio::test]
async fn a_node_that_stops_says_so_to_every_receiver() {
    let mut cluster = Cluster::start(1, &[ALL, ("DRAIN_MS", "0")]).await;
    let (streams, polls) =
        (Page::new(&cluster, "streams", "?user=alice"), Page::new(&cluster, "polls", "?user=bob"));
    let mut lines = streams.stream().await;
    lines.expect("o").await;
    assert!(lines.next().await.unwrap().contains("welcome"));
    assert_eq!(polls.poll().await, "o");
    assert!(polls.poll().await.contains("welcome"));
    let mut node = cluster.nodes.remove(0);
    let reading = async {
        assert!(lines.next().await.unwrap().contains("\\\"type\\\":\\\"disconnect\\\""));
        lines.expect("c[4200,\"node drains\"]").await;
        assert_eq!(lines.next().await, None);
        assert!(polls.poll().await.contains("\\\"type\\\":\\\"disconnect\\\""));
        assert_eq!(polls.poll().await, "c[4200,\"node drains\"]");
    };
    tokio::join!(reading, node.drain(pending()));
}
