//! What every routing strategy must do alike: receipts, mail, order, presence; and that two of them never mix.

use std::time::{Duration, Instant};

use serde_json::{json, Value};
use tokio::time::timeout;
use warren::directory::Key;
use warren::ids::UserId;
use warren::node::{Failure, Node};

use crate::credentials::token;
use crate::support::api::Api;
use crate::support::eventually::eventually;
use crate::support::nodes::{config, node_id, Cluster, API_KEY, JWT_SECRET, PATIENCE};
use crate::support::user::User;

/// The value of `WARREN_ROUTING`.
fn named(strategy: &str) -> &str {
    if strategy == "ring" {
        "ring-preview"
    } else {
        strategy
    }
}

async fn cluster(routing: &str, count: usize) -> Cluster {
    Cluster::start(count, &[("ROUTING", named(routing))]).await
}

/// Returns when a message for the user is delivered to so many sessions.
async fn delivers(sender: &mut User, receivers: &mut [&mut User], to: &str) {
    let sessions = receivers.len();
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = sender.publish(to, "probe").await;
        if reply["outcome"] == "delivered" && reply["sessions"] == sessions {
            break;
        }
        assert!(Instant::now() < until, "{to} is not delivered to {sessions}: {reply}");
    }
    // Earlier probes went where they could; then comes what the caller sends.
    sender.publish(to, "begin").await;
    for receiver in receivers {
        while receiver.message().await["payload"] != "begin" {}
    }
}

async fn each_session_gets_a_message_once_on_whichever_node(routing: &str) {
    let cluster = cluster(routing, 3).await;
    let mut on_0 = User::connect(cluster.ws(0), "alice").await;
    let mut on_1 = User::connect(cluster.ws(1), "alice").await;
    let mut also_on_1 = User::connect(cluster.ws(1), "alice").await;
    for at in 0..3 {
        let mut bob = User::connect(cluster.ws(at), "bob").await;
        delivers(&mut bob, &mut [&mut on_0, &mut on_1, &mut also_on_1], "user.alice").await;
        for payload in ["one", "two"] {
            let reply = bob.publish("user.alice", payload).await;
            assert_eq!((&reply["outcome"], &reply["sessions"]), (&json!("delivered"), &json!(3)), "{reply}");
        }
        for session in [&mut on_0, &mut on_1, &mut also_on_1] {
            assert_eq!(session.payloads(2).await, ["one", "two"]);
        }
        bob.leave().await;
    }
    also_on_1.leave().await;
    on_1.leave().await;
    let mut bob = User::connect(cluster.ws(2), "bob").await;
    delivers(&mut bob, &mut [&mut on_0], "user.alice").await;
}

async fn mail_waits_and_goes_before_what_is_newer(routing: &str) {
    let cluster = cluster(routing, 3).await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    for payload in 0..20 {
        assert_eq!(bob.publish("user.alice", payload).await["outcome"], "stored");
    }
    for (at, next) in [(1, 20), (2, 40)] {
        let mut alice = User::connect(cluster.ws(at), "alice").await;
        for payload in next..next + 20 {
            let reply = bob.publish("user.alice", payload).await;
            assert!(reply["error"].is_null(), "{reply}");
        }
        let first = if at == 1 { 0 } else { next };
        let expected: Vec<Value> = (first..next + 20).map(Value::from).collect();
        assert_eq!(alice.payloads(expected.len()).await, expected);
        alice.leave().await;
    }
}

