#!/bin/bash
# A Cap'n Proto message built in place in your own memory is zeros again as soon as the builder goes
#
# Versions   capnp 0.27.3 (crate); the same in 0.21.0.
# Behaviour  A message is built in a buffer of the caller's with ScratchSpaceHeapAllocator, or SingleSegmentAllocator. While the
#            builder lives, the buffer reads as the message. When it is dropped, every byte that was used is set to zero. As the
#            buffer is borrowed until then, a caller can't even look at its own buffer before it is wiped, short of forgetting the
#            builder (mem::forget), which leaves the message where it was built.
# Guess      The message stays: it is the caller's memory, and the reason to hand it in. The documentation of both allocators tells of
#            zeroing "the potentially used part upon deallocate_segment()", as a matter of reuse, and not that this is what drop does.
# Matters    Building in a shared-memory record and sending the record is what Cap'n Proto's in-place format is for; the receiver gets
#            a frame of zeros, which is a valid message: the default value, no error.
# Seen       scratch space: 0 bytes left of 24; single segment: 0 of 24, read as ""; forgotten builder: read as "in place"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'T'
[package]
name = "wipes"
version = "0.1.0"
edition = "2021"

[dependencies]
capnp = "=0.27.3"

[workspace]
T
cat >"$dir/src/main.rs" <<'R'
use capnp::message::{Builder, Reader, ReaderOptions, ScratchSpaceHeapAllocator, SegmentArray, SingleSegmentAllocator};
use capnp::text;

#[repr(align(8))]
struct Record([u8; 64]);

fn left(record: &Record) -> usize {
    record.0.iter().filter(|byte| **byte != 0).count()
}

fn received(record: &Record, used: usize) -> String {
    let segments = [&record.0[..used]];
    let reader = Reader::new(SegmentArray::new(&segments), ReaderOptions::new());
    reader.get_root::<text::Reader>().unwrap().to_string().unwrap()
}

fn main() {
    let mut record = Record([0; 64]);
    let mut message = Builder::new(ScratchSpaceHeapAllocator::new(&mut record.0));
    message.set_root::<text::Owned>("in place").unwrap();
    let used = message.get_segments_for_output()[0].len();
    assert!(message.get_segments_for_output()[0].iter().any(|byte| *byte != 0));
    drop(message);
    let scratch = left(&record);

    let mut message = Builder::new(SingleSegmentAllocator::new(&mut record.0));
    message.set_root::<text::Owned>("in place").unwrap();
    drop(message);
    let (single, wiped) = (left(&record), received(&record, used));

    let mut message = Builder::new(SingleSegmentAllocator::new(&mut record.0));
    message.set_root::<text::Owned>("in place").unwrap();
    std::mem::forget(message);
    let forgotten = received(&record, used);

    println!(
        "scratch space: {scratch} bytes left of {used}; single segment: {single} of {used}, read as {wiped:?}; \
         forgotten builder: read as {forgotten:?}"
    );
    if (scratch, single, &*wiped, &*forgotten) != (0, 0, "", "in place") {
        eprintln!("changed");
        std::process::exit(1);
    }
}
R
CARGO_TARGET_DIR="$dir/target" cargo run -q --manifest-path "$dir/Cargo.toml"
