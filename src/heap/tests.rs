//! What a refusal costs, in words of the segment looked at: what the last search has learned is believed until something has changed.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // a record of what a slot names

use crate::error::{AllocError, RecvError};
use crate::format::{CONTEXTS, Owner, Word, class, revoked};
use crate::heap::gate::settle_any;
use crate::heap::{block, depot, reclaim};
use crate::segment::arena::looks;
use crate::sync::Ordering;
use crate::{Buffer, Record, ThreadContext};

/// More than a refusal looks at when nothing has changed: a few words for each class and each context that there ever was, some of them
/// several times. None of it grows with the buffer.
const FEW: u64 = 3000;

fn buffer(tag: &str, mib: u64) -> Buffer {
    let name = format!("ipc-buffer-test-looks-{tag}-{mib}-{}", std::process::id());
    let buffer = Buffer::options().capacity(mib << 20).create_new(true).open(&name).unwrap();
    // Whatever becomes of the test.
    Buffer::unlink(&name).unwrap();
    buffer
}

fn is_refused(ctx: &ThreadContext, bytes: usize) -> bool {
    match ctx.slice_uninit::<u8>(bytes) {
        Ok(_) => false,
        Err(AllocError::OutOfMemory { .. }) => true,
        Err(other) => panic!("{other}"),
    }
}

/// Takes all there is: large records, then smaller ones.
fn fill(ctx: &ThreadContext) -> Vec<Record<[u8]>> {
    let sizes = [250_000, 60_000, 3000, 900, 100, 40];
    sizes
        .into_iter()
        .flat_map(|size| std::iter::from_fn(move || Some(ctx.slice_uninit::<u8>(size).ok()?.fill_with(|_| 1))))
        .collect()
}

/// How many words `work` looks at.
fn looked_at(work: impl FnOnce()) -> u64 {
    let before = looks::count();
    work();
    looks::count() - before
}

/// What each of some refusals looks at, once it is known that there is nothing.
fn refusals(ctx: &ThreadContext, bytes: usize) -> Vec<u64> {
    assert!(is_refused(ctx, bytes) && is_refused(ctx, bytes));
    (0..5).map(|_| looked_at(|| assert!(is_refused(ctx, bytes)))).collect()
}

#[test]
fn a_refusal_costs_the_same_whatever_the_capacity() {
    let cost = |mib| {
        let buffer = buffer("full", mib);
        let ctx = buffer.context().unwrap();
        let _all = fill(&ctx);
        [40, 100, 3000, 60_000, 250_000, 1_000_000].map(|bytes| refusals(&ctx, bytes))
    };
    let (small, large) = (cost(2), cost(32));
    assert!(small.iter().flatten().all(|looks| *looks < FEW), "{small:?}");
    assert_eq!(small, large);
}

#[test]
fn more_than_the_capacity_is_refused_at_once() {
    for mib in [2, 32] {
        let buffer = buffer("more", mib);
        let ctx = buffer.context().unwrap();
        let kept = ctx.record(1_u8).unwrap();
        for _ in 0..3 {
            let looks = looked_at(|| assert!(is_refused(&ctx, usize::try_from(mib << 20).unwrap())));
            assert!(looks < 200, "{looks} of {mib} MiB");
        }
        drop(kept);
    }
}

#[test]
fn a_class_that_fits_is_tried_before_the_heap_is_searched() {
    let cost = |mib: u64| {
        let buffer = buffer("half", mib);
        let ctx = buffer.context().unwrap();
        let mut all: Vec<_> = std::iter::from_fn(|| ctx.record([1_u8; 100]).ok()).collect();
        // Half of the memory is free, in blocks of 128 bytes, and no slab is empty.
        let mut number = 0;
        all.retain(|_| {
            number += 1;
            number % 2 == 0
        });
        // One that is near, one that is not, one that does not fit at all.
        let near = looked_at(|| (0..10).for_each(|_| drop(ctx.record([1_u8; 40]).unwrap())));
        let none = refusals(&ctx, 3000);
        (near, none)
    };
    let (small, large) = (cost(2), cost(32));
    assert!(small.0 < 10 * FEW && large.0 < 10 * FEW, "{small:?} and {large:?}");
    assert!(large.1.iter().chain(&small.1).all(|looks| *looks < FEW), "{small:?} and {large:?}");
    assert_eq!(small.1, large.1);
}

