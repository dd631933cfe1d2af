//! SECURITY.md names the tests that show what it says: each of them must be there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Every `lib::…`, `it::…`, `broker::…` and `floods::…` between backticks.
fn named(text: &str) -> BTreeSet<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let programs = ["lib::", "it::", "broker::", "floods::"];
    quoted.filter(|name| programs.iter().any(|of| name.starts_with(of)) && !name.ends_with('…')).collect()
}

/// Where a test with this module path may stand.
fn files(name: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut parts: Vec<&str> = name.split("::").collect();
    parts.pop();
    let program = parts.remove(0);
    let below = if program == "lib" { root.join("src") } else { root.join("tests").join(program) };
    let whole = below.join(parts.join("/")).with_extension("rs");
    parts.retain(|part| *part != "tests");
    let module = below.join(parts.join("/"));
    let beside = ["mod.rs", "tests.rs", "tests/mod.rs"].map(|file| module.join(file));
    let mut files = [&beside[..], &[module.with_extension("rs"), whole]].concat();
    if parts.is_empty() {
        files = vec![below.join("main.rs")];
    }
    files
}

fn is_there(name: &str) -> bool {
    let test = name.rsplit("::").next().unwrap_or_default();
    files(name).iter().filter_map(|file| read(file)).any(|text| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines.iter().position(|line| {
            line.starts_with(&format!("fn {test}(")) || line.starts_with(&format!("async fn {test}("))
        });
        // In `proptest!` and elsewhere other attributes may stand between.
        at.is_some_and(|at| {
            lines[at.saturating_sub(3)..at].iter().any(|line| line.starts_with("#[") && line.contains("test"))
        })
    })
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let text = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).unwrap();
    let named = named(&text);
    assert!(named.len() > 80, "{} tests are named", named.len());
    let missing: Vec<_> = named.into_iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "not there: {missing:#?}");
    assert!(!is_there("it::security::no_such_test") && !is_there("lib::ids::tests::no_such_test"));
    // Each line of a table has a test.
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what must hold")) {
        assert!(!self::named(line).is_empty(), "without a test: {line}");
    }
}
