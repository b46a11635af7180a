//! The folders of `src` are layers: each knows only what stands below it, and no file knows, through others, itself.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// From the top down. What stands on one line does not know each other.
const LAYERS: &[&[&str]] = &[
    &["buffer"],
    &["inspect", "channel"],
    &["record"],
    &["process"],
    &["recovery"],
    &["directory"],
    &["membership"],
    &["heap", "queue"],
    &["wait"],
    &["segment"],
    &["format"],
    &["error"],
    &["sys"],
    &["sync"],
];

/// Modules by their paths (`heap::cache`; a folder's `mod.rs` by the folder's), with their texts.
fn modules() -> BTreeMap<String, String> {
    fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { visit(&entry, found) } else { found.push(entry) }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    visit(&src, &mut files);
    let rust = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    let name = |file: &Path| {
        let parts: Vec<_> = file
            .strip_prefix(&src)
            .unwrap()
            .with_extension("")
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        parts.join("::").trim_end_matches("::mod").to_owned()
    };
    let own_tests = |text: &str| {
        text.find("#[cfg(test)]\nmod tests {")
            .or_else(|| text.find("#[cfg(test)]\n#[allow"))
            .or_else(|| text.find("#[cfg(test)]\npub(crate) mod tests {"))
    };
    rust.map(|file| {
        let text = std::fs::read_to_string(file).unwrap();
        let text = text[..own_tests(&text).unwrap_or(text.len())].to_owned();
        (name(file), text)
    })
    .collect()
}

/// The paths a text names that begin with `crate` or `super`, with the braces of `use` written out.
fn paths(text: &str) -> Vec<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
    let starts = ["crate::", "super::"].into_iter().flat_map(|root| code.match_indices(root)).map(|(at, _)| at);
    // `pub(crate)` has no colons; what stands before is no part of a longer name.
    let starts = starts.filter(|at| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
    starts.flat_map(|at| spell_out("", &code[at..])).collect()
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn spell_out(prefix: &str, text: &str) -> Vec<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    let Some(inside) = text[end..].strip_prefix('{').filter(|_| path.ends_with("::")) else {
        return vec![path.trim_end_matches("::self").to_owned()];
    };
    let (mut depth, mut all, mut from) = (0, Vec::new(), 0);
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                let item = inside[from..at].trim();
                all.extend((!item.is_empty()).then(|| spell_out(&path, item)).into_iter().flatten());
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    all
}

/// The module among `modules` that `path`, seen in `from`, lies in.
fn target(modules: &BTreeMap<String, String>, from: &str, path: &str) -> Option<String> {
    let mut base: Vec<&str> = from.split("::").collect();
    let mut parts: Vec<&str> = path.split("::").collect();
    if parts[0] == "crate" {
        base.clear();
        parts.remove(0);
    }
    while parts.first() == Some(&"super") {
        base.pop();
        parts.remove(0);
    }
    base.extend(parts);
    (1..=base.len()).rev().map(|len| base[..len].join("::")).find(|name| modules.contains_key(name))
}

#[test]
fn every_import_points_down() {
    let modules = modules();
    let layer = |module: &str| {
        let folder = module.split("::").next().unwrap();
        LAYERS.iter().position(|layer| layer.contains(&folder))
    };
    let mut knows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (module, text) in &modules {
        let Some(own) = layer(module) else { continue };
        // A module of tests is its parent's, and may look anywhere.
        if module.ends_with("tests") {
            continue;
        }
        for path in paths(text) {
            let Some(known) = target(&modules, module, &path).filter(|known| known != module) else { continue };
            let folder = |module: &str| module.split("::").next().unwrap().to_owned();
            let Some(below) = layer(&known) else { panic!("{module} knows {path}, which is in no layer") };
            assert!(
                own < below || folder(module) == folder(&known),
                "{module} knows {path}, which does not stand below it"
            );
            knows.entry(module).or_default().push(known);
        }
    }
    assert!(knows.len() > 30, "only {} modules were read", knows.len());
    for module in modules.keys() {
        assert!(!reaches(&knows, module, module, &mut Vec::new()), "{module} knows itself, through others");
    }
}

/// Whether `from` knows `to`, itself or through others.
fn reaches(knows: &BTreeMap<&str, Vec<String>>, from: &str, to: &str, seen: &mut Vec<String>) -> bool {
    knows.get(from).into_iter().flatten().any(|next| {
        if seen.contains(next) {
            return false;
        }
        seen.push(next.clone());
        next == to || reaches(knows, next, to, seen)
    })
}

#[test]
fn what_stands_in_braces_is_spelled_out() {
    let found =
        paths("use crate::a::{self, b::{c, D}, e};\n// crate::no\nlet x = super::f::g(1); pub(crate) fn h() {}");
    assert_eq!(found, ["crate::a", "crate::a::b::c", "crate::a::b::D", "crate::a::e", "super::f::g"]);
}
