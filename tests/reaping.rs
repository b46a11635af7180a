//! Reaping as others see it: who does it, how soon the bereaved hear of it, and that nobody waits for a reaper who is slow, or
//! stopped.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // byte locks, a shared mapping

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;
#[path = "common/work.rs"]
mod work;

use common::{Name, all_free, sound};
use ipc_buffer::{
    AllocError, Buffer, BufferError, ChannelOptions, RecvError, Select, SendError, ThreadContext, TrySendError,
};
use scenarios::{Child, Scenario, end, fork, hear, stay, tell};
use std::fs::File;
use std::io::pipe;
use std::mem::forget;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("blocked_peers_hear_of_a_death_within_250_ms", blocked_peers_hear_of_a_death_within_250_ms),
    ("so_they_do_while_a_reaper_is_stopped", so_they_do_while_a_reaper_is_stopped),
    ("so_they_do_while_the_control_lock_is_stuck", so_they_do_while_the_control_lock_is_stuck),
    ("so_they_do_however_much_there_is_to_reap", so_they_do_however_much_there_is_to_reap),
    ("waiting_gives_back_what_the_dead_had", waiting_gives_back_what_the_dead_had),
    (
        "roles_are_taken_from_the_dead_while_a_reaper_is_stopped",
        roles_are_taken_from_the_dead_while_a_reaper_is_stopped,
    ),
    ("others_open_and_work_while_a_reaper_is_stopped", others_open_and_work_while_a_reaper_is_stopped),
    ("reap_says_that_another_one_does_not_finish", reap_says_that_another_one_does_not_finish),
    ("a_reaper_stopped_anywhere_then_killed", a_reaper_stopped_anywhere_then_killed),
    ("the_control_lock_is_let_go_meanwhile", the_control_lock_is_let_go_meanwhile),
    ("other_threads_go_on_meanwhile", other_threads_go_on_meanwhile),
    ("running_short_of_memory_reaps_as_much_as_is_needed", running_short_of_memory_reaps_as_much_as_is_needed),
    ("reap_says_what_it_gave_back", reap_says_what_it_gave_back),
    ("everybody_dies_at_once", everybody_dies_at_once),
];

fn main() {
    scenarios::main("reaping", SCENARIOS)
}

// ------------------------------------------------------------------------------------------------------------- helpers

/// A child that does its part, and stays with all it has.
fn child(part: impl FnOnce()) -> Child {
    let (mut up, mut ready) = pipe().unwrap();
    let Some(child) = fork() else {
        part();
        tell(&mut ready);
        stay()
    };
    drop(ready);
    assert!(hear(&mut up));
    child
}

/// Holds `count` small records, or as many as there are; never gives them back.
fn hoard(ctx: &ThreadContext, count: usize) -> u64 {
    (0..count).map_while(|i| ctx.record(i).ok().map(forget)).count() as u64
}

const CONTROL: i64 = 0;
const REAP: i64 = 1;

fn lock(file: &File, command: i32, kind: i32, byte: i64) -> Option<i32> {
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_start, lock.l_len) = (kind.try_into().unwrap(), byte, 1);
    (unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == 0).then_some(lock.l_type.into())
}

fn file(name: &Name) -> File {
    File::options().read(true).write(true).open(name.path()).unwrap()
}

/// Whether anybody has that byte.
fn is_held(file: &File, byte: i64) -> bool {
    lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte).unwrap() != libc::F_UNLCK
}

/// A stopped process that has these bytes of the file, as one that was stopped while it had these locks.
fn stopped_with(name: &Name, bytes: &[i64]) -> Child {
    let file = file(name);
    let child = child(|| {
        // An open file of its own.
        let file = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        bytes.iter().for_each(|byte| _ = lock(&file, libc::F_OFD_SETLK, libc::F_WRLCK, *byte).expect("nobody has it"));
        forget(file);
    });
    stop(&child);
    assert!(bytes.iter().all(|byte| is_held(&file, *byte)));
    child
}

