//! Backends that speak AMQP 1.0, MQTT or STOMP: the examples of `docs/backends.md`, run as they stand there with the
//! clients that they name, and what else such clients send.

use std::process::Command;

use serde_json::{json, Value};
use warren::node::Node;

use crate::broker::{Management, PrivateBroker};
use crate::eventually::eventually;
use crate::nodes::{config, PATIENCE};
use crate::user::User;

const DOCUMENT: &str = include_str!("../../docs/backends.md");
const BODIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/broker/amqp10_bodies.py");
const NO_PYTHON: &str = "no Python with the clients of other protocols: run ./test";

#[allow(clippy::disallowed_methods)] // The tests have no configuration file; ./test speaks through this.
pub fn python() -> String {
    std::env::var("WARREN_TEST_PYTHON").expect(NO_PYTHON)
}

/// Runs a program of Python and returns what it printed; it has to succeed.
async fn run(script: &std::path::Path, port: u16) -> String {
    let mut command = Command::new("timeout");
    command.arg("60").arg(python()).arg(script).args(["127.0.0.1", &port.to_string()]);
    let done = tokio::task::spawn_blocking(move || command.output().expect(NO_PYTHON)).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{}: {out}{err}", script.display());
    out.into_owned()
}

/// Runs the program of the document whose first line names it.
async fn example(name: &str, port: u16) -> String {
    let (_, program) =
        DOCUMENT.split_once(&format!("```python\n# {name}\n")).expect("a program in the document");
    let (program, _) = program.split_once("\n```").unwrap();
    let file = std::env::temp_dir().join(format!("warren-{}-{name}", std::process::id()));
    std::fs::write(&file, program).unwrap();
    let printed = run(&file, port).await;
    std::fs::remove_file(&file).unwrap();
    printed
}

/// A broker with every door open, one node, and a user on it.
struct Stage {
    broker: PrivateBroker,
    management: Management,
    _node: Node,
    user: User,
}

impl Stage {
    async fn set() -> Self {
        let broker = PrivateBroker::start_with_doors().await;
        let node = Node::start(config("a", &[("AMQP_URL", &broker.url())])).unwrap();
        tokio::time::timeout(PATIENCE, node.ready()).await.expect("a node that serves");
        let user = User::connect(node.public(), "42").await;
        let management = broker.management();
        // It is there some time after the port of AMQP.
        eventually("the management API answers", PATIENCE, || async {
            management.get("overview").await["rabbitmq_version"].is_string()
        })
        .await;
        Self { broker, management, _node: node, user }
    }

    async fn is_version_4(&self) -> bool {
        let overview = self.management.get("overview").await;
        let version = overview["rabbitmq_version"].as_str().unwrap().to_owned();
        println!("RabbitMQ {version}");
        !version.starts_with("3.")
    }

    /// The next message has these fields.
    async fn shows(&mut self, expected: Value) {
        let message = self.user.message().await;
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&message[field], value, "{field} of {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqtt() {
    let mut stage = Stage::set().await;
    for key in ["user.#", "session.#", "channel.#", "broadcast"] {
        stage
            .management
            .post("bindings/%2f/e/amq.topic/e/warren.ingress", json!({ "routing_key": key }))
            .await;
    }
    example("mqtt_backend.py", stage.broker.mqtt_port()).await;
    stage.shows(json!({ "payload": { "order": 7 }, "from": { "service": "backend" } })).await;
    if stage.is_version_4().await {
        // Twice under one id: shown once.
        example("mqtt5_backend.py", stage.broker.mqtt_port()).await;
        example("mqtt5_backend.py", stage.broker.mqtt_port()).await;
        stage.shows(json!({ "id": "order-7-paid", "event": "order.paid", "payload": { "order": 7 } })).await;
        example("mqtt_backend.py", stage.broker.mqtt_port()).await;
        stage.shows(json!({ "payload": { "order": 7 }, "event": null })).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stomp() {
    let mut stage = Stage::set().await;
    for _ in 0..2 {
        let printed = example("stomp_backend.py", stage.broker.stomp_port()).await;
        let settled: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!((&settled["id"], &settled["outcome"]), (&json!("order-7-paid"), &json!("delivered")));
    }
    let from = json!({ "service": "billing" });
    stage
        .shows(
            json!({ "id": "order-7-paid", "event": "order.paid", "payload": { "order": 7 }, "from": from }),
        )
        .await;
}

/// Before version 4 RabbitMQ does not speak it without a plugin that the document advises against.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amqp_1_0() {
    let mut stage = Stage::set().await;
    if !stage.is_version_4().await {
        println!("no AMQP 1.0: nothing to test");
        return;
    }
    // A name that has to be percent-encoded in an address.
    for queue in ["billing.settled", "billing settled"] {
        let name = queue.replace(' ', "%20");
        stage.management.put(&format!("queues/%2f/{name}"), json!({ "durable": true })).await;
    }
    for _ in 0..2 {
        let printed = example("amqp10_backend.py", stage.broker.port()).await;
        let settled: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!((&settled["id"], &settled["outcome"]), (&json!("order-7-paid"), &json!("delivered")));
    }
    let from = json!({ "service": "billing" });
    stage
        .shows(
            json!({ "id": "order-7-paid", "event": "order.paid", "payload": { "order": 7 }, "from": from }),
        )
        .await;
    let printed = run(BODIES.as_ref(), stage.broker.port()).await;
    for (payload, encoding) in [
        (json!("hello"), Value::Null),
        (json!([1, null, true, 1.5, "x", -5]), Value::Null),
        (json!({ "a": { "b": [] } }), Value::Null),
        (json!({ "json": 1 }), Value::Null),
        (json!("AP8="), json!("base64")),
        (json!({ "data": 1 }), Value::Null),
        (json!([1, 2]), Value::Null),
        (json!(null), Value::Null),
        (json!(7), Value::Null),
        // A map that no JSON object can be: AMQP's bytes.
        (json!("AFN30QAAAAcAAAACVAFB"), json!("base64")),
    ] {
        stage.shows(json!({ "payload": payload, "encoding": encoding })).await;
    }
    // Its id is bytes, and it was sent twice; the settlements carry both ids back.
    stage.shows(json!({ "payload": "id", "id": "ff00", "event": "named" })).await;
    stage.shows(json!({ "payload": "last" })).await;
    let settlements: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(settlements.len(), 3, "{printed}");
    for settled in &settlements[..2] {
        assert_eq!((&settled["id"], &settled["correlation"]), (&json!("ff00"), &json!("01fe")), "{settled}");
        assert_eq!(settled["outcome"], "delivered");
    }
    let refused = &settlements[2];
    assert_eq!((&refused["outcome"], &refused["error"]["code"]), (&json!("rejected"), &json!("bad_request")));
    assert!(refused["error"]["message"].as_str().unwrap().starts_with("message_id: longer"), "{refused}");
}
