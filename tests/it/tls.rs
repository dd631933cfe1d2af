//! The public listener with TLS: real handshakes, good and bad.

use std::io;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{timeout, Instant};

use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::process::Process;
use crate::support::raw_ws::{upgrade_request, RawFrame, CLOSE, TEXT};
use crate::support::tls::{connect, secured, tunnel, Authority, Files};
use crate::support::user::User;

/// One node that shows a certificate for `localhost`.
async fn node(authority: &Authority, vars: &[(&str, &str)]) -> (Cluster, Files) {
    let files = Files::new();
    let [chain, key] = files.write_pair("node", &authority.issue("localhost"));
    let own = [("TLS_CERT_FILE", chain.as_str()), ("TLS_KEY_FILE", key.as_str())];
    (Cluster::start(1, &[&own[..], vars].concat()).await, files)
}

/// Reads until the peer ends; `Ok` if it said so in TLS.
async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("an end in time").map(|_| read)
}

#[tokio::test]
async fn sessions_and_the_api_in_both_versions_of_tls() {
    let authority = Authority::new();
    let (cluster, _files) =
        node(&authority, &[("MAX_MESSAGE_BYTES", "1048576"), ("OUTBOX_BYTES", "4194304")]).await;
    for version in [&TLS12, &TLS13] {
        let connector = authority.client(&[version], &["h2", "http/1.1"]);
        let (_, session) = connect(&connector, cluster.ws(0)).await.unwrap().into_inner();
        assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(session.protocol_version(), Some(version.version));
        let addr = tunnel(&connector, cluster.ws(0)).await;
        let mut user = User::connect(addr, "alice").await;
        let large = "x".repeat(1_000_000);
        let api = crate::support::api::Api::new(addr);
        let body = json!({"to": "user.alice", "payload": large});
        let publishing = api.publish(&body);
        let ((status, settled), message) = tokio::join!(publishing, user.message());
        assert_eq!((status, &settled["outcome"]), (200, &json!("delivered")), "{settled}");
        assert_eq!(message["payload"], large);
        assert_eq!(user.publish("user.alice", large.clone()).await["outcome"], "delivered");
        assert_eq!(user.message().await["payload"], large);
        assert_eq!(api.status("/livez").await, 200);
        user.leave().await;
    }
    assert_eq!(cluster.admin(0).status("/livez").await, 200, "the admin address speaks HTTP");
    let other = authority.client(&[&TLS13], &["h2"]);
    assert!(connect(&other, cluster.ws(0)).await.is_err(), "no protocol in common");
    let stranger = Authority::new().client(&[&TLS13], &[]);
    assert!(connect(&stranger, cluster.ws(0)).await.is_err(), "the client does not trust it");
}

