//! A slow line to a node: what the gateway sends passes at a given speed, whatever buffers there are.

use std::time::Duration;

use tokio::io::{copy, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep_until, Instant};

/// The receive buffer of the line, so that the gateway feels its speed.
const BUFFER_BYTES: u32 = 8 << 10;

pub struct Line {
    pub port: u16,
    accepting: AbortHandle,
}

impl Line {
    pub async fn start(node: u16, bytes_per_s: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = tokio::spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                lines.spawn(pass(client, node, bytes_per_s));
            }
        });
        Self { port, accepting: accepting.abort_handle() }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut client: TcpStream, node: u16, bytes_per_s: u32) -> Option<()> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.set_recv_buffer_size(BUFFER_BYTES).ok()?;
    let mut server = socket.connect(([127, 0, 0, 1], node).into()).await.ok()?;
    let (mut client_reads, mut client_writes) = client.split();
    let (mut server_reads, mut server_writes) = server.split();
    let down = async {
        let (mut buffer, mut due) = (vec![0; 4 << 10], Instant::now());
        while let Ok(count @ 1..) = server_reads.read(&mut buffer).await {
            due = due.max(Instant::now()) + Duration::from_secs_f64(count as f64 / f64::from(bytes_per_s));
            sleep_until(due).await;
            if client_writes.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = down => {}
        _ = copy(&mut client_reads, &mut server_writes) => {}
    }
    Some(())
}
