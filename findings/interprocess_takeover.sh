#!/bin/bash
# interprocess: a listener that took over a socket's name loses it when the one before is dropped
#
# Versions   interprocess 2.4.7 (crate), local sockets on Linux.
# Behaviour  A new listener opens with try_overwrite(true) while the old one runs, which puts it in place of the old one; clients reach
#            it. Then the old one is dropped, and takes the name out of the file system: not its own any more, but the new one's.
#            The new listener runs on and no client can connect (NotFound). Name reclamation has no look at whose file it is.
# Guess      Clients go on reaching the new listener: try_overwrite is described as displacing a listener that is "even still running
#            and accepting connections" so that the new one can take its place; that it goes in the end is what one is waiting for.
# Matters    This is the hand-over of a service's control socket (the one that sends memfds and eventfds) to its next version without
#            a gap; the gap comes when the old version has finished its last client. The old one must call
#            do_not_reclaim_name_on_drop, before it knows whether it will be followed.
# Seen       after take-over: connected; after the old listener's drop: NotFound; without reclamation: connected
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'T'
[package]
name = "takeover"
version = "0.1.0"
edition = "2021"

[dependencies]
interprocess = "=2.4.7"

[workspace]
T
cat >"$dir/src/main.rs" <<'R'
use interprocess::local_socket::{prelude::*, GenericFilePath, Listener, ListenerOptions, Name, Stream};

fn name() -> Name<'static> {
    std::env::args().nth(1).unwrap().to_fs_name::<GenericFilePath>().unwrap()
}

fn listen() -> Listener {
    ListenerOptions::new().name(name()).try_overwrite(true).create_sync().unwrap()
}

fn connect() -> String {
    Stream::connect(name()).map_or_else(|error| format!("{:?}", error.kind()), |_| "connected".into())
}

fn main() {
    let old = listen();
    let new = listen();
    let taken_over = connect();
    drop(old);
    let old_gone = connect();
    drop(new);

    let mut old = listen();
    let _new = listen();
    old.do_not_reclaim_name_on_drop();
    drop(old);
    let kept = connect();
    println!("after take-over: {taken_over}; after the old listener's drop: {old_gone}; without reclamation: {kept}");
    if (&*taken_over, &*old_gone, &*kept) != ("connected", "NotFound", "connected") {
        eprintln!("changed");
        std::process::exit(1);
    }
}
R
CARGO_TARGET_DIR="$dir/target" cargo run -q --manifest-path "$dir/Cargo.toml" -- "$dir/socket"
