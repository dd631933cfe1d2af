//! Partitions of ingress: shared by the nodes, in order, moved when nodes come and go, and changed in number.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use serde_json::{json, Value};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use warren::bus::partitions::Partition;
use warren::bus::TopologyState;
use warren::node::Node;

use crate::broker::{vhost, PrivateBroker, Vhost};
use crate::eventually::eventually;
use crate::nodes::config;
use crate::topology::{import, remove_users, user_of};
use crate::user::User;

const PATIENCE: Duration = Duration::from_secs(60);
const USERS: u32 = 24;

async fn start(url: &str, name: &str, partitions: u16, more: &[(&str, &str)]) -> Node {
    let partitions = partitions.to_string();
    // The users read when all is over.
    let patient = [("PING_INTERVAL_MS", "300000"), ("OUTBOX_BYTES", "67108864"), ("DRAIN_MS", "2000")];
    let vars = [&[("AMQP_URL", url), ("INGRESS_PARTITIONS", &partitions)], &patient[..], more].concat();
    let node = Node::start(config(name, &vars)).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");
    node
}

fn holds(node: &Node) -> BTreeSet<Partition> {
    node.router().directory().this_node().info.ingress.holds
}

/// Returns when these nodes share all partitions evenly.
async fn share(nodes: &[&Node], of: u16) {
    eventually(&format!("{} nodes share {of} partitions", nodes.len()), PATIENCE, || async {
        let all: Vec<_> = nodes.iter().map(|node| holds(node)).collect();
        let union: BTreeSet<_> = all.iter().flatten().copied().collect();
        let sizes = all.iter().map(BTreeSet::len);
        let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.clone().max().unwrap_or(0));
        union == Partition::all(of).collect() && sizes.sum::<usize>() == union.len() && most - least <= 1
    })
    .await;
}

async fn end(mut node: Node) {
    node.drain(std::future::pending()).await;
    node.stop().await;
}

/// A backend that publishes to every user in turn, each message confirmed and routed, until it is stopped.
struct Backend {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u32>,
}

impl Backend {
    async fn start(vhost: &Vhost) -> Self {
        static BACKENDS: AtomicU32 = AtomicU32::new(0);
        let own = BACKENDS.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::connect(&vhost.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let _connection = connection;
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut confirms = Vec::new();
                for user in 0..USERS {
                    let properties =
                        BasicProperties::default().with_message_id(format!("{own}-{user}-{round}").into());
                    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                    let (exchange, key) = ("warren.ingress".into(), format!("user.u{user}").into());
                    let body = round.to_string();
                    let sent =
                        channel.basic_publish(exchange, key, options, body.as_bytes(), properties).await;
                    confirms.push(sent.unwrap());
                }
                for confirm in confirms {
                    assert_eq!(confirm.await.unwrap(), Confirmation::Ack(None), "a message was not routed");
                }
                round += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            round
        });
        Self { stop, task }
    }

    /// How many messages each user was sent.
    async fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Connects the users; what they got goes on with their next session.
struct Users {
    connected: Vec<User>,
    got: Vec<Vec<(u32, bool)>>,
}

impl Users {
    async fn connect(node: &Node) -> Self {
        let mut users = Self { connected: vec![], got: vec![vec![]; USERS as usize] };
        users.move_to(node).await;
        users
    }

    async fn move_to(&mut self, node: &Node) {
        for user in 0..USERS {
            self.connected.push(User::connect(node.public(), &format!("u{user}")).await);
        }
    }

    fn note(got: &mut Vec<(u32, bool)>, message: &Value) {
        let number = message["payload"].as_u64().unwrap() as u32;
        got.push((number, message["redelivered"] == json!(true)));
    }

    /// Their node drains.
    async fn ended(&mut self) {
        for (user, got) in self.connected.drain(..).zip(&mut self.got) {
            let mut user = user;
            user.end().await;
            user.kept("message").into_iter().for_each(|message| Self::note(got, message));
        }
    }

