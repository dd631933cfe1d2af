//! Opens the stream of a connection for the client library: TCP, TLS and the filter.
//!
//! The library takes its streams from a *runtime kit*, so [`Dialler`] is one: Tokio's, apart from what it dials.
//! It works for connections that the library opens and for those that a pool opens by a URL's text.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};

use super::connection::STEP_DEADLINE;
use super::filter::stream::Filtered;
use super::filter::Filter;
use crate::config::{AmqpUrl, Mechanism};
use crate::tls::{self, BrokerCredentials};

type Plain = <Tokio as Reactor>::TcpStream;

/// Dials one broker, whatever address it is asked for.
#[derive(Debug, Clone)]
pub struct Dialler {
    tokio: Tokio,
    url: AmqpUrl,
}

impl Dialler {
    /// To be called inside a Tokio runtime, which it then belongs to.
    pub fn runtime(url: AmqpUrl) -> Runtime<Self> {
        Runtime::new(Self { tokio: Tokio::current(), url })
    }
}

/// The URL that goes with [`Dialler`]: without TLS, which the dialler sees to, and with an address that the
/// library need not resolve, since its own parser takes `[::1]` for `localhost`.
pub fn library_url(url: &AmqpUrl) -> AMQPUri {
    let userinfo =
        AMQPUserInfo { username: url.user().to_owned(), password: url.expose_password().to_owned() };
    AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority { userinfo, host: "127.0.0.1".into(), port: url.port() },
        vhost: url.vhost().to_owned(),
        query: AMQPQueryString {
            frame_max: Some(url.frame_max()),
            channel_max: url.channel_max(),
            heartbeat: Some(url.heartbeat()),
            connection_timeout: None,
            auth_mechanism: Some(match url.mechanism() {
                Mechanism::Plain => SASLMechanism::Plain,
                Mechanism::AmqPlain => SASLMechanism::AMQPlain,
                Mechanism::External => SASLMechanism::External,
            }),
        },
    }
}

async fn dial(tokio: Tokio, url: AmqpUrl) -> io::Result<Filtered<AsyncTcpStream<Plain>>> {
    let begun = tokio::time::Instant::now();
    let deadline = url.connection_timeout().map_or(STEP_DEADLINE, |timeout| timeout.min(STEP_DEADLINE));
    let dialled = async {
        let runtime = Runtime::new(tokio);
        let addresses = runtime.to_socket_addrs((url.host().to_owned(), url.port()));
        let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
        if url.tls() {
            return stream.into_rustls(&connector(&url)?, url.host()).await;
        }
        Ok(stream)
    };
    let stream = timely(deadline, dialled).await?;
    Ok(Filtered::new(stream, Filter::new(url.frame_max()), begun + STEP_DEADLINE))
}

/// Brokers are checked by the authorities that were given, and by those of the machine if none were.
fn connector(url: &AmqpUrl) -> io::Result<RustlsConnector> {
    let BrokerCredentials { authorities, certificate } = url.credentials().current();
    let Some(authorities) = authorities else {
        let public = RustlsConnectorConfig::new_with_platform_verifier();
        return match certificate {
            Some(own) => public.connector_with_single_cert(own.chain(), own.expose_key()),
            None => public.connector_with_no_client_auth(),
        };
    };
    let config = tls::checking_by(authorities).map_err(io::Error::other)?;
    let config = match certificate {
        Some(own) => config.with_client_auth_cert(own.chain(), own.expose_key()).map_err(io::Error::other)?,
        None => config.with_no_client_auth(),
    };
    Ok(config.into())
}

async fn timely<T>(deadline: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")),
    }
}

impl RuntimeKit for Dialler {}

impl Reactor for Dialler {
    type TcpStream = Filtered<AsyncTcpStream<Plain>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + std::os::fd::AsFd + std::os::fd::AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        dial(self.tokio.clone(), self.url.clone())
    }
}

impl Executor for Dialler {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, work: F) -> T {
        self.tokio.block_on(work)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.tokio.spawn(work)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.tokio.spawn_blocking(work)
    }
}