async fn a_thousand_messages_keep_their_order(routing: &str) {
    const COUNT: usize = 1_000;
    const WINDOW: usize = 200;
    let cluster = cluster(routing, 3).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut other = User::connect(cluster.ws(2), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    delivers(&mut bob, &mut [&mut alice, &mut other], "user.alice").await;
    let sending = async {
        for n in 0..COUNT + WINDOW {
            if n < COUNT {
                bob.request(json!({"type": "publish", "to": "user.alice", "payload": n})).await;
            }
            if n >= WINDOW {
                let reply = bob.next("reply").await;
                assert_eq!(
                    (&reply["outcome"], &reply["sessions"]),
                    (&json!("delivered"), &json!(2)),
                    "{reply}"
                );
            }
        }
    };
    let ((), one, two) = tokio::join!(sending, alice.payloads(COUNT), other.payloads(COUNT));
    for payloads in [one, two] {
        let wrong = payloads.iter().enumerate().find(|(at, payload)| **payload != *at);
        assert_eq!(wrong, None, "the first in a wrong place");
    }
}

/// Whichever node dies while receipts are awaited, and whether or not it has the user.
async fn a_node_that_dies_while_receipts_are_awaited_costs_nothing(routing: &str) {
    for holder in [1, 2] {
        let mut cluster = cluster(routing, 3).await;
        let mut alice = User::connect(cluster.ws(holder), "alice").await;
        let mut bob = User::connect(cluster.ws(0), "bob").await;
        delivers(&mut bob, &mut [&mut alice], "user.alice").await;
        cluster.broker.freeze(cluster.nodes[2].id(), true);
        let in_flight = bob.request(json!({"type": "publish", "to": "user.alice", "payload": 1})).await;
        assert_eq!(bob.ask(json!({"type": "ping"})).await["outcome"], "ok", "the message has left");
        let killed = Instant::now();
        cluster.kill(2);
        let reply = bob.reply_to(in_flight).await;
        let expected = if holder == 2 { "stored" } else { "delivered" };
        if reply["outcome"] != expected {
            // Its node of the ring died with the message: it was sent again, and may have met the mail.
            assert_eq!((routing, &reply["outcome"]), ("ring", &json!("stored")), "{reply}");
        }
        assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
        if holder == 2 {
            alice.end().await;
            alice = User::connect(cluster.ws(1), "alice").await;
        }
        assert_eq!(alice.message().await["payload"], 1);
        delivers(&mut bob, &mut [&mut alice], "user.alice").await;
    }
}

async fn a_node_that_joins_is_asked_too(routing: &str) {
    let mut cluster = cluster(routing, 2).await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    let mut on_1 = User::connect(cluster.ws(1), "alice").await;
    // Else the first one may be stored, and only one of her sessions gets it.
    delivers(&mut bob, &mut [&mut on_1], "user.alice").await;
    cluster.add();
    timeout(PATIENCE, cluster.nodes[2].ready()).await.expect("it serves");
    // It is known to nobody yet.
    let mut on_2 = User::connect(cluster.ws(2), "alice").await;
    let mut sent = vec![];
    for payload in 0..30 {
        let reply = bob.publish("user.alice", payload).await;
        assert!(reply["error"].is_null(), "{reply}");
        sent.push(Value::from(payload));
    }
    assert_eq!(on_1.payloads(30).await, sent);
    cluster.agree().await;
    delivers(&mut bob, &mut [&mut on_1, &mut on_2], "user.alice").await;
}

async fn a_user_is_found_on_every_node(routing: &str) {
    let cluster = cluster(routing, 3).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let _also = User::connect(cluster.ws(2), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    let found = || async {
        let (status, body) = cluster.api(1).get("/v1/users/alice").await;
        assert_eq!(status, 200);
        body["sessions"].as_array().unwrap().len() == 2
    };
    eventually("both sessions are found", PATIENCE, found).await;
    let asked = json!({"type": "presence", "user": "alice"});
    eventually("the user is online", PATIENCE, || async {
        cluster.api(1).get("/v1/users/alice").await.1["online"] == true
    })
    .await;
    assert_eq!(bob.ask(asked).await["sessions"].as_array().map(Vec::len), Some(2));
    let subscribed = alice.ask(json!({"type": "subscribe", "channel": "room"})).await;
    assert_eq!(subscribed["outcome"], "ok", "{subscribed}");
    bob.publish("channel.room", "to the room").await;
    assert_eq!(alice.message().await["payload"], "to the room");
    let (_, body) = cluster.api(1).get("/v1/channels/room").await;
    assert_eq!(body["users"], json!(["alice"]), "{body}");
}

async fn at_most_once_reaches_who_is_there(routing: &str) {
    let cluster = cluster(routing, 3).await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    delivers(&mut bob, &mut [&mut alice], "user.alice").await;
    let hint = json!({"type": "publish", "to": "user.alice", "delivery": "at_most_once", "payload": "hm"});
    assert_eq!(bob.ask(hint).await["outcome"], "published");
    assert_eq!(alice.message().await["payload"], "hm");
    assert_eq!(bob.publish("user.alice", "mark").await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], "mark");
}

async fn twelve_nodes_do_the_same(routing: &str) {
    let cluster = cluster(routing, 12).await;
    let mut on_3 = User::connect(cluster.ws(3), "alice").await;
    let mut on_0 = User::connect(cluster.ws(0), "alice").await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    delivers(&mut bob, &mut [&mut on_0, &mut on_3], "user.alice").await;
    for payload in 0..50 {
        assert_eq!(bob.publish("user.alice", payload).await["sessions"], 2);
    }
    let expected: Vec<Value> = (0..50).map(Value::from).collect();
    assert_eq!(on_3.payloads(50).await, expected);
    assert_eq!(on_0.payloads(50).await, expected);
    assert_eq!(bob.publish("user.carol", "kept").await["outcome"], "stored");
    let mut carol = User::connect(cluster.ws(7), "carol").await;
    assert_eq!(carol.message().await["payload"], "kept");
}

async fn nothing_is_lost_while_nodes_come_and_go(routing: &str) {
    const COUNT: usize = 1_200;
    /// Under way at any time.
    const WINDOW: usize = 100;
    let settled = |reply: Value| assert!(reply["error"].is_null(), "{reply}");
    let mut cluster = cluster(routing, 4).await;
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    // So many that every node is the home of some.
    let mut users = Vec::new();
    for n in 0..12 {
        users.push(User::connect(cluster.ws(n % 2), &format!("user{n}")).await);
    }
    for n in 0..COUNT {
        let publish = json!({"type": "publish", "to": format!("user.user{}", n % 12), "payload": n});
        bob.request(publish).await;
        match n {
            200 => cluster.kill(3),
            400 => cluster.add(),
            600 => cluster.kill(3),
            800 => cluster.add(),
            _ => {}
        }
        if n >= WINDOW {
            settled(bob.next("reply").await);
        }
    }
    for _ in 0..WINDOW {
        settled(bob.next("reply").await);
    }
    for (n, user) in users.iter_mut().enumerate() {
        let mut missing: std::collections::BTreeSet<u64> = (n..COUNT).step_by(12).map(|n| n as u64).collect();
        let mut last = None;
        while !missing.is_empty() {
            let message = user.message().await;
            let payload = message["payload"].as_u64().unwrap();
            let is_first = missing.remove(&payload);
            if message["redelivered"] != true {
                assert!(is_first, "{payload} comes again without a mark");
                assert!(last < Some(payload), "{payload} comes after {last:?} without a mark");
                last = Some(payload);
            }
        }
    }
}

async fn all_nodes_name_the_same_home(routing: &str) {
    let vars = [
        ("ROUTING", named(routing)),
        ("JWT_SECRET", JWT_SECRET),
        ("API_KEYS", API_KEY),
        ("PUBLIC_URL", "https://n.example"),
    ];
    let cluster = Cluster::start(3, &vars).await;
    // Each node hears where the others are with their first heartbeat.
    let home = |at: usize, user: String| {
        let api = cluster.api(at).with_token(API_KEY);
        async move { api.get(&format!("/v1/users/{user}/home")).await }
    };
    let mut homes = std::collections::BTreeSet::new();
    for n in 0..20 {
        let (status, said) = home(0, format!("user{n}")).await;
        assert_eq!((status, &said["routing"]), (200, &json!(named(routing))), "{said}");
        homes.insert(said["node"].as_str().unwrap().to_owned());
        for at in 1..3 {
            assert_eq!(home(at, format!("user{n}")).await.1["node"], said["node"]);
        }
        eventually("its URL is known", PATIENCE, || async {
            home(1, format!("user{n}")).await.1["url"] == "https://n.example"
        })
        .await;
    }
    assert_eq!(homes.len(), 3, "every node is somebody's home");
    let alice = cluster.api(0).with_token(&token("alice", 60, &[]));
    assert_eq!(alice.status("/v1/users/alice/home").await, 200);
    assert_eq!(alice.status("/v1/users/bob/home").await, 403);
    assert_eq!(cluster.api(0).status("/v1/users/alice/home").await, 401);
    assert_eq!(cluster.api(0).with_token(API_KEY).status("/v1/users/%FF/home").await, 400);
}

macro_rules! for_each_strategy {
    ($($strategy:ident)* => $tests:tt) => { $(for_each_strategy!(@ $strategy $tests);)* };
    (@ $strategy:ident { $($test:ident)* }) => {
        mod $strategy {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(stringify!($strategy)).await;
                }
            )*
        }
    };
}

