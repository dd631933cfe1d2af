//! Sessions that speak STOMP: frames over messages, refusals, limits, and what they share with other sessions.
//! `tests/stomp` runs the real clients.

use reqwest::Method;
use serde_json::json;

use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, CHECKED, PATIENCE};
use crate::support::stomp::{frame, StompClient};
use crate::support::user::User;

const CONNECT: &[&str] = &["accept-version:1.0,1.1,1.2", "login:alice"];

#[tokio::test]
async fn connecting_by_subprotocol_by_first_bytes_and_with_a_known_user() {
    let cluster = Cluster::start(1, &[]).await;
    let addr = cluster.ws(0);
    for (subprotocols, start) in
        [("v10.stomp, v11.stomp", ""), ("", ""), ("", "\r\n"), ("bearer.bob, v12.stomp", "")]
    {
        let mut client = StompClient::open(addr, "/ws", subprotocols).await;
        client.send_text(&format!("{start}{}", frame("STOMP", CONNECT, ""))).await;
        let connected = client.next("CONNECTED").await;
        assert_eq!((connected.get("version"), connected.get("heart-beat")), ("1.2", "0,0"));
        let user = if subprotocols.starts_with("bearer") { "bob" } else { "alice" };
        assert_eq!(connected.get("user-name"), user, "{subprotocols}");
    }
    for (lines, version, beats) in [
        (&["login:a"][..], "1.0", "0,0"),
        (&["login:a", "heart-beat:10000,10000"], "1.0", "0,0"),
        (&["login:a", "accept-version:1.1", "heart-beat:0,1"], "1.1", "5000,0"),
        (&["login:a", "accept-version:1.1,1.2", "heart-beat:1,4294967295"], "1.2", "60000,0"),
        (&["AUTHORIZATION:bearer a", "login:b", "accept-version:1.2", "host:any"], "1.2", "0,0"),
    ] {
        let mut client = StompClient::open(addr, "/ws", "v11.stomp").await;
        client.say("CONNECT", lines, "").await;
        let connected = client.next("CONNECTED").await;
        let got = (connected.get("version"), connected.get("heart-beat"), connected.get("user-name"));
        assert_eq!(got, (version, beats, "a"), "{lines:?}");
    }
}

#[tokio::test]
async fn who_may_not_connect_is_told_why() {
    let cluster = Cluster::start(1, CHECKED).await;
    for (first, code, part) in [
        (frame("CONNECT", &["accept-version:2.0", "passcode:x"], ""), 4000, "no common version"),
        (frame("CONNECT", &["heart-beat:x", "passcode:x"], ""), 4000, "heart-beat is two numbers"),
        (frame("CONNECT", &[], ""), 4001, "no credentials"),
        (frame("CONNECT", &["passcode:x"], ""), 4001, "invalid credentials"),
        (frame("CONNECT", &["Authorization:Basic x"], ""), 4001, "invalid credentials"),
        (frame("SEND", &["destination:/topic/x"], ""), 4001, "CONNECT comes first"),
        (frame("SEND", &["destination:/topic/x"], "body"), 1002, "after CONNECTED"),
        ("CONNECT\nx:".to_owned() + &"x".repeat(20_000), 1009, "longer than 16384 bytes"),
    ] {
        let mut client = StompClient::open(cluster.ws(0), "/ws", "").await;
        client.send_text(&first).await;
        let error = client.expect_error(code).await;
        assert!(error.get("message").contains(part), "{part}: {error:?}");
    }
    let cluster = Cluster::start(1, &[("AUTH_TIMEOUT_MS", "200")]).await;
    for subprotocols in ["v12.stomp", "v12.stomp, bearer.alice"] {
        let mut client = StompClient::open(cluster.ws(0), "/ws", subprotocols).await;
        assert_eq!(client.expect_error(4001).await.get("code"), "4001");
    }
}