fn stop(child: &Child) {
    child.signal(libc::SIGSTOP);
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.0)).unwrap();
    while !state().rsplit_once(") ").unwrap().1.starts_with('T') {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Numbers that parent and children see.
fn shared() -> &'static [AtomicU64; 8] {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    unsafe { &*at.cast() }
}

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

// --------------------------------------------------------------------------------------------------------- the bereaved

/// The time from a kill until one who waits for the victim, in `how`, hears of it.
fn time_to_hear(buffer: &Buffer, name: &Name, how: &str, hoards: usize) -> Duration {
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut tx = ctx.producer_with::<u64>(2, &slots(2)).unwrap();
    let victim = child(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        forget((ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(2).unwrap()));
        hoard(&ctx, hoards);
        forget(ctx);
    });
    (0..2).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
    let killed = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            let now = Instant::now();
            killed.store(true, SeqCst);
            victim.kill();
            now
        });
        match how {
            "recv" => assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected),
            "send" => assert!(matches!(tx.send(ctx.record(3).unwrap()), Err(SendError::Disconnected(_)))),
            _ => {
                let mut select = Select::new();
                let end = select.recv(&rx);
                assert_eq!(select.ready(), Some(end));
                assert_eq!(rx.try_recv().unwrap_err(), RecvError::Disconnected.into());
            }
        }
        let heard = Instant::now();
        assert!(killed.load(SeqCst), "{how}: not before");
        heard - killer.join().unwrap()
    })
}

/// The machine may be busy with others, so the best of some counts: later than promised every time is no accident.
fn all_hear_in_time(name: &Name, hows: &[&str], capacity: u64, hoards: usize, meanwhile: impl Fn() -> Option<Child>) {
    for how in hows {
        let best = (0..20).find_map(|_| {
            let buffer = Buffer::options().capacity(capacity).open(name).unwrap();
            let guard = meanwhile();
            let time = time_to_hear(&buffer, name, how, hoards);
            drop(guard);
            while buffer.reap().unwrap().processes > 0 {}
            all_free(&buffer);
            (time <= Duration::from_millis(250)).then_some(time)
        });
        assert!(best.is_some(), "{how}");
    }
}

fn blocked_peers_hear_of_a_death_within_250_ms(name: &Name) {
    all_hear_in_time(name, &["recv", "send", "select"], 4 << 20, 1000, || None);
}

fn so_they_do_while_a_reaper_is_stopped(name: &Name) {
    all_hear_in_time(name, &["recv", "send", "select"], 4 << 20, 1000, || Some(stopped_with(name, &[REAP])));
}

fn so_they_do_while_the_control_lock_is_stuck(name: &Name) {
    let buffer = Buffer::options().capacity(4 << 20).open(name).unwrap();
    // Attached before, since attaching needs the lock.
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let victim = child(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        let mut tx = ctx.producer::<u64>(1).unwrap();
        tx.send(ctx.record(7).unwrap()).unwrap();
        forget((tx, ctx));
    });
    let guard = stopped_with(name, &[CONTROL]);
    victim.kill();
    thread::scope(|scope| {
        // Another thread of ours is at it, and can't go on.
        let reaper = scope.spawn(|| buffer.reap());
        let locks = file(name);
        while !is_held(&locks, REAP) {
            thread::yield_now();
        }
        assert_eq!(*rx.recv().unwrap(), 7);
        assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
        assert!(!reaper.is_finished(), "nobody waited for it");
        // Nor does who has memory, and there is an end to waiting for who has none.
        drop(ctx.record(1_u64).unwrap());
        assert!(matches!(ctx.slice_zeroed::<u8>(5 << 20), Err(AllocError::OutOfMemory { .. })));
        assert!(matches!(reaper.join().unwrap(), Err(BufferError::Busy { .. })));
    });
    drop(guard);
    drop((rx, ctx));
    while buffer.reap().unwrap().processes > 0 {}
    all_free(&buffer);
}