for_each_strategy!(directory broadcast ring => {
    each_session_gets_a_message_once_on_whichever_node
    mail_waits_and_goes_before_what_is_newer
    a_thousand_messages_keep_their_order
    a_node_that_dies_while_receipts_are_awaited_costs_nothing
    a_node_that_joins_is_asked_too
    a_user_is_found_on_every_node
    at_most_once_reaches_who_is_there
    twelve_nodes_do_the_same
    nothing_is_lost_while_nodes_come_and_go
    all_nodes_name_the_same_home
});

#[tokio::test]
async fn users_are_gossiped_only_where_somebody_needs_it() {
    let alice = Key::user(&UserId::new("alice").unwrap());
    let cases = [
        ("broadcast", "none", false),
        ("broadcast", "users", true),
        ("ring", "none", false),
        ("ring", "users", true),
    ];
    for (routing, events, is_known) in cases {
        let cluster = Cluster::start(2, &[("ROUTING", named(routing)), ("EVENTS", events)]).await;
        let mut user = User::connect(cluster.ws(0), "alice").await;
        user.ask(json!({"type": "subscribe", "channel": "room"})).await;
        // The subscription is known everywhere now, and whatever was said of the user went before it.
        let directory = cluster.nodes[1].router().directory();
        let knows = || async { directory.nodes_of(alice).len() == usize::from(is_known) };
        eventually("what the other node knows of the user", PATIENCE, knows).await;
        assert_eq!(directory.peers()[0].keys, 1 + usize::from(is_known));
    }
}