#[tokio::test]
async fn frames_and_messages_have_nothing_to_do_with_each_other() {
    let cluster = Cluster::start(1, &[("MAX_MESSAGE_BYTES", "1024")]).await;
    let mut client = StompClient::open(cluster.ws(0), "/ws", "v12.stomp").await;
    let subscribe = frame("SUBSCRIBE", &["id:1", "destination:/topic/x", "receipt:s"], "");
    client.send_binary(format!("{}\n\n{subscribe}\n", frame("CONNECT", CONNECT, "")).as_bytes()).await;
    client.next("CONNECTED").await;
    client.receipt("s").await;
    let send =
        frame("SEND", &["destination:/topic/x", "content-length:7", "content-type:text/plain"], "ä\0\n€");
    for byte in send.as_bytes() {
        client.send_binary(&[*byte]).await;
    }
    assert_eq!(client.next("MESSAGE").await.body, "ä\0\n€");
    // In texts of any length, and larger than a message may be with its head.
    let body = "é".repeat(500);
    let send = frame("SEND", &["destination:/topic/x", &format!("a:{}", "x".repeat(500))], &body);
    for piece in send.chars().collect::<Vec<_>>().chunks(400) {
        client.send_text(&piece.iter().collect::<String>()).await;
    }
    assert_eq!(client.next("MESSAGE").await.body, body);
    for piece in
        [frame("SEND", &["destination:/topic/x"], &"x".repeat(900)).trim_end_matches('\0'), &"x".repeat(200)]
    {
        client.send_text(piece).await;
    }
    let error = client.expect_error(1009).await;
    assert_eq!(error.get("message"), "the body is longer than 1024 bytes");
}

#[tokio::test]
async fn what_cannot_be_carried_out_is_an_error_with_its_receipt() {
    let cluster = Cluster::start(1, &[("CHANNELS_PER_SESSION", "2")]).await;
    let subscribe = |lines: &[&str]| frame("SUBSCRIBE", lines, "");
    for (text, part) in [
        (subscribe(&["destination:/topic/x", "receipt:r"]), "SUBSCRIBE; id is missing"),
        (subscribe(&["id:9", "receipt:r"]), "destination is missing"),
        (subscribe(&["id:taken", "destination:/topic/y", "receipt:r"]), "with this id already"),
        (subscribe(&["id:9", "destination:/topic/y", "ack:never", "receipt:r"]), "ack is auto"),
        (subscribe(&["id:9", "destination:/topic/y", "selector:a = 1", "receipt:r"]), "selectors"),
        (subscribe(&["id:9", "destination:/topic/y", "durable:true", "receipt:r"]), "durable"),
        (subscribe(&["id:9", "destination:/topic/y", "x-queue-name:q", "receipt:r"]), "queues"),
        (subscribe(&["id:9", "destination:/topic/a.*", "receipt:r"]), "wildcards"),
        (
            subscribe(&[&format!("id:{}", "x".repeat(129)), "destination:/topic/y", "receipt:r"]),
            "longer than 128",
        ),
        (frame("UNSUBSCRIBE", &["destination:/topic/x", "receipt:r"], ""), "id is missing"),
        (frame("SEND", &["receipt:r"], ""), "destination is missing"),
        (frame("SEND", &["destination:/app/a*", "receipt:r"], ""), "application key"),
        (subscribe(&["id:9", "destination:/app/x", "receipt:r"]), "SEND to /app/<key>"),
        (frame("SEND", &["destination:/topic/x", "reply-to:/temp-queue/q", "receipt:r"], ""), "reply-to"),
        (frame("SEND", &["destination:/topic/x", "message-id:1", "receipt:r"], ""), "amqp-message-id"),
        (frame("SEND", &["destination:/topic/x", "expiration:soon", "receipt:r"], ""), "milliseconds"),
        (frame("SEND", &["destination:/topic/x", "content-type:application/json", "receipt:r"], "{"), "JSON"),
        (frame("SEND", &["destination:/topic/x", "transaction:t", "receipt:r"], ""), "transactions"),
        (frame("BEGIN", &["transaction:t", "receipt:r"], ""), "transactions"),
        (frame("ACK", &["receipt:r"], ""), "ACK; id is missing"),
        (frame("ACK", &["id:x", "receipt:r"], ""), "id is not the header ack"),
        (frame("CONNECT", &["receipt:r"], ""), "connected already"),
        (
            subscribe(&["id:8", "destination:/topic/y"])
                + &subscribe(&["id:9", "destination:/topic/z", "receipt:r"]),
            "at most 2 subscriptions",
        ),
    ] {
        let mut client = StompClient::connect(cluster.ws(0), "alice").await;
        client.subscribe("taken", "/topic/x", "auto").await;
        client.send_text(&text).await;
        let error = client.expect_error(4000).await;
        assert!(error.get("message").contains(part), "{text:?}: {error:?}");
        assert_eq!(
            (error.get("receipt-id"), error.get("code"), error.get("retry")),
            ("r", "bad_request", "false")
        );
    }
    let hub = cluster.nodes[0].router().hub();
    eventually("nothing is left of them", PATIENCE, || async { hub.sessions() == 0 }).await;
}

