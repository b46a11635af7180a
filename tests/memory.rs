//! Waiting for memory, between processes. In the parts that must be woken, a tick is hours: a lost wake-up is a hang.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(unreachable_pub)]
#[path = "common/peer.rs"]
mod peer;
#[path = "common/stuck.rs"]
mod stuck;

use common::Name;
use ipc_buffer::{AllocError, Buffer, Record, ThreadContext};
use peer::{Peer, listen, tell};
use std::time::{Duration, Instant};

const CAPACITY: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);
/// Takes more than half of the buffer.
const MOST: usize = 600 << 10;
const PIECE: usize = 8 << 10;

fn open(name: &str) -> Buffer {
    Buffer::options().capacity(CAPACITY).open(name).unwrap()
}

fn hoard(ctx: &ThreadContext) -> Vec<Record<[u8]>> {
    std::iter::from_fn(|| Some(ctx.slice_uninit::<u8>(PIECE).ok()?.assume_init())).collect()
}

/// The part this process was started for, if it was: from now on it never looks around by itself.
fn role() -> Option<String> {
    let (_, buffer) = common::role()?;
    // SAFETY: this process runs one test, and nothing else in it reads or writes the environment now.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var("IPC_BUFFER_TICK_MS", "86400000");
    };
    Some(buffer)
}

/// Lives by commands: hoards pieces, frees some, allocates, goes to sleep.
fn serve(buffer: &Buffer) {
    let ctx = buffer.context().unwrap();
    let mut held = Vec::new();
    while let Some(line) = listen() {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("hoard", _) => held = hoard(&ctx),
            ("one", _) => held.push(ctx.slice_uninit::<u8>(MOST).unwrap().assume_init()),
            ("free", count) => {
                let count: usize = count.parse().unwrap();
                held.drain(..count.min(held.len())).for_each(drop);
            }
            ("wait", bytes) => {
                let record = ctx.within(LONG).slice_uninit::<u8>(bytes.parse().unwrap());
                held.push(record.unwrap().assume_init());
            }
            _ => panic!("{line}"),
        }
        tell("ok");
    }
}

fn start(test: &str, name: &Name) -> Peer {
    Peer::start(test, "serve", name)
}

fn is_asleep(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// Until the peer has been asleep for a while: it has done all it does before it sleeps.
fn until_asleep(peer: &Peer) {
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(100) {
        std::thread::sleep(Duration::from_millis(2));
        if !is_asleep(peer.process.pid()) {
            since = Instant::now();
        }
    }
}

/// One large record, whose units go straight back.
#[test]
fn woken_by_a_large_record() {
    if let Some(buffer) = role() {
        return serve(&open(&buffer));
    }
    let _dog = common::watchdog();
    let name = Name::new("memory-large");
    let buffer = open(&name);
    let (mut has, mut wants) = (start("woken_by_a_large_record", &name), start("woken_by_a_large_record", &name));
    for _ in 0..20 {
        has.does("one");
        wants.say(&format!("wait {MOST}"));
        until_asleep(&wants);
        has.does("free 1");
        assert_eq!(wants.hear().as_deref(), Some("ok"));
        wants.does("free 1");
    }
    has.ends();
    wants.ends();
    common::all_free(&buffer);
}

/// Small records, which go into the cache of who frees them: it is asked for them.
#[test]
fn woken_by_small_records() {
    if let Some(buffer) = role() {
        return serve(&open(&buffer));
    }
    let _dog = common::watchdog();
    let name = Name::new("memory-small");
    let buffer = open(&name);
    let (mut has, mut wants) = (start("woken_by_small_records", &name), start("woken_by_small_records", &name));
    for round in 0..20 {
        has.does("hoard");
        wants.say(&format!("wait {}", if round % 2 == 0 { PIECE } else { 3 * PIECE }));
        until_asleep(&wants);
        // A piece is a whole magazine's worth here or less: asked for at the first free, told at the next.
        has.does("free 2");
        if round % 2 != 0 {
            // Only whole units make a larger record.
            has.does("free 1000");
        }
        assert_eq!(wants.hear().as_deref(), Some("ok"));
        wants.does("free 1");
        has.does("free 1000");
    }
    has.ends();
    wants.ends();
    common::all_free(&buffer);
}

#[test]
fn woken_by_a_death() {
    if let Some(buffer) = role() {
        return serve(&open(&buffer));
    }
    let _dog = common::watchdog();
    let name = Name::new("memory-death");
    let buffer = open(&name);
    let ctx = buffer.context().unwrap();
    let mut has = start("woken_by_a_death", &name);
    has.does("hoard");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        has.process.kill();
    });
    let record = ctx.within(LONG).slice_zeroed::<u8>(MOST).unwrap();
    killer.join().unwrap();
    drop(record);
    drop(ctx);
    common::all_free(&buffer);
}

