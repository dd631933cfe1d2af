//! The topology, users and permissions as a RabbitMQ definitions file, rendered from the code's own data.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};

use super::topology::{Argument, Topology};

/// User, tags, sample password. The passwords are public: `amqp/README.md` says how to change them.
const USERS: [(&str, &[&str], &str); 4] = [
    ("admin", &["administrator"], "change-me-admin"),
    ("gateway", &[], "change-me-gateway"),
    ("backend", &[], "change-me-backend"),
    ("application", &[], "change-me-application"),
];

/// The content of `amqp/definitions.json`, for `load_definitions` or the import of the management UI.
pub fn definitions(topology: &Topology) -> String {
    let exchanges: Vec<_> = topology
        .exchanges()
        .into_iter()
        .map(|exchange| {
            json!({
                "name": exchange.name, "vhost": "/", "type": exchange.kind.as_str(),
                "durable": true, "auto_delete": false, "internal": false, "arguments": {},
            })
        })
        .collect();
    let queues: Vec<_> = topology
        .durable_queues()
        .into_iter()
        .map(|queue| {
            json!({
                "name": queue.name, "vhost": "/", "durable": true, "auto_delete": false,
                "arguments": arguments(&queue.arguments),
            })
        })
        .collect();
    let bindings: Vec<_> = topology
        .durable_bindings()
        .into_iter()
        .map(|binding| {
            json!({
                "source": binding.exchange, "vhost": "/", "destination": binding.queue,
                "destination_type": "queue", "routing_key": binding.key, "arguments": {},
            })
        })
        .collect();
    let users: Vec<_> = USERS
        .iter()
        .map(|(name, tags, password)| {
            json!({
                "name": name, "password_hash": password_hash(name, password),
                "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": tags,
            })
        })
        .collect();
    let content = json!({
        "vhosts": [{ "name": "/" }],
        "users": users,
        "permissions": permissions(topology),
        "topic_permissions": topic_permissions(topology),
        "exchanges": exchanges,
        "queues": queues,
        "bindings": bindings,
        "policies": [],
        "parameters": [],
        "global_parameters": [],
    });
    format!("{content:#}\n")
}

fn arguments(arguments: &[(&'static str, Argument)]) -> Value {
    let arguments = arguments.iter().map(|(name, value)| {
        let value = match value {
            Argument::Text(text) => json!(text),
            Argument::Number(number) => json!(number),
            Argument::Flag(flag) => json!(flag),
        };
        ((*name).to_owned(), value)
    });
    Value::Object(arguments.collect::<Map<_, _>>())
}

/// `configure` makes and deletes, `write` publishes and binds queues, `read` consumes and binds to exchanges.
fn permissions(topology: &Topology) -> Value {
    let prefix = topology.prefix().replace('.', "\\.");
    json!([
        { "user": "admin", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" },
        {
            "user": "gateway", "vhost": "/",
            // Its own queues and the users' mail; exchanges and the other durable queues are made by this file.
            // `mailbox` is what an older version called the mail's queues, which are emptied and deleted.
            "configure": format!("^{prefix}\\.(node|control|replies|box|mailbox)\\..+$"),
            // `amq.default` reaches queues by their names: reply queues and boxes.
            "write": format!(
                "^({prefix}\\.(broadcast|direct|control|ingress|events|dead|app)|{prefix}\\.(node|control|replies|box|mailbox)\\..+|amq\\.default)$"
            ),
            // Of `dead` only to bind its queue again; nodes never consume it.
            "read": format!(
                "^({prefix}\\.(broadcast|direct|control|ingress|dead)|{prefix}\\.(node|control|replies|box|mailbox)\\..+)$"
            ),
        },
        {
            "user": "backend", "vhost": "/",
            // Nothing: with an exchange of its own, bound to `ingress`, or a queue that dead-letters to it, it could
            // publish to any target, since topic permissions are checked at the first exchange only.
            "configure": "^$",
            "write": format!("^{prefix}\\.(ingress|broadcast)$"),
            // Queues that an administrator made for it, for settlements.
            "read": "^backend\\..+$",
        },
        {
            "user": "application", "vhost": "/",
            // Queues of its own, which it binds to `app`. It may not publish to `ingress`: its queues could dead-letter
            // there, past the topic permissions.
            "configure": "^application\\..+$",
            // `amq.default`: the way of every answer.
            "write": "^(application\\..+|amq\\.default)$",
            "read": format!("^(application\\..+|{prefix}\\.app)$"),
        },
    ])
}

/// Which targets a service may address at the ingress exchange, and for which keys it may listen.
fn topic_permissions(topology: &Topology) -> Value {
    json!([
        {
            "user": "backend", "vhost": "/", "exchange": topology.ingress(),
            "write": "^((user|session|channel)\\..+|broadcast)$", "read": "^$",
        },
        // For which keys it may bind its queues.
        { "user": "application", "vhost": "/", "exchange": topology.app(), "write": "^$", "read": ".*" },
    ])
}

/// RabbitMQ's salted SHA-256. The salt comes from the name, so that the file comes out the same each time.
fn password_hash(name: &str, password: &str) -> String {
    let salt = &Sha256::digest(name)[..4];
    let hash = Sha256::new().chain_update(salt).chain_update(password).finalize();
    STANDARD.encode([salt, hash.as_slice()].concat())
}
