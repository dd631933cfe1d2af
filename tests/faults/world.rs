//! One scenario's cluster, clients and publishers: put together, put under load, led through its phases.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, Instant};

use crate::backend::over_amqp;
use crate::clients::{live, Device, Habit, Phase, Site};
use crate::eventually::eventually;
use crate::nodes::{Folder, NodeProcess, NodeSettings};
use crate::publishers::{over_http, over_socket, Job, Mix};
use crate::record::{Chance, Heals, Kind, Recorder};
use crate::relay::Relay;
use crate::scenario::{Load, Scenario};
use crate::stage::Stage;

pub const NODES: usize = 3;
/// A long run has as many times the load of a short one, at most.
const HASTE_MAX: u32 = 5;
/// Messages in a row from a backend to one user; the other publishers write to another user each time, so that nobody
/// waits long for something.
const RUN: u32 = 4;
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// The same, in a run that has failed already.
const RECOVERY_AGAIN_MAX: Duration = Duration::from_secs(10);
/// With more devices a broadcast is a load of its own.
const BROADCAST_DEVICES_MAX: u32 = 500;

/// How a run is to be.
#[derive(Clone)]
pub struct Plan {
    pub seed: u64,
    pub messages: usize,
    /// Messages per second that a long run needs to be through in time. `None`: as the scenario says.
    pub rate: Option<u32>,
    /// A long run: the fault is done again until there were enough messages, and counts are not scaled down.
    pub long: bool,
    /// Mails of the row `mail-many`. `None`: as the length of the run says.
    pub mails: Option<u32>,
    /// Partitions of ingress. `None`: as the scenario says.
    pub partitions: Option<u16>,
    /// What the nodes break on purpose. Only a build with that feature listens to it.
    pub sabotage: String,
    pub routing: String,
    pub binary: std::path::PathBuf,
}

pub struct World {
    pub scenario: Scenario,
    pub plan: Plan,
    pub stage: Arc<Stage>,
    pub nodes: Vec<NodeProcess>,
    pub relays: Vec<Relay>,
    pub recorder: Arc<Recorder>,
    pub chance: Chance,
    pub prefix: String,
    /// Messages that belong into the dead queue.
    pub dead: u64,
    pub drops: watch::Sender<u64>,
    /// Users who connect when everybody comes home.
    pub late: Vec<u32>,
    /// What is wrong beside the messages.
    pub troubles: Vec<String>,
    /// Slow lines that devices hang on.
    pub lines: Vec<crate::line::Line>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) devices: JoinSet<()>,
    pub(super) publishers: JoinSet<()>,
    /// Those that are meant to be connected all the time.
    pub(super) served: HashSet<u32>,
    pub(super) folder: Folder,
}

impl World {
    pub async fn build(stage: Arc<Stage>, scenario: &Scenario, plan: &Plan, number: usize) -> Self {
        let prefix = format!("f{number}");
        let folder = Folder::new(&prefix);
        let (mut relays, mut nodes) = (vec![], vec![]);
        let settings = NodeSettings {
            binary: plan.binary.clone(),
            dir: folder.path().to_owned(),
            prefix: prefix.clone(),
            quorum: stage.brokers.len() > 1,
            more: scenario.env,
            partitions: plan.partitions,
            skew_s: scenario.skew_s,
            sabotage: plan.sabotage.clone(),
            routing: plan.routing.clone(),
        };
        for index in 0..NODES {
            let url = match scenario.relayed {
                true => {
                    relays.push(Relay::start(stage.brokers[0].port).await);
                    relays[index].url("%2f")
                }
                false => stage.urls(index).join(","),
            };
            nodes.push(NodeProcess::start(&settings, index, url));
            // One after the other, so that the first one consumes ingress.
            nodes[index].ready().await;
        }
        Self {
            scenario: *scenario,
            plan: plan.clone(),
            stage,
            nodes,
            relays,
            recorder: Arc::new(Recorder::new()),
            chance: Chance::new(plan.seed, 0),
            prefix,
            dead: 0,
            drops: watch::Sender::new(0),
            late: vec![],
            troubles: vec![],
            lines: vec![],
            phase: watch::Sender::new(Phase::Calm),
            stop: watch::Sender::new(false),
            devices: JoinSet::new(),
            publishers: JoinSet::new(),
            served: HashSet::new(),
            folder,
        }
    }

    pub fn ports(&self) -> Arc<[u16]> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    fn site(&self, ports: Arc<[u16]>) -> Site {
        Site {
            ports,
            recorder: self.recorder.clone(),
            phase: self.phase.subscribe(),
            drops: self.drops.subscribe(),
            seed: self.plan.seed,
        }
    }

    /// Connects everybody and waits until the gateway knows.
    pub async fn connect(&mut self) {
        let devices = self.scenario.load.people.devices();
        {
            let mut history = self.recorder.lock();
            history.devices = devices.iter().map(|device| device.user).collect();
            let stuck =
                |device: &&Device| matches!(device.habit, Habit::NeverAcks | Habit::Crawls | Habit::Deaf);
            history.stuck = devices.iter().filter(stuck).map(|device| device.user).collect();
        }
        let steady = devices.iter().filter(|device| device.habit == Habit::Steady);
        self.served = steady.map(|device| device.index).collect();
        let (site, expected) = (self.site(self.ports()), devices.len() as u64);
        for device in devices {
            self.devices.spawn(live(device, site.clone()));
        }
        let ports = self.ports();
        eventually("clients are connected", Duration::from_secs(60), || async {
            sessions(&ports).await >= expected
        })
        .await;
    }

