//! The program as a process: addresses, streams, signals, file descriptors, its end.

use std::process::{Command, Stdio};

use tokio::net::TcpStream;

use crate::support::eventually::eventually;
use crate::support::nodes::PATIENCE;
use crate::support::process::{command, configure, ended, free_addresses, get, Process};
use crate::support::raw_ws::RawClient;

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
