//! A client that costs little: one socket and one small task, and one buffer for all of them.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{encode, EncodingKey, Header};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::frames::{masked, Frames, CLOSE, PING, PONG};

/// How long one client waits for its welcome.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sockets of one source address: below the number of ephemeral ports that Linux has for one destination.
const SOCKETS_PER_ADDRESS: usize = 20_000;
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// More than this before the welcome is no welcome.
const GREETING_BYTES_MAX: usize = 8 * 1024;

const EXTENSION: &[u8] = b"permessage-deflate";

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 * 1024]);
}

/// Where to connect and as whom.
#[derive(Debug, Clone)]
pub struct Door {
    pub address: SocketAddr,
    path: String,
    /// The secret of HS256 tokens; without it the node must be insecure.
    secret: Option<String>,
    /// Sockets offer permessage-deflate, as browsers do.
    compression: bool,
}

impl Door {
    /// `url` is `ws://<ip>:<port><path>`.
    pub fn new(url: &str, secret: Option<String>) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or("a URL is ws://<ip>:<port>/<path>")?;
        let (address, path) = rest.split_once('/').unwrap_or((rest, "ws"));
        let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { address, path: format!("/{path}"), secret, compression: false })
    }

    pub fn compressed(self, compression: bool) -> Self {
        Self { compression, ..self }
    }

    /// The `Authorization` header of a user; with `caps` for the API.
    pub fn bearer(&self, user: &str, caps: Option<&[&str]>) -> String {
        let Some(secret) = &self.secret else { return format!("Bearer {user}") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut claims = json!({ "sub": user, "exp": (now + TOKEN_LIFE).as_secs() });
        if let Some(caps) = caps {
            claims["caps"] = json!(caps);
        }
        let key = EncodingKey::from_secret(secret.as_bytes());
        format!("Bearer {}", encode(&Header::default(), &claims, &key).unwrap_or_default())
    }

    /// The request that opens a socket for a user: made ahead, so that signing is not measured.
    pub fn request(&self, user: &str) -> Vec<u8> {
        let (path, address, bearer) = (&self.path, self.address, self.bearer(user, None));
        let offer = match self.compression {
            true => "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
            false => "",
        };
        format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             {offer}Authorization: {bearer}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// A socket that was welcomed, and how long that took.
#[derive(Debug)]
pub struct Client {
    pub stream: Arc<TcpStream>,
    pub took: Duration,
}

/// Connects client number `index`, sends its request and waits for the first frame.
pub async fn connect(address: SocketAddr, index: usize, request: &[u8]) -> io::Result<Client> {
    let began = Instant::now();
    let greeted = timeout(PATIENCE, greet(address, index, request)).await;
    let stream = greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Client { stream: Arc::new(stream), took: began.elapsed() })
}

async fn greet(address: SocketAddr, index: usize, request: &[u8]) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if address.ip().is_loopback() && index >= SOCKETS_PER_ADDRESS {
        let last = 1 + (index / SOCKETS_PER_ADDRESS) as u8;
        socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
    }
    let mut stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut answer).await? == 0 || answer.len() > GREETING_BYTES_MAX {
            return Err(refused(&answer));
        }
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        if !answer.starts_with(b"HTTP/1.1 101") {
            return Err(refused(&answer));
        }
        let offers =
            |head: &[u8]| head.windows(EXTENSION.len()).any(|part| part.eq_ignore_ascii_case(EXTENSION));
        if offers(request) != offers(&answer[..end]) {
            return Err(io::Error::other("compression was offered and not accepted: WARREN_COMPRESSION=on"));
        }
        let mut welcomed = false;
        Frames::default().read(&answer[end + 4..], |_, payload| {
            welcomed |= payload.starts_with(br#"{"type":"welcome""#);
        });
        if welcomed {
            return Ok(stream);
        }
    }
}

fn refused(answer: &[u8]) -> io::Error {
    if answer.is_empty() {
        return io::Error::other("closed without an answer");
    }
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    io::Error::other(format!("refused: {}", String::from_utf8_lossy(line)))
}

/// Reads until the connection ends, and answers pings. `on_text` gets the payload of each text frame.
pub async fn listen(stream: Arc<TcpStream>, mut on_text: impl FnMut(&[u8])) {
    let mut frames = Frames::default();
    let mut open = true;
    while open && stream.readable().await.is_ok() {
        SCRATCH.with_borrow_mut(|scratch| loop {
            match stream.try_read(scratch) {
                Ok(0) => return open = false,
                Ok(read) => frames.read(&scratch[..read], |opcode, payload| match opcode {
                    PING => drop(stream.try_write(&masked(PONG, payload))),
                    CLOSE => open = false,
                    _ => on_text(payload),
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return open = false,
            }
        });
    }
}
