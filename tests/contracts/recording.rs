//! What was seen, until it is held against the documents.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::{json, Value};

use crate::tools::script;

/// Clones write the same one.
#[derive(Clone, Default)]
pub struct Recording(Arc<Mutex<Vec<Value>>>);

impl Recording {
    fn note(&self, line: Value) {
        self.0.lock().unwrap().push(line);
    }

    /// `schema`: the name of a file in `schemas/` and that of a definition in it.
    pub fn saw(&self, (file, definition): (&str, &str), value: Value) {
        self.note(
            json!({"schema": format!("schemas/{file}.schema.json#/$defs/{definition}"), "value": value}),
        );
    }

    pub fn saw_event(&self, value: Value) {
        self.note(json!({"schema": "amqp/events.schema.json#", "value": value}));
    }

    /// A value that the gateway refuses.
    pub fn refused(&self, (file, definition): (&str, &str), value: Value) {
        let schema = format!("schemas/{file}.schema.json#/$defs/{definition}");
        self.note(json!({"schema": schema, "value": value, "bad": true}));
    }

    /// `operation`: the method and the path as `openapi.yaml` has it. Headers have names in lower case.
    pub fn answered(&self, operation: &str, status: u16, headers: Value, body: &str) {
        self.note(json!({"operation": operation, "status": status, "headers": headers, "body": body}));
    }

    /// Every kind of value that a definition is a choice of must have been seen.
    pub fn wants_all_of(&self, (file, definition): (&str, &str)) {
        self.note(json!({"all_of": format!("schemas/{file}.schema.json#/$defs/{definition}")}));
    }

    pub fn lines(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    /// Fails unless everything is as the documents say.
    pub fn check(&self) {
        let lines: String = self.lines().iter().map(|line| format!("{line}\n")).collect();
        let mut command = script("check.py");
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = process.stdin.take().unwrap();
        // Read and written at once, or a long list of findings would block both.
        let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
        let done = process.wait_with_output().unwrap();
        let _ = writing.join();
        let printed = [&done.stdout[..], &done.stderr].concat();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&printed));
    }
}
