//! Reads the sources and holds them to the rules of the project: what may import what, how long things are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;

/// Modules in layers, the lowest first. A module imports from lower layers, and from its own only what is named
/// in [`SIDEWAYS`].
const LAYERS: &[&[&str]] = &[
    &[
        "auth",
        "budgets",
        "clock",
        "config",
        "error",
        "ids",
        "lifecycle",
        "metrics",
        "output",
        "protocol",
        "sabotage",
        "tls",
    ],
    &["bus"],
    &["hub", "directory", "delivery", "mail"],
    &["router"],
    &["session", "ingress", "http"],
    &["node", "cli", "migrate", "trace"],
    &["main"],
];
/// Words use each other freely, a door may lead to another.
const SIDEWAYS: &[(&str, &str)] = &[("http", "session")];
const WORDS: usize = 0;

struct Source {
    /// Below the root of the project.
    path: String,
    text: String,
}

impl Source {
    /// `src/bus/memory/mod.rs` belongs to `bus`, `src/node.rs` to `node`; `src/tests/` is what tests share.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/").filter(|inside| !inside.starts_with("tests/"))?;
        Some(inside.split('/').next().unwrap().trim_end_matches(".rs"))
    }

    fn is_test(&self) -> bool {
        !self.path.starts_with("src/") || self.path.contains("/tests")
    }

    /// Lines of the program, with their numbers: without tests, which come last in a file, and comments.
    fn program(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take_while(|line| *line != "#[cfg(test)]" || self.is_lib_like());
        let code = lines.enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        code.filter(|_| !self.is_test()).map(|(at, line)| (at + 1, line))
    }

    /// A file where `#[cfg(test)]` stands before `mod tests;`, so that code follows it.
    fn is_lib_like(&self) -> bool {
        self.text.contains("#[cfg(test)]\nmod tests;")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "tests", "benches", "examples"].iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 50, "the sources are where this test looks");
    found
}

/// All findings at once, so that they are mended in one go.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for_and_is_short() {
    let mut findings = Vec::new();
    for Source { path, text } in sources() {
        let lines = text.lines().count();
        if !text.starts_with("//! ") {
            findings.push(format!("{path}: the first line must be //!"));
        }
        if lines > FILE_LINES_MAX {
            findings.push(format!("{path}: {lines} lines"));
        }
    }
    none(findings);
}

#[test]
fn functions_are_short() {
    let mut findings = Vec::new();
    for Source { path, text } in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let head = code.split('(').next().unwrap_or_default();
            if code.starts_with("//") || !head.split(' ').any(|word| word == "fn") || !code.contains('(') {
                continue;
            }
            // The code is formatted: a function ends with a brace as deep as it begins. A trait's may have none.
            let opens = lines[start..].iter().find(|line| line.ends_with(['{', ';', '}']));
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let length = lines[start..].iter().position(|line| *line == end).unwrap_or(0) + 1;
            if opens.is_some_and(|line| line.ends_with('{')) && length > FUNCTION_LINES_MAX {
                findings.push(format!("{path}:{}: {length} lines", start + 1));
            }
        }
    }
    none(findings);
}

/// The modules of ours that a line of the program names. Only the program itself calls the library by its name.
fn imported(line: &str) -> BTreeSet<&str> {
    let line = line.split('"').next().unwrap();
    let after = |start: &'static str| line.match_indices(start).map(move |(at, _)| &line[at + start.len()..]);
    let named = after("crate::").chain(after("warren::"));
    named.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()).collect()
}

#[test]
fn imports_go_strictly_down() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut findings = Vec::new();
    for source in sources() {
        let Some(module) = source.module().filter(|module| *module != "lib") else { continue };
        let Some(own) = layer(module) else {
            findings.push(format!("{}: {module} has no place among the layers", source.path));
            continue;
        };
        for (at, line) in source.program() {
            for other in imported(line) {
                let allowed = other == module
                    || SIDEWAYS.contains(&(module, other))
                    || layer(other).is_some_and(|other| other < own || other == own && own == WORDS);
                if !allowed {
                    findings.push(format!("{}:{at}: {module} imports {other}", source.path));
                }
            }
        }
    }
    none(findings);
}

/// Whether the program says `word`, which is not part of a longer one.
fn says(line: &str, word: &str) -> bool {
    let line = line.split('"').next().unwrap();
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part)
            && !line[at + word.len()..].starts_with(|c| part(c) && word.ends_with(part))
    })
}

#[test]
fn vendors_have_one_home_each() {
    let homes = [
        ("lapin", "src/bus/"),
        ("deadpool_lapin", "src/bus/"),
        ("warp", "src/http/"),
        ("jsonwebtoken", "src/auth/"),
        ("rustls", "src/tls/"),
        ("flate2", "src/protocol/wire/"),
        ("miniz_oxide", "src/protocol/wire/"),
        ("std::env", "src/config/"),
        ("env::var", "src/config/"),
        ("env::set_var", "src/config/"),
        ("clap", "src/cli.rs"),
        ("prometheus_client", "src/metrics.rs"),
    ];
    let mut findings = Vec::new();
    for source in sources() {
        for (at, line) in source.program() {
            for (vendor, home) in homes {
                let elsewhere = !source.path.starts_with(home) && says(line, vendor);
                // The command line is parsed by the program, a public key where configuration is read; what a
                // build for the fault suite breaks is no configuration.
                let known = matches!(
                    (vendor, source.path.as_str()),
                    ("clap", "src/main.rs")
                        | ("jsonwebtoken", "src/config/values.rs" | "src/config/jwks.rs")
                        | ("std::env" | "env::var", "src/sabotage.rs")
                );
                if elsewhere && !known {
                    findings.push(format!("{}:{at}: {vendor} belongs to {home}", source.path));
                }
            }
        }
    }
    none(findings);
}

#[test]
fn nothing_is_left_over() {
    // Written in two parts, so that this file does not find itself.
    let everywhere = ["TO", "FIX", "XX"].map(|start| match start {
        "TO" => "TODO".to_owned(),
        "FIX" => format!("{start}ME"),
        _ => format!("{start}X"),
    });
    let ignore = format!("#[{}", "ignore");
    let program =
        [".unwrap()", ".expect(", "dbg!(", "todo!(", "unimplemented!(", "unbounded", "println!(", "panic!("];
    let mut findings = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            let found = everywhere.iter().any(|word| says(line, word)) && source.path != "tests/it/tidy.rs";
            if found || line.trim_start().starts_with(&ignore) {
                findings.push(format!("{}:{}: {line}", source.path, at + 1));
            }
        }
        for (at, line) in source.program() {
            let said = program.iter().find(|word| line.contains(**word));
            if let Some(word) = said {
                findings.push(format!("{}:{at}: {word}", source.path));
            }
        }
    }
    none(findings);
}

#[test]
fn tests_wait_for_conditions_and_not_for_times() {
    // Each of these sleeps is between two looks at something, or is what is tested.
    let allowed = ["tests/support/", "tests/it/drain.rs"];
    let sleep = format!("{}(", "sleep");
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("tests/it/")) {
        let known = allowed.iter().any(|start| source.path.starts_with(start));
        for (at, line) in source.text.lines().enumerate() {
            if line.contains(&sleep) && !known && source.path != "tests/it/tidy.rs" {
                findings.push(format!("{}:{}: {line}", source.path, at + 1));
            }
        }
    }
    none(findings);
}
