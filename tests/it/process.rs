//! The program as a process: addresses, streams, signals, file descriptors, its end.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::eventually::eventually;
use crate::support::nodes::PATIENCE;
use crate::support::raw_ws::RawClient;

struct Process {
    child: Child,
    public: SocketAddr,
    admin: SocketAddr,
}

/// Two addresses that were free a moment ago.
fn free_addresses() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

fn command(public: SocketAddr, admin: SocketAddr, vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    configure(&mut command, public, admin, vars);
    command
}

fn configure(command: &mut Command, public: SocketAddr, admin: SocketAddr, vars: &[(&str, &str)]) {
    command
        .env_clear()
        .env("WARREN_LISTEN", public.to_string())
        .env("WARREN_ADMIN_LISTEN", admin.to_string());
    command.env("WARREN_DRAIN_MS", "3000").env("WARREN_WORKERS", "2");
    for (name, value) in vars {
        command.env(format!("WARREN_{name}"), value);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
}

impl Process {
    /// Returns when the node is ready.
    async fn start(vars: &[(&str, &str)]) -> Self {
        let [public, admin] = free_addresses();
        Self::of(command(public, admin, vars).spawn().unwrap(), public, admin).await
    }

    async fn of(child: Child, public: SocketAddr, admin: SocketAddr) -> Self {
        let process = Self { child, public, admin };
        eventually("the node is ready", PATIENCE, || process.answers(process.admin, "/readyz")).await;
        process
    }

    async fn answers(&self, address: SocketAddr, path: &str) -> bool {
        get(address, path).await.is_some_and(|text| text.starts_with("HTTP/1.1 200"))
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    async fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ended(child: &mut Child) -> ExitStatus {
    let child = std::cell::RefCell::new(child);
    let has_ended = || async { child.borrow_mut().try_wait().unwrap().is_some() };
    eventually("the process ends", PATIENCE, has_ended).await;
    let status = child.borrow_mut().wait().unwrap();
    status
}

/// The response to a request on a connection of its own.
async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    };
    timeout(Duration::from_secs(2), asking).await.ok()?.ok()
}

#[tokio::test]
async fn two_nodes_do_not_share_an_address() {
    let mut first = Process::start(&[]).await;
    let [public, admin] = free_addresses();
    for (public, admin, taken) in [(first.public, admin, first.public), (public, first.admin, first.admin)] {
        for workers in ["1", "3"] {
            let second = command(public, admin, &[("WORKERS", workers)]).output().unwrap();
            let told = String::from_utf8_lossy(&second.stderr).into_owned();
            assert_eq!(second.status.code(), Some(1), "{told}");
            assert!(told.contains(&format!("cannot listen on {taken}: ")), "{told}");
        }
    }
    // One that takes over the address must not wait for the connections of the former one.
    let connected = RawClient::connect(first.public, "/ws?user=a").await;
    first.signal("TERM");
    assert_eq!(first.ended().await.code(), Some(0));
    let again = command(first.public, first.admin, &[]).spawn().unwrap();
    let again = Process::of(again, first.public, first.admin).await;
    drop((connected, again));
}

#[tokio::test]
async fn a_closed_stdout_or_stderr_ends_nothing() {
    let [public, admin] = free_addresses();
    let mut child = command(public, admin, &[("LOG", "debug")]).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let mut process = Process::of(child, public, admin).await;
    for _ in 0..20 {
        assert!(process.answers(process.public, "/livez").await);
    }
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    for words in [&["config"][..], &["--help"], &["token", "alice"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_warren"));
        child.env_clear().env("WARREN_JWT_SECRET", "x".repeat(32)).args(words);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(ended(&mut child).await.code(), Some(0), "{words:?}");
    }
}

#[tokio::test]
async fn a_stderr_that_nobody_reads_blocks_nothing() {
    let mut process = Process::start(&[("LOG", "trace")]).await;
    let dropped = || async {
        assert!(process.answers(process.public, "/livez").await, "the node still answers");
        let metrics = get(process.admin, "/metrics").await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("warren_log_lines_dropped_total ")).unwrap();
        !line.ends_with(" 0")
    };
    eventually("the pipe is full", PATIENCE * 3, dropped).await;
    let mut client = RawClient::connect(process.public, "/ws?user=a").await;
    assert!(client.read_frame().await.is_some());
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn signals_drain_or_are_ignored() {
    for name in ["QUIT", "TERM", "INT"] {
        let mut process = Process::start(&[]).await;
        process.signal("HUP");
        let mut client = RawClient::connect(process.public, "/ws?user=a").await;
        assert!(process.answers(process.public, "/livez").await);
        process.signal(name);
        client.expect_close(4200).await;
        assert_eq!(process.ended().await.code(), Some(0), "{name}");
    }
}

#[tokio::test]
async fn a_panic_of_a_task_ends_the_process() {
    let [public, admin] = free_addresses();
    let mut child = command(public, admin, &[("TEST_PANIC", "1")]).spawn().unwrap();
    assert_eq!(ended(&mut child).await.code(), Some(70));
    let mut told = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut told).unwrap();
    assert!(told.contains("panicked") && told.contains("src/main.rs"), "{told}");
}

#[tokio::test]
async fn operators_get_an_answer_when_the_file_descriptors_are_used_up() {
    let [public, admin] = free_addresses();
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 256; exec \"$0\"", env!("CARGO_BIN_EXE_warren")]);
    configure(&mut limited, public, admin, &[]);
    let process = Process::of(limited.spawn().unwrap(), public, admin).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(TcpStream::connect(public).await.unwrap());
    }
    assert!(process.answers(admin, "/livez").await);
    assert!(process.answers(admin, "/readyz").await);
    drop(held);
    eventually("clients are served again", PATIENCE, || process.answers(public, "/livez")).await;
}
