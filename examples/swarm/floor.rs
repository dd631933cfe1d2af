//! The floor: what `write(2)` of the same frame to the same number of sockets costs, with nothing around it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::process::own_thread_cpu;

/// As the node sets it.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// What a socket is read with.
const READ_BYTES: usize = 64 * 1024;

/// Processor time of one write of `bytes` to each of `sockets`, which another process reads; the next round
/// begins when it has read the last one. `rounds` times.
pub fn measure(sockets: usize, bytes: &[u8], rounds: usize) -> io::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut drain = Command::new(std::env::current_exe()?)
        .args(["drain", "--address", &listener.local_addr()?.to_string()])
        .args(["--connections", &sockets.to_string(), "--round-bytes", &(sockets * bytes.len()).to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = drain.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let streams = accept_all(&listener, sockets)?;
    let mut spent = Duration::ZERO;
    for round in 0..=rounds {
        let before = own_thread_cpu();
        for mut stream in &streams {
            stream.write_all(bytes)?;
        }
        // The first round warms up.
        if round > 0 {
            spent += own_thread_cpu() - before;
        }
        ready.read_exact(&mut [0])?;
    }
    drop(streams);
    drain.wait()?;
    Ok(spent / (rounds * sockets) as u32)
}

fn accept_all(listener: &TcpListener, count: usize) -> io::Result<Vec<std::net::TcpStream>> {
    let accept = |_| {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES)?;
        Ok(stream)
    };
    (0..count).map(accept).collect()
}

#[derive(Debug, Args)]
pub struct Drain {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    connections: usize,
    /// A byte goes to standard output each time so much has been read
    #[arg(long)]
    round_bytes: usize,
}

impl Drain {
    pub async fn run(&self) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        let total = Arc::new(AtomicUsize::new(0));
        for _ in 0..self.connections {
            let stream = TcpStream::connect(self.address).await?;
            tasks.spawn(drain(stream, total.clone(), self.round_bytes));
        }
        tasks.join_all().await.into_iter().collect()
    }
}

async fn drain(stream: TcpStream, total: Arc<AtomicUsize>, round_bytes: usize) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let mut buffer = [0; READ_BYTES];
        let read = match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        // One thread, and the next round begins after this one: a round's end is never overstepped.
        if (total.fetch_add(read, Ordering::Relaxed) + read).is_multiple_of(round_bytes) {
            io::stdout().write_all(b".")?;
            io::stdout().flush()?;
        }
    }
}
