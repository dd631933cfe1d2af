//! The documents against the code: what one has and the other has not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{json, Value};
use warren::http::addresses::{Listener, ADDRESSES};
use warren::protocol::close::{CloseCode, Reconnect};

use crate::golden::codes;
use crate::tools::root;

pub fn document(path: &str) -> Value {
    let text = std::fs::read_to_string(root().join(path)).unwrap();
    match path.ends_with(".json") {
        true => serde_json::from_str(&text).unwrap(),
        false => serde_norway::from_str(&text).unwrap(),
    }
}

fn texts(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The methods that a path of the document has. HEAD goes wherever GET goes.
fn methods(item: &Value) -> BTreeSet<String> {
    let known = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
    let named = item.as_object().unwrap().keys().filter(|key| known.contains(&key.as_str()));
    let mut methods: BTreeSet<String> = named.map(|method| method.to_uppercase()).collect();
    if methods.contains("GET") {
        methods.insert("HEAD".to_owned());
    }
    methods
}

/// Where a path of the document is: on the public listener, on the admin one.
fn places(document: &Value, item: &Value) -> (bool, bool) {
    let servers = item.get("servers").unwrap_or(&document["servers"]).as_array().unwrap();
    let is_on = |port: &str| servers.iter().any(|server| server["url"].as_str().unwrap().ends_with(port));
    (is_on(":8080"), is_on(":9090"))
}

#[test]
fn every_address_is_documented_with_its_methods_and_where_it_is() {
    let document = document("openapi.yaml");
    let documented: BTreeMap<_, _> = document["paths"].as_object().unwrap().iter().collect();
    let described = |item: &Value| (methods(item), places(&document, item));
    let documented: BTreeMap<String, _> =
        documented.into_iter().map(|(path, item)| (path.clone(), described(item))).collect();
    let is: BTreeMap<String, _> = ADDRESSES
        .iter()
        .map(|address| {
            let methods: BTreeSet<String> = address.methods.split(", ").map(str::to_owned).collect();
            let is_on = |listener| address.kind.is_on(listener, true);
            (address.path.to_owned(), (methods, (is_on(Listener::Public), is_on(Listener::Admin))))
        })
        .collect();
    assert_eq!(documented, is);
}

#[test]
fn every_error_code_is_documented_and_every_status_of_one() {
    let values = document("schemas/values.schema.json");
    let names: BTreeSet<String> = codes().map(|code| code.as_str().to_owned()).collect();
    assert_eq!(texts(&values["$defs"]["error_code"]["enum"]), names);
    let retried: BTreeSet<String> =
        codes().filter(|code| code.retry()).map(|code| code.as_str().to_owned()).collect();
    assert_eq!(texts(&values["$defs"]["error"]["if"]["properties"]["code"]["enum"]), retried);
    // A publish may end with each code; those that do not call for another try are in the body of a 200.
    let openapi = document("openapi.yaml");
    let answers = openapi["paths"]["/v1/messages"]["post"]["responses"].as_object().unwrap();
    for code in codes().filter(|code| code.retry()) {
        assert!(answers.contains_key(&code.http_status().to_string()), "{}", code.as_str());
    }
}

#[test]
fn every_close_code_is_documented() {
    let frames = document("schemas/frames.schema.json");
    let documented = frames["$defs"]["disconnect"]["oneOf"].as_array().unwrap();
    let constant = |of: &Value, name: &str| of["properties"][name]["const"].clone();
    let documented: Vec<Value> = documented
        .iter()
        .map(|of| json!(["code", "reason", "reconnect"].map(|name| constant(of, name))))
        .collect();
    let is: Vec<Value> = (CloseCode::ALL.iter())
        .map(|close| json!([close.code(), close.reason(), close.reconnect() != Reconnect::Never]))
        .collect();
    assert_eq!(documented, is);
}

/// The definitions that a choice is made of; a choice of choices is one choice.
fn chosen(frames: &Value, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for choice in frames["$defs"][name]["oneOf"].as_array().unwrap() {
        let Some(reference) = choice["$ref"].as_str() else { return BTreeSet::from([name.to_owned()]) };
        let inner = reference.strip_prefix("#/$defs/").unwrap();
        match frames["$defs"][inner]["oneOf"].is_array() {
            true => found.extend(chosen(frames, inner)),
            false => _ = found.insert(inner.to_owned()),
        }
    }
    found
}

#[test]
fn every_frame_is_in_the_schema_and_in_asyncapi() {
    let frames = document("schemas/frames.schema.json");
    let (client, server) = (chosen(&frames, "client"), chosen(&frames, "server"));
    let source = std::fs::read_to_string(root().join("src/protocol/warren_v1/reply.rs")).unwrap();
    let (program, _) = source.split_once("#[cfg(test)]").unwrap();
    // Frames are written as structs, or as text where that is quicker.
    let quick = program.replace('\\', "");
    let written = ["kind: \"", "\"type\":\""].iter().flat_map(|before| {
        let parts: Vec<&str> = quick.split(before).skip(1).collect();
        parts.into_iter().map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    });
    let types = |names: &BTreeSet<String>| -> BTreeSet<String> {
        let of =
            |name: &String| frames["$defs"][name]["properties"]["type"]["const"].as_str().unwrap().to_owned();
        names.iter().map(of).collect()
    };
    assert_eq!(types(&server), written.collect::<BTreeSet<String>>());
    let asyncapi = document("amqp/asyncapi.yaml");
    let messages: BTreeSet<String> =
        asyncapi["channels"]["session"]["messages"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(messages, client.union(&server).cloned().collect::<BTreeSet<String>>());
    for name in &messages {
        let payload = &asyncapi["components"]["messages"][name]["payload"]["$ref"];
        assert_eq!(*payload, format!("../schemas/frames.schema.json#/$defs/{name}"));
    }
    // Each is part of an operation in its direction.
    let used = |action: &str| -> String {
        let operations = asyncapi["operations"].as_object().unwrap().values();
        operations
            .filter(|operation| operation["action"] == action)
            .map(|of| of["messages"].to_string())
            .collect()
    };
    let replies: String =
        asyncapi["operations"].as_object().unwrap().values().map(|of| of["reply"].to_string()).collect();
    let (received, sent) = (used("receive"), used("send") + &replies);
    for (names, used) in [(client, received), (server, sent)] {
        for name in names {
            assert!(used.contains(&format!("messages/{name}\"")), "{name} is in no operation");
        }
    }
}

/// The values of `event` in the schema of events.
fn events(schema: &Value) -> BTreeSet<String> {
    let choices = schema["oneOf"].as_array().unwrap().iter().map(|choice| &choice["properties"]["event"]);
    choices
        .flat_map(|event| match event["const"].as_str() {
            Some(name) => BTreeSet::from([name.to_owned()]),
            None => texts(&event["enum"]),
        })
        .collect()
}

#[test]
fn every_event_is_in_the_schema_and_in_asyncapi() {
    let source = std::fs::read_to_string(root().join("src/router/events/event.rs")).unwrap();
    let named: BTreeSet<String> = source
        .split("#[serde(rename = \"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert_eq!(named.len(), 9);
    assert_eq!(events(&document("amqp/events.schema.json")), named);
    let asyncapi = document("amqp/asyncapi.yaml");
    assert_eq!(texts(&asyncapi["channels"]["events"]["parameters"]["event"]["enum"]), named);
}

#[test]
fn the_exchanges_and_queues_of_asyncapi_are_those_that_are_declared() {
    let asyncapi = document("amqp/asyncapi.yaml");
    let bindings =
        asyncapi["channels"].as_object().unwrap().values().map(|channel| &channel["bindings"]["amqp"]);
    let described: BTreeSet<String> = bindings
        .flat_map(|amqp| [&amqp["exchange"], &amqp["queue"]])
        .filter(|object| !object.is_null() && object["name"] != "")
        .map(|object| json!([object["name"], object["type"], object["durable"]]).to_string())
        .collect();
    let definitions = document("amqp/definitions.json");
    // Nodes alone speak over these, and backends take dead letters from the queue.
    let own = ["warren.direct", "warren.control", "warren.dead"];
    let exchanges = definitions["exchanges"].as_array().unwrap().iter();
    let mut declared: BTreeSet<String> = exchanges
        .filter(|exchange| !own.contains(&exchange["name"].as_str().unwrap()))
        .map(|exchange| json!([exchange["name"], exchange["type"], exchange["durable"]]).to_string())
        .collect();
    let queues = definitions["queues"].as_array().unwrap().iter();
    declared.extend(
        queues
            .filter(|queue| queue["name"] == "warren.dead")
            .map(|queue| json!([queue["name"], null, queue["durable"]]).to_string()),
    );
    assert_eq!(described, declared);
}
