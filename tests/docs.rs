//! The public docs: every item has an example that runs.
//!
//! A scan of the text, not of the language: it knows how this crate's public files are written, and fails if it finds less
//! than `lib.rs` exports.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files of one module that `lib.rs` names, with their texts: a file, or all of a folder.
fn files(module: &str) -> Vec<(String, String)> {
    let file = src().join(module).with_extension("rs");
    let files = match std::fs::read_dir(src().join(module)) {
        Ok(folder) => folder.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect(),
        Err(_) => vec![file],
    };
    let name = |path: &Path| path.strip_prefix(src()).unwrap().display().to_string();
    files.iter().map(|path| (format!("src/{}", name(path)), read(path))).collect()
}

/// What `lib.rs` exports, by module.
fn exports() -> BTreeMap<String, BTreeSet<String>> {
    let lib = read(&src().join("lib.rs"));
    let uses = lib.split("\npub use ").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
    let mut exports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for text in uses {
        let (module, names) = text.split_once("::").expect("a module and names");
        let names = names.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty());
        exports.entry(module.to_owned()).or_default().extend(names.map(str::to_owned));
    }
    exports
}

/// The name of the public item that `line` begins, if it begins one.
fn item(line: &str) -> Option<&str> {
    let mut words =
        line.trim_start().strip_prefix("pub ")?.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '$');
    match words.find(|word| ["fn", "struct", "enum", "trait", "union", "type", "use"].contains(word))? {
        "use" => words.rfind(|word| !word.is_empty()),
        _ => words.next(),
    }
}

/// Whether a doc comment has an example that runs, `doc` being its lines without the slashes.
fn has_example(doc: &[&str]) -> bool {
    let fences = doc.iter().map(|line| line.trim()).filter(|line| line.starts_with("```"));
    // Every second fence closes.
    fences.step_by(2).any(|fence| fence == "```")
}

#[test]
fn every_public_item_has_an_example() {
    let mut missing = Vec::new();
    for (module, names) in exports() {
        let mut found = BTreeSet::new();
        for (file, text) in files(&module) {
            let (mut doc, mut hidden, mut passed_in, mut in_call) = (Vec::new(), false, false, false);
            for (number, line) in (1..).zip(text.lines()) {
                let code = line.trim_start();
                if let Some(text) = code.strip_prefix("///") {
                    doc.push(text);
                    continue;
                } else if line.starts_with("pub use ") && doc.is_empty() {
                    // One file of the module names what is another's.
                    continue;
                } else if code.starts_with("#[") {
                    hidden |= code.contains("doc(hidden)");
                    continue;
                } else if code.starts_with("$(#[") && code.ends_with(")*") {
                    // A macro's item: its doc comes with the call.
                    passed_in = true;
                    continue;
                }
                // In a macro's call, what stands at the first level is an item.
                let called = (in_call && line.starts_with("    ") && code.len() + 4 == line.len())
                    .then(|| code.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
                if let Some(name) = called.filter(|name| !name.is_empty()).or_else(|| item(line)) {
                    let is_type = name.starts_with(char::is_uppercase);
                    if !hidden && !passed_in && (!is_type || names.contains(name)) {
                        found.insert(name.to_owned());
                        if !has_example(&doc) {
                            missing.push(format!("{file}:{number}: {name}"));
                        }
                    }
                }
                in_call = line.ends_with("! {") && !line.starts_with(' ') || in_call && line != "}";
                (doc, hidden, passed_in) = (Vec::new(), false, false);
            }
        }
        let unseen: Vec<_> = names.difference(&found).collect();
        assert!(unseen.is_empty(), "src/{module}: the scan does not see {unseen:?}");
    }
    assert!(missing.is_empty(), "no example that runs:\n{}", missing.join("\n"));
}

#[test]
fn every_example_has_a_buffer_of_its_own() {
    let mut seen = BTreeMap::new();
    for (file, text) in exports().into_keys().chain(["lib".to_owned()]).flat_map(|module| files(&module)) {
        for (number, line) in (1..).zip(text.lines()) {
            let Some((_, rest)) = line.split_once("format!(\"doc-") else { continue };
            let tag = rest.split("-{").next().unwrap_or_default().to_owned();
            let other = seen.insert(tag, format!("{file}:{number}"));
            assert!(other.is_none(), "{file}:{number} has the name of {other:?}");
        }
    }
    assert!(seen.len() > 100, "the scan sees {} examples", seen.len());
}
