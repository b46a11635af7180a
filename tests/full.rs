//! A process table full of the dead: who comes next must get in, and give back what they had.
#![allow(clippy::unwrap_used)]

mod common;

use common::Name;
use common::forked::Forked;
use ipc_buffer::{Buffer, OpenError};

const PROCESSES: i64 = 512;

#[test]
fn a_table_full_of_the_living_is_an_error() {
    let _dog = common::watchdog();
    let name = Name::new("full");
    let children: Vec<Forked> =
        (0..PROCESSES).map(|_| Forked::after(|| std::mem::forget(Buffer::open(&name).unwrap()))).collect();
    let error = Buffer::open(&name).unwrap_err();
    assert!(matches!(error, OpenError::TooManyProcesses { limit: 512, .. }), "{error}");
    drop(children);
    // All of them are dead now.
    let buffer = Buffer::open(&name).unwrap();
    common::all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

/// With records, roles and queued records; twice, so that a slot that was taken over is taken over again.
#[test]
fn what_the_dead_had_is_given_back() {
    let _dog = common::watchdog();
    let name = Name::new("adopt");
    for _ in 0..2 {
        let child = |i: i64| {
            Forked::after(|| {
                let Ok(buffer) = Buffer::open(&name) else { return };
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
    let buffer = Buffer::open(&name).unwrap();
    common::all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}
