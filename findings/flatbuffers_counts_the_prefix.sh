#!/bin/bash
# A size-prefixed FlatBuffers message without its prefix is "unaligned" to the verifier, if it has a 64-bit field, wherever it lies
#
# Versions   flatbuffers 25.12.19 (crate).
# Behaviour  finish_size_prefixed aligns fields as counted from the 4 bytes of prefix. size_prefixed_root takes the message; root of the
#            bytes behind the prefix gives Err(Unaligned) for a u64 or double, at any address, and Ok if all fields have up to 4
#            bytes. A plain message behind a prefix of one's own fails in the same way. Addresses don't count: the good message
#            verifies at an odd one.
# Guess      root(&message[4..]) is the same message: the prefix is a length and then a plain buffer follows; and "unaligned" is about
#            addresses. The documentation of the crate says that size_prefixed_root gets the root of a size-prefixed buffer.
# Matters    Rings and files of frames read the length, then hand on the bytes behind it. That works with the first schema, and rejects
#            valid messages when somebody adds the first 64-bit field. Keep the prefix with the message, or finish without it and keep
#            the length elsewhere.
# Seen       u32: whole ok, stripped ok, own prefix ok, odd address ok; u64: whole ok, stripped Unaligned, own prefix Unaligned,
#            odd address ok
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'T'
[package]
name = "prefix"
version = "0.1.0"
edition = "2021"

[dependencies]
flatbuffers = "=25.12.19"

[workspace]
T
cat >"$dir/src/main.rs" <<'R'
use flatbuffers::{root, size_prefixed_root, FlatBufferBuilder, Follow, InvalidFlatbuffer, Push, Table, Verifiable, Verifier, WIPOffset};
use std::marker::PhantomData;

const SLOT: u16 = 4;

/// A table with one field, as the schema compiler would make it.
struct Message<V>(PhantomData<V>);

impl<V> Follow<'_> for Message<V> {
    type Inner = ();
    unsafe fn follow(_: &[u8], _: usize) {}
}

impl<V: Verifiable> Verifiable for Message<V> {
    fn run_verifier(verifier: &mut Verifier, at: usize) -> Result<(), InvalidFlatbuffer> {
        verifier.visit_table(at)?.visit_field::<V>("value", SLOT, true)?.finish();
        Ok(())
    }
}

fn made<V: Push>(value: V, prefixed: bool) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let start = builder.start_table();
    builder.push_slot_always(SLOT, value);
    let table: WIPOffset<Table> = WIPOffset::new(builder.end_table(start).value());
    if prefixed {
        builder.finish_size_prefixed(table, None);
    } else {
        builder.finish(table, None);
    }
    builder.finished_data().to_vec()
}

fn word(result: Result<(), InvalidFlatbuffer>) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(InvalidFlatbuffer::Unaligned { .. }) => "Unaligned",
        Err(_) => "another error",
    }
}

fn seen<V: Push + Verifiable + Copy>(value: V) -> String {
    let message = made(value, true);
    let plain = made(value, false);
    let own = [&(plain.len() as u32).to_le_bytes()[..], &plain].concat();
    // Allocated at an even address, as everything of this size is.
    let space = [&[0], &message[..]].concat();
    let moved = &space[1..];
    assert_eq!(moved.as_ptr() as usize % 2, 1);
    format!(
        "whole {}, stripped {}, own prefix {}, odd address {}",
        word(size_prefixed_root::<Message<V>>(&message)),
        word(root::<Message<V>>(&message[4..])),
        word(size_prefixed_root::<Message<V>>(&own)),
        word(size_prefixed_root::<Message<V>>(moved)),
    )
}

fn main() {
    let (narrow, wide) = (seen(7_u32), seen(7_u64));
    println!("u32: {narrow}; u64: {wide}");
    let all = "whole ok, stripped ok, own prefix ok, odd address ok";
    if narrow != all || wide != all.replacen("stripped ok, own prefix ok", "stripped Unaligned, own prefix Unaligned", 1) {
        eprintln!("changed");
        std::process::exit(1);
    }
}
R
CARGO_TARGET_DIR="$dir/target" cargo run -q --manifest-path "$dir/Cargo.toml"
