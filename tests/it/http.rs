//! The HTTP API and the operator's addresses: statuses, bodies, limits.

use std::time::Duration;

use reqwest::Method;
use serde_json::{json, Value};
use tokio::time::Instant;

use crate::credentials::token;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, API_KEY, CHECKED, PATIENCE};
use crate::support::raw_ws::{header, RawClient};
use crate::support::user::User;

fn assert_error(got: &(u16, Value), status: u16, code: &str, what: &str) {
    let (got_status, body) = got;
    assert_eq!((*got_status, &body["error"]["code"]), (status, &json!(code)), "{what}: {body}");
    assert!(body["error"]["message"].is_string() && body["error"]["retry"].is_boolean(), "{what}: {body}");
    assert_eq!(body.as_object().unwrap().len(), 1, "{what}: {body}");
}

#[tokio::test]
async fn errors_have_one_form_and_honest_statuses() {
    let cluster = Cluster::start(1, &[("MAX_MESSAGE_BYTES", "2048")]).await;
    let api = cluster.api(0);
    for (method, path, status, code) in [
        (Method::POST, "/", 405, "bad_request"),
        (Method::GET, "/v1/nodes/n0/drain", 405, "bad_request"),
        (Method::GET, "/v1", 404, "not_found"),
        (Method::GET, "/v1/nothing", 404, "not_found"),
        (Method::GET, "/v2/nodes", 404, "not_found"),
        (Method::GET, "/metrics", 404, "not_found"),
        (Method::GET, "/v1/messages", 405, "bad_request"),
        (Method::POST, "/v1/nodes", 405, "bad_request"),
        (Method::DELETE, "/v1/users/alice", 405, "bad_request"),
        (Method::GET, "/v1/users/a%00b", 400, "bad_request"),
        (Method::GET, "/v1/users/%FF", 400, "bad_request"),
        (Method::DELETE, "/v1/sessions/nonsense", 400, "bad_request"),
        (Method::DELETE, "/v1/sessions/n0~1", 404, "not_found"),
        (Method::DELETE, "/v1/sessions/nowhere~1", 404, "not_found"),
        (Method::GET, "/ws", 426, "bad_request"),
        (Method::POST, "/ws", 405, "bad_request"),
    ] {
        let what = format!("{method} {path}");
        assert_error(&Api::send(api.request(method, path)).await, status, code, &what);
    }
    let long = "x".repeat(2_100);
    let deep = format!(r#"{{"to":"user.a","payload":{}{}}}"#, "[".repeat(65), "]".repeat(65));
    let many = Value::from(vec![json!({"to": "user.a"}); 257]).to_string();
    for body in [
        "{",
        "null",
        "7",
        "[[]]",
        r#"{"payload":1}"#,
        r#"{"to":"nobody"}"#,
        r#"{"to":"user.a","delivery":"never"}"#,
        r#"{"to":"user.a","message_id":" "}"#,
        r#"[{"to":"user.a"},{"to":"nobody"}]"#,
        r#"{"to":"channel.news"}x"#,
        &format!(r#"{{"to":"user.a","payload":"{long}"}}"#),
        &deep,
        &many,
    ] {
        let request = api.request(Method::POST, "/v1/messages").body(body.to_owned());
        let shown = &body[..body.len().min(60)];
        assert_error(&Api::send(request).await, 400, "bad_request", shown);
    }
    let bad_key = api.request(Method::POST, "/v1/messages").header("idempotency-key", "a b");
    let bad_key = Api::send(bad_key.body(r#"{"to":"user.a"}"#)).await;
    assert_error(&bad_key, 400, "bad_request", "idempotency key");
}

#[tokio::test]
async fn bodies_are_bounded_before_they_are_read() {
    let cluster = Cluster::start(1, &[("HEADER_TIMEOUT_MS", "300")]).await;
    let head = |line: &str| format!("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n{line}\r\n");
    for (line, status) in [
        ("Content-Length: 4194305\r\n", "413"),
        ("Content-Length: 99999999999999999999\r\n", "400"),
        ("Content-Encoding: gzip\r\nContent-Length: 10\r\n", "415"),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: br\r\n", "415"),
        ("Transfer-Encoding: chunked\r\n", "408"),
        ("", "400"),
        // A body that never comes must not hold a connection for ever.
        ("Content-Length: 10\r\n", "408"),
    ] {
        let (answer, _) = RawClient::request(cluster.ws(0), &head(line)).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{line}: {answer}");
    }
}

#[tokio::test]
async fn nobody_gets_in_without_credentials() {
    let cluster = Cluster::start(1, CHECKED).await;
    let all = [
        (Method::POST, "/v1/messages"),
        (Method::GET, "/v1/nodes"),
        (Method::GET, "/v1/users/alice"),
        (Method::DELETE, "/v1/users/alice/sessions"),
        (Method::DELETE, "/v1/sessions/n0~1"),
    ];
    let usual = token("alice", 60, &[]);
    let operator = token("ops", 60, &["api"]);
    for (method, path) in all {
        let what = format!("{method} {path}");
        let body = r#"{"to":"user.alice"}"#;
        for wrong in [None, Some("wrong"), Some(&API_KEY[1..]), Some("")] {
            let api = wrong.map_or(cluster.api(0), |wrong| cluster.api(0).with_token(wrong));
            let got = Api::send(api.request(method.clone(), path).body(body)).await;
            assert_error(&got, 401, "unauthorized", &what);
        }
        let as_user = cluster.api(0).with_token(&usual);
        let got = Api::send(as_user.request(method.clone(), path).body(body)).await;
        match path {
            "/v1/messages" => assert_eq!(got.0, 200, "{what}: a user may publish as itself"),
            _ => assert_error(&got, 403, "forbidden", &what),
        }
        for right in [API_KEY, operator.as_str()] {
            let api = cluster.api(0).with_token(right);
            let got = Api::send(api.request(method.clone(), path).body(body)).await;
            assert!(got.0 == 200 || got.0 == 404 && (path.ends_with("~1")), "{what}: {got:?}");
        }
    }
    let broadcast = cluster.api(0).with_token(&usual).publish(&json!({"to": "broadcast"})).await;
    assert_error(&broadcast, 403, "forbidden", "a user may not broadcast");
}

#[tokio::test]
async fn a_user_is_looked_up_and_disconnected_on_all_nodes() {
    let cluster = Cluster::start(3, &[]).await;
    let name = "a/b ü?%~";
    let encoded = "a%2Fb%20%C3%BC%3F%25~";
    let mut one = User::connect(cluster.ws(0), encoded).await;
    let mut two = User::connect(cluster.ws(1), encoded).await;
    assert_eq!(one.welcome["user"], name);
    cluster.knows(name, &[0, 1]).await;
    for at in 0..3 {
        let (status, body) = cluster.api(at).get(&format!("/v1/users/{encoded}")).await;
        assert_eq!((status, &body["user"], &body["online"]), (200, &json!(name), &json!(true)), "{body}");
        assert_eq!(body["partial"], false);
        let mut sessions: Vec<_> =
            body["sessions"].as_array().unwrap().iter().map(|s| s["session"].as_str().unwrap()).collect();
        sessions.sort_unstable();
        assert_eq!(sessions, [one.session(), two.session()]);
        assert!(body["sessions"][0]["since_ms"].as_u64().unwrap() > 1_600_000_000_000);
    }
    let (status, body) = cluster.api(2).publish(&json!({"to": format!("user.{name}"), "payload": 1})).await;
    assert_eq!((status, &body["sessions"]), (200, &json!(2)), "{body}");
    let session = one.session().replace('~', "%7E");
    let (status, body) = cluster.api(2).delete(&format!("/v1/sessions/{session}")).await;
    assert_eq!((status, &body["closed"]), (200, &json!(1)), "{body}");
    one.expect_close(4005).await;
    let (status, body) = cluster.api(2).delete(&format!("/v1/users/{encoded}/sessions")).await;
    assert_eq!((status, &body["partial"]), (200, &json!(false)), "{body}");
    two.expect_close(4005).await;
    cluster.knows(name, &[]).await;
    let (status, body) = cluster.api(2).get(&format!("/v1/users/{encoded}")).await;
    assert_eq!((status, &body["online"], &body["sessions"]), (200, &json!(false), &json!([])));
}

#[tokio::test]
async fn a_node_that_does_not_answer_makes_the_answer_partial() {
    let cluster = Cluster::start(2, &[]).await;
    let _alice = User::connect(cluster.ws(1), "alice").await;
    cluster.knows("alice", &[1]).await;
    cluster.broker.freeze(cluster.nodes[1].id(), true);
    let began = Instant::now();
    let (status, body) = cluster.api(0).get("/v1/users/alice").await;
    assert_eq!((status, &body["partial"]), (200, &json!(true)), "{body}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn nodes_are_listed_with_their_load() {
    let cluster = Cluster::start(3, &[]).await;
    let mut users = Vec::new();
    for at in 0..6 {
        users.push(User::connect(cluster.ws(at % 2), &format!("user{}", at / 2)).await);
    }
    for at in 0..3 {
        let api = cluster.api(at);
        // The load of others is as old as their last heartbeat.
        eventually("the load is known", PATIENCE, || async { api.get("/v1/nodes").await.1["sessions"] == 6 })
            .await;
        let (status, body) = api.get("/v1/nodes").await;
        assert_eq!((status, &body["strategy"]), (200, &json!("directory")));
        let nodes = body["nodes"].as_array().unwrap();
        let names: Vec<_> = nodes.iter().map(|node| node["node"].as_str().unwrap()).collect();
        assert_eq!(names, ["n0", "n1", "n2"]);
        assert_eq!(nodes[0]["sessions"], 3);
        assert_eq!(nodes[0]["draining"], false);
        assert_eq!(nodes[0]["version"], env!("CARGO_PKG_VERSION"));
    }
}

#[tokio::test]
async fn readiness_follows_the_broker_and_life_does_not() {
    let cluster = Cluster::start(2, &[]).await;
    for api in [cluster.admin(0), cluster.api(0)] {
        eventually("ready", PATIENCE, || async { api.status("/readyz").await == 200 }).await;
        assert_eq!(api.status("/livez").await, 200);
    }
    let id = cluster.nodes[0].id();
    cluster.broker.cut(id);
    let (status, body) = cluster.admin(0).get("/readyz").await;
    assert_eq!((status, &body["ready"], &body["link"]), (503, &json!(false), &json!(false)), "{body}");
    assert_eq!(cluster.admin(0).status("/livez").await, 200);
    assert_eq!(cluster.admin(1).status("/readyz").await, 200);
    cluster.broker.restore(id);
    let api = cluster.admin(0);
    eventually("ready again", PATIENCE, || async { api.status("/readyz").await == 200 }).await;
    cluster.broker.block(true);
    assert_eq!(api.status("/readyz").await, 503, "a broker that takes nothing is of no use");
    cluster.broker.block(false);
}

#[tokio::test]
async fn metrics_are_open_metrics_and_tell_what_happened() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    alice.publish("user.alice", 1).await;
    cluster.api(0).publish(&json!({"to": "user.nobody"})).await;
    User::connect(cluster.ws(0), "bob").await.leave().await;
    RawClient::request(cluster.ws(0), "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    cluster.knows("bob", &[]).await;
    let response = cluster.admin(0).request(Method::GET, "/metrics").send().await.unwrap();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in [
        r#"warren_messages_settled_total{door="session",outcome="delivered"} 1"#,
        r#"warren_messages_settled_total{door="http",outcome="stored"} 1"#,
        "warren_sessions_opened_total 2",
        r#"warren_sessions_closed_total{code="1000"} 1"#,
        "warren_handshakes_refused_total 1",
        "warren_messages_dead_total 0",
        "warren_sessions 1",
        "warren_users 1",
        "warren_nodes 2",
        "warren_messages_pending 0",
        "warren_link_ready 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    // Every sample belongs to a family that has a type and a help text.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = name.strip_suffix("_total").unwrap_or(name);
        assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
        assert!(text.contains(&format!("# HELP {family} ")), "{line}");
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn answers_tell_nothing_about_the_server() {
    let cluster = Cluster::start(1, CHECKED).await;
    for path in ["/", "/ws", "/v1/nodes"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (head, _) = RawClient::request(cluster.ws(0), &request).await;
        assert_eq!(header(&head, "server"), None, "{head}");
        assert_eq!(header(&head, "access-control-allow-origin"), None, "{head}");
    }
}
