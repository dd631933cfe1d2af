//! Requests whose answers are held against `openapi.yaml`.

use std::net::SocketAddr;

use reqwest::{Client, Method};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::nodes::PATIENCE;
use crate::recording::Recording;

/// One listener, as a caller with some credentials sees it.
pub struct Http {
    client: Client,
    address: SocketAddr,
    token: Option<String>,
    recording: Recording,
}

impl Http {
    pub fn new(recording: &Recording, address: SocketAddr, token: Option<&str>) -> Self {
        let client = Client::builder().timeout(PATIENCE).no_proxy().build().unwrap();
        Self { client, address, token: token.map(str::to_owned), recording: recording.clone() }
    }

    /// Asks as an operation says; `names` stand in the order of the braces in its path. Returns the body.
    pub async fn ask(&self, operation: &str, names: &[&str], body: Option<Value>, status: u16) -> Value {
        self.ask_with(operation, names, &[], body.map(|body| body.to_string()), status).await
    }

    pub async fn ask_with(
        &self,
        operation: &str,
        names: &[&str],
        headers: &[(&str, &str)],
        body: Option<String>,
        status: u16,
    ) -> Value {
        let (method, template) = operation.split_once(' ').unwrap();
        let mut names = names.iter();
        let segments = template.split('/').map(|segment| match segment.starts_with('{') {
            true => warren::ids::encode(names.next().unwrap()).replace('~', "%"),
            false => segment.to_owned(),
        });
        let path = segments.collect::<Vec<_>>().join("/");
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("http://{}{path}", self.address));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.unwrap();
        let got = response.status().as_u16();
        let text = |value: &reqwest::header::HeaderValue| value.to_str().unwrap().to_owned();
        let headers: Map<String, Value> =
            response.headers().iter().map(|(name, value)| (name.to_string(), text(value).into())).collect();
        let body = response.bytes().await.unwrap();
        let body = String::from_utf8_lossy(&body);
        assert_eq!(got, status, "{operation}: {body}");
        self.recording.answered(operation, got, headers.into(), &body);
        serde_json::from_str(&body).unwrap_or(Value::Null)
    }

    /// Sends the head and the first byte of a body that is to have so many, and never the rest.
    pub async fn begin(&self, operation: &str, bytes: usize, status: u16) {
        let token = self.token.as_deref().unwrap_or_default();
        let asking = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let head = format!(
                "{operation} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {bytes}\r\n\r\n{{"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            // Cut by whoever has not read the request; the answer is there by then.
            let _ = stream.read_to_string(&mut answer).await;
            answer
        };
        let answer = timeout(PATIENCE, asking).await.expect("an answer in time");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{operation}: {answer:?}"));
        let got = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(got, status, "{operation}: {answer}");
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers: Map<String, Value> =
            lines.map(|(name, value)| (name.to_lowercase(), value.into())).collect();
        self.recording.answered(operation, got, headers.into(), body);
    }
}
