//! A user with a WebSocket that keeps the rules; whatever it waits for has a deadline.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{json, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::{client_async, WebSocketStream};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::Message;

use super::nodes::PATIENCE;

/// How long a user waits for something to come: longer than nodes may take to hand over what backends published.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// For a connection that ended without a close frame (RFC 6455 section 7.4.1).
pub const CUT: u16 = 1006;

enum Heard {
    Frame(Value),
    Closed(u16),
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    pub code: u16,
    /// The frame that was sent before.
    pub disconnect: Option<Value>,
}

pub struct User {
    stream: WebSocketStream<TcpStream>,
    /// Frames that came while another kind was waited for.
    kept: VecDeque<Value>,
    requests: u64,
    pub welcome: Value,
}

impl User {
    /// In insecure mode; returns when the session is welcome.
    pub async fn connect(addr: SocketAddr, name: &str) -> Self {
        Self::open(addr, &format!("/ws?user={name}"), &[]).await.welcomed().await
    }

    pub async fn with_token(addr: SocketAddr, token: &str) -> Self {
        Self::open(addr, "/ws", &[("authorization", &format!("Bearer {token}"))]).await.welcomed().await
    }

    /// Shakes hands and no more.
    pub async fn open(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        let connecting = async {
            let stream = TcpStream::connect(addr).await.unwrap();
            stream.set_nodelay(true).unwrap();
            client_async(request, stream).await.unwrap().0
        };
        let stream = timeout(PATIENCE, connecting).await.expect("a handshake in time");
        Self { stream, kept: VecDeque::new(), requests: 0, welcome: Value::Null }
    }

    pub async fn welcomed(mut self) -> Self {
        self.welcome = self.next("welcome").await;
        self
    }

    pub fn session(&self) -> &str {
        self.welcome["session"].as_str().expect("a session that is welcome")
    }

    // ---- saying ----

    pub async fn say(&mut self, frame: Message) {
        timeout(PATIENCE, self.stream.send(frame)).await.expect("a node that reads").unwrap();
    }

    pub async fn say_text(&mut self, text: &str) {
        self.say(Message::text(text)).await;
    }

    /// Queues a request without waiting for its reply; returns its id.
    pub async fn request(&mut self, mut request: Value) -> u64 {
        self.requests += 1;
        request["id"] = self.requests.into();
        self.say_text(&request.to_string()).await;
        self.requests
    }

    /// Sends a request and returns its reply.
    pub async fn ask(&mut self, request: Value) -> Value {
        let id = self.request(request).await;
        self.reply_to(id).await
    }

    /// Replies come in the order in which requests are settled, which may be another one than theirs.
    pub async fn reply_to(&mut self, id: u64) -> Value {
        let wanted = |frame: &Value| frame["type"] == "reply" && frame["id"] == id;
        self.next_that(wanted, &format!("reply to {id}")).await
    }

    /// Publishes and returns the reply.
    pub async fn publish(&mut self, to: &str, payload: impl Into<Value>) -> Value {
        self.ask(json!({"type": "publish", "to": to, "payload": payload.into()})).await
    }

    // ---- hearing ----

    /// Pings of the node do not count: a user who misses a message must not wait for ever.
    async fn hear(&mut self) -> Heard {
        timeout(SILENCE_MAX, self.hear_sometime()).await.expect("a frame in time")
    }

    async fn hear_sometime(&mut self) -> Heard {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    return Heard::Frame(serde_json::from_str(&text).unwrap());
                }
                Some(Ok(Message::Close(frame))) => {
                    // Lets the answer to the close frame leave.
                    let _ = timeout(PATIENCE, self.stream.next()).await;
                    return Heard::Closed(frame.map_or(1005, |frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Heard::Closed(CUT),
            }
        }
    }

    /// The next frame of this type; others are kept for whoever asks for them.
    pub async fn next(&mut self, kind: &str) -> Value {
        self.next_that(|frame| frame["type"] == kind, kind).await
    }

    async fn next_that(&mut self, wanted: impl Fn(&Value) -> bool, name: &str) -> Value {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            match self.hear().await {
                Heard::Frame(frame) if wanted(&frame) => return frame,
                Heard::Frame(frame) => self.kept.push_back(frame),
                Heard::Closed(code) => panic!("closed with {code} before a {name}; kept {:?}", self.kept),
            }
        }
    }

    pub async fn message(&mut self) -> Value {
        self.next("message").await
    }

    /// The payloads of the next messages.
    pub async fn payloads(&mut self, count: usize) -> Vec<Value> {
        let mut payloads = Vec::with_capacity(count);
        for _ in 0..count {
            payloads.push(self.message().await["payload"].take());
        }
        payloads
    }

    /// Reads to the end of the session. Frames on the way are kept.
    pub async fn end(&mut self) -> End {
        loop {
            match self.hear().await {
                Heard::Frame(frame) => self.kept.push_back(frame),
                Heard::Closed(code) => {
                    let at = self.kept.iter().position(|frame| frame["type"] == "disconnect");
                    return End { code, disconnect: at.and_then(|at| self.kept.remove(at)) };
                }
            }
        }
    }

    /// The next reply, or how the session ended before it came.
    pub async fn reply_or_end(&mut self) -> Result<Value, End> {
        loop {
            match self.hear().await {
                Heard::Frame(frame) if frame["type"] == "reply" => return Ok(frame),
                Heard::Frame(frame) => self.kept.push_back(frame),
                Heard::Closed(code) => return Err(End { code, disconnect: None }),
            }
        }
    }

    /// The session when it is welcome, or how it ended instead.
    pub async fn welcome_or_end(mut self) -> Result<Self, End> {
        match self.hear().await {
            Heard::Frame(frame) if frame["type"] == "welcome" => Ok(Self { welcome: frame, ..self }),
            Heard::Frame(frame) => {
                self.kept.push_back(frame);
                Err(self.end().await)
            }
            Heard::Closed(code) => Err(End { code, disconnect: None }),
        }
    }

    /// Checks that the session ends with this code, and that the `disconnect` frame said the same before.
    pub async fn expect_close(&mut self, code: u16) -> Value {
        let end = self.end().await;
        assert_eq!(end.code, code, "{end:?}");
        let disconnect = end.disconnect.expect("a disconnect frame before the close frame");
        assert_eq!(disconnect["code"], code, "{disconnect}");
        disconnect
    }

    /// What else came, of this type.
    pub fn kept(&self, kind: &str) -> Vec<&Value> {
        self.kept.iter().filter(|frame| frame["type"] == kind).collect()
    }

    /// Says goodbye and waits for the answer.
    pub async fn leave(self) {
        self.leave_reading().await;
    }

    /// Says goodbye and returns the ids of all messages that came and were not asked for.
    pub async fn leave_reading(mut self) -> Vec<String> {
        self.stream.close(None).await.unwrap();
        while let Some(Ok(frame)) = timeout(PATIENCE, self.stream.next()).await.expect("a goodbye in time") {
            if let Message::Text(text) = frame {
                self.kept.push_back(serde_json::from_str(&text).unwrap());
            }
        }
        let messages = self.kept("message");
        messages.iter().map(|message| message["id"].as_str().unwrap().to_owned()).collect()
    }
}
