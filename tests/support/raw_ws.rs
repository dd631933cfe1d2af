//! A WebSocket client over a bare TCP socket that can break every rule of RFC 6455.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a test waits for the server before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// How the header says the payload length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Minimal,
    /// In 16 bits, whether or not that is the shortest form.
    Bits16,
    /// In 64 bits, whether or not that is the shortest form.
    Bits64,
    /// A number in 64 bits that has nothing to do with the payload.
    Claimed(u64),
}

/// A client frame, every bit settable.
#[derive(Debug, Clone)]
pub struct RawFrame {
    pub fin: bool,
    /// RSV1 to RSV3 as the number 0 to 7.
    pub rsv: u8,
    /// Four bits.
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    pub length: Length,
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// A whole, well-formed frame.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        let mask = Some([0x37, 0xfa, 0x21, 0x3d]);
        Self { fin: true, rsv: 0, opcode, mask, length: Length::Minimal, payload: payload.into() }
    }

    /// The same frame as a fragment that others follow.
    pub fn more(self) -> Self {
        Self { fin: false, ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode];
        let len = self.payload.len() as u64;
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        match (self.length, len) {
            (Length::Minimal, 0..=125) => out.push(masked | len as u8),
            (Length::Minimal, 126..=0xffff) | (Length::Bits16, _) => {
                out.push(masked | 126);
                out.extend((len as u16).to_be_bytes());
            }
            (Length::Minimal | Length::Bits64, _) => {
                out.push(masked | 127);
                out.extend(len.to_be_bytes());
            }
            (Length::Claimed(claimed), _) => {
                out.push(masked | 127);
                out.extend(claimed.to_be_bytes());
            }
        }
        match self.mask {
            Some(mask) => {
                out.extend(mask);
                out.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
            }
            None => out.extend(&self.payload),
        }
        out
    }
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

/// A frame from the server. Reading it has checked that it is neither masked nor fragmented, without reserved
/// bits and with its length in the shortest form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFrame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// An open socket, and what was read from it too early.
pub struct RawClient {
    stream: TcpStream,
    early: Vec<u8>,
}

/// A good upgrade request, with `lines` (each ended by `\r\n`) as further headers.
pub fn upgrade_request(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

impl RawClient {
    /// Connects and shakes hands; the answer must be right to the letter.
    pub async fn connect(addr: SocketAddr, path: &str) -> Self {
        Self::connect_on(TcpStream::connect(addr).await.unwrap(), path).await
    }

    /// The same over a stream that is connected.
    pub async fn connect_on(stream: TcpStream, path: &str) -> Self {
        let (head, client) = Self::request_on(stream, upgrade_request(path, "").as_bytes()).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(header(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        client
    }

    /// Sends any request and returns the head of the response, beside the socket.
    pub async fn request(addr: SocketAddr, request: &str) -> (String, Self) {
        Self::request_bytes(addr, request.as_bytes()).await
    }

    /// The same for a request that frames follow in one write.
    pub async fn request_bytes(addr: SocketAddr, request: &[u8]) -> (String, Self) {
        Self::request_on(TcpStream::connect(addr).await.unwrap(), request).await
    }

    async fn request_on(mut stream: TcpStream, request: &[u8]) -> (String, Self) {
        stream.set_nodelay(true).unwrap();
        stream.write_all(request).await.unwrap();
        let mut client = Self { stream, early: Vec::new() };
        let end = loop {
            if let Some(at) = client.early.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(client.fill().await, "no response");
        };
        let rest = client.early.split_off(end);
        let head = String::from_utf8(std::mem::replace(&mut client.early, rest)).unwrap();
        (head, client)
    }

    /// A server that has seen enough may close while the test still sends, so errors are left to the reader.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the server does not read");
    }

    pub async fn send_frame(&mut self, frame: &RawFrame) {
        self.send(&frame.bytes()).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn read_frame(&mut self) -> Option<ServerFrame> {
        let mut need = 2;
        loop {
            if self.early.len() >= need {
                match frame_end(&self.early) {
                    Ok((start, end)) => {
                        let rest = self.early.split_off(end);
                        let frame = std::mem::replace(&mut self.early, rest);
                        return Some(ServerFrame {
                            opcode: frame[0] & 0x0f,
                            payload: frame[start..].to_vec(),
                        });
                    }
                    Err(more) => need = more,
                }
            } else if !self.fill().await {
                let begun = &self.early[..self.early.len().min(80)];
                assert!(begun.is_empty(), "the stream ends inside a frame: {begun:x?}");
                return None;
            }
        }
    }

    /// Reads up to the close frame, which must carry the code, and then to the end of the stream.
    pub async fn expect_close(&mut self, code: u16) {
        loop {
            let frame = self.read_frame().await.unwrap_or_else(|| panic!("EOF without close frame {code}"));
            if frame.opcode == CLOSE {
                assert_eq!(close_code(&frame.payload), Some(code));
                break;
            }
        }
        assert_eq!(self.read_frame().await, None, "a close frame is the last one");
    }

    /// Reads once into `early`; false at the end of the stream.
    async fn fill(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.early)).await;
        match read.expect("the server says nothing") {
            Ok(n) => n > 0,
            // A reset would have destroyed what was not read yet, the close frame perhaps.
            Err(error) => panic!("the server broke the connection: {error}"),
        }
    }
}

/// Where the payload of the first frame starts and ends, or how many bytes are needed to tell.
fn frame_end(bytes: &[u8]) -> Result<(usize, usize), usize> {
    assert_eq!(bytes[0] & 0xf0, 0x80, "FIN without reserved bits");
    let (start, len) = match bytes[1] {
        short @ 0..=125 => (2, usize::from(short)),
        126 if bytes.len() < 4 => return Err(4),
        126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 if bytes.len() < 10 => return Err(10),
        127 => (10, u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize),
        _ => panic!("a server must not mask"),
    };
    let shortest = [(2, 0), (4, 126), (10, 0x1_0000)].iter().rfind(|(_, from)| len >= *from).unwrap().0;
    assert_eq!(start, shortest, "length not minimal");
    if bytes.len() < start + len {
        return Err(start + len);
    }
    Ok((start, start + len))
}

/// The code in a close frame's payload.
pub fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code))
}

/// The value of a header in the head of a response.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
