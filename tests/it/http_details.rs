//! The small print of HTTP: hosts, methods, origins, encodings, keys, names of fields.

use reqwest::Method;
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::credentials::token;
use crate::support::api::Api;
use crate::support::nodes::{Cluster, CHECKED, PATIENCE};
use crate::support::raw_ws::{header, upgrade_request, RawClient};
use crate::support::user::User;

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

async fn head_of(cluster: &Cluster, request: &str) -> String {
    RawClient::request(cluster.ws(0), request).await.0
}

/// The status and the body of one request that says it is the last.
async fn answer(cluster: &Cluster, request: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.expect("an answer in time").unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (status(head), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn a_request_has_one_host() {
    let cluster = Cluster::start(1, &[]).await;
    for (lines, expected) in [
        ("Host: localhost\r\n", 200),
        ("Host: localhost\r\nHost: localhost\r\n", 400),
        ("Host: localhost\r\nHost: evil.com\r\n", 400),
        ("", 400),
    ] {
        for path in ["/livez", "/v1/nodes"] {
            let head = head_of(&cluster, &format!("GET {path} HTTP/1.1\r\n{lines}\r\n")).await;
            assert_eq!(status(&head), expected, "{lines:?} {path}: {head}");
        }
        if lines.matches("Host").count() == 2 {
            let request = upgrade_request("/ws?user=a", "Host: localhost\r\n");
            assert_eq!(status(&head_of(&cluster, &request).await), 400, "RFC 9112 section 3.2");
        }
    }
    assert_eq!(status(&head_of(&cluster, "GET /livez HTTP/1.0\r\n\r\n").await), 200);
}

#[tokio::test]
async fn an_insecure_node_answers_to_loopback_names_only() {
    let cluster = Cluster::start(1, &[]).await;
    for (host, allowed) in [
        ("localhost", true),
        ("LocalHost:8080", true),
        ("127.0.0.1:1", true),
        ("[::1]:80", true),
        ("evil.com", false),
        ("127.0.0.1.evil.com", false),
        ("localhost.evil.com", false),
        ("192.168.0.1", false),
    ] {
        let ws = upgrade_request("/ws?user=a", "").replace("Host: localhost", &format!("Host: {host}"));
        assert_eq!(status(&head_of(&cluster, &ws).await), if allowed { 101 } else { 403 }, "{host}");
        let nodes = format!("GET /v1/nodes HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(status(&head_of(&cluster, &nodes).await), if allowed { 200 } else { 403 }, "{host}");
    }
    let checked = Cluster::start(1, CHECKED).await;
    let nodes = "GET /v1/nodes HTTP/1.1\r\nHost: any.example.com\r\n\r\n";
    assert_eq!(status(&head_of(&checked, nodes).await), 401, "with a key any name may lead here");
}

#[tokio::test]
async fn pages_of_other_origins_may_not_use_the_api() {
    let cluster = Cluster::start(1, &[]).await;
    let body = r#"{"to":"broadcast"}"#;
    for (origin, expected) in
        [("http://localhost", 200), ("https://localhost", 403), ("http://evil.com", 403), ("null", 403)]
    {
        // What a page may send to another origin without asking first.
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Type: text/plain\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, answer) = answer(&cluster, &request).await;
        assert_eq!(status, expected, "{origin}: {answer}");
    }
}

/// Pages could otherwise come in by an address that is nearly the right one.
#[tokio::test]
async fn what_is_no_address_leads_nowhere() {
    let cluster = Cluster::start(1, &[]).await;
    for path in ["/ws/", "//ws", "/ws/x", "/WS", "/sockjs/websocket/", "/sockjs/a/b/websocket/"] {
        for lines in ["", "Origin: http://evil.com\r\n"] {
            let head = head_of(&cluster, &upgrade_request(&format!("{path}?user=a"), lines)).await;
            assert_eq!(status(&head), 404, "{path} {lines}");
        }
    }
    let (api, admin) = (cluster.api(0), cluster.admin(0));
    for path in
        ["/v1/nodes/", "/v1//nodes", "/v1/users//sessions", "/livez/", "/metrics/", "/warren-client.js/"]
    {
        assert_eq!((api.status(path).await, admin.status(path).await), (404, 404), "{path}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_says_what_the_client_spoke() {
    let vars = [CHECKED, &[("TRUSTED_PROXIES", "127.0.0.0/8")]].concat();
    let cluster = Cluster::start(1, &vars).await;
    for (lines, expected) in [
        ("Origin: https://localhost\r\nX-Forwarded-Proto: https\r\n", 101),
        ("Origin: http://localhost\r\nX-Forwarded-Proto: https\r\n", 403),
        ("Origin: https://localhost\r\nForwarded: for=1.2.3.4;proto=https\r\n", 101),
        ("Origin: https://localhost\r\n", 403),
        ("Origin: http://localhost\r\n", 101),
    ] {
        assert_eq!(status(&head_of(&cluster, &upgrade_request("/ws", lines)).await), expected, "{lines}");
    }
    let cluster = Cluster::start(1, CHECKED).await;
    let lines = "Origin: https://localhost\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(
        status(&head_of(&cluster, &upgrade_request("/ws", lines)).await),
        403,
        "nobody trusts this peer"
    );
}

#[tokio::test]
async fn methods_are_named_and_head_goes_where_get_goes() {
    let cluster = Cluster::start(1, &[]).await;
    for (path, expected) in [
        ("/livez", 200),
        ("/readyz", 200),
        ("/v1/nodes", 200),
        ("/v1/users/a", 200),
        ("/ws", 426),
        ("/x", 404),
    ] {
        let head = head_of(&cluster, &format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        assert_eq!(status(&head), expected, "{path}: {head}");
        let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
        assert!(length > 0, "as GET would have it: {head}");
    }
    let metrics = cluster.admin(0).request(Method::HEAD, "/metrics").send().await.unwrap();
    assert_eq!(metrics.status(), 200);
    for (method, path, allow) in [
        ("GET", "/v1/messages", "POST"),
        ("POST", "/v1/nodes", "GET, HEAD"),
        ("DELETE", "/v1/users/a", "GET, HEAD"),
        ("GET", "/v1/users/a/sessions", "DELETE"),
        ("PUT", "/v1/sessions/n~1", "DELETE"),
        ("POST", "/ws", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
        ("OPTIONS", "/v1/messages", "POST"),
    ] {
        let head = head_of(&cluster, &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        assert_eq!((status(&head), header(&head, "allow")), (405, Some(allow)), "{method} {path}");
    }
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n{body}")
}

#[tokio::test]
async fn bodies_may_come_in_chunks() {
    let cluster = Cluster::start(1, &[("MAX_MESSAGE_BYTES", "2048")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let chunks = |parts: &[&str]| -> String {
        parts.iter().chain(&[""]).map(|part| format!("{:x}\r\n{part}\r\n", part.len())).collect()
    };
    let body = chunks(&[r#"{"to":"user."#, r#"alice","payload":"in "#, r#"parts"}"#]);
    let (status, settled) = answer(&cluster, &post("Transfer-Encoding: chunked\r\n", &body)).await;
    assert_eq!((status, &settled["outcome"]), (200, &json!("delivered")), "{settled}");
    assert_eq!(alice.message().await["payload"], "in parts");
    // Nobody announced how long it would be.
    let filler = "x".repeat(4_096);
    let body = chunks(&[r#"{"to":"user.alice","payload":""#, &filler, &filler, &filler]);
    let (status, refused) = answer(&cluster, &post("Transfer-Encoding: chunked\r\n", &body)).await;
    assert_eq!(status, 413, "{refused}");
    let (status, refused) =
        answer(&cluster, &post("Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}")).await;
    assert_eq!(status, 415);
    assert!(refused["error"]["message"].as_str().unwrap().starts_with("Content-Encoding: "), "{refused}");
}

#[tokio::test]
async fn an_array_that_is_too_long_is_not_read_to_its_end() {
    let cluster = Cluster::start(1, &[]).await;
    // Broken behind the first element too many: whoever parsed on would say so.
    let body = format!("[{},{{{{", vec![r#"{"to":"user.a"}"#; 257].join(","));
    let request = cluster.api(0).request(Method::POST, "/v1/messages").body(body);
    let (status, refused) = Api::send(request).await;
    assert_eq!(status, 400);
    assert_eq!(refused["error"]["message"], "body: at most 256 messages");
}

#[tokio::test]
async fn the_idempotency_key_may_be_quoted() {
    let cluster = Cluster::start(1, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let publish = |key: &str| {
        let request = cluster.api(0).request(Method::POST, "/v1/messages").header("idempotency-key", key);
        Api::send(request.body(r#"{"to":"user.alice","payload":1}"#))
    };
    for key in ["abc", "\"abc\""] {
        let (status, settled) = publish(key).await;
        assert_eq!((status, &settled["message_id"]), (200, &json!("abc")), "{settled}");
    }
    assert_eq!(alice.message().await["id"], "abc");
    let (status, refused) = publish("\"abc").await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().unwrap().starts_with("Idempotency-Key: "), "{refused}");
}

#[tokio::test]
async fn null_is_nothing_and_errors_name_the_field() {
    let cluster = Cluster::start(1, &[]).await;
    let api = cluster.api(0);
    let nulls = json!({"to": "broadcast", "delivery": null, "event": null, "ttl": null, "message_id": null});
    assert_eq!(api.publish(&nulls).await.0, 200);
    for (body, field) in [
        (json!({"to": "user.a", "delivery": "never"}), "delivery"),
        (json!({"to": "user.a", "ttl": "1"}), "ttl"),
        (json!({"to": 1}), "to"),
        (json!({"to": "user.a", "event": 1}), "event"),
        (json!([{"to": "user.a"}, {"to": "user.a", "message_id": 1}]), "[1].message_id"),
    ] {
        let (status, refused) = api.publish(&body).await;
        let message = refused["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.starts_with(&format!("{field}: ")), "{body}: {refused}");
    }
}

#[tokio::test]
async fn a_user_has_one_budget_over_http_and_services_have_none() {
    let limits = [("MESSAGE_RATE", "1"), ("MESSAGE_BURST", "5")];
    let cluster = Cluster::start(1, &[CHECKED, &limits].concat()).await;
    let alice = cluster.api(0).with_token(&token("alice", 60, &[]));
    let body = json!({"to": "user.bob", "payload": 1});
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(alice.publish(&body).await.0);
    }
    let taken = statuses.iter().filter(|status| **status == 200).count();
    assert!(
        (5..=7).contains(&taken) && statuses.iter().all(|status| [200, 429].contains(status)),
        "{statuses:?}"
    );
    let batch = cluster.api(0).with_token(&token("carol", 60, &[]));
    let (status, settled) = batch.publish(&Value::from(vec![body.clone(); 8])).await;
    let limited = settled.as_array().unwrap().iter().filter(|one| one["error"]["code"] == "rate_limited");
    assert_eq!((status, limited.count()), (200, 3), "a batch is no way around: {settled}");
    for name in [crate::support::nodes::API_KEY, &token("ops", 60, &["api", "publish:*"])] {
        let service = cluster.api(0).with_token(name);
        for _ in 0..12 {
            assert_eq!(service.publish(&body).await.0, 200);
        }
    }
}

#[tokio::test]
async fn services_have_names_and_their_ids_do_not_meet() {
    let keys = "orders=0123456789abcdef-orders,billing=0123456789abcdef-billing,0123456789abcdef-unnamed";
    let cluster = Cluster::start(1, &[CHECKED, &[("API_KEYS", keys)]].concat()).await;
    let mut alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    for (key, name) in [
        ("0123456789abcdef-orders", "orders"),
        ("0123456789abcdef-billing", "billing"),
        ("0123456789abcdef-unnamed", "api"),
    ] {
        let api = cluster.api(0).with_token(key);
        let body = json!({"to": "user.alice", "payload": name, "message_id": "order-1"});
        assert_eq!(api.publish(&body).await.1["outcome"], "delivered");
        let message = alice.message().await;
        assert_eq!(
            (&message["payload"], &message["from"]["service"]),
            (&json!(name), &json!(name)),
            "{message}"
        );
    }
}

#[tokio::test]
async fn what_two_servers_could_read_differently_is_refused() {
    let cluster = Cluster::start(1, &[]).await;
    // What a server in front that reads it otherwise would let through as a request of somebody else.
    let hidden = "GET /v1/users/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let body = format!("0\r\n\r\n{hidden}");
    let length = body.len();
    for lines in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: 5\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: 5, {length}\r\n"),
        "Content-Length: +5\r\n".into(),
        "Content-Length: 0x5\r\n".into(),
        "Content-Length: -1\r\n".into(),
        "Content-Length : 5\r\n".into(),
        "Transfer-Encoding : chunked\r\n".into(),
        "Transfer-Encoding: xchunked\r\n".into(),
        "Transfer-Encoding: chunked, identity\r\n".into(),
        "Transfer-Encoding: identity\r\n".into(),
        "Transfer-Encoding:\x0bchunked\r\n".into(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".into(),
        "X: a\r\n Transfer-Encoding: chunked\r\n".into(),
        "X: a\rTransfer-Encoding: chunked\r\n".into(),
        "X\0: a\r\n".into(),
        " X: a\r\n".into(),
    ] {
        let request = format!("POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{body}");
        let mut stream = TcpStream::connect(cluster.ws(0)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut read))
            .await
            .unwrap_or_else(|_| panic!("{lines:?}: stays open"));
        let text = String::from_utf8_lossy(&read);
        assert!(text.starts_with("HTTP/1.1 400"), "{lines:?}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{lines:?}: {text}");
    }
}
