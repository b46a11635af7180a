//! Races and edges found by review.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
#![allow(clippy::cast_possible_truncation)]
mod common;
#[path = "common/scenarios.rs"]
mod scenarios;
use common::Name;
use common::forked::{Forked, die};
use ipc_buffer::{Buffer, ChannelOptions};
use scenarios::Scenario;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SCENARIOS: &[(&str, Scenario)] = &[
    ("two_threads_reap_at_once", two_threads_reap_at_once),
    ("last_hold_goes_while_records_go", last_hold_goes_while_records_go),
    ("a_producer_leaves_while_its_records_come_back", a_producer_leaves_while_its_records_come_back),
    (
        "a_run_that_says_it_is_longer_than_the_buffer_is_refused",
        a_run_that_says_it_is_longer_than_the_buffer_is_refused,
    ),
    ("an_audit_under_traffic_does_not_panic", an_audit_under_traffic_does_not_panic),
    ("a_forked_child_gets_no_memory", a_forked_child_gets_no_memory),
    ("a_dead_producers_role_is_free_while_somebody_reaps", a_dead_producers_role_is_free_while_somebody_reaps),
    ("a_role_that_could_not_be_given_up_is_reaped", a_role_that_could_not_be_given_up_is_reaped),
    ("a_fork_from_a_late_destructor_is_seen", a_fork_from_a_late_destructor_is_seen),
    ("a_long_channel_is_made_beside_others", a_long_channel_is_made_beside_others),
];

fn main() {
    scenarios::main("races", SCENARIOS)
}

fn two_threads_reap_at_once(name: &Name) {
    let buffer = Buffer::options().capacity(64 << 20).open(name).unwrap();
    for round in 0..if cfg!(debug_assertions) { 40 } else { 200 } {
        Forked::killed_after(|| {
            let b = Buffer::open(name).unwrap();
            let full = Barrier::new(25);
            std::thread::scope(|s| {
                for _ in 0..24 {
                    s.spawn(|| {
                        let ctx = b.context().unwrap();
                        let mut all = Vec::new();
                        for size in [8_usize, 64, 128, 200, 300, 400, 500, 700, 900, 1000] {
                            for _ in 0..100 {
                                all.push(ctx.slice_uninit::<u8>(size).unwrap());
                            }
                        }
                        drop(all);
                        full.wait();
                        loop {
                            std::thread::park()
                        }
                    });
                }
                let ctx = b.context().unwrap();
                full.wait();
                let kept: Vec<_> = (0..3).map(|_| ctx.slice_zeroed::<u8>(300_000).unwrap()).collect();
                std::mem::forget(kept);
                die();
            });
        });
        let go = Barrier::new(6);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            let reapers: Vec<_> = (0..4)
                .map(|_| {
                    s.spawn(|| {
                        go.wait();
                        buffer.reap().unwrap();
                    })
                })
                .collect();
            for t in 0..2_u64 {
                let (go, stop, buffer) = (&go, &stop, &buffer);
                s.spawn(move || {
                    let ctx = buffer.context().unwrap();
                    go.wait();
                    let mut i = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let mine: Vec<_> = (0..200).map(|k| ctx.record([t << 32 | i << 8 | k; 8]).unwrap()).collect();
                        for (k, r) in mine.iter().enumerate() {
                            assert_eq!(
                                **r,
                                [t << 32 | i << 8 | k as u64; 8],
                                "somebody else has this block, round {round}"
                            );
                        }
                        i += 1;
                    }
                });
            }
            for r in reapers {
                r.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        common::all_free(&buffer);
    }
}

fn last_hold_goes_while_records_go(name: &Name) {
    for _ in 0..2000 {
        let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
        let ctx = buffer.context().unwrap();
        let one = ctx.record(1_u64).unwrap();
        let two = ctx.record(2_u64).unwrap();
        drop(ctx);
        let go = Barrier::new(2);
        std::thread::scope(|s| {
            let go = &go;
            s.spawn(move || {
                go.wait();
                drop(one);
            });
            s.spawn(move || {
                go.wait();
                drop(buffer);
            });
        });
        assert!(name.exists(), "detached while a record is left");
        assert_eq!(*two, 2);
        drop(two);
        assert!(!name.exists());
    }
}

