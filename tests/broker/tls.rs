//! TLS to the broker: a private authority, certificates that are wrong, and one that takes the place of a password.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use warren::config::Config;
use warren::node::Node;

use crate::broker::PrivateBroker;
use crate::certificates::{Authority, Files};
use crate::eventually::eventually;
use crate::nodes::config;
use crate::user::User;

const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for several tries to connect.
const TRIES: Duration = Duration::from_secs(3);

struct Setting {
    broker: PrivateBroker,
    files: Files,
    authority: Authority,
}

impl Setting {
    async fn start(host: &str, year: i32) -> Self {
        let (authority, files) = (Authority::new(), Files::new());
        let own = authority.issue_until(host, year);
        let given = [("ca.pem", &authority.pem[..]), ("node.pem", &own.chain), ("node.key", &own.key)];
        let broker = PrivateBroker::start_with_tls(given).await;
        Self { broker, files, authority }
    }

    fn config(&self, host: &str, query: &str, vars: &[(&str, &str)]) -> Config {
        let url = format!("amqps://{host}:{}/%2f{query}", self.broker.tls_port());
        config("n0", &[&[("AMQP_URL", url.as_str())], vars].concat())
    }
}

async fn serves(config: Config) -> bool {
    let mut node = Node::start(config).unwrap();
    let is_ready = timeout(TRIES, node.ready()).await.is_ok();
    node.drain(std::future::ready(())).await;
    is_ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_believed_by_its_certificate_alone() {
    let good = Setting::start("localhost", 2120).await;
    let ca = good.files.write("ca.pem", &good.authority.pem);
    let other = good.files.write("other.pem", &Authority::new().pem);
    let node = Node::start(good.config("guest:guest@localhost", "", &[("AMQP_CA_FILE", &ca)])).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");
    let mut user = User::connect(node.public(), "alice").await;
    assert_eq!(
        user.publish("user.bob", "hello").await["outcome"],
        "stored",
        "a message goes through the broker"
    );
    let expired = Setting::start("localhost", 2021).await;
    let expired_ca = expired.files.write("ca.pem", &expired.authority.pem);
    let (wrong, trusted) = ("guest:guest@127.0.0.1", [("AMQP_CA_FILE", ca.as_str())]);
    assert!(!serves(good.config(wrong, "", &trusted)).await, "a certificate for another name");
    assert!(
        !serves(good.config("guest:guest@localhost", "", &[("AMQP_CA_FILE", &other)])).await,
        "another authority"
    );
    assert!(
        !serves(good.config("guest:guest@localhost", "", &[])).await,
        "an authority that the machine does not know"
    );
    let late = expired.config("guest:guest@localhost", "", &[("AMQP_CA_FILE", &expired_ca)]);
    assert!(!serves(late).await, "a certificate that has expired");
    let mut again = User::connect(node.public(), "alice").await;
    assert_eq!(again.publish("user.bob", "again").await["outcome"], "stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_takes_the_place_of_a_password() {
    let setting = Setting::start("localhost", 2120).await;
    let management = setting.broker.management();
    management.put("users/gateway", json!({"password_hash": "", "tags": ""})).await;
    let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
    management.put("permissions/%2f/gateway", all).await;
    let ca = setting.files.write("ca.pem", &setting.authority.pem);
    let [chain, key] = setting.files.write_pair("gateway", &setting.authority.issue("gateway"));
    let vars = [("AMQP_CA_FILE", &ca[..]), ("AMQP_CERT_FILE", &chain), ("AMQP_KEY_FILE", &key)];
    let node = Node::start(setting.config("gateway@localhost", "?auth_mechanism=external", &vars)).unwrap();
    timeout(PATIENCE, node.ready()).await.expect("a node that serves");

    // The files are read for each connection, and a mistake leaves what was there.
    setting.files.write("gateway.pem", "nothing");
    management.delete("connections/username/gateway").await;
    let mut user = User::connect(node.public(), "alice").await;
    eventually("the node is back", PATIENCE, || async {
        management.get("connections").await.as_array().is_some_and(|all| !all.is_empty())
    })
    .await;
    timeout(PATIENCE, node.ready()).await.expect("a node that serves again");
    drop(node);
    drop(user.end().await);

    // One of another authority, and one of another name.
    setting.files.write_pair("gateway", &Authority::new().issue("gateway"));
    let external =
        |name: &str| setting.config(&format!("{name}@localhost"), "?auth_mechanism=external", &vars);
    assert!(!serves(external("gateway")).await);
    setting.files.write_pair("gateway", &setting.authority.issue("stranger"));
    assert!(!serves(external("gateway")).await);
}
