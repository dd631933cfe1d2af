//! What one message for a user costs a broker with each routing strategy: the figures of `docs/routing.md`.

use std::sync::Arc;

use tokio::time::timeout;
use warren::bus::memory::MemoryBroker;
use warren::node::Node;

use crate::counting_bus::{Counting, Counts};
use crate::support::eventually::eventually;
use crate::support::nodes::{config, node_id, PATIENCE};
use crate::support::user::User;

const USERS: usize = 24;
const ROUNDS: usize = 4;

/// Published and copies for each message from the first node to users of the others, one at a time.
async fn cost(routing: &str, size: usize) -> (f64, f64) {
    let (broker, counts) = (MemoryBroker::new(), Arc::new(Counts::default()));
    let mut nodes = Vec::new();
    for at in 0..size {
        let name = format!("n{at}");
        let (bus, inboxes) = broker.attach(node_id(&name));
        let bus = Arc::new(Counting { bus, counts: counts.clone(), nodes: size });
        nodes.push(Node::start_on(config(&name, &[("ROUTING", routing)]), bus, inboxes).unwrap());
    }
    for node in &nodes {
        timeout(PATIENCE, node.ready()).await.expect("a node serves in time");
    }
    eventually("all nodes are sure of each other", PATIENCE, || async {
        nodes.iter().all(|node| {
            let directory = node.router().directory();
            directory.is_sure() && directory.peers().len() + 1 == size
        })
    })
    .await;
    let mut receivers = Vec::new();
    for at in 0..USERS {
        receivers.push(User::connect(nodes[1 + at % (size - 1)].public(), &format!("user{at}")).await);
    }
    let mut sender = User::connect(nodes[0].public(), "sender").await;
    // At first some go by the mailbox or to everyone, since not everybody who has to has heard of the receivers.
    let mut usual_rounds = 0;
    for _ in 0..20 {
        let before = counts.now();
        let mut is_usual = true;
        for n in 0..USERS * ROUNDS {
            let reply = sender.publish(&format!("user.user{}", n % USERS), n).await;
            is_usual &= reply["outcome"] == "delivered";
            receivers[n % USERS].message().await;
        }
        let after = counts.now();
        let each = |before: usize, after: usize| (after - before) as f64 / (USERS * ROUNDS) as f64;
        usual_rounds = if is_usual { usual_rounds + 1 } else { 0 };
        if usual_rounds == 2 {
            return (each(before.0, after.0), each(before.1, after.1));
        }
    }
    panic!("messages do not take the usual way");
}

/// The figures, and a tenth more for words that a slow machine has nodes say in between.
fn is_about(found: (f64, f64), published: f64, copies: f64) -> bool {
    let fits = |found: f64, expected: f64| found >= expected - 0.01 && found <= expected * 1.1;
    fits(found.0, published) && fits(found.1, copies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_messages_are_what_a_message_costs() {
    for (routing, size, published, copies) in [
        ("directory", 3, 2.0, 2.0),
        ("directory", 12, 2.0, 2.0),
        ("broadcast", 3, 3.0, 4.0),
        ("broadcast", 12, 12.0, 23.0),
    ] {
        let found = cost(routing, size).await;
        assert!(is_about(found, published, copies), "{routing} on {size}: {found:?}");
    }
    // The home may be the node of the sender, of the receiver, or another one.
    for size in [3, 12] {
        let found = cost("ring-preview", size).await;
        assert!(found.0 >= 2.0 && found.0 <= 4.4 && found.0 == found.1, "ring on {size}: {found:?}");
    }
}
