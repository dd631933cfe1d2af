//! Hooks over RabbitMQ: a real backend decides, is away, and comes back.

use serde_json::{json, Value};
use tokio::time::timeout;
use warren::node::Node;

use crate::application::Backend;
use crate::broker;
use crate::nodes::{config, PATIENCE};
use crate::user::User;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_decides_and_its_absence_is_a_refusal() {
    let vhost = broker::vhost().await;
    let url = vhost.url();
    let vars = [("AMQP_URL", url.as_str()), ("HOOKS", "publish,subscribe"), ("HOOK_TIMEOUT_MS", "5000")];
    let node = Node::start(config("a", &vars)).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");
    let mut alice = User::connect(node.public(), "alice").await;
    assert_eq!(alice.publish("user.alice", 1).await["error"]["code"], "unavailable", "no queue is bound");
    let mut backend = Backend::bind(&url, "policy", "hook.*").await;
    for (frame, question, allowed) in [
        (
            json!({"type": "publish", "to": "user.alice", "payload": 1}),
            json!({"hook": "publish", "user": "alice", "to": "user.alice"}),
            true,
        ),
        (
            json!({"type": "publish", "to": "user.bob", "payload": 1}),
            json!({"hook": "publish", "user": "alice", "to": "user.bob"}),
            false,
        ),
        (
            json!({"type": "subscribe", "channel": "room"}),
            json!({"hook": "subscribe", "user": "alice", "channel": "room"}),
            true,
        ),
        (
            json!({"type": "subscribe", "channel": "secret"}),
            json!({"hook": "subscribe", "user": "alice", "channel": "secret"}),
            false,
        ),
    ] {
        let id = alice.request(frame.clone()).await;
        let asked = backend.next().await;
        assert_eq!(serde_json::from_slice::<Value>(&asked.data).unwrap(), question);
        assert_eq!(asked.properties.user_id().as_ref().unwrap().as_str(), "guest", "the gateway's account");
        backend.answer(&asked, json!({"allow": allowed}).to_string().as_bytes()).await;
        let reply = alice.reply_to(id).await;
        assert_eq!(reply["error"]["code"] == "forbidden", !allowed, "{frame}: {reply}");
        // Once more: the decision counts for a while.
        let again = alice.ask(frame).await;
        assert_eq!(again["error"]["code"] == "forbidden", !allowed, "{again}");
    }
}
