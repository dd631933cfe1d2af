//! Real sessions, backends and callers of the API at two nodes and a real broker: all that they send and get is held against the
//! documents, and every kind of frame and every good answer has to be among it.

use std::collections::BTreeSet;
use std::time::Duration;

use jsonwebtoken::{encode, get_current_timestamp, EncodingKey, Header};
use serde_json::{json, Value};
use tokio::time::timeout;
use warren::node::Node;

use crate::backends::Backend;
use crate::broker::{vhost, Vhost};
use crate::code::document;
use crate::eventually::eventually;
use crate::http::Http;
use crate::nodes::{config, API_KEY, CHECKED, JWT_SECRET, PATIENCE};
use crate::recording::Recording;
use crate::{calls, sessions};

/// A user is offline when there was no session for a second.
const QUIET: Duration = Duration::from_secs(3);

pub struct Stage {
    pub vhost: Vhost,
    pub nodes: Vec<Node>,
    pub recording: Recording,
    pub backend: Backend,
    pub api: Http,
}

pub fn token(user: &str, caps: Option<&[&str]>, channels: &[&str]) -> String {
    let now = get_current_timestamp();
    let mut claims = json!({"sub": user, "iat": now - 10, "exp": now + 600, "channels": channels});
    if let Some(caps) = caps {
        claims["caps"] = json!(caps);
    }
    encode(&Header::default(), &claims, &EncodingKey::from_secret(JWT_SECRET.as_bytes())).unwrap()
}

impl Stage {
    async fn set() -> Self {
        let vhost = vhost().await;
        let url = vhost.url();
        let more = [
            ("AMQP_URL", url.as_str()),
            ("EVENTS", "users,channels,sessions"),
            ("HEADER_TIMEOUT_MS", "1000"),
            ("DRAIN_MS", "2000"),
            ("SOCKJS", "all"),
        ];
        let vars = [CHECKED, &more].concat();
        let nodes: Vec<Node> =
            ["n0", "n1"].iter().map(|name| Node::start(config(name, &vars)).unwrap()).collect();
        for node in &nodes {
            timeout(PATIENCE, node.ready()).await.expect("a node that serves");
        }
        eventually("the nodes know each other", PATIENCE, || async {
            nodes.iter().all(|node| {
                node.router().directory().synced() && node.router().directory().peers().len() == 1
            })
        })
        .await;
        let recording = Recording::default();
        let backend = Backend::connect(&recording, &url).await;
        let api = Http::new(&recording, nodes[0].public(), Some(API_KEY));
        Self { vhost, nodes, recording, backend, api }
    }

    pub fn http(&self, token: Option<&str>) -> Http {
        Http::new(&self.recording, self.nodes[0].public(), token)
    }
}

/// The answers that a document has for when all goes well: the operation and the status.
fn good_answers(openapi: &Value) -> BTreeSet<String> {
    let paths = openapi["paths"].as_object().unwrap().iter();
    let operations = paths.flat_map(|(path, item)| {
        let methods =
            item.as_object().unwrap().iter().filter(|(_, operation)| operation["responses"].is_object());
        methods.map(move |(method, operation)| (format!("{} {path}", method.to_uppercase()), operation))
    });
    operations
        .flat_map(|(name, operation)| {
            let statuses = operation["responses"].as_object().unwrap().keys().cloned();
            let good = statuses.filter(|status| !status.starts_with(['4', '5']));
            good.map(move |status| format!("{name} {status}")).collect::<Vec<_>>()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_sent_and_got_is_as_the_documents_say() {
    let mut stage = Stage::set().await;
    stage.backend.declare("application.events", Some(("warren.events", "#"))).await;
    let mut events = stage.backend.consume("application.events").await;
    sessions::talk(&stage).await;
    sessions::ask_backends(&stage).await;
    sessions::hear_backends(&stage).await;
    calls::call(&stage).await;
    calls::call_badly(&stage).await;
    for event in events.rest(QUIET).await {
        stage.backend.saw_event(&event);
    }
    sessions::miss_and_end(&mut stage).await;
    // Its own connection was closed with the others; the queue has kept what was told.
    stage.backend = Backend::connect(&stage.recording, &stage.vhost.url()).await;
    for event in stage.backend.consume("application.events").await.rest(QUIET).await {
        stage.backend.saw_event(&event);
    }
    let recording = stage.recording.clone();
    recording.wants_all_of(("frames", "client"));
    recording.wants_all_of(("frames", "server"));
    recording.check();
    let seen: BTreeSet<String> = recording
        .lines()
        .iter()
        .filter_map(|line| Some(format!("{} {}", line["operation"].as_str()?, line["status"])))
        .collect();
    let missing: Vec<String> = good_answers(&document("openapi.yaml")).difference(&seen).cloned().collect();
    assert!(missing.is_empty(), "never seen: {missing:#?}");
    let events: BTreeSet<String> = recording
        .lines()
        .iter()
        .filter_map(|line| Some(line["value"]["event"].as_str()?.to_owned()))
        .collect();
    for event in [
        "session.opened",
        "session.closed",
        "user.online",
        "user.offline",
        "channel.occupied",
        "channel.vacated",
        "snapshot.users",
    ] {
        assert!(events.contains(event), "{event} was never told");
    }
}
