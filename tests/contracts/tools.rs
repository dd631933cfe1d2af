//! The tools that read such documents: each takes ours, and would not take a broken one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MISSING: &str = "the tools are missing: run ./test contracts";

#[allow(clippy::disallowed_methods)] // The tests have no configuration file; ./test speaks through these.
fn environment(name: &str) -> String {
    std::env::var(name).expect(MISSING)
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with the packages that `./test` installs.
pub fn python() -> PathBuf {
    environment("WARREN_TEST_PYTHON").into()
}

/// Runs one of the scripts beside this file.
pub fn script(name: &str) -> Command {
    let path = root().join("tests/contracts").join(name);
    let mut command = Command::new("timeout");
    command
        .arg("300")
        .arg(if name.ends_with(".py") { python() } else { "node".into() })
        .arg(path)
        .current_dir(root());
    command
}

fn printed(done: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
}

/// Runs it; it has to succeed.
pub async fn succeed(mut command: Command) -> String {
    let done = tokio::task::spawn_blocking(move || command.output().expect(MISSING)).await.unwrap();
    assert!(done.status.success(), "{}", printed(&done));
    printed(&done)
}

async fn fail(mut command: Command) -> String {
    let done = tokio::task::spawn_blocking(move || command.output().expect(MISSING)).await.unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", printed(&done));
    printed(&done)
}

/// The document with one text in place of another, in its own folder, until this is dropped.
struct Broken(PathBuf);

impl Broken {
    fn new(document: &str, from: &str, to: &str) -> Self {
        let path = root().join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{document}: {from}");
        let broken = path.with_file_name(format!(
            ".broken-{}-{}",
            std::process::id(),
            path.file_name().unwrap().display()
        ));
        std::fs::write(&broken, text.replacen(from, to, 1)).unwrap();
        Self(broken)
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn openapi_spec_validator(document: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.arg("120").arg(python()).args(["-m", "openapi_spec_validator"]).arg(document);
    command
}

#[tokio::test]
async fn openapi_spec_validator_takes_openapi_yaml() {
    succeed(openapi_spec_validator(&root().join("openapi.yaml"))).await;
    let broken = Broken::new("openapi.yaml", "operationId: publish\n", "operationId: [publish]\n");
    assert!(fail(openapi_spec_validator(&broken.0)).await.contains("operationId"));
}

fn asyncapi_parser(document: &Path) -> Command {
    let mut command = script("asyncapi.mjs");
    command.arg(document);
    command
}

#[tokio::test]
async fn the_parser_of_asyncapi_takes_asyncapi_yaml() {
    let document = "amqp/asyncapi.yaml";
    succeed(asyncapi_parser(&root().join(document))).await;
    let broken = Broken::new(document, "action: send", "action: shout");
    assert!(fail(asyncapi_parser(&broken.0)).await.contains("action"));
    let broken = Broken::new(
        document,
        "../schemas/frames.schema.json#/$defs/welcome",
        "../schemas/frames.schema.json#/$defs/hello",
    );
    assert!(fail(asyncapi_parser(&broken.0)).await.contains("hello"));
}
