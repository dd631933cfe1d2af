//! One-time tickets, for clients that cannot set headers.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{json, Value};

use crate::credentials::{answer, status, token};
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, API_KEY, CHECKED, PATIENCE};
use crate::support::raw_ws::{upgrade_request, RawClient};
use crate::support::user::User;

async fn ask(api: &Api, body: &Value) -> (u16, Value) {
    Api::send(api.request(Method::POST, "/v1/tickets").json(body)).await
}

async fn ticket(api: &Api, body: &Value) -> String {
    let (status, answer) = ask(api, body).await;
    assert_eq!((status, &answer["expires_in_ms"].is_u64()), (200, &true), "{answer}");
    answer["ticket"].as_str().unwrap().to_owned()
}

/// The status of a handshake with this ticket.
async fn opens(cluster: &Cluster, node: usize, ticket: &str) -> u16 {
    let request = upgrade_request(&format!("/ws?ticket={ticket}"), "");
    status(&RawClient::request(cluster.ws(node), &request).await.0)
}

#[tokio::test]
async fn a_ticket_opens_one_session_on_any_node_by_every_door() {
    let cluster = Cluster::start(2, CHECKED).await;
    let own = cluster.api(0).with_token(&token("alice", 60, &["publish:user.alice"]));
    for node in [0, 1] {
        let first = ticket(&own, &json!({})).await;
        let mut alice =
            User::open(cluster.ws(node), &format!("/ws?ticket={first}"), &[]).await.welcomed().await;
        assert_eq!(alice.welcome["user"], "alice");
        assert_eq!(alice.publish("user.alice", 1).await["outcome"], "delivered");
        assert_eq!(
            alice.publish("user.bob", 1).await["error"]["code"],
            "forbidden",
            "the rights are the token's"
        );
        assert_eq!(opens(&cluster, node, &first).await, 401, "used");
        assert_eq!(opens(&cluster, 1 - node, &first).await, 401, "used, on another node");
        alice.leave().await;
        // Some clients encode more than they must.
        let encoded = ticket(&own, &json!({})).await.replace('~', "%7E");
        assert_eq!(opens(&cluster, node, &encoded).await, 101);
        let by_sockjs = ticket(&own, &json!({})).await;
        let path = format!("/sockjs/000/abcd/websocket?ticket={by_sockjs}");
        let mut client = RawClient::connect(cluster.ws(node), &path).await;
        assert_eq!(client.read_frame().await.unwrap().payload, b"o");
        let welcome = String::from_utf8(client.read_frame().await.unwrap().payload).unwrap();
        assert!(welcome.contains("alice"), "{welcome}");
    }
    // A backend names the user and the rights; the body may be empty for oneself.
    let service = cluster.api(1).with_token(API_KEY);
    let body =
        json!({"user": "bob", "caps": ["publish:user.bob"], "channels": ["room"], "session_seconds": 600});
    let bobs = ticket(&service, &body).await;
    let mut bob = User::open(cluster.ws(0), &format!("/ws?ticket={bobs}"), &[]).await.welcomed().await;
    assert_eq!((&bob.welcome["user"], &bob.welcome["channels"]), (&json!("bob"), &json!(["room"])));
    assert_eq!(bob.publish("user.alice", 1).await["error"]["code"], "forbidden");
    let empty = own.request(Method::POST, "/v1/tickets").send().await.unwrap();
    assert_eq!(
        (empty.status(), empty.headers()["cache-control"].as_bytes()),
        (200.try_into().unwrap(), &b"no-store"[..])
    );
    for (api, body, expected) in [
        (&own, json!({"user": "bob"}), 403),
        (&own, json!({"caps": ["api"]}), 400),
        (&service, json!({}), 400),
        (&service, json!({"user": "bob", "caps": ["nonsense"]}), 400),
        (&cluster.api(0), json!({}), 401),
    ] {
        assert_eq!(ask(api, &body).await.0, expected, "{body}");
    }
}

