//! A client of STOMP that can say anything.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::net::SocketAddr;

use super::raw_ws::{close_code, upgrade_request, RawClient, RawFrame, BINARY, CLOSE, PING, TEXT};

/// A frame of the server.
#[derive(Debug)]
pub struct Frame {
    pub command: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Frame {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let text = text.strip_suffix('\0').unwrap_or_else(|| panic!("one whole frame: {text:?}"));
        let (head, body) = text.split_once("\n\n").unwrap_or_else(|| panic!("a head: {text:?}"));
        let (command, lines) = head.split_once('\n').unwrap_or((head, ""));
        let mut headers = HashMap::new();
        for line in lines.lines() {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("a header: {line:?}"));
            assert!(
                headers.insert(name.to_owned(), value.to_owned()).is_none(),
                "{name} comes twice: {text:?}"
            );
        }
        if let Some(length) = headers.get("content-length") {
            assert_eq!(*length, body.len().to_string(), "{text:?}");
        }
        Self { command: command.to_owned(), headers, body: body.to_owned() }
    }

    /// The value of a header that must be there.
    pub fn get(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }
}

/// One connection.
pub struct StompClient {
    raw: RawClient,
}

/// `HEADER:VALUE` lines and a body as the frame that they make.
pub fn frame(command: &str, lines: &[&str], body: &str) -> String {
    format!("{command}\n{}\n{body}\0", lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

impl StompClient {
    /// A socket on which CONNECT is still to be sent.
    pub async fn open(addr: SocketAddr, path: &str, subprotocols: &str) -> Self {
        let line = match subprotocols {
            "" => String::new(),
            offered => format!("Sec-WebSocket-Protocol: {offered}\r\n"),
        };
        let (head, raw) = RawClient::request(addr, &upgrade_request(path, &line)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { raw }
    }

    /// A session of 1.2 of a user whom the node believes.
    pub async fn connect(addr: SocketAddr, user: &str) -> Self {
        Self::open(addr, "/ws", "v12.stomp").await.connected(user).await
    }

    /// The same over a socket with compression.
    pub async fn connect_deflated(addr: SocketAddr, user: &str) -> Self {
        let line = "Sec-WebSocket-Protocol: v12.stomp\r\n";
        let raw = RawClient::connect_deflated_as(addr, "/ws", line).await;
        Self { raw }.connected(user).await
    }

    async fn connected(mut self, user: &str) -> Self {
        self.say("CONNECT", &["accept-version:1.2", &format!("login:{user}")], "").await;
        assert_eq!(self.next("CONNECTED").await.get("user-name"), user);
        self
    }

    pub async fn send_text(&mut self, text: &str) {
        self.raw.send_frame(&RawFrame::new(TEXT, text)).await;
    }

    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.raw.send_frame(&RawFrame::new(BINARY, bytes)).await;
    }

    pub async fn say(&mut self, command: &str, lines: &[&str], body: &str) {
        self.send_text(&frame(command, lines, body)).await;
    }

    /// Subscribes, and returns when that is known.
    pub async fn subscribe(&mut self, id: &str, destination: &str, ack: &str) {
        let (id, to, ack) = (format!("id:{id}"), format!("destination:{destination}"), format!("ack:{ack}"));
        self.say("SUBSCRIBE", &[&id, &to, &ack, "receipt:s"], "").await;
        self.receipt("s").await;
    }

    pub async fn receipt(&mut self, id: &str) -> Frame {
        let frame = self.next("RECEIPT").await;
        assert_eq!(frame.get("receipt-id"), id);
        frame
    }

    /// The next frame, whatever it is. Heart-beats and pings are passed over.
    pub async fn frame(&mut self) -> Result<Frame, u16> {
        loop {
            let frame = self.raw.read_frame().await.expect("a frame or a close frame");
            match frame.opcode {
                CLOSE => return Err(close_code(&frame.payload).unwrap_or_default()),
                PING => {}
                _ if frame.payload == b"\n" => {}
                _ => return Ok(Frame::parse(&frame.payload)),
            }
        }
    }

    /// The next frame, which must be of this kind.
    pub async fn next(&mut self, command: &str) -> Frame {
        let frame =
            self.frame().await.unwrap_or_else(|code| panic!("{command} expected, closed with {code}"));
        assert_eq!(frame.command, command, "{frame:?}");
        frame
    }

    /// Reads to the end: an ERROR, and the close code.
    pub async fn expect_error(&mut self, code: u16) -> Frame {
        let error = self.next("ERROR").await;
        self.raw.expect_close(code).await;
        error
    }

    /// Whatever is not STOMP.
    pub fn raw(&mut self) -> &mut RawClient {
        &mut self.raw
    }
}
