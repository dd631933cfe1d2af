//! The console: where its page is and is not, and what it asks the API for.

use reqwest::header::{HeaderMap, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, ORIGIN};
use reqwest::Method;
use serde_json::{json, Value};

use crate::credentials::token;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, API_KEY, CHECKED, PATIENCE};
use crate::support::user::User;

async fn fetch(api: &Api, method: Method, path: &str) -> (u16, HeaderMap, String) {
    let response = api.request(method, path).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, response.text().await.unwrap())
}

/// The addresses of ours that a page or a script names.
fn named(text: &str) -> Vec<String> {
    let quoted = text.split(['"', '\'']).filter(|part| !part.contains(char::is_whitespace));
    let paths = quoted.filter_map(|part| match part.strip_prefix("./") {
        Some(file) if file.ends_with(".js") => Some(format!("/console/{file}")),
        _ => Some(part.to_owned()).filter(|part| part.starts_with("/console/")),
    });
    paths.collect()
}

#[tokio::test]
async fn the_page_and_everything_it_names_is_there_and_is_kept_by_browsers() {
    let cluster = Cluster::start(1, &[]).await;
    for api in [cluster.api(0), cluster.admin(0)] {
        let mut known = vec!["/".to_owned()];
        let mut at = 0;
        while let Some(path) = known.get(at).cloned() {
            at += 1;
            let (status, headers, text) = fetch(&api, Method::GET, &path).await;
            assert_eq!(status, 200, "{path}");
            let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"),
                "{path}: {policy}"
            );
            assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
            assert_eq!(headers["x-frame-options"], "DENY");
            assert_eq!(headers["x-content-type-options"], "nosniff");
            let (status, of_head, body) = fetch(&api, Method::HEAD, &path).await;
            assert_eq!((status, of_head.get(ETAG), body.as_str()), (200, headers.get(ETAG), ""), "{path}");
            let again = api.request(Method::GET, &path).header(IF_NONE_MATCH, &headers[ETAG]);
            assert_eq!(again.send().await.unwrap().status(), 304, "{path}");
            let (status, allowing, _) = fetch(&api, Method::POST, &path).await;
            assert_eq!((status, allowing["allow"].to_str().unwrap()), (405, "GET, HEAD"), "{path}");
            if headers[CONTENT_TYPE].to_str().unwrap().contains("charset") {
                for more in named(&text) {
                    if !known.contains(&more) {
                        known.push(more);
                    }
                }
            }
        }
        assert!(known.len() > 8, "{known:?}");
        assert_eq!(api.status("/console/nothing.js").await, 404);
        assert_eq!(api.status("/warren-client.js").await, 200);
    }
}

#[tokio::test]
async fn with_tokens_the_page_is_for_operators_alone_and_its_api_wants_credentials() {
    let cluster = Cluster::start(1, CHECKED).await;
    assert_eq!(cluster.api(0).status("/").await, 404, "the public address");
    let admin = cluster.admin(0);
    assert_eq!(admin.status("/").await, 200);
    for (credentials, status) in [
        (None, 401),
        (Some("wrong".to_owned()), 401),
        (Some(token("alice", 60, &[])), 403),
        (Some(token("ops", 60, &["api"])), 200),
        (Some(API_KEY.to_owned()), 200),
    ] {
        let api = credentials.map_or(admin.clone(), |credentials| admin.with_token(&credentials));
        assert_eq!(api.status("/v1/cluster").await, status);
        if status != 200 {
            let drain = Api::send(api.request(Method::POST, "/v1/nodes/n0/drain")).await;
            assert_eq!(drain.0, status);
        }
    }
    // Another page in the operator's browser cannot act with what only the address protects.
    let foreign = admin.with_token(API_KEY).request(Method::DELETE, "/v1/users/alice/sessions");
    let (status, _) = Api::send(foreign.header(ORIGIN, "https://evil.example")).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn an_insecure_node_that_others_can_reach_has_no_console_there() {
    let cluster =
        Cluster::start(1, &[("AUTH", "insecure"), ("LISTEN", "0.0.0.0:0"), ("ADMIN_LISTEN", "0.0.0.0:0")])
            .await;
    let local = |address: std::net::SocketAddr| Api::new(([127, 0, 0, 1], address.port()).into());
    for api in [local(cluster.nodes[0].public()), local(cluster.nodes[0].admin())] {
        assert_eq!(api.status("/").await, 404);
        assert_eq!(api.status("/console/main.js").await, 404);
    }
    assert_eq!(local(cluster.nodes[0].admin()).status("/v1/cluster").await, 404);
}

fn of<'a>(cluster: &'a Value, node: &str) -> &'a Value {
    cluster["nodes"].as_array().unwrap().iter().find(|report| report["node"] == node).unwrap()
}

