//! Holds compose/ and k8s/ to the configuration: names, ports, times and what a pod may do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_norway::Value;
use warren::config::{Config, KEYS, PREFIX};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_norway::Deserializer::from_str(&text(path))
        .map(|document| {
            let mut value = Value::deserialize(document).unwrap_or_else(|error| panic!("{path}: {error}"));
            value.apply_merge().unwrap();
            value
        })
        .collect()
}

/// The value at a path such as `spec.template.containers.0`.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, step| {
        let next = match step.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(step),
        };
        next.unwrap_or_else(|| panic!("no {step} of {path}"))
    })
}

fn int(value: &Value, path: &str) -> u64 {
    at(value, path).as_u64().unwrap_or_else(|| panic!("{path} is no number"))
}

fn string<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_else(|| panic!("{path} is no text"))
}

/// Every `WARREN_…` that a text names, also in comments; the bare prefix names none.
fn named_keys(text: &str) -> Vec<&str> {
    text.match_indices(PREFIX)
        .map(|(start, _)| {
            let rest = &text[start + PREFIX.len()..];
            let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(rest.len());
            &rest[..end]
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn config(vars: &BTreeMap<String, String>) -> Config {
    Config::from_vars(vars.clone()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What kustomize would put together, without kustomize: the resources of k8s/base.
fn resource(kind: &str, name: &str) -> Value {
    let kustomization = &yaml("k8s/base/kustomization.yaml")[0];
    let files = at(kustomization, "resources").as_sequence().unwrap().clone();
    let mut all = files.iter().flat_map(|file| yaml(&format!("k8s/base/{}", file.as_str().unwrap())));
    all.find(|resource| string(resource, "kind") == kind && string(resource, "metadata.name") == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn pod() -> Value {
    at(&resource("Deployment", "warren"), "spec.template.spec").clone()
}

/// The variables of the pod; secrets get a valid value.
fn pod_vars() -> BTreeMap<String, String> {
    let pod = pod();
    let env = at(&pod, "containers.0.env").as_sequence().unwrap();
    env.iter()
        .map(|entry| {
            let name = string(entry, "name").to_string();
            let value = match (entry.get("value"), name.as_str()) {
                (Some(value), _) => value.as_str().expect("numbers must be quoted").to_string(),
                (None, "WARREN_AMQP_URL") => "amqp://u:p@rabbitmq".to_string(),
                (None, "WARREN_NODE_ID") => "warren-5d8f7c9b6-x2x7p".to_string(),
                (None, _) => "0123456789abcdef0123456789abcdef".to_string(),
            };
            (name, value)
        })
        .collect()
}

fn gateways() -> Vec<Value> {
    let compose = &yaml("compose/compose.yaml")[0];
    let services = at(compose, "services").as_mapping().unwrap();
    let ours = services.iter().filter(|(name, _)| name.as_str().unwrap().starts_with("gateway-"));
    ours.map(|(_, service)| service.clone()).collect()
}

fn gateway_vars(service: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    at(service, "environment").as_mapping().unwrap().iter().map(|(k, v)| (text(k), text(v))).collect()
}

#[test]
fn every_named_variable_exists() {
    for path in [
        "compose/compose.yaml",
        "compose/proxy.conf",
        "k8s/base/deployment.yaml",
        "k8s/base/kustomization.yaml",
        "k8s/example/secret.env",
        "cluster",
    ] {
        for name in named_keys(&text(path)).into_iter().filter(|name| !name.starts_with("TEST_")) {
            assert!(KEYS.iter().any(|key| key.name == name), "{path} names {PREFIX}{name}");
        }
    }
}

#[test]
fn compose_starts_three_nodes_that_differ_in_their_name() {
    let gateways = gateways();
    assert_eq!(gateways.len(), 3);
    let balancer = text("compose/nginx.conf");
    let mut names = std::collections::BTreeSet::new();
    for gateway in &gateways {
        let vars = gateway_vars(gateway);
        let config = config(&vars);
        assert!(!config.standalone());
        assert_eq!((config.listen.port(), config.admin_listen.port()), (8080, 9090));
        let name = config.node_id.to_string();
        assert!(balancer.contains(&format!("server {name}:{} ", config.listen.port())), "{name}");
        assert!(names.insert(name));
        let grace: u64 = string(gateway, "stop_grace_period").trim_end_matches('s').parse().unwrap();
        assert!(grace >= config.drain.as_secs() + 5, "SIGKILL would come before the end of the drain");
        assert!(at(gateway, "read_only").as_bool().unwrap());
        assert_eq!(string(gateway, "cap_drop.0"), "ALL");
    }
}

#[test]
fn compose_shows_itself_to_this_machine_only() {
    let compose = &yaml("compose/compose.yaml")[0];
    for (name, service) in at(compose, "services").as_mapping().unwrap() {
        let Some(ports) = service.get("ports") else { continue };
        for port in ports.as_sequence().unwrap() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name:?} {port:?}");
        }
    }
    let mounts = at(compose, "services.rabbitmq.volumes");
    for file in ["../amqp/rabbitmq.conf:", "../amqp/definitions.json:"] {
        assert!(mounts.as_sequence().unwrap().iter().any(|mount| mount.as_str().unwrap().starts_with(file)));
    }
}

#[test]
fn the_balancer_waits_longer_than_a_silent_but_living_socket() {
    let proxy = text("compose/proxy.conf");
    let defaults = Config::from_vars([]).unwrap();
    for directive in ["proxy_read_timeout ", "proxy_send_timeout "] {
        let rest = proxy.split(directive).nth(1).unwrap();
        let seconds: u64 = rest.split('s').next().unwrap().parse().unwrap();
        assert!(seconds > (defaults.ping_interval + defaults.pong_timeout).as_secs() + 5, "{directive}");
    }
}

#[test]
fn the_image_is_not_root() {
    let dockerfile = text("compose/Dockerfile");
    assert!(dockerfile.contains("\nUSER 65532:65532\n"));
    assert!(dockerfile.contains("ENTRYPOINT [\"/usr/local/bin/warren\"]"), "PID 1 must get SIGTERM");
    let pod = pod();
    assert_eq!(int(&pod, "securityContext.runAsUser"), 65532);
}

#[test]
fn the_deployment_is_three_replaceable_nodes() {
    let deployment = resource("Deployment", "warren");
    assert_eq!(int(&deployment, "spec.replicas"), 3);
    assert_eq!(int(&deployment, "spec.strategy.rollingUpdate.maxUnavailable"), 0);
    let labels = at(&deployment, "spec.template.metadata.labels");
    let budget = resource("PodDisruptionBudget", "warren");
    let network = resource("NetworkPolicy", "warren");
    for selector in [
        at(&deployment, "spec.selector.matchLabels"),
        at(&resource("Service", "warren"), "spec.selector"),
        at(&resource("Service", "warren-admin"), "spec.selector"),
        at(&budget, "spec.selector.matchLabels"),
        at(&network, "spec.podSelector.matchLabels"),
    ] {
        assert_eq!(selector, labels);
    }
    assert_eq!(int(&budget, "spec.maxUnavailable"), 1);
    for constraint in at(&deployment, "spec.template.spec.topologySpreadConstraints").as_sequence().unwrap() {
        assert_eq!(at(constraint, "labelSelector.matchLabels"), labels);
    }
}

#[test]
fn the_pod_has_time_to_drain() {
    let pod = pod();
    let config = config(&pod_vars());
    let pre_stop = int(&pod, "containers.0.lifecycle.preStop.sleep.seconds");
    let grace = int(&pod, "terminationGracePeriodSeconds");
    assert!(grace >= pre_stop + config.drain.as_secs() + 15, "{grace} s are too short");
    assert!(pre_stop >= 5);
}

#[test]
fn ports_and_probes_meet_the_listeners() {
    let pod = pod();
    let config = config(&pod_vars());
    assert!(
        !config.insecure()
            && config.listen.ip().is_unspecified()
            && config.admin_listen.ip().is_unspecified()
    );
    let ports = at(&pod, "containers.0.ports").as_sequence().unwrap();
    let port = |name: &str| {
        let port = ports.iter().find(|port| string(port, "name") == name).unwrap();
        int(port, "containerPort") as u16
    };
    assert_eq!((port("public"), port("admin")), (config.listen.port(), config.admin_listen.port()));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let probe = at(&pod, &format!("containers.0.{probe}.httpGet"));
        assert_eq!((string(probe, "path"), string(probe, "port")), (path, "admin"));
    }
    let public = resource("Service", "warren");
    assert_eq!(at(&public, "spec.ports").as_sequence().unwrap().len(), 1, "the admin port is not public");
    assert_eq!(string(&public, "spec.ports.0.targetPort"), "public");
    let admin = resource("Service", "warren-admin");
    assert_eq!(
        (string(&admin, "spec.clusterIP"), string(&admin, "spec.ports.0.targetPort")),
        ("None", "admin")
    );
}

#[test]
fn the_pod_may_do_nothing_it_does_not_need() {
    let pod = pod();
    assert!(!at(&pod, "automountServiceAccountToken").as_bool().unwrap());
    // Else Kubernetes adds variables such as WARREN_PORT.
    assert!(!at(&pod, "enableServiceLinks").as_bool().unwrap());
    assert!(at(&pod, "securityContext.runAsNonRoot").as_bool().unwrap());
    assert_eq!(string(&pod, "securityContext.seccompProfile.type"), "RuntimeDefault");
    let container = at(&pod, "containers.0");
    assert!(!at(container, "securityContext.allowPrivilegeEscalation").as_bool().unwrap());
    assert!(at(container, "securityContext.readOnlyRootFilesystem").as_bool().unwrap());
    assert_eq!(string(container, "securityContext.capabilities.drop.0"), "ALL");
    assert_eq!(string(container, "resources.requests.memory"), string(container, "resources.limits.memory"));
    let entries = at(container, "env").as_sequence().unwrap();
    let node_id = entries.iter().find(|entry| string(entry, "name") == "WARREN_NODE_ID").unwrap();
    assert_eq!(string(node_id, "valueFrom.fieldRef.fieldPath"), "metadata.name");
    for secret in ["WARREN_AMQP_URL", "WARREN_JWT_SECRET", "WARREN_API_KEYS"] {
        let entry = entries.iter().find(|entry| string(entry, "name") == secret).unwrap();
        assert_eq!(string(entry, "valueFrom.secretKeyRef.key"), secret);
    }
}

#[test]
fn the_example_has_every_secret_and_a_node_refuses_it_as_it_is() {
    let env = text("k8s/example/secret.env");
    let secrets: BTreeMap<String, String> = env
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    assert_eq!(
        secrets.keys().collect::<Vec<_>>(),
        ["WARREN_AMQP_URL", "WARREN_API_KEYS", "WARREN_JWT_SECRET"]
    );
    let mistakes = Config::from_vars(secrets).unwrap_err().to_string();
    assert!(mistakes.contains("WARREN_JWT_SECRET") && mistakes.contains("WARREN_API_KEYS"), "{mistakes}");
}

/// Runs a program on our files if this machine has it.
fn accepted_by(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let Ok(output) = output else {
        eprintln!("{program} is not installed: {arguments:?} not tried");
        return;
    };
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_programs_they_are_written_for_accept_them() {
    accepted_by("docker-compose", &["-f", "compose/compose.yaml", "config", "--quiet"]);
    accepted_by("kubectl", &["kustomize", "k8s/base"]);
    accepted_by("kubectl", &["kustomize", "k8s/example"]);
}
