//! The accept loop: HTTP/1.1 with limits on what a connection may cost before anybody knows who it is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use warp::{Filter, Reply};

/// Connections that the kernel completes before they are accepted. A reconnect storm must fit.
const BACKLOG: i32 = 4096;
/// All headers of a request together, in bytes; hyper answers 431 beyond.
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// What the kernel keeps for a socket that does not read, in bytes; it takes twice that for its bookkeeping.
/// Left to itself it grows to megabytes, and a slow consumer goes unnoticed for as long.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a connection may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To begin with a request, and again to send all of its headers.
    pub header_timeout: Duration,
    /// HTTP connections at once, over all listeners that share it; further ones wait in the backlog.
    pub connections: Arc<Semaphore>,
}

/// Binds an address that several listeners may share (`SO_REUSEPORT`): the kernel spreads connections over them.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit both of these on Linux.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Serves until the future is dropped, and with it every HTTP connection; upgraded sockets live on.
pub async fn run<F>(listener: TcpListener, limits: Limits, filter: F)
where
    F: Filter + Clone + Send + Sync + 'static,
    F::Extract: Reply,
    F::Error: Into<std::convert::Infallible>,
    F: Filter<Error = std::convert::Infallible>,
{
    let service = TowerToHyperService::new(warp::service(filter));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(true);
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = accept(&listener) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        // Not before there is a connection: idle listeners must not use up what they share. Never closed.
        let Ok(permit) = limits.connections.clone().acquire_owned().await else { return };
        let (http, service, patience) = (http.clone(), service.clone(), limits.header_timeout);
        connections.spawn(async move {
            if speaks(&stream, patience).await {
                // Boxed, so that a connection that says nothing does not hold room for it.
                let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
                if let Err(error) = Box::pin(connection).await {
                    tracing::debug!(%error, "connection ended");
                }
            }
            drop(permit);
        });
    }
}

/// Waits for the first byte. HTTP takes buffers of some 20 KiB as soon as it is asked to listen, and in a
/// reconnect storm thousands of connections wait for their turn. A look into the socket, not at its readiness:
/// the runtime believes a new socket to be readable until it has tried.
async fn speaks(stream: &TcpStream, patience: Duration) -> bool {
    matches!(tokio::time::timeout(patience, stream.peek(&mut [0])).await, Ok(Ok(1)))
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                // A connection that was reset while it waited; or no file descriptor left, which passes.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
