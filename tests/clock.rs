//! Setting the wall clock ends no wait and prolongs none: all of them go by the monotonic clock.
//!
//! A test can't set the clock of a machine that others use. So this binary has a `clock_gettime` of its own, in the C library's
//! place for the standard library and us: the kernel's answers, but for a wall clock that jumps. What is left out by that is the
//! kernel's side of a sleep, which is monotonic by what it is asked: FUTEX_WAIT measures its relative timeout by
//! CLOCK_MONOTONIC as long as FUTEX_CLOCK_REALTIME is not set, which it never is, and futex_waitv is told CLOCK_MONOTONIC.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // clock_gettime

mod common;
#[path = "common/work.rs"]
mod work;

use common::{Name, watchdog};
use ipc_buffer::{
    AllocError, Buffer, ChannelOptions, RecvTimeoutError, Select, SendTimeoutError, ThreadContext, WaitStrategy,
};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// What the wall clock is ahead, or behind.
static AHEAD_S: AtomicI64 = AtomicI64::new(0);

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, now: *mut libc::timespec) -> libc::c_int {
    // SAFETY: the caller says what it would say to the function this stands for.
    let failed = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, now) } != 0;
    if !failed && clock == libc::CLOCK_REALTIME {
        // SAFETY: the kernel has just written there.
        unsafe { (*now).tv_sec += AHEAD_S.load(Ordering::SeqCst) };
    }
    -libc::c_int::from(failed)
}

const HOUR_S: i64 = 3600;
const HOUR: Duration = Duration::from_secs(3600);
const WAIT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(1000);
/// By then who waits has begun to.
const LATER: Duration = Duration::from_millis(50);
/// Fits into a buffer of a megabyte, once.
const MOST: usize = 900 << 10;

/// The wall clock shows what is set here, and nothing else does.
fn is_in_force() {
    let (start, wall) = (Instant::now(), SystemTime::now());
    AHEAD_S.store(5 * HOUR_S, Ordering::SeqCst);
    assert!(SystemTime::now().duration_since(wall).unwrap() > 4 * HOUR);
    AHEAD_S.store(-5 * HOUR_S, Ordering::SeqCst);
    assert!(wall.duration_since(SystemTime::now()).unwrap() > 4 * HOUR);
    assert!(start.elapsed() < HOUR);
    AHEAD_S.store(0, Ordering::SeqCst);
}

/// A wait that only time ends, and not too early.
fn lasts<R>(wait: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = wait();
    assert!(start.elapsed() >= WAIT, "it ended after {:?}", start.elapsed());
    result
}

/// A wait that begins before another thread does what ends it, and keeps what it has made until then.
fn meanwhile<K, R>(what: impl FnOnce() -> K + Send, wait: impl FnOnce() -> R) -> R {
    let (waits, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(LATER);
            let kept = what();
            let _ = over.recv();
            drop(kept);
        });
        let result = wait();
        drop(waits);
        result
    })
}

/// What another thread does.
enum End {
    Sends,
    Receives,
}

