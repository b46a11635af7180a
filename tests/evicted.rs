//! Processes that were taken for dead: they lost their lease, as when a checkpoint is restored, and others have reaped them.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![allow(unsafe_code)] // munmap, fork

mod common;
#[cfg(feature = "async")]
#[path = "common/executor.rs"]
mod executor;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::{Name, sound};
use ipc_buffer::{
    AllocError, AttachError, Buffer, BufferError, ChannelOptions, Consumer, Error, Producer, Select, ThreadContext,
    TryRecvError, TrySendError, ValueChannel, WaitStrategy,
};
use scenarios::{Scenario, end, fork, hear, tell};
use std::io::pipe;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("every_handle_says_so_and_opening_anew_works", every_handle_says_so_and_opening_anew_works),
    ("drops_touch_nothing", drops_touch_nothing),
    ("whoever_waits_is_told", whoever_waits_is_told),
    ("whoever_sleeps_is_told", whoever_sleeps_is_told),
    ("whoever_waits_for_memory_is_told", whoever_waits_for_memory_is_told),
    #[cfg(feature = "async")]
    ("a_parked_future_is_told", a_parked_future_is_told),
    ("what_was_seen_once_stays_so", what_was_seen_once_stays_so),
];

fn main() {
    scenarios::main("evicted", SCENARIOS)
}

/// What a restored checkpoint does not have: all that keeps a lease.
fn lose_the_lease(name: &Name) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut lost = 0;
    for line in maps.lines().filter(|line| line.contains(&name.path()) && line.contains(" ---s ")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (usize::from_str_radix(from, 16).unwrap(), usize::from_str_radix(to, 16).unwrap());
        assert_eq!(unsafe { libc::munmap(from as *mut _, to - from) }, 0);
        lost += 1;
    }
    assert!(lost > 0, "{maps}");
}

/// As [`reaped_alive`]: nothing is lost by it.
fn evicted(name: &Name, part: impl FnOnce(&Buffer, &mut dyn FnMut())) -> Buffer {
    let observer = reaped_alive(name, part);
    sound(&observer);
    observer
}

/// Runs `part` in a process that loses its lease and is reaped when it says so, with what it says it with.
fn reaped_alive(name: &Name, part: impl FnOnce(&Buffer, &mut dyn FnMut())) -> Buffer {
    let observer = Buffer::options().capacity(8 << 20).open(name).unwrap();
    let (mut told, mut says) = pipe().unwrap();
    let (mut hears, mut tells) = pipe().unwrap();
    let Some(child) = fork() else {
        let buffer = Buffer::open(name).unwrap();
        part(&buffer, &mut || {
            lose_the_lease(name);
            tell(&mut tells);
            assert!(hear(&mut told));
        });
        drop(buffer);
        end()
    };
    drop(tells);
    assert!(hear(&mut hears));
    assert_eq!(observer.reap().unwrap().processes, 1);
    tell(&mut says);
    child.succeeds();
    observer
}

fn every_handle_says_so_and_opening_anew_works(name: &Name) {
    let observer = evicted(name, |buffer, lose| {
        let ctx = buffer.context().unwrap();
        let small = ChannelOptions::new().capacity(8);
        let mut tx = ctx.value_producer_with::<u64>(1, &small).unwrap();
        let mut rx = ctx.value_consumer::<u64>(2).unwrap();
        let kept = ctx.record(7_u64).unwrap();
        lose();
        // No more than the ring has room for.
        let sent = (0..1000).map(|i| tx.try_send(i)).position(|sent| matches!(sent, Err(TrySendError::Evicted(_))));
        assert!(sent.is_some_and(|sent| sent <= 8), "{sent:?}");
        let received = (0..1000).find_map(|_| rx.try_recv().err().filter(|error| *error != TryRecvError::Empty));
        assert!(received.is_some_and(|error| matches!(Error::from(error), Error::Evicted)));
        let allocated = (0..1000).find_map(|_| ctx.record(1_u64).err());
        assert_eq!(allocated, Some(AllocError::Evicted));
        assert_eq!(ctx.producer::<u64>(3).unwrap_err(), AttachError::Evicted);
        assert_eq!(buffer.context().unwrap_err(), BufferError::Evicted);
        assert_eq!(buffer.channels().unwrap_err(), BufferError::Evicted);
        assert_eq!(buffer.reap().unwrap_err(), BufferError::Evicted);
        assert_eq!(buffer.trim().unwrap_err(), BufferError::Evicted);
        assert_eq!(buffer.stats().unwrap_err(), BufferError::Evicted);
        assert_eq!(buffer.audit().unwrap_err(), BufferError::Evicted);
        // Read, it is whatever it is by now.
        let _ = *kept;
        let anew = Buffer::open(buffer.name()).unwrap();
        let fresh = anew.context().unwrap();
        let mut tx = fresh.value_producer::<u64>(1).unwrap();
        tx.send(5).unwrap();
        drop((kept, ctx));
        assert_eq!(fresh.value_consumer::<u64>(1).unwrap().recv(), Ok(5));
    });
    common::all_free(&observer);
}