#[tokio::test]
async fn every_node_reports_its_load_its_channels_and_what_it_did() {
    let cluster = Cluster::start(2, &[("PUBLIC_URL", "https://gateway.example.org/")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    for user in [&mut alice, &mut bob] {
        user.ask(json!({"type": "subscribe", "channel": "room"})).await;
    }
    bob.ask(json!({"type": "subscribe", "channel": "hall"})).await;
    assert_eq!(alice.publish("channel.room", 1).await["outcome"], "published");
    assert_eq!(alice.publish("user.nobody", 1).await["outcome"], "stored");
    bob.message().await;
    let api = cluster.api(0);
    // A report may be a quarter of a second old.
    eventually("both report it", PATIENCE, || async {
        let (status, body) = api.get("/v1/cluster").await;
        let counted = |node: &str, handed: u64| of(&body, node)["totals"]["handed"] == handed;
        status == 200 && counted("n0", 1) && counted("n1", 1) && body["mail"]["messages"] == 1
    })
    .await;
    let (_, body) = api.get("/v1/cluster").await;
    assert_eq!(body["asked"], "n0");
    assert_eq!(body["mail"]["users"], 1);
    let channels = json!([
        {"channel": "room", "sessions": 2, "nodes": ["n0", "n1"]},
        {"channel": "hall", "sessions": 1, "nodes": ["n1"]},
    ]);
    assert_eq!(body["channels"], channels);
    let report = of(&body, "n0");
    assert_eq!(report["answered"], true);
    assert_eq!((&report["sessions"], &report["users"]), (&json!(1), &json!(1)));
    assert_eq!(report["url"], "https://gateway.example.org");
    // Nodes of one process share a broker in memory.
    assert_eq!(report["link"], "standalone");
    let settled =
        json!({"delivered": 0, "stored": 1, "published": 1, "answered": 0, "expired": 0, "rejected": 0});
    assert_eq!(report["totals"]["settled"], settled);
    assert_eq!(of(&body, "n1")["channels"], 2);
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_shown_as_such() {
    let cluster = Cluster::start(2, &[]).await;
    cluster.broker.freeze(cluster.nodes[1].id(), true);
    let (status, body) = cluster.api(0).get("/v1/cluster").await;
    assert_eq!(status, 200);
    let silent = of(&body, "n1");
    assert_eq!(silent["answered"], false, "{body}");
    assert!(silent["silent_ms"].is_u64() && silent["started_ms"].is_u64(), "{body}");
    assert_eq!(of(&body, "n0")["answered"], true, "{body}");
}

#[tokio::test]
async fn an_operator_has_any_node_leave() {
    let cluster = Cluster::start(3, &[]).await;
    let api = cluster.api(0);
    let drain = |node: &'static str| Api::send(api.request(Method::POST, node));
    // Through another node, and the one that is asked itself.
    for (at, path) in [(1, "/v1/nodes/n1/drain"), (0, "/v1/nodes/n0/drain")] {
        let (status, body) = drain(path).await;
        assert_eq!((status, &body["draining"]), (202, &json!(true)), "{body}");
        tokio::time::timeout(PATIENCE, cluster.nodes[at].drain_ordered()).await.expect("it is told");
    }
    assert_eq!(drain("/v1/nodes/nowhere/drain").await.0, 404);
    assert_eq!(drain("/v1/nodes/a%20b/drain").await.0, 400);
    cluster.broker.freeze(cluster.nodes[2].id(), true);
    assert_eq!(drain("/v1/nodes/n2/drain").await.0, 503);
}

/// What became of a message, as `node step` in the order of the answer.
async fn steps(api: &Api, id: &str) -> (Vec<String>, Value) {
    let (status, body) = api.get(&format!("/v1/messages/{id}/trace")).await;
    assert_eq!(status, 200, "{body}");
    let step =
        |event: &Value| format!("{} {}", event["node"].as_str().unwrap(), event["step"].as_str().unwrap());
    (body["events"].as_array().unwrap().iter().map(step).collect(), body)
}

#[tokio::test]
async fn the_way_of_a_message_is_told_from_its_source_to_its_settlement() {
    let cluster = Cluster::start(3, &[]).await;
    let api = cluster.api(2);
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::open(cluster.ws(1), "/ws?user=bob&ack=client", &[]).await.welcomed().await;
    cluster.knows("bob", &[1]).await;
    let publish =
        |to: &str, id: &str| json!({"type": "publish", "to": to, "message_id": id, "payload": "a secret"});
    // Nobody looks: nothing is kept.
    let unseen = alice.request(publish("user.bob", "unseen")).await;
    assert_eq!(bob.message().await["id"], "unseen");
    bob.say_text(r#"{"type":"ack","ids":["unseen"]}"#).await;
    alice.reply_to(unseen).await;
    assert_eq!(steps(&api, "unseen").await.0, [""; 0]);
    // The question itself was a look.
    let seen = alice.request(publish("user.bob", "seen")).await;
    assert_eq!(bob.message().await["id"], "seen");
    bob.say_text(r#"{"type":"ack","ids":["seen"]}"#).await;
    alice.reply_to(seen).await;
    let (told, body) = steps(&api, "seen").await;
    assert_eq!(
        told,
        ["n0 accepted", "n0 sent", "n1 arrived", "n1 written", "n1 acknowledged", "n1 taken", "n0 settled"],
        "{body}"
    );
    assert_eq!((&body["partial"], &body["tracing"]), (&json!(false), &json!(true)));
    let events = body["events"].as_array().unwrap();
    assert_eq!((&events[0]["to"], &events[1]["nodes"]), (&json!("user.bob"), &json!(["n1"])), "{body}");
    assert_eq!((&events[3]["session"], &events[6]["outcome"]), (&json!(bob.session()), &json!("delivered")));
    assert!(!body.to_string().contains("a secret"), "no payload is told: {body}");
    // Somebody who is away, and what cannot be delivered.
    assert_eq!(alice.ask(publish("user.carol", "mail")).await["outcome"], "stored");
    assert_eq!(steps(&api, "mail").await.0, ["n0 accepted", "n0 to_mail", "n0 settled"]);
    let _carol = User::connect(cluster.ws(1), "carol").await;
    eventually("the mail is read and taken", PATIENCE, || async {
        steps(&api, "mail").await.0[3..] == ["n1 read_from_mail", "n1 written", "n1 taken"]
    })
    .await;
    alice.ask(publish("session.n1~zz", "gone")).await;
    let (told, body) = steps(&api, "gone").await;
    assert_eq!(told.last().unwrap(), "n0 settled");
    assert!(body["events"].as_array().unwrap().last().unwrap()["error"].is_string(), "{body}");
    assert_eq!(alice.ask(publish("app.nobody", "to-app")).await["error"]["code"], "no_backend");
    assert_eq!(steps(&api, "to-app").await.0, ["n0 accepted", "n0 sent_to_backends", "n0 settled"]);
    // A channel, and everybody.
    bob.ask(json!({"type": "subscribe", "channel": "room"})).await;
    alice.ask(publish("channel.room", "to-room")).await;
    assert_eq!(bob.message().await["id"], "to-room");
    let (told, body) = steps(&api, "to-room").await;
    // Sent to `n1`, or to all while a node cannot know of all subscriptions.
    for step in ["n0 accepted", "n1 arrived", "n1 written", "n0 settled"] {
        assert!(told.iter().any(|told| told == step), "{step}: {body}");
    }
    alice.ask(publish("broadcast", "to-all")).await;
    assert_eq!(bob.message().await["id"], "to-all");
    let (told, body) = steps(&api, "to-all").await;
    assert!(told.contains(&"n0 sent_to_all".to_owned()) && told.contains(&"n1 written".to_owned()), "{body}");
}

#[tokio::test]
async fn a_trace_that_misses_a_node_says_so_and_needs_the_whole_api() {
    let cluster = Cluster::start(2, CHECKED).await;
    let path = "/v1/messages/m1/trace";
    assert_eq!(cluster.api(0).status(path).await, 401);
    assert_eq!(cluster.api(0).with_token(&token("alice", 60, &[])).status(path).await, 403);
    let api = cluster.api(0).with_token(API_KEY);
    assert_eq!(api.get("/v1/messages/a%20b/trace").await.0, 400);
    cluster.broker.freeze(cluster.nodes[1].id(), true);
    let (status, body) = api.get(path).await;
    assert_eq!((status, &body["partial"]), (200, &json!(true)), "{body}");
}
