//! Requests that schemathesis makes up from `openapi.yaml`, good and bad, to real nodes: no answer is other than the document says.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;
use warren::node::Node;

use crate::broker::{vhost, Vhost};
use crate::nodes::{config, API_KEY, CHECKED, PATIENCE};
use crate::tools::{python, root, succeed};

async fn start(vhost: &Vhost, vars: &[(&str, &str)]) -> Node {
    let url = vhost.url();
    let vars = [vars, &[("AMQP_URL", url.as_str())]].concat();
    let node = Node::start(config("n0", &vars)).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");
    node
}

/// With what the requests come.
#[derive(Clone, Copy)]
enum Credentials<'a> {
    Bearer(&'a str),
    Missing,
    /// The node believes everybody.
    NotNeeded,
}

/// The same requests each time, unless others are asked for.
#[allow(clippy::disallowed_methods)] // The tests have no configuration file; ./test speaks through this.
fn seed() -> String {
    std::env::var("SEED").unwrap_or_else(|_| "1".to_owned())
}

/// Runs it on one listener. `arguments` choose operations and say how many requests.
async fn run(address: SocketAddr, credentials: Credentials<'_>, arguments: &[&str]) {
    let folder = root().join("target/schemathesis");
    std::fs::create_dir_all(&folder).unwrap();
    let mut command = std::process::Command::new("timeout");
    command.args(["300"]).arg(python()).args(["-m", "schemathesis.cli"]).current_dir(folder);
    command.env("WARREN_TEST_HOOKS", root().join("tests/contracts/schemathesis_hooks.py"));
    command.arg("--config-file").arg(root().join("tests/contracts/schemathesis.toml"));
    command.args(["--no-color", "run"]).arg(root().join("openapi.yaml"));
    command.args(["--url", &format!("http://{address}")]).args(arguments);
    command.args(["--seed", &seed()]);
    match credentials {
        Credentials::Bearer(token) => command.args(["-H", &format!("Authorization: Bearer {token}")]),
        Credentials::Missing => &mut command,
        Credentials::NotNeeded => command.env("WARREN_TEST_INSECURE", "1"),
    };
    let printed = succeed(command).await;
    assert!(printed.contains("Test cases:"), "{printed}");
}

/// Responses that stream are waited for to their end: traffic.rs has them.
const NO_STREAMS: &str = "--exclude-tag=transports";

/// What is on both listeners, or on the public one, and is not a handshake.
const PUBLIC: [&str; 4] =
    [NO_STREAMS, "--exclude-tag=sockets", "--exclude-path=/metrics", "--exclude-path-regex=^/(console/.*)?$"];

async fn serves(node: &Node) {
    let ready = reqwest::get(format!("http://{}/readyz", node.public())).await.unwrap();
    assert_eq!(ready.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_api_key() {
    let vhost = vhost().await;
    let node = start(&vhost, CHECKED).await;
    run(node.public(), Credentials::Bearer(API_KEY), &[&PUBLIC[..], &["--max-examples=25"]].concat()).await;
    serves(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_token_of_a_user_and_with_nothing() {
    let vhost = vhost().await;
    let node = start(&vhost, CHECKED).await;
    let user = warren::ids::UserId::new("alice").unwrap();
    let token = warren::auth::mint(&user, Duration::from_secs(600), &[], &config("mint", CHECKED)).unwrap();
    for credentials in [Credentials::Bearer(&token), Credentials::Missing] {
        run(node.public(), credentials, &[&PUBLIC[..], &["--max-examples=5"]].concat()).await;
    }
    serves(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_listener_and_the_handshakes() {
    let vhost = vhost().await;
    let node = start(&vhost, CHECKED).await;
    run(
        node.admin(),
        Credentials::Bearer(API_KEY),
        &[NO_STREAMS, "--exclude-tag=sockets", "--exclude-tag=messages", "--max-examples=5"],
    )
    .await;
    run(node.public(), Credentials::Bearer(API_KEY), &["--include-tag=sockets", "--max-examples=5"]).await;
    serves(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_believes_everybody() {
    let vhost = vhost().await;
    let node = start(&vhost, &[]).await;
    run(node.public(), Credentials::NotNeeded, &[NO_STREAMS, "--exclude-path=/metrics", "--max-examples=5"])
        .await;
    serves(&node).await;
}
