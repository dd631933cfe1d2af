//! The broker of the tests: a fresh vhost for each test, or a private broker for tests that disturb it.

#![allow(dead_code)] // Several test binaries share this; each uses a part.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{json, Value};

use crate::eventually::eventually;

const MISSING: &str = "no broker to test with: run ./test";

#[allow(clippy::disallowed_methods)] // The tests have no configuration file; ./test speaks through these.
fn environment(name: &str) -> String {
    std::env::var(name).expect(MISSING)
}

/// The management API of a broker.
#[derive(Clone)]
pub struct Management {
    url: String,
    http: reqwest::Client,
}

impl Management {
    fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), http: reqwest::Client::new() }
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}/api/{path}", self.url)).send().await.expect(MISSING);
        answer.json().await.unwrap_or(Value::Null)
    }

    pub async fn put(&self, path: &str, body: Value) {
        let answer = self.http.put(format!("{}/api/{path}", self.url)).json(&body).send().await;
        let answer = answer.expect(MISSING);
        assert!(answer.status().is_success(), "PUT {path}: {}", answer.status());
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.try_post(path, body).await.unwrap_or_else(|status| panic!("POST {path}: {status}"))
    }

    /// `Err`: the status of a refusal.
    pub async fn try_post(&self, path: &str, body: Value) -> Result<Value, reqwest::StatusCode> {
        let answer = self.http.post(format!("{}/api/{path}", self.url)).json(&body).send().await;
        let answer = answer.expect(MISSING);
        match answer.status().is_success() {
            true => Ok(answer.json().await.unwrap_or(Value::Null)),
            false => Err(answer.status()),
        }
    }

    pub async fn delete(&self, path: &str) {
        let _ = self.http.delete(format!("{}/api/{path}", self.url)).send().await;
    }
}

/// A vhost that is deleted, with everything in it, when this is dropped.
pub struct Vhost {
    pub name: String,
    pub management: Management,
    amqp: String,
}

/// A fresh vhost of the broker that `./test` provides.
pub async fn vhost() -> Vhost {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let amqp = environment("WARREN_TEST_AMQP_URL").trim_end_matches('/').to_owned();
    let management = Management::new(&environment("WARREN_TEST_MANAGEMENT_URL"));
    management.put(&format!("vhosts/{name}"), json!({})).await;
    Vhost { name, management, amqp }
}

impl Vhost {
    pub fn url(&self) -> String {
        format!("{}/{}", self.amqp, self.name)
    }

    /// The same vhost for another user.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let (_, host) = self.amqp.rsplit_once('@').unwrap();
        format!("amqp://{user}:{password}@{host}/{}", self.name)
    }

    pub fn port(&self) -> u16 {
        self.amqp.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// The names of all queues.
    pub async fn queues(&self) -> Vec<String> {
        names(&self.management.get(&format!("queues/{}", self.name)).await)
    }

    /// The bindings of a queue, as (exchange, routing key); the one of the default exchange is left out.
    pub async fn bindings(&self, queue: &str) -> Vec<(String, String)> {
        let all = self.management.get(&format!("queues/{}/{queue}/bindings", self.name)).await;
        let text = |binding: &Value, key| binding[key].as_str().unwrap_or_default().to_owned();
        let mut bindings: Vec<_> = all
            .as_array()
            .into_iter()
            .flatten()
            .map(|binding| (text(binding, "source"), text(binding, "routing_key")))
            .filter(|(source, _)| !source.is_empty())
            .collect();
        bindings.sort();
        bindings
    }

    /// How many messages a queue holds, handed out or not, as of a moment ago.
    pub async fn messages(&self, queue: &str) -> Option<u64> {
        self.management.get(&format!("queues/{}/{queue}", self.name)).await["messages"].as_u64()
    }

    pub async fn close_connections(&self) {
        let all = self.management.get(&format!("vhosts/{}/connections", self.name)).await;
        for name in names(&all) {
            let name = name.replace(' ', "%20").replace('>', "%3E");
            self.management.delete(&format!("connections/{name}")).await;
        }
    }

    pub async fn delete_queue(&self, queue: &str) {
        self.management.delete(&format!("queues/{}/{queue}", self.name)).await;
    }
}

fn names(list: &Value) -> Vec<String> {
    let names = list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str());
    names.map(str::to_owned).collect()
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let (management, name) = (self.management.url.clone(), self.name.clone());
        // A test's runtime may be the one that drops this, so the request needs one of its own.
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Management::new(&management).delete(&format!("vhosts/{name}")));
        });
        let _ = deleting.join();
    }
}

