//! Events at a real broker: the program of the document ends with the truth, whatever happens to nodes and links, and
//! every body is as the schema says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Value};
use warren::config::Config;
use warren::hub::Local;
use warren::ids::{ChannelName, UserId};
use warren::node::Node;

use crate::broker::{vhost, Vhost};
use crate::eventually::eventually;
use crate::protocols::python;

const PATIENCE: Duration = Duration::from_secs(30);
const USERS: u64 = 30;
const DOCUMENT: &str = include_str!("../../docs/events.md");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/amqp/events.schema.json");
const SAMPLES: &str = include_str!("../../amqp/samples/events.jsonl");

async fn start(vhost: &Vhost, name: &str) -> Node {
    let vars = [
        ("WARREN_NODE_ID", name.to_owned()),
        ("WARREN_LISTEN", "127.0.0.1:0".to_owned()),
        ("WARREN_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("WARREN_WORKERS", "1".to_owned()),
        ("WARREN_EVENTS", "users,channels,sessions".to_owned()),
        ("WARREN_AMQP_URL", vhost.url()),
    ];
    let vars: BTreeMap<String, String> =
        vars.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let node = Node::start(Config::from_vars(vars).unwrap_or_else(|errors| panic!("{errors}"))).unwrap();
    tokio::time::timeout(PATIENCE, node.ready()).await.unwrap();
    node
}

/// The program of the document, as it stands but for the address.
struct Consumer {
    process: Child,
    last: Arc<Mutex<String>>,
}

impl Consumer {
    fn start(vhost: &Vhost) -> Self {
        let (_, rest) = DOCUMENT.split_once("```python\n").expect("a program in the document");
        let (program, _) = rest.split_once("```").expect("its end");
        let program = program.replace("amqp://guest:guest@127.0.0.1:5672/%2f", &vhost.url());
        let mut command = Command::new("timeout");
        command.arg("300").arg(python()).args(["-c", &program]).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let last = Arc::new(Mutex::new(String::new()));
        let (lines, told) = (BufReader::new(process.stdout.take().unwrap()).lines(), last.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *told.lock().unwrap() = line;
            }
        });
        Self { process, last }
    }

    fn knows(&self, users: &BTreeSet<String>) -> bool {
        let last = self.last.lock().unwrap().replace('\'', "\"");
        serde_json::from_str::<BTreeSet<String>>(&last).is_ok_and(|online| online == *users)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Fails unless each line is as the schema says.
fn validate(lines: &str) {
    let program = "import json, sys, jsonschema\n\
        validator = jsonschema.Draft202012Validator(json.load(open(sys.argv[1])))\n\
        for line in sys.stdin: validator.validate(json.loads(line))\n";
    let mut command = Command::new("timeout");
    command.arg("120").arg(python()).args(["-c", program, SCHEMA]).stdin(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(process.wait().unwrap().success());
}

/// Everything that is told is kept in a queue for the end of the test.
async fn keep_all(vhost: &Vhost) {
    let name = &vhost.name;
    vhost.management.put(&format!("queues/{name}/all"), json!({})).await;
    let path = format!("bindings/{name}/e/warren.events/q/all");
    vhost.management.post(&path, json!({"routing_key": "#"})).await;
}

async fn all(vhost: &Vhost) -> Vec<Value> {
    let path = format!("queues/{}/all/get", vhost.name);
    let get = json!({"count": 100_000, "ackmode": "ack_requeue_false", "encoding": "auto"});
    let got = vhost.management.post(&path, get).await;
    let events = got.as_array().unwrap().iter().map(|message| {
        let event: Value = serde_json::from_str(message["payload"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&message["routing_key"], &message["properties"]["type"]),
            (&event["event"], &event["event"])
        );
        event
    });
    events.collect()
}

struct Sessions {
    nodes: Vec<Option<Node>>,
    /// Users with the node and counter of each of their sessions.
    open: Vec<(usize, u64, UserId)>,
    random: u64,
    last_counter: u64,
}

impl Sessions {
    fn roll(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn come(&mut self, at: usize, user: u64) {
        let user = UserId::new(&format!("user{user}")).unwrap();
        self.last_counter += 1;
        let counter = self.last_counter;
        let Some(node) = &self.nodes[at] else { return };
        assert!(node.router().open_session(&user, Local { counter, since_ms: 0 }, usize::MAX));
        let room = ChannelName::new(user.as_str()).unwrap();
        node.router().open_subscription(&room, 0, &user, Box::new(|| ()));
        self.open.push((at, counter, user));
    }

    fn go(&mut self, which: usize) {
        let (at, counter, user) = self.open.swap_remove(which);
        let Some(node) = &self.nodes[at] else { return };
        node.router().close_subscription(&ChannelName::new(user.as_str()).unwrap(), 0, &user);
        node.router().close_session(&user, counter);
    }

    async fn storm(&mut self, count: usize) {
        for _ in 0..count {
            let (at, user) = (self.roll(self.nodes.len() as u64) as usize, self.roll(USERS));
            match self.roll(2) == 0 && !self.open.is_empty() {
                true => {
                    let which = self.roll(self.open.len() as u64) as usize;
                    self.go(which);
                }
                false => self.come(at, user),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at] = None;
        self.open.retain(|(of, _, _)| *of != at);
    }

    fn truth(&self) -> BTreeSet<String> {
        self.open.iter().map(|(_, _, user)| user.as_str().to_owned()).collect()
    }

    /// The ids of the open sessions of each node.
    fn ids(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut ids = BTreeMap::<String, BTreeSet<String>>::new();
        for (at, counter, _) in &self.open {
            let router = self.nodes[*at].as_ref().unwrap().router();
            ids.entry(router.node().to_string()).or_default().insert(router.session_id(*counter).to_string());
        }
        ids
    }

    async fn are_known(&self, consumer: &Consumer, when: &str) {
        let truth = self.truth();
        eventually(&format!("the consumer knows the truth after {when}"), PATIENCE, || async {
            consumer.knows(&truth)
        })
        .await;
    }
}

/// What a consumer of all kinds would hold in the end.
fn replay(events: &[Value]) -> (BTreeSet<String>, BTreeMap<String, BTreeSet<String>>) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (mut channels, mut sessions) = (BTreeSet::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for event in events {
        let name = event["event"].as_str().unwrap();
        match name {
            "channel.occupied" => {
                channels.insert(text(&event["channel"]));
            }
            "channel.vacated" => {
                channels.remove(event["channel"].as_str().unwrap());
            }
            "snapshot.channels" => {
                channels = event["channels"].as_array().unwrap().iter().map(text).collect()
            }
            "session.opened" | "session.closed" => {
                let (of, session) =
                    (sessions.entry(text(&event["by"])).or_default(), text(&event["session"]));
                let _ = if name == "session.opened" { of.insert(session) } else { of.remove(&session) };
            }
            "snapshot.sessions" => {
                let all = event["sessions"].as_array().unwrap().iter().map(|of| text(&of["session"]));
                sessions.insert(text(&event["node"]), all.collect());
            }
            _ => {}
        }
    }
    sessions.retain(|_, of| !of.is_empty());
    (channels, sessions)
}

#[test]
fn the_samples_are_as_the_schema_says() {
    assert_eq!(SAMPLES.lines().count(), 9);
    validate(SAMPLES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_hears_events_alone_ends_with_the_truth() {
    let vhost = vhost().await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(Some(start(&vhost, name).await));
    }
    keep_all(&vhost).await;
    let consumer = Consumer::start(&vhost);
    let mut sessions =
        Sessions { nodes, open: Vec::new(), random: 0x1234_5678_9abc_def1, last_counter: 1 << 50 };
    // It listens once it has printed something.
    eventually("the program listens", PATIENCE, || {
        match sessions.open.is_empty() {
            true => sessions.come(0, 0),
            false => sessions.go(0),
        }
        let listens = !consumer.last.lock().unwrap().is_empty();
        async move {
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            listens
        }
    })
    .await;
    sessions.storm(150).await;
    sessions.are_known(&consumer, "coming and going").await;
    // The node that speaks dies, then another one.
    for (at, name) in [(0, "a"), (2, "c")] {
        sessions.kill(at);
        sessions.storm(30).await;
        sessions.are_known(&consumer, &format!("the death of {name}")).await;
        sessions.nodes[at] = Some(start(&vhost, name).await);
        sessions.storm(60).await;
        sessions.are_known(&consumer, &format!("the return of {name}")).await;
    }
    vhost.close_connections().await;
    // The program's connection was closed as well; what it was told is in the other queue.
    drop(consumer);
    sessions.storm(60).await;
    for node in sessions.nodes.iter().flatten() {
        tokio::time::timeout(PATIENCE, node.ready()).await.unwrap();
    }
    let mut events = all(&vhost).await;
    let truth = sessions.truth();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while replay(&events) != (truth.clone(), sessions.ids()) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?} {:?}",
            replay(&events),
            (truth, sessions.ids())
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        events.extend(all(&vhost).await);
    }
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    validate(&lines);
    for node in sessions.nodes.into_iter().flatten() {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_comes_once_however_many_nodes_see_it() {
    let vhost = vhost().await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(Some(start(&vhost, name).await));
    }
    keep_all(&vhost).await;
    let mut sessions = Sessions { nodes, open: Vec::new(), random: 77, last_counter: 1 << 50 };
    // Each user on two nodes at once, and away from both at once.
    for user in 0..USERS {
        sessions.come(user as usize % 3, user);
        sessions.come((user as usize + 1) % 3, user);
    }
    let of = |events: &[Value], name: &str| {
        let mut users: Vec<_> = events
            .iter()
            .filter(|event| event["event"] == name)
            .map(|event| event["user"].to_string())
            .collect();
        users.sort();
        users
    };
    let everybody: Vec<String> = {
        let users: BTreeSet<_> = (0..USERS).map(|user| format!("\"user{user}\"")).collect();
        users.into_iter().collect()
    };
    let mut events = Vec::new();
    let until = async |events: &mut Vec<Value>, name: &str, count: usize| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while of(events, name).len() < count {
            assert!(tokio::time::Instant::now() < deadline, "{name}: {:?}", of(events, name));
            tokio::time::sleep(Duration::from_millis(200)).await;
            events.extend(all(&vhost).await);
        }
    };
    until(&mut events, "user.online", everybody.len()).await;
    // A third of them goes with a node that dies (not the one that speaks), the rest by itself.
    while let Some(which) = sessions.open.iter().position(|(at, _, _)| *at != 2) {
        sessions.go(which);
    }
    sessions.kill(2);
    until(&mut events, "user.offline", everybody.len()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    events.extend(all(&vhost).await);
    assert_eq!((of(&events, "user.online"), of(&events, "user.offline")), (everybody.clone(), everybody));
    for node in sessions.nodes.into_iter().flatten() {
        node.stop().await;
    }
}