#[tokio::test]
async fn nodes_that_route_in_another_way_are_refused_and_not_believed() {
    let cluster = cluster("broadcast", 2).await;
    // Long enough to be at home: these two stay.
    eventually("both are sure", PATIENCE, || async {
        cluster.nodes.iter().all(|node| node.router().directory().is_sure())
    })
    .await;
    let (bus, inboxes) = cluster.broker.attach(node_id("odd"));
    let odd = Node::start_on(config("odd", &[("ROUTING", "directory")]), bus, inboxes).unwrap();
    let failure = timeout(PATIENCE, odd.failed()).await.expect("it refuses to join");
    let Failure::Misplaced(why) = &failure else { panic!("{failure}") };
    assert!(why.contains("\"broadcast/1\"") && why.contains("\"directory/1\""), "{why}");
    assert!(why.contains("WARREN_ROUTING"), "{why}");
    let (status, body) = Api::new(odd.admin()).get("/readyz").await;
    assert_eq!(status, 503, "{body}");
    for node in &cluster.nodes {
        let directory = node.router().directory();
        assert_eq!(directory.peers().len(), 1, "the stranger is no peer");
        assert!(timeout(Duration::from_millis(100), node.failed()).await.is_err(), "{} goes on", node.id());
    }
    let mut bob = User::connect(cluster.ws(0), "bob").await;
    let mut alice = User::connect(cluster.ws(1), "alice").await;
    delivers(&mut bob, &mut [&mut alice], "user.alice").await;
}
