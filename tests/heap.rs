//! The heap: any size in any order by anybody, checked against a naive twin, and every byte back at the end.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::Name;
use ipc_buffer::{AllocError, Buffer, Record, ThreadContext};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(50);

/// Bytes of memory that a segment has.
fn committed(name: &Name) -> u64 {
    std::fs::metadata(name.path()).unwrap().blocks() * 512
}

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

#[repr(C, align(4096))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Page([u8; 4096]);

/// A live record of one of several alignments.
enum Live {
    Bytes(Record<[u8]>),
    Words(Record<[u64]>),
    Lines(Record<[Line]>),
    Pages(Record<[Page]>),
}

impl Live {
    fn new(ctx: &ThreadContext, kind: u64, bytes: usize) -> Result<Self, AllocError> {
        Ok(match kind {
            0 => Self::Words(ctx.slice_uninit(bytes / 8)?.assume_init()),
            1 => Self::Lines(ctx.slice_uninit(bytes / 64)?.assume_init()),
            2 => Self::Pages(ctx.slice_uninit(bytes / 4096)?.assume_init()),
            _ => Self::Bytes(ctx.slice_uninit(bytes)?.assume_init()),
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Bytes(record) => record,
            Self::Words(record) => bytemuck::cast_slice_mut(record),
            Self::Lines(record) => bytemuck::cast_slice_mut(record),
            Self::Pages(record) => bytemuck::cast_slice_mut(record),
        }
    }
}

/// Random allocations and frees, with everything that lives written down: a block handed out twice, or one that reaches into
/// another, is seen by its contents. Ends with everything free, or holding what is left if `abandon`.
fn against_the_twin(
    ctx: &ThreadContext,
    seed: u64,
    operations: u64,
    most_bytes: usize,
    most_live: usize,
    abandon: bool,
) -> u64 {
    let mut rng = work::Rng::new(seed);
    let mut live: Vec<(u64, Live)> = Vec::new();
    // Where each live record lies: start and end of its payload.
    let mut twin: HashMap<u64, (usize, usize)> = HashMap::new();
    let mut refused = 0;
    for operation in 0..operations {
        let grow = live.len() < most_live && rng.below(100) < 55;
        if grow {
            let tag = seed << 32 | operation;
            match Live::new(ctx, rng.below(6), rng.size(1, most_bytes) - usize::from(rng.below(50) == 0)) {
                Ok(mut record) => {
                    let bytes = record.bytes();
                    work::fill(bytes, tag);
                    let place = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
                    if operation % 64 == 0 {
                        let overlaps = |other: &&(usize, usize)| place.0 < other.1 && other.0 < place.1;
                        assert_eq!(twin.values().find(overlaps), None, "{place:?} is handed out twice");
                    }
                    assert!(twin.insert(tag, place).is_none());
                    live.push((tag, record));
                }
                Err(AllocError::OutOfMemory { .. }) => {
                    refused += 1;
                    // Others may have it: make room ourselves.
                    for (tag, mut record) in live.drain(live.len() / 2..) {
                        work::check(record.bytes(), tag);
                        twin.remove(&tag);
                    }
                }
                Err(other) => panic!("{other}"),
            }
        } else if !live.is_empty() {
            let (tag, mut record) = live.swap_remove(rng.below(live.len() as u64) as usize);
            let bytes = record.bytes();
            let place = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
            assert_eq!(twin.remove(&tag), Some(place));
            work::check(bytes, tag);
        }
        if rng.below(5000) == 0 {
            ctx.flush();
        }
    }
    assert_eq!(live.len(), twin.len());
    for (tag, record) in &mut live {
        work::check(record.bytes(), *tag);
    }
    if abandon {
        std::mem::forget(live);
    }
    refused
}

#[test]
fn one_thread_against_the_twin() {
    let _dog = common::watchdog();
    let cases = [
        // capacity, largest record, most live
        (256 << 10, 100, 1500),
        (256 << 10, 4000, 1000),
        (256 << 10, 300_000, 30),
        (1 << 20, 70_000, 200),
        (16 << 20, 3 << 20, 100),
        (64 << 20, 6 << 20, 2000),
    ];
    for (case, (capacity, most_bytes, most_live)) in cases.into_iter().enumerate() {
        let name = Name::new("twin");
        let buffer = Buffer::options().capacity(capacity).open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        for round in 0..2 {
            against_the_twin(&ctx, case as u64 * 10 + round, 2500, most_bytes, most_live, false);
            common::all_free(&buffer);
        }
        // Nothing is so scattered that the whole is not to be had at once.
        drop(ctx.slice_uninit::<u8>(usize::try_from(capacity).unwrap() - 16).unwrap());
        drop(ctx);
        work::end(buffer, &name);
    }
}

#[test]
fn threads_against_the_twin() {
    let _dog = common::watchdog();
    for (capacity, most_bytes, most_live) in [(256 << 10, 2000, 200), (1 << 20, 80_000, 100), (16 << 20, 300_000, 1000)]
    {
        let name = Name::new("threads");
        let buffer = Buffer::options().capacity(capacity).open(&name).unwrap();
        for round in 0..2 {
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let buffer = &buffer;
                    scope.spawn(move || {
                        let ctx = buffer.context().unwrap();
                        against_the_twin(&ctx, round * 10 + thread, 700, most_bytes, most_live, false);
                    });
                }
            });
            common::all_free(&buffer);
        }
        work::end(buffer, &name);
    }
}

