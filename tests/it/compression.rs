//! permessage-deflate (RFC 7692): who gets it, what is compressed for whom, what a client may send, and bombs.

use serde_json::{json, Value};

use crate::support::api::Api;
use crate::support::nodes::Cluster;
use crate::support::process::Process;
use crate::support::raw_ws::{
    deflate, header, upgrade_request, Deflate, RawClient, RawFrame, BINARY, CLOSE, CONTINUATION, PING, PONG,
    TEXT,
};
use crate::support::stomp::StompClient;
use crate::support::user::User;

const ON: (&str, &str) = ("COMPRESSION", "on");
const ACCEPTED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
/// The gateway's default limit for a message, in bytes.
const MESSAGE_BYTES_MAX: usize = 65_536;

/// JSON of about a kilobyte that becomes shorter when it is compressed.
fn records() -> Value {
    (0..12)
        .map(|at| json!({"name": format!("row {at}"), "price": 1_000 + at * 37, "state": "open"}))
        .collect()
}

/// The next frame of this type.
async fn next(client: &mut RawClient, kind: &str) -> Value {
    loop {
        let frame = client.read_frame().await.expect("an open session");
        assert!(matches!(frame.opcode, TEXT | PING), "{frame:?}");
        if frame.opcode == TEXT {
            let value: Value = serde_json::from_slice(&frame.payload).unwrap();
            if value["type"] == kind {
                return value;
            }
        }
    }
}

/// A session in a channel.
async fn listener(cluster: &Cluster, channel: &str, user: &str) -> RawClient {
    let mut client = RawClient::connect_deflated(cluster.ws(0), &format!("/ws?user={user}")).await;
    let subscribe = json!({"type": "subscribe", "id": 1, "channel": channel}).to_string();
    client.send_frame(&compressed(TEXT, subscribe.as_bytes())).await;
    assert_eq!(next(&mut client, "reply").await["outcome"], "ok");
    client
}

/// The whole message in one frame.
fn compressed(opcode: u8, message: &[u8]) -> RawFrame {
    RawFrame { rsv: 4, ..RawFrame::new(opcode, deflate(message)) }
}

#[tokio::test]
async fn whoever_offers_it_gets_it_where_the_operator_allows_it() {
    let on = Cluster::start(1, &[ON]).await;
    let off = Cluster::start(1, &[]).await;
    let sockjs = "/sockjs/000/abcd1234/websocket?user=a";
    for (path, offer, status, accepted) in [
        ("/ws?user=a", "permessage-deflate; client_max_window_bits", 101, Some(ACCEPTED)),
        ("/sockjs/websocket?user=a", "permessage-deflate", 101, Some(ACCEPTED)),
        ("/ws?user=a", "permessage-deflate; server_max_window_bits=9", 101, None),
        ("/ws?user=a", "permessage-bzip2", 101, None),
        ("/ws?user=a", "permessage-deflate; =", 400, None),
        (sockjs, "permessage-deflate", 101, None),
    ] {
        let request = upgrade_request(path, &format!("Sec-WebSocket-Extensions: {offer}\r\n"));
        let (head, _client) = RawClient::request(on.ws(0), &request).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{offer}: {head}");
        assert_eq!(header(&head, "sec-websocket-extensions"), accepted, "{offer}");
        // Where it is off nobody looks at offers.
        let (head, _client) = RawClient::request(off.ws(0), &request).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{offer}: {head}");
        assert_eq!(header(&head, "sec-websocket-extensions"), None, "{offer}");
    }
    let mut client = RawClient::connect(on.ws(0), "/ws?user=a").await;
    assert_eq!(next(&mut client, "welcome").await["user"], "a", "without an offer all is as ever");
}

