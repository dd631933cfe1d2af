//! Runs the table of RFC 6455 cases over raw TCP against any address that speaks warren.v1.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod framing;
mod handshakes;
mod messages;

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::nodes::Cluster;
use crate::support::raw_ws::{
    close_code, close_payload, RawClient, RawFrame, ServerFrame, CLOSE, PING, PONG, TEXT,
};

/// The gateway's default limit for a message, in bytes.
const MESSAGE_BYTES_MAX: usize = 65_536;
/// Close codes that a table names, beside those of the RFC.
const BAD_REQUEST: u16 = 4000;

/// One case on a socket of its own. Rows that do not end with `Close` are followed by a clean closing handshake.
pub struct Row {
    pub name: String,
    pub steps: Vec<Step>,
}

pub enum Step {
    Send(Vec<u8>),
    /// The same bytes in writes of at most that many.
    Chopped(Vec<u8>, usize),
    /// A `reply` frame with this `id` must be the next answer.
    Reply(&'static str),
    /// A `reply` frame without an id, with the error `bad_request`, must be the next answer.
    NotUnderstood,
    /// A pong with this payload must be the next answer.
    Pong(Vec<u8>),
    /// A close frame with one of these codes must be the next answer, and then the end of the stream.
    Close(Vec<u16>),
}

/// The smallest request that every session answers: `{"type":"reply","id":…}`.
fn request(id: &str) -> String {
    format!(r#"{{"type":"ping","id":"{id}"}}"#)
}

/// The request, padded with JSON whitespace to exactly `len` bytes.
fn request_of(id: &str, len: usize) -> String {
    let request = request(id);
    let padding = len - request.len();
    request + &" ".repeat(padding)
}

fn text(payload: impl Into<Vec<u8>>) -> RawFrame {
    RawFrame::new(TEXT, payload)
}

fn row(name: impl Into<String>, steps: impl Into<Vec<Step>>) -> Row {
    Row { name: name.into(), steps: steps.into() }
}

/// Frames in one write.
fn send(frames: &[RawFrame]) -> Step {
    Step::Send(frames.iter().flat_map(RawFrame::bytes).collect())
}

fn close(code: u16) -> Step {
    Step::Close(vec![code])
}

/// A good request before the frames shows that the fault, and not the socket, is what is answered.
fn refused(name: impl Into<String>, frames: &[RawFrame], code: u16) -> Row {
    let good = text(request("before"));
    let frames: Vec<RawFrame> = std::iter::once(good).chain(frames.iter().cloned()).collect();
    row(name, [send(&frames), Step::Reply("before"), close(code)])
}

/// Runs every case against the gateway at `addr`.
pub async fn run_table(addr: SocketAddr) {
    const PATH: &str = "/ws?user=rfc6455";
    handshakes::run(addr, PATH).await;
    let rows = framing::rows().into_iter().chain(messages::rows());
    for Row { name, steps } in rows {
        // Shown only when the test fails: the last line names the case.
        println!("{name}");
        let mut client = RawClient::connect(addr, PATH).await;
        let mut closed = false;
        for step in steps {
            assert!(!closed, "nothing can follow a close");
            closed = run_step(&mut client, step).await;
        }
        if !closed {
            client.send_frame(&RawFrame::new(CLOSE, close_payload(1000, b""))).await;
            client.expect_close(1000).await;
        }
    }
}

/// Returns whether the socket is closed now.
async fn run_step(client: &mut RawClient, step: Step) -> bool {
    match step {
        Step::Send(bytes) => client.send(&bytes).await,
        Step::Chopped(bytes, size) => {
            for piece in bytes.chunks(size) {
                client.send(piece).await;
            }
        }
        Step::Reply(id) => assert_eq!(next_reply(client).await["id"], id),
        Step::NotUnderstood => {
            let reply = next_reply(client).await;
            assert_eq!((&reply["id"], &reply["error"]["code"]), (&Value::Null, &"bad_request".into()));
        }
        Step::Pong(payload) => {
            assert_eq!(next_answer(client).await, ServerFrame { opcode: PONG, payload });
        }
        Step::Close(codes) => {
            let frame = next_answer(client).await;
            assert_eq!(frame.opcode, CLOSE, "{frame:?}");
            let code = close_code(&frame.payload).unwrap();
            assert!(codes.contains(&code), "close code {code}, not one of {codes:?}");
            assert_eq!(client.read_frame().await, None, "a close frame is the last one");
            return true;
        }
    }
    false
}

async fn next_reply(client: &mut RawClient) -> Value {
    let frame = next_answer(client).await;
    assert_eq!(frame.opcode, TEXT, "{frame:?}");
    serde_json::from_slice(&frame.payload).unwrap()
}

/// The next frame that answers the client: no ping of the server, no `welcome` or other news.
async fn next_answer(client: &mut RawClient) -> ServerFrame {
    loop {
        let frame = client.read_frame().await.expect("the stream ended without a close frame");
        let news = frame.opcode == TEXT
            && serde_json::from_slice::<Value>(&frame.payload).unwrap()["type"] != "reply";
        if !news && frame.opcode != PING {
            return frame;
        }
    }
}

#[tokio::test]
async fn a_node_keeps_to_rfc_6455() {
    let cluster = Cluster::start(1, &[]).await;
    run_table(cluster.ws(0)).await;
}