fn a_producer_leaves_while_its_records_come_back(name: &Name) {
    let buffer = Buffer::options().capacity(16 << 20).open(name).unwrap();
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let b = Buffer::open(name).unwrap();
        let ctx = b.context().unwrap();
        let mut back = ctx.producer::<u64>(1).unwrap();
        let mut there = ctx.consumer::<u64>(0).unwrap();
        loop {
            if let Ok(r) = there.try_recv() {
                back.send(r).unwrap();
            }
        }
    }
    let start = std::time::Instant::now();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let back = s.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer::<u64>(1).unwrap();
            let mut kept = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Ok(r) = rx.try_recv() {
                    kept.push(r);
                }
                if kept.len() >= 5000 {
                    let audit = buffer.audit().unwrap();
                    let bad: Vec<_> = audit.problems.iter().filter(|p| p.contains("state 2")).collect();
                    if !bad.is_empty() {
                        done.store(true, Ordering::Relaxed);
                        panic!("{bad:?}");
                    }
                    kept.clear();
                }
            }
        });
        let ctx = buffer.context().unwrap();
        while start.elapsed().as_secs() < 5 && !done.load(Ordering::Relaxed) {
            let Ok(mut tx) = ctx.producer::<u64>(0) else { continue };
            for i in 0..600 {
                if tx.send(ctx.record(i).unwrap()).is_err() {
                    break;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        unsafe { libc::kill(pid, libc::SIGKILL) };
        unsafe { libc::waitpid(pid, &mut 0, 0) };
        back.join().unwrap();
    });
}

fn a_run_that_says_it_is_longer_than_the_buffer_is_refused(name: &Name) {
    let buffer = Buffer::options().capacity(1 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<[u8]>(1).unwrap();
    let mut rx = ctx.consumer::<[u8]>(1).unwrap();
    tx.send(ctx.slice_zeroed::<u8>(300_000).unwrap()).unwrap();
    // The foreign hand: every RUN word gets a span of 2^20 units, every large count 2^33 bytes.
    let path = name.path();
    let mut bytes = std::fs::read(&path).unwrap();
    let file = std::os::unix::fs::FileExt::write_all_at;
    let out = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = u64::from_ne_bytes((&*word).try_into().unwrap());
        if value == 0x4800_0000_0000_0005 {
            file(&out, &0x4800_0000_0010_0000_u64.to_ne_bytes(), i as u64 * 8).unwrap();
        }
        if value == 0xff << 52 | 1 << 40 | 300_000 {
            file(&out, &(0xff_u64 << 52 | 1 << 40 | 1 << 33).to_ne_bytes(), i as u64 * 8).unwrap();
        }
    }
    match rx.try_recv() {
        Ok(r) => panic!("{} bytes, the last {}", r.len(), r[r.len() - 1]),
        Err(e) => assert_eq!(e, ipc_buffer::TryRecvError::Recv(ipc_buffer::RecvError::Corrupted)),
    }
    let _ = buffer.audit().unwrap();
}

fn an_audit_under_traffic_does_not_panic(name: &Name) {
    let buffer = Buffer::options().capacity(16 << 20).open(name).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let ctx = buffer.context().unwrap();
            while !stop.load(Ordering::Relaxed) {
                drop(ctx.slice_uninit::<u8>(14 << 20).unwrap());
            }
        });
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..20000 {
                let a = buffer.audit().unwrap();
                assert!(a.free_bytes <= 2 * a.capacity_bytes, "{}", a.free_bytes);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        r.unwrap();
    });
}

fn a_forked_child_gets_no_memory(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    drop(ctx.record(1_u64).unwrap());
    ctx.flush();
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused = matches!(ctx.record(2_u64), Err(ipc_buffer::AllocError::Forked));
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    let mut status = 0;
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0);
}

fn a_dead_producers_role_is_free_while_somebody_reaps(name: &Name) {
    let buffer = Buffer::options().capacity(16 << 20).open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let _rx = ctx.consumer::<u64>(1).unwrap();
    for round in 0..300 {
        Forked::killed_after(|| {
            let b = Buffer::open(name).unwrap();
            let ctx = b.context().unwrap();
            let _tx = ctx.producer::<u64>(1).unwrap();
            die();
        });
        let go = Barrier::new(2);
        std::thread::scope(|s| {
            s.spawn(|| {
                go.wait();
                buffer.reap().unwrap();
            });
            go.wait();
            let tx = ctx.producer::<u64>(1);
            assert!(tx.is_ok(), "round {round}: {}", tx.unwrap_err());
        });
    }
}