/// Its slots, its context and its blocks are others' when it drops what it had.
fn drops_touch_nothing(name: &Name) {
    const RECORDS: u64 = 2000;
    let (mut at_it, mut comes) = pipe().unwrap();
    let (mut checks, mut checked) = pipe().unwrap();
    let holder = fork();
    if holder.is_none() {
        drop((comes, checks));
        assert!(hear(&mut at_it));
        let buffer = Buffer::open(name).unwrap();
        let ctx = buffer.context().unwrap();
        let mine: Vec<_> = (0..2 * RECORDS).map(|i| ctx.record([i; 4]).unwrap()).collect();
        let tx = ctx.value_producer::<u64>(1).unwrap();
        tell(&mut checked);
        assert!(hear(&mut at_it));
        let more: Vec<_> = (0..2 * RECORDS).map(|_| ctx.record([u64::MAX; 4]).unwrap()).collect();
        assert!((0..).zip(&mine).all(|(i, record)| **record == [i; 4]));
        assert!(buffer.has_channel(1).unwrap());
        drop((mine, more, tx, ctx));
        end()
    }
    drop((at_it, checked));
    let observer = evicted(name, |buffer, lose| {
        let ctx = buffer.context().unwrap();
        let kept: Vec<_> = (0..RECORDS).map(|i| ctx.record([i; 4]).unwrap()).collect();
        let tx = ctx.value_producer::<u64>(1).unwrap();
        let shared = std::thread::scope(|scope| scope.spawn(|| buffer.context().unwrap().record(1_u8).unwrap()).join());
        lose();
        tell(&mut comes);
        assert!(hear(&mut checks));
        // Before anything was asked.
        drop(tx);
        assert!(ctx.producer::<u64>(9).is_err());
        drop(shared);
        drop(kept);
        drop(ctx);
    });
    // Not while the audit looks: it would see records of one that is gone by the time it asks.
    tell(&mut comes);
    drop((comes, checks));
    holder.unwrap().succeeds();
    observer.reap().unwrap();
    common::all_free(&observer);
}

fn whoever_waits_is_told(name: &Name) {
    let observer = evicted(name, |buffer, lose| {
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.value_consumer::<u64>(1).unwrap();
        let _tx = ctx.value_producer::<u64>(1).unwrap();
        lose();
        assert!(matches!(rx.recv().map_err(Error::from), Err(Error::Evicted)));
    });
    common::all_free(&observer);
}

/// Every way to sleep, begun before. The other ends are this process's, so it may see them reaped before it sees that it is, too: then they
/// have left.
fn whoever_sleeps_is_told(name: &Name) {
    type Sleep = fn(&Buffer, &ThreadContext, &dyn Fn()) -> bool;
    type Ends = (ValueChannel<u64, Producer>, ValueChannel<u64, Consumer>);
    fn ends(ctx: &ThreadContext, id: i64, strategy: WaitStrategy) -> Ends {
        let options = ChannelOptions::new().capacity(4).wait_strategy(strategy);
        (ctx.value_producer_with(id, &options).unwrap(), ctx.value_consumer_with(id, &options).unwrap())
    }
    fn recv(ctx: &ThreadContext, id: i64, strategy: WaitStrategy, ready: &dyn Fn()) -> bool {
        let (_tx, mut rx) = ends(ctx, id, strategy);
        ready();
        rx.recv().is_err_and(|error| is_told(error.into()))
    }
    fn select(ctx: &ThreadContext, ids: std::ops::Range<i64>, ready: &dyn Fn()) -> bool {
        let mut ends: Vec<_> = ids.map(|id| ends(ctx, id, WaitStrategy::Adaptive)).collect();
        let mut select = Select::new();
        ends.iter().for_each(|(_, rx)| _ = select.recv(rx));
        ready();
        let number = select.ready().unwrap();
        ends[number].1.try_recv().is_err_and(|error| is_told(error.into()))
    }
    fn is_told(error: Error) -> bool {
        matches!(error, Error::Evicted | Error::Disconnected)
    }
    const SLEEPS: &[(&str, Sleep)] = &[
        ("recv", |_, ctx, ready| recv(ctx, 1, WaitStrategy::Adaptive, ready)),
        ("recv, spinning", |_, ctx, ready| recv(ctx, 2, WaitStrategy::Spin, ready)),
        ("send", |_, ctx, ready| {
            let (mut tx, _rx) = ends(ctx, 3, WaitStrategy::Adaptive);
            while tx.try_send(0).is_ok() {}
            ready();
            tx.send(1).is_err_and(|error| is_told(error.into()))
        }),
        ("select", |_, ctx, ready| select(ctx, 10..12, ready)),
        ("select among many", |_, ctx, ready| select(ctx, 100..200, ready)),
        ("wait for a consumer", |_, ctx, ready| {
            let mut tx = ctx.value_producer::<u64>(4).unwrap();
            ready();
            let came = tx.wait_for_consumer(Duration::MAX).is_ok();
            !came && (0..2000).find_map(|i| tx.try_send(i).err()).is_some_and(|error| is_told(error.into()))
        }),
        ("wait for a channel", |buffer, _, ready| {
            ready();
            buffer.wait_for_channel(99, Duration::MAX) == Err(BufferError::Evicted)
        }),
    ];
    let observer = evicted(name, |buffer, lose| {
        std::thread::scope(|scope| {
            let start = |(what, sleep): &(&'static str, Sleep)| {
                let (what, sleep) = (*what, *sleep);
                let (starts, started) = std::sync::mpsc::channel();
                let thread = scope.spawn(move || {
                    let ctx = buffer.context().unwrap();
                    (what, sleep(buffer, &ctx, &|| starts.send(()).unwrap()))
                });
                started.recv().unwrap();
                thread
            };
            let threads: Vec<_> = SLEEPS.iter().map(start).collect();
            std::thread::sleep(Duration::from_millis(300));
            assert!(threads.iter().all(|thread| !thread.is_finished()));
            lose();
            for thread in threads {
                let (what, is_told) = thread.join().unwrap();
                assert!(is_told, "{what}");
            }
        });
    });
    common::all_free(&observer);
}

