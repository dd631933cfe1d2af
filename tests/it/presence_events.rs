//! Who comes to a channel and leaves it, as sessions are told that subscribed with `presence: true`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{json, Value};
use warren::clock::Now;
use warren::ids::{ChannelName, UserId};
use warren::protocol::message::{Rendered, Sender};
use warren::protocol::publish::PublishRequest;

use crate::credentials::token;
use crate::support::eventually::eventually;
use crate::support::nodes::{Cluster, CHECKED, PATIENCE};
use crate::support::user::User;

async fn subscribe(user: &mut User, name: &str) -> Value {
    let reply = user.ask(json!({"type": "subscribe", "channel": name})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    reply["count"].clone()
}

async fn unsubscribe(user: &mut User, name: &str) {
    user.ask(json!({"type": "unsubscribe", "channel": name})).await;
}

async fn listen(user: &mut User, name: &str) -> Value {
    let reply = user.ask(json!({"type": "subscribe", "channel": name, "presence": true})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    reply["count"].clone()
}

fn change(event: &str, user: &str, count: usize) -> Value {
    json!({"type": "presence", "channel": "room", "event": event, "user": user, "count": count})
}

/// What a page would show: the users that it was told of.
struct Shown(BTreeSet<String>);

impl Shown {
    /// Asks for the list, and takes changes from then on.
    async fn begin(user: &mut User) -> Self {
        let reply = user.ask(json!({"type": "presence", "channel": "room"})).await;
        let mut shown = Self(BTreeSet::new());
        shown.replace(&reply);
        shown
    }

    fn replace(&mut self, list: &Value) {
        let users = list["users"].as_array().unwrap_or_else(|| panic!("{list}"));
        self.0 = users.iter().map(|user| user.as_str().unwrap().to_owned()).collect();
        assert_eq!(list["count"], json!(self.0.len()));
    }

    fn take(&mut self, frame: &Value) {
        let user = || frame["user"].as_str().unwrap_or_else(|| panic!("{frame}")).to_owned();
        match frame["event"].as_str().unwrap() {
            "join" => assert!(self.0.insert(user()), "{frame}"),
            "leave" => assert!(self.0.remove(&user()), "{frame}"),
            "state" => self.replace(frame),
            other => panic!("{other}"),
        }
        assert_eq!(frame["count"], json!(self.0.len()));
    }

    async fn until(&mut self, user: &mut User, truth: &BTreeSet<String>) {
        while self.0 != *truth {
            self.take(&user.next("presence").await);
        }
    }
}

#[tokio::test]
async fn joins_and_leaves_on_all_nodes_are_told_once_for_each_user() {
    let cluster = Cluster::start(3, &[("WORKERS", "2")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    assert_eq!(listen(&mut alice, "room").await, json!(1));
    let mut others = Vec::new();
    for (at, name) in ["bob", "carol", "bob", "alice"].into_iter().enumerate() {
        others.push(User::connect(cluster.ws((at + 1) % 3), name).await);
    }
    assert_eq!(subscribe(&mut others[0], "room").await, json!(2));
    assert_eq!(alice.next("presence").await, change("join", "bob", 2));
    assert_eq!(listen(&mut others[1], "room").await, json!(3));
    assert_eq!(alice.next("presence").await, change("join", "carol", 3));
    // Other sessions of users who are there.
    assert_eq!(subscribe(&mut others[2], "room").await, json!(3));
    assert_eq!(listen(&mut others[3], "room").await, json!(3));
    let reply = alice.ask(json!({"type": "presence", "channel": "room"})).await;
    assert_eq!((&reply["count"], &reply["users"]), (&json!(3), &json!(["alice", "bob", "carol"])));
    // Bob's first session goes, and he stays; with the second one he is gone.
    others.remove(0).leave().await;
    unsubscribe(&mut others[1], "room").await;
    assert_eq!(alice.next("presence").await, change("leave", "bob", 2));
    for listener in [0, 2] {
        assert_eq!(others[listener].next("presence").await, change("leave", "bob", 2), "{listener}");
        assert!(others[listener].kept("presence").is_empty(), "nothing of what was before it came");
    }
    assert!(alice.kept("presence").is_empty());
    // Whoever asks no more hears no more, and others do.
    let reply = alice.ask(json!({"type": "subscribe", "channel": "room", "presence": false})).await;
    assert_eq!(reply["count"], 2);
    assert_eq!(subscribe(&mut others[1], "room").await, json!(3));
    assert_eq!(others[0].next("presence").await, change("join", "bob", 3));
    unsubscribe(&mut others[1], "room").await;
    assert_eq!(others[0].next("presence").await, change("leave", "bob", 2));
    assert_eq!(subscribe(&mut alice, "room").await, json!(2), "a reply behind whatever else was sent");
    assert!(alice.kept("presence").is_empty());
}

#[tokio::test]
async fn a_user_who_is_back_within_the_window_did_not_leave() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    listen(&mut alice, "room").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    let mut elsewhere = User::connect(cluster.ws(0), "bob").await;
    subscribe(&mut bob, "room").await;
    assert_eq!(alice.next("presence").await, change("join", "bob", 2));
    // A page that is loaded again comes to another node: its new session is there when the old one is gone.
    for _ in 0..5 {
        elsewhere.request(json!({"type": "subscribe", "channel": "room"})).await;
        elsewhere.next("reply").await;
        unsubscribe(&mut bob, "room").await;
        std::mem::swap(&mut bob, &mut elsewhere);
    }
    let mut last = User::connect(cluster.ws(1), "carol").await;
    subscribe(&mut last, "room").await;
    assert_eq!(alice.next("presence").await, change("join", "carol", 3), "the next that is told");
}

/// Many users come, move and go while nodes die; then listeners know the truth, and within two seconds of a death.
#[tokio::test]
async fn listeners_know_the_truth_after_moves_and_a_death() {
    const USERS: usize = 40;
    let mut cluster = Cluster::start(3, &[]).await;
    let mut listeners =
        [User::connect(cluster.ws(0), "ear0").await, User::connect(cluster.ws(1), "ear1").await];
    let mut shown = Vec::new();
    for listener in &mut listeners {
        listen(listener, "room").await;
        shown.push(Shown::begin(listener).await);
    }
    let mut users: Vec<(usize, usize, User)> = Vec::new();
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    for round in 0..150 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (who, node) = (random as usize % USERS, (random >> 32) as usize % 3);
        if round % 3 == 2 && !users.is_empty() {
            users.swap_remove(who % users.len());
        } else {
            let mut user = User::connect(cluster.ws(node), &format!("user{who}")).await;
            subscribe(&mut user, "room").await;
            users.push((who, node, user));
        }
    }
    let truth = |users: &[(usize, usize, User)]| -> BTreeSet<String> {
        let names = users.iter().map(|(who, _, _)| format!("user{who}"));
        names.chain(["ear0".to_owned(), "ear1".to_owned()]).collect()
    };
    for (listener, shown) in listeners.iter_mut().zip(&mut shown) {
        shown.until(listener, &truth(&users)).await;
    }
    // The last node dies with all its sessions.
    users.retain(|(_, node, _)| *node != 2);
    let before = Instant::now();
    cluster.kill(2);
    for (listener, shown) in listeners.iter_mut().zip(&mut shown) {
        shown.until(listener, &truth(&users)).await;
    }
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    // Nothing else is on its way.
    for (listener, shown) in listeners.iter_mut().zip(&mut shown) {
        let reply = listener.ask(json!({"type": "presence", "channel": "room"})).await;
        assert_eq!(reply["count"], json!(shown.0.len()));
        let kept: Vec<Value> = listener.kept("presence").into_iter().cloned().collect();
        kept.iter().for_each(|frame| shown.take(frame));
        assert_eq!(shown.0, truth(&users));
    }
}

#[tokio::test]
async fn after_an_outage_of_the_broker_listeners_know_the_truth() {
    let cluster = Cluster::start(2, &[]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    listen(&mut alice, "room").await;
    let mut shown = Shown::begin(&mut alice).await;
    let mut others = Vec::new();
    for name in ["bob", "carol"] {
        let mut user = User::connect(cluster.ws(1), name).await;
        subscribe(&mut user, "room").await;
        others.push(user);
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    shown.until(&mut alice, &names(&["alice", "bob", "carol"])).await;
    for node in &cluster.nodes {
        cluster.broker.cut(node.id());
    }
    eventually("the nodes notice it", PATIENCE, || async {
        cluster.nodes.iter().all(|node| node.router().directory().this_node().incarnation.is_none())
    })
    .await;
    others.remove(0).leave().await;
    let mut dave = User::connect(cluster.ws(1), "dave").await;
    dave.request(json!({"type": "subscribe", "channel": "room"})).await;
    // What happens on the own node is told all the while.
    let mut erin = User::connect(cluster.ws(0), "erin").await;
    erin.request(json!({"type": "subscribe", "channel": "room"})).await;
    shown.until(&mut alice, &names(&["alice", "bob", "carol", "erin"])).await;
    for node in &cluster.nodes {
        cluster.broker.restore(node.id());
    }
    shown.until(&mut alice, &names(&["alice", "carol", "dave", "erin"])).await;
}

#[tokio::test]
async fn a_token_says_who_may_listen() {
    let cluster = Cluster::start(1, CHECKED).await;
    let mut usual = User::with_token(cluster.ws(0), &token("alice", 60, &[])).await;
    assert_eq!(listen(&mut usual, "room").await, json!(1));
    let ask = json!({"type": "subscribe", "channel": "room", "presence": true});
    let mut blind = User::with_token(cluster.ws(0), &token("bob", 60, &["subscribe:*"])).await;
    assert_eq!(blind.ask(ask.clone()).await["error"]["code"], "forbidden");
    assert_eq!(subscribe(&mut blind, "room").await, json!(2));
    assert_eq!(usual.next("presence").await, change("join", "bob", 2));
    let seeing = token("carol", 60, &["subscribe:*", "presence:room"]);
    let mut seeing = User::with_token(cluster.ws(0), &seeing).await;
    assert_eq!(seeing.ask(ask).await["count"], json!(3));
    // A token that shows less.
    let less = token("carol", 60, &["subscribe:*"]);
    assert_eq!(seeing.ask(json!({"type": "refresh", "token": less})).await["outcome"], "ok");
    unsubscribe(&mut blind, "room").await;
    assert_eq!(usual.next("presence").await, change("join", "carol", 3));
    assert_eq!(usual.next("presence").await, change("leave", "bob", 2));
    assert_eq!(subscribe(&mut seeing, "room").await, json!(2));
    assert!(seeing.kept("presence").is_empty());
    for wrong in [json!("yes"), json!(1), json!({})] {
        let reply = usual.ask(json!({"type": "subscribe", "channel": "room", "presence": wrong})).await;
        assert_eq!(reply["error"]["code"], "bad_request", "{reply}");
    }
}

/// Above a thousand users only numbers are told, few of them, and the list comes back when there are fewer again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_counted_and_not_listed() {
    const CROWD: usize = 1_200;
    let cluster = Cluster::start(2, &[("WORKERS", "2"), ("CONNECTIONS_PER_ADDRESS", "10000")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    listen(&mut alice, "room").await;
    let mut crowd = Vec::new();
    for part in 0..CROWD / 100 {
        let come = (0..100).map(|at| {
            let (addr, name) = (cluster.ws(1), format!("user{}", part * 100 + at));
            async move {
                let mut user = User::connect(addr, &name).await;
                subscribe(&mut user, "room").await;
                user
            }
        });
        crowd.extend(join_all(come).await);
    }
    let (mut named, mut counted) = (0, 0);
    loop {
        let frame = alice.next("presence").await;
        assert_eq!(frame["event"], "join", "{frame}");
        match frame.get("user") {
            Some(_) => named += 1,
            None => counted += 1,
        }
        if frame["count"] == json!(CROWD + 1) {
            break;
        }
    }
    assert!(named <= 1_000 && counted >= 1, "{named} {counted}");
    let reply = alice.ask(json!({"type": "presence", "channel": "room"})).await;
    assert_eq!((reply.get("users"), &reply["count"]), (None, &json!(CROWD + 1)), "{reply}");
    crowd.truncate(10);
    let mut shown = Shown(BTreeSet::new());
    let truth = (0..10).map(|at| format!("user{at}")).chain(["alice".to_owned()]).collect();
    loop {
        let frame = alice.next("presence").await;
        if frame.get("user").is_some() || frame["event"] == "state" {
            shown.take(&frame);
            shown.until(&mut alice, &truth).await;
            return;
        }
        assert_eq!(frame["event"], "leave", "{frame}");
    }
}

/// A client that does not read is neither closed for what it was told of others, nor does it cost memory; when it reads
/// again it is told who is there.
#[tokio::test]
async fn a_client_that_missed_changes_is_told_the_state() {
    const COMERS: usize = 300;
    let cluster = Cluster::start(1, &[("OUTBOX_BYTES", "65536")]).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    listen(&mut alice, "room").await;
    let mut shown = Shown::begin(&mut alice).await;
    // More than the kernel takes for a socket that is not read, and less than the longest frame that the client takes.
    let body = json!({"to": "broadcast", "payload": "x".repeat(15 << 20)}).to_string();
    let request = PublishRequest::parse(&body).unwrap();
    let sender = Sender::Service { service: "test".into() };
    let message = Rendered::new(Arc::new(request.into_message(sender, Now::read()).unwrap()));
    let router = cluster.nodes[0].router();
    router.hub().deliver_all(&message).unwrap();
    // Bob reads, so that it is known what was told.
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    assert_eq!(listen(&mut bob, "room").await, json!(2));
    // Names as long as they may be: their joins are more than the outbox holds.
    let names: Vec<String> = (0..COMERS).map(|at| format!("{at:0>128}")).collect();
    let room = ChannelName::new("room").unwrap();
    for name in &names {
        router.open_subscription(&room, 0, &UserId::new(name).unwrap(), Box::new(|| ()));
    }
    while bob.next("presence").await["count"] != json!(COMERS + 2) {}
    for name in &names[10..] {
        router.close_subscription(&room, 0, &UserId::new(name).unwrap());
    }
    while bob.next("presence").await["count"] != json!(12) {}
    let truth = names[..10].iter().cloned().chain(["alice".to_owned(), "bob".to_owned()]).collect();
    let mut states = 0;
    while shown.0 != truth {
        let frame = alice.next("presence").await;
        states += usize::from(frame["event"] == "state");
        shown.take(&frame);
    }
    assert!(states > 0, "what it missed was not told one by one");
    assert_eq!(alice.ask(json!({"type": "ping"})).await["outcome"], "ok");
}