fn so_they_do_however_much_there_is_to_reap(name: &Name) {
    // Far more than one who waits may spend on it.
    all_hear_in_time(name, &["recv"], 128 << 20, 1_000_000, || None);
}

/// Nobody opens, asks for memory, or calls `reap`: who waits, or polls, gives back what the dead one had, if that is soon done.
fn waiting_gives_back_what_the_dead_had(name: &Name) {
    for polls in [false, true] {
        let done = (0..20).any(|_| {
            let buffer = Buffer::options().capacity(4 << 20).open(name).unwrap();
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer::<u64>(1).unwrap();
            let victim = child(|| {
                let ctx = Buffer::open(name).unwrap().context().unwrap();
                let alone = ctx.producer::<u64>(2).unwrap();
                forget((ctx.producer::<u64>(1).unwrap(), alone, hoard(&ctx, 500), ctx));
            });
            victim.kill();
            if polls {
                while rx.try_recv().unwrap_err() != RecvError::Disconnected.into() {}
            } else {
                assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
            }
            // A busy machine may not have let it come to an end in the time that it gives.
            let channels = buffer.channels().unwrap().len();
            buffer.reap().unwrap().processes == 0 && channels == 1
        });
        assert!(done, "polls: {polls}");
    }
}

// ---------------------------------------------------------------------------------------------------- a stopped reaper

fn roles_are_taken_from_the_dead_while_a_reaper_is_stopped(name: &Name) {
    let buffer = Buffer::options().capacity(4 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut tx = ctx.producer::<u64>(2).unwrap();
    (0..5).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
    let victim = child(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        let (mut there, mut back) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(2).unwrap());
        (0..3).for_each(|i| there.send(ctx.record(i).unwrap()).unwrap());
        forget((back.recv().unwrap(), back.recv().unwrap()));
        // And a channel with nobody at the other end.
        let mut alone = ctx.producer::<u64>(3).unwrap();
        alone.send(ctx.record(9).unwrap()).unwrap();
        forget((there, back, alone, ctx));
    });
    let guard = stopped_with(name, &[REAP]);
    victim.kill();
    // The next one goes on where the dead one was, at either end.
    let mut there = ctx.producer::<u64>(1).unwrap();
    there.send(ctx.record(3).unwrap()).unwrap();
    assert!((0..4).all(|i| *rx.recv().unwrap() == i));
    let mut back = ctx.consumer::<u64>(2).unwrap();
    assert!((2..5).all(|i| *back.recv().unwrap() == i));
    // And who comes first to a channel finds what was sent there, as if the sender lived.
    let mut alone = ctx.consumer::<u64>(3).unwrap();
    assert_eq!(*alone.recv().unwrap(), 9);
    assert_eq!(alone.recv().unwrap_err(), RecvError::Disconnected);
    assert!(rx.has_producer() && tx.has_consumer());
    drop(guard);
    let reaped = buffer.reap().unwrap();
    // The two that it had received, and the one role that nobody wanted: the others are taken by now.
    assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (1, 2, 1));
    assert!(rx.has_producer() && tx.has_consumer());
    there.send(ctx.record(4).unwrap()).unwrap();
    assert_eq!(*rx.recv().unwrap(), 4);
    drop((there, back, alone, rx, tx, ctx));
    all_free(&buffer);
}

fn others_open_and_work_while_a_reaper_is_stopped(name: &Name) {
    let buffer = Buffer::options().capacity(4 << 20).open(name).unwrap();
    let victim = child(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        hoard(&ctx, usize::MAX);
        forget(ctx);
    });
    let guard = stopped_with(name, &[REAP]);
    victim.kill();
    let Some(other) = fork() else {
        forget((buffer, guard));
        let buffer = Buffer::open(name).unwrap();
        assert_eq!(buffer.channels().unwrap(), []);
        assert!(matches!(buffer.audit().unwrap().owned[..], [ref owned] if !owned.is_alive));
        // Nobody else may give back what the dead one has: there is an end to waiting for it.
        let ctx = buffer.context().unwrap();
        assert!(matches!(ctx.slice_zeroed::<u8>(1 << 20), Err(AllocError::OutOfMemory { .. })));
        drop(ctx);
        end()
    };
    other.succeeds();
    drop(guard);
    let ctx = buffer.context().unwrap();
    drop(ctx.slice_zeroed::<u8>(1 << 20).unwrap());
    drop(ctx);
    while buffer.reap().unwrap().processes > 0 {}
    all_free(&buffer);
}

