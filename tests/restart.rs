//! Restarts: what the dead left behind is in nobody's way.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // fork, _exit, kill and waitpid

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::{Name, all_free};
use ipc_buffer::{Buffer, BufferOptions, ChannelOptions, OpenError};
use scenarios::{Child, Scenario, end, fork, hear, stay, tell};
use std::fs::File;
use std::io::{Read, pipe};
use std::mem::forget;
use std::os::unix::fs::FileExt;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("another_capacity", another_capacity),
    ("another_format", another_format),
    ("in_use_or_to_stay_it_is_kept", in_use_or_to_stay_it_is_kept),
    ("many_at_once_after_many_were_killed", many_at_once_after_many_were_killed),
    ("contexts_of_the_dead", contexts_of_the_dead),
];

fn main() {
    scenarios::main("restart", SCENARIOS)
}

/// A process that has the buffer open, with something in it.
fn runs(name: &Name, options: &BufferOptions) -> Child {
    let (mut up, mut ready) = pipe().unwrap();
    let Some(child) = fork() else {
        let buffer = options.open(name).unwrap();
        let ctx = buffer.context().unwrap();
        let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().persistent(true)).unwrap();
        tx.send(ctx.record(1).unwrap()).unwrap();
        forget((tx, ctx, buffer));
        tell(&mut ready);
        stay()
    };
    drop(ready);
    assert!(hear(&mut up));
    child
}

fn of(capacity: u64) -> BufferOptions {
    Buffer::options().capacity(capacity)
}

fn another_capacity(name: &Name) {
    runs(name, &of(4 << 20)).kill();
    // Without a wish it is taken as it is.
    let buffer = Buffer::options().must_exist(true).open(name).unwrap();
    assert_eq!(buffer.capacity(), 4 << 20);
    assert!(buffer.has_channel(1).unwrap());
    forget(buffer);
    // This process holds it now: a second one is refused.
    let Some(child) = fork() else {
        assert!(matches!(of(8 << 20).open(name), Err(OpenError::CapacityMismatch { .. })));
        end()
    };
    child.succeeds();
    Buffer::unlink(name).unwrap();

    runs(name, &of(4 << 20)).kill();
    assert!(matches!(of(8 << 20).must_exist(true).open(name), Err(OpenError::CapacityMismatch { .. })));
    assert!(matches!(of(8 << 20).create_new(true).open(name), Err(OpenError::AlreadyExists { .. })));
    let buffer = of(8 << 20).open(name).unwrap();
    assert_eq!(buffer.capacity(), 8 << 20);
    all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

/// Writes a format number of another release into the header.
fn of_another_release(name: &Name) {
    File::options().write(true).open(name.path()).unwrap().write_all_at(&99_u64.to_ne_bytes(), 8).unwrap();
}

fn another_format(name: &Name) {
    runs(name, &of(4 << 20)).kill();
    of_another_release(name);
    let buffer = of(4 << 20).open(name).unwrap();
    all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

fn in_use_or_to_stay_it_is_kept(name: &Name) {
    let says_unlink = |error: OpenError| assert!(error.to_string().contains("Buffer::unlink"), "{error}");
    let child = runs(name, &of(4 << 20));
    says_unlink(of(8 << 20).open(name).unwrap_err());
    of_another_release(name);
    says_unlink(Buffer::open(name).unwrap_err());
    child.kill();
    drop(Buffer::open(name).unwrap());

    runs(name, &of(4 << 20).persist(true)).kill();
    says_unlink(of(8 << 20).open(name).unwrap_err());
    of_another_release(name);
    says_unlink(Buffer::open(name).unwrap_err());
    Buffer::unlink(name).unwrap();
}

/// All that open at once get in, though the table is full of the dead.
fn many_at_once_after_many_were_killed(name: &Name) {
    const TABLE: usize = 512;
    const NEW: usize = 64;
    let survivor = of(8 << 20).open(name).unwrap();
    let old: Vec<Child> = (1..TABLE)
        .map(|_| {
            let (mut up, mut ready) = pipe().unwrap();
            let Some(child) = fork() else {
                let buffer = of(8 << 20).open(name).unwrap();
                let ctx = buffer.context().unwrap();
                forget((ctx.record(1_u64), ctx, buffer));
                tell(&mut ready);
                stay()
            };
            drop(ready);
            assert!(hear(&mut up));
            child
        })
        .collect();
    let (mut go, starter) = pipe().unwrap();
    let (mut answers, answer) = pipe().unwrap();
    let new: Vec<Child> = (0..NEW)
        .map(|_| {
            let starter = starter.try_clone().unwrap();
            let Some(child) = fork() else {
                drop(starter);
                let mut answer = answer.try_clone().unwrap();
                // Until every writer is gone.
                let _ = go.read(&mut [0]);
                let buffer = common::open_patiently(&of(8 << 20), name);
                tell(&mut answer);
                forget(buffer);
                stay()
            };
            child
        })
        .collect();
    drop(answer);
    old.into_iter().for_each(Child::kill);
    // The children have copies of the writing end that they were forked with; a byte each does as well.
    let mut starter = starter;
    (0..NEW).for_each(|_| tell(&mut starter));
    let mut got = vec![0; NEW];
    answers.read_exact(&mut got).unwrap();
    drop(new);
    survivor.reap().unwrap();
    all_free(&survivor);
}

fn contexts_of_the_dead(name: &Name) {
    const CONTEXTS: usize = 2048;
    let buffer = of(64 << 20).open(name).unwrap();
    let (mut up, mut ready) = pipe().unwrap();
    let Some(child) = fork() else {
        let buffer = of(64 << 20).open(name).unwrap();
        for _ in 0..CONTEXTS {
            let buffer = buffer.clone();
            std::thread::spawn(move || forget(buffer.context().unwrap())).join().unwrap();
        }
        forget(buffer);
        tell(&mut ready);
        stay()
    };
    drop(ready);
    assert!(hear(&mut up));
    assert!(buffer.context().is_err(), "the living have them all");
    child.kill();
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| drop(buffer.context().unwrap()))));
    });
    all_free(&buffer);
}