#[test]
fn time_runs_out() {
    let _dog = common::watchdog();
    let name = Name::new("memory-time");
    let buffer = open(&name);
    let ctx = buffer.context().unwrap();
    let held = hoard(&ctx);
    let start = Instant::now();
    let error = ctx.within(Duration::from_millis(30)).slice_uninit::<u8>(PIECE).unwrap_err();
    assert!(matches!(error, AllocError::OutOfMemory { .. }), "{error}");
    assert!(start.elapsed() >= Duration::from_millis(30));
    // What no buffer of this size ever holds is not waited for; nor is what is wrong in itself.
    let error = ctx.within(LONG).slice_uninit::<u8>(2 << 20).unwrap_err();
    assert!(matches!(error, AllocError::OutOfMemory { .. }), "{error}");
    let error = ctx.within(LONG).slice_uninit::<u64>(usize::MAX).unwrap_err();
    assert!(matches!(error, AllocError::LengthOverflow { .. }), "{error}");
    drop(held);
    assert_eq!(*ctx.within(Duration::MAX).record(5_u64).unwrap(), 5);
    drop(ctx);
    common::all_free(&buffer);
}

/// Memory that could be had with the control lock, which somebody sits on, is not waited for beyond the time: without one, for 5 seconds.
#[test]
fn a_stuck_lock_prolongs_no_wait() {
    let _dog = common::watchdog();
    let name = Name::new("memory-stuck");
    let buffer = open(&name);
    let ctx = buffer.context().unwrap();
    drop(hoard(&ctx));
    let holder = stuck::Holder::new(&name);
    let start = Instant::now();
    let error = ctx.within(Duration::from_millis(30)).slice_uninit::<u8>(MOST).unwrap_err();
    let waited = start.elapsed();
    assert!(matches!(error, AllocError::OutOfMemory { .. }), "{error}");
    assert!((Duration::from_millis(30)..Duration::from_millis(2500)).contains(&waited), "{waited:?}");
    drop(holder);
    drop(ctx.within(LONG).slice_uninit::<u8>(MOST).unwrap());
    drop(ctx);
    common::all_free(&buffer);
}

/// Three processes in a buffer too small for them, each of which never looks around by itself.
#[test]
fn nobody_starves() {
    if let Some(buffer) = role() {
        let buffer = open(&buffer);
        let ctx = buffer.context().unwrap();
        for i in 0..2000_usize {
            let bytes = if i % 5 == 0 { MOST } else { 1 + i * 37 % 60_000 };
            let mut record = ctx.within(LONG).slice_uninit::<u8>(bytes).unwrap().assume_init();
            record[bytes - 1] = 1;
        }
        drop(ctx);
        return;
    }
    let _dog = common::watchdog();
    let name = Name::new("memory-starve");
    let buffer = open(&name);
    let workers: Vec<_> = (0..3).map(|_| start("nobody_starves", &name)).collect();
    workers.into_iter().for_each(Peer::ends);
    common::all_free(&buffer);
}
