//! Mail on whole nodes: what comes when its user is back, and how it is marked.

use serde_json::json;

use crate::support::nodes::Cluster;
use crate::support::user::User;

async fn with_acks(cluster: &Cluster, node: usize, user: &str) -> User {
    User::open(cluster.ws(node), &format!("/ws?user={user}&ack=client"), &[]).await.welcomed().await
}

/// A session that ends without acknowledging may have shown its mail: whoever gets it next is told so.
#[tokio::test]
async fn mail_that_was_shown_and_not_taken_comes_again_and_is_marked() {
    let cluster = Cluster::start(2, &[]).await;
    let mut bob = User::connect(cluster.ws(1), "bob").await;
    for at in 0..3 {
        assert_eq!(bob.publish("user.alice", at).await["outcome"], "stored");
    }
    // On the same node, on the other one, and back.
    for (round, node) in [0, 0, 1, 0].into_iter().enumerate() {
        let mut alice = with_acks(&cluster, node, "alice").await;
        for at in 0..3 {
            let message = alice.message().await;
            let marked = message["redelivered"] == json!(true);
            assert_eq!((&message["payload"], marked), (&json!(at), round > 0), "round {round}: {message}");
        }
        alice.leave().await;
    }
    let mut alice = with_acks(&cluster, 1, "alice").await;
    let mut ids = vec![];
    for _ in 0..3 {
        ids.push(alice.message().await["id"].clone());
    }
    alice.say_text(&json!({"type": "ack", "ids": ids}).to_string()).await;
    alice.leave().await;
    let mut alice = User::connect(cluster.ws(0), "alice").await;
    cluster.knows("alice", &[0]).await;
    assert_eq!(bob.publish("user.alice", "mark").await["outcome"], "delivered");
    assert_eq!(alice.message().await["payload"], "mark", "the mail is gone");
}
