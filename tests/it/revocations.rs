//! Tokens that are revoked before they expire.

use std::time::Duration;

use jsonwebtoken::{encode, get_current_timestamp, EncodingKey, Header};
use serde_json::{json, Value};
use tokio::time::Instant;

use crate::credentials::{answer, status, token};
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, API_KEY, CHECKED, JWT_SECRET, PATIENCE};
use crate::support::raw_ws::{upgrade_request, RawClient};
use crate::support::user::User;

/// What the other nodes are told within.
const TOLD_MAX: Duration = Duration::from_secs(2);

fn signed(user: &str, jti: &str, issued_ago_s: u64) -> String {
    let now = get_current_timestamp();
    let claims = json!({"sub": user, "jti": jti, "iat": now - issued_ago_s, "exp": now + 600});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(JWT_SECRET.as_bytes())).unwrap()
}

async fn revoke(cluster: &Cluster, node: usize, body: Value) -> Value {
    let api = cluster.api(node).with_token(API_KEY);
    let request = api.request(reqwest::Method::POST, "/v1/revocations").json(&body);
    let (status, told) = Api::send(request).await;
    assert_eq!(status, 200, "{body}: {told}");
    told
}

#[tokio::test]
async fn revoked_tokens_are_closed_on_all_nodes_and_refused_at_every_door() {
    let cluster = Cluster::start(2, CHECKED).await;
    let (old, young, other) =
        (signed("alice", "a1", 100), signed("alice", "a2", 10), signed("bob", "b1", 100));
    let mut olds = [User::with_token(cluster.ws(0), &old).await, User::with_token(cluster.ws(1), &old).await];
    let mut youngs = User::with_token(cluster.ws(1), &young).await;
    let mut bob = User::with_token(cluster.ws(1), &other).await;
    let mut unsaid = User::with_token(cluster.ws(1), &other).await;

    // A user's tokens that were issued before a time.
    let began = Instant::now();
    let before = get_current_timestamp() - 50;
    let told = revoke(&cluster, 0, json!({"user": "alice", "issued_before": before})).await;
    assert_eq!((&told["closed"], &told["partial"]), (&json!(2), &json!(false)));
    for user in &mut olds {
        user.expect_close(4001).await;
    }
    assert!(began.elapsed() < TOLD_MAX, "{:?}", began.elapsed());
    for node in [0, 1] {
        let request = upgrade_request("/ws", &format!("Authorization: Bearer {old}\r\n"));
        let (head, _) = RawClient::request(cluster.ws(node), &request).await;
        assert_eq!(status(&head), 401, "at node {node}");
        let body = json!({"to": "user.bob", "payload": 1});
        assert_eq!(cluster.api(node).with_token(&old).publish(&body).await.0, 401);
        let mut by_frame = User::open(cluster.ws(node), "/ws", &[]).await;
        by_frame.say_text(&json!({"type": "auth", "token": old}).to_string()).await;
        by_frame.expect_close(4001).await;
    }
    // Younger ones of the user, and those of others, are as good as before.
    assert_eq!(youngs.ask(json!({"type": "ping"})).await["outcome"], "ok");
    let refused = youngs.ask(json!({"type": "refresh", "token": old})).await;
    assert_eq!(refused["error"]["code"], "unauthorized", "a revoked one is no way to go on: {refused}");

    // One token of a user.
    assert_eq!(revoke(&cluster, 1, json!({"jti": "a2"})).await["closed"], 1);
    youngs.expect_close(4001).await;
    let alices = signed("alice", "a3", 0);
    assert_eq!(User::with_token(cluster.ws(0), &alices).await.welcome["user"], "alice");
    assert_eq!(bob.ask(json!({"type": "ping"})).await["outcome"], "ok");

    // All of a user, and then of everybody, who may come back with a new one.
    assert_eq!(revoke(&cluster, 0, json!({"user": "bob"})).await["closed"], 2);
    bob.expect_close(4001).await;
    unsaid.expect_close(4001).await;
    let carol = User::with_token(cluster.ws(1), &signed("carol", "c1", 5)).await;
    revoke(&cluster, 0, json!({"issued_before": get_current_timestamp() - 2})).await;
    let mut carol = carol;
    carol.expect_close(4001).await;
    assert_eq!(User::with_token(cluster.ws(1), &signed("carol", "c2", 0)).await.welcome["user"], "carol");
}

#[tokio::test]
async fn a_node_that_begins_learns_what_was_revoked() {
    let mut cluster = Cluster::start(1, CHECKED).await;
    let old = signed("alice", "a1", 100);
    revoke(&cluster, 0, json!({"user": "alice", "issued_before": get_current_timestamp() - 50})).await;
    cluster.add();
    cluster.agree().await;
    let bearer = format!("Authorization: Bearer {old}\r\n");
    let is_refused = |node: usize| {
        let (address, request) = (cluster.ws(node), upgrade_request("/ws", &bearer));
        async move { status(&RawClient::request(address, &request).await.0) == 401 }
    };
    eventually("the new node knows", PATIENCE, || is_refused(1)).await;
}

#[tokio::test]
async fn only_the_api_revokes_and_it_says_what_is_wrong() {
    let cluster = Cluster::start(1, CHECKED).await;
    let request = |bearer: &str, body: Value| {
        let api = cluster.api(0).with_token(bearer);
        let request = api.request(reqwest::Method::POST, "/v1/revocations").json(&body);
        async move { Api::send(request).await }
    };
    let alice = token("alice", 60, &[]);
    assert_eq!(request(&alice, json!({"user": "bob"})).await.0, 403);
    assert_eq!(request("wrong", json!({"user": "bob"})).await.0, 401);
    for bad in [
        json!({}),
        json!([]),
        json!({"user": ""}),
        json!({"jti": "x", "user": "a"}),
        json!({"user": "a", "until": 1}),
    ] {
        let (status, told) = request(API_KEY, bad.clone()).await;
        assert_eq!((status, &told["error"]["code"]), (400, &json!("bad_request")), "{bad}: {told}");
    }
    let bearer = format!("Authorization: Bearer {alice}\r\n");
    assert_eq!(status(&answer(&cluster, "/ws", &bearer).await), 101, "nothing was revoked by a mistake");
}
