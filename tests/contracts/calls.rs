//! Calls of the API: each operation with its good answers, and what is answered to bad ones.

use serde_json::json;

use crate::client::Client;
use crate::eventually::eventually;
use crate::http::Http;
use crate::nodes::{API_KEY, PATIENCE};
use crate::traffic::{token, Stage};

pub async fn call(stage: &Stage) {
    let (seen, there, api) = (&stage.recording, stage.nodes[1].public(), &stage.api);
    let mut alice = Client::connect(seen, there, &token("alice/\u{eb}", None, &[])).await;
    let alice_id = "alice/\u{eb}";
    eventually("the node that is asked knows of her", PATIENCE, || async {
        api.ask("GET /v1/users/{id}", &[alice_id], None, 200).await["online"] == true
    })
    .await;
    api.ask("GET /v1/cluster", &[], None, 200).await;
    let message = json!({"to": format!("user.{alice_id}"), "payload": {"n": 1}, "message_id": "traced/1"});
    assert_eq!(api.ask("POST /v1/messages", &[], Some(message), 200).await["outcome"], "delivered");
    let steps = api.ask("GET /v1/messages/{id}/trace", &["traced/1"], None, 200).await;
    assert!(!steps["events"].as_array().unwrap().is_empty(), "{steps}");
    let several = json!([{"to": "user.away"}, {"to": "session.n0~0", "payload": 2}, {"to": "broadcast"}]);
    assert_eq!(api.ask("POST /v1/messages", &[], Some(several), 200).await[1]["outcome"], "rejected");
    let key = [("idempotency-key", "\"parcel-8\"")];
    let body = Some(r#"{"to":"user.away"}"#.to_owned());
    let settled = api.ask_with("POST /v1/messages", &[], &key, body, 200).await;
    assert_eq!(settled["message_id"], "parcel-8");
    for user in [alice_id, "nobody at all"] {
        let found = api.ask("GET /v1/users/{id}", &[user], None, 200).await;
        assert_eq!(found["online"], user == alice_id);
    }
    for http in [api, &stage.http(Some(&token(alice_id, None, &[])))] {
        assert_eq!(http.ask("GET /v1/users/{id}/home", &[alice_id], None, 200).await["routing"], "directory");
    }
    let place = [alice_id, "room 1"];
    assert_eq!(api.ask("PUT /v1/users/{id}/channels/{name}", &place, None, 200).await["subscribed"], 1);
    alice.next("subscribed").await;
    assert_eq!(api.ask("GET /v1/channels/{name}", &["room 1"], None, 200).await["count"], 1);
    let cluster = api.ask("GET /v1/cluster", &[], None, 200).await;
    assert_eq!(cluster["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(api.ask("DELETE /v1/users/{id}/channels/{name}", &place, None, 200).await["unsubscribed"], 1);
    alice.next("unsubscribed").await;
    api.ask("GET /v1/nodes", &[], None, 200).await;
    let session = alice.session().to_owned();
    assert_eq!(api.ask("DELETE /v1/sessions/{id}", &[&session], None, 200).await["closed"], 1);
    assert_eq!(alice.end().await["code"], 4005);
    end_all(stage).await;
    tickets(stage).await;
    files(stage).await;
}

async fn tickets(stage: &Stage) {
    let operation = "POST /v1/tickets";
    let body =
        json!({"user": "erin", "caps": ["publish:user.*"], "channels": ["room"], "session_seconds": 600});
    let for_erin = stage.api.ask(operation, &[], Some(body), 200).await;
    let own = stage.http(Some(&token("frank", None, &[]))).ask(operation, &[], None, 200).await;
    for (ticket, user) in [(for_erin, "erin"), (own, "frank")] {
        let path = format!("/ws?ticket={}", ticket["ticket"].as_str().unwrap());
        let client =
            Client::open(&stage.recording, stage.nodes[0].public(), &path, None).await.welcomed().await;
        assert_eq!(client.welcome["user"], user);
    }
    stage.http(None).ask(operation, &[], None, 401).await;
    let foreign = Some(json!({"user": "erin"}));
    stage.http(Some(&token("frank", None, &[]))).ask(operation, &[], foreign, 403).await;
    stage.api.ask(operation, &[], Some(json!({"user": "erin", "session_seconds": 0})), 400).await;
}

async fn end_all(stage: &Stage) {
    let (seen, there, api) = (&stage.recording, stage.nodes[1].public(), &stage.api);
    let bob = Client::connect(seen, there, &token("bob", None, &[])).await;
    assert_eq!(api.ask("DELETE /v1/users/{id}/sessions", &["bob"], None, 200).await["closed"], 1);
    assert_eq!(bob.end().await["code"], 4005);
    let mallory = Client::connect(seen, there, &token("mallory", None, &[])).await;
    let revoked = api.ask("POST /v1/revocations", &[], Some(json!({"user": "mallory"})), 200).await;
    assert_eq!(revoked["closed"], 1);
    assert_eq!(mallory.end().await["code"], 4001);
    api.ask("POST /v1/revocations", &[], Some(json!({"jti": "a-token-id", "until": null})), 200).await;
}

/// What needs no credentials, on both listeners.
async fn files(stage: &Stage) {
    let admin = Http::new(&stage.recording, stage.nodes[0].admin(), Some(API_KEY));
    admin.ask("GET /metrics", &[], None, 200).await;
    for http in [&stage.http(None), &admin] {
        http.ask("GET /livez", &[], None, 200).await;
        http.ask("GET /readyz", &[], None, 200).await;
        http.ask("GET /warren-client.js", &[], None, 200).await;
    }
    admin.ask("GET /", &[], None, 200).await;
    for file in ["main.js", "console.css", "icon.svg", "plex-mono.woff2"] {
        admin.ask("GET /console/{file}", &[file], None, 200).await;
    }
    for (operation, names) in
        [("GET /warren-client.js", &[][..]), ("GET /", &[]), ("GET /console/{file}", &["main.js"])]
    {
        admin.ask_with(operation, names, &[("if-none-match", "*")], None, 304).await;
    }
    admin.ask("GET /console/{file}", &["nothing.js"], None, 404).await;
    admin.ask("GET /v1/nodes", &[], None, 200).await;
    let public = stage.http(None);
    for operation in ["GET /sockjs", "GET /sockjs/", "GET /sockjs/info"] {
        public.ask(operation, &[], None, 200).await;
    }
    public.ask("OPTIONS /sockjs/info", &[], None, 204).await;
    for path in ["/sockjs/websocket", "/sockjs/000/abcd1234/websocket"] {
        Client::open(&stage.recording, stage.nodes[0].public(), path, Some(&token("dora", None, &[]))).await;
    }
    transports(stage).await;
}

/// Sessions of SockJS without a WebSocket. Those of a stranger end at once, and so do the responses.
async fn transports(stage: &Stage) {
    let (public, stranger) = (stage.http(None), stage.http(Some("a.b.c")));
    let at = |transport: &str| format!("/sockjs/{{server}}/{{session}}/{transport}");
    let [poll, stream, send] = ["xhr", "xhr_streaming", "xhr_send"].map(|name| format!("POST {}", at(name)));
    let events = format!("GET {}", at("eventsource"));
    let polled = ["000", "polled"];
    public.ask(&poll, &polled, None, 200).await;
    let ping = json!([json!({"type": "auth", "token": token("dora", None, &[])}).to_string()]);
    public.ask(&send, &polled, Some(ping), 204).await;
    public.ask(&poll, &polled, None, 200).await;
    stranger.ask(&stream, &["000", "streamed"], None, 200).await;
    stranger.ask(&events, &["000", "events"], None, 200).await;
    for name in ["xhr", "xhr_streaming", "xhr_send", "eventsource"] {
        public.ask(&format!("OPTIONS {}", at(name)), &polled, None, 204).await;
    }
    for bad in ["", "{"] {
        public.ask_with(&send, &polled, &[], Some(bad.to_owned()), 500).await;
    }
    public.ask_with(&send, &polled, &[("content-encoding", "gzip")], Some("[]".to_owned()), 415).await;
    public.ask(&send, &["000", "nobody"], Some(json!(["x"])), 404).await;
}

const UNDER_V1: [(&str, &[&str]); 12] = [
    ("GET /v1/users/{id}/home", &["a"]),
    ("GET /v1/messages/{id}/trace", &["m"]),
    ("POST /v1/revocations", &[]),
    ("GET /v1/users/{id}", &["a"]),
    ("DELETE /v1/users/{id}/sessions", &["a"]),
    ("PUT /v1/users/{id}/channels/{name}", &["a", "b"]),
    ("DELETE /v1/users/{id}/channels/{name}", &["a", "b"]),
    ("GET /v1/channels/{name}", &["b"]),
    ("DELETE /v1/sessions/{id}", &["n0~1"]),
    ("GET /v1/nodes", &[]),
    ("POST /v1/nodes/{id}/drain", &["n0"]),
    ("GET /v1/cluster", &[]),
];

pub async fn call_badly(stage: &Stage) {
    let (stranger, user) = (stage.http(None), stage.http(Some(&token("alice", None, &[]))));
    for (operation, names) in UNDER_V1 {
        stranger.ask(operation, names, None, 401).await;
        user.ask(operation, names, None, 403).await;
        let foreign = [("origin", "https://evil.example")];
        stage.api.ask_with(operation, names, &foreign, None, 403).await;
    }
    let (api, publish) = (&stage.api, "POST /v1/messages");
    stranger.ask(publish, &[], Some(json!({"to": "user.a"})), 401).await;
    user.ask(publish, &[], Some(json!({"to": "broadcast"})), 403).await;
    for bad in
        [json!({}), json!([{"to": "user.a"}, {"to": "x"}]), json!({"to": "user.a", "ttl": 0}), json!("x")]
    {
        api.ask(publish, &[], Some(bad), 400).await;
    }
    let headers = [("idempotency-key", "k")];
    api.ask_with(publish, &[], &headers, Some("[]".to_owned()), 400).await;
    for operation in [publish, "POST /v1/revocations"] {
        api.ask_with(operation, &[], &[], Some("{".to_owned()), 400).await;
        api.ask_with(operation, &[], &[("content-encoding", "gzip")], Some("{}".to_owned()), 415).await;
        api.begin(operation, 5 << 20, 413).await;
        api.begin(operation, 100, 408).await;
    }
    api.ask("DELETE /v1/sessions/{id}", &["n0~0"], None, 404).await;
    api.ask("POST /v1/nodes/{id}/drain", &["n9"], None, 404).await;
    for (operation, names) in [("GET /v1/users/{id}", &["a\u{1}"][..]), ("DELETE /v1/sessions/{id}", &["n0"])]
    {
        api.ask(operation, names, None, 400).await;
    }
    for operation in ["GET /ws", "GET /sockjs/websocket"] {
        stranger.ask(operation, &[], None, 426).await;
    }
    stranger.ask("GET /sockjs/{server}/{session}/websocket", &["000", "abcd"], None, 400).await;
}
