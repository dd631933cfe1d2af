//! A client of warren.v1 that records every frame, in both directions.

use std::collections::VecDeque;
use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{json, Map, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::{client_async, WebSocketStream};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::Message;

use crate::nodes::PATIENCE;
use crate::recording::Recording;

const FROM_CLIENT: (&str, &str) = ("frames", "client");
const FROM_SERVER: (&str, &str) = ("frames", "server");

pub struct Client {
    stream: WebSocketStream<TcpStream>,
    recording: Recording,
    kept: VecDeque<Value>,
    last_id: u64,
    pub welcome: Value,
}

impl Client {
    /// Shakes hands and no more.
    pub async fn open(recording: &Recording, address: SocketAddr, path: &str, token: Option<&str>) -> Self {
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
            request.headers_mut().insert("authorization", value);
        }
        let connecting = async {
            let stream = TcpStream::connect(address).await.unwrap();
            client_async(request, stream).await.unwrap()
        };
        let (stream, response) = timeout(PATIENCE, connecting).await.expect("a handshake in time");
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
        let operation = match path.split('?').next().unwrap() {
            framed if framed.starts_with("/sockjs/0") => "GET /sockjs/{server}/{session}/websocket",
            "/sockjs/websocket" => "GET /sockjs/websocket",
            _ => "GET /ws",
        };
        recording.answered(operation, response.status().as_u16(), headers.collect::<Map<_, _>>().into(), "");
        Self { stream, recording: recording.clone(), kept: VecDeque::new(), last_id: 0, welcome: Value::Null }
    }

    pub fn session(&self) -> &str {
        self.welcome["session"].as_str().unwrap()
    }

    pub async fn connect(recording: &Recording, address: SocketAddr, token: &str) -> Self {
        Self::open(recording, address, "/ws", Some(token)).await.welcomed().await
    }

    pub async fn welcomed(mut self) -> Self {
        self.welcome = self.next("welcome").await;
        self
    }

    async fn write(&mut self, frame: &Value) {
        self.send_anything(frame.to_string()).await;
    }

    /// Sends a frame that the schema must allow.
    pub async fn send(&mut self, frame: Value) {
        self.write(&frame).await;
        self.recording.saw(FROM_CLIENT, frame);
    }

    /// Sends a request that the schema must allow, and returns its reply.
    pub async fn ask(&mut self, mut request: Value) -> Value {
        self.last_id += 1;
        request["id"] = self.last_id.into();
        self.send(request).await;
        self.reply(self.last_id).await
    }

    /// Sends text that is no frame.
    pub async fn send_anything(&mut self, text: String) {
        timeout(PATIENCE, self.stream.send(Message::text(text))).await.unwrap().unwrap();
    }

    /// Sends a frame that the schema must not allow, and the gateway neither.
    pub async fn ask_badly(&mut self, mut request: Value) {
        self.last_id += 1;
        request["id"] = self.last_id.into();
        self.write(&request).await;
        let reply = self.reply(self.last_id).await;
        assert_eq!(reply["error"]["code"], "bad_request", "{request}: {reply}");
        self.recording.refused(FROM_CLIENT, request);
    }

    async fn reply(&mut self, id: u64) -> Value {
        let reply = self.next("reply").await;
        assert_eq!(reply["id"], id, "{reply}");
        reply
    }

    /// The next frame of this type; others are kept.
    pub async fn next(&mut self, kind: &str) -> Value {
        if let Some(at) = self.kept.iter().position(|frame| frame["type"] == kind) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            let heard =
                timeout(PATIENCE, self.stream.next()).await.unwrap_or_else(|_| panic!("no {kind} in time"));
            let Some(Ok(frame)) = heard else { panic!("closed before a {kind}") };
            let Message::Text(text) = frame else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            self.recording.saw(FROM_SERVER, frame.clone());
            if frame["type"] == kind {
                return frame;
            }
            self.kept.push_back(frame);
        }
    }

    /// Reads to the end: the `disconnect` frame, which says what the close frame says.
    pub async fn end(mut self) -> Value {
        let disconnect = self.next("disconnect").await;
        while let Some(Ok(frame)) = timeout(PATIENCE, self.stream.next()).await.expect("the end in time") {
            if let Message::Close(Some(close)) = frame {
                let said = json!([u16::from(close.code), close.reason.as_str()]);
                assert_eq!(said, json!([disconnect["code"], disconnect["reason"]]));
                return disconnect;
            }
        }
        panic!("no close frame after {disconnect}");
    }
}
