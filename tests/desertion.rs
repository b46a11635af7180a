//! Leaving channels: both ends at once, while others reap, while somebody sits on the control lock; and what the dead left in the way.
//!
//! No harness: see `common/scenarios.rs`. With kills and stops in between: `tests/crash_points.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // byte locks

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::{Name, all_free, sound};
use ipc_buffer::{AttachError, Buffer, BufferError, ChannelOptions, RecvError, SendError, TryRecvError};
use scenarios::{Child, Scenario, end, fork, hear, stay, tell};
use std::fs::File;
use std::io::pipe;
use std::mem::forget;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a_full_channel_is_left_while_others_reap", a_full_channel_is_left_while_others_reap),
    ("both_ends_leave_at_once", both_ends_leave_at_once),
    ("a_deserted_channel_is_nobodys", a_deserted_channel_is_nobodys),
    ("drops_do_not_wait_for_a_stuck_lock", drops_do_not_wait_for_a_stuck_lock),
    ("what_a_drop_left_behind_is_taken_out_by_whoever_comes", what_a_drop_left_behind_is_taken_out_by_whoever_comes),
    ("timeouts_keep_their_time_behind_a_stuck_lock", timeouts_keep_their_time_behind_a_stuck_lock),
    ("threads_wait_for_the_lock_together", threads_wait_for_the_lock_together),
    ("a_channel_of_the_dead_makes_way_for_another_type", a_channel_of_the_dead_makes_way_for_another_type),
    ("so_do_as_many_as_there_can_be", so_do_as_many_as_there_can_be),
    ("persistent_channels_are_not_deserted", persistent_channels_are_not_deserted),
];

fn main() {
    scenarios::main("desertion", SCENARIOS)
}

// ------------------------------------------------------------------------------------------------------------- helpers

/// Far more than any step takes that does not wait for the lock, and less than it takes to give up waiting for it.
const SOON: Duration = Duration::from_secs(3);
const CONTROL: i64 = 0;
const REAP: i64 = 1;

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

/// Has a byte of the file, as one that was stopped while it had that lock; until it is dropped.
fn stuck(name: &Name, byte: i64) -> File {
    let file = File::options().read(true).write(true).open(name.path()).unwrap();
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_start, lock.l_len) = (libc::F_WRLCK.try_into().unwrap(), byte, 1);
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw mut lock) }, 0);
    file
}

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

fn open(name: &Name) -> Buffer {
    Buffer::options().capacity(4 << 20).open(name).unwrap()
}

// ------------------------------------------------------------------------------------------------------------- leaving

/// Symptom: blocks in two magazines. Cause: the window that a leaver emptied was taken for done by a reaper, which freed the dead
/// sender's records in it once more.
fn a_full_channel_is_left_while_others_reap(name: &Name) {
    let buffer = open(name);
    for round in 0..60 {
        let (mut goes, mut go) = pipe().unwrap();
        let consumer = child_that_leaves(name, &mut goes);
        let producer = child(|| {
            let ctx = open(name).context().unwrap();
            let mut tx = ctx.producer::<u64>(1).unwrap();
            (0..1024).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
            drop(tx);
            forget(ctx);
        });
        drop(goes);
        producer.kill();
        (0..(round % 20) * 400).for_each(|_| std::hint::spin_loop());
        tell(&mut go);
        for _ in 0..20 {
            let _ = buffer.reap();
        }
        consumer.succeeds();
        while buffer.reap().unwrap().processes > 0 {}
        all_free(&buffer);
    }
}

/// A consumer that leaves when told to.
fn child_that_leaves(name: &Name, goes: &mut std::io::PipeReader) -> Child {
    let (mut up, mut ready) = pipe().unwrap();
    let Some(child) = fork() else {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let rx = ctx.consumer::<u64>(1).unwrap();
        tell(&mut ready);
        hear(goes);
        drop((rx, ctx, buffer));
        end()
    };
    drop(ready);
    assert!(hear(&mut up));
    child
}

/// Symptom: the process stayed attached, and the segment stayed. Cause: as above, when it counted what it still had.
fn both_ends_leave_at_once(name: &Name) {
    const SLOTS: usize = 1 << 14;
    for _ in 0..30 {
        let (mut goes, mut go) = pipe().unwrap();
        let leaver = |sends: bool| {
            let (mut up, mut ready) = pipe().unwrap();
            let mut goes = goes.try_clone().unwrap();
            let Some(child) = fork() else {
                let buffer = Buffer::options().capacity(32 << 20).open(name).unwrap();
                let ctx = buffer.context().unwrap();
                if sends {
                    let mut tx = ctx.producer_with::<u64>(1, &slots(SLOTS)).unwrap();
                    (0..SLOTS as u64).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
                    tell(&mut ready);
                    hear(&mut goes);
                    drop(tx);
                } else {
                    let rx = ctx.consumer_with::<u64>(1, &slots(SLOTS)).unwrap();
                    tell(&mut ready);
                    hear(&mut goes);
                    drop(rx);
                }
                drop((ctx, buffer));
                let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                assert!(!maps.contains(&name.0), "it is out of the buffer");
                end()
            };
            drop(ready);
            assert!(hear(&mut up));
            child
        };
        let ends = [leaver(false), leaver(true)];
        (0..2).for_each(|_| tell(&mut go));
        drop((go, goes.try_clone()));
        let _ = &mut goes;
        ends.into_iter().for_each(Child::succeeds);
        assert!(!name.exists(), "the last one out has removed it");
    }
}