    /// A device of a user who was not there before; it acknowledges. `ports`: its ways to the nodes.
    pub fn arrive(&mut self, user: u32, ports: Arc<[u16]>) {
        let index = {
            let mut history = self.recorder.lock();
            history.devices.push(user);
            history.devices.len() as u32 - 1
        };
        let device = Device { index, user, habit: Habit::Steady, acks: true, home: user as usize % NODES };
        let site = self.site(ports);
        self.devices.spawn(live(device, site));
    }

    pub fn publish(&mut self) {
        let load = self.scenario.load;
        let rate = self.plan.rate.map_or(load.rate, |rate| rate.min(HASTE_MAX * load.rate)).max(8);
        let rate = f64::from(rate);
        let habit = |user: &u32| {
            load.people.devices().iter().any(|device| device.user == *user && device.habit != Habit::Steady)
        };
        let (odd, steady): (Vec<u32>, Vec<u32>) = (0..load.people.users()).partition(habit);
        let all: Vec<u32> = (0..load.people.users()).collect();
        // Publishers of their own for those who misbehave: one who waits for them must not delay the others.
        let halves: Vec<(Arc<[u32]>, f64)> = match odd.is_empty() {
            true => vec![(steady.clone().into(), rate)],
            false => vec![(steady.clone().into(), rate / 2.0), (odd.into(), rate / 2.0)],
        };
        let mut next = 0;
        let mut add = |world: &mut Self, door: Door, mix: Mix, users: &Arc<[u32]>, rate: f64| {
            let mut job = world.job(next, load, mix, users.clone(), rate);
            job.run = if matches!(door, Door::Amqp) { RUN } else { 1 };
            next += 1;
            match door {
                Door::Amqp => world.publishers.spawn(over_amqp(job)),
                Door::Http => world.publishers.spawn(over_http(job)),
                Door::Socket => world.publishers.spawn(over_socket(job)),
            };
        };
        // Half of the messages by AMQP, a quarter by HTTP, a quarter by sockets.
        for (users, rate) in &halves {
            for (count, door, share) in
                [(2, Door::Amqp, 0.25), (4, Door::Http, 0.0625), (2, Door::Socket, 0.125)]
            {
                (0..count).for_each(|_| add(self, door, Mix::Users, users, rate * share));
            }
        }
        let stuck = !self.recorder.lock().stuck.is_empty();
        let users: Arc<[u32]> = if stuck { steady.into() } else { all.into() };
        let share = if load.kinds { rate / 8.0 } else { rate / 30.0 };
        for (door, mix) in [
            (Door::Amqp, Mix::Mixed),
            (Door::Socket, Mix::Mixed),
            (Door::Amqp, Mix::Brief),
            (Door::Socket, Mix::Brief),
            (Door::Amqp, Mix::Sessions),
            (Door::Http, Mix::Sessions),
        ] {
            add(self, door, mix, &users, share);
        }
        if self.broadcasts() {
            add(self, Door::Amqp, Mix::Broadcasts, &users, 1.0);
            add(self, Door::Http, Mix::Broadcasts, &users, 1.0);
        }
    }

    fn job(&self, publisher: u32, load: Load, mix: Mix, users: Arc<[u32]>, rate: f64) -> Job {
        Job {
            publisher,
            recorder: self.recorder.clone(),
            ports: self.ports(),
            home: 0,
            mix,
            users,
            run: 1,
            every: Duration::from_secs_f64(1.0 / rate),
            padding: load.padding,
            twice: load.twice,
            amqp_urls: self.stage.urls(0),
            ingress: format!("{}.ingress", self.prefix),
            stop: self.stop.subscribe(),
        }
    }

    fn broadcasts(&self) -> bool {
        self.scenario.load.people.users() <= BROADCAST_DEVICES_MAX
    }

    /// Lets traffic flow until `messages` have been handed over, for at most a few times as long as that takes.
    pub async fn flow(&self, messages: usize) {
        let end = Instant::now() + Duration::from_secs(120);
        while self.recorder.sent_count() < messages && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn begin(&self, phase: Phase) {
        if phase == Phase::Home {
            self.recorder.note("everybody comes home", Heals::Everybody);
        }
        self.phase.send_replace(phase);
    }

    /// Waits until every device that should be served has got a message of its own, and one for everybody,
    /// since the last healing action.
    pub async fn recovered(&mut self) {
        // Once is enough to fail.
        let patience = if self.troubles.is_empty() { RECOVERY_MAX } else { RECOVERY_AGAIN_MAX };
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if self.unserved() == (0, 0) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let (own, everybodys) = self.unserved();
        self.troubles.push(format!(
            "{own} devices got no message of their own, {everybodys} no broadcast, for {patience:?}"
        ));
    }

    /// Devices that still lack a message of their own, and a broadcast.
    fn unserved(&self) -> (usize, usize) {
        let history = self.recorder.lock();
        let healed = history.actions.iter().rev().find(|action| action.heals != Heals::No);
        let Some(healed) = healed.map(|action| action.at_us) else { return (0, 0) };
        let mut own = self.served.clone();
        let mut everybodys = if self.broadcasts() { self.served.clone() } else { HashSet::new() };
        for receipt in history.receipts.iter().rev().take_while(|receipt| receipt.at_us >= healed) {
            let kind = receipt.key.and_then(|key| history.sent.get(&key)).map(|sent| sent.letter.kind);
            match kind {
                Some(Kind::Broadcast) => everybodys.remove(&receipt.device),
                _ => own.remove(&receipt.device),
            };
        }
        (own.len(), everybodys.len())
    }
}

#[derive(Clone, Copy)]
enum Door {
    Amqp,
    Http,
    Socket,
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
