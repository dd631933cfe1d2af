//! Limits of one session: bytes that wait for it, acknowledgements, requests, and the time before it has a user.
//!
//! Messages are handed straight to the hub, so that a test decides how many are on their way to a session.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{timeout, Instant};
use warren::clock::Now;
use warren::hub::{Hub, Tally, TallyView};
use warren::ids::UserId;
use warren::protocol::close::CloseCode;
use warren::protocol::message::{Rendered, Sender};
use warren::protocol::publish::PublishRequest;

use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, PATIENCE};
use crate::support::raw_ws::{close_code, upgrade_request, RawClient, RawFrame, CLOSE, PONG, TEXT};
use crate::support::user::User;

fn message(id: &str, bytes: usize) -> Arc<Rendered> {
    let text = format!(r#"{{"to":"user.alice","message_id":"{id}","payload":"{}"}}"#, "x".repeat(bytes));
    let request = PublishRequest::parse(&text).unwrap();
    let sender = Sender::Service { service: "test".into() };
    Rendered::new(Arc::new(request.into_message(sender, Now::read()).unwrap()))
}

/// A message on its way to the sessions of a user.
struct OnItsWay {
    view: TallyView,
    /// A session has taken it, or the last one has not.
    first: mpsc::Receiver<()>,
    all: oneshot::Receiver<u32>,
}

impl OnItsWay {
    async fn to(hub: &Hub, user: &str, message: &Arc<Rendered>) -> Self {
        let user = UserId::new(user).unwrap();
        let (tell_first, first) = mpsc::channel(8);
        let (tell_all, all) = oneshot::channel();
        let tell = tell_first.clone();
        let (tally, view) = Tally::new(
            Some(Box::new(move || {
                let _ = tell.try_send(());
            })),
            move |taken| {
                let _ = tell_first.try_send(());
                let _ = tell_all.send(taken.sessions);
            },
        );
        loop {
            match hub.reserve_user(&user) {
                Ok(reservation) => {
                    reservation.deliver(message, tally);
                    return Self { view, first, all };
                }
                Err(full) => hub.room(full).await,
            }
        }
    }

    async fn first(&mut self) -> u32 {
        timeout(PATIENCE, self.first.recv()).await.expect("a session takes it").unwrap();
        self.view.taken()
    }

    async fn all(self) -> u32 {
        timeout(PATIENCE, self.all).await.expect("every session takes it or ends").unwrap()
    }
}

/// A session that reads nothing, with a small window so that this shows early.
async fn stuck(cluster: &Cluster, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(cluster.ws(0)).await.unwrap();
    stream.write_all(upgrade_request(path, "").as_bytes()).await.unwrap();
    stream
}

async fn holds(cluster: &Cluster, sessions: usize) {
    let hub = cluster.nodes[0].router().hub();
    eventually("the node holds its sessions", PATIENCE, || async { hub.sessions() == sessions }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_devices_only_the_one_that_does_not_read_is_closed() {
    const COUNT: usize = 300;
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let _stuck = stuck(&cluster, "/ws?user=alice").await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    holds(&cluster, 2).await;
    let sending = async {
        let hub = cluster.nodes[0].router().hub();
        for at in 0..COUNT {
            let mut sent = OnItsWay::to(hub, "alice", &message(&format!("m{at}"), 60_000)).await;
            assert!(sent.first().await >= 1);
        }
    };
    let reading = async {
        for at in 0..COUNT {
            assert_eq!(alice.message().await["id"], format!("m{at}"));
        }
    };
    tokio::join!(sending, reading);
    holds(&cluster, 1).await;
    let metrics = cluster.admin(0).request(reqwest::Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains(r#"warren_sessions_closed_total{code="4102"} 1"#), "{metrics}");
    alice.leave().await;
}

#[tokio::test]
async fn a_message_above_the_outbox_reaches_a_client_that_reads() {
    const LARGE: usize = 8 << 20;
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    for path in ["/ws?user=alice", "/ws?user=alice&ack=client"] {
        let mut alice = RawClient::connect(cluster.ws(0), path).await;
        holds(&cluster, 1).await;
        let hub = cluster.nodes[0].router().hub();
        let sent = OnItsWay::to(hub, "alice", &message("large", LARGE)).await;
        // A request and its reply fit behind it.
        alice.send_frame(&RawFrame::new(TEXT, r#"{"type":"ping","id":1}"#)).await;
        let (mut large, mut replies) = (0, 0);
        while large + replies < 2 {
            let frame = alice.read_frame().await.expect("an open session");
            let text = String::from_utf8_lossy(&frame.payload);
            large += usize::from(frame.payload.len() > LARGE);
            replies += usize::from(text.contains(r#""type":"reply""#));
        }
        alice.send_frame(&RawFrame::new(TEXT, r#"{"type":"ack","ids":["large"]}"#)).await;
        assert_eq!(sent.all().await, 1);
        drop(alice);
        holds(&cluster, 0).await;
    }
}

#[tokio::test]
async fn what_waits_for_acknowledgements_is_bounded_by_bytes_and_never_missed_silently() {
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let mut alice = User::open(cluster.ws(0), "/ws?user=alice&ack=client", &[]).await.welcomed().await;
    let hub = cluster.nodes[0].router().hub();
    // Far more than the window of 64, and far less than the bound of bytes.
    let mut sent = Vec::new();
    for at in 0..200 {
        sent.push(OnItsWay::to(hub, "alice", &message(&format!("m{at}"), 10)).await);
    }
    for at in 0..200 {
        let id = alice.message().await["id"].take();
        assert_eq!(id, format!("m{at}"));
        alice.say_text(&json!({"type": "ack", "ids": [id]}).to_string()).await;
    }
    for sent in sent {
        assert_eq!(sent.all().await, 1);
    }
    // Ten messages of 60 kB are more than may wait behind the one that is unacknowledged.
    let mut sent = Vec::new();
    for at in 0..10 {
        sent.push(OnItsWay::to(hub, "alice", &message(&format!("l{at}"), 60_000)).await);
    }
    alice.expect_close(4102).await;
    for sent in sent {
        assert_eq!(sent.all().await, 0, "not acknowledged, so not taken");
    }
}

#[tokio::test]
async fn acknowledgements_count_while_the_session_is_being_closed() {
    let cluster = Cluster::start(1, &[]).await;
    let mut alice = RawClient::connect(cluster.ws(0), "/ws?user=alice&ack=client").await;
    holds(&cluster, 1).await;
    let hub = cluster.nodes[0].router().hub();
    let mut sent = Vec::new();
    for at in 0..3 {
        sent.push(OnItsWay::to(hub, "alice", &message(&format!("m{at}"), 10)).await);
    }
    let (tally, _) = Tally::new(None, |_| ());
    hub.reserve_user(&UserId::new("alice").unwrap()).unwrap().close(CloseCode::Kicked, tally);
    loop {
        let frame = alice.read_frame().await.expect("a close frame");
        if frame.opcode == CLOSE {
            assert_eq!(close_code(&frame.payload), Some(4005));
            break;
        }
    }
    // Not a close frame in answer: the acknowledgements were on their way.
    alice.send_frame(&RawFrame::new(TEXT, r#"{"type":"ack","ids":["m0","m2"]}"#)).await;
    for (sent, expected) in sent.into_iter().zip([1, 0, 1]) {
        assert_eq!(sent.all().await, expected);
    }
}

/// Sends `block` again and again until the session is closed; returns the code.
async fn flood(client: &mut RawClient, block: &[u8]) -> Option<u16> {
    client.send(block).await;
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "not closed");
        let frame = client.read_frame().await.expect("a close frame comes first");
        if frame.opcode == CLOSE {
            return close_code(&frame.payload);
        }
    }
}

#[tokio::test]
async fn useless_acknowledgements_and_pongs_are_limited_like_requests() {
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "100")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let unknown = |count: usize| {
        let ids: Vec<_> = (0..count).map(|at| format!("u{at}")).collect();
        RawFrame::new(TEXT, json!({"type": "ack", "id": 1, "ids": ids}).to_string()).bytes()
    };
    for (block, what) in [
        (unknown(1).repeat(3_000), "unknown ids"),
        (unknown(0).repeat(3_000), "no ids"),
        (unknown(1_024).repeat(1_200), "many unknown ids"),
        (RawFrame::new(PONG, "x").bytes().repeat(3_000), "pongs"),
    ] {
        let mut mean = RawClient::connect(cluster.ws(0), "/ws?user=mean&ack=client").await;
        let flooding = flood(&mut mean, &block);
        let asking = async {
            let mut worst = Duration::ZERO;
            for _ in 0..20 {
                let began = Instant::now();
                alice.ask(json!({"type": "ping"})).await;
                worst = worst.max(began.elapsed());
            }
            worst
        };
        let (code, worst) = tokio::join!(flooding, asking);
        assert_eq!(code, Some(4101), "{what}");
        assert!(worst < Duration::from_secs(2), "{what}: {worst:?}");
    }
    // Another user: the first one's budget is used up.
    let mut mean = User::open(cluster.ws(0), "/ws?user=other&ack=client", &[]).await.welcomed().await;
    let ids = vec!["u"; 1_025];
    let reply = mean.ask(json!({"type": "ack", "ids": ids})).await;
    assert_eq!(reply["error"]["code"], "bad_request", "{reply}");
}

#[tokio::test]
async fn acknowledgements_of_what_was_delivered_are_free() {
    const COUNT: usize = 300;
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "1")]).await;
    let mut alice = User::open(cluster.ws(0), "/ws?user=alice&ack=client", &[]).await.welcomed().await;
    let hub = cluster.nodes[0].router().hub();
    for at in 0..COUNT {
        let sent = OnItsWay::to(hub, "alice", &message(&format!("m{at}"), 10)).await;
        let id = alice.message().await["id"].take();
        alice.say_text(&json!({"type": "ack", "ids": [id]}).to_string()).await;
        assert_eq!(sent.all().await, 1);
    }
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
    assert!(alice.kept("reply").is_empty());
}

#[tokio::test]
async fn sessions_without_a_user_are_bounded() {
    let cluster = Cluster::start(1, &[("UNAUTHENTICATED_MAX", "3"), ("WORKERS", "1")]).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(User::open(cluster.ws(0), "/ws", &[]).await);
    }
    let mut refused = User::open(cluster.ws(0), "/ws", &[]).await;
    let disconnect = refused.expect_close(4100).await;
    assert_eq!(disconnect["reconnect"], json!(true));
    // One that has its user at the handshake is not concerned, and makes no room.
    User::connect(cluster.ws(0), "bob").await.leave().await;
    let mut alice = waiting.pop().unwrap();
    alice.say_text(r#"{"type":"auth","token":"alice"}"#).await;
    let welcome = alice.next("welcome").await;
    assert_eq!(welcome["user"], Value::from("alice"));
    drop(waiting);
    // Those that leave without a word make room too.
    eventually("there is room again", PATIENCE, || async {
        let mut carol = User::open(cluster.ws(0), "/ws", &[]).await;
        carol.say_text(r#"{"type":"auth","token":"carol"}"#).await;
        carol.say_text(r#"{"type":"ping"}"#).await;
        carol.reply_or_end().await.is_ok()
    })
    .await;
}
