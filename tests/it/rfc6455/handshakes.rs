//! Upgrade requests and the responses they must get (RFC 6455 section 4.2).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use super::{request, text};
use crate::support::raw_ws::{header, upgrade_request, RawClient, TEXT};

const KEY_LINE: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION_LINE: &str = "Sec-WebSocket-Version: 13\r\n";

pub async fn run(addr: SocketAddr, path: &str) {
    let good = upgrade_request(path, "");
    let without = |line: &str| good.replace(line, "");
    let short_key = good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==");
    let cases = [
        ("good", 101, good.clone()),
        ("any case", 101, good.replace("Connection: Upgrade", "CONNECTION: keep-alive, uPGRADE")),
        ("subprotocol", 101, upgrade_request(path, "Sec-WebSocket-Protocol: chat, warren.v1\r\n")),
        ("unknown subprotocol", 400, upgrade_request(path, "Sec-WebSocket-Protocol: chat\r\n")),
        ("compression", 101, upgrade_request(path, "Sec-WebSocket-Extensions: permessage-deflate\r\n")),
        ("old version", 426, good.replace("Version: 13", "Version: 8")),
        ("no version", 426, without(VERSION_LINE)),
        ("no key", 400, without(KEY_LINE)),
        ("short key", 400, short_key),
        ("two keys", 400, upgrade_request(path, KEY_LINE)),
        ("no upgrade", 426, without("Upgrade: websocket\r\n")),
        ("no connection token", 426, good.replace("Connection: Upgrade", "Connection: keep-alive")),
        ("post", 405, good.replace("GET ", "POST ")),
        ("old HTTP", 400, good.replace("HTTP/1.1", "HTTP/1.0")),
    ];
    for (name, status, request) in cases {
        println!("handshake: {name}");
        let (head, _client) = RawClient::request(addr, &request).await;
        let got: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(got, status, "{head}");
        if status == 426 {
            assert_eq!(header(&head, "sec-websocket-version"), Some("13"), "{head}");
        }
        if status == 101 {
            let chosen = (name == "subprotocol").then_some("warren.v1");
            assert_eq!(header(&head, "sec-websocket-protocol"), chosen, "{head}");
            assert_eq!(header(&head, "sec-websocket-extensions"), None, "{head}");
        }
    }
    early_frame(addr, &good).await;
}

/// A client must wait for the response, but what it sends too early is not lost.
async fn early_frame(addr: SocketAddr, good: &str) {
    println!("handshake: frame in the same write");
    let mut bytes = good.as_bytes().to_vec();
    bytes.extend(text(request("early")).bytes());
    let mut client = RawClient::request_bytes(addr, &bytes).await.1;
    loop {
        let frame = client.read_frame().await.expect("the early frame was lost");
        if frame.opcode == TEXT && String::from_utf8_lossy(&frame.payload).contains("early") {
            break;
        }
    }
}
