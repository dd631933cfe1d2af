//! SockJS below the two codecs: its frames, its refusals, and floods of it. `tests/stomp` runs the real client.

use std::future::pending;

use crate::support::nodes::{Cluster, CHECKED};
use crate::support::raw_ws::{close_code, upgrade_request, RawClient, RawFrame, BINARY, CLOSE, PING, TEXT};

const PATH: &str = "/sockjs/000/abcd1234/websocket";

/// A client that has read the first frame.
async fn open(cluster: &Cluster, query: &str) -> RawClient {
    let mut client = RawClient::connect(cluster.ws(0), &format!("{PATH}{query}")).await;
    assert_eq!(text(&mut client).await, Ok("o".to_owned()));
    client
}

/// The next text, or the code of the close frame.
async fn text(client: &mut RawClient) -> Result<String, u16> {
    loop {
        let frame = client.read_frame().await.expect("a frame or a close frame");
        match frame.opcode {
            CLOSE => return Err(close_code(&frame.payload).unwrap()),
            PING => {}
            _ => return Ok(String::from_utf8(frame.payload).unwrap()),
        }
    }
}

/// Reads to the end, which must be said in both ways.
async fn expect_close(client: &mut RawClient, code: u16, reason: &str) {
    let mut last = String::new();
    let closed = loop {
        match text(client).await {
            Ok(frame) => last = frame,
            Err(code) => break code,
        }
    };
    assert_eq!((last, closed), (format!("c[{code},\"{reason}\"]"), code));
}

async fn say(client: &mut RawClient, text: &str) {
    client.send_frame(&RawFrame::new(TEXT, text)).await;
}

#[tokio::test]
async fn whoever_may_not_come_is_told_so_inside() {
    let cluster = Cluster::start(1, CHECKED).await;
    let request = upgrade_request(PATH, "Authorization: Bearer guess\r\n");
    let (head, mut client) = RawClient::request(cluster.ws(0), &request).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(text(&mut client).await, Ok("o".to_owned()));
    expect_close(&mut client, 4001, "unauthorized").await;

    let cluster = Cluster::start(1, &[("MAX_SESSIONS", "1"), ("AUTH_TIMEOUT_MS", "200")]).await;
    let mut first = open(&cluster, "?user=alice").await;
    assert!(text(&mut first).await.unwrap().contains("welcome"));
    let mut second = open(&cluster, "?user=bob").await;
    expect_close(&mut second, 4100, "over capacity").await;
    drop(first);
    // Without a first message nobody knows which codec it would be.
    let cluster = Cluster::start(1, &[("AUTH_TIMEOUT_MS", "200")]).await;
    let mut silent = open(&cluster, "").await;
    expect_close(&mut silent, 4001, "unauthorized").await;
}

#[tokio::test]
async fn nonsense_and_floods_end_the_session_that_sends_them() {
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "10"), ("MESSAGE_BURST", "5")]).await;
    for nonsense in ["{", "[1]", "[\"a\"", "null", "{\"type\":\"ping\"}"] {
        let mut client = open(&cluster, "?user=alice").await;
        say(&mut client, nonsense).await;
        expect_close(&mut client, 4000, "bad request").await;
    }
    let mut client = open(&cluster, "?user=alice").await;
    client.send_frame(&RawFrame::new(BINARY, "o")).await;
    expect_close(&mut client, 4000, "bad request").await;
    let many = format!("[{}]", vec!["\"\\n\""; 1_200].join(","));
    for flood in [vec!["[]"; 1_200], vec![&many]] {
        let mut client = open(&cluster, "").await;
        say(&mut client, &sockjs("CONNECT\nlogin:mean\naccept-version:1.2\n\n\0")).await;
        assert!(text(&mut client).await.unwrap().starts_with("a[\"CONNECTED\\n"));
        for frame in flood {
            say(&mut client, frame).await;
        }
        expect_close(&mut client, 4101, "rate limit").await;
    }
}

/// An array of one text.
fn sockjs(text: &str) -> String {
    serde_json::json!([text]).to_string()
}

#[tokio::test]
async fn a_node_that_stops_says_so_in_the_codec_and_in_the_framing() {
    let mut cluster = Cluster::start(1, &[("DRAIN_MS", "0")]).await;
    let mut json = open(&cluster, "?user=alice").await;
    assert!(text(&mut json).await.unwrap().contains("welcome"));
    let mut stomp = open(&cluster, "").await;
    say(&mut stomp, &sockjs("CONNECT\nlogin:bob\naccept-version:1.2\n\n\0")).await;
    assert!(text(&mut stomp).await.unwrap().contains("CONNECTED"));
    let mut node = cluster.nodes.remove(0);
    let reading = async {
        let told =
            [(&mut json, "\\\"type\\\":\\\"disconnect\\\""), (&mut stomp, "ERROR\\nmessage:node drains")];
        for (client, part) in told {
            let frame = text(client).await.unwrap();
            assert!(frame.starts_with("a[\"") && frame.contains(part), "{frame}");
            expect_close(client, 4200, "node drains").await;
        }
    };
    tokio::join!(reading, node.drain(pending()));
}
