//! Asks another server for a small document: one GET (RFC 9110) over a connection of its own, and no redirects.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Body as _;
use hyper::header::{ACCEPT, HOST};
use hyper::{client::conn::http1, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::tls::Connector;

/// From the look-up of the name to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest document, in bytes: a JWK Set of 64 keys of RSA with their certificates is half as long.
const BYTES_MAX: usize = 512 * 1024;

/// Why there is no document. Tells nothing of the URL's query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Late,
    #[error("no connection: {0}")]
    Connection(#[from] io::Error),
    #[error("no answer in HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0}")]
    Status(StatusCode),
    #[error("the answer has more than {BYTES_MAX} bytes")]
    TooLong,
}

/// The body of a 200. The connector is for https.
pub async fn get(url: &Uri, connector: &Connector) -> Result<Vec<u8>, FetchError> {
    timeout(DEADLINE, connect(url, connector)).await.unwrap_or(Err(FetchError::Late))
}

async fn connect(url: &Uri, connector: &Connector) -> Result<Vec<u8>, FetchError> {
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_private = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_private { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await?;
    match is_private {
        true => exchange(url, connector.connect(host, tcp).await?).await,
        false => exchange(url, tcp).await,
    }
}

async fn exchange(
    url: &Uri,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Vec<u8>, FetchError> {
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let host = url.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(path).header(HOST, host).header(ACCEPT, "application/json");
        let request = request.body(String::new()).map_err(io::Error::other)?;
        let response = requests.send_request(request).await?;
        match response.status() {
            StatusCode::OK => whole(response.into_body()).await,
            other => Err(FetchError::Status(other)),
        }
    };
    // An error of the connection is returned by the request that waits for its answer.
    let driven = async {
        let _ = connection.await;
        pending::<()>().await
    };
    tokio::select! {
        answer = asked => answer,
        () = driven => Err(FetchError::Late),
    }
}

async fn whole(mut body: hyper::body::Incoming) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > BYTES_MAX {
            return Err(FetchError::TooLong);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
