//! A process table full of the dead: who comes next must get in, and give back what they had.
//!
//! No harness: see `common/scenarios.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // a byte lock

mod common;
#[path = "common/scenarios.rs"]
mod scenarios;

use common::Name;
use common::forked::Forked;
use ipc_buffer::{Buffer, OpenError};
use scenarios::Scenario;
use std::os::fd::AsRawFd;

const PROCESSES: i64 = 512;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a_table_full_of_the_living_is_an_error", a_table_full_of_the_living_is_an_error),
    ("what_the_dead_had_is_given_back", what_the_dead_had_is_given_back),
    ("who_takes_over_a_dead_ones_name_is_alive", who_takes_over_a_dead_ones_name_is_alive),
];

fn main() {
    scenarios::main("full", SCENARIOS)
}

fn a_table_full_of_the_living_is_an_error(name: &Name) {
    let children: Vec<Forked> =
        (0..PROCESSES).map(|_| Forked::after(|| std::mem::forget(Buffer::open(name).unwrap()))).collect();
    let error = Buffer::open(name).unwrap_err();
    assert!(matches!(error, OpenError::TooManyProcesses { limit: 512, .. }), "{error}");
    drop(children);
    // All of them are dead now.
    let buffer = Buffer::open(name).unwrap();
    common::all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

/// With records, roles and queued records; twice, so that a slot that was taken over is taken over again.
fn what_the_dead_had_is_given_back(name: &Name) {
    for _ in 0..2 {
        let child = |i: i64| {
            Forked::after(|| {
                let Ok(buffer) = Buffer::open(name) else { return };
                if i % 5 == 0 {
                    let ctx = buffer.context().unwrap();
                    let mut tx = ctx.producer::<u64>(i).unwrap();
                    tx.send(ctx.record(1_u64).unwrap()).unwrap();
                    std::mem::forget((ctx.record(2_u64), ctx.slice_zeroed::<u8>(300_000), tx, ctx));
                }
                std::mem::forget(buffer);
            })
        };
        drop((0..PROCESSES).map(child).collect::<Vec<_>>());
    }
    let buffer = Buffer::open(name).unwrap();
    common::all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

/// Symptom, were it so: a peer that was seen dead stays dead for the one at the other end, though somebody has its place, and its name.
fn who_takes_over_a_dead_ones_name_is_alive(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    // The first in the table but for this one.
    let dead = Forked::after(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        std::mem::forget((ctx.producer::<u64>(1).unwrap(), ctx));
    });
    let others: Vec<Forked> =
        (2..PROCESSES).map(|_| Forked::after(|| std::mem::forget(Buffer::open(name).unwrap()))).collect();
    // Nobody reaps meanwhile.
    let file = std::fs::File::options().read(true).write(true).open(name.path()).unwrap();
    // SAFETY: plain integers; zeroes are valid.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_start, lock.l_len) = (libc::F_WRLCK.try_into().unwrap(), 1, 1);
    // SAFETY: an open descriptor and a lock that lives as long as the call.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }, 0);
    drop((dead, others));
    assert!(!rx.has_producer());
    // Not with the file: another test's children may have inherited that.
    lock.l_type = libc::F_UNLCK.try_into().unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }, 0);
    let heir = Forked::after(|| {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        let mut tx = ctx.producer::<u64>(1).unwrap();
        tx.send(ctx.record(7).unwrap()).unwrap();
        std::mem::forget((tx, ctx));
    });
    assert!(rx.has_producer());
    assert_eq!(*rx.recv().unwrap(), 7);
    assert!(rx.try_recv().is_err_and(|error| error == ipc_buffer::TryRecvError::Empty));
    drop(heir);
    while rx.has_producer() {}
}