#[tokio::test]
async fn a_session_is_there_for_its_user_from_its_first_subscription_on() {
    let cluster = Cluster::start(2, &[]).await;
    let (api, hub) = (cluster.api(0), cluster.nodes[1].router().hub());
    let mut alice = StompClient::connect(cluster.ws(1), "alice").await;
    alice.subscribe("t", "/topic/x", "auto").await;
    let publish = |event: &'static str, payload: u32| {
        let api = &api;
        async move { api.publish(&json!({"to": "user.alice", "event": event, "payload": payload})).await.1 }
    };
    assert_eq!((hub.sessions(), hub.users()), (1, 0));
    assert_eq!(publish("news", 1).await["outcome"], "stored");
    assert_eq!(publish("other", 2).await["outcome"], "stored");
    alice.subscribe("n", "/user/queue/news", "auto").await;
    assert_eq!((hub.sessions(), hub.users()), (1, 1));
    let mail = alice.next("MESSAGE").await;
    assert_eq!(
        (mail.body.as_str(), mail.get("destination"), mail.get("subscription")),
        ("1", "/user/queue/news", "n")
    );
    // Mail that nobody asks for goes where somebody may look at it.
    eventually("the rest is dead", PATIENCE, || async {
        cluster.broker.dead().len() == 1 && cluster.broker.mail() == 0
    })
    .await;
    let dead = &cluster.broker.dead()[0];
    assert_eq!(dead.properties.header("warren-reason"), Some("declined"));
    assert_eq!(&dead.body[..], b"2");
    cluster.knows("alice", &[1]).await;
    let declined = publish("other", 3).await;
    assert_eq!((&declined["outcome"], &declined["error"]["code"]), (&json!("rejected"), &json!("declined")));
    // Another device takes it.
    let mut phone = User::connect(cluster.ws(0), "alice").await;
    assert_eq!(publish("other", 4).await["sessions"], 1);
    assert_eq!(phone.message().await["payload"], 4);
    phone.leave().await;
    alice.say("UNSUBSCRIBE", &["id:n", "receipt:u"], "").await;
    alice.receipt("u").await;
    assert_eq!((hub.sessions(), hub.users()), (1, 0));
    cluster.knows("alice", &[]).await;
    assert_eq!(publish("news", 5).await["outcome"], "stored");
    // Whoever is disconnected is disconnected, whatever it subscribes to.
    let (status, _) = api.delete("/v1/users/alice/sessions").await;
    assert_eq!(status, 200);
    assert_eq!(alice.expect_error(4005).await.get("reconnect"), "false");
    eventually("it is gone", PATIENCE, || async { hub.sessions() == 0 }).await;
}

#[tokio::test]
async fn messages_wait_for_the_second_subscription_of_a_page() {
    let cluster = Cluster::start(1, &[]).await;
    let api = cluster.api(0);
    for n in 0..100 {
        let message = json!({"to": "user.alice", "event": if n % 2 == 0 { "a" } else { "b" }, "payload": n});
        assert_eq!(api.publish(&message).await.1["outcome"], "stored");
    }
    let mut alice = StompClient::connect(cluster.ws(0), "alice").await;
    alice.subscribe("a", "/user/queue/a", "auto").await;
    // The mail has been read: one that is for the first subscription is there, and one for the second came before it.
    assert_eq!(
        (alice.next("MESSAGE").await.body, alice.next("MESSAGE").await.body),
        ("0".to_owned(), "2".to_owned())
    );
    alice.say("SUBSCRIBE", &["id:b", "destination:/user/queue/b"], "").await;
    let (mut a, mut b) = (vec![0, 2], Vec::new());
    while a.len() + b.len() < 100 {
        let message = alice.next("MESSAGE").await;
        let of = if message.get("subscription") == "a" { &mut a } else { &mut b };
        of.push(message.body.parse::<u32>().unwrap());
    }
    assert!(
        a.iter().copied().eq((0..100).step_by(2)) && b.iter().copied().eq((1..100).step_by(2)),
        "{a:?} {b:?}"
    );
    assert!(cluster.broker.dead().is_empty());
    // A session that ends takes nothing with it.
    let mut bob = StompClient::connect(cluster.ws(0), "bob").await;
    bob.subscribe("a", "/user/queue/a", "auto").await;
    let waiting = tokio::spawn(async move { api.publish(&json!({"to": "user.bob", "event": "b"})).await.1 });
    bob.say("DISCONNECT", &["receipt:d"], "").await;
    bob.receipt("d").await;
    bob.raw().expect_close(1000).await;
    assert_eq!(waiting.await.unwrap()["outcome"], "stored");
}

