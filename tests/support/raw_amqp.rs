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

/// Publishes to a queue, by its name, a message with one header whose name is not UTF-8; returns when the broker
/// has confirmed it.
pub async fn publish_unreadable(port: u16, vhost: &str, queue: &str) {
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
    let publish = method(1, 60, 40, &[b"\0\0", &short(b""), &short(queue.as_bytes()), b"\0"]);
    let body = b"unreadable";
    let mut header = [60u16.to_be_bytes(), 0u16.to_be_bytes()].concat();
    header.extend((body.len() as u64).to_be_bytes());
    header.extend(0x2000u16.to_be_bytes());
    header.extend(long(b"\x02\xff\xfet\x01"));
    let message = [publish, frame(2, 1, &header), frame(3, 1, body)].concat();
    stream.write_all(&message).await.unwrap();
    assert_eq!(answer(&mut stream).await, (60, 80), "the broker takes it");
}