#[tokio::test]
async fn one_message_reaches_compressed_and_other_sessions_alike() {
    let cluster = Cluster::start(1, &[ON, ("WORKERS", "2")]).await;
    let mut deflated = [
        listener(&cluster, "news", "a").await,
        listener(&cluster, "news", "b").await,
        listener(&cluster, "news", "c").await,
    ];
    let mut plain = User::connect(cluster.ws(0), "plain").await;
    plain.ask(json!({"type": "subscribe", "channel": "news"})).await;
    let long = "ab".repeat(MESSAGE_BYTES_MAX / 3);
    for (at, (payload, is_shorter)) in
        [(records(), true), (json!("short"), false), (Value::from(long), true)].into_iter().enumerate()
    {
        for to in ["channel.news", "broadcast"] {
            let (status, answer) = cluster.api(0).publish(&json!({"to": to, "payload": payload})).await;
            assert_eq!(status, 200, "{answer}");
            let expected = plain.message().await;
            assert_eq!(expected["payload"], payload);
            let mut bytes = Vec::new();
            for client in &mut deflated {
                let before = client.deflated();
                assert_eq!(next(client, "message").await, expected);
                let after = client.deflated();
                assert_eq!(after.frames - before.frames, usize::from(is_shorter), "{at} {to}");
                bytes.push(after.bytes - before.bytes);
            }
            assert!(bytes.iter().all(|one| *one == bytes[0]), "the same bytes for all: {bytes:?}");
            assert!(bytes[0] < expected.to_string().len() / 2, "{at} {to}: {bytes:?}");
        }
    }
}

#[tokio::test]
async fn many_messages_at_once_are_compressed_one_by_one() {
    const COUNT: usize = 200;
    let cluster = Cluster::start(1, &[ON]).await;
    let mut client = listener(&cluster, "news", "a").await;
    let messages: Vec<Value> = (0..COUNT)
        .map(|at| json!({"to": "channel.news", "payload": [at, if at % 3 == 0 { json!(1) } else { records() }]}))
        .collect();
    cluster.api(0).publish(&messages.into()).await;
    for at in 0..COUNT {
        assert_eq!(next(&mut client, "message").await["payload"][0], at);
    }
    assert_eq!(client.deflated().frames, COUNT - COUNT.div_ceil(3));
}

#[tokio::test]
async fn a_client_that_acknowledges_is_sent_compressed_messages_too() {
    let cluster = Cluster::start(1, &[ON]).await;
    let mut client = RawClient::connect_deflated(cluster.ws(0), "/ws?user=alice&ack=client").await;
    next(&mut client, "welcome").await;
    assert_eq!(client.deflated(), Deflate::default(), "a welcome is sent as it is");
    let api = cluster.api(0);
    let body = json!({"to": "user.alice", "payload": records()});
    let publishing = tokio::spawn(async move { api.publish(&body).await });
    let message = next(&mut client, "message").await;
    assert_eq!(message["payload"], records());
    assert_eq!(client.deflated().frames, 1);
    let ack = json!({"type": "ack", "ids": [message["id"]]}).to_string();
    client.send_frame(&compressed(TEXT, ack.as_bytes())).await;
    assert_eq!(publishing.await.unwrap().1["outcome"], "delivered");
}

