//! Takes values out of the environment one by one and collects every mistake on the way.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::keys::{nearest, Allowed, Key, KEYS, PREFIX};

/// Variables under the prefix that are not configuration: for the test suite.
const TEST_PREFIX: &str = "WARREN_TEST_";

pub(super) struct Reading {
    /// Lower-case names without the prefix, as envy gives them; nothing empty.
    given: BTreeMap<String, String>,
    pub(super) mistakes: Vec<String>,
}

impl Reading {
    pub(super) fn new(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut mistakes = Vec::new();
        let known = vars.into_iter().filter(|(name, value)| match name.strip_prefix(PREFIX) {
            None => false,
            Some(_) if name.starts_with(TEST_PREFIX) || is_service_link(name, value) => false,
            Some(rest) if KEYS.iter().any(|key| key.name == rest) => true,
            Some(rest) => {
                let hint = nearest(rest).map(|name| format!("; did you mean {PREFIX}{name}?"));
                mistakes.push(format!("{name} is not a setting{}", hint.unwrap_or_default()));
                false
            }
        });
        let known: Vec<_> = known.collect();
        let given = envy::prefixed(PREFIX).from_iter::<_, BTreeMap<String, String>>(known);
        let mut given = given.unwrap_or_else(|error| {
            mistakes.push(error.to_string());
            BTreeMap::new()
        });
        given.retain(|_, value| !value.trim().is_empty());
        Self { given, mistakes }
    }

    /// `value` is what was given; a secret must be left out by the caller.
    pub(super) fn mistake(&mut self, name: &str, value: Option<&str>, why: impl std::fmt::Display) {
        let value = value.map(|value| format!("={value:?}")).unwrap_or_default();
        self.mistakes.push(format!("{PREFIX}{name}{value}: {why}"));
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.given.contains_key(&name.to_ascii_lowercase())
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        debug_assert!(KEYS.iter().any(|key| key.name == name), "{name} is missing in the table");
        self.given.get(&name.to_ascii_lowercase()).map(|value| value.trim().to_string())
    }

    /// Takes the value through `parse`; `None` as well when that fails, with the key's form as the mistake.
    pub(super) fn parsed<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            let form = key(name).map(Key::range).unwrap_or_default();
            self.mistake(name, Some(&text), format!("must be {form}"));
        }
        value
    }

    pub(super) fn number(&mut self, name: &str) -> u64 {
        let Some(&Key { allowed: Allowed::Number { default, min, max }, unit, .. }) = key(name) else {
            self.mistake(name, None, "is not in the table of numbers");
            return 0;
        };
        let Some(text) = self.text(name) else { return default };
        match text.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => number,
            _ => {
                self.mistake(name, Some(&text), format!("must be a whole number, {min}..{max} ({unit})"));
                default
            }
        }
    }

    pub(super) fn count(&mut self, name: &str) -> usize {
        // Every maximum in the table is far below usize::MAX.
        usize::try_from(self.number(name)).unwrap_or(usize::MAX)
    }

    pub(super) fn millis(&mut self, name: &str) -> Duration {
        Duration::from_millis(self.number(name))
    }

    /// The given word if it is one of the table's.
    pub(super) fn word(&mut self, name: &str) -> Option<&'static str> {
        let Some(&Key { allowed: Allowed::Word { words, .. }, .. }) = key(name) else {
            self.mistake(name, None, "is not in the table of words");
            return None;
        };
        let text = self.text(name)?;
        let word = words.iter().find(|word| **word == text).copied();
        if word.is_none() {
            self.mistake(name, Some(&text), format!("must be one of: {}", words.join(", ")));
        }
        word
    }

    /// The value of `name`, or the content of the file that `<name>_FILE` names.
    pub(super) fn text_or_file(&mut self, name: &str) -> Option<String> {
        let file_name = format!("{name}_FILE");
        if !self.has(&file_name) {
            return self.text(name);
        }
        if self.has(name) {
            self.mistake(&file_name, None, format!("give either this or {PREFIX}{name}"));
        }
        self.file(&file_name)
    }

    /// The content of the file that `file_name` names.
    pub(super) fn file(&mut self, file_name: &str) -> Option<String> {
        let path = self.text(file_name)?;
        match std::fs::read_to_string(Path::new(&path)) {
            Ok(content) if content.trim().is_empty() => {
                self.mistake(file_name, Some(&path), "the file is empty");
                None
            }
            // Editors end a file with a line end, which is no part of a key.
            Ok(content) => Some(content.trim_end_matches(['\r', '\n']).to_string()),
            Err(error) => {
                self.mistake(file_name, Some(&path), format!("cannot read the file: {error}"));
                None
            }
        }
    }
}

fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Kubernetes gives every pod `<SERVICE>_SERVICE_HOST`, `<SERVICE>_PORT=tcp://…` and the like for each
/// service of its namespace: for one that is called `warren` these look like ours.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP"))
        || name.ends_with("_PORT") && value.contains("://")
}
