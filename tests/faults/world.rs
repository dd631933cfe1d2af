//! One scenario's cluster, clients and publishers: put together, put under load, calmed down, judged.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};

use crate::backend::over_amqp;
use crate::checker::{check, Verdict};
use crate::clients::{live, Habit, Site};
use crate::eventually::eventually;
use crate::nodes::{Folder, NodeProcess, NodeSettings};
use crate::publishers::{over_http, over_socket, Job};
use crate::record::{Chance, Recorder};
use crate::relay::Relay;
use crate::scenario::Scenario;
use crate::stage::Stage;

const NODES: usize = 3;
/// How long publishers may take to learn what became of their last messages.
const ANSWERS_MAX: Duration = Duration::from_secs(90);
/// How long mailboxes and ingress may take to become empty, after the last message.
const DRAIN_MAX: Duration = Duration::from_secs(90);
/// Nothing more comes after so long without anything.
const QUIET: Duration = Duration::from_millis(1_200);
/// A long run has as many times the load of a short one, at most.
const HASTE_MAX: u32 = 5;
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// How a run is to be.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub messages: usize,
    /// Messages per second that a long run needs to be through in time. `None`: as the scenario says.
    pub rate: Option<u32>,
    /// The fault is done again until there were enough messages.
    pub repeats: bool,
    pub binary: std::path::PathBuf,
}

pub struct World {
    pub stage: Stage,
    pub nodes: Vec<NodeProcess>,
    pub relays: Vec<Relay>,
    pub recorder: Arc<Recorder>,
    pub chance: Chance,
    pub prefix: String,
    /// Messages that belong into the dead queue.
    pub buried: u64,
    pub drops: watch::Sender<u64>,
    calm: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    devices: JoinSet<()>,
    publishers: JoinSet<()>,
    /// Those that are meant to be connected all the time.
    served: Vec<u32>,
    folder: Folder,
}

/// What came of a scenario.
pub struct Outcome {
    pub verdict: Verdict,
    /// What is wrong beside the messages.
    pub troubles: Vec<String>,
    pub closes: Vec<(u16, u32)>,
    pub timeline: Vec<String>,
    pub folder: Folder,
}

impl World {
    pub async fn build(stage: Stage, scenario: &Scenario, plan: &Plan, number: usize) -> Self {
        let prefix = format!("f{number}");
        let folder = Folder::new(&prefix);
        let (mut relays, mut nodes) = (vec![], vec![]);
        let settings = NodeSettings {
            binary: plan.binary.clone(),
            dir: folder.path().to_owned(),
            prefix: prefix.clone(),
            quorum: stage.brokers.len() > 1,
            more: scenario.env,
        };
        for index in 0..NODES {
            let url = match scenario.relayed {
                true => {
                    relays.push(Relay::start(stage.brokers[0].port()).await);
                    relays[index].url("%2f")
                }
                false => stage.urls(index).join(","),
            };
            nodes.push(NodeProcess::start(&settings, index, url));
            // One after the other, so that the first one consumes ingress.
            nodes[index].ready().await;
        }
        Self {
            stage,
            nodes,
            relays,
            recorder: Arc::new(Recorder::new()),
            chance: Chance::new(plan.seed, 0),
            prefix,
            buried: 0,
            drops: watch::Sender::new(0),
            calm: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            devices: JoinSet::new(),
            publishers: JoinSet::new(),
            served: vec![],
            folder,
        }
    }

    fn ports(&self) -> Arc<[u16]> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// Connects everybody and waits until the gateway knows.
    pub async fn connect(&mut self, scenario: &Scenario, seed: u64) {
        let devices = scenario.load.people.devices();
        self.recorder.lock().devices = devices.iter().map(|device| device.user).collect();
        let steady = devices.iter().filter(|device| device.habit == Habit::Steady);
        self.served = steady.map(|device| device.index).collect();
        let site = Site {
            ports: self.ports(),
            recorder: self.recorder.clone(),
            calm: self.calm.subscribe(),
            drops: self.drops.subscribe(),
            seed,
        };
        // Some may have left again.
        let expected = self.served.len() as u64 * 19 / 20;
        for device in devices {
            self.devices.spawn(live(device, site.clone()));
        }
        let ports = self.ports();
        eventually("clients are connected", Duration::from_secs(60), || async {
            sessions(&ports).await >= expected
        })
        .await;
    }

