//! Who is in a channel: by token, by the API, and as clients and backends may ask.

use jsonwebtoken::{encode, get_current_timestamp, EncodingKey, Header};
use reqwest::Method;
use serde_json::{json, Value};

use crate::credentials::token;
use crate::support::api::Api;
use crate::support::nodes::{Cluster, API_KEY, CHECKED, JWT_SECRET};
use crate::support::user::User;

/// A token with the claim `channels`.
fn claiming(user: &str, channels: &Value) -> String {
    let claims = json!({"sub": user, "exp": get_current_timestamp() + 60, "channels": channels});
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).unwrap()
}

async fn subscribe(user: &mut User, channel: &str) -> Value {
    user.ask(json!({"type": "subscribe", "channel": channel})).await
}

async fn put(api: &Api, user: &str, channel: &str) -> Value {
    let path = format!("/v1/users/{user}/channels/{channel}");
    let (status, body) = Api::send(api.request(Method::PUT, &path)).await;
    assert_eq!(status, 200, "{body}");
    body
}

#[tokio::test]
async fn a_token_names_channels_to_begin_with() {
    let vars = [CHECKED, &[("CHANNELS_PER_SESSION", "3")]].concat();
    let cluster = Cluster::start(1, &vars).await;
    let token = claiming("alice", &json!(["news", "private.a", "news"]));
    let mut alice = User::with_token(cluster.ws(0), &token).await;
    assert_eq!(alice.welcome["channels"], json!(["news", "private.a"]));
    let api = cluster.api(0).with_token(API_KEY);
    for channel in ["news", "private.a"] {
        let (status, _) = api.publish(&json!({"to": format!("channel.{channel}"), "payload": channel})).await;
        assert_eq!((status, alice.message().await["payload"].take()), (200, json!(channel)));
    }
    // What was claimed may be left, and entered again; another private channel may not.
    for request in ["unsubscribe", "subscribe"] {
        let reply = alice.ask(json!({"type": request, "channel": "private.a"})).await;
        assert_eq!(reply["outcome"], "ok", "{reply}");
    }
    assert_eq!(subscribe(&mut alice, "private.b").await["error"]["code"], "forbidden");
    // A new token brings its own channels, and ends what only the old one allowed.
    let other = claiming("alice", &json!(["news", "private.b"]));
    let reply = alice.ask(json!({"type": "refresh", "token": other})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    assert_eq!(alice.next("unsubscribed").await["channel"], "private.a");
    assert_eq!(alice.next("subscribed").await["channel"], "private.b");
    let usual = User::with_token(cluster.ws(0), &crate::credentials::token("bob", 60, &[])).await;
    assert_eq!(usual.welcome["channels"], json!([]));
    // More than a session may have: the rest is left out, and the welcome says what is there.
    let many = claiming("carol", &json!(["a", "b", "c", "d"]));
    let carol = User::with_token(cluster.ws(0), &many).await;
    assert_eq!(carol.welcome["channels"], json!(["a", "b", "c"]));
    for bad in [json!([""]), json!("news"), json!([7])] {
        let refused = User::open(cluster.ws(0), "/ws", &[]);
        let mut refused = refused.await;
        refused.say_text(&json!({"type": "auth", "token": claiming("eve", &bad)}).to_string()).await;
        refused.expect_close(4001).await;
    }
}

#[tokio::test]
async fn a_backend_puts_users_in_and_takes_them_out_on_any_node() {
    let cluster = Cluster::start(3, CHECKED).await;
    let api = cluster.api(0).with_token(API_KEY);
    let alice_token = token("alice", 60, &[]);
    let mut sessions = Vec::new();
    for node in [1, 1, 2] {
        sessions.push(User::with_token(cluster.ws(node), &alice_token).await);
    }
    let body = put(&api, "alice", "private.desk").await;
    assert_eq!((&body["subscribed"], &body["partial"]), (&json!(3), &json!(false)), "{body}");
    assert_eq!(body["sessions"].as_array().unwrap().len(), 3);
    assert_eq!(put(&api, "alice", "private.desk").await["subscribed"], 3, "idempotent");
    assert_eq!(put(&api, "nobody", "private.desk").await["subscribed"], 0);
    // The answer came when every node knew.
    let (_, reply) = api.publish(&json!({"to": "channel.private.desk", "payload": 1})).await;
    assert_eq!(reply["outcome"], "published");
    for session in &mut sessions {
        assert_eq!(session.next("subscribed").await["channel"], "private.desk");
        assert_eq!(session.message().await["payload"], 1);
        assert!(session.kept("subscribed").is_empty(), "told once");
        // The server's word stands, whatever a new token says.
        let reply = session.ask(json!({"type": "refresh", "token": alice_token})).await;
        assert_eq!(reply["outcome"], "ok");
    }
    let (status, body) = api.get("/v1/channels/private.desk").await;
    assert_eq!(status, 200);
    assert_eq!(body, json!({"channel": "private.desk", "count": 1, "users": ["alice"], "partial": false}));
    let path = "/v1/users/alice/channels/private.desk";
    let (status, body) = api.delete(path).await;
    assert_eq!((status, &body["unsubscribed"]), (200, &json!(3)), "{body}");
    assert_eq!(api.delete(path).await.1["unsubscribed"], 0, "idempotent");
    for session in &mut sessions {
        let frame = session.next("unsubscribed").await;
        assert_eq!((&frame["channel"], &frame["reason"]), (&json!("private.desk"), &json!("removed")));
    }
    assert_eq!(api.get("/v1/channels/private.desk").await.1["count"], 0);
    let user = cluster.api(0).with_token(&alice_token);
    for (method, path, expected) in [
        (Method::PUT, path, 403),
        (Method::GET, "/v1/channels/private.desk", 403),
        (Method::POST, path, 405),
        (Method::PUT, "/v1/channels/private.desk", 405),
    ] {
        assert_eq!(
            user.request(method.clone(), path).send().await.unwrap().status(),
            expected,
            "{method} {path}"
        );
    }
    assert_eq!(api.status("/v1/channels/%ff").await, 400);
    assert_eq!(api.request(Method::PUT, "/v1/users/a/channels/%00").send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn clients_ask_who_is_there() {
    let cluster = Cluster::start(2, CHECKED).await;
    let mut alice = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    let mut again = User::with_token(cluster.ws(1), &token("alice", 60, &[])).await;
    let caps = ["presence:user.*", "presence:room", "subscribe:*"];
    let mut bob = User::with_token(cluster.ws(1), &token("bob", 60, &caps)).await;
    cluster.knows("alice", &[0, 1]).await;
    for user in [&mut alice, &mut again, &mut bob] {
        assert_eq!(subscribe(user, "room").await["outcome"], "ok");
    }
    let of_alice = json!({"type": "presence", "user": "alice"});
    for asker in [&mut alice, &mut bob] {
        let reply = asker.ask(of_alice.clone()).await;
        assert_eq!((&reply["outcome"], &reply["online"]), (&json!("ok"), &json!(true)), "{reply}");
        let sessions = reply["sessions"].as_array().unwrap();
        let mut nodes: Vec<_> = sessions.iter().map(|of| of["node"].as_str().unwrap()).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, ["n0", "n1"]);
        assert!(sessions.iter().all(|of| of["since_ms"].as_u64().unwrap() > 0));
        let reply = asker.ask(json!({"type": "presence", "channel": "room"})).await;
        assert_eq!((&reply["count"], &reply["users"]), (&json!(2), &json!(["alice", "bob"])), "{reply}");
    }
    let reply = bob.ask(json!({"type": "presence", "user": "nobody"})).await;
    assert_eq!((&reply["online"], &reply["sessions"]), (&json!(false), &json!([])));
    let of_bob = json!({"type": "presence", "user": "bob"});
    assert_eq!(alice.ask(of_bob).await["error"]["code"], "forbidden");
    for asker in [&mut alice, &mut bob] {
        let reply = asker.ask(json!({"type": "presence", "channel": "elsewhere"})).await;
        assert_eq!(reply["error"]["code"], "forbidden");
    }
}