/// A broker that belongs to one test, which may stop it, kill it and start it again on the same port.
pub struct PrivateBroker {
    dir: PathBuf,
    ports: [u16; 4],
    /// Of MQTT and STOMP, which most brokers of tests do not speak.
    doors: Option<[u16; 2]>,
    is_plain: bool,
    tls: Option<u16>,
    process: Option<Child>,
}

impl PrivateBroker {
    pub async fn start() -> Self {
        Self::start_with(None, false, None).await
    }

    /// A broker without the consistent-hash exchange.
    pub async fn start_plain() -> Self {
        Self::start_with(None, true, None).await
    }

    /// A broker that speaks MQTT and STOMP as well.
    pub async fn start_with_doors() -> Self {
        Self::start_with(Some([free_port(), free_port()]), false, None).await
    }

    /// A broker that speaks TLS as well, with these files: its authority, its certificate and its key.
    pub async fn start_with_tls(files: [(&str, &str); 3]) -> Self {
        Self::start_with(None, false, Some(files)).await
    }

    async fn start_with(doors: Option<[u16; 2]>, is_plain: bool, tls: Option<[(&str, &str); 3]>) -> Self {
        let ports = [free_port(), free_port(), free_port(), free_port()];
        let dir = std::env::temp_dir().join(format!("warren-broker-{}-{}", std::process::id(), ports[0]));
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in tls.into_iter().flatten() {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let tls = tls.map(|_| free_port());
        let mut broker = Self { dir, ports, doors, is_plain, tls, process: None };
        broker.start_again().await;
        broker
    }

    /// A broker that can be joined with others which were started with the same port of epmd.
    pub async fn start_beside(epmd: u16) -> Self {
        let ports = [free_port(), free_port(), free_port(), epmd];
        let dir = std::env::temp_dir().join(format!("warren-broker-{}-{}", std::process::id(), ports[0]));
        std::fs::create_dir(&dir).unwrap();
        let cookie = dir.join(".erlang.cookie");
        std::fs::write(&cookie, format!("warren{epmd}")).unwrap();
        std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400)).unwrap();
        let mut broker = Self { dir, ports, doors: None, is_plain: false, tls: None, process: None };
        broker.start_again().await;
        broker
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    pub fn tls_port(&self) -> u16 {
        self.tls.unwrap()
    }

    pub fn mqtt_port(&self) -> u16 {
        self.doors.unwrap()[0]
    }

    pub fn stomp_port(&self) -> u16 {
        self.doors.unwrap()[1]
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port())
    }

    /// What the broker is called among brokers.
    pub fn node_name(&self) -> String {
        format!("warren-{}@localhost", self.port())
    }

    pub fn management_port(&self) -> u16 {
        self.ports[1]
    }

    pub fn management(&self) -> Management {
        Management::new(&format!("http://guest:guest@127.0.0.1:{}", self.ports[1]))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/broker.sh"));
        command.arg(&self.dir).args(self.ports.map(|port| port.to_string())).stdin(Stdio::null());
        if self.is_plain {
            command.env("BROKER_PLAIN", "1");
        }
        for (name, port) in
            ["BROKER_MQTT_PORT", "BROKER_STOMP_PORT"].iter().zip(self.doors.into_iter().flatten())
        {
            command.env(name, port.to_string());
        }
        if let Some(port) = self.tls {
            command.env("BROKER_TLS_PORT", port.to_string());
        }
        command
    }

    /// Returns when the broker takes connections.
    pub async fn start_again(&mut self) {
        let log = std::fs::File::create(self.dir.join("out")).unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        self.process = Some(command.spawn().expect(MISSING));
        let has_more = self.doors.is_some() || self.tls.is_some();
        let management = has_more.then(|| self.management_port());
        let others = self.doors.into_iter().flatten().chain(management).chain(self.tls);
        for port in std::iter::once(self.port()).chain(others) {
            eventually("the private broker takes connections", Duration::from_secs(240), || async move {
                tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
            })
            .await;
        }
    }

    /// As `kill -9` of everything that belongs to it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let group = format!("-{}", process.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = process.wait();
            // The leader is gone, the others of its group follow: until then the port is taken.
            let end = std::time::Instant::now() + Duration::from_secs(10);
            while std::net::TcpStream::connect(("127.0.0.1", self.port())).is_ok()
                && std::time::Instant::now() < end
            {
                std::thread::yield_now();
            }
        }
    }

    /// Runs `rabbitmqctl`.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command();
        command.arg("ctl").args(arguments);
        let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(
            done.status.success(),
            "rabbitmqctl {arguments:?}: {}{text}",
            String::from_utf8_lossy(&done.stderr)
        );
        text
    }
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
