//! The accept loop: HTTP/1.1, with bounds on what connections may cost before anybody knows who they are.
//!
//! A connection first waits for the head of its first request, at the cost of a socket and of what it has sent.
//! Then it is a handshake, which is over in moments and has slots of its own; or it is a keep-alive connection,
//! which holds a slot as long as nobody else needs it.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Semaphore};
use tokio::task::JoinSet;
use warp::http::{Request, StatusCode};
use warp::reply::Response;
use warp::{Filter, Reply};

use super::client::{canonical, counted};
use super::connection::{drive, Connection, Ended, Upgrade};
use super::guard::Guard;
use super::listener::{accept, descriptors_max};
use super::opening::{begin, is_handshake, Begin, Tls, HEAD_BYTES_MAX};
use super::response;
use super::slots::{Slot, Slots};
use super::stream::{peer, ClientStream};
use crate::error::{Code, Error};
use crate::session::Admission;
use crate::tls::{Acceptor, Transport};

const HEADERS_MAX: usize = 64;
/// Connections that have not sent a head cost a socket and some 2 KiB, and so there may be more of them.
const WAITING_FACTOR: usize = 4;
/// Between two connections that are closed for a newcomer. Whoever is closed may come back at once: without a pause
/// one client too many would keep a node busy with nothing but that.
const EVICTION_PAUSE: Duration = Duration::from_millis(2);
/// For a client that gets no slot: told at once, so that its balancer asks another node.
const NO_SLOT: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 91\r\n\r\n\
    {\"error\":{\"code\":\"overloaded\",\"message\":\"too many connections at the moment\",\"retry\":true}}";

/// What connections may take; shared by all listeners of an address.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the connection to the end of the first head, and from the first byte to the last of each further one.
    head_timeout: Duration,
    /// Connections whose first head is not there yet.
    waiting: Arc<Slots>,
    /// Requests to `/ws` until they are answered. Further ones wait.
    handshakes: Arc<Semaphore>,
    /// All other connections.
    keep_alive: Arc<Slots>,
    /// Newcomers that replace others do so one after the other.
    evictions: Arc<Semaphore>,
    /// Connections with this file descriptor or a higher one are refused.
    descriptors_max: i32,
    guard: Arc<Guard>,
    tls: Option<Tls>,
}

impl Limits {
    /// For `connections` handshakes, and as many other connections; `per_address` of those of one client.
    pub fn new(head_timeout: Duration, connections: usize, per_address: usize, guard: Guard) -> Self {
        Self {
            head_timeout,
            // No share of an address: whoever is cut off comes back at once, and costs more than a socket that waits.
            waiting: Slots::new(connections * WAITING_FACTOR, usize::MAX),
            handshakes: Arc::new(Semaphore::new(connections)),
            keep_alive: Slots::new(connections, per_address),
            evictions: Arc::new(Semaphore::new(1)),
            descriptors_max: descriptors_max(),
            guard: Arc::new(guard),
            tls: None,
        }
    }

    /// With TLS on every connection, and as many handshakes of it as there may be other connections.
    pub fn with_tls(self, acceptor: Acceptor, connections: usize, per_address: usize) -> Self {
        Self { tls: Some(Tls::new(acceptor, connections, per_address)), ..self }
    }

    /// Without a limit on file descriptors: operators must get an answer when clients have used up their part.
    pub fn for_operators(self) -> Self {
        Self { descriptors_max: i32::MAX, ..self }
    }

    /// A slot for a connection that is no handshake; `None` if all holders are being served.
    async fn keep_alive_slot(&self, share: Option<IpAddr>) -> Option<Slot> {
        if !self.keep_alive.has_room(share) {
            // Never closed.
            let _turn = self.evictions.acquire().await;
            tokio::time::sleep(EVICTION_PAUSE).await;
        }
        self.keep_alive.admit(share, Instant::now())
    }

    /// `None` for a proxy: its clients have shares, it has none.
    fn share(&self, address: IpAddr) -> Option<IpAddr> {
        (!self.guard.trusted.contains(address)).then(|| counted(address))
    }
}

/// What the connections of one listener share.
#[derive(Clone)]
struct Listening {
    limits: Limits,
    admissions: Option<mpsc::Sender<Admission>>,
    turnstile: Arc<Semaphore>,
}

