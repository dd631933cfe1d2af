//! A TCP relay between a bus and its broker that can be cut, paused, half-opened or made to refuse.

#![allow(dead_code)] // Several test binaries share this; each uses a part.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// New connections are closed at once; existing ones go on.
    Refuse,
    /// Nothing moves in either direction, on any connection.
    Pause,
    /// What is read at once moves on so much later, and what follows waits for it.
    Slow(Duration),
}

pub struct Relay {
    pub port: u16,
    mode: watch::Sender<Mode>,
    /// Counts the cuts; each ends the connections that it finds.
    cuts: watch::Sender<u64>,
    /// The broker's ends of half-open connections: kept, so that the broker believes in them.
    kept: Arc<Mutex<Vec<TcpStream>>>,
    half_open: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn start(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, cuts, half_open) =
            (watch::Sender::new(Mode::Pass), watch::Sender::new(0), watch::Sender::new(0));
        let kept = Arc::new(Mutex::new(vec![]));
        let (modes, cut, half, keep) = (mode.clone(), cuts.clone(), half_open.clone(), kept.clone());
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if *modes.borrow() == Mode::Refuse {
                    continue;
                }
                let (modes, cut, half, keep) =
                    (modes.subscribe(), cut.subscribe(), half.subscribe(), keep.clone());
                connections.spawn(async move {
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", broker)).await {
                        relay(client, server, modes, cut, half, keep).await;
                    }
                });
            }
        });
        Self { port, mode, cuts, kept, half_open, accepting }
    }

    pub fn url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.port)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends every connection, at both ends.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }

    /// Ends every connection at the client's end only; the broker goes on believing in it.
    pub fn half_open(&self) {
        self.half_open.send_modify(|count| *count += 1);
    }

    pub fn kept(&self) -> usize {
        self.kept.lock().unwrap().len()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(
    client: TcpStream,
    server: TcpStream,
    mode: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
    mut half: watch::Receiver<u64>,
    keep: Arc<Mutex<Vec<TcpStream>>>,
) {
    let (mut client, mut server) = (client, server);
    let halved = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        tokio::select! {
            _ = copy(client_reads, server_writes, mode.clone()) => false,
            _ = copy(server_reads, client_writes, mode) => false,
            _ = cut.changed() => false,
            _ = half.changed() => true,
        }
    };
    if halved {
        keep.lock().unwrap().push(server);
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| *mode != Mode::Pause).await.is_err() {
            return;
        }
        let mode_now = *mode.borrow();
        if let Mode::Slow(late) = mode_now {
            tokio::time::sleep(late).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
