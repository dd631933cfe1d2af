//! A WebSocket client over a bare TCP socket that can break every rule of RFC 6455.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
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

/// A message as RFC 7692 section 7.2.1 has it sent.
pub fn deflate(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + message.len() / 8 + 64);
    Compress::new(Compression::best(), false).compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    assert_eq!(out.split_off(out.len() - 4), [0, 0, 0xff, 0xff]);
    out
}

/// The inverse of [`deflate`].
pub fn inflate(data: &[u8]) -> Vec<u8> {
    let data = [data, &[0, 0, 0xff, 0xff]].concat();
    let (mut inflater, mut out) = (Decompress::new(false), Vec::with_capacity(4096));
    while (inflater.total_in() as usize) < data.len() || out.len() == out.capacity() {
        out.reserve(4096);
        let rest = &data[inflater.total_in() as usize..];
        inflater.decompress_vec(rest, &mut out, FlushDecompress::Sync).unwrap();
    }
    out
}

/// The payload of a close frame.
pub fn close_payload(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

/// A frame from the server. Reading it has checked that it is neither masked nor fragmented, with its length in the
/// shortest form, and without reserved bits except those of a compressed message where that was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFrame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// An open socket, and what was read from it too early.
pub struct RawClient {
    stream: TcpStream,
    early: Vec<u8>,
    deflate: Option<Deflate>,
}

/// Of a socket with permessage-deflate: what came compressed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deflate {
    pub frames: usize,
    /// Of their payloads, before they were inflated.
    pub bytes: usize,
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

    /// Connects with an offer of permessage-deflate, which must be accepted. Messages are inflated as they are read.
    pub async fn connect_deflated(addr: SocketAddr, path: &str) -> Self {
        Self::connect_deflated_as(addr, path, "").await
    }

    /// The same with further headers.
    pub async fn connect_deflated_as(addr: SocketAddr, path: &str, lines: &str) -> Self {
        let offer =
            format!("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n{lines}");
        let (head, mut client) = Self::request(addr, &upgrade_request(path, &offer)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let accepted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(header(&head, "sec-websocket-extensions"), Some(accepted), "{head}");
        client.deflate = Some(Deflate::default());
        client
    }

    /// What came compressed so far.
    pub fn deflated(&self) -> Deflate {
        self.deflate.unwrap_or_default()
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
        let mut client = Self { stream, early: Vec::new(), deflate: None };
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
                        let payload = self.payload(frame[0], &frame[start..]);
                        return Some(ServerFrame { opcode: frame[0] & 0x0f, payload });
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

    fn payload(&mut self, first: u8, payload: &[u8]) -> Vec<u8> {
        let is_data = matches!(first & 0x0f, TEXT | BINARY);
        match &mut self.deflate {
            Some(deflate) if is_data && first & 0xf0 == 0xc0 => {
                deflate.frames += 1;
                deflate.bytes += payload.len();
                inflate(payload)
            }
            _ => {
                assert_eq!(first & 0xf0, 0x80, "FIN without reserved bits");
                payload.to_vec()
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