/// Every wait of an end, by itself or with others, for data and for room.
fn ends_wait(buffers: &[Buffer; 2], [one, two]: [&ThreadContext; 2], strategy: WaitStrategy) {
    let options = ChannelOptions::new().capacity(2).wait_strategy(strategy);
    let mut rx = one.consumer_with::<u64>(1, &options).unwrap();
    let mut tx = two.producer_with::<u64>(1, &options).unwrap();
    (0..2).for_each(|i| tx.send(two.record(i).unwrap()).unwrap());
    let mut alone = Select::new().wait_strategy(strategy);
    alone.recv(&rx);
    let mut both = Select::new().wait_strategy(strategy);
    both.recv(&rx);
    both.send(&tx);

    assert!(matches!(lasts(|| rx.recv_timeout(WAIT)), Err(RecvTimeoutError::Timeout(_))));
    assert!(matches!(lasts(|| rx.recv_deadline(Instant::now() + WAIT)), Err(RecvTimeoutError::Timeout(_))));
    assert!(matches!(lasts(|| tx.send_timeout(two.record(2).unwrap(), WAIT)), Err(SendTimeoutError::Timeout(_))));
    assert_eq!(lasts(|| alone.ready_timeout(WAIT)), None);
    assert_eq!(lasts(|| both.ready_timeout(WAIT)), None);

    let (ask, asked) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let [one, two] = buffers.each_ref().map(|buffer| buffer.context().unwrap());
            let (mut tx, mut rx) = (one.producer::<u64>(1).unwrap(), two.consumer::<u64>(1).unwrap());
            for what in asked {
                thread::sleep(LATER);
                match what {
                    End::Sends => tx.send(one.record(7).unwrap()).unwrap(),
                    End::Receives => drop(rx.recv().unwrap()),
                }
            }
        });
        ask.send(End::Sends).unwrap();
        assert_eq!(*rx.recv_timeout(LONG).unwrap(), 7);
        ask.send(End::Sends).unwrap();
        assert_eq!(*rx.recv_deadline(Instant::now() + LONG).unwrap(), 7);
        ask.send(End::Sends).unwrap();
        assert_eq!(alone.ready_timeout(LONG), Some(0));
        assert_eq!(*rx.recv().unwrap(), 7);
        ask.send(End::Receives).unwrap();
        tx.send_timeout(two.record(2).unwrap(), LONG).unwrap();
        ask.send(End::Receives).unwrap();
        assert_eq!(both.ready_timeout(LONG), Some(1));
        drop(ask);
    });
}

/// Waits for who has not come, and for memory.
fn others_wait(buffers: &[Buffer; 2], [one, two]: [&ThreadContext; 2]) {
    let rx = one.consumer::<u64>(2).unwrap();
    assert!(!lasts(|| rx.wait_for_producer(WAIT).is_ok()));
    assert!(!lasts(|| buffers[0].wait_for_channel(3, WAIT)).unwrap());
    let attach = |id| {
        let ctx = buffers[0].context().unwrap();
        let tx = ctx.producer::<u64>(id).unwrap();
        (tx, ctx)
    };
    assert!(meanwhile(|| attach(2), || rx.wait_for_producer(LONG).is_ok()));
    assert!(meanwhile(|| attach(3), || buffers[0].wait_for_channel(3, LONG)).unwrap());

    let all = two.slice_uninit::<u8>(MOST).unwrap();
    let refused = lasts(|| two.within(WAIT).slice_uninit::<u8>(MOST).map(drop));
    assert!(matches!(refused, Err(AllocError::OutOfMemory { .. })));
    meanwhile(|| drop(all), || two.within(LONG).slice_uninit::<u8>(MOST)).unwrap();
}

#[test]
fn the_wall_clock_jumps() {
    let _dog = watchdog();
    is_in_force();
    let names = [Name::new("clock-one"), Name::new("clock-two")];
    let buffers = names.each_ref().map(|name| Buffer::options().capacity(1 << 20).open(name).unwrap());
    let contexts = buffers.each_ref().map(|buffer| buffer.context().unwrap());
    // Hours forward and back; and ever farther back, which no jump makes up for.
    for ahead_s in [|jumps| [5 * HOUR_S, -5 * HOUR_S, 0][jumps as usize % 3], |jumps| -60 * jumps] {
        let (done, jumps) = (AtomicBool::new(false), AtomicI64::new(0));
        let jump = || {
            while !done.load(Ordering::SeqCst) {
                AHEAD_S.store(ahead_s(jumps.fetch_add(1, Ordering::SeqCst)), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(3));
            }
        };
        thread::scope(|scope| {
            scope.spawn(jump);
            let waits = std::panic::AssertUnwindSafe(|| {
                for strategy in [WaitStrategy::Spin, WaitStrategy::Adaptive, WaitStrategy::Block] {
                    ends_wait(&buffers, contexts.each_ref(), strategy);
                }
                others_wait(&buffers, contexts.each_ref());
            });
            let waited = std::panic::catch_unwind(waits);
            done.store(true, Ordering::SeqCst);
            waited.unwrap();
        });
        assert!(jumps.into_inner() > 10, "it jumped under them");
    }
    drop(contexts);
    for (buffer, name) in buffers.into_iter().zip(&names) {
        work::end(buffer, name);
    }
}
