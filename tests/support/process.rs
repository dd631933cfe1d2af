//! The program as a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::eventually::eventually;
use super::nodes::PATIENCE;

pub struct Process {
    pub child: Child,
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// Two addresses that were free a moment ago.
pub fn free_addresses() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

pub fn command(public: SocketAddr, admin: SocketAddr, vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    configure(&mut command, public, admin, vars);
    command
}

pub fn configure(command: &mut Command, public: SocketAddr, admin: SocketAddr, vars: &[(&str, &str)]) {
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
    pub async fn start(vars: &[(&str, &str)]) -> Self {
        let [public, admin] = free_addresses();
        Self::of(command(public, admin, vars).spawn().unwrap(), public, admin).await
    }

    /// Returns at once, and the node may have yet to begin.
    pub fn spawn(vars: &[(&str, &str)]) -> Self {
        let [public, admin] = free_addresses();
        Self { child: command(public, admin, vars).spawn().unwrap(), public, admin }
    }

    pub async fn of(child: Child, public: SocketAddr, admin: SocketAddr) -> Self {
        let process = Self { child, public, admin };
        eventually("the node is ready", PATIENCE, || process.answers(process.admin, "/readyz")).await;
        process
    }

    pub async fn answers(&self, address: SocketAddr, path: &str) -> bool {
        get(address, path).await.is_some_and(|text| text.starts_with("HTTP/1.1 200"))
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub async fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn ended(child: &mut Child) -> ExitStatus {
    let child = std::cell::RefCell::new(child);
    let has_ended = || async { child.borrow_mut().try_wait().unwrap().is_some() };
    eventually("the process ends", PATIENCE, has_ended).await;
    let status = child.borrow_mut().wait().unwrap();
    status
}

/// The response to a request on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    };
    timeout(Duration::from_secs(2), asking).await.ok()?.ok()
}
