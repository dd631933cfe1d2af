//! What one user and one address may use up: through all doors together, and no more with many sessions.

use futures_util::future::join_all;
use jsonwebtoken::{encode, get_current_timestamp, EncodingKey, Header};
use serde_json::json;

use crate::credentials::{answer, status, token};
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, CHECKED, JWT_SECRET, PATIENCE};
use crate::support::raw_ws::{close_code, RawClient, RawFrame, CLOSE, PING, PONG, TEXT};
use crate::support::user::User;

#[tokio::test]
async fn a_user_has_one_budget_through_all_doors() {
    let limits = [("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "6")];
    let cluster = Cluster::start(1, &[CHECKED, &limits].concat()).await;
    let alice = token("alice", 60, &[]);
    let api = cluster.api(0).with_token(&alice);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(User::with_token(cluster.ws(0), &alice).await);
    }
    let mut granted = 0;
    for _ in 0..5 {
        for session in &mut sessions {
            let reply = session.publish("user.bob", 1).await;
            granted += usize::from(reply["error"]["code"] != "rate_limited");
        }
        granted += usize::from(api.publish(&json!({"to": "user.bob", "payload": 1})).await.0 != 429);
    }
    // A bucket for each door would give 20; some seconds may have passed.
    assert!((6..=10).contains(&granted), "{granted} of 20");
    let mut bob = User::with_token(cluster.ws(0), &token("bob", 60, &[])).await;
    assert_eq!(
        bob.publish("user.bob", 1).await["outcome"],
        "delivered",
        "another user has a budget of their own"
    );
}

#[tokio::test]
async fn no_frame_is_free() {
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "100")]).await;
    let text = |body: String| RawFrame::new(TEXT, body).bytes();
    let many_ids: Vec<String> = (0..1_000).map(|at| format!("id{at}")).collect();
    for (name, path, frame, count) in [
        ("ping", "/ws", RawFrame::new(PING, "x").bytes(), 2_000),
        ("pong", "/ws", RawFrame::new(PONG, "x").bytes(), 2_000),
        ("nonsense", "/ws", text("{".into()), 2_000),
        ("ping request", "/ws", text(json!({"type": "ping"}).to_string()), 2_000),
        ("unsubscribe", "/ws", text(json!({"type": "unsubscribe", "channel": "c"}).to_string()), 2_000),
        ("refresh", "/ws", text(json!({"type": "refresh", "token": "x"}).to_string()), 2_000),
        ("ack", "/ws", text(json!({"type": "ack", "ids": ["x"]}).to_string()), 2_000),
        ("unknown ack", "/ws?ack=client", text(json!({"type": "ack", "ids": ["x"]}).to_string()), 2_000),
        ("empty ack", "/ws?ack=client", text(json!({"type": "ack", "ids": []}).to_string()), 2_000),
        (
            "many unknown acks",
            "/ws?ack=client",
            text(json!({"type": "ack", "ids": many_ids}).to_string()),
            150,
        ),
    ] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let user = name.replace(' ', "-");
        let mut client = RawClient::connect(cluster.ws(0), &format!("{path}{separator}user={user}")).await;
        client.send(&frame.repeat(count)).await;
        loop {
            let answer = client.read_frame().await.unwrap_or_else(|| panic!("{name}: no close frame"));
            if answer.opcode == CLOSE {
                assert_eq!(close_code(&answer.payload), Some(4101), "{name}");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_user_have_a_bound() {
    const MAX: usize = 5;
    let vars = [("SESSIONS_PER_USER", "5"), ("WORKERS", "2")];
    let cluster = Cluster::start(1, &[CHECKED, &vars].concat()).await;
    let (addr, alice) = (cluster.ws(0), token("alice", 60, &[]));
    // All at once, and told only after the handshake who they are: none of them could be refused before.
    let opened = join_all((0..4 * MAX).map(|_| User::open(addr, "/ws", &[]))).await;
    let auth = json!({"type": "auth", "token": alice}).to_string();
    let told = opened.into_iter().map(|mut user| async {
        user.say_text(&auth).await;
        user.welcome_or_end().await
    });
    let (mut inside, mut refused) = (Vec::new(), Vec::new());
    for told in join_all(told).await {
        match told {
            Ok(user) => inside.push(user),
            Err(end) => refused.push(end.code),
        }
    }
    assert_eq!((inside.len(), refused), (MAX, vec![4100; 3 * MAX]));
    let bearer = format!("Authorization: Bearer {alice}\r\n");
    assert_eq!(status(&answer(&cluster, "/ws", &bearer).await), 429);
    let mut bob = User::with_token(addr, &token("bob", 60, &[])).await;
    assert_eq!(bob.publish("user.alice", "hi").await["sessions"], MAX, "another user has room");
    inside.pop().unwrap().leave().await;
    let hub = cluster.nodes[0].router().hub();
    eventually("one is gone", PATIENCE, || async { hub.sessions() == MAX }).await;
    User::with_token(addr, &alice).await;
}

#[tokio::test]
async fn sessions_of_an_address_have_a_bound() {
    let vars = [("SESSIONS_PER_ADDRESS", "2"), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    let cluster = Cluster::start(1, &vars).await;
    let addr = cluster.ws(0);
    let open = |from: &'static str| async move {
        User::open(addr, "/ws?user=a", &[("x-forwarded-for", from)]).await
    };
    let kept = [open("10.0.0.1").await.welcomed().await, open("10.0.0.1").await.welcomed().await];
    let one_more = || answer(&cluster, "/ws?user=a", "X-Forwarded-For: 10.0.0.1\r\n");
    assert_eq!(status(&one_more().await), 429);
    let others = ["10.0.0.2", "2001:db8::1", "2001:db8::2"];
    let others = join_all(others.map(|from| async move { open(from).await.welcomed().await })).await;
    let lines = "X-Forwarded-For: 2001:db8::3\r\n";
    assert_eq!(status(&answer(&cluster, "/ws?user=a", lines).await), 429, "a /64 is one address");
    for _ in 0..3 {
        assert_eq!(status(&answer(&cluster, "/ws?user=a", "").await), 101, "a proxy alone is no client");
    }
    drop((kept, others));
    eventually("an address whose sessions are gone has room", PATIENCE, || async {
        status(&one_more().await) == 101
    })
    .await;
}

#[tokio::test]
async fn bad_tokens_of_an_address_are_limited_and_good_ones_are_not() {
    let cluster = Cluster::start(1, &[CHECKED, &[("TRUSTED_PROXIES", "127.0.0.0/8")]].concat()).await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let bad = format!("{}Authorization: Bearer a.b.c\r\n", from("10.0.0.1"));
    let mut statuses = Vec::new();
    for _ in 0..100 {
        statuses.push(status(&answer(&cluster, "/ws", &bad).await));
    }
    let first = statuses.iter().position(|status| *status == 429).expect("a limit");
    assert!((50..70).contains(&first), "{statuses:?}");
    let refused = statuses[first..].iter().filter(|status| **status == 429).count();
    assert!(statuses.iter().all(|status| [401, 429].contains(status)) && refused >= 15, "{statuses:?}");
    // The API has the same budget: a wrong key is no other thing than a wrong token.
    let api = cluster.api(0).request(reqwest::Method::GET, "/v1/nodes").bearer_auth("wrong");
    let mut told = 0;
    for _ in 0..20 {
        let request = api.try_clone().unwrap().header("x-forwarded-for", "10.0.0.1");
        told += usize::from(request.send().await.unwrap().status() == 429);
    }
    assert!(told >= 5, "{told} of 20");
    // So have sockets that bring the token in a frame.
    let mut codes = Vec::new();
    for _ in 0..20 {
        let mut user = User::open(cluster.ws(0), "/ws", &[("x-forwarded-for", "10.0.0.1")]).await;
        user.say_text(r#"{"type":"auth","token":"a.b.c"}"#).await;
        codes.push(user.end().await.code);
    }
    assert!(codes.contains(&4101) && codes.iter().all(|code| [4001, 4101].contains(code)), "{codes:?}");
    // Whoever shares the address and has a good token gets in, and others are not even slowed down.
    for address in ["10.0.0.1", "10.0.0.2"] {
        let good = format!("{}Authorization: Bearer {}\r\n", from(address), token("alice", 60, &[]));
        assert_eq!(status(&answer(&cluster, "/ws", &good).await), 101, "{address}");
    }
    let bad = format!("{}Authorization: Bearer a.b.c\r\n", from("10.0.0.2"));
    assert_eq!(status(&answer(&cluster, "/ws", &bad).await), 401);
}

#[tokio::test]
async fn a_token_that_has_expired_is_no_bad_one() {
    let cluster = Cluster::start(1, CHECKED).await;
    let claims = json!({"sub": "alice", "exp": get_current_timestamp() - 60});
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    let expired = encode(&Header::default(), &claims, &key).unwrap();
    let bearer = format!("Authorization: Bearer {expired}\r\n");
    for _ in 0..80 {
        assert_eq!(
            status(&answer(&cluster, "/ws", &bearer).await),
            401,
            "a client that is told so gets a new one"
        );
    }
}

#[tokio::test]
async fn a_refusal_is_the_same_whoever_it_is_about() {
    let cluster = Cluster::start(1, CHECKED).await;
    let alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    let mut mute = User::with_token(cluster.ws(0), &token("mute", 60, &["subscribe:channel.x"])).await;
    let strangers = ["session.n0~1", "session.nowhere~1"].map(str::to_owned);
    let alices_session = format!("session.{}", alice.session());
    for targets in [
        ["user.alice".to_owned(), "user.nobody".to_owned()],
        [alices_session, strangers[0].clone()],
        strangers,
    ] {
        let mut told = Vec::new();
        for target in &targets {
            told.push(mute.publish(target, 1).await["error"].take());
        }
        assert_eq!(told[0]["code"], "forbidden");
        assert_eq!(told[0], told[1], "{targets:?}");
    }
    let mut told = Vec::new();
    for name in ["alice", "nobody"] {
        told.push(mute.ask(json!({"type": "presence", "user": name})).await["error"].take());
    }
    assert_eq!((&told[0], &told[0]["code"]), (&told[1], &json!("forbidden")));
}

#[tokio::test]
async fn metrics_do_not_grow_with_users() {
    let cluster = Cluster::start(1, &[]).await;
    let admin = cluster.admin(0);
    let names = || async {
        let text =
            admin.request(reqwest::Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
        text.lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>()
    };
    let visit = |name: String| {
        let addr = cluster.ws(0);
        async move {
            let mut user = User::connect(addr, &name).await;
            user.publish(&format!("user.{name}"), 1).await;
            user.ask(json!({"type": "subscribe", "channel": name})).await;
            user.leave().await;
        }
    };
    visit("first".into()).await;
    let closed =
        || async { names().await.iter().any(|name| name.starts_with("warren_sessions_closed_total")) };
    eventually("the first one is counted", PATIENCE, closed).await;
    let before = names().await;
    join_all((0..200).map(|at| visit(format!("user{at}")))).await;
    assert_eq!(names().await, before);
}