fn a_deserted_channel_is_nobodys(name: &Name) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<u64>(1).unwrap();
    (0..5).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
    let lock = stuck(name, CONTROL);
    drop(tx);
    drop(lock);
    // It is still there, with what is queued, but nobody sees it.
    assert!(!buffer.has_channel(1).unwrap());
    assert_eq!(buffer.channels().unwrap(), []);
    assert!(!buffer.wait_for_channel(1, Duration::from_millis(1)).unwrap());
    assert_eq!(sound(&buffer).queued_bytes(), 5 * 64);
    assert!(!buffer.remove_channel(1).unwrap(), "nor is it there to be removed");
    // Who comes there gets a channel of its own, of whatever type.
    let mut rx = ctx.consumer::<[u8]>(1).unwrap();
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
    drop((rx, ctx));
    all_free(&buffer);
}

/// Symptom: a drop took 5 s, and the role stayed taken until the process ended.
fn drops_do_not_wait_for_a_stuck_lock(name: &Name) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1000).unwrap();
    let mut tx = ctx.producer::<u64>(1000).unwrap();
    tx.send(ctx.record(7).unwrap()).unwrap();
    let mut survivor = ctx.producer_with::<u64>(1001, &slots(2)).unwrap();
    let consumer = ctx.consumer::<u64>(1001).unwrap();
    let many: Vec<_> = (0..500).map(|id| ctx.producer_with::<u64>(id, &slots(2)).unwrap()).collect();
    let lock = stuck(name, CONTROL);
    let start = Instant::now();
    drop((many, tx, consumer));
    // Their peers know.
    assert_eq!(*rx.recv().unwrap(), 7);
    assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
    assert!(matches!(survivor.send(ctx.record(1).unwrap()), Err(SendError::Disconnected(_))));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop(lock);
    // The roles are free again, in the channels that others are in, and in the others.
    let _tx = ctx.producer::<u64>(1000).unwrap();
    let _rx = ctx.consumer::<u64>(1001).unwrap();
    drop(ctx.consumer::<u64>(3).unwrap());
    // The next one here that has the lock has taken out all of them.
    assert_eq!(sound(&buffer).queued.len(), 2);
}

fn what_a_drop_left_behind_is_taken_out_by_whoever_comes(name: &Name) {
    for how in ["attach", "drop", "reap", "memory", "leave", "another reaps", "another needs memory"] {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let other = ctx.consumer::<u64>(2).unwrap();
        let (goes, mut go) = pipe().unwrap();
        let needs = || {
            let buffer = open(name);
            let mut goes = goes.try_clone().unwrap();
            thread::spawn(move || {
                assert!(hear(&mut goes));
                match how {
                    "another reaps" => assert_eq!(buffer.reap().unwrap().processes, 0),
                    _ => drop(buffer.context().unwrap().slice_zeroed::<u8>(3 << 20).unwrap()),
                }
                std::process::exit(0);
            });
        };
        let another = how.starts_with("another").then(|| child(needs));
        let mut tx = ctx.producer_with::<[u8]>(1, &slots(4)).unwrap();
        // Most of the memory.
        (0..4).for_each(|_| tx.send(ctx.slice_zeroed::<u8>(600 << 10).unwrap()).unwrap());
        let lock = stuck(name, CONTROL);
        drop(tx);
        drop(lock);
        assert_eq!(sound(&buffer).queued.iter().map(|queued| queued.records).sum::<u64>(), 4, "{how}");
        match how {
            "attach" => drop(ctx.producer::<u64>(2).unwrap()),
            "drop" => drop(other),
            "reap" => assert_eq!(buffer.reap().unwrap().processes, 0, "nobody is dead"),
            "memory" => drop(ctx.slice_zeroed::<u8>(3 << 20).unwrap()),
            "leave" => {}
            _ => {
                tell(&mut go);
                another.unwrap().succeeds();
            }
        }
        if how != "leave" {
            assert_eq!(sound(&buffer).queued_bytes(), 0, "{how}");
        }
    }
}

