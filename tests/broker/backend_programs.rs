//! The backends of `docs/application.md`, run as they stand there: real client libraries that answer in the standard
//! way.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{json, Value};
use tokio::time::{timeout, Instant};
use warren::node::Node;

use crate::broker::{self, Vhost};
use crate::eventually::eventually;
use crate::nodes::{config, CHECKED, PATIENCE};
use crate::user::User;

const DOCUMENT: &str = include_str!("../../docs/application.md");
const SPRING: &str = include_str!("spring/pom.xml");
const MISSING: &str = "the client libraries are missing: run ./test";
/// For a program that has to start first, on a machine that does other things.
const STARTED: Duration = Duration::from_secs(120);

#[allow(clippy::disallowed_methods)] // The tests have no configuration file; ./test speaks through these.
fn environment(name: &str) -> String {
    std::env::var(name).expect(MISSING)
}

/// The program of the document whose first line, a comment, names it.
fn program(name: &str) -> &'static str {
    let (before, _) = DOCUMENT.split_once(&format!(" {name}\n")).expect("a program in the document");
    let begin = before.rfind("```").unwrap();
    let body = DOCUMENT[begin..].split_once('\n').unwrap().1;
    body.split_once("\n```").unwrap().0
}

/// A program that runs until this is dropped.
struct Running(Child);

impl Running {
    fn goes_on(&mut self) {
        let ended = self.0.try_wait().unwrap();
        assert!(ended.is_none(), "the program has ended: {ended:?}");
    }

    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect(MISSING))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
        let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }
}

/// A file in the folder of the client libraries.
fn written(path: &str, text: &str) -> PathBuf {
    let file = Path::new(&environment("WARREN_TEST_PROGRAMS")).join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_with_pika() {
    let stage = Stage::set().await;
    let mut command = Command::new(environment("WARREN_TEST_PYTHON"));
    command.arg(written("orders.py", program("orders.py"))).arg(stage.vhost.url());
    stage.is_answered(Running::start(command)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_with_amqplib() {
    let stage = Stage::set().await;
    let mut command = Command::new("node");
    command.arg(written("orders.mjs", program("orders.mjs"))).arg(stage.vhost.url());
    stage.is_answered(Running::start(command)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_with_spring() {
    let stage = Stage::set().await;
    let pom = written("spring/pom.xml", SPRING);
    written("spring/src/main/java/shop/Orders.java", program("Orders.java"));
    let mut building = Command::new("mvn");
    building.args(["-B", "-q", "package", "-f"]).arg(&pom);
    let built = tokio::task::spawn_blocking(move || building.output().expect(MISSING)).await.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stdout));
    let mut command = Command::new("java");
    command.args(["-Xmx128m", "-jar"]).arg(pom.with_file_name("target").join("orders.jar"));
    command.arg(format!("--spring.rabbitmq.addresses={}", stage.vhost.url()));
    command.arg("--spring.main.banner-mode=off");
    stage.is_answered(Running::start(command)).await;
}
