//! The brokers that scenarios play on, and what is asked of them by hand: rabbitmqctl and the management API.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::broker::{free_port, Management, PrivateBroker};
use crate::eventually::eventually;

/// What a scenario plays on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    OneBroker,
    /// Joined; ingress is a quorum queue on all of them.
    ThreeBrokers,
}

/// The broker itself put it there, because nobody took it in time.
pub const EXPIRED: &str = "expired in the ingress queue";

/// How many stages with one broker there may be: a scenario that disturbs its broker gets one on which nobody
/// waits for stragglers any more.
const ONE_BROKER_MAX: usize = 3;

pub struct Broker {
    pub url: String,
    pub port: u16,
    pub management: Management,
    management_port: u16,
    node_name: String,
    process: Mutex<PrivateBroker>,
}

impl Broker {
    fn new(process: PrivateBroker) -> Self {
        Self {
            url: process.url(),
            port: process.port(),
            management: process.management(),
            management_port: process.management_port(),
            node_name: process.node_name(),
            process: Mutex::new(process),
        }
    }

    /// Runs `rabbitmqctl`.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        self.process.lock().await.ctl(arguments).await
    }

    pub async fn kill(&self) {
        self.process.lock().await.kill();
    }

    pub async fn start_again(&self) {
        self.process.lock().await.start_again().await;
    }
}

/// All stages of a run. They are reused: a scenario has names of its own on its broker.
#[derive(Default)]
pub struct Stages(Vec<Arc<Stage>>);

impl Stages {
    /// A stage for a scenario. `alone`: nobody else may be on it, since the broker will suffer.
    pub async fn take(&mut self, kind: Kind, alone: bool) -> Arc<Stage> {
        loop {
            let fits = |stage: &&Arc<Stage>| stage.kind == kind && (!alone || Arc::strong_count(stage) == 1);
            if let Some(stage) = self.0.iter().filter(fits).max_by_key(|stage| Arc::strong_count(stage)) {
                return stage.clone();
            }
            let count = self.0.iter().filter(|stage| stage.kind == kind).count();
            let most = if kind == Kind::OneBroker { ONE_BROKER_MAX } else { 1 };
            if count < most {
                self.0.push(Arc::new(Stage::set(kind).await));
            } else {
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

pub struct Stage {
    pub kind: Kind,
    pub brokers: Vec<Broker>,
    /// A name service that no broker's death takes away.
    _epmd: Option<Epmd>,
}

struct Epmd(Child);

impl Drop for Epmd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Epmd {
    async fn start(port: u16) -> Self {
        let mut command = Command::new("epmd");
        command.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("epmd");
        eventually("epmd listens", Duration::from_secs(10), || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self(child)
    }
}

impl Stage {
    async fn set(kind: Kind) -> Self {
        let stage = match kind {
            Kind::OneBroker => {
                Self { kind, brokers: vec![Broker::new(PrivateBroker::start().await)], _epmd: None }
            }
            Kind::ThreeBrokers => Self::three().await,
        };
        stage.managed().await;
        stage
    }

    async fn three() -> Self {
        let port = free_port();
        let epmd = Epmd::start(port).await;
        let mut brokers = vec![];
        for _ in 0..3 {
            brokers.push(Broker::new(PrivateBroker::start_beside(port).await));
        }
        let first = brokers[0].node_name.clone();
        for broker in &brokers[1..] {
            broker.ctl(&["stop_app"]).await;
            broker.ctl(&["reset"]).await;
            broker.ctl(&["join_cluster", &first]).await;
            broker.ctl(&["start_app"]).await;
        }
        Self { kind: Kind::ThreeBrokers, brokers, _epmd: Some(epmd) }
    }

    /// Returns when the management API answers.
    pub async fn managed(&self) {
        let broker = &self.brokers[0];
        let port = broker.management_port;
        eventually("the management API listens", Duration::from_secs(60), || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
    }

    /// The addresses of all brokers, the `first` one of them in front.
    pub fn urls(&self, first: usize) -> Vec<String> {
        let count = self.brokers.len();
        (0..count).map(|index| self.brokers[(first + index) % count].url.clone()).collect()
    }

    /// Names and depths of the queues whose name begins with `prefix`.
    /// Each queue with its messages, and how many of them a consumer holds.
    pub async fn queues(&self, prefix: &str) -> Vec<(String, u64, u64)> {
        let all = self.brokers[0].management.get("queues/%2f").await;
        let queue = |queue: &Value| {
            let name = queue["name"].as_str()?.to_owned();
            let count = |kind: &str| queue[kind].as_u64().unwrap_or(0);
            name.starts_with(prefix).then(|| (name, count("messages"), count("messages_unacknowledged")))
        };
        all.as_array().into_iter().flatten().filter_map(queue).collect()
    }

    /// Why messages of the dead queue are there, with the number of each: the oldest hundred, which stay in it. The time of
    /// some may have ended in the ingress queue ([`EXPIRED`]).
    pub async fn dead_reasons(&self, prefix: &str) -> Result<BTreeMap<String, u64>, String> {
        let ask = json!({"count": 100, "ackmode": "ack_requeue_true", "encoding": "base64", "truncate": 100});
        let path = format!("queues/%2f/{prefix}.dead/get");
        let dead = match self.brokers[0].management.try_post(&path, ask).await {
            Ok(dead) => dead,
            Err(status) => return Err(format!("why they are there cannot be asked: {status}")),
        };
        let mut reasons = BTreeMap::new();
        for message in dead.as_array().into_iter().flatten() {
            let (kind, headers) = (&message["properties"]["type"], &message["properties"]["headers"]);
            let reason = match headers["x-first-death-reason"] == "expired" {
                true => EXPIRED.to_owned(),
                false => format!("{} of type {kind}", headers["warren-reason"]),
            };
            *reasons.entry(reason).or_default() += 1;
        }
        Ok(reasons)
    }

    /// Asks until the broker knows which node consumes ingress: the statistics lag a second behind.
    pub async fn ingress_holder(&self, prefix: &str) -> Option<String> {
        let management = &self.brokers[0].management;
        for _ in 0..50 {
            if let Some(name) = holder(&management.get("consumers/%2f").await, prefix) {
                let path = format!("connections/{}", name.replace(' ', "%20").replace('>', "%3E"));
                let connection = management.get(&path).await;
                let named = connection["user_provided_name"].as_str().unwrap_or_default().to_owned();
                if let Some(node) = named.split('/').nth(1) {
                    return Some(node.to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        None
    }

    /// The version of the broker that was found on this machine.
    pub async fn version(&self) -> String {
        let overview = self.brokers[0].management.get("overview").await;
        overview["rabbitmq_version"].as_str().unwrap_or("?").to_owned()
    }

    /// Removes what a scenario has left behind.
    pub async fn clear(&self, prefix: &str) {
        let management = &self.brokers[0].management;
        for (queue, ..) in self.queues(prefix).await {
            management.delete(&format!("queues/%2f/{queue}")).await;
        }
    }
}

/// The connection that consumes the ingress queue, or its first partition.
fn holder(consumers: &Value, prefix: &str) -> Option<String> {
    let queue = format!("{prefix}.ingress");
    let is_ingress = |name: &str| {
        name.strip_prefix(&queue)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') && rest.ends_with(".1"))
    };
    let mut all = consumers.as_array()?.iter();
    let active =
        all.find(|one| one["queue"]["name"].as_str().is_some_and(is_ingress) && one["active"] != false)?;
    Some(active["channel_details"]["connection_name"].as_str()?.to_owned())
}
