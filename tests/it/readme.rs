//! What the README repeats from the code is what the code says.

use std::fs;

const BEGIN: &str = "<!-- configuration table: begin -->\n";
const END: &str = "<!-- configuration table: end -->";

#[test]
#[allow(clippy::disallowed_methods)] // UPDATE=1 rewrites the table instead of comparing it.
fn the_readme_has_the_configuration_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the mark where the table begins");
    let (table, after) = rest.split_once(END).expect("the mark where the table ends");
    let rendered = format!("{}\n", warren::config::markdown_table().trim());
    if std::env::var("UPDATE").is_ok() {
        fs::write(path, format!("{before}{BEGIN}{rendered}{END}{after}")).unwrap();
    } else {
        assert!(table == rendered, "run: UPDATE=1 ./test readme");
    }
}