    pub fn publish(&mut self, scenario: &Scenario, plan: &Plan) {
        let load = scenario.load;
        let rate = plan.rate.map_or(load.rate, |rate| rate.min(HASTE_MAX * load.rate)).max(8);
        // Half of the messages by AMQP, a quarter by HTTP, a quarter by sockets.
        let doors = [(2, 1, 0u8), (4, 2, 1), (2, 1, 2)];
        let mut publisher = 0;
        for (count, weight, door) in doors {
            for _ in 0..count {
                let share = f64::from(rate) * f64::from(if door == 0 { 2 } else { weight }) / 8.0;
                let share = if door == 1 { f64::from(rate) / 16.0 } else { share };
                let job = Job {
                    publisher,
                    recorder: self.recorder.clone(),
                    ports: self.ports(),
                    home: 0,
                    users: load.people.users(),
                    every: Duration::from_secs_f64(1.0 / share),
                    padding: load.padding,
                    twice: load.twice,
                    amqp_urls: self.stage.urls(0),
                    ingress: format!("{}.ingress", self.prefix),
                    stop: self.stop.subscribe(),
                };
                match door {
                    0 => self.publishers.spawn(over_amqp(job)),
                    1 => self.publishers.spawn(over_http(job)),
                    _ => self.publishers.spawn(over_socket(job)),
                };
                publisher += 1;
            }
        }
    }

    /// Lets traffic flow until `messages` have been handed over, for at most a few times as long as that takes.
    pub async fn flow(&self, messages: usize) {
        let end = Instant::now() + Duration::from_secs(120);
        while self.recorder.sent_count() < messages && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every device that should be served has got something since the last healing action.
    pub async fn recovered(&self) {
        let end = Instant::now() + RECOVERY_MAX;
        while !self.all_served() && Instant::now() < end {
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn all_served(&self) -> bool {
        let history = self.recorder.lock();
        let Some(healed) = history.actions.iter().rev().find(|action| action.heals) else { return true };
        let mut waiting: std::collections::HashSet<u32> = self.served.iter().copied().collect();
        for receipt in history.receipts.iter().rev().take_while(|receipt| receipt.at_us >= healed.at_us) {
            waiting.remove(&receipt.device);
        }
        waiting.is_empty()
    }

    /// Stops the publishers, brings everybody home and waits until nothing more comes.
    pub async fn calm_down(&mut self, troubles: &mut Vec<String>) {
        self.recorder.act("publishers stop");
        self.stop.send_replace(true);
        let mut publishers = std::mem::take(&mut self.publishers);
        let all = async { while publishers.join_next().await.is_some() {} };
        if timeout(ANSWERS_MAX, all).await.is_err() {
            troubles.push(format!("publishers still without an answer after {ANSWERS_MAX:?}"));
        }
        self.recorder.act("everybody comes home");
        self.calm.send_replace(true);
        let end = Instant::now() + DRAIN_MAX;
        let mut full = vec![];
        while Instant::now() < end {
            let before = self.recorder.lock().receipts.len();
            sleep(QUIET).await;
            full = self.waiting().await;
            if full.is_empty() && self.unseen() == 0 && self.recorder.lock().receipts.len() == before {
                return;
            }
        }
        troubles.extend(full.iter().map(|(queue, count)| format!("{count} messages remain in {queue}")));
    }

    /// Queues of messages for users that are not empty.
    async fn waiting(&self) -> Vec<(String, u64)> {
        let mut queues = self.stage.queues(&self.prefix).await;
        queues
            .retain(|(name, count)| *count > 0 && (name.contains(".mailbox.") || name.ends_with(".ingress")));
        queues
    }

    fn unseen(&self) -> usize {
        let history = self.recorder.lock();
        let seen: std::collections::HashSet<_> = history.receipts.iter().filter_map(|one| one.key).collect();
        history.sent.iter().filter(|(key, sent)| sent.told.accepted() && !seen.contains(key)).count()
    }

    pub async fn judge(mut self, mut troubles: Vec<String>) -> (Stage, Outcome) {
        for node in &mut self.nodes {
            if let Some(status) = node.died() {
                troubles.push(format!("{} ended by itself: {status}", node.name));
            }
        }
        let dead = format!("{}.dead", self.prefix);
        let buried = self.stage.queues(&self.prefix).await.into_iter().find(|(name, _)| *name == dead);
        let buried = buried.map_or(0, |(_, count)| count);
        if buried != self.buried {
            troubles.push(format!("{buried} messages in the dead queue, not {}", self.buried));
        }
        self.devices.shutdown().await;
        let history = std::mem::take(&mut *self.recorder.lock());
        let served: std::collections::HashSet<u32> = self.served.iter().copied().collect();
        let verdict = check(&history, |device| served.contains(&device));
        let mut closes: Vec<_> = history.closes.iter().map(|(code, count)| (*code, *count)).collect();
        closes.sort_unstable();
        let timeline = crate::report::timeline(&history, &verdict, &self.nodes);
        drop(self.nodes);
        self.stage.clear(&self.prefix).await;
        (self.stage, Outcome { verdict, troubles, closes, timeline, folder: self.folder })
    }
}

/// Sessions on all nodes together.
async fn sessions(ports: &[u16]) -> u64 {
    let http = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{}/v1/nodes", ports[0]);
    let Ok(answer) = http.get(url).timeout(Duration::from_secs(2)).send().await else { return 0 };
    let answer: serde_json::Value = answer.json().await.unwrap_or_default();
    let nodes = answer["nodes"].as_array().into_iter().flatten();
    nodes.filter_map(|node| node["sessions"].as_u64()).sum()
}
