//! The number of users in a channel, as the reply to `subscribe` tells it: of all nodes, each user once.

use futures_util::future::join_all;
use serde_json::{json, Value};
use warren::ids::ChannelName;

use crate::support::nodes::Cluster;
use crate::support::user::User;

async fn subscribe(user: &mut User, name: &str) -> Value {
    let reply = user.ask(json!({"type": "subscribe", "channel": name})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    reply["count"].clone()
}

#[tokio::test]
async fn each_user_of_the_cluster_counts_once() {
    let cluster = Cluster::start(3, &[]).await;
    let mut users = Vec::new();
    for (at, name) in ["alice", "bob", "carol", "alice", "dave", "bob"].into_iter().enumerate() {
        users.push(User::connect(cluster.ws(at % 3), name).await);
    }
    for (user, count) in users.iter_mut().zip([1, 2, 3, 3, 4, 4]) {
        assert_eq!(subscribe(user, "room").await, json!(count));
        assert_eq!(subscribe(user, "room").await, json!(count), "the same again");
    }
    // Alice is still there with her other session.
    users[0].ask(json!({"type": "unsubscribe", "channel": "room"})).await;
    assert_eq!(subscribe(&mut users[1], "room").await, json!(4));
    users[3].ask(json!({"type": "unsubscribe", "channel": "room"})).await;
    assert_eq!(subscribe(&mut users[2], "room").await, json!(3));
}

/// Everybody comes at once: nobody is told less than who had a reply before, and the last one is told of all.
#[tokio::test]
async fn a_storm_of_subscriptions_is_counted_together() {
    const USERS: usize = 300;
    let cluster = Cluster::start(3, &[("WORKERS", "2")]).await;
    let connects = (0..USERS).map(|at| {
        let addr = cluster.ws(at % 3);
        async move { User::connect(addr, &format!("user{at}")).await }
    });
    let mut users = join_all(connects).await;
    let counts = join_all(users.iter_mut().map(|user| subscribe(user, "room"))).await;
    assert!(counts.iter().all(|count| (1..=USERS as u64).contains(&count.as_u64().unwrap())), "{counts:?}");
    assert_eq!(subscribe(&mut users[0], "room").await, json!(USERS));
    let channel = ChannelName::new("room").unwrap();
    let router = cluster.nodes[0].router();
    let (counted, listed) = tokio::join!(router.count_in(&channel), router.members_of(&channel));
    assert_eq!((counted, listed.count), (USERS as u64, USERS as u64));
}

/// Whoever waits for a count is not left alone by one who went away while asking.
#[tokio::test]
async fn one_who_gives_up_asking_leaves_the_turn_to_the_next() {
    let cluster = Cluster::start(2, &[]).await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    subscribe(&mut bob, "room").await;
    let channel = ChannelName::new("room").unwrap();
    let router = cluster.nodes[0].router();
    for _ in 0..20 {
        let mut first = Box::pin(router.count_in(&channel));
        let mut second = Box::pin(router.count_in(&channel));
        let mut third = Box::pin(router.count_in(&channel));
        // Each has begun, in this order.
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(first);
        drop(third);
        assert_eq!(second.await, 1);
    }
}