#[tokio::test]
async fn of_two_nodes_that_get_a_ticket_at_once_one_takes_it() {
    let cluster = Cluster::start(3, CHECKED).await;
    let service = cluster.api(0).with_token(API_KEY);
    for round in 0..40 {
        let shared = ticket(&service, &json!({"user": format!("u{round}")})).await;
        let tries = (0..6).map(|at| opens(&cluster, at % 3, &shared));
        let mut statuses = join_all(tries).await;
        statuses.sort_unstable();
        // After many refusals the address has used up its guesses.
        assert_eq!(statuses[0], 101, "round {round}");
        assert!(
            statuses[1..].iter().all(|status| [401, 429].contains(status)),
            "round {round}: {statuses:?}"
        );
    }
}

#[tokio::test]
async fn a_ticket_ends_with_its_time_its_token_and_its_node() {
    let mut cluster = Cluster::start(2, &[CHECKED, &[("TICKET_TTL_MS", "1000")]].concat()).await;
    let service = cluster.api(0).with_token(API_KEY);
    let mut old = Vec::new();
    while let (200, answer) = ask(&service, &json!({"user": "old"})).await {
        old.push(answer["ticket"].as_str().unwrap().to_owned());
    }
    let has_room = || async { ask(&service, &json!({"user": "old"})).await.0 == 200 };
    eventually("the time of the first one is over", PATIENCE, has_room).await;
    assert_eq!(opens(&cluster, 1, &old[0]).await, 401);
    // Revoked while it is open.
    let revoked = ticket(&cluster.api(0).with_token(&token("mallory", 60, &[])), &json!({})).await;
    let revoke = service.request(Method::POST, "/v1/revocations").json(&json!({"user": "mallory"}));
    assert_eq!(Api::send(revoke).await.0, 200);
    assert_eq!(opens(&cluster, 1, &revoked).await, 401);
    // A session that a service's ticket opens ends like one with a token.
    let short = ticket(&service, &json!({"user": "short", "session_seconds": 1})).await;
    let mut short = User::open(cluster.ws(1), &format!("/ws?ticket={short}"), &[]).await.welcomed().await;
    short.expect_close(4105).await;
    // Nobody knows the tickets of a node that is gone.
    let orphan = ticket(&service, &json!({"user": "orphan"})).await;
    cluster.kill(0);
    eventually("it is noticed", PATIENCE * 3, || async {
        cluster.nodes[0].router().directory().peers().is_empty()
    })
    .await;
    assert_eq!(opens(&cluster, 0, &orphan).await, 401);
}

#[tokio::test]
async fn guesses_are_limited_and_users_have_a_share() {
    let cluster = Cluster::start(2, CHECKED).await;
    let alice = cluster.api(0).with_token(&token("alice", 60, &[]));
    let mut issued = Vec::new();
    let refused = loop {
        match ask(&alice, &json!({})).await {
            (200, answer) => issued.push(answer["ticket"].as_str().unwrap().to_owned()),
            refused => break refused,
        }
        assert!(issued.len() <= 64);
    };
    assert_eq!((refused.0, &refused.1["error"]["code"]), (429, &json!("rate_limited")));
    assert!(
        alice.publish(&json!({"to": "user.alice", "payload": 1})).await.0 == 200,
        "a share of tickets alone"
    );

    // Of this node, of the other one, of none, and what is no ticket.
    let guesses = ["n0~", "n1~", "n9~"].map(|node| format!("{node}{:032x}", rand::random::<u128>()));
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for _ in 0..20 {
        for guess in guesses.iter().map(String::as_str).chain(["x", "n0~x", "%ff"]) {
            *statuses.entry(opens(&cluster, 1, guess).await).or_default() += 1;
        }
    }
    assert!(statuses[&401] >= 50 && statuses[&429] >= 40 && statuses.len() == 2, "{statuses:?}");
    // A good one of this node is taken from the same address.
    let own = ticket(&cluster.api(1).with_token(API_KEY), &json!({"user": "bob"})).await;
    assert_eq!(opens(&cluster, 1, &own).await, 101);
    // Two credentials at once are a mistake, and the ticket stays good.
    let both = answer(
        &cluster,
        &format!("/ws?ticket={}", issued[0]),
        &format!("Authorization: Bearer {}\r\n", token("alice", 60, &[])),
    )
    .await;
    assert_eq!(status(&both), 401);
    assert_eq!(opens(&cluster, 0, &issued[0]).await, 101);
}