fn whoever_waits_for_memory_is_told(name: &Name) {
    let hoarder = Buffer::options().capacity(8 << 20).open(name).unwrap();
    let hoard = hoarder.context().unwrap().slice_zeroed::<u8>(4 << 20).unwrap();
    // It may be anywhere in a search for memory when it is reaped.
    let observer = reaped_alive(name, |buffer, lose| {
        let theirs = buffer.clone();
        let waits = std::thread::spawn(move || {
            let ctx = theirs.context().unwrap();
            ctx.within(Duration::MAX).slice_zeroed::<u8>(7 << 20).map(drop)
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished());
        lose();
        assert_eq!(waits.join().unwrap(), Err(AllocError::Evicted));
    });
    drop((hoard, hoarder, observer));
}

/// Nobody polls it before it is woken.
#[cfg(feature = "async")]
fn a_parked_future_is_told(name: &Name) {
    use executor::Bell;
    use ipc_buffer::{RecvError, SendError};
    use std::task::Poll;
    let observer = Buffer::options().capacity(8 << 20).open(name).unwrap();
    let ctx = observer.context().unwrap();
    // The other ends are another process's, so that nobody who reaps wakes this one.
    let _tx = ctx.value_producer::<u64>(1).unwrap();
    let small = ChannelOptions::new().capacity(2);
    let _rx = ctx.value_consumer_with::<u64>(2, &small).unwrap();
    drop(evicted(name, |buffer, lose| {
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.value_consumer::<u64>(1).unwrap();
        let mut tx = ctx.value_producer::<u64>(2).unwrap();
        while tx.try_send(0).is_ok() {}
        let (received, sent) = (Bell::new(), Bell::new());
        let (mut recv, mut send) = (rx.recv_async(), tx.send_async(9));
        assert!(received.settle(&mut recv).is_pending() && sent.settle(&mut send).is_pending());
        let before = (received.rung(), sent.rung());
        lose();
        received.wait(before.0);
        sent.wait(before.1);
        assert!(matches!(received.settle(&mut recv), Poll::Ready(Err(RecvError::Evicted))));
        assert!(matches!(sent.settle(&mut send), Poll::Ready(Err(SendError::Evicted(9)))));
    }));
    drop((_tx, _rx, ctx));
    common::all_free(&observer);
}

/// Whatever is written where it says so: handles have gone uncounted by then, so the mapping stays.
fn what_was_seen_once_stays_so(name: &Name) {
    const PROCESSES: u64 = 4096;
    let buffer = Buffer::options().capacity(8 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let kept: Vec<_> = (0..100_u64).map(|i| ctx.record(i).unwrap()).collect();
    let file = std::fs::File::options().read(true).write(true).open(name.path()).unwrap();
    let mut slot = [0; 8];
    file.read_exact_at(&mut slot, PROCESSES).unwrap();
    assert_ne!(slot, [0; 8]);
    file.write_all_at(&[0; 8], PROCESSES).unwrap();
    assert!(ctx.producer::<u64>(1).is_err());
    file.write_all_at(&slot, PROCESSES).unwrap();
    assert_eq!(buffer.channels().unwrap_err(), BufferError::Evicted);
    drop((ctx, buffer));
    assert!((0..).zip(&kept).all(|(i, record)| **record == i));
    drop(kept);
    Buffer::unlink(name).unwrap();
}
