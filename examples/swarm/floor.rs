//! The floor: what `write(2)` of the same frame to the same number of sockets costs, with nothing around it.

use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{ChildStdout, Command, Stdio};
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

/// A process that does nothing but write, and one that reads it: started once, asked several times.
pub struct Floor {
    writer: std::process::Child,
    answers: BufReader<ChildStdout>,
}

impl Floor {
    /// `frame_bytes` go to each of `sockets` for one message.
    pub fn start(sockets: usize, frame_bytes: usize) -> io::Result<Self> {
        let mut writer = Command::new(std::env::current_exe()?)
            .args(["write", "--connections", &sockets.to_string(), "--frame-bytes", &frame_bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(writer.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
        Ok(Self { writer, answers })
    }

    /// Processor time of one write of so many frames, on average over some rounds of one write to each socket.
    /// A round begins when everything of the last one has been read.
    pub fn measure(&mut self, frames: usize, rounds: usize) -> io::Result<Duration> {
        let questions = self.writer.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(questions, "{frames} {rounds}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let nanos = answer.trim().parse().map_err(|_| io::Error::other("the writer gave up"))?;
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        drop(self.writer.stdin.take());
        let _ = self.writer.wait();
    }
}

#[derive(Debug, Args)]
pub struct Write {
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    frame_bytes: usize,
}

impl Write {
    pub fn run(&self) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let round_bytes = self.connections * self.frame_bytes;
        let mut drain = Command::new(std::env::current_exe()?)
            .args(["drain", "--address", &listener.local_addr()?.to_string()])
            .args(["--connections", &self.connections.to_string(), "--round-bytes", &round_bytes.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut read = drain.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let streams = accept_all(&listener, self.connections)?;
        for question in io::stdin().lines() {
            let question = question?;
            let numbers =
                question.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let (frames, rounds): (usize, usize) = numbers.ok_or(io::ErrorKind::InvalidInput)?;
            let bytes = vec![b'x'; frames * self.frame_bytes];
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let before = own_thread_cpu();
                for mut stream in &streams {
                    stream.write_all(&bytes)?;
                }
                spent += own_thread_cpu() - before;
                // One byte for each frame that all have read.
                read.read_exact(&mut vec![0; frames])?;
            }
            println!("{}", spent.as_nanos() / (rounds * streams.len()) as u128);
        }
        drop(streams);
        drain.wait().map(drop)
    }
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
    /// A byte goes to standard output for each time that so much has been read
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
        // One thread: nobody adds in between.
        let before = total.fetch_add(read, Ordering::Relaxed);
        let frames = (before + read) / round_bytes - before / round_bytes;
        if frames > 0 {
            io::stdout().write_all(&vec![b'.'; frames])?;
            io::stdout().flush()?;
        }
    }
}
