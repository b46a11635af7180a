//! The tag of a type, by which a channel is told from one of another type.

use crate::directory::{self, Form, Kind};

/// What a channel of `T`s in this form says it carries.
pub(crate) fn kind<T>(tag: Option<&str>, form: Form) -> Kind {
    let tag = tag.map_or_else(|| short_name(std::any::type_name::<T>()), str::to_owned);
    let align = u32::try_from(align_of::<T>()).unwrap_or(u32::MAX);
    Kind { size: size_of::<T>() as u64, align, form, tag: shorten(tag, directory::TAG_BYTES) }
}

/// At most `limit` bytes that stand for `tag`: a longer one keeps its beginning, and a hash stands for all of it.
fn shorten(tag: String, limit: usize) -> String {
    if tag.len() <= limit {
        return tag;
    }
    let hash = format!("#{:016x}", fnv(tag.as_bytes()));
    let mut short = tag;
    while short.len() + hash.len() > limit {
        short.pop();
    }
    short + &hash
}

/// FNV-1a: fixed for ever, unlike the standard library's hashers.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A type's name without the paths: `my_crate::geo::Grid<other::Cell>` is `Grid<Cell>`. A path may lead through functions
/// (`main::{{closure}}::Sample`), methods (`<Worker as Job>::run::Sample`) and generic types (`Gen<_>::new::Sample`).
fn short_name(full: &str) -> String {
    let mut short = String::new();
    // Where the path at hand starts, and those around it.
    let (mut start, mut around) = (0, Vec::new());
    let mut before = ' ';
    for c in full.chars() {
        short.push(c);
        match c {
            ':' => short.truncate(start),
            '<' | '(' | '[' => {
                around.push(start);
                start = short.len();
            }
            '>' if before == '-' => {}
            '>' | ')' | ']' => start = around.pop().unwrap_or(0),
            ' ' | ',' | ';' | '&' | '*' | '\'' => start = short.len(),
            _ => {}
        }
        before = c;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::{short_name, shorten};

    #[test]
    fn long_tags_stay_apart() {
        assert_eq!(shorten("a".repeat(128), 128), "a".repeat(128));
        let (one, two) = (shorten("a".repeat(129), 128), shorten("a".repeat(130), 128));
        assert!(one.len() == 128 && two.len() == 128 && one != two && one.starts_with("aaa"));
    }

    #[test]
    fn names_lose_their_paths() {
        assert_eq!(short_name("f64"), "f64");
        assert_eq!(short_name("a::b::Sample"), "Sample");
        assert_eq!(short_name("a::Grid<b::c::Cell, [d::E; 4]>"), "Grid<Cell, [E; 4]>");
        assert_eq!(short_name("(a::B, &'static c::D)"), "(B, &'static D)");
        assert_eq!(short_name("fn(a::B, [c::D; 2]) -> e::F<g::H>"), "fn(B, [D; 2]) -> F<H>");
        assert_eq!(short_name("*const a::B"), "*const B");
    }

    #[test]
    fn types_inside_functions_are_named_alike() {
        for path in [
            "a::main::{{closure}}::",
            "a::f::{{closure}}::{{closure}}::",
            "<a::Worker as a::Job>::run::",
            "<a::Gen<_> as a::Job<b::C>>::run::",
            "a::Gen<_>::inherent::",
            "a::r#match::",
            "<impl a::Job for [b::C; 3]>::run::",
        ] {
            assert_eq!(short_name(&format!("{path}Sample")), "Sample", "{path}");
            assert_eq!(short_name(&format!("b::Grid<{path}Sample, u8>")), "Grid<Sample, u8>", "{path}");
        }
    }
}