/// Serves until the future is dropped, and with it every HTTP connection; upgraded sockets live on in the worker
/// that `admissions` leads to.
pub async fn run<F>(
    listener: TcpListener,
    limits: Limits,
    filter: F,
    admissions: Option<mpsc::Sender<Admission>>,
) where
    F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
    F::Future: Send,
{
    let service = TowerToHyperService::new(warp::service(filter));
    let listening = Listening { limits, admissions, turnstile: Arc::new(Semaphore::new(1)) };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = accept(&listener) => {
                connections.spawn(serve(stream, listening.clone(), service.clone()));
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection ended in a panic");
                }
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve<S>(stream: TcpStream, listening: Listening, routes: S)
where
    S: Routes,
    S::Future: Send,
{
    let limits = &listening.limits;
    if stream.as_raw_fd() >= limits.descriptors_max {
        return refuse(&mut Transport::Plain(stream), limits);
    }
    let peer = canonical(peer(&stream).ip());
    let Some(waiting) = limits.waiting.admit(limits.share(peer), Instant::now()) else { return };
    let by_proxy = limits.guard.proxy_protocol && limits.guard.trusted.contains(peer);
    let share = |client: Option<IpAddr>| limits.share(client.map_or(peer, canonical));
    let beginning = begin(stream, by_proxy, limits.tls.as_ref(), share);
    let begin = tokio::select! {
        begin = tokio::time::timeout(limits.head_timeout, beginning) => begin,
        () = waiting.evicted() => return,
    };
    let Ok(Some(Begin { mut stream, head, client })) = begin else { return };
    let address = client.map_or(peer, canonical);
    let share = share(client);
    let patience = limits.head_timeout;
    let (slot, permit) = if is_handshake(&head) {
        let permit = tokio::time::timeout(patience, limits.handshakes.clone().acquire_owned());
        let Ok(Ok(permit)) = permit.await else { return refuse(&mut stream, limits) };
        (None, Some(permit))
    } else {
        let slot = tokio::time::timeout(patience, limits.keep_alive_slot(share)).await;
        let Ok(Some(slot)) = slot else { return refuse(&mut stream, limits) };
        (Some(slot), None)
    };
    drop(waiting);
    let connection = Connection::new(limits.head_timeout, slot);
    let is_secure = stream.is_secure();
    let stream = ClientStream::new(stream, head, connection.clone());
    let turnstile = permit.is_none().then(|| listening.turnstile.clone());
    let guard = limits.guard.clone();
    let front = Front { routes, guard, peer: address, is_secure, connection, turnstile };
    // Boxed, so that a connection that waits for its turn does not hold room for HTTP.
    Box::pin(speak(stream, front, listening.admissions)).await;
    drop(permit);
}

/// Speaks HTTP on a connection whose first head is there.
async fn speak<S>(stream: ClientStream, front: Front<S>, admissions: Option<mpsc::Sender<Admission>>)
where
    S: Routes,
    S::Future: Send,
{
    let (connection, address) = (front.connection.clone(), front.peer);
    let mut http = http1::Builder::new();
    // Its deadlines are the connection's: this one would count idle time as well.
    http.header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX).keep_alive(true);
    let ended = drive(http.serve_connection(TokioIo::new(stream), front).with_upgrades(), &connection).await;
    if ended != Ended::Normally {
        return tracing::debug!(%address, ?ended, "connection cut");
    }
    if let (Some(upgrade), Some(admissions)) = (connection.take_upgrade(), admissions) {
        hand_over(upgrade, admissions).await;
    }
}

/// Lets one request through in each turn of the thread: clients that pipeline thousands of requests on thousands of
/// connections wait for each other, and everything else that the thread does waits for one of them at most.
async fn pass(turnstile: &Semaphore) {
    // Never closed.
    let _turn = turnstile.acquire().await;
    tokio::task::yield_now().await;
}

/// A client that gets nothing but this, so that no buffer is needed for it. One that has yet to speak TLS gets nothing.
fn refuse(stream: &mut Transport, limits: &Limits) {
    if stream.is_secure() || limits.tls.is_none() {
        // What does not fit into an empty send buffer is not worth waiting for.
        let _ = stream.try_write(NO_SLOT);
    }
}

async fn hand_over(upgrade: Upgrade, admissions: mpsc::Sender<Admission>) {
    let Upgrade { socket, identity, unauthenticated, share, acknowledges, codec, framing, refused } = upgrade;
    let Ok(upgraded) = socket.await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<ClientStream>>() else { return };
    let (stream, unread) = parts.io.into_inner().into_parts();
    // Copied, since these few bytes would keep all of hyper's read buffer alive.
    let early = [&parts.read_buf[..], &unread].concat();
    drop((parts.read_buf, unread));
    let unauthenticated = unauthenticated.map(|slot| Box::new(slot) as Box<dyn Send>);
    let admission =
        Admission { stream, early, identity, unauthenticated, share, acknowledges, codec, framing, refused };
    // A worker that has ended needs no more sockets.
    let _ = admissions.send(admission).await;
}

/// Stands before the routes: tells the connection what it is doing, and has every request checked.
struct Front<S> {
    routes: S,
    guard: Arc<Guard>,
    peer: IpAddr,
    /// The connection has TLS.
    is_secure: bool,
    connection: Arc<Connection>,
    /// `None`: a handshake, which waits for nobody and is the connection's last request.
    turnstile: Option<Arc<Semaphore>>,
}

/// The routes of a listener, as hyper calls them.
pub trait Routes:
    Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static
{
}

impl<S> Routes for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static
{
}

impl<S> Service<Request<Incoming>> for Front<S>
where
    S: Routes,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let (connection, turnstile) = (self.connection.clone(), self.turnstile.clone());
        let (routes, peer, is_secure) = (self.routes.clone(), self.peer, self.is_secure);
        let guard = self.guard.clone();
        connection.arrived();
        Box::pin(async move {
            if let Some(turnstile) = &turnstile {
                pass(turnstile).await;
            }
            // Nothing has been done for it so far: it may have lost its slot while it waited.
            if !connection.begin() {
                let error = Error::new(Code::Overloaded, "this connection gave way to another");
                return Ok(response::closing(response::error(&error)));
            }
            let response = match guard.check(peer, is_secure, &request) {
                Ok(client) => {
                    request.extensions_mut().insert((client, connection.clone()));
                    routes.call(request).await?
                }
                Err(refusal) => *refusal,
            };
            let is_last = connection.finish() || turnstile.is_none();
            let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            Ok(if is_last && !is_upgrade { response::closing(response) } else { response })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_has_the_length_that_it_says() {
        let text = std::str::from_utf8(NO_SLOT).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