#[tokio::test]
async fn what_a_client_compresses_is_taken_whole_in_pieces_and_beside_other_frames() {
    let cluster = Cluster::start(1, &[ON]).await;
    let mut client = RawClient::connect_deflated(cluster.ws(0), "/ws?user=alice").await;
    let ping = |id: usize, len: usize| {
        let mut request = json!({"type": "ping", "id": id}).to_string();
        request.extend(std::iter::repeat_n(' ', len.saturating_sub(request.len())));
        request
    };
    for (id, len) in [0, 300, MESSAGE_BYTES_MAX].into_iter().enumerate() {
        let whole = |id| compressed(TEXT, ping(id, len).as_bytes());
        let plain = |id| RawFrame::new(TEXT, ping(id, len));
        let pieces = |id: usize, cuts: usize| {
            let data = deflate(ping(id, len).as_bytes());
            let size = data.len().div_ceil(cuts);
            let mut frames: Vec<RawFrame> = data
                .chunks(size)
                .enumerate()
                .map(|(at, piece)| RawFrame::new(if at == 0 { TEXT } else { CONTINUATION }, piece).more())
                .collect();
            frames[0].rsv = 4;
            frames.push(RawFrame::new(CONTINUATION, ""));
            frames
        };
        for frames in [vec![whole(id)], vec![plain(id)], pieces(id, 1), pieces(id, 3), pieces(id, 20)] {
            let bytes: Vec<u8> = frames.iter().flat_map(RawFrame::bytes).collect();
            for size in [bytes.len(), 997, 1] {
                for piece in bytes.chunks(size) {
                    client.send(piece).await;
                }
                assert_eq!(next(&mut client, "reply").await["id"], id);
            }
        }
        // A control frame between two fragments is never compressed.
        let mut frames = pieces(id, 3);
        frames.insert(1, RawFrame::new(PING, "here"));
        for frame in frames {
            client.send_frame(&frame).await;
        }
        let pong = client.read_frame().await.unwrap();
        assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"here"[..]));
        assert_eq!(next(&mut client, "reply").await["id"], id);
    }
    // Nothing at all, compressed: a message like any other that is no JSON.
    client.send_frame(&compressed(TEXT, b"")).await;
    assert_eq!(next(&mut client, "reply").await["error"]["code"], "bad_request");
}