#[tokio::test]
async fn the_end_of_a_session_is_said_in_tls_and_pages_of_http_may_not_use_it() {
    let authority = Authority::new();
    let (cluster, _files) = node(&authority, &[]).await;
    let connector = authority.client(&[&TLS13], &[]);
    for (origin, expected) in
        [("https://localhost", "101"), ("http://localhost", "403"), ("https://other", "403")]
    {
        let mut stream = connect(&connector, cluster.ws(0)).await.unwrap();
        let request = upgrade_request("/ws?user=a", &format!("Origin: {origin}\r\n"));
        stream.write_all(request.as_bytes()).await.unwrap();
        if expected != "101" {
            // Its end is where its length says, whatever comes then.
            let mut begin = [0; 13];
            stream.read_exact(&mut begin).await.unwrap();
            assert_eq!(begin, format!("HTTP/1.1 {expected} ").as_bytes(), "{origin}");
            continue;
        }
        stream.write_all(&RawFrame::new(CLOSE, 1000u16.to_be_bytes()).bytes()).await.unwrap();
        let read = read_all(&mut stream).await.unwrap_or_else(|error| panic!("{origin}: {error}"));
        assert!(read.starts_with(b"HTTP/1.1 101 "), "{origin}: {:?}", String::from_utf8_lossy(&read));
    }
    // A header that no proxy sent makes nothing of it.
    let lines = "Origin: http://localhost\r\nX-Forwarded-Proto: http\r\n";
    let mut stream = connect(&connector, cluster.ws(0)).await.unwrap();
    stream.write_all(upgrade_request("/ws?user=a", lines).as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 403");
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let authority = Authority::new();
    let (cluster, _files) = node(&authority, &[]).await;
    let connector = authority.client(&[&TLS13, &TLS12], &[]);
    // Between client and node each byte is a packet of its own.
    let slicer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (slicing, node) = (slicer.local_addr().unwrap(), cluster.ws(0));
    tokio::spawn(async move {
        let (client, _) = slicer.accept().await.unwrap();
        let node = TcpStream::connect(node).await.unwrap();
        node.set_nodelay(true).unwrap();
        let ((mut from_client, mut to_client), (mut from_node, mut to_node)) =
            (client.into_split(), node.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut from_node, &mut to_client).await });
        let mut byte = [0];
        while from_client.read_exact(&mut byte).await.is_ok() {
            to_node.write_all(&byte).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let addr = tunnel(&connector, slicing).await;
    let mut user = User::connect(addr, "alice").await;
    assert_eq!(user.publish("user.alice", "hello").await["outcome"], "delivered");
    assert_eq!(user.message().await["payload"], "hello");
}

#[tokio::test]
async fn who_does_not_speak_tls_or_never_ends_a_handshake_keeps_nobody_out() {
    let authority = Authority::new();
    let vars = [("HEADER_TIMEOUT_MS", "500"), ("CONNECTIONS_PER_ADDRESS", "4"), ("HANDSHAKES_MAX", "16")];
    let (cluster, _files) = node(&authority, &vars).await;
    let mut plain = TcpStream::connect(cluster.ws(0)).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let read = String::from_utf8(read_all(&mut plain).await.unwrap()).unwrap();
    assert!(read.starts_with("HTTP/1.1 400 ") && read.contains("use https or wss"), "{read}");

    // The beginning of a ClientHello that promises more, and again: an address has four places for these.
    let began = Instant::now();
    let mut half = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
        half.push(stream);
    }
    let connector = authority.client(&[&TLS13], &[]);
    let addr = tunnel(&connector, cluster.ws(0)).await;
    let mut user = User::connect(addr, "honest").await;
    assert!(began.elapsed() < Duration::from_secs(5), "an honest client waited {:?}", began.elapsed());
    for mut stream in half {
        let end = read_all(&mut stream).await;
        assert!(end.is_err() || end.is_ok_and(|read| read.is_empty()), "nothing is answered");
    }
    // Shakes hands and never asks.
    let mut silent = connect(&connector, cluster.ws(0)).await.unwrap();
    assert!(read_all(&mut silent).await.map_or(true, |read| read.is_empty()));
    // What is no TLS after all.
    for junk in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16\x03\x01\xff\xff", b"\x16", b"\x80\x2e\x01\x00\x02"]
    {
        let mut stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
        stream.write_all(junk).await.unwrap();
        let _ = read_all(&mut stream).await;
    }
    assert_eq!(user.ask(json!({"type": "ping"})).await["outcome"], "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_cut_off_and_nobody_else_notices() {
    let authority = Authority::new();
    let (cluster, _files) = node(&authority, &[("OUTBOX_BYTES", "65536")]).await;
    let connector = authority.client(&[&TLS13], &[]);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stuck = secured(&connector, socket.connect(cluster.ws(0)).await.unwrap()).await.unwrap();
    stuck.write_all(upgrade_request("/ws?user=stuck", "").as_bytes()).await.unwrap();
    let addr = tunnel(&connector, cluster.ws(0)).await;
    let mut other = User::connect(addr, "other").await;
    let hub = cluster.nodes[0].router().hub();
    eventually("both are here", PATIENCE, || async { hub.sessions() == 2 }).await;
    let api = crate::support::api::Api::new(addr);
    let filler = "x".repeat(16_384);
    for at in 0..100 {
        assert_eq!(
            api.publish(&json!({"to": "broadcast", "payload": [at, filler]})).await.1["outcome"],
            "published"
        );
        assert_eq!(other.message().await["payload"][0], at);
    }
    eventually("the stuck one is gone", PATIENCE, || async { hub.sessions() == 1 }).await;
    let metrics = cluster.admin(0).request(reqwest::Method::GET, "/metrics").send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains(r#"warren_sessions_closed_total{code="4102"} 1"#));
    assert_eq!(other.ask(json!({"type": "ping"})).await["outcome"], "ok");
}

/// The frames of a server, which are neither masked nor fragmented.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let (length, start) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), 2),
            127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, 8),
            short => (usize::from(*short), 0),
        };
        found.push((first & 0x0f, rest[start..start + length].to_vec()));
        bytes = &rest[start + length..];
    }
    found
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_told_why_it_was_closed() {
    let authority = Authority::new();
    let (cluster, _files) = node(&authority, &[("OUTBOX_BYTES", "65536")]).await;
    let connector = authority.client(&[&TLS13], &[]);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(65_536).unwrap();
    let mut slow = secured(&connector, socket.connect(cluster.ws(0)).await.unwrap()).await.unwrap();
    slow.write_all(upgrade_request("/ws?user=slow", "").as_bytes()).await.unwrap();
    let hub = cluster.nodes[0].router().hub();
    eventually("it is here", PATIENCE, || async { hub.sessions() == 1 }).await;
    let api = crate::support::api::Api::new(tunnel(&connector, cluster.ws(0)).await);
    let batch: Value = vec![json!({"to": "broadcast", "payload": "x".repeat(60_000)}); 50].into();
    api.publish(&batch).await;
    let read = read_all(&mut slow).await.expect("an end that TLS says");
    let head = read.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let frames = frames(&read[head..]);
    let [.., (TEXT, disconnect), (CLOSE, close)] = &frames[..] else { panic!("{} frames", frames.len()) };
    let disconnect: Value = serde_json::from_slice(disconnect).unwrap();
    assert_eq!((&disconnect["type"], &disconnect["code"]), (&json!("disconnect"), &json!(4102)));
    assert_eq!(close[..2], 4102u16.to_be_bytes());
}

