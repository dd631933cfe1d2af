//! Real `warren` processes: started, signalled, killed and read by their pid and their log.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::broker::free_port;
use crate::eventually::eventually;

const START_MAX: Duration = Duration::from_secs(60);

/// What all nodes of a scenario have in common.
#[derive(Clone)]
pub struct NodeSettings {
    pub binary: PathBuf,
    pub dir: PathBuf,
    pub prefix: String,
    pub quorum: bool,
    pub more: &'static [(&'static str, &'static str)],
    pub partitions: Option<u16>,
    /// How many seconds the wall clock of each node is ahead; none = all are right.
    pub skew_s: &'static [i64],
    pub sabotage: String,
    pub routing: String,
}

/// The preloaded library that gives a process another wall clock. It leaves the monotonic clock alone.
fn fake_time() -> PathBuf {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib"];
    let paths = folders.iter().map(|folder| Path::new(folder).join("faketime/libfaketimeMT.so.1"));
    paths.into_iter().find(|path| path.exists()).expect("libfaketime is not installed (Debian: faketime)")
}

pub struct NodeProcess {
    pub name: String,
    pub port: u16,
    admin: u16,
    index: usize,
    amqp_url: String,
    settings: NodeSettings,
    child: Option<Child>,
}

impl NodeProcess {
    pub fn start(settings: &NodeSettings, index: usize, amqp_url: String) -> Self {
        let name = format!("node{index}");
        let (port, admin) = (free_port(), free_port());
        let mut node = Self { name, port, admin, index, amqp_url, settings: settings.clone(), child: None };
        node.start_again();
        node
    }

    /// Starts it anew, with the same name and on the same ports.
    pub fn start_again(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let settings = &self.settings;
        let mut command = Command::new(&settings.binary);
        command
            .env_clear()
            .env("WARREN_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("WARREN_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin))
            .env("WARREN_NODE_ID", &self.name)
            .env("WARREN_AMQP_URL", &self.amqp_url)
            .env("WARREN_PREFIX", &settings.prefix)
            .env("WARREN_AUTH", "insecure")
            .env("WARREN_QUEUE_TYPE", if settings.quorum { "quorum" } else { "classic" })
            .env("WARREN_WORKERS", "1")
            .env("WARREN_MESSAGE_RATE", "0")
            .env("WARREN_PING_INTERVAL_MS", "4000")
            .env("WARREN_PONG_TIMEOUT_MS", "4000")
            .env("WARREN_DRAIN_MS", "4000")
            .env("WARREN_LOG", "info")
            .env("WARREN_ROUTING", &settings.routing)
            .env("SABOTAGE", &settings.sabotage)
            .envs(settings.more.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(partitions) = settings.partitions {
            command.env("WARREN_INGRESS_PARTITIONS", partitions.to_string());
        }
        if let Some(skew) = settings.skew_s.get(self.index).filter(|skew| **skew != 0) {
            command.env("LD_PRELOAD", fake_time()).env("FAKETIME", format!("{skew:+}"));
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        self.child = Some(command.spawn().expect("the node cannot be started"));
    }

    fn log(&self) -> PathBuf {
        self.settings.dir.join(format!("{}.log", self.name))
    }

    pub async fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/readyz", self.admin);
        let answer = reqwest::Client::new().get(url).timeout(Duration::from_secs(1)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// `None`: it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A gauge of its metrics. `None`: it does not answer, or has no such gauge.
    pub async fn gauge(&self, name: &str) -> Option<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        let asked = reqwest::Client::new().get(url).timeout(Duration::from_secs(2)).send().await.ok()?;
        let text = asked.text().await.ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    pub async fn ready(&self) {
        eventually(&format!("{} is ready; see {:?}", self.name, self.log()), START_MAX, || self.is_ready())
            .await;
    }

    pub fn signal(&self, signal: &str) {
        let Some(pid) = self.pid() else { return };
        let sent = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{signal} {}", self.name);
    }

    /// As the kernel does when memory runs out: no word to anybody.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for the end of a node that was told to stop.
    pub async fn ended(&mut self, patience: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let end = tokio::time::Instant::now() + patience;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if tokio::time::Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} did not stop within {patience:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last lines of its log that matter.
    pub fn log_tail(&self, lines: usize) -> Vec<String> {
        let text = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let said: Vec<_> =
            text.lines().filter(|line| !line.contains("moved a message to the dead")).collect();
        said.iter().skip(said.len().saturating_sub(lines)).map(|line| line.to_string()).collect()
    }

    /// Whether the process ended although nobody ended it.
    pub fn died(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder for logs that is removed unless somebody has to read them.
pub struct Folder(Option<PathBuf>);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("warren-faults-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(Some(path))
    }

    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap()
    }

    /// Leaves it where it is.
    pub fn keep(mut self) -> PathBuf {
        self.0.take().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}
