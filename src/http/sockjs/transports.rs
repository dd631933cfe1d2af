//! The transports of SockJS that are requests of HTTP: a client receives in responses, and sends in bodies.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures_util::Stream;
use socket2::SockRef;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use warp::http::{header, Method, StatusCode};
use warp::reply::Response;
use warp::Reply as _;

use super::answers::{fresh, preflight, streaming};
use super::bridge::{Bridge, Order};
use super::receiver::{Body, Kind, Outlet};
use super::table::{Fallbacks, Name};
use super::{Asked, Peer};
use crate::error::{Code, Error};
use crate::http::body::{self, BodyLimits};
use crate::http::client::{counted, query_value};
use crate::http::guard::check_encoding;
use crate::http::listener::{descriptors_max, SEND_BUFFER_BYTES};
use crate::http::response;
use crate::http::upgrade::{admit, Admitted};
use crate::protocol::wire::client_side::put_text;
use crate::protocol::{sockjs, Framing};
use crate::session::Admission;
use crate::tls::Transport;

/// A client sends together what it could not send at once: at most as many bytes as so many of the longest messages have.
const MESSAGES_PER_BODY: usize = 16;
/// Attempts to find or begin a session whose name another one gives up or takes at the same moment.
const ATTEMPTS: usize = 3;
const PLAIN: &str = "text/plain; charset=UTF-8";

/// What stands at an address of these transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Over {
    Receive(Kind),
    Send,
}

impl Over {
    /// By the last segment of the address.
    pub(super) fn of(segment: &str) -> Option<Self> {
        Some(match segment {
            "xhr" => Over::Receive(Kind::Polling),
            "xhr_streaming" => Over::Receive(Kind::Streaming),
            "eventsource" => Over::Receive(Kind::Events),
            "xhr_send" => Over::Send,
            _ => return None,
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Over::Receive(Kind::Events) => "OPTIONS, GET",
            Over::Receive(_) | Over::Send => "OPTIONS, POST",
        }
    }
}

/// Answers a request to one of the transports.
pub(super) async fn answer(
    asked: Asked,
    name: Name,
    over: Over,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    if asked.method == Method::OPTIONS {
        return preflight(over.methods(), &asked.headers);
    }
    let answer = match over {
        Over::Receive(kind) => {
            // Nobody reads it, and the connection could not be watched while it is there.
            drop(body);
            receive(&asked, &name, kind).await
        }
        Over::Send => send(&asked, &name, body).await,
    };
    answer.unwrap_or_else(|refusal| fresh(*refusal, &asked.headers))
}

fn refuse(code: Code, message: &str) -> Box<Response> {
    Box::new(response::error(&Error::new(code, message)))
}

async fn receive(asked: &Asked, name: &Name, kind: Kind) -> Result<Response, Box<Response>> {
    let head = |answer| streaming(answer, kind.content_type(), &asked.headers);
    if asked.method == Method::HEAD {
        return Ok(head(Response::default()));
    }
    let (Some(Peer(client, connection)), Some(fallbacks)) = (&asked.from, &asked.state.fallbacks) else {
        return Err(Box::new(response::nothing_here()));
    };
    let (mut outlet, mut pieces) = Outlet::new(kind);
    for _ in 0..ATTEMPTS {
        let orders = match fallbacks.find(name) {
            Some(orders) => orders,
            None => match open(asked, fallbacks, name, *client).await? {
                Some(orders) => orders,
                None => continue,
            },
        };
        match orders.send(Order::Attach(outlet)).await {
            Err(mpsc::error::SendError(Order::Attach(back))) => outlet = back,
            // It has its place among the receivers, of which each session has one, and needs none among those who ask.
            _ if kind == Kind::Polling => {
                connection.step_aside();
                let piece = pieces.recv().await.unwrap_or_else(|| kind.piece(sockjs::INTERRUPTED));
                return Ok(head(Response::new(piece.into())));
            }
            _ => {
                connection.stream();
                let body = Body::new(kind, pieces, connection.clone());
                return Ok(head(warp::reply::stream(body).into_response()));
            }
        }
    }
    Err(refuse(Code::Overloaded, "the session ends and begins at the same time"))
}

/// Begins a session. Refusals come inside of it, as for a WebSocket. `None`: the name was taken meanwhile.
async fn open(
    asked: &Asked,
    fallbacks: &Arc<Fallbacks>,
    name: &Name,
    client: crate::http::client::Client,
) -> Result<Option<mpsc::Sender<Order>>, Box<Response>> {
    let state = &asked.state;
    let full = || refuse(Code::Overloaded, "this node holds as many sessions over HTTP as it may");
    if !fallbacks.has_room() {
        return Err(full());
    }
    let share = match client.is_proxy {
        true => None,
        false => Some(fallbacks.share(counted(client.address)).ok_or_else(|| {
            refuse(Code::RateLimited, "as many sessions over HTTP as one address may have here")
        })?),
    };
    let admitted = admit(state, &asked.headers, &asked.query, None, client).await;
    let (Admitted { identity, unauthenticated, share: place }, refused) = match admitted {
        Ok(admitted) => (admitted, None),
        Err(refusal) => (Admitted::default(), Some(refusal.close)),
    };
    if refused.is_some() {
        state.metrics.handshake_refused();
    }
    let (socket, stream) = pair().ok_or_else(full)?;
    let (bridge, orders) = Bridge::new(socket, Instant::now());
    if !fallbacks.begin(name, share, (bridge, orders.clone())) {
        return Ok(None);
    }
    let admission = Admission {
        stream: Transport::Paired(Box::new(stream)),
        early: Vec::new(),
        identity,
        unauthenticated: unauthenticated.map(|slot| Box::new(slot) as Box<dyn Send>),
        share: place,
        acknowledges: query_value(&asked.query, "ack") == Some("client"),
        codec: None,
        framing: Framing::SockJs,
        refused,
    };
    // A worker that has ended needs no more sockets.
    let _ = asked.admissions.send(admission).await;
    Ok(Some(orders))
}

/// The client's end and the session's. `None`: file descriptors are short.
fn pair() -> Option<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().ok()?;
    if ours.as_raw_fd().max(theirs.as_raw_fd()) >= descriptors_max() {
        return None;
    }
    SockRef::from(&theirs).set_send_buffer_size(SEND_BUFFER_BYTES).ok()?;
    Some((ours, theirs))
}