fn a_role_that_could_not_be_given_up_is_reaped(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let _rx = ctx.consumer::<u64>(1).unwrap();
    // Another description holds the control byte, as a process stopped inside the lock does.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(name.path()).unwrap();
    let (mut to, mut from) = ([0; 2], [0; 2]);
    unsafe {
        libc::pipe(to.as_mut_ptr());
        libc::pipe(from.as_mut_ptr());
    }
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let b = Buffer::open(name).unwrap();
        let ctx = b.context().unwrap();
        let tx = ctx.producer::<u64>(1).unwrap();
        unsafe {
            libc::write(from[1], b"x".as_ptr().cast(), 1);
        }
        unsafe {
            libc::read(to[0], [0_u8; 1].as_mut_ptr().cast(), 1);
        }
        drop(tx);
        unsafe {
            libc::write(from[1], b"x".as_ptr().cast(), 1);
        }
        unsafe {
            libc::read(to[0], [0_u8; 1].as_mut_ptr().cast(), 1);
        }
        drop((ctx, b));
        unsafe { libc::_exit(0) };
    }
    let lock = |kind: i32| {
        let mut l: libc::flock64 = unsafe { std::mem::zeroed() };
        l.l_type = kind as i16;
        l.l_len = 1;
        assert_eq!(unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_OFD_SETLK, &mut l) }, 0);
    };
    let step = || unsafe { libc::read(from[0], [0_u8; 1].as_mut_ptr().cast(), 1) };
    let go = || unsafe { libc::write(to[1], b"x".as_ptr().cast(), 1) };
    step();
    lock(libc::F_WRLCK);
    go();
    step();
    lock(libc::F_UNLCK);
    go();
    unsafe { libc::waitpid(pid, &mut 0, 0) };
    let tx = ctx.producer::<u64>(1);
    assert!(tx.is_ok(), "{}", tx.unwrap_err());
}

fn a_fork_from_a_late_destructor_is_seen(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    static OK: AtomicBool = AtomicBool::new(false);
    extern "C" fn late(arg: *mut libc::c_void) {
        let buffer = unsafe { &*arg.cast::<Buffer>() };
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let refused = matches!(buffer.audit(), Err(ipc_buffer::BufferError::Forked));
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        let mut status = 0;
        unsafe { libc::waitpid(pid, &mut status, 0) };
        OK.store(status == 0, Ordering::Relaxed);
    }
    // A C key's destructor runs after Rust's thread-locals are gone.
    let mut key = 0;
    unsafe { libc::pthread_key_create(&mut key, Some(late)) };
    let at = std::ptr::from_ref(&buffer) as usize;
    std::thread::spawn(move || {
        // Another fork first, so that the thread-local has been made, and is gone by then.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            unsafe { libc::_exit(0) }
        }
        unsafe { libc::waitpid(pid, &mut 0, 0) };
        unsafe { libc::pthread_setspecific(key, at as *const _) };
    })
    .join()
    .unwrap();
    assert!(OK.load(Ordering::Relaxed));
}

/// Clearing 128 MiB of slots takes a tenth of a second and more: nobody's business but of who makes the channel. Another waits for a small
/// part of that, in one of a few tries at least, whatever else the machine does.
fn a_long_channel_is_made_beside_others(name: &Name) {
    let buffer = Buffer::options().capacity(256 << 20).open(name).unwrap();
    let long = ChannelOptions::new().capacity(1 << 24);
    let is_made = AtomicBool::new(false);
    let mut parts = Vec::new();
    for _ in 0..10 {
        is_made.store(false, Ordering::Relaxed);
        let part = std::thread::scope(|s| {
            let makes = s.spawn(|| {
                let ctx = buffer.context().unwrap();
                let start = Instant::now();
                let tx = ctx.producer_with::<u64>(1, &long).unwrap();
                is_made.store(true, Ordering::Relaxed);
                drop(tx);
                start.elapsed()
            });
            let ctx = buffer.context().unwrap();
            let mut longest = Duration::ZERO;
            while !is_made.load(Ordering::Relaxed) {
                let start = Instant::now();
                drop(ctx.producer::<u64>(2).unwrap());
                longest = longest.max(start.elapsed());
            }
            longest.as_secs_f64() / makes.join().unwrap().as_secs_f64()
        });
        parts.push(part);
    }
    assert!(parts.iter().any(|part| *part < 0.2), "{parts:.2?} of the time that it takes to make it");
    common::all_free(&buffer);
}
