//! One socket's life: welcome, requests, limits, and how it is closed.

use std::time::Duration;

use serde_json::{json, Value};
use tokio::time::Instant;
use tungstenite::Message;
use warren::ids::SessionId;

use crate::support::eventually::eventually;
use crate::support::nodes::{node_id, Cluster};
use crate::support::raw_ws::{
    header, upgrade_request, Length, RawClient, RawFrame, CONTINUATION, PING, PONG, TEXT,
};
use crate::support::user::User;

#[tokio::test]
async fn welcome_tells_who_where_and_how_much() {
    let cluster =
        Cluster::start(1, &[("MESSAGE_RATE", "7"), ("IN_FLIGHT_PER_SESSION", "9"), ("WORKERS", "2")]).await;
    let user = User::connect(cluster.ws(0), "Zo%C3%AB").await;
    let welcome = &user.welcome;
    assert_eq!((&welcome["user"], &welcome["node"]), (&json!("Zoë"), &json!("n0")));
    assert!(user.session().starts_with("n0~"), "{welcome}");
    assert_eq!(welcome["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(welcome["ping_interval"], 25);
    let limits = json!({"message_bytes": 65_536, "publishes_per_second": 7, "in_flight": 9});
    assert_eq!(welcome["limits"], limits);
}

#[tokio::test]
async fn a_request_gets_its_own_id_back_as_the_client_wrote_it() {
    let cluster = Cluster::start(1, &[]).await;
    let mut user = User::connect(cluster.ws(0), "alice").await;
    for id in ["\"a\\u0041\"", "1.50", "-3", "\"\"", "null"] {
        user.say_text(&format!(r#"{{"type":"ping","id":{id}}}"#)).await;
        let reply = user.next("reply").await;
        assert_eq!(reply["id"], serde_json::from_str::<Value>(id).unwrap());
        assert_eq!(reply["outcome"], "ok");
    }
    user.leave().await;
}

#[tokio::test]
async fn nonsense_is_answered_and_the_session_lives_on() {
    let cluster = Cluster::start(1, &[]).await;
    let mut user = User::connect(cluster.ws(0), "alice").await;
    let deep = format!(
        r#"{{"type":"publish","id":"x","to":"user.alice","payload":{}{}}}"#,
        "[".repeat(65),
        "]".repeat(65)
    );
    let deepest = format!(r#"{{"type":"ping","x":{}"#, "[".repeat(30_000));
    let long_id = format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(200));
    let long_user = format!(r#"{{"type":"publish","id":"x","to":"user.{}"}}"#, "x".repeat(129));
    for (text, id) in [
        ("{", Value::Null),
        ("not json", Value::Null),
        ("[]", Value::Null),
        ("{}", Value::Null),
        (r#"{"type":"ping","id":1,"id":2}"#, Value::Null),
        (r#"{"type":"ping","id":{"deep":1}}"#, Value::Null),
        (r#"{"type":"ping","id":true}"#, Value::Null),
        (&long_id, Value::Null),
        (&deepest, Value::Null),
        (&deep, json!("x")),
        (&long_user, json!("x")),
        (r#"{"type":"dance","id":3}"#, json!(3)),
        (r#"["ping",3]"#, Value::Null),
        (r#"{"type":"subscribe","id":3,"channel":""}"#, json!(3)),
        (r#"{"type":"publish","id":4}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":5}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"users.alice"}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user."}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user.a\u0000b"}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"session.n0"}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"session.n0~ZZ"}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user.alice","ttl":-1}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user.alice","ttl":1e300}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user.alice","delivery":"twice"}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user.alice","message_id":""}"#, json!(4)),
        (r#"{"type":"publish","id":4,"to":"user.alice","event":"a\nb"}"#, json!(4)),
        (r#"{"type":"auth","id":5,"token":"root"}"#, json!(5)),
        (r#"{"type":"ack","id":6,"ids":[]}"#, json!(6)),
    ] {
        user.say_text(text).await;
        let reply = user.next("reply").await;
        let shown = &text[..text.len().min(80)];
        assert_eq!((&reply["id"], &reply["error"]["code"]), (&id, &json!("bad_request")), "{shown}: {reply}");
        assert_eq!(reply["error"]["retry"], false);
    }
    assert_eq!(user.publish("user.alice", "still here").await["outcome"], "delivered");
    assert_eq!(user.message().await["payload"], "still here");
}

#[tokio::test]
async fn what_cannot_be_warren_v1_closes_the_session() {
    let cluster = Cluster::start(1, &[]).await;
    let mut user = User::connect(cluster.ws(0), "alice").await;
    user.say(Message::binary(vec![1, 2, 3])).await;
    let disconnect = user.expect_close(4000).await;
    assert_eq!(disconnect["reconnect"], false);

    let mut user = User::connect(cluster.ws(0), "alice").await;
    user.say_text(&" ".repeat(65_537)).await;
    user.expect_close(1009).await;
}

#[tokio::test]
async fn an_announced_length_is_refused_before_it_is_sent() {
    let cluster = Cluster::start(1, &[]).await;
    let mut client = RawClient::connect(cluster.ws(0), "/ws?user=alice").await;
    let mut head = RawFrame::new(TEXT, "");
    head.length = Length::Claimed(64 << 20);
    client.send_frame(&head).await;
    client.expect_close(1009).await;
}

#[tokio::test]
async fn more_than_the_rate_is_refused_and_passes_later() {
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "20"), ("MESSAGE_BURST", "5")]).await;
    let mut user = User::connect(cluster.ws(0), "alice").await;
    for _ in 0..20 {
        user.request(json!({"type": "ping"})).await;
    }
    let mut refused = 0;
    for _ in 0..20 {
        let reply = user.next("reply").await;
        if !reply["error"].is_null() {
            refused += 1;
            let error = (&reply["error"]["code"], &reply["error"]["retry"]);
            assert_eq!(error, (&json!("rate_limited"), &json!(true)), "{reply}");
        }
    }
    assert!((10..=15).contains(&refused), "{refused} of 20 refused");
    let end = Instant::now() + Duration::from_secs(2);
    while user.ask(json!({"type": "ping"})).await["outcome"] != "ok" {
        assert!(Instant::now() < end, "no token in two seconds");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn more_in_flight_than_allowed_is_refused() {
    let cluster = Cluster::start(2, &[("IN_FLIGHT_PER_SESSION", "3"), ("RECEIPT_TIMEOUT_MS", "500")]).await;
    let _alice = User::connect(cluster.ws(1), "alice").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    cluster.knows("alice", &[1]).await;
    cluster.broker.freeze(cluster.nodes[1].id(), true);
    for payload in 0..5 {
        bob.request(json!({"type": "publish", "to": "user.alice", "payload": payload})).await;
    }
    for id in [4, 5] {
        let reply = bob.reply_to(id).await;
        let error = (&reply["error"]["code"], &reply["error"]["retry"]);
        assert_eq!(error, (&json!("overloaded"), &json!(true)), "{reply}");
    }
    for _ in 0..3 {
        assert_eq!(bob.next("reply").await["outcome"], "stored");
    }
    cluster.broker.freeze(cluster.nodes[1].id(), false);
    assert_eq!(bob.publish("user.bob", "room again").await["outcome"], "delivered");
}

#[tokio::test]
async fn a_kick_over_http_reaches_any_node() {
    let cluster = Cluster::start(2, &[]).await;
    let mut one = User::connect(cluster.ws(1), "alice").await;
    let mut other = User::connect(cluster.ws(1), "alice").await;
    let mut third = User::connect(cluster.ws(0), "alice").await;
    let api = cluster.api(0);
    let (status, body) = api.delete(&format!("/v1/sessions/{}", one.session())).await;
    assert_eq!((status, &body["closed"], &body["partial"]), (200, &json!(1), &json!(false)), "{body}");
    let disconnect = one.expect_close(4005).await;
    assert_eq!(disconnect["reconnect"], false);
    assert_eq!(other.ask(json!({"type": "ping"})).await["outcome"], "ok");
    let hub = cluster.nodes[1].router().hub();
    let soon = Duration::from_millis(500);
    eventually("the closed session is gone, its client's socket open or not", soon, || async {
        hub.sessions() == 1
    })
    .await;

    let (status, body) = api.delete("/v1/users/alice/sessions").await;
    assert_eq!((status, &body["closed"]), (200, &json!(2)), "{body}");
    other.expect_close(4005).await;
    third.expect_close(4005).await;
    cluster.knows("alice", &[]).await;

    let (status, body) = api.delete(&format!("/v1/sessions/{}", one.session())).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")), "{body}");
}

#[tokio::test]
async fn more_sessions_than_allowed_are_refused_until_one_leaves() {
    let cluster = Cluster::start(1, &[("MAX_SESSIONS", "3")]).await;
    // A socket that says who it is only later must not get past the limit.
    let mut late = User::open(cluster.ws(0), "/ws", &[]).await;
    let mut users = Vec::new();
    for at in 0..3 {
        users.push(User::connect(cluster.ws(0), &format!("user{at}")).await);
    }
    let request = upgrade_request("/ws?user=late", "");
    let (head, _) = RawClient::request(cluster.ws(0), &request).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(header(&head, "retry-after"), Some("1"));
    late.say_text(r#"{"type":"auth","token":"late"}"#).await;
    late.expect_close(4100).await;
    users.pop().unwrap().leave().await;
    cluster.knows("user2", &[]).await;
    User::connect(cluster.ws(0), "late").await.leave().await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_closed() {
    let cluster = Cluster::start(1, &[("PING_INTERVAL_MS", "100"), ("PONG_TIMEOUT_MS", "200")]).await;
    let mut silent = RawClient::connect(cluster.ws(0), "/ws?user=silent").await;
    let mut answering = RawClient::connect(cluster.ws(0), "/ws?user=answering").await;
    let mut pongs = 0;
    let began = Instant::now();
    while pongs < 5 {
        let frame = answering.read_frame().await.expect("an open session");
        if frame.opcode == PING {
            answering.send_frame(&RawFrame::new(PONG, frame.payload)).await;
            pongs += 1;
        }
    }
    silent.expect_close(4104).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    answering.send_frame(&RawFrame::new(TEXT, r#"{"type":"ping","id":1}"#)).await;
    loop {
        let frame = answering.read_frame().await.expect("an open session");
        if frame.opcode == TEXT && String::from_utf8_lossy(&frame.payload).contains("reply") {
            break;
        }
    }
}

#[tokio::test]
async fn a_message_that_is_never_finished_ends_the_session() {
    let cluster = Cluster::start(1, &[("PING_INTERVAL_MS", "1000")]).await;
    let mut client = RawClient::connect(cluster.ws(0), "/ws?user=slow").await;
    client.send_frame(&RawFrame::new(TEXT, "{").more()).await;
    let began = Instant::now();
    loop {
        let frame = client.read_frame().await.expect("a close frame");
        match frame.opcode {
            PING => {
                // It shows signs of life, and goes on a little: that must not help.
                client.send_frame(&RawFrame::new(PONG, frame.payload)).await;
                client.send_frame(&RawFrame::new(CONTINUATION, " ").more()).await;
            }
            TEXT => assert!(began.elapsed() < Duration::from_secs(15)),
            _ => break,
        }
    }
    let lasted = began.elapsed();
    assert!((9..16).contains(&lasted.as_secs()), "{lasted:?}");
}

#[tokio::test]
async fn a_session_id_tells_nothing_about_the_next_one() {
    const COUNT: usize = 40;
    let cluster = Cluster::start(1, &[]).await;
    let mut users = Vec::new();
    for at in 0..COUNT {
        users.push(User::connect(cluster.ws(0), &format!("user{at}")).await);
    }
    let number = |user: &User| u64::from_str_radix(user.session().strip_prefix("n0~").unwrap(), 36).unwrap();
    let numbers: Vec<u64> = users.iter().map(number).collect();
    let mut steps: Vec<u64> = numbers.windows(2).map(|two| two[1].wrapping_sub(two[0])).collect();
    steps.sort_unstable();
    steps.dedup();
    assert_eq!(steps.len(), COUNT - 1, "no step comes twice: {numbers:?}");
    // What counting on from an own id would give: neighbours, and the step to the next one.
    let own = numbers[0];
    let step = numbers[1].wrapping_sub(own);
    let near = (1..50u64).flat_map(|by| [own.wrapping_add(by), own.wrapping_sub(by), own ^ (1 << by)]);
    for guess in near.chain((2..50).map(|by| own.wrapping_add(step.wrapping_mul(by)))) {
        let id = SessionId { node: node_id("n0"), number: guess };
        let reply = users[0].publish(&format!("session.{id}"), 1).await;
        assert_eq!(reply["error"]["code"], "offline", "{id}: {reply}");
    }
    // Those who know an id reach it.
    let id = users[COUNT - 1].session().to_owned();
    assert_eq!(users[0].publish(&format!("session.{id}"), "hi").await["outcome"], "delivered");
    assert_eq!(users[COUNT - 1].message().await["payload"], "hi");
}
