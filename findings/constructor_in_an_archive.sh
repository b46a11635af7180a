#!/bin/bash
# A Rust library's constructor runs in programs and shared objects, though nothing else of its object file is used; a staticlib loses it
#
# Versions   rustc 1.95.0 with rust-lld and with GNU ld 2.40.
# Behaviour  A `#[used]` static in `.init_array` of an rlib, in an object file of which nothing is referred to, is linked into programs
#            and cdylibs: rustc refers to it from an object of its own. Nobody does so in a staticlib, which another linker gets: that takes
#            the object files that it needs, and leaves this one out, unless it is told to take the archive as a whole.
# Guess      Either that `#[used]` is kept wherever it is linked, or that it is lost with the object file, as it was before Rust 1.62.
# Matters    Whatever registers itself before `main` (crates inventory and ctor, and `#[derive(Layout)]` here) is missing in a C program that
#            links a Rust staticlib, without a word.
# Seen       program: registered; staticlib: not; staticlib with --whole-archive: registered
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat >kinds.rs <<'R'
use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

pub fn seen() -> &'static str {
    if SEEN.load(Ordering::Relaxed) { "registered" } else { "not" }
}

// An object file of its own, of which the users know a type alone.
pub mod sample {
    pub struct Sample(pub u64);

    #[used]
    #[unsafe(link_section = ".init_array")]
    static REGISTER: extern "C" fn() = register;

    extern "C" fn register() {
        super::SEEN.store(true, super::Ordering::Relaxed);
    }
}
R
cat >program.rs <<'R'
fn main() {
    assert_eq!(size_of::<kinds::sample::Sample>(), 8);
    println!("{}", kinds::seen());
}
R
cat >archive.rs <<'R'
#[unsafe(no_mangle)]
extern "C" fn show() {
    assert_eq!(size_of::<kinds::sample::Sample>(), 8);
    println!("{}", kinds::seen());
}
R
echo 'void show(void); int main(void) { show(); return 0; }' >main.c
rustc --edition 2024 -C codegen-units=16 --crate-type rlib kinds.rs
rustc --edition 2024 --extern kinds=libkinds.rlib program.rs
rustc --edition 2024 --crate-type staticlib --extern kinds=libkinds.rlib archive.rs
cc main.c libarchive.a -o parts
cc main.c -Wl,--whole-archive libarchive.a -Wl,--no-whole-archive -o whole
program=$(./program) parts=$(./parts) whole=$(./whole)
echo "program: $program; staticlib: $parts; staticlib with --whole-archive: $whole"
[ "$program $parts $whole" = "registered not registered" ] || { echo changed >&2; exit 1; }