#[test]
fn a_class_far_larger_is_taken_again_without_a_search() {
    let buffer = buffer("far", 8);
    let ctx = buffer.context().unwrap();
    // Free blocks of 3,000 bytes only, none of whose slabs is empty.
    let mut all: Vec<_> = std::iter::from_fn(|| Some(ctx.slice_uninit::<u8>(3000).ok()?.fill_with(|_| 1))).collect();
    let mut number = 0;
    all.retain(|_| {
        number += 1;
        number % 5 != 0
    });
    drop(ctx.slice_uninit::<u8>(40).unwrap());
    let again = looked_at(|| (0..10).for_each(|_| drop(ctx.slice_uninit::<u8>(40).unwrap())));
    assert!(again < 10 * FEW, "{again}");
    drop(all);
}

#[test]
fn what_has_changed_is_found() {
    let buffer = buffer("changed", 4);
    let ctx = buffer.context().unwrap();
    let mut all: Vec<_> = (0..5).map(|_| ctx.slice_uninit::<u8>(100).unwrap().fill_with(|_| 1)).collect();
    all.extend(fill(&ctx));
    assert!(refusals(&ctx, 100).iter().all(|looks| *looks < FEW));

    // Another context's frees, when they have reached the depot.
    let of_100 = all.iter().position(|record| record.len() == 100).unwrap();
    let record = all.swap_remove(of_100);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            drop(record);
            ctx.flush();
        });
    });
    all.push(ctx.slice_uninit::<u8>(100).unwrap().fill_with(|_| 1));
    assert!(refusals(&ctx, 100).iter().all(|looks| *looks < FEW));

    // Whole units.
    let large = all.iter().position(|record| record.len() == 250_000).unwrap();
    let record = all.swap_remove(large);
    let freed = std::thread::scope(|scope| scope.spawn(|| drop(record)).join());
    freed.unwrap();
    all.push(ctx.slice_uninit::<u8>(100).unwrap().fill_with(|_| 1));
    all.extend(fill(&ctx));
    assert!(refusals(&ctx, 100).iter().all(|looks| *looks < FEW));

    // Another context's free that stays in its cache, once enough time has passed since that was looked into in vain.
    let of_100 = all.iter().position(|record| record.len() == 100).unwrap();
    let record = all.swap_remove(of_100);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let go = go;
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            drop(record);
            ready.send(()).unwrap();
            let _ = goes.into_iter().next();
            drop(ctx);
        });
        is_ready.recv().unwrap();
        let found = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            ctx.slice_uninit::<u8>(100).ok()
        });
        all.push(found.expect("the idle cache has it").fill_with(|_| 1));
        assert!(is_refused(&ctx, 100));
        // What a theft has emptied is not looked into again.
        assert!(refusals(&ctx, 100).iter().all(|looks| *looks < FEW));
        drop(go);
    });

    // A block that no magazine had room for.
    let of_100 = all.iter().position(|record| record.len() == 100).unwrap();
    let record = all.swap_remove(of_100);
    let arena = *ctx.local.cache().arena();
    let granule = arena.extent().granule(record[..].as_ptr().addr()).unwrap();
    let handle = block::around(&arena, granule).unwrap();
    std::mem::forget(record);
    block::loosen(&arena, arena.block(handle.granule()).unwrap());
    all.push(ctx.slice_uninit::<u8>(100).unwrap().fill_with(|_| 1));
    assert!(refusals(&ctx, 100).iter().all(|looks| *looks < FEW));
}

/// A foreign hand has raised every frontier, or noted nonsense where hints are kept: walks stay inside the tables, and end.
#[test]
fn no_walk_goes_beyond_the_tables() {
    for word in [u32::MAX, u32::MAX / 2, 1 << 31] {
        let buffer = buffer("beyond", 2);
        let ctx = buffer.context().unwrap();
        let kept = ctx.record(1_u64).unwrap();
        let arena = *ctx.local.cache().arena();
        let header = arena.header();
        for top in [&header.magazine_top, &header.unit_top, &header.directory_top, &header.context_top] {
            top.store(word, Ordering::Relaxed);
        }
        header.unit_cursor.store(word, Ordering::Relaxed);
        header.magazines_due.store(word, Ordering::Relaxed);
        for recent in &header.recent {
            recent.word.store(u64::from(word) << 32 | u64::from(word), Ordering::Relaxed);
            recent.put.store(word.into(), Ordering::Relaxed);
        }
        let limit = 8 * u64::from(arena.geometry().magazines + arena.geometry().units + crate::format::CHANNELS);
        let looks = looked_at(|| {
            buffer.stats().unwrap();
            buffer.audit().unwrap();
            buffer.reap().unwrap();
            buffer.trim().unwrap();
            buffer.channels().unwrap();
            drop(ctx.slice_uninit::<u8>(100_000));
            assert!(is_refused(&ctx, 2 << 20));
        });
        assert!(looks < 50 * limit, "{looks}");
        drop(kept);
    }
}