#[test]
fn processes_against_the_twin() {
    let _dog = common::watchdog();
    if let Some((role, buffer)) = common::role() {
        let buffer = Buffer::open(&buffer).unwrap();
        let seed = role.trim_end_matches('!').parse::<u64>().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (buffer, role) = (&buffer, &role);
                scope.spawn(move || {
                    let ctx = buffer.context().unwrap();
                    against_the_twin(&ctx, seed + thread, 1000, 60_000, 200, role.ends_with('!'));
                });
            }
        });
        return;
    }
    for (round, capacity) in [1 << 20, 4 << 20].into_iter().enumerate() {
        let name = Name::new("processes");
        let buffer = Buffer::options().capacity(capacity).open(&name).unwrap();
        // Half of them end without freeing what they have.
        let children: Vec<_> = ["100", "200!", "300!"]
            .map(|seed| common::start("processes_against_the_twin", seed, &name))
            .into_iter()
            .collect();
        let ctx = buffer.context().unwrap();
        against_the_twin(&ctx, round as u64, 1000, 60_000, 200, false);
        children.into_iter().for_each(common::Process::success);
        buffer.reap().unwrap();
        common::all_free(&buffer);
        drop(ctx.slice_uninit::<u8>(usize::try_from(capacity).unwrap() - 16).unwrap());
        drop(ctx);
        work::end(buffer, &name);
    }
}

