//! Just enough AMQP 0-9-1 to publish what no decent client would.

#![allow(dead_code)] // Several test binaries share this; each uses a part.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = payload.len() as u32;
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, b"\xce"].concat()
}

fn method(channel: u16, class: u16, method: u16, arguments: &[&[u8]]) -> Vec<u8> {
    let head = [class.to_be_bytes(), method.to_be_bytes()].concat();
    frame(1, channel, &[&head[..], &arguments.concat()].concat())
}

async fn answer(stream: &mut TcpStream) -> (u16, u16) {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.unwrap();
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let mut payload = vec![0; size + 1];
    stream.read_exact(&mut payload).await.unwrap();
    (u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]]))
}

/// A message as it stands on the wire.
#[derive(Debug, Clone)]
pub struct RawMessage<'a> {
    pub exchange: &'a str,
    pub routing_key: &'a [u8],
    /// Property flags, and the values that they announce.
    pub flags: u16,
    pub values: Vec<u8>,
    pub body: &'a [u8],
}

/// A property value: a short string.
pub fn short_string(bytes: &[u8]) -> Vec<u8> {
    short(bytes)
}

/// The value of `headers`: so many tables, each in the one before.
pub fn nested_tables(levels: usize) -> Vec<u8> {
    // Each level is a field with an empty name; built from the outside, since all lengths are known.
    let mut table = Vec::new();
    for inside in (0..levels).rev() {
        table.extend((inside as u32 * 6).to_be_bytes());
        if inside > 0 {
            table.extend([0, b'F']);
        }
    }
    table
}

/// Publishes a message and waits for the broker: `true` = confirmed, `false` = the broker would not take it.
pub async fn publish_raw(port: u16, vhost: &str, message: &RawMessage<'_>) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
    answer(&mut stream).await;
    let login = [long(b""), short(b"PLAIN"), long(b"\0guest\0guest"), short(b"en_US")].concat();
    stream.write_all(&method(0, 10, 11, &[&login])).await.unwrap();
    answer(&mut stream).await;
    let tune = [&100u16.to_be_bytes()[..], &131_072u32.to_be_bytes(), &0u16.to_be_bytes()].concat();
    stream.write_all(&method(0, 10, 31, &[&tune])).await.unwrap();
    stream.write_all(&method(0, 10, 40, &[&short(vhost.as_bytes()), &short(b""), b"\0"])).await.unwrap();
    answer(&mut stream).await;
    stream.write_all(&method(1, 20, 10, &[&short(b"")])).await.unwrap();
    answer(&mut stream).await;
    stream.write_all(&method(1, 85, 10, &[b"\0"])).await.unwrap();
    answer(&mut stream).await;
    let exchange = short(message.exchange.as_bytes());
    let publish = method(1, 60, 40, &[b"\0\0", &exchange, &short(message.routing_key), b"\0"]);
    let mut header = [60u16.to_be_bytes(), 0u16.to_be_bytes()].concat();
    header.extend((message.body.len() as u64).to_be_bytes());
    header.extend(message.flags.to_be_bytes());
    header.extend(&message.values);
    let frames = [publish, frame(2, 1, &header), frame(3, 1, message.body)].concat();
    stream.write_all(&frames).await.unwrap();
    answer(&mut stream).await == (60, 80)
}

/// Publishes to a queue, by its name, a message with one header whose name is not UTF-8; returns when the broker
/// has confirmed it.
pub async fn publish_unreadable(port: u16, vhost: &str, queue: &str) {
    let message = RawMessage {
        exchange: "",
        routing_key: queue.as_bytes(),
        flags: 0x2000,
        values: long(b"\x02\xff\xfet\x01"),
        body: b"unreadable",
    };
    assert!(publish_raw(port, vhost, &message).await, "the broker takes it");
}
