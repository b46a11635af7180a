#!/bin/bash
# ipc-channel's try_recv_timeout with less than a millisecond does not wait at all, and cuts off what is over a whole one
#
# Versions   ipc-channel 0.23.1 (crate), Unix sockets, Linux 6.18.
# Behaviour  On an empty channel, try_recv_timeout of 900 us returns Empty at once, and of 1999 us within 1 to 2 ms: the duration is
#            made whole milliseconds for poll by cutting off.
# Guess      It waits at least the time given, as timeouts of the standard library's channels and of sleep do: the documentation says
#            that it blocks "for up to" the duration and "may block for longer", with a warning for more than 24 days, none for short.
# Matters    A receiver that polls at 2 kHz by way of its timeout becomes a busy loop that takes a core from the sender; code that
#            counts empty returns as elapsed time gives up a thousand times too soon. Round up, and don't take Empty for "time's up".
# Seen       900 us: returned early; 1999 us: returned early; 3 ms: waited
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'T'
[package]
name = "early"
version = "0.1.0"
edition = "2021"

[dependencies]
ipc-channel = "=0.23.1"

[workspace]
T
cat >"$dir/src/main.rs" <<'R'
use ipc_channel::{ipc, TryRecvError};
use std::time::{Duration, Instant};

fn main() {
    let (_sender, receiver) = ipc::channel::<u8>().unwrap();
    // Any early return proves the point; a busy machine can only make single ones late.
    let early = |timeout: Duration| {
        (0..200).any(|_| {
            let start = Instant::now();
            let empty = matches!(receiver.try_recv_timeout(timeout), Err(TryRecvError::Empty));
            assert!(empty);
            start.elapsed() < timeout
        })
    };
    let seen = [900, 1999, 3000].map(|us| early(Duration::from_micros(us)));
    let word = seen.map(|early| if early { "returned early" } else { "waited" });
    println!("900 us: {}; 1999 us: {}; 3 ms: {}", word[0], word[1], word[2]);
    if seen != [true, true, false] {
        eprintln!("changed");
        std::process::exit(1);
    }
}
R
CARGO_TARGET_DIR="$dir/target" cargo run -q --manifest-path "$dir/Cargo.toml"