async fn send(
    asked: &Asked,
    name: &Name,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Box<Response>> {
    let state = &asked.state;
    let Some(orders) = state.fallbacks.as_ref().and_then(|fallbacks| fallbacks.find(name)) else {
        return Err(unknown(asked));
    };
    check_encoding(&asked.headers).map_err(Box::new)?;
    let longest = state.max_message_bytes * MESSAGES_PER_BODY;
    let limits = BodyLimits { single: longest, batch: longest, timeout: state.body_timeout };
    let length = asked.headers.get(header::CONTENT_LENGTH);
    let announced = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let caller = asked.from.as_ref().map(|Peer(client, _)| format!("sockjs {}", counted(client.address)));
    let mut reserved = state.bodies.reserve(caller.unwrap_or_default().into());
    let read = body::read(body, announced, limits, &mut reserved).await;
    let body = read.map_err(|error| Box::new(error.response()))?;
    let frames = frames(&body)?;
    drop(body);
    let (done, sent) = oneshot::channel();
    let sending = async {
        if orders.send(Order::Say(frames, done)).await.is_err() {
            return Err(unknown(asked));
        }
        // A session that has ended meanwhile says so to its receiver.
        let _ = sent.await;
        Ok(())
    };
    match tokio::time::timeout(state.body_timeout, sending).await {
        Ok(sent) => sent?,
        Err(_) => return Err(refuse(Code::Overloaded, "the session does not take what was sent")),
    }
    Ok(fresh(response::text(StatusCode::NO_CONTENT, PLAIN, ""), &asked.headers))
}

/// The messages of a body, each as a frame. Other answers than these are not for clients of SockJS (sockjs-protocol 0.3.3).
fn frames(body: &[u8]) -> Result<BytesMut, Box<Response>> {
    let bad = |text| Box::new(response::text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, text));
    if body.is_empty() {
        return Err(bad("Payload expected."));
    }
    let messages = std::str::from_utf8(body).ok().and_then(sockjs::quoted);
    let messages = messages.ok_or_else(|| bad("Broken JSON encoding."))?;
    let mut frames = BytesMut::new();
    if messages.is_empty() {
        // It counts as a request of the session, and so do those that say something.
        put_text(&[b"[]"], &mut frames);
    }
    messages.iter().for_each(|message| put_text(&[b"[", message.as_bytes(), b"]"], &mut frames));
    Ok(frames)
}

/// There is no such session. A client that guesses names is refused with 429 after some guesses.
fn unknown(asked: &Asked) -> Box<Response> {
    let client = asked.from.as_ref().map(|Peer(client, _)| client).filter(|client| !client.is_proxy);
    let may_ask = |address| asked.state.bad_tokens.take(&address, 1, Instant::now());
    match client.is_none_or(|client| may_ask(counted(client.address))) {
        true => refuse(Code::NotFound, "there is no such session"),
        false => refuse(Code::RateLimited, "too many unknown sessions from this address; slow down"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_become_frames() {
        let frame = |text: &str| {
            let mut out = BytesMut::new();
            put_text(&[text.as_bytes()], &mut out);
            out.to_vec()
        };
        let made = |body: &str| frames(body.as_bytes()).ok().map(|frames| frames.to_vec());
        assert_eq!(made(r#"["a","b\n"]"#), Some([frame(r#"["a"]"#), frame(r#"["b\n"]"#)].concat()));
        assert_eq!(made("[]"), Some(frame("[]")));
        for bad in ["", "[", "{}", "[1]", "[\"x", "[\"\\ud800\"]"] {
            assert_eq!(made(bad), None, "{bad}");
        }
        assert!(frames(b"[\"\xff\"]").is_err());
    }

    #[test]
    fn fuzzed() {
        use std::ops::ControlFlow;

        use crate::protocol::wire::{Decoder, Event};
        let good =
            [r#"["a","b\n\u2028"]"#, "[]", r#""alone""#, r#"["{\"type\":\"ping\"}"]"#, "[ \"\" ,\"%\"\t]"];
        let words = ["\\ud800", "\\u0000", "null", "[[", "\",\"", "\\\"", "\u{2028}"];
        let good = good.map(|text| text.as_bytes().to_vec());
        crate::tests::fuzz::fuzz("bodies of SockJS", &good, &words, |body| {
            let Ok(mut frames) = frames(body) else { return usize::MAX };
            let mut count = 0;
            // What a session reads of it is what the body said.
            let mut sink = |event: Event<'_>| {
                let Event::Text(text) = event else { panic!("{event:?}") };
                count += sockjs::messages(text).expect("an array of texts").len();
                ControlFlow::Continue(())
            };
            Decoder::new(u32::MAX).decode(&mut frames, &mut sink).expect("frames");
            let said = std::str::from_utf8(body).ok().and_then(sockjs::messages).expect("an array of texts");
            assert_eq!(count, said.len());
            count
        });
    }
}