#[test]
fn freed_in_another_process_than_allocated() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut rng = work::Rng::new(8);
        let mut kept = Vec::new();
        // In another order than they came, and not at once.
        for record in ctx.consumer::<[u8]>(1).unwrap() {
            kept.push(record);
            if kept.len() > 50 {
                drop(kept.swap_remove(rng.below(50) as usize));
            }
        }
        return;
    }
    let name = Name::new("remote");
    let buffer = Buffer::options().capacity(8 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<[u8]>(1, &ipc_buffer::ChannelOptions::new().capacity(64)).unwrap();
    let child = common::start("freed_in_another_process_than_allocated", "frees", &name);
    let mut rng = work::Rng::new(7);
    for _ in 0..50_000 {
        let bytes = rng.size(1, 20_000);
        tx.send(work::wait_for_memory(|| ctx.slice_uninit::<u8>(bytes)).assume_init()).unwrap();
    }
    drop(tx);
    child.success();
    common::all_free(&buffer);
    drop(ctx.slice_uninit::<u8>((8 << 20) - 16).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn a_million_in_random_order() {
    let _dog = common::watchdog();
    let name = Name::new("million");
    let buffer = Buffer::options().capacity(256 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rng = work::Rng::new(5);
    let mut live: Vec<Record<[u8]>> = Vec::new();
    let (mut made, mut bytes) = (0, 0);
    while made < 1_000_000 {
        // Up to half of the buffer.
        if bytes < 128 << 20 && rng.below(8) < 5 || live.is_empty() {
            let record = ctx.slice_uninit::<u8>(rng.size(16, 1 << 20)).unwrap().assume_init();
            (made, bytes) = (made + 1, bytes + record.len());
            live.push(record);
        } else {
            bytes -= live.swap_remove(rng.below(live.len() as u64) as usize).len();
        }
    }
    while !live.is_empty() {
        live.swap_remove(rng.below(live.len() as u64) as usize);
    }
    common::all_free(&buffer);
    // Every byte, in one piece.
    drop(ctx.slice_uninit::<u8>((256 << 20) - 16).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}

/// Allocates records of so many bytes until there is no more.
fn until_full(ctx: &ThreadContext, bytes: usize) -> Vec<Record<[u8]>> {
    let mut records = Vec::new();
    loop {
        match ctx.slice_uninit::<u8>(bytes) {
            Ok(record) => records.push(record.assume_init()),
            Err(AllocError::OutOfMemory { .. }) => return records,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn memory_moves_between_classes() {
    let _dog = common::watchdog();
    for capacity in [1 << 20, 24 << 20] {
        let name = Name::new("shift");
        let buffer = Buffer::options().capacity(capacity as u64).open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        for round in 0..2 {
            // Block sizes are multiples of 64: 64 bytes take 128 with the header.
            for (bytes, block) in [(64, 128), (4096, 4160), (48, 64), (1000, 1024 + 64)] {
                let records = until_full(&ctx, bytes);
                let used = records.len() * block;
                assert!(used * 10 >= capacity * 9, "round {round}: {used} of {capacity} bytes used by {bytes}");
                common::sound(&buffer);
                drop(records);
                common::all_free(&buffer);
            }
            drop(ctx.slice_uninit::<u8>(capacity / 10 * 9).unwrap());
        }
        drop(ctx);
        work::end(buffer, &name);
    }
}

#[test]
fn what_was_freed_is_used_before_new_memory() {
    let name = Name::new("reuse");
    let buffer = Buffer::options().capacity(32 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let make = || (0..60_000).map(|_| ctx.slice_uninit::<u8>(48).unwrap().assume_init()).collect::<Vec<_>>();
    drop(make());
    let after_one = committed(&name);
    for _ in 0..5 {
        drop(make());
    }
    let after_all = committed(&name);
    assert!(after_all <= after_one + (256 << 10), "{after_one} bytes after one round, {after_all} after six");
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn another_contexts_idle_cache() {
    let _dog = common::watchdog();
    let capacity = 1 << 20;
    // An idle context, in this process or another, caches blocks of two classes and never calls again.
    let idle = |buffer: &Buffer| {
        let ctx = buffer.context().unwrap();
        for bytes in [64, 1000] {
            drop(until_full(&ctx, bytes));
        }
        ctx
    };
    if let Some((_, buffer)) = common::role() {
        let buffer = Buffer::open(&buffer).unwrap();
        let ctx = idle(&buffer);
        let _ready = ctx.producer::<u8>(1).unwrap();
        loop {
            std::thread::park();
        }
    }
    let name = Name::new("idle");
    let buffer = Buffer::options().capacity(capacity as u64).open(&name).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let go = go;
        scope.spawn(|| {
            let ctx = idle(&buffer);
            ready.send(()).unwrap();
            // Ends when the other thread is done with it, be it by a panic.
            let _ = goes.into_iter().next();
            // What it cached is gone, and it goes on.
            assert_eq!(*ctx.record(5_u64).unwrap(), 5);
        });
        is_ready.recv().unwrap();
        let _other = common::start("another_contexts_idle_cache", "idle", &name);
        assert!(buffer.wait_for_channel(1, LONG).unwrap());
        let ctx = buffer.context().unwrap();
        assert!(common::sound(&buffer).cached_bytes > 0, "they cache something");
        // All but the other's channel (10 KiB) is to be had, in any size.
        for bytes in [64, 1000, 5000, 60_000] {
            let used: usize = until_full(&ctx, bytes).iter().map(|record| record.capacity_bytes() + 16).sum();
            assert!(used * 100 >= capacity * 85, "{used} of {capacity} bytes by records of {bytes}");
        }
        drop(go);
    });
    buffer.reap().unwrap();
    let ctx = buffer.context().unwrap();
    drop(ctx.slice_uninit::<u8>(capacity - 16).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn trim_returns_memory() {
    let name = Name::new("trim");
    let buffer = Buffer::options().capacity(256 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let before = committed(&name);
    assert!(before < 1 << 20, "a fresh buffer has {before} bytes");
    let kept = ctx.record(7_u64).unwrap();
    let large = ctx.slice_zeroed::<u8>(50 << 20).unwrap();
    let small: Vec<_> = (0..100_000).map(|_| ctx.record(0_u64).unwrap()).collect();
    let full = committed(&name);
    assert!(full > 56 << 20);
    drop((large, small));
    assert!(committed(&name) >= full, "kept for the next one");
    ctx.flush();
    let returned = buffer.trim().unwrap();
    let after = committed(&name);
    assert!(returned >= 55 << 20 && after + returned <= full + (1 << 20), "{full} - {returned} = {after}");
    // What is left: the kept record's slab, and the tables.
    assert!(after < 4 << 20, "{after}");
    assert_eq!(buffer.trim().unwrap(), 0);
    assert_eq!(*kept, 7);
    assert!(ctx.slice_zeroed::<u8>(50 << 20).unwrap().iter().step_by(4096).all(|byte| *byte == 0));
    drop((kept, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_fresh_buffer_costs_little() {
    for capacity in [256 << 10, 1 << 30, 64 << 30, 224 << 30] {
        let name = Name::new("fresh");
        let buffer = Buffer::options().capacity(capacity).open(&name).unwrap();
        assert_eq!(buffer.capacity(), capacity);
        assert!(committed(&name) < 1 << 20, "{} bytes of {capacity}", committed(&name));
        let ctx = buffer.context().unwrap();
        let record = ctx.slice_zeroed::<u8>(100_000).unwrap();
        assert!(committed(&name) < 2 << 20);
        drop((record, ctx));
        work::end(buffer, &name);
    }
}

#[test]
fn two_processes_fill_the_buffer_together() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let buffer = Buffer::open(&buffer).unwrap();
        let ctx = buffer.context().unwrap();
        let _here = ctx.producer::<u8>(1).unwrap();
        let mut rng = work::Rng::new(9);
        for _ in 0..20 {
            drop(until_full(&ctx, rng.size(16, 100_000)));
        }
        return;
    }
    let name = Name::new("together");
    let buffer = Buffer::options().capacity(2 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut child = common::start("two_processes_fill_the_buffer_together", "fills", &name);
    let mut rng = work::Rng::new(10);
    assert!(buffer.wait_for_channel(1, LONG).unwrap());
    while child.0.try_wait().unwrap().is_none() {
        drop(until_full(&ctx, rng.size(16, 100_000)));
    }
    child.success();
    common::all_free(&buffer);
    drop(ctx.slice_uninit::<u8>((2 << 20) - 16).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}
