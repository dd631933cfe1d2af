//! Balancers that forward TCP, and say in front of it whose connection it is.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::raw_ws::upgrade_request;

/// The first line of the answer to these bytes, in pieces of at most `size`; empty if the connection is cut. The
/// connection stays open as long as the stream is held.
async fn first_line(addr: SocketAddr, bytes: &[u8], size: usize) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in bytes.chunks(size) {
        // Who is refused early is cut while it still sends.
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("an answer or an end");
        if read.is_err() || read.is_ok_and(|read| read == 0) {
            break;
        }
    }
    (String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned(), stream)
}

fn version_1(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 127.0.0.1 4711 80\r\n").into_bytes()
}

fn version_2(client: [u8; 4]) -> Vec<u8> {
    let fields = [&client[..], &[127, 0, 0, 1, 0x12, 0x67, 0, 80]].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &fields].concat()
}

#[tokio::test]
async fn a_header_names_the_client_and_counts_from_a_trusted_proxy_only() {
    let upgrade = upgrade_request("/ws?user=a", "").into_bytes();
    let vars = [("TRUSTED_PROXIES", "127.0.0.1"), ("PROXY_PROTOCOL", "on"), ("SESSIONS_PER_ADDRESS", "1")];
    let cluster = Cluster::start(1, &vars).await;
    let addr = cluster.ws(0);
    let mut held = Vec::new();
    for (header, size, expected) in [
        (version_1("10.0.0.1"), 1_000, "101"),
        (version_1("10.0.0.1"), 1_000, "429"),
        (version_2([10, 0, 0, 1]), 1_000, "429"),
        (version_2([10, 0, 0, 2]), 1_000, "101"),
        (version_1("10.0.0.3"), 1, "101"),
        (version_2([10, 0, 0, 4]), 1, "101"),
        (b"PROXY UNKNOWN\r\n".to_vec(), 1_000, "101"),
        // Again: a proxy that speaks for itself has no share.
        (b"PROXY UNKNOWN\r\n".to_vec(), 7, "101"),
    ] {
        let (line, stream) = first_line(addr, &[&header[..], &upgrade].concat(), size).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {expected}")), "{header:?}: {line:?}");
        held.push(stream);
    }
    // A client's own words behind the header are no second one.
    let lines = "X-Forwarded-For: 10.0.0.9\r\nForwarded: for=10.0.0.9\r\n";
    let spoofed = [version_1("10.0.0.1"), upgrade_request("/ws?user=a", lines).into_bytes()].concat();
    assert!(first_line(addr, &spoofed, 1_000).await.0.starts_with("HTTP/1.1 429"), "10.0.0.1 is the client");
    let twice = [version_1("10.0.0.8"), version_1("10.0.0.9"), upgrade.clone()].concat();
    assert!(!first_line(addr, &twice, 1_000).await.0.starts_with("HTTP/1.1 101"));
    // Without a header, or with a bad one, the connection is cut.
    for bad in [&upgrade[..], b"PROXY TCP4 x y 1 2\r\n\r\n", b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\0"] {
        assert_eq!(first_line(addr, bad, 1_000).await.0, "", "{:?}", String::from_utf8_lossy(bad));
    }
    assert_eq!(cluster.admin(0).status("/livez").await, 200, "the admin address is not behind the balancer");
}

#[tokio::test]
async fn from_strangers_and_where_it_is_off_it_is_no_http() {
    let upgrade = upgrade_request("/ws?user=a", "").into_bytes();
    for vars in [
        &[("TRUSTED_PROXIES", "10.9.9.9"), ("PROXY_PROTOCOL", "on")][..],
        &[("TRUSTED_PROXIES", "127.0.0.1")],
        &[],
    ] {
        let cluster = Cluster::start(1, vars).await;
        assert!(first_line(cluster.ws(0), &upgrade, 1_000).await.0.starts_with("HTTP/1.1 101"), "{vars:?}");
        for header in [version_1("10.0.0.1"), version_2([10, 0, 0, 1])] {
            let (line, _) = first_line(cluster.ws(0), &[&header[..], &upgrade].concat(), 1_000).await;
            assert!(line.is_empty() || line.starts_with("HTTP/1.1 400"), "{vars:?}: {line:?}");
        }
    }
}