#[tokio::test]
async fn what_is_not_acknowledged_goes_to_whoever_comes_next() {
    let cluster = Cluster::start(1, &[]).await;
    let mut alice = StompClient::connect(cluster.ws(0), "alice").await;
    alice.subscribe("n", "/user/queue/n", "client-individual").await;
    let api = cluster.api(0);
    let fates: Vec<_> = (0..70)
        .map(|n| {
            let api = cluster.api(0);
            tokio::spawn(async move {
                api.publish(&json!({"to": "user.alice", "event": "n", "payload": n})).await.1["outcome"]
                    .clone()
            })
        })
        .collect();
    let mut shown = Vec::new();
    for _ in 0..64 {
        shown.push(alice.next("MESSAGE").await);
    }
    assert!(!fates.iter().any(|fate| fate.is_finished()));
    // A subscription to all does not get what another one is to acknowledge.
    alice.subscribe("any", "/user/queue/messages", "auto").await;
    alice.say("ACK", &[&format!("id:{}", shown[0].get("ack"))], "").await;
    let more = alice.next("MESSAGE").await;
    assert_eq!(more.get("subscription"), "n");
    alice.say("UNSUBSCRIBE", &["id:n", "receipt:u"], "").await;
    // What was not acknowledged comes by way of the mailbox, marked as a repeat where it was shown.
    let mut repeated = std::collections::BTreeSet::new();
    while repeated.len() < 69 {
        let next = alice.frame().await.unwrap();
        if next.command == "MESSAGE" {
            assert_eq!(next.get("subscription"), "any");
            repeated.insert(next.body.parse::<u32>().unwrap());
        }
    }
    let mut outcomes = Vec::new();
    for fate in fates {
        outcomes.push(fate.await.unwrap());
    }
    assert!(outcomes.iter().all(|outcome| *outcome == "stored" || *outcome == "delivered"), "{outcomes:?}");
    assert_eq!(api.publish(&json!({"to": "user.alice", "payload": 0})).await.1["outcome"], "delivered");
}

#[tokio::test]
async fn a_receipt_after_disconnect_comes_when_all_is_settled() {
    let cluster = Cluster::start(1, &[]).await;
    let mut bob = StompClient::connect(cluster.ws(0), "bob").await;
    bob.subscribe("n", "/user/queue/n", "client").await;
    let mut alice = StompClient::connect(cluster.ws(0), "alice").await;
    alice.say("SEND", &["destination:/user/bob/queue/n", "receipt:1"], "hi").await;
    let message = bob.next("MESSAGE").await;
    alice.say("DISCONNECT", &["receipt:2"], "").await;
    // Not to be answered any more.
    alice.say("SEND", &["destination:/topic/x", "receipt:3"], "").await;
    bob.say("ACK", &[&format!("id:{}", message.get("ack"))], "").await;
    let settled = alice.receipt("1").await;
    assert_eq!((settled.get("outcome"), settled.get("sessions")), ("delivered", "1"));
    alice.receipt("2").await;
    alice.raw().expect_close(1000).await;
}

