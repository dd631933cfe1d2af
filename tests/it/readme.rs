//! What the documents repeat from the code is what the code says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use reqwest::Method;
use serde_json::Value;
use warren::error::Code;
use warren::protocol::close::{CloseCode, Reconnect};
use warren::protocol::warren_v1;

use crate::support::nodes::Cluster;

/// A file of the project.
fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A document around what stands between the marks of that name.
fn split(document: &str, name: &str) -> (String, String, String) {
    let [begin, end] = ["begin", "end"].map(|what| format!("<!-- {name}: {what} -->\n"));
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (inside, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    (format!("{before}{begin}"), inside.to_owned(), format!("{end}{after}"))
}

/// The cells of the rows of a marked table, without its head.
fn rows(path: &str, name: &str) -> Vec<Vec<String>> {
    let (_, table, _) = split(&read(path), name);
    let cells =
        |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    table.lines().skip(2).map(cells).collect()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
#[allow(clippy::disallowed_methods)] // UPDATE=1 rewrites the table instead of comparing it.
fn the_configuration_table_is_that_of_the_code() {
    let path = "docs/configuration.md";
    let (before, table, after) = split(&read(path), "configuration table");
    // The code speaks of documents as they are seen from the root.
    let rendered = format!("{}\n", warren::config::markdown_table().trim()).replace("](docs/", "](");
    if std::env::var("UPDATE").is_ok() {
        fs::write(root(path), format!("{before}{rendered}{after}")).unwrap();
    } else {
        assert!(table == rendered, "run: UPDATE=1 ./test readme");
    }
}

#[test]
fn every_request_of_the_protocol_is_shown_as_the_codec_reads_it() {
    let mut shown = BTreeSet::new();
    for row in rows("docs/protocol.md", "requests") {
        for frame in quoted(&row[0]) {
            let frame = frame.replace(":…", ":null");
            let request = warren_v1::request::parse(&frame).unwrap_or_else(|bad| panic!("{frame}: {bad:?}"));
            assert!(format!("{:?}", request.body).len() > 3, "{frame}");
            let frame: Value = serde_json::from_str(&frame).unwrap();
            shown.insert(frame["type"].as_str().unwrap().to_owned());
        }
    }
    let codec = read("src/protocol/warren_v1/request.rs");
    let (_, arms) = codec.split_once("match &*kind {").unwrap();
    let (arms, _) = arms.split_once("_ => return").unwrap();
    let known: BTreeSet<String> = (arms.lines().filter(|line| line.contains("=>")))
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once('"'))
        .map(|(kind, _)| kind.to_owned())
        .collect();
    assert!(known.len() >= 8, "{known:?}");
    assert_eq!(shown, known);
}

#[test]
fn every_frame_to_clients_is_in_the_protocol() {
    let codec = read("src/protocol/warren_v1/reply.rs");
    let (codec, _) = codec.split_once("#[cfg(test)]").unwrap();
    let mut known = BTreeSet::new();
    for mark in [r#"{"type":""#, r#"kind: ""#] {
        let names = codec.split(mark).skip(1);
        known.extend(names.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
    }
    assert!(known.len() >= 7, "{known:?}");
    let table = rows("docs/protocol.md", "frames");
    let frames = table.iter().flat_map(|row| quoted(&row[0]));
    let shown: BTreeSet<String> = frames.map(|frame| frame.split('"').nth(3).unwrap().to_owned()).collect();
    assert_eq!(shown, known);
}

#[test]
fn every_error_is_in_the_protocol() {
    let source = read("src/error.rs");
    let names = source.split("Code::").filter_map(|rest| rest.split_once(" => \"")?.1.split_once('"'));
    let known: BTreeSet<&str> = names.map(|(name, _)| name).collect();
    assert!(known.len() >= 14, "{known:?}");
    let mut shown = BTreeMap::new();
    for row in rows("docs/protocol.md", "errors") {
        let name = row[0].trim_matches('`').to_owned();
        let code: Code = serde_json::from_value(Value::from(name.clone())).unwrap();
        let retry = if code.retry() { "yes" } else { "no" };
        assert_eq!(row[1..3], [code.http_status().to_string(), retry.into()], "{name}");
        shown.insert(name, ());
    }
    assert_eq!(shown.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn every_close_code_is_in_the_protocol() {
    let known = CloseCode::ALL.iter().map(|close| {
        let reconnect = match close.reconnect() {
            Reconnect::Never => "never",
            Reconnect::BackOff => "back off",
            Reconnect::Planned => "planned",
        };
        vec![close.code().to_string(), close.reason().to_owned(), reconnect.to_owned()]
    });
    assert_eq!(rows("docs/protocol.md", "close codes"), known.collect::<Vec<_>>());
}

/// The addresses of the document with the methods that they are said to take.
fn addresses() -> BTreeMap<String, BTreeSet<String>> {
    let mut addresses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows("docs/http.md", "addresses") {
        for text in quoted(&row[0]) {
            let (method, path) = text.split_once(' ').unwrap();
            let methods = addresses.entry(path.to_owned()).or_default();
            methods.insert(method.to_owned());
            if method == "GET" {
                methods.insert("HEAD".into());
            }
        }
    }
    addresses
}

#[tokio::test]
async fn every_address_takes_the_methods_that_are_documented() {
    let cluster = Cluster::start(1, &[]).await;
    for (path, mut documented) in addresses() {
        // What browsers ask before they ask.
        documented.insert("OPTIONS".into());
        let concrete: String = path.split(['{', '}']).enumerate().map(|(n, of)| [of, "x"][n % 2]).collect();
        let api = if path == "/metrics" { cluster.admin(0) } else { cluster.api(0) };
        let response = api.request(Method::PATCH, &concrete).send().await.unwrap();
        assert_eq!(response.status(), 405, "{path}");
        let allowed = response.headers()["allow"].to_str().unwrap().split(", ");
        let mut allowed: BTreeSet<String> = allowed.map(str::to_owned).collect();
        allowed.insert("OPTIONS".into());
        assert_eq!(allowed, documented, "{path}");
    }
}

#[test]
fn every_address_of_the_code_is_documented() {
    let documented: BTreeSet<String> = addresses().into_keys().collect();
    let mut found = 0;
    let files = fs::read_dir(root("src/http")).unwrap().map(|file| file.unwrap().path());
    for file in files.filter(|file| file.extension().is_some()) {
        let source = fs::read_to_string(file).unwrap();
        for rest in source.split("warp::path!(").skip(1) {
            let segments = rest.split_once(')').unwrap().0.split(" / ");
            let segments: Vec<_> =
                segments.map(|part| if part == "String" { "{}" } else { part.trim_matches('"') }).collect();
            let path = format!("/{}", segments.join("/"));
            let is_documented = documented.iter().any(|known| {
                let known: String =
                    known.split(['{', '}']).enumerate().map(|(n, of)| [of, "{}"][n % 2]).collect();
                known == path || known == format!("/v1{path}")
            });
            assert!(is_documented, "docs/http.md does not know {path}");
            found += 1;
        }
    }
    assert!(found >= 15, "{found}");
}

/// The documents of the project.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let folders = ["", "docs", "amqp", "benches", "examples/spring-chat", "sdk/js", "compose", "k8s"];
    for folder in folders {
        for entry in fs::read_dir(root(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(Path::new(folder).join(name).to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// Where the headings of a document can be linked to, as forges make the names.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter_map(|line| line.strip_prefix('#'));
    let name = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(name).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut links = 0;
    let mut broken = Vec::new();
    for document in documents() {
        let text = read(&document);
        let folder = Path::new(&document).parent().unwrap();
        for rest in text.split("](").skip(1) {
            let link = rest.split_once(')').unwrap().0;
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if path.is_empty() { document.clone().into() } else { folder.join(path) };
            let leads = root("").join(&file).exists()
                && (anchor.is_empty() || anchors(&read(file.to_str().unwrap())).contains(anchor));
            if !leads {
                broken.push(format!("{document}: {link}"));
            }
        }
    }
    assert!(links > 50, "{links}");
    assert!(broken.is_empty(), "{broken:#?}");
}