fn reap_says_that_another_one_does_not_finish(name: &Name) {
    let buffer = Buffer::options().capacity(4 << 20).open(name).unwrap();
    let guard = stopped_with(name, &[REAP]);
    assert_eq!(buffer.reap().unwrap().processes, 0, "nobody is dead: there is nothing to wait for");
    child(|| forget(Buffer::open(name).unwrap())).kill();
    let start = Instant::now();
    assert!(matches!(buffer.reap(), Err(BufferError::Busy { .. })));
    assert!(start.elapsed() >= Duration::from_secs(5), "it waited for it");
    guard.kill();
    assert_eq!(buffer.reap().unwrap().processes, 1);
    all_free(&buffer);
}

/// A real one, in the middle of much work, inside its locks or between them.
fn a_reaper_stopped_anywhere_then_killed(name: &Name) {
    let buffer = Buffer::options().capacity(16 << 20).open(name).unwrap();
    let locks = file(name);
    let done = shared();
    let mut rng = work::Rng::new(7);
    let mut named = false;
    for round in 0..6 {
        done[0].store(0, SeqCst);
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.consumer::<u64>(1).unwrap();
        let victim = child(|| {
            let ctx = Buffer::open(name).unwrap().context().unwrap();
            let mut tx = ctx.producer::<u64>(1).unwrap();
            (0..100).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
            hoard(&ctx, 100_000);
            forget((tx, ctx));
        });
        let (mut goes_on, mut go_on) = pipe().unwrap();
        let reaper = child(|| {
            let buffer = Buffer::open(name).unwrap();
            thread::spawn(move || {
                assert!(hear(&mut goes_on));
                let _ = buffer.reap();
                done[0].store(1, SeqCst);
            });
        });
        victim.kill();
        tell(&mut go_on);
        while !is_held(&locks, REAP) && done[0].load(SeqCst) == 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_micros(rng.below(if cfg!(debug_assertions) { 60_000 } else { 2000 })));
        stop(&reaper);
        // Traffic, and the bereaved.
        let mut own = Vec::new();
        for i in 0..1000_u64 {
            own.push(ctx.record(i).unwrap());
        }
        assert!(own.drain(..).zip(0..).all(|(record, i)| *record == i));
        assert!((0..100).all(|i| *rx.recv().unwrap() == i), "round {round}");
        assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
        if is_held(&locks, REAP) && !std::mem::replace(&mut named, true) {
            let busy = buffer.reap();
            assert!(matches!(busy, Err(BufferError::Busy { pid }) if pid == reaper.0.unsigned_abs()), "{busy:?}");
        }
        reaper.kill();
        // Two dead, or one if the reaper had come to its end.
        assert!(buffer.reap().unwrap().processes <= 2);
        assert!(sound(&buffer).owned.iter().all(|owned| owned.is_self));
        drop((rx, ctx));
        all_free(&buffer);
    }
}

// ------------------------------------------------------------------------------------------------- a reaper at its work

/// Between two steps of those who go on meanwhile: so that many steps take as long as the reaper, not as a moment of it.
const STEP: Duration = Duration::from_millis(1);
/// Small records, which take a reaper some ten milliseconds at least.
const MANY: usize = if cfg!(debug_assertions) { 300_000 } else { 3_000_000 };
const ROOM: u64 = MANY as u64 * 64 * 5 / 4;

