//! The backends of `docs/application.md`, run as they stand there: real client libraries that answer in the standard
//! way.

use std::process::Command;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::time::{timeout, Instant};
use warren::node::Node;

use crate::broker::{self, Vhost};
use crate::eventually::eventually;
use crate::nodes::{config, CHECKED, PATIENCE};
use crate::programs::{in_node, in_python, in_spring, printed, spring_settings, Running};
use crate::user::User;

const DOCUMENT: &str = include_str!("../../docs/application.md");
/// For a program that has to start first, on a machine that does other things.
const STARTED: Duration = Duration::from_secs(120);

struct Stage {
    vhost: Vhost,
    node: Node,
    token: String,
}

impl Stage {
    async fn set() -> Self {
        let vhost = broker::vhost().await;
        let url = vhost.url();
        let vars = [CHECKED, &[("AMQP_URL", url.as_str())]].concat();
        let node = Node::start(config("a", &vars)).unwrap();
        timeout(PATIENCE, node.ready()).await.expect("a node that serves");
        let user = warren::ids::UserId::new("42").unwrap();
        let token =
            warren::auth::mint(&user, Duration::from_secs(600), &[], &config("mint", CHECKED)).unwrap();
        Self { vhost, node, token }
    }

    /// The running backend answers a client, and the line for curl that the document shows.
    async fn is_answered(&self, mut backend: Running) {
        let mut user = User::with_token(self.node.public(), &self.token).await;
        let request = |payload: Value| json!({"type": "publish", "to": "app.orders.new", "payload": payload, "reply": true});
        let end = Instant::now() + STARTED;
        loop {
            let reply = user.ask(request(json!({"sku": 0}))).await;
            match reply["error"]["code"].as_str() {
                None => break,
                Some("no_backend" | "no_answer") if Instant::now() < end => {
                    backend.goes_on();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Some(_) => panic!("{reply}"),
            }
        }
        let mut ids = Vec::new();
        for n in 0..100 {
            ids.push(user.request(request(json!({"sku": n, "text": "zo\u{eb} \u{1f407}"}))).await);
        }
        for _ in 0..100 {
            let reply = user.next("reply").await;
            let n = ids.iter().position(|id| reply["id"] == *id).unwrap();
            let order = json!({"sku": n, "text": "zo\u{eb} \u{1f407}"});
            assert_eq!(reply["payload"], json!({"order": order, "user": "42"}), "{reply}");
        }
        // One that wants no answer gets none, and harms nobody.
        let published = user.publish("app.orders.new", json!({"sku": 1})).await;
        assert_eq!(published["outcome"], "published");
        let queue = "application.orders";
        let is_empty = || async { self.vhost.messages(queue).await == Some(0) };
        eventually("every message is acknowledged", PATIENCE, is_empty).await;
        let printed = self.curl().await;
        let answer: Value =
            serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}"));
        assert_eq!(
            (&answer["outcome"], &answer["payload"]["order"]),
            (&json!("answered"), &json!({"sku": 7}))
        );
    }

    /// Runs the line of the document, with the address of this node.
    async fn curl(&self) -> String {
        let begin = DOCUMENT.find("curl http://127.0.0.1:8080/v1/messages -H").unwrap();
        let line = DOCUMENT[begin..].split_once("\n```").unwrap().0;
        let line = line.replace("127.0.0.1:8080", &self.node.public().to_string());
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("TOKEN", &self.token);
        printed(command).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_with_pika() {
    let stage = Stage::set().await;
    let mut command = in_python(DOCUMENT, "orders.py");
    stage.is_answered(Running::start(command.arg(stage.vhost.url()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_with_amqplib() {
    let stage = Stage::set().await;
    let mut command = in_node(DOCUMENT, "orders.mjs");
    stage.is_answered(Running::start(command.arg(stage.vhost.url()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_with_spring() {
    let stage = Stage::set().await;
    let mut command = in_spring("shop.Orders").await;
    command.args(spring_settings(&stage.vhost.url()));
    stage.is_answered(Running::start(&mut command)).await;
}