#[tokio::test]
async fn what_breaks_rfc_7692_closes_the_socket() {
    let cluster = Cluster::start(1, &[ON]).await;
    let good = || compressed(TEXT, br#"{"type":"ping"}"#);
    let rsv = |rsv, frame| RawFrame { rsv, ..frame };
    let data = deflate(&b"words, words and words".repeat(30));
    let raw = |data: &[u8]| rsv(4, RawFrame::new(TEXT, data));
    let too_long = " ".repeat(MESSAGE_BYTES_MAX + 1);
    let first = || RawFrame { fin: false, ..good() };
    let rows: Vec<(&str, Vec<RawFrame>, u16)> = vec![
        ("RSV1 in a ping", vec![rsv(4, RawFrame::new(PING, ""))], 1002),
        ("RSV1 in a pong", vec![rsv(4, RawFrame::new(PONG, ""))], 1002),
        ("RSV1 in a close", vec![rsv(4, RawFrame::new(CLOSE, ""))], 1002),
        ("RSV1 in a continuation", vec![first(), rsv(4, RawFrame::new(CONTINUATION, ""))], 1002),
        (
            "RSV1 in a continuation of a plain text",
            vec![RawFrame::new(TEXT, "{").more(), rsv(4, RawFrame::new(CONTINUATION, ""))],
            1002,
        ),
        ("RSV2", vec![rsv(2, good())], 1002),
        ("RSV3", vec![rsv(1, good())], 1002),
        ("RSV1 and RSV2", vec![rsv(6, good())], 1002),
        ("a message inside a compressed one", vec![first(), good()], 1002),
        ("no data", vec![raw(b"")], 1002),
        ("no DEFLATE", vec![raw(b"\xff\xff\xff")], 1002),
        ("cut off", vec![raw(&data[..data.len() / 2])], 1002),
        ("a window of the message before", vec![good(), raw(b"\xf2\x00\x11\x00\x00")], 1002),
        ("no UTF-8", vec![compressed(TEXT, b"\xce\xba\xed\xa0\x80")], 1007),
        ("ends inside a character", vec![compressed(TEXT, b"{\xce")], 1007),
        ("binary that is not STOMP", vec![compressed(BINARY, b"\xff")], 4000),
        ("limit + 1", vec![compressed(TEXT, too_long.as_bytes())], 1009),
        ("far beyond the limit on the wire", vec![raw(&[0; 2 * MESSAGE_BYTES_MAX])], 1009),
    ];
    for (name, frames, code) in rows {
        println!("{name}");
        let mut client = RawClient::connect_deflated(cluster.ws(0), "/ws?user=alice").await;
        client.send(&frames.iter().flat_map(RawFrame::bytes).collect::<Vec<_>>()).await;
        client.expect_close(code).await;
    }
    // Whoever did not offer it may not use it.
    let mut client = RawClient::connect(cluster.ws(0), "/ws?user=alice").await;
    client.send_frame(&good()).await;
    client.expect_close(1002).await;
}

#[tokio::test]
async fn a_bomb_closes_its_socket_and_memory_stays_flat() {
    const BOMBS: usize = 40;
    let node = Process::start(&[("COMPRESSION", "on"), ("WORKERS", "1"), ("MESSAGE_RATE", "0")]).await;
    let bomb = compressed(TEXT, &vec![b' '; 64 << 20]).bytes();
    assert!((60_000..MESSAGE_BYTES_MAX + 2_000).contains(&bomb.len()), "{} bytes", bomb.len());
    let pid = node.child.id();
    let resident_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let mut first = None;
    for at in 0..BOMBS {
        let mut client = RawClient::connect_deflated(node.public, &format!("/ws?user=u{at}")).await;
        client.send(&bomb).await;
        client.expect_close(1009).await;
        // The first one has all that is made once.
        first.get_or_insert_with(resident_kib);
    }
    let grown = resident_kib().saturating_sub(first.unwrap());
    assert!(grown < 4 * 1024, "{grown} KiB more after {BOMBS} bombs of 64 MiB");
    let api = Api::new(node.public);
    let (_, answer) = api.publish(&json!({"to": "broadcast", "payload": 1})).await;
    assert_eq!(answer["outcome"], "published", "the node goes on");
}

#[tokio::test]
async fn stomp_is_compressed_behind_each_head() {
    let cluster = Cluster::start(1, &[ON]).await;
    let mut plain = StompClient::connect(cluster.ws(0), "plain").await;
    let mut first = StompClient::connect_deflated(cluster.ws(0), "first").await;
    let mut second = StompClient::connect_deflated(cluster.ws(0), "second").await;
    for (client, id) in [(&mut plain, "p"), (&mut first, "a"), (&mut second, "another")] {
        client.subscribe(id, "/topic/news", "auto").await;
        client.subscribe("own", "/user/queue/news", "client-individual").await;
    }
    let body = records().to_string();
    for (payload, frames) in [(records(), 1), (json!("short"), 0)] {
        cluster.api(0).publish(&json!({"to": "channel.news", "payload": payload})).await;
        let expected = plain.next("MESSAGE").await;
        for (client, id) in [(&mut first, "a"), (&mut second, "another")] {
            let before = client.raw().deflated();
            let frame = client.next("MESSAGE").await;
            assert_eq!((frame.get("subscription"), &frame.body), (id, &expected.body));
            assert_eq!(client.raw().deflated().frames - before.frames, frames);
        }
    }
    // For one of them, with an acknowledgement that is compressed; and a message of its own.
    let api = cluster.api(0);
    let message = json!({"to": "user.first", "event": "news", "payload": records()});
    let publishing = tokio::spawn(async move { api.publish(&message).await });
    let frame = first.next("MESSAGE").await;
    assert_eq!(frame.body, body);
    let ack = format!("ACK\nid:{}\n\n\0", frame.get("ack"));
    first.raw().send_frame(&compressed(BINARY, ack.as_bytes())).await;
    assert_eq!(publishing.await.unwrap().1["outcome"], "delivered");
    let send = format!("SEND\ndestination:/topic/news\nreceipt:r\n\n{body}\0");
    first.raw().send_frame(&compressed(TEXT, send.as_bytes())).await;
    assert_eq!(plain.next("MESSAGE").await.body, body);
    second.next("MESSAGE").await;
    // Bytes that are no text go as a binary message.
    let bytes = b"\xff\x00\x01".repeat(300);
    let head = "SEND\ndestination:/topic/news\ncontent-type:application/octet-stream\ncontent-length:900\n\n";
    let send = [head.as_bytes(), &bytes, b"\0"].concat();
    first.raw().send_frame(&compressed(BINARY, &send)).await;
    let frame = second.raw().read_frame().await.unwrap();
    assert_eq!(frame.opcode, BINARY);
    assert!(frame.payload.windows(bytes.len()).any(|part| part == bytes));
}