/// What a slot names is taken for a record only if a block starts there, of the class that its header says: a foreign hand may have written
/// the slot, the header, and the payload that stands where a header would.
#[test]
fn only_a_block_is_a_record() {
    let buffer = buffer("blocks", 2);
    let ctx = buffer.context().unwrap();
    let cache = ctx.local.cache();
    let arena = *cache.arena();
    let granule_of = |address: usize| arena.extent().granule(address).unwrap();
    let take = |granule: u32| {
        let mut is_taken = false;
        // SAFETY: what is found is forgotten at once, so that no block is freed twice; it stays where it is.
        let found =
            unsafe { Record::<u64>::from_block(cache, granule, arena.start(granule).unwrap(), || is_taken = true) };
        assert_eq!(found.is_some(), is_taken);
        found.map(std::mem::forget).is_some()
    };
    let meta = |class: usize| block::Meta { class: class::index(class), offset: 16, count: 1 }.pack();

    // A real one, as it is, and with a header that says another class, smaller or larger.
    let real = ctx.record(7_u64).unwrap();
    let granule = granule_of(std::ptr::from_ref(&*real).addr());
    let header = arena.block(granule).unwrap();
    let word = meta(0);
    header.meta.store(word, Ordering::Relaxed);
    assert!(take(granule));
    for class in 1..crate::format::class::COUNT {
        header.meta.store(meta(class), Ordering::Relaxed);
        assert!(!take(granule), "class {class} in a slab of class 0");
    }
    header.meta.store(word, Ordering::Relaxed);

    // Every granule of a larger block but its first, whatever header stands there.
    let large = ctx.slice_zeroed::<u8>(900).unwrap();
    let first = granule_of(large[..].as_ptr().addr());
    let (class, size) = (
        crate::format::class::for_bytes(900).unwrap(),
        block::small_bytes(class::index(crate::format::class::for_bytes(900).unwrap())) / 64,
    );
    for granule in (first + 1)..(first + u32::try_from(size).unwrap()) {
        for class in [0, class] {
            let header = arena.block(granule).unwrap();
            header.state.store(cache.owned().0, Ordering::Relaxed);
            header.meta.store(meta(class), Ordering::Relaxed);
            assert!(!take(granule), "granule {granule} of the block at {first}, said to be of class {class}");
        }
    }
    // The same by the short way, where the compiler knows the class.
    let record = ctx.record([7_u64; 110]).unwrap();
    let first = granule_of(std::ptr::from_ref(&*record).addr());
    let class = crate::format::class::for_bytes(880).unwrap();
    for granule in first..(first + crate::format::class::granules(class)) {
        let header = arena.block(granule).unwrap();
        header.meta.store(meta(class), Ordering::Relaxed);
        // SAFETY: as above.
        let found = unsafe { Record::<[u64; 110]>::from_block(cache, granule, arena.start(granule).unwrap(), || ()) };
        assert_eq!(
            found.map(std::mem::forget).is_some(),
            granule == first,
            "granule {granule} of the block at {first}"
        );
    }
    drop(record);
    // Nor anything in units that are nobody's, or a large record's.
    let run = ctx.slice_zeroed::<u8>(300_000).unwrap();
    let inside = granule_of(run[..].as_ptr().addr()) + 5;
    let header = arena.block(inside).unwrap();
    header.state.store(cache.owned().0, Ordering::Relaxed);
    header.meta.store(meta(0), Ordering::Relaxed);
    assert!(!take(inside));
    drop((real, large, run));
}

