//! `docs/examples.md` and the README's first lines of a backend, run as they stand there.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use tokio::time::timeout;
use warren::node::Node;

use crate::broker::{self, Vhost};
use crate::eventually::eventually;
use crate::nodes::{config, API_KEY, CHECKED, PATIENCE};
use crate::programs::{
    environment, in_node, in_python, in_spring, printed, spring_settings, Running, EXAMPLES,
};
use crate::user::User;

const README: &str = include_str!("../../README.md");
/// For a program that has to start first, on a machine that does other things.
const STARTED: Duration = Duration::from_secs(120);

async fn node(vhost: &Vhost) -> Node {
    let url = vhost.url();
    // Nobody reads while a program of Java starts.
    let own = [("AMQP_URL", url.as_str()), ("EVENTS", "users"), ("PING_INTERVAL_MS", "300000")];
    let vars = [CHECKED, &own].concat();
    let node = Node::start(config("a", &vars)).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");
    node
}

async fn user(node: &Node, name: &str) -> User {
    let user = warren::ids::UserId::new(name).unwrap();
    let token = warren::auth::mint(&user, Duration::from_secs(600), &[], &config("mint", CHECKED)).unwrap();
    User::with_token(node.public(), &token).await
}

async fn in_the_lobby(node: &Node, name: &str) -> User {
    let mut user = user(node, name).await;
    let reply = user.ask(json!({"type": "subscribe", "channel": "lobby"})).await;
    assert_eq!(reply["outcome"], "ok", "{reply}");
    user
}

/// The lines of curl in the document that begin with this address, for this node.
fn curl(node: &Node, begin: &str) -> Command {
    let begin = EXAMPLES.find(&format!("curl http://127.0.0.1:8080{begin}")).expect("a line for curl");
    let lines = EXAMPLES[begin..].split_once("\n```").unwrap().0;
    let lines = lines.replace("127.0.0.1:8080", &node.public().to_string()).replace("curl ", "curl -fsS ");
    let mut command = Command::new("sh");
    command.args(["-c", &lines]).env("API_KEY", API_KEY);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_hears_each_language() {
    let vhost = broker::vhost().await;
    let node = node(&vhost).await;
    let mut alice = in_the_lobby(&node, "alice").await;
    let url = vhost.url();
    let mut python = in_python(EXAMPLES, "lobby.py");
    python.arg(&url);
    let mut js = in_node(EXAMPLES, "lobby.mjs");
    js.arg(&url);
    let mut java = in_spring("lobby.Lobby").await;
    java.args(spring_settings(&url));
    for (program, service) in
        [(python, "desk"), (js, "desk"), (java, "desk"), (curl(&node, "/v1/messages"), "api")]
    {
        let name = format!("{program:?}");
        printed(program).await;
        let message = alice.message().await;
        assert_eq!(message["payload"], json!({"text": "hello"}), "{name}: {message}");
        assert_eq!(message["event"], "news", "{name}: {message}");
        assert_eq!(message["from"], json!({"service": service}), "{name}: {message}");
        assert_eq!(message["to"], "channel.lobby", "{name}: {message}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_language_is_told_who_is_there() {
    let vhost = broker::vhost().await;
    let node = node(&vhost).await;
    let _alice = in_the_lobby(&node, "alice").await;
    let _bob = in_the_lobby(&node, "bob").await;
    let address = format!("http://{}", node.public());
    let java = in_spring("there.There").await;
    for mut program in [in_python(EXAMPLES, "there.py"), in_node(EXAMPLES, "there.mjs"), java] {
        program.args([&address, API_KEY]);
        let name = format!("{program:?}");
        assert_eq!(printed(program).await, "alice, bob\na\n", "{name}");
    }
    let answers = printed(curl(&node, "/v1/channels/lobby")).await;
    let answers: Vec<Value> =
        serde_json::Deserializer::from_str(&answers).into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(answers[0]["users"], json!(["alice", "bob"]));
    assert_eq!(answers[1]["sessions"][0]["node"], "a");
    node.stop().await;
}

/// The program prints who is online, with each change.
async fn knows_who_is_online(mut command: Command) {
    let vhost = broker::vhost().await;
    let node = node(&vhost).await;
    let url = vhost.url();
    command.stdout(Stdio::piped()).arg(url.clone());
    command.args(spring_settings(&url));
    let mut program = Running::start(&mut command);
    let last = Arc::new(Mutex::new(String::new()));
    let (lines, told) = (BufReader::new(program.output()).lines(), last.clone());
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            *told.lock().unwrap() = line;
        }
    });
    eventually("the program listens", STARTED, || async {
        for queue in vhost.queues().await {
            let bindings = vhost.bindings(&queue).await;
            if bindings.iter().filter(|(exchange, _)| exchange == "warren.events").count() == 2 {
                return true;
            }
        }
        false
    })
    .await;
    program.goes_on();
    let alice = user(&node, "alice").await;
    let _bob = user(&node, "bob").await;
    let says = |expected: &'static str| {
        let last = last.clone();
        move || {
            let is_said = *last.lock().unwrap() == expected;
            async move { is_said }
        }
    };
    eventually("both are online", PATIENCE, says("alice, bob")).await;
    alice.leave().await;
    eventually("alice has gone", PATIENCE, says("bob")).await;
    drop(program);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_knows_who_is_online() {
    knows_who_is_online(in_node(EXAMPLES, "online.mjs")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spring_knows_who_is_online() {
    knows_who_is_online(in_spring("online.Online").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_line_of_a_backend_reaches_alice() {
    let vhost = broker::vhost().await;
    let node = node(&vhost).await;
    let mut alice = user(&node, "alice").await;
    let (_, rest) = README.split_once("```python\n").expect("a program in the README");
    let program = rest.split_once("```").unwrap().0;
    assert!(program.contains("amqp://guest:guest@127.0.0.1:5672/%2f"));
    let program = program.replace("amqp://guest:guest@127.0.0.1:5672/%2f", &vhost.url());
    let mut python = Command::new(environment("WARREN_TEST_PYTHON"));
    python.args(["-c", &program]);
    printed(python).await;
    let message = alice.message().await;
    assert_eq!(message["payload"], "your parcel is here", "{message}");
    assert_eq!((&message["event"], &message["from"]), (&json!("notice"), &json!({"service": "parcels"})));
    node.stop().await;
}
