//! A server of nothing but the wire code, so that the table can be tested without a gateway.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use warren::protocol::close::CloseCode;
use warren::protocol::wire::{self, handshake, Decoder, Event, MESSAGE_BYTES_MAX};

pub async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let http = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(|request| async { upgrade(request) }))
                .with_upgrades();
            tokio::spawn(http);
        }
    });
    addr
}

fn upgrade(mut request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let mut response = Response::new(String::new());
    match handshake::check(request.method(), request.version(), request.headers()) {
        Ok(accepted) => {
            tokio::spawn(talk(hyper::upgrade::on(&mut request)));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, "upgrade".parse().unwrap());
            headers.insert(UPGRADE, "websocket".parse().unwrap());
            headers.insert(SEC_WEBSOCKET_ACCEPT, accepted.accept.parse().unwrap());
            if let Some(subprotocol) = accepted.subprotocol {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol.parse().unwrap());
            }
        }
        Err(refusal) => {
            *response.status_mut() = refusal.status;
            for (name, value) in refusal.headers() {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
        }
    }
    Ok(response)
}

async fn talk(upgrade: OnUpgrade) {
    let parts = upgrade.await.unwrap().downcast::<TokioIo<TcpStream>>().unwrap();
    let mut stream = parts.io.into_inner();
    let mut input = parts.read_buf.to_vec();
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    loop {
        let mut out: Vec<Bytes> = Vec::new();
        let result = decoder.decode(&mut input, &mut |event| answer(event, &mut out));
        if let Err(violation) = result {
            let code = violation.close_code();
            out.push(wire::close_frame(code.code(), code.reason()));
        }
        let _ = stream.write_all(&out.concat()).await;
        if decoder.is_done() {
            break;
        }
        input.resize(16_384, 0);
        let n = stream.read(&mut input).await.unwrap_or(0);
        if n == 0 {
            return;
        }
        input.truncate(n);
    }
    // Closing with unread bytes would reset the connection and could destroy the close frame on its way.
    let _ = stream.shutdown().await;
    while stream.read(&mut input[..]).await.is_ok_and(|n| n > 0) {}
}

fn answer(event: Event<'_>, out: &mut Vec<Bytes>) -> ControlFlow<()> {
    let close = |code: CloseCode| wire::close_frame(code.code(), code.reason());
    match event {
        Event::Ping(payload) => out.push(wire::pong_frame(payload)),
        Event::Pong(_) => {}
        Event::Close(_) => out.push(close(CloseCode::Normal)),
        Event::Text(text) => {
            if let Ok(Value::Object(request)) = serde_json::from_str(text) {
                let reply = json!({"type": "reply", "id": request["id"]}).to_string();
                out.push(wire::text_frame(reply.as_bytes()));
                return ControlFlow::Continue(());
            }
            out.push(close(CloseCode::BadRequest));
            return ControlFlow::Break(());
        }
        Event::Binary(_) => {
            out.push(close(CloseCode::BadRequest));
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}
