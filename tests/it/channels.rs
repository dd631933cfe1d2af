//! Channels on one node: subscribing, limits, capabilities, and messages to subscribers and to no others.

use std::sync::Arc;

use serde_json::{json, Value};
use warren::clock::Now;
use warren::directory::Key;
use warren::hub::Hub;
use warren::ids::{ChannelName, SessionId};
use warren::protocol::message::{Rendered, Sender};
use warren::protocol::publish::PublishRequest;

use crate::credentials::token;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, CHECKED, PATIENCE};
use crate::support::user::User;

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

async fn tell(hub: &Hub, name: &str, payload: usize, except: Option<&User>) {
    let body = json!({"to": format!("channel.{name}"), "payload": payload}).to_string();
    let request = PublishRequest::parse(&body).unwrap();
    let sender = Sender::Service { service: "test".into() };
    let message = Rendered::new(Arc::new(request.into_message(sender, Now::read()).unwrap()));
    let except = except.map(|user| hub.counter_of(SessionId::parse(user.session()).unwrap().number));
    while let Err(full) = hub.deliver_channel(&channel(name), &message, except) {
        hub.room(full).await;
    }
}

async fn subscribe(user: &mut User, name: &str) -> Value {
    user.ask(json!({"type": "subscribe", "channel": name})).await
}

#[tokio::test]
async fn subscribers_get_a_channels_messages_in_order_and_others_do_not() {
    const COUNT: usize = 500;
    let cluster = Cluster::start(2, &[("WORKERS", "2")]).await;
    let hub = cluster.nodes[0].router().hub();
    let mut users = Vec::new();
    for at in 0..6 {
        users.push(User::connect(cluster.ws(0), &format!("user{at}")).await);
    }
    for (at, user) in users.iter_mut().take(4).enumerate() {
        let reply = subscribe(user, "room").await;
        assert_eq!((&reply["outcome"], &reply["count"]), (&json!("ok"), &json!(at + 1)), "{reply}");
        assert_eq!(subscribe(user, "room").await["count"], json!(at + 1), "subscribed once");
    }
    let key = Key::channel(&channel("room"));
    eventually("the other node knows of the channel", PATIENCE, || async {
        *cluster.nodes[1].router().directory().nodes_of(key) == [cluster.nodes[0].id().clone()]
    })
    .await;
    for payload in 0..COUNT {
        let except = (payload % 100 == 99).then(|| &users[0]);
        tell(hub, "room", payload, except).await;
        tell(hub, "elsewhere", payload, None).await;
    }
    for (at, user) in users.iter_mut().take(4).enumerate() {
        let expected: Vec<Value> =
            (0..COUNT).filter(|payload| at > 0 || payload % 100 != 99).map(Value::from).collect();
        assert_eq!(user.payloads(expected.len()).await, expected);
    }
    let reply = users[0].ask(json!({"type": "unsubscribe", "channel": "room"})).await;
    assert_eq!(reply["outcome"], "ok");
    let reply = users[0].ask(json!({"type": "unsubscribe", "channel": "room"})).await;
    assert_eq!(reply["outcome"], "ok", "unsubscribing is idempotent");
    tell(hub, "room", 7, None).await;
    assert_eq!(users[1].message().await["payload"], 7);
    for user in [0, 4, 5] {
        assert_eq!(users[user].ask(json!({"type": "ping"})).await["outcome"], "ok");
        assert!(users[user].kept("message").is_empty(), "user{user}");
    }
    // The last ones leave without unsubscribing.
    drop(users);
    eventually("nobody subscribes", PATIENCE, || async {
        let known = cluster.nodes[1].router().directory().nodes_of(key);
        hub.users_in(&channel("room"), 0).1 == 0 && known.is_empty()
    })
    .await;
}

#[tokio::test]
async fn subscriptions_are_bounded_and_wrong_ones_are_refused() {
    let cluster = Cluster::start(1, &[("CHANNELS_PER_SESSION", "2")]).await;
    let mut user = User::connect(cluster.ws(0), "alice").await;
    for name in ["a", "b", "a"] {
        assert_eq!(subscribe(&mut user, name).await["outcome"], "ok");
    }
    for request in [
        json!({"type": "subscribe", "channel": "c"}),
        json!({"type": "subscribe", "channel": ""}),
        json!({"type": "subscribe", "channel": null}),
        json!({"type": "subscribe", "channel": "a", "presence": "yes"}),
        json!({"type": "unsubscribe", "channel": 5}),
    ] {
        let reply = user.ask(request.clone()).await;
        assert_eq!(reply["error"]["code"], "bad_request", "{request}: {reply}");
    }
    user.ask(json!({"type": "unsubscribe", "channel": "a"})).await;
    assert_eq!(subscribe(&mut user, "c").await["outcome"], "ok");
    user.leave().await;
}

#[tokio::test]
async fn a_token_says_which_channels_may_be_subscribed_to() {
    let cluster = Cluster::start(1, CHECKED).await;
    let mut usual = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    assert_eq!(subscribe(&mut usual, "room").await["outcome"], "ok");
    assert_eq!(subscribe(&mut usual, "private.room").await["error"]["code"], "forbidden");
    let caps = ["subscribe:private.*", "subscribe:channel.news"];
    let mut listed = User::with_token(cluster.ws(0), &token("bob", 60, &caps)).await;
    for name in ["private.room", "news"] {
        assert_eq!(subscribe(&mut listed, name).await["outcome"], "ok");
    }
    assert_eq!(subscribe(&mut listed, "room").await["error"]["code"], "forbidden");
    // A new token that allows less ends what the old one allowed.
    let less = token("bob", 60, &["subscribe:news"]);
    let reply = listed.ask(json!({"type": "refresh", "token": less})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    let unsubscribed = listed.next("unsubscribed").await;
    assert_eq!(
        (&unsubscribed["channel"], &unsubscribed["reason"]),
        (&json!("private.room"), &json!("forbidden"))
    );
    let hub = cluster.nodes[0].router().hub();
    let users = |name| hub.users_in(&channel(name), 0).1;
    assert_eq!((users("private.room"), users("news")), (0, 1));
}
