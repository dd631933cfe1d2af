//! Secrets and contents stay out of everything that the program writes: a marked one of each kind, and a log of all levels.

use serde_json::{json, Value};

use crate::credentials::signed_by;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::PATIENCE;
use crate::support::process::Process;
use crate::support::raw_ws::{upgrade_request, RawClient, RawFrame, TEXT};
use crate::support::user::User;

/// Stands in every secret, and in nothing else.
const MARK: &str = "cAnArY";
/// Before a ticket that was used, among the answers.
const TICKET: &str = "ticket ";

/// What the process writes, read by a thread so that it never waits.
fn reader(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

#[tokio::test]
async fn no_secret_and_no_content_is_in_a_log_a_metric_or_an_answer() {
    let secret = format!("the-secret-{MARK}-that-signs-tokens");
    let key = format!("the-key-{MARK}-of-a-service");
    // Nobody listens there: what goes wrong with the broker is logged as well.
    let broker = format!("amqp://warren:{MARK}@127.0.0.1:1/%2f");
    let vars = [
        ("JWT_SECRET", secret.as_str()),
        ("API_KEYS", &format!("orders={key}")),
        ("LOG", "trace"),
        ("SOCKJS", "all"),
        ("LOG_FORMAT", "json"),
    ];
    for with_broker in [false, true] {
        let broker = [("AMQP_URL", broker.as_str())];
        let vars = [&vars[..], if with_broker { &broker } else { &[] }].concat();
        let mut process = Process::spawn(&vars);
        let (log, terminal) =
            (reader(process.child.stderr.take().unwrap()), reader(process.child.stdout.take().unwrap()));
        eventually("it lives", PATIENCE, || process.answers(process.public, "/livez")).await;
        let mut answers = match with_broker {
            false => say_everything(&process, &secret, &key).await,
            true => vec![refuse_everything(&process, &key).await],
        };
        let ticket = answers.iter().position(|answer| answer.starts_with(TICKET));
        let ticket = ticket.map(|at| answers.remove(at).split_off(TICKET.len()));
        let metrics = Api::new(process.admin).request(reqwest::Method::GET, "/metrics");
        let metrics = metrics.send().await.unwrap().text().await.unwrap();
        process.signal("TERM");
        process.ended().await;
        let log = log.join().unwrap();
        assert!(log.lines().count() > 20, "a log of all levels:\n{log}");
        for line in log.lines() {
            let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(parsed["level"].is_string(), "{line}");
        }
        let terminal = terminal.join().unwrap();
        let all = [&[("log", log), ("terminal", terminal), ("metrics", metrics)][..]].concat();
        for (what, text) in
            all.iter().map(|(what, text)| (*what, text)).chain(answers.iter().map(|text| ("answer", text)))
        {
            let holds_ticket = |line: &str| {
                ticket.as_ref().is_some_and(|ticket| line.contains(&ticket[ticket.len() - 32..]))
            };
            let found =
                text.lines().find(|line| line.contains(MARK) || line.contains("eyJ") || holds_ticket(line));
            assert_eq!(found, None, "in the {what}");
        }
    }
}

/// Good and bad secrets through every door, and marked contents; returns what was answered to bad ones.
async fn say_everything(process: &Process, secret: &str, key: &str) -> Vec<String> {
    let good = signed_by(secret, "alice", 600, &[]);
    let mut alice = User::with_token(process.public, &good).await;
    let reply = alice.publish("user.alice", MARK).await;
    assert_eq!(reply["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], MARK);
    alice.ask(json!({"type": "refresh", "token": signed_by(secret, "alice", 60, &[])})).await;
    alice.ask(json!({"type": "publish", "to": "user.bob", "event": MARK, "payload": {MARK: 1}})).await;
    let api = Api::new(process.public);
    let body = json!({"to": "user.alice", "payload": MARK});
    assert_eq!(api.with_token(key).publish(&body).await.0, 200);
    assert_eq!(alice.message().await["from"]["service"], "orders");
    // The name of a session over HTTP, which is as good as a token.
    for transport in ["xhr", "xhr_send", "xhr"] {
        let path = format!("/sockjs/000/a-name-{MARK}/{transport}");
        let auth = json!([json!({"type": "auth", "token": good}).to_string()]).to_string();
        api.request(reqwest::Method::POST, &path).body(auth).send().await.unwrap();
    }
    let mut answers = Vec::new();
    // A good ticket, twice; its own text is the mark.
    let ticket = Api::send(api.with_token(&good).request(reqwest::Method::POST, "/v1/tickets")).await.1;
    let ticket = ticket["ticket"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        let request = upgrade_request(&format!("/ws?ticket={ticket}"), "");
        answers.push(RawClient::request(process.public, &request).await.0);
    }
    answers.push(format!("{TICKET}{ticket}"));
    let forged = signed_by(&format!("another-{MARK}-secret-of-thirty-two-bytes"), "alice", 60, &[]);
    let wrong_key = format!("a-wrong-{MARK}-key");
    for wrong in [&forged, &wrong_key, &good[..good.len() - 2].to_owned()] {
        answers.push(api.with_token(wrong).publish(&body).await.1.to_string());
        for line in [
            format!("Authorization: Bearer {wrong}\r\n"),
            format!("Sec-WebSocket-Protocol: warren.v1, bearer.{wrong}\r\n"),
        ] {
            answers.push(RawClient::request(process.public, &upgrade_request("/ws", &line)).await.0);
        }
        let request = upgrade_request(&format!("/ws?token={wrong}"), "");
        answers.push(RawClient::request(process.public, &request).await.0);
        let mut by_frame = User::open(process.public, "/ws", &[]).await;
        by_frame.say_text(&json!({"type": "auth", "token": wrong}).to_string()).await;
        answers.push(format!("{:?}", by_frame.end().await));
        answers.push(alice.ask(json!({"type": "refresh", "token": wrong})).await.to_string());
    }
    // Frames that break the rules, with marked contents.
    for frame in [
        RawFrame::new(TEXT, format!("{{\"type\":\"{MARK}\"")),
        RawFrame { rsv: 4, ..RawFrame::new(TEXT, MARK) },
        RawFrame::new(TEXT, [MARK.as_bytes(), &[0xff, 0xfe]].concat()),
    ] {
        let line = format!("Authorization: Bearer {good}\r\n");
        let (_, mut client) = RawClient::request(process.public, &upgrade_request("/ws", &line)).await;
        client.send_frame(&frame).await;
        while client.read_frame().await.is_some_and(|frame| frame.opcode == TEXT && !is_reply(&frame.payload))
        {
        }
    }
    answers
}

fn is_reply(payload: &[u8]) -> bool {
    serde_json::from_slice::<Value>(payload).is_ok_and(|frame| frame["type"] == "reply")
}

/// A node without its broker refuses what it is asked, and logs why.
async fn refuse_everything(process: &Process, key: &str) -> String {
    let body = json!({"to": "user.alice", "payload": MARK});
    Api::new(process.public).with_token(key).publish(&body).await.1.to_string()
}