#[tokio::test]
async fn a_header_of_the_proxy_protocol_comes_before_tls() {
    let authority = Authority::new();
    let vars = [("TRUSTED_PROXIES", "127.0.0.1"), ("PROXY_PROTOCOL", "on"), ("SESSIONS_PER_ADDRESS", "1")];
    let (cluster, _files) = node(&authority, &vars).await;
    let connector = authority.client(&[&TLS13], &[]);
    let mut held = Vec::new();
    for (client, origin, expected) in [
        ("10.0.0.1", "https://localhost", "101"),
        ("10.0.0.1", "https://localhost", "429"),
        ("10.0.0.2", "https://localhost", "101"),
        ("10.0.0.3", "http://localhost", "403"),
    ] {
        let mut stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
        let header = format!("PROXY TCP4 {client} 127.0.0.1 4711 443\r\n");
        stream.write_all(header.as_bytes()).await.unwrap();
        let mut stream = secured(&connector, stream).await.unwrap();
        let request = upgrade_request("/ws?user=a", &format!("Origin: {origin}\r\n"));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut begin = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut begin)).await.expect("an answer").unwrap();
        assert_eq!(String::from_utf8_lossy(&begin), format!("HTTP/1.1 {expected}"), "{client} {origin}");
        held.push(stream);
    }
    let stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
    assert!(secured(&connector, stream).await.is_err(), "the header is not there");
}

#[tokio::test]
async fn a_certificate_is_replaced_under_open_sessions_and_a_mistake_leaves_the_former_one() {
    let (authority, next) = (Authority::new(), Authority::new());
    let files = Files::new();
    let [chain, key] = files.write_pair("node", &authority.issue("localhost"));
    let mut process = Process::start(&[("TLS_CERT_FILE", &chain), ("TLS_KEY_FILE", &key)]).await;
    let before = authority.client(&[&TLS13], &[]);
    let mut user = User::connect(tunnel(&before, process.public).await, "alice").await;

    let replaced = next.issue("localhost");
    files.write_pair("node", &replaced);
    process.signal("HUP");
    let after = next.client(&[&TLS13], &[]);
    let shows_next = || async { connect(&after, process.public).await.is_ok() };
    eventually("the new certificate is shown", PATIENCE, shows_next).await;
    // Another client than the one that connected: that one would resume.
    assert!(connect(&authority.client(&[&TLS13], &[]), process.public).await.is_err());
    assert_eq!(user.ask(json!({"type": "ping"})).await["outcome"], "ok", "who is connected stays so");

    for (chain, key) in [
        (&replaced.chain[..], "no key"),
        ("no certificate", &replaced.key),
        (&replaced.chain, &authority.issue("localhost").key),
    ] {
        files.write("node.pem", chain);
        files.write("node.key", key);
        process.signal("HUP");
        assert!(connect(&next.client(&[&TLS13], &[]), process.public).await.is_ok(), "{chain}");
    }
    assert_eq!(user.ask(json!({"type": "ping"})).await["outcome"], "ok");
    process.signal("TERM");
    user.expect_close(4200).await;
    assert_eq!(process.ended().await.code(), Some(0));
    let mut told = String::new();
    io::Read::read_to_string(&mut process.child.stderr.take().unwrap(), &mut told).unwrap();
    assert!(told.contains("the keys were NOT read again"), "{told}");
    assert!(!told.contains(replaced.key.lines().nth(1).unwrap()), "a key is in the log");
}