fn timeouts_keep_their_time_behind_a_stuck_lock(name: &Name) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let (tx, rx) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(2).unwrap());
    let dead = child(|| {
        let ctx = open(name).context().unwrap();
        forget((ctx.consumer::<u64>(1).unwrap(), ctx.producer::<u64>(2).unwrap(), ctx));
    });
    let lock = stuck(name, CONTROL);
    dead.kill();
    let moment = Duration::from_millis(10);
    let start = Instant::now();
    for _ in 0..10 {
        let busy = buffer.wait_for_channel(1, moment);
        assert!(matches!(busy, Err(BufferError::Busy { .. })), "nobody could look: {busy:?}");
        assert!(tx.wait_for_consumer(moment).is_err() && rx.wait_for_producer(moment).is_err());
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop(lock);
    assert!(buffer.wait_for_channel(1, Duration::ZERO).unwrap());
    while buffer.reap().unwrap().processes > 0 {}
    // Looked, and then no more: it was not there when it was looked for.
    thread::scope(|scope| {
        let waits = scope.spawn(|| buffer.wait_for_channel(3, Duration::from_millis(700)));
        thread::sleep(Duration::from_millis(100));
        let lock = stuck(name, CONTROL);
        assert_eq!(waits.join().unwrap(), Ok(false));
        drop(lock);
    });
}

/// Symptom: the second of two threads waited for the first, and then as long again.
fn threads_wait_for_the_lock_together(name: &Name) {
    let buffer = open(name);
    let lock = stuck(name, CONTROL);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(matches!(buffer.has_channel(1), Err(BufferError::Busy { .. }))));
        }
    });
    let waited = start.elapsed();
    assert!((5..9).contains(&waited.as_secs()), "{waited:?}");
    drop(lock);
}

// --------------------------------------------------------------------------------------------------------- in the way

fn a_channel_of_the_dead_makes_way_for_another_type(name: &Name) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let dead = child(|| {
        let ctx = open(name).context().unwrap();
        let mut tx = ctx.producer::<u64>(1).unwrap();
        tx.send(ctx.record(1).unwrap()).unwrap();
        forget((tx, ctx.value_producer::<u64>(2).unwrap(), ctx.producer::<u64>(3).unwrap()));
        forget((ctx.producer_with::<u64>(4, &slots(4).persistent(true)).unwrap(), ctx));
    });
    let here = ctx.consumer::<u64>(3).unwrap();
    // Nobody reaps.
    let lock = stuck(name, REAP);
    dead.kill();
    let (mut tx, mut rx) = (ctx.producer::<f32>(1).unwrap(), ctx.consumer::<f32>(1).unwrap());
    tx.send(ctx.record(0.5).unwrap()).unwrap();
    assert_eq!(*rx.recv().unwrap(), 0.5);
    drop(ctx.value_consumer::<f32>(2).unwrap());
    // One where somebody is, or that is to stay, does not.
    for id in [3, 4] {
        assert!(matches!(ctx.producer::<f32>(id), Err(AttachError::TypeMismatch { .. })), "{id}");
    }
    drop(lock);
    drop((here, tx, rx));
    assert!(buffer.remove_channel(4).unwrap());
    drop(ctx);
    while buffer.reap().unwrap().processes > 0 {}
    all_free(&buffer);
}

fn so_do_as_many_as_there_can_be(name: &Name) {
    let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    for reaper_is_stopped in [false, true] {
        let dead = child(|| {
            let ctx = Buffer::open(name).unwrap().context().unwrap();
            forget((0..16384).map(|id| ctx.value_producer_with::<u64>(id, &slots(2)).unwrap()).collect::<Vec<_>>());
            forget(ctx);
        });
        assert!(matches!(ctx.producer::<u64>(-1), Err(AttachError::TooManyChannels { limit: 16384 })));
        let lock = reaper_is_stopped.then(|| stuck(name, REAP));
        dead.kill();
        drop(ctx.value_producer_with::<f32>(-1, &slots(2)).unwrap());
        assert_eq!(buffer.channels().unwrap().len(), 0);
        drop(lock);
        while buffer.reap().unwrap().processes > 0 {}
    }
    drop(ctx);
    all_free(&buffer);
}

fn persistent_channels_are_not_deserted(name: &Name) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(4).persistent(true)).unwrap();
    drop(ctx.consumer::<u64>(1).unwrap());
    // It queues for the next consumer.
    tx.send(ctx.record(1).unwrap()).unwrap();
    drop(tx);
    assert!(buffer.has_channel(1).unwrap() && buffer.reap().is_ok());
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    assert_eq!(*rx.recv().unwrap(), 1);
    // Removed while its last end is in it, and left then.
    assert!(buffer.remove_channel(1).unwrap());
    drop(rx);
    drop(ctx);
    all_free(&buffer);
}