#[tokio::test]
async fn more_than_the_rate_is_an_error_or_told_to_whoever_listens() {
    let cluster = Cluster::start(1, &[("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "3")]).await;
    let mut alice = StompClient::connect(cluster.ws(0), "alice").await;
    for n in 0..20 {
        alice.say("SEND", &["destination:/topic/x", &format!("receipt:{n}")], "").await;
    }
    // Receipts come when a message is settled, refusals at once.
    let error = loop {
        match alice.frame().await.unwrap() {
            frame if frame.command == "ERROR" => break frame,
            frame => assert_eq!(frame.command, "RECEIPT"),
        }
    };
    assert_eq!((error.get("code"), error.get("retry")), ("rate_limited", "true"));
    assert!(error.get("receipt-id").parse::<u32>().unwrap() >= 3, "{error:?}");
    alice.raw().expect_close(4101).await;

    // Heart-beats and parts of frames cost as much as frames; a flood of them ends.
    let mut flood = StompClient::connect(cluster.ws(0), "flood").await;
    flood.subscribe("e", "/user/queue/errors", "auto").await;
    for _ in 0..1_100 {
        flood.send_text("\n").await;
    }
    assert_eq!(flood.expect_error(4101).await.get("code"), "4101");

    let mut bob = StompClient::connect(cluster.ws(0), "bob").await;
    bob.subscribe("e", "/user/queue/errors", "auto").await;
    for n in 0..20 {
        bob.say("SEND", &["destination:/topic/x", &format!("receipt:{n}")], "").await;
    }
    let mut refused = 0;
    for _ in 0..20 {
        let frame = bob.frame().await.unwrap();
        refused += u32::from(frame.command == "MESSAGE" && frame.get("code") == "rate_limited");
    }
    assert!(refused >= 1, "and it is still there");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_others_do_not_notice() {
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let mut slow = StompClient::connect(cluster.ws(0), "slow").await;
    slow.subscribe("t", "/topic/x", "auto").await;
    let mut other = StompClient::connect(cluster.ws(0), "other").await;
    other.subscribe("t", "/topic/x", "auto").await;
    let api = cluster.api(0);
    let filler = "x".repeat(60_000);
    let reading = async {
        for _ in 0..200 {
            assert_eq!(other.next("MESSAGE").await.body.len(), filler.len() + 2);
        }
    };
    let writing = async {
        for _ in 0..200 {
            api.publish(&json!({"to": "channel.x", "payload": filler})).await;
        }
    };
    tokio::join!(reading, writing);
    let hub = cluster.nodes[0].router().hub();
    eventually("the slow one is gone", PATIENCE, || async { hub.sessions() == 1 }).await;
    let metrics =
        cluster.admin(0).request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(r#"warren_sessions_closed_total{code="4102"} 1"#), "{metrics}");
    drop(slow);
}

#[tokio::test]
async fn a_gap_and_the_end_of_a_subscription_are_told_to_whoever_listens() {
    let cluster = Cluster::start(1, &[]).await;
    let mut alice = StompClient::connect(cluster.ws(0), "alice").await;
    alice.subscribe("g", "/user/queue/gaps", "auto").await;
    alice.subscribe("e", "/user/queue/errors", "auto").await;
    alice.subscribe("t", "/topic/x", "auto").await;
    let mut deaf = StompClient::connect(cluster.ws(0), "alice").await;
    deaf.subscribe("t", "/topic/x", "auto").await;
    let api = cluster.api(0);
    // Only the client can subscribe, since it names the subscription.
    let (_, answer) = Api::send(api.request(Method::PUT, "/v1/users/alice/channels/y")).await;
    assert_eq!(answer["subscribed"], 0, "{answer}");
    assert_eq!(answer["sessions"].as_array().unwrap().len(), 2);
    let (status, _) = api.delete("/v1/users/alice/channels/x").await;
    assert_eq!(status, 200);
    let told = alice.next("MESSAGE").await;
    let words = (told.get("code"), told.get("of-subscription"), told.get("destination"));
    assert_eq!(words, ("unsubscribed", "t", "/user/queue/errors"));
    assert_eq!(deaf.expect_error(4003).await.get("code"), "forbidden");

    let node = cluster.nodes[0].id().clone();
    cluster.broker.cut(&node);
    cluster.broker.restore(&node);
    let gap = alice.next("MESSAGE").await;
    assert_eq!((gap.get("destination"), gap.body.contains("reason")), ("/user/queue/gaps", true));
}

#[tokio::test]
async fn an_unfinished_frame_is_not_waited_for() {
    let cluster = Cluster::start(1, &[("PING_INTERVAL_MS", "1000")]).await;
    let mut alice = StompClient::connect(cluster.ws(0), "alice").await;
    alice.send_text("SEND\ndestination:/topic/x\n\nbegun").await;
    assert_eq!(alice.expect_error(1002).await.get("code"), "1002");
}