/// Whoever needs the control lock gets it while a reaper has much to do under it: again and again, not once before and once after.
fn the_control_lock_is_let_go_meanwhile(name: &Name) {
    let buffer = Buffer::options().capacity(ROOM).open(name).unwrap();
    let asked = shared();
    let asks = child(|| {
        let buffer = Buffer::open(name).unwrap();
        thread::spawn(move || {
            loop {
                assert!(!buffer.has_channel(1).unwrap());
                asked[0].fetch_add(1, SeqCst);
                thread::sleep(STEP);
            }
        });
    });
    let mut most = 0;
    for _ in 0..20 {
        child(|| {
            let ctx = Buffer::open(name).unwrap().context().unwrap();
            hoard(&ctx, MANY);
            forget(ctx);
        })
        .kill();
        let before = asked[0].load(SeqCst);
        let reaped = buffer.reap().unwrap();
        most = most.max(asked[0].load(SeqCst) - before);
        assert_eq!((reaped.processes, reaped.records), (1, MANY as u64));
        if most >= 4 {
            break;
        }
    }
    assert!(most >= 4, "the lock could be had {most} times while a reaper was at work");
    asks.kill();
    buffer.reap().unwrap();
    all_free(&buffer);
}

/// Threads of the reaper's own process: one that drops records and has no context, and one that attaches.
fn other_threads_go_on_meanwhile(name: &Name) {
    let buffer = Buffer::options().capacity(ROOM).open(name).unwrap();
    let mut most = [0; 2];
    for _ in 0..20 {
        let victim = child(|| {
            let ctx = Buffer::open(name).unwrap().context().unwrap();
            hoard(&ctx, MANY);
            forget(ctx);
        });
        let (counts, stop) = ([const { AtomicU32::new(0) }; 2], AtomicBool::new(false));
        let count_of = |i: usize| counts[i].load(SeqCst);
        thread::scope(|scope| {
            let (records, homeless) = std::sync::mpsc::sync_channel(100);
            scope.spawn({
                let (buffer, stop) = (&buffer, &stop);
                move || {
                    let ctx = buffer.context().unwrap();
                    while !stop.load(SeqCst) && records.send(ctx.record(1_u64).unwrap()).is_ok() {}
                }
            });
            scope.spawn({
                let counts = &counts;
                move || {
                    for record in homeless {
                        drop(record);
                        counts[0].fetch_add(1, SeqCst);
                        thread::sleep(STEP);
                    }
                }
            });
            scope.spawn(|| {
                let ctx = buffer.context().unwrap();
                while !stop.load(SeqCst) {
                    drop(ctx.producer::<u64>(2).unwrap());
                    counts[1].fetch_add(1, SeqCst);
                    thread::sleep(STEP);
                }
            });
            while (0..2).any(|i| count_of(i) == 0) {
                thread::yield_now();
            }
            victim.kill();
            let before = [0, 1].map(count_of);
            while buffer.reap().unwrap().processes > 0 {}
            let after = [0, 1].map(count_of);
            stop.store(true, SeqCst);
            (0..2).for_each(|i| most[i] = most[i].max(after[i] - before[i]));
        });
        if most.iter().all(|most| *most >= 4) {
            break;
        }
    }
    assert!(most.iter().all(|most| *most >= 4), "{most:?} steps of the others while a reaper was at work");
    all_free(&buffer);
}

fn running_short_of_memory_reaps_as_much_as_is_needed(name: &Name) {
    let buffer = Buffer::options().capacity(32 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let held = shared();
    let victim = child(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        held[0].store(hoard(&ctx, usize::MAX), SeqCst);
        forget(ctx);
    });
    assert!(matches!(ctx.record(1_u64), Err(AllocError::OutOfMemory { .. })), "the victim has it all");
    victim.kill();
    // No call that reaps but this one.
    let record = ctx.record(1_u64).unwrap();
    let rest = buffer.reap().unwrap();
    assert_eq!(rest.processes, 1, "one record does not take all of it");
    assert!(rest.records > 0 && rest.records < held[0].load(SeqCst), "{rest:?}");
    // Of another size, which takes nearly all of it.
    drop(record);
    ctx.flush();
    let victim = child(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        hoard(&ctx, usize::MAX);
        forget(ctx);
    });
    victim.kill();
    drop(ctx.slice_zeroed::<u8>(24 << 20).unwrap());
    assert_eq!(buffer.reap().unwrap().processes, 0, "done by the way");
    drop(ctx);
    all_free(&buffer);
}