    /// Reads until each has everything; returns how many repeats there were. First copies come in order, and every other
    /// one says that it is a repeat.
    async fn have_all(mut self, count: u32) -> usize {
        let mut repeats = 0;
        for (user, got) in self.connected.iter_mut().zip(&mut self.got) {
            while got.iter().map(|(number, _)| *number).collect::<BTreeSet<_>>().len() < count as usize {
                Self::note(got, &user.message().await);
            }
            let mut next = 0;
            for (number, redelivered) in got.iter() {
                match *number == next {
                    true => next += 1,
                    false => {
                        assert!(*number < next, "{number} came before {next}: {got:?}");
                        assert!(redelivered, "an unmarked repeat of {number}: {got:?}");
                        repeats += 1;
                    }
                }
            }
            assert_eq!(next, count);
        }
        repeats
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_come_and_go_share_the_partitions_without_loss_repeat_or_disorder() {
    let vhost = vhost().await;
    let url = vhost.url();
    let a = start(&url, "a", 4, &[]).await;
    let b = start(&url, "b", 4, &[]).await;
    share(&[&a, &b], 4).await;
    let (users, backend) = (Users::connect(&a).await, Backend::start(&vhost).await);
    let c = start(&url, "c", 4, &[]).await;
    share(&[&a, &b, &c], 4).await;
    end(c).await;
    share(&[&a, &b], 4).await;
    let d = start(&url, "d", 4, &[]).await;
    share(&[&a, &b, &d], 4).await;
    end(b).await;
    share(&[&a, &d], 4).await;
    let sent = backend.stop().await;
    assert_eq!(users.have_all(sent).await, 0, "nothing is repeated when no node dies");
    assert!(sent > 20, "{sent}");
    let is_empty = || async { vhost.messages("warren.dead").await == Some(0) };
    eventually("no message is dead", PATIENCE, is_empty).await;
    drop(d);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_partitions_of_a_killed_node_go_to_the_others_in_order() {
    let vhost = vhost().await;
    let url = vhost.url();
    let a = start(&url, "a", 4, &[]).await;
    for round in 0..2 {
        let b = start(&url, &format!("b{round}"), 4, &[]).await;
        share(&[&a, &b], 4).await;
        let (users, backend) = (Users::connect(&a).await, Backend::start(&vhost).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let died = tokio::time::Instant::now();
        drop(b);
        share(&[&a], 4).await;
        assert!(died.elapsed() < Duration::from_secs(12), "{:?} without a consumer", died.elapsed());
        let sent = backend.stop().await;
        users.have_all(sent).await;
    }
}

/// 1 → 4 → 2 → 1, each by a node that joins before the former one drains, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_partitions_changes_under_load() {
    let vhost = vhost().await;
    let url = vhost.url();
    let direct = ("warren.ingress".to_owned(), "#".to_owned());
    let mut node = start(&url, "n0", 1, &[]).await;
    let (mut users, backend) = (Users::connect(&node).await, Backend::start(&vhost).await);
    for (step, partitions) in [4, 2, 1].into_iter().enumerate() {
        let next = start(&url, &format!("n{}", step + 1), partitions, &[]).await;
        // They disagree, so that everything stays as it is.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let is_direct = vhost.bindings("warren.ingress").await.contains(&direct);
        assert_eq!(is_direct, step == 0, "changed while nodes disagree");
        let former = std::mem::replace(&mut node, next);
        let ((), ()) = tokio::join!(end(former), users.ended());
        users.move_to(&node).await;
        if partitions > 1 {
            share(&[&node], partitions).await;
            assert!(!vhost.bindings("warren.ingress").await.contains(&direct));
        } else {
            eventually("ingress is one queue again", PATIENCE, || async {
                let path = format!("exchanges/{}/warren.ingress.hash", vhost.name);
                vhost.bindings("warren.ingress").await == [direct.clone()]
                    && vhost.management.get(&path).await["error"] == "Object Not Found"
            })
            .await;
        }
    }
    eventually("the queues of former partitions are gone", PATIENCE, || async {
        !vhost.queues().await.iter().any(|queue| queue.starts_with("warren.ingress."))
    })
    .await;
    // Through the one queue that is left.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sent = backend.stop().await;
    users.have_all(sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_or_a_binding_that_is_deleted_is_made_again() {
    let vhost = vhost().await;
    let node = start(&vhost.url(), "a", 2, &[]).await;
    share(&[&node], 2).await;
    for path in
        ["exchanges/V/warren.ingress.hash", "exchanges/V/warren.ingress.2", "queues/V/warren.ingress.2.1"]
    {
        vhost.management.delete(&path.replace('V', &vhost.name)).await;
        let bindings = || async {
            let mut found = BTreeMap::new();
            for source in ["warren.ingress", "warren.ingress.hash", "warren.ingress.2"] {
                let path = format!("exchanges/{}/{source}/bindings/source", vhost.name);
                let bound = vhost.management.get(&path).await;
                found.insert(source, bound.as_array().map_or(0, Vec::len));
            }
            found.into_values().collect::<Vec<_>>() == [1, 2, 1]
        };
        eventually(&format!("{path} is there again"), PATIENCE, bindings).await;
        share(&[&node], 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_are_enough_and_without_them_the_node_is_not_ready() {
    let vhost = vhost().await;
    import(&vhost).await;
    let user = user_of(&vhost, "gateway");
    let url = vhost.url_as(&user, "change-me-gateway");
    let node = start(&url, "a", 2, &[]).await;
    let link = || node.router().bus().link();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(link().borrow().topology, TopologyState::Damaged);
    let path = format!("permissions/{}/{user}", vhost.name);
    let mut permissions = vhost.management.get(&path).await;
    for kind in ["configure", "write", "read"] {
        let now = permissions[kind].as_str().unwrap();
        permissions[kind] = json!(now.replace("(node|", "(ingress|node|"));
    }
    vhost.management.put(&path, permissions).await;
    share(&[&node], 2).await;
    eventually("the node is ready", PATIENCE, || async { link().borrow().topology == TopologyState::Whole })
        .await;
    remove_users(&vhost).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_plugin_the_node_says_what_is_missing_and_is_not_ready() {
    let broker = PrivateBroker::start_plain().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.env_clear().stdout(Stdio::null()).stderr(Stdio::piped());
    for (name, value) in [
        ("WARREN_LISTEN", "127.0.0.1:0"),
        ("WARREN_ADMIN_LISTEN", "127.0.0.1:0"),
        ("WARREN_AUTH", "insecure"),
        ("WARREN_AMQP_URL", &broker.url()),
        ("WARREN_INGRESS_PARTITIONS", "4"),
    ] {
        command.env(name, value);
    }
    let mut process = command.spawn().unwrap();
    let log = BufReader::new(process.stderr.take().unwrap());
    let said = tokio::task::spawn_blocking(move || {
        log.lines().map_while(Result::ok).find(|line| line.contains("rabbitmq_consistent_hash_exchange"))
    });
    let said = timeout(PATIENCE, said).await;
    let _ = process.kill();
    let _ = process.wait();
    let said = said.expect("a word in time").unwrap().expect("a word");
    assert!(said.contains("WARREN_INGRESS_PARTITIONS=4") && said.contains("ERROR"), "{said}");
    let node = start(&broker.url(), "a", 4, &[]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(node.router().bus().link().borrow().topology, TopologyState::Damaged);
}