/// No two thefts leave the same word in a context's slot, be they ended by the thief or by who finds it dead: an owner that has looked
/// what it still holds after one must look again after the next.
#[test]
fn thefts_are_numbered() {
    let buffer = buffer("thefts", 2);
    let ctx = buffer.context().unwrap();
    let cache = ctx.local.cache();
    let arena = *cache.arena();
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (go, goes) = std::sync::mpsc::channel::<()>();
        let buffer = &buffer;
        scope.spawn(move || {
            let ctx = buffer.context().unwrap();
            drop((0..5).map(|_| ctx.slice_zeroed::<u8>(900).unwrap()).collect::<Vec<_>>());
            ready.send(ctx.local.cache().holder().owner().index()).unwrap();
            let _ = goes.into_iter().next();
            // It finds its way back in.
            drop(ctx.slice_zeroed::<u8>(900).unwrap());
        });
        let slot = arena.context(is_ready.recv().unwrap()).unwrap();
        let mut seen = std::collections::HashSet::new();
        let mut note = || assert!(seen.insert(slot.revoked.load(Ordering::Relaxed)), "{seen:x?}");
        assert!(reclaim::revoke_idle(cache, &mut || true) >= 2, "its magazines and its spare");
        note();
        assert_eq!(reclaim::revoke_idle(cache, &mut || true), 0, "it is known to have nothing");
        for _ in 0..3 {
            // Cut short, and ended by another.
            let gone = crate::format::Owner::new(400, 1);
            slot.thefts.fetch_add(1, Ordering::Relaxed);
            slot.revoked.store(Word::of(revoked::EMPTIED, gone).0, Ordering::Relaxed);
            settle_any(&arena, slot);
            note();
            let before = slot.thefts.load(Ordering::Relaxed);
            reclaim::revoke_idle(cache, &mut || true);
            note();
            assert_ne!(slot.thefts.load(Ordering::Relaxed), before, "cut short, it would be told from the last one");
        }
        drop(go);
    });
}

/// A free that finds no room in any magazine leaves its block `LOOSE`: a record no longer, so that it keeps nobody attached.
#[test]
fn what_no_magazine_has_room_for_is_no_record() {
    let buffer = buffer("loose", 2);
    let name = buffer.name().to_owned();
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&name);
    let ctx = buffer.context().unwrap();
    let arena = *ctx.local.cache().arena();
    let all = fill(&ctx);
    // All that are empty are somebody else's meanwhile.
    let held = Word::of(depot::HELD, Owner::new(CONTEXTS - 1, 1));
    let taken: Vec<u32> =
        (0..arena.magazine_top()).filter(|index| depot::claim(&arena, *index, Word::ZERO, held)).collect();
    assert!(!taken.is_empty());
    drop(all);
    let loosened = arena.header().loosened.load(Ordering::Relaxed);
    assert!(loosened > 0);
    for index in taken {
        arena.magazine(index).unwrap().holder.store(0, Ordering::Release);
    }
    buffer.trim().unwrap();
    assert!(buffer.audit().unwrap().is_all_free());
    drop(ctx);
    assert!(is_mapped());
    drop(buffer);
    assert!(!is_mapped(), "{loosened} blocks were loose, and no record is left");
}

/// A queued block's header says whose it is, or the channel's. What says anything else is not taken, whatever the slot names: a
/// foreign hand has written one of them.
#[test]
fn what_says_that_it_is_not_queued_is_not_received() {
    let buffer = buffer("unqueued", 2);
    let ctx = buffer.context().unwrap();
    let arena = *ctx.local.cache().arena();
    let (mut tx, mut rx) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(1).unwrap());
    for kind in [block::state::FREE, block::state::STORAGE, block::state::LOOSE] {
        let record = ctx.record(7_u64).unwrap();
        let granule = arena.extent().granule(std::ptr::from_ref(&*record).addr()).unwrap();
        tx.send(record).unwrap();
        let state = &arena.block(granule).unwrap().state;
        let was = state.swap(Word::number(kind, 0).0, Ordering::Relaxed);
        assert_eq!(rx.try_recv().unwrap_err(), RecvError::Corrupted.into(), "state {kind}");
        assert_eq!(Word(state.load(Ordering::Relaxed)).kind(), kind, "left as it was");
        state.store(was, Ordering::Relaxed);
    }
    tx.send(ctx.record(8_u64).unwrap()).unwrap();
    assert_eq!(*rx.recv().unwrap(), 8);
}