fn reap_says_what_it_gave_back(name: &Name) {
    let buffer = Buffer::options().capacity(4 << 20).open(name).unwrap();
    let victims: Vec<Child> = (0..3)
        .map(|i| {
            child(|| {
                let ctx = Buffer::open(name).unwrap().context().unwrap();
                let mut tx = ctx.producer_with::<u64>(i, &ChannelOptions::new().persistent(true)).unwrap();
                (0..7).for_each(|n| tx.send(ctx.record(n).unwrap()).unwrap());
                hoard(&ctx, 100);
                forget((ctx.slice_zeroed::<u8>(100_000).unwrap(), ctx.consumer::<u64>(i).unwrap(), tx, ctx));
            })
        })
        .collect();
    victims.into_iter().for_each(Child::kill);
    let reaped = buffer.reap().unwrap();
    assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (3, 3 * 101, 3 * 2));
    assert!(reaped.cached_blocks > 0, "{reaped:?}");
    assert_eq!(buffer.reap().unwrap(), ipc_buffer::Reaped::default());
    // What was sent is not given back, but kept.
    assert!(sound(&buffer).queued.iter().all(|queued| queued.records == 7));
    assert!((0..3).all(|i| buffer.remove_channel(i).unwrap()));
    all_free(&buffer);
}

/// No survivor at all, at any moment: the next one finds what was sent in the channels that persist, and the rest free.
fn everybody_dies_at_once(name: &Name) {
    let mut rng = work::Rng::new(5);
    let mut kept = 0;
    for round in 0..40 {
        let all: Vec<Child> = (0..6_i64)
            .map(|i| {
                child(|| {
                    let name = name.0.clone();
                    thread::spawn(move || {
                        let buffer = Buffer::options().capacity(8 << 20).open(&name).unwrap();
                        let ctx = buffer.context().unwrap();
                        let options = slots(64).persistent(true);
                        let mut tx = ctx.producer_with::<[u64]>(i, &options).unwrap();
                        let mut rx = ctx.consumer_with::<[u64]>((i + 1) % 6, &options).unwrap();
                        let mut number = 0;
                        loop {
                            match tx.try_send(work::numbered(&ctx, number, 100)) {
                                Ok(()) => number += 1,
                                Err(TrySendError::Full(record)) => drop(record),
                                Err(error) => panic!("{error}"),
                            }
                            if number % 3 > 0
                                && let Ok(record) = rx.try_recv()
                            {
                                work::number(&record);
                            }
                        }
                    });
                })
            })
            .collect();
        thread::sleep(Duration::from_micros(rng.below(8000)));
        all.iter().for_each(|child| child.signal(libc::SIGKILL));
        drop(all);
        let buffer = Buffer::options().capacity(8 << 20).open(name).unwrap();
        let audit = sound(&buffer);
        assert_eq!(audit.owned_bytes(), 0, "round {round}: {audit:#?}");
        let ctx = buffer.context().unwrap();
        for info in buffer.channels().unwrap() {
            assert!(info.persistent && info.producer.is_none() && info.consumer.is_none());
            let mut rx = ctx.consumer::<[u64]>(info.id).unwrap();
            let numbers: Vec<u64> = rx.try_iter().map(|record| work::number(&record)).collect();
            assert_eq!(numbers.len(), info.queued);
            assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "round {round}: {numbers:?}");
            kept += numbers.len();
            drop(rx);
            assert!(buffer.remove_channel(info.id).unwrap());
        }
        drop(ctx);
        all_free(&buffer);
        drop(buffer);
        assert!(!name.exists(), "round {round}");
    }
    assert!(kept > 0);
    println!("{kept} records outlived everybody");
}
