//! Records: every way to make one, every size and alignment, every place to drop one.
#![allow(clippy::modulo_one)]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use bytemuck::{Pod, Zeroable};
use common::Name;
use ipc_buffer::{AllocError, AttachError, Buffer, Record, ThreadContext, TrySendError};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

const MIB: usize = 1 << 20;

#[test]
fn every_way_to_make_one() {
    let name = Name::new("ways");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    assert_eq!(*ctx.record(0x0123_4567_89ab_cdef_u64).unwrap(), 0x0123_4567_89ab_cdef);
    assert_eq!(*ctx.uninit::<[u16; 3]>().unwrap().write([1, 2, 3]), [1, 2, 3]);
    assert_eq!(&*ctx.slice_from(&[1.5_f32, -2.5]).unwrap(), [1.5, -2.5]);
    assert_eq!(&*ctx.slice_uninit::<u32>(3).unwrap().copy_from_slice(&[7, 8, 9]), [7, 8, 9]);
    assert_eq!(&*ctx.slice_uninit::<u32>(3).unwrap().fill_with(|i| i as u32 * 5), [0, 5, 10]);
    let mut raw = ctx.slice_uninit::<u8>(5).unwrap();
    raw.as_mut().copy_from_slice(b"later");
    assert_eq!(&*raw.assume_init(), b"later");
    let mut raw = ctx.uninit::<u32>().unwrap();
    *raw.as_mut() = 5;
    let mut record = raw.assume_init();
    *record += 1;
    *record.as_mut() *= 2;
    assert_eq!((*record, record.as_ref(), format!("{record:?}")), (12, &12, "12".into()));
    assert!(record == ctx.record(12).unwrap() && record != ctx.record(13).unwrap());
    drop(record);
    drop(ctx.uninit::<u64>().unwrap());
    drop(ctx.slice_uninit::<u64>(1000).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn zeroed_is_zero_where_something_was_before() {
    let name = Name::new("zeroed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    // The free block used last is used next, so each of these lands on the dirt.
    let dirt = ctx.record([0xff_u8; 2048]).unwrap();
    let address = dirt.as_ptr();
    drop(dirt);
    let clean = ctx.zeroed::<[u8; 2048]>().unwrap();
    assert_eq!(clean.as_ptr(), address);
    assert!(clean.iter().all(|byte| *byte == 0));
    drop(clean);
    drop(ctx.record([0xff_u8; 2048]).unwrap());
    let clean = ctx.slice_zeroed::<u64>(256).unwrap();
    assert_eq!(clean.as_ptr().cast(), address);
    assert!(clean.iter().all(|word| *word == 0));
    drop((clean, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_panic_while_filling_frees_the_block() {
    let name = Name::new("panic");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let lengths = AssertUnwindSafe(|| ctx.slice_uninit::<u8>(3).unwrap().copy_from_slice(b"four"));
    assert!(catch_unwind(lengths).is_err());
    let midway = |i| if i == 2 { panic!("midway") } else { 0_u8 };
    assert!(catch_unwind(AssertUnwindSafe(|| ctx.slice_uninit::<u8>(3).unwrap().fill_with(midway))).is_err());
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn nothing_can_be_a_record() {
    #[repr(C, align(1024))]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct Nothing;

    let name = Name::new("nothing");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let unit = ctx.record(()).unwrap();
    let (one, two) = (ctx.slice_from::<u64>(&[]).unwrap(), ctx.slice_zeroed::<u64>(0).unwrap());
    assert!(one.is_empty() && two.is_empty());
    assert_ne!(one.as_ptr(), two.as_ptr(), "each has a block of its own");
    assert!(ctx.slice_uninit::<[u64; 0]>(3).unwrap().assume_init().len() == 3);
    let far = ctx.record(Nothing).unwrap();
    assert_eq!(std::ptr::from_ref(&*far).addr() % 1024, 0);
    // Length costs nothing where elements have no size, up to what a header can say.
    const MOST: usize = (1 << 40) - 1;
    assert_eq!(ctx.slice_uninit::<()>(MOST).unwrap().assume_init().len(), MOST);
    assert_eq!(ctx.slice_zeroed::<()>(MOST).unwrap().len(), MOST);
    let mut many = ctx.slice_from(&[(); MOST]).unwrap();
    many.truncate(MOST - 1);
    assert_eq!(many.len(), MOST - 1);
    for count in [MOST + 1, usize::MAX] {
        let error = ctx.slice_uninit::<()>(count).unwrap_err();
        assert_eq!(error, AllocError::LengthOverflow { count, element: 0 });
    }
    assert_eq!(common::sound(&buffer).owned[0].records, 5);
    drop((unit, one, two, far, many, ctx));
    work::end(buffer, &name);
}

macro_rules! aligned {
    ($($name:ident $align:literal),*) => {
        $(
            #[repr(C, align($align))]
            #[derive(Clone, Copy, Pod, Zeroable)]
            struct $name([u8; $align]);
        )*
        /// Every alignment up to the limit, as a value and as slices.
        fn try_every_alignment(ctx: &ThreadContext) {
            $({
                let mut kept = Vec::new();
                for len in [0, 1, 2, 3, 17] {
                    let value = ctx.record($name([len as u8; $align])).unwrap();
                    assert_eq!(std::ptr::from_ref(&*value).addr() % $align, 0, "a value aligned to {}", $align);
                    let slice = ctx.slice_uninit(len).unwrap().fill_with(|i| $name([i as u8; $align]));
                    assert_eq!(slice.as_ptr().addr() % $align, 0, "{len} elements aligned to {}", $align);
                    assert!(value.capacity_bytes() >= $align && slice.capacity_bytes() >= len * $align);
                    kept.push((value, slice, len));
                }
                for (value, slice, len) in kept {
                    assert!(value.0.iter().all(|byte| usize::from(*byte) == len));
                    assert_eq!(slice.len(), len);
                    for (i, element) in slice.iter().enumerate() {
                        assert!(element.0.iter().all(|byte| usize::from(*byte) == i));
                    }
                }
            })*
        }
    };
}
aligned!(A1 1, A2 2, A4 4, A8 8, A16 16, A32 32, A64 64, A128 128, A256 256, A512 512, A1024 1024, A2048 2048, A4096 4096);

#[repr(C, align(8192))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct A8192([[u8; 4096]; 2]);

#[test]
fn alignment_up_to_a_page() {
    let name = Name::new("align");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut shifts = Vec::new();
    for _ in 0..3 {
        try_every_alignment(&ctx);
        shifts.push(ctx.record([0_u8; 128]).unwrap());
    }
    let refused = AllocError::Alignment { align: 8192 };
    assert_eq!(ctx.zeroed::<A8192>().unwrap_err(), refused);
    assert_eq!(ctx.slice_zeroed::<A8192>(0).unwrap_err(), refused);
    assert_eq!(ctx.producer::<A8192>(1).unwrap_err(), AttachError::Alignment { align: 8192 });
    drop((shifts, ctx));
    work::end(buffer, &name);
}

#[test]
fn lengths_that_overflow() {
    let name = Name::new("overflow");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let over = |count, element| AllocError::LengthOverflow { count, element };
    for count in [usize::MAX, usize::MAX / 8 + 1, (usize::MAX - 4096) / 8, 1 << 61, 1 << 40] {
        assert_eq!(ctx.slice_uninit::<u64>(count).unwrap_err(), over(count, 8), "{count}");
    }
    for count in [usize::MAX / 4096, usize::MAX / 4096 + 1, 1 << 52, 1 << 39] {
        assert_eq!(ctx.slice_uninit::<A4096>(count).unwrap_err(), over(count, 4096), "{count}");
    }
    assert_eq!(ctx.slice_uninit::<u8>((224 << 30) + 1).unwrap_err(), over((224 << 30) + 1, 1));
    let message = over(usize::MAX, 8).to_string();
    assert!(message.contains(&usize::MAX.to_string()) && message.contains("of 8 bytes"), "{message}");
    // Possible in some buffer, not in this one.
    let error = ctx.slice_uninit::<u8>(224 << 30).unwrap_err();
    assert_eq!(error, AllocError::OutOfMemory { asked: (224 << 30) + 16, free: 1 << 20 });
    assert_eq!(ctx.slice_zeroed::<u64>(1000).unwrap().len(), 1000);
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn capacity_covers_the_size_and_wastes_a_quarter_at_most() {
    let name = Name::new("waste");
    let buffer = Buffer::options().capacity(64 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let doublings = (3..24).flat_map(|log| [(1 << log) - 17, (1 << log) - 1, 1 << log, (1 << log) + 1]);
    for len in (0..1100).chain((1100..400_000).step_by(997)).chain(doublings.filter(|len: &i64| *len >= 0)) {
        let len = usize::try_from(len).unwrap();
        let record = ctx.slice_uninit::<u8>(len).unwrap().assume_init();
        let capacity = record.capacity_bytes();
        assert!(capacity >= len && 4 * capacity <= 5 * len + 4 * 64, "{len} bytes in {capacity}");
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn two_records_share_no_cache_line() {
    let name = Name::new("lines");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for len in [0, 1, 47, 48, 49, 112, 113, 1000, 70_000] {
        let records: Vec<_> = (0..20).map(|_| ctx.slice_zeroed::<u8>(len).unwrap()).collect();
        let mut lines: Vec<_> =
            records.iter().map(|r| r.as_ptr().addr() / 64..=(r.as_ptr().addr() + len) / 64).collect();
        lines.sort_by_key(|range| *range.start());
        // The end is one past the last byte, which may be the next block's first.
        assert!(lines.windows(2).all(|pair| pair[0].end() <= pair[1].start()), "{len} bytes");
        assert!(lines.windows(2).all(|pair| pair[0].start() < pair[1].start()), "{len} bytes");
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn truncating_keeps_the_block() {
    let name = Name::new("truncate");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut record = ctx.slice_uninit::<u16>(1000).unwrap().fill_with(|i| i as u16);
    let (address, capacity) = (record.as_ptr(), record.capacity_bytes());
    for (len, left) in [(usize::MAX, 1000), (1001, 1000), (1000, 1000), (999, 999), (5, 5), (6, 5), (0, 0), (1, 0)] {
        record.truncate(len);
        assert_eq!((record.len(), record.as_ptr(), record.capacity_bytes()), (left, address, capacity));
        assert!(record.iter().enumerate().all(|(i, word)| usize::from(*word) == i));
    }
    drop(record);
    // The receiver sees the new length.
    let mut tx = ctx.producer::<[u16]>(1).unwrap();
    let mut rx = ctx.consumer::<[u16]>(1).unwrap();
    let mut record = ctx.slice_from(&[1_u16, 2, 3]).unwrap();
    record.truncate(2);
    tx.send(record).unwrap();
    assert_eq!(&*rx.recv().unwrap(), [1, 2]);
    // A large one gives back all of its units when it is dropped.
    let mut large = ctx.slice_zeroed::<u8>(3 * MIB).unwrap();
    large.truncate(1);
    assert!(large.capacity_bytes() >= 3 * MIB);
    drop((large, tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn dropped_in_any_thread() {
    let _dog = common::watchdog();
    let (name, elsewhere) = (Name::new("threads"), Name::new("elsewhere"));
    let buffer = Buffer::open(&name).unwrap();
    let other = Buffer::open(&elsewhere).unwrap();
    let ctx = buffer.context().unwrap();
    // Enough of each kind that every cache overflows into the depot.
    let make = || -> Vec<Record<[u8]>> {
        (0..3000)
            .map(|i| ctx.slice_uninit(i % 700).unwrap().assume_init())
            .chain([ctx.slice_zeroed(MIB).unwrap()])
            .collect()
    };
    let mut lots = (make(), make(), make());
    let lot = std::mem::take(&mut lots.0);
    std::thread::spawn(move || drop(lot)).join().unwrap();
    let (lot, open) = (std::mem::take(&mut lots.1), buffer.clone());
    std::thread::spawn(move || {
        let _ctx = open.context().unwrap();
        drop(lot);
    })
    .join()
    .unwrap();
    let (lot, open) = (std::mem::take(&mut lots.2), other.clone());
    std::thread::spawn(move || {
        let ctx = open.context().unwrap();
        let own = ctx.record(1_u8).unwrap();
        drop(lot);
        assert_eq!(*own, 1);
    })
    .join()
    .unwrap();
    common::all_free(&buffer);
    // Two buffers' records dropped in turn on one thread with contexts of both: each goes home.
    let there = other.context().unwrap();
    let mut mixed: Vec<Record<u64>> = Vec::new();
    for i in 0..1000 {
        mixed.push(if i % 2 == 0 { ctx.record(i).unwrap() } else { there.record(i).unwrap() });
    }
    drop(mixed);
    drop((ctx, there));
    work::end(buffer, &name);
    work::end(other, &elsewhere);
}

#[test]
fn outlives_its_context_and_its_buffer() {
    let _dog = common::watchdog();
    let name = Name::new("outlive");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut one, two, three) =
        (ctx.record(1_u64).unwrap(), ctx.slice_from(b"two").unwrap(), ctx.record([[3_u8; 4096]; 16]).unwrap());
    drop((buffer, ctx));
    assert!(name.exists(), "three records are left");
    *one += 10;
    assert_eq!((*one, &*two, three[15][4095]), (11, &b"two"[..], 3));
    drop(one);
    assert!(name.exists(), "two are left");

    // Opened again meanwhile: the same memory, and closing that does not take it from the records.
    let buffer = Buffer::open(&name).unwrap();
    let audit = common::sound(&buffer);
    assert_eq!((audit.owned.len(), audit.owned[0].records, audit.owned[0].is_self), (1, 2, true));
    let ctx = buffer.context().unwrap();
    let late = ctx.record(4_u8).unwrap();
    drop(three);
    drop((buffer, ctx));
    assert_eq!((&*two, *late, name.exists()), (&b"two"[..], 4, true));
    drop(two);
    assert!(name.exists());
    // The last one goes in a thread that never saw the buffer.
    std::thread::spawn(move || drop(late)).join().unwrap();
    assert!(!name.exists(), "the last record took the segment along");
    let buffer = Buffer::options().create_new(true).open(&name).unwrap();
    work::end(buffer, &name);
}

#[test]
fn the_last_records_go_in_many_threads_at_once() {
    let _dog = common::watchdog();
    for _ in 0..30 {
        let name = Name::new("last");
        let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let records: Vec<_> = (0..20).map(|_| ctx.slice_zeroed::<u8>(i * 100).unwrap()).collect();
                std::thread::spawn(move || drop(records))
            })
            .collect();
        drop((ctx, buffer));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!name.exists());
    }
}

/// An empty payload of large alignment must not lie where the next block starts, or the next buffer.
#[test]
fn nothing_of_large_alignment_has_a_block_of_its_own() {
    type Pair<T> = (Record<[T; 0]>, Option<Record<[T]>>);
    fn fill<T: Pod>(ctx: &ThreadContext) -> Vec<Pair<T>> {
        std::iter::from_fn(|| Some((ctx.record([]).ok()?, ctx.slice_from(&[]).ok()))).collect()
    }
    fn check<T: Pod>(above: &Buffer, buffer: &Buffer, ctx: &ThreadContext) {
        let (mut tx, mut rx) = (ctx.producer::<[T; 0]>(1).unwrap(), ctx.consumer::<[T; 0]>(1).unwrap());
        let mut all = fill::<T>(ctx);
        let count = all.len();
        assert!(count > 50, "{count} blocks");
        let records = common::sound(buffer).owned[0].records;
        assert!(records == 2 * count as u64 || records == 2 * count as u64 - 1, "{records} for {count} pairs");
        let mut number = 0;
        all.retain(|_| {
            number += 1;
            number % 3 != 0
        });
        all.extend(fill::<T>(ctx));
        assert_eq!(all.len(), count, "what came back was what was dropped");
        for (record, _) in all {
            tx.send(record).unwrap();
            drop(rx.recv().unwrap());
        }
        drop((tx, rx));
        common::all_free(buffer);
        common::all_free(above);
    }
    let (above_name, name) = (Name::new("nothing-above"), Name::new("nothing-large"));
    let above = Buffer::options().capacity(256 << 10).open(&above_name).unwrap();
    let buffer = Buffer::options().capacity(256 << 10).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    check::<A32>(&above, &buffer, &ctx);
    check::<A64>(&above, &buffer, &ctx);
    check::<A128>(&above, &buffer, &ctx);
    check::<A256>(&above, &buffer, &ctx);
    check::<A512>(&above, &buffer, &ctx);
    check::<A1024>(&above, &buffer, &ctx);
    drop(ctx);
    work::end(buffer, &name);
    work::end(above, &above_name);
}

/// A closed context's buffer may be gone, and another one be mapped where it was.
#[test]
fn an_endpoint_whose_buffer_is_gone() {
    let (gone_name, name) = (Name::new("gone"), Name::new("gone-next"));
    let gone = Buffer::options().capacity(64 << 20).open(&gone_name).unwrap();
    let gone_ctx = gone.context().unwrap();
    let mut tx = gone_ctx.producer::<A64>(1).unwrap();
    drop((gone_ctx, gone));
    // Too large for any other gap, as a rule: it ends where the other one ended.
    let buffer = Buffer::options().capacity(48 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let record = ctx.record(A64([7; 64])).unwrap();
    let error = tx.try_send(record).unwrap_err();
    assert!(matches!(error, TrySendError::ContextClosed(_) | TrySendError::ForeignRecord(_)), "{error}");
    let batch = tx.try_send_batch([error.into_inner()]).unwrap_err().into_inner();
    assert_eq!(batch[0].0, [7; 64]);
    drop((batch, tx, ctx));
    work::end(buffer, &name);
}

/// When memory is short a record may get a block of another class than its type's: it is as good as any.
#[test]
fn a_record_in_a_larger_block() {
    type Small = [u64; 3];
    type Large = [u64; 7500];
    let _dog = common::watchdog();
    let name = Name::new("larger");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut to_self = (ctx.producer::<Small>(1).unwrap(), ctx.consumer::<Small>(1).unwrap());
    let mut large = (ctx.producer::<Large>(2).unwrap(), ctx.consumer::<Large>(2).unwrap());
    let usual = (ctx.zeroed::<Small>().unwrap().capacity_bytes(), ctx.zeroed::<Large>().unwrap().capacity_bytes());
    assert!(usual.0 >= size_of::<Small>() && usual.1 >= size_of::<Large>());
    ctx.flush();
    buffer.trim().unwrap();
    let fill = |bytes: usize| -> Vec<Record<[u8]>> {
        std::iter::from_fn(|| Some(ctx.slice_uninit::<u8>(bytes).ok()?.assume_init())).collect()
    };
    // A block of 3000 bytes: in that of a slice of another class. A block of units, of which one is free: for 60,000 bytes it takes
    // a slab of several.
    let mut all = fill(65_000);
    all.pop();
    let mut rest = fill(3000);
    rest.pop();
    let mut small = ctx.record([1_u64, 2, 3]).unwrap();
    assert!(small.capacity_bytes() > usual.0, "the type's own class had a block");
    assert_eq!(*small, [1, 2, 3]);
    small[2] = 4;
    to_self.0.send(small).unwrap();
    let small = to_self.1.recv().unwrap();
    assert_eq!((*small, small.capacity_bytes() > usual.0), ([1, 2, 4], true));
    to_self.0.send_batch([small]).unwrap();
    let small = to_self.1.recv_batch(9).unwrap().pop().unwrap();
    assert_eq!(*small, [1, 2, 4]);
    // In another buffer's channel it is foreign, and comes back.
    let other_name = Name::new("larger-other");
    let other = Buffer::open(&other_name).unwrap();
    let other_ctx = other.context().unwrap();
    let mut other_tx = other_ctx.producer::<Small>(1).unwrap();
    let back = other_tx.try_send(small).unwrap_err().into_inner();
    assert_eq!(*back, [1, 2, 4]);
    drop(back);
    assert_eq!(rest.len() + 1, rest.len() + fill(3000).len(), "its block came back as what it was");
    drop(rest);
    ctx.flush();
    buffer.trim().unwrap();
    let big = ctx.record([5_u64; 7500]).unwrap();
    let is_run = big.capacity_bytes() != usual.1;
    assert!(is_run && big.capacity_bytes() >= size_of::<Large>() && big.iter().all(|word| *word == 5));
    large.0.send(big).unwrap();
    let big = large.1.recv().unwrap();
    assert!(big.iter().all(|word| *word == 5));
    // Where no context is.
    std::thread::spawn(move || drop(big)).join().unwrap();
    drop((all, to_self, large, other_tx, other_ctx));
    work::end(other, &other_name);
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn out_of_memory_says_what_is_free_and_passes() {
    let name = Name::new("oom");
    let buffer = Buffer::options().capacity(256 << 10).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let all = AllocError::OutOfMemory { asked: (1 << 20) + 16, free: 256 << 10 };
    assert_eq!(ctx.slice_zeroed::<u8>(1 << 20).unwrap_err(), all);
    let message = all.to_string();
    assert!(message.contains("1048592") && message.contains("262144"), "{message}");
    // One that needs every unit.
    let whole = ctx.slice_zeroed::<u8>((256 << 10) - 16).unwrap();
    assert_eq!(ctx.record(1_u8).unwrap_err(), AllocError::OutOfMemory { asked: 17, free: 0 });
    assert!(matches!(ctx.producer::<u8>(1), Err(AttachError::OutOfMemory { .. })));
    assert!(!buffer.has_channel(1).unwrap());
    drop(whole);
    for size in [0, 1, 48, 49, 1000, 5000, 20_000, 65_000] {
        let mut records = Vec::new();
        let error = loop {
            match ctx.slice_uninit::<u8>(size) {
                Ok(record) => records.push(record.assume_init()),
                Err(error) => break error,
            }
        };
        let AllocError::OutOfMemory { asked, free } = error else { panic!("{error}") };
        assert_eq!(asked, size as u64 + 16);
        assert!(free < asked, "{free} bytes are free, so one of {size} fits");
        let used = records.iter().map(|record| record.capacity_bytes() + 16).sum::<usize>();
        assert!(used > 192 << 10, "only {} of {size} bytes", records.len());
        // One back, one out.
        let count = records.len();
        for _ in 0..10 {
            records.swap_remove(count / 2);
            records.push(ctx.slice_uninit::<u8>(size).unwrap().assume_init());
        }
        assert!(ctx.slice_uninit::<u8>(size).is_err());
        drop(records);
        common::all_free(&buffer);
    }
    drop(ctx.slice_zeroed::<u8>((256 << 10) - 16).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn most_of_a_gigabyte_in_one_record() {
    let _dog = common::watchdog();
    let name = Name::new("900");
    let buffer = Buffer::open(&name).unwrap();
    assert_eq!(buffer.capacity(), 1 << 30);
    let ctx = buffer.context().unwrap();
    let small = ctx.record(1_u8).unwrap();
    let mut large = ctx.slice_uninit::<u8>(900 * MIB).unwrap().assume_init();
    for at in [0, 1, 450 * MIB, 900 * MIB - 1] {
        large[at] = 7;
    }
    assert!(matches!(ctx.slice_uninit::<u8>(900 * MIB), Err(AllocError::OutOfMemory { free, .. }) if free < 124 << 20));
    assert_eq!((common::sound(&buffer).owned_bytes() >> 20, *small), (900, 1));
    drop((large, small));
    assert!(buffer.trim().unwrap() >= 900 << 20);
    drop(ctx);
    work::end(buffer, &name);
}

thread_local! {
    static FIRST: RefCell<Vec<Box<dyn std::any::Any>>> = const { RefCell::new(Vec::new()) };
    static SECOND: RefCell<Vec<Box<dyn std::any::Any>>> = const { RefCell::new(Vec::new()) };
}

#[test]
fn dropped_in_thread_local_destructors() {
    let _dog = common::watchdog();
    let name = Name::new("tls");
    let buffer = Buffer::open(&name).unwrap();
    // Destructors run in reverse order of first use; use both orders, with and without the context among them.
    for (swap, keeps_context, touch_first) in
        [(false, false, false), (false, true, false), (true, true, false), (false, true, true), (true, true, true)]
    {
        let open = buffer.clone();
        let thread = std::thread::spawn(move || {
            let (one, two) = if swap { (&SECOND, &FIRST) } else { (&FIRST, &SECOND) };
            if touch_first {
                one.with(|_| ());
                two.with(|_| ());
            }
            let ctx = open.context().unwrap();
            for i in 0..100 {
                one.with_borrow_mut(|kept| kept.push(Box::new(ctx.record(i).unwrap())));
            }
            let rx = ctx.consumer::<u64>(1).unwrap();
            if keeps_context {
                two.with_borrow_mut(|kept| kept.push(Box::new((ctx.producer::<u64>(1).unwrap(), rx, ctx))));
            }
        });
        thread.join().unwrap();
        common::all_free(&buffer);
        assert!(buffer.channels().unwrap().is_empty());
    }
    work::end(buffer, &name);

    // The buffer's last handles are in the thread as well: its end removes the segment.
    let name = Name::new("tls2");
    let own = name.0.clone();
    let thread = std::thread::spawn(move || {
        let ctx = Buffer::open(&own).unwrap().context().unwrap();
        FIRST.with_borrow_mut(|kept| kept.push(Box::new(ctx.record(1_u8).unwrap())));
        SECOND.with_borrow_mut(|kept| kept.push(Box::new(ctx)));
    });
    thread.join().unwrap();
    assert!(!name.exists());
}

#[test]
fn forgotten_records_are_found_and_reaped() {
    let _dog = common::watchdog();
    if let Some((role, buffer)) = common::role() {
        let buffer = Buffer::open(&buffer).unwrap();
        let ctx = buffer.context().unwrap();
        for i in 0..5 {
            std::mem::forget(ctx.slice_zeroed::<u8>(i * 30_000).unwrap());
        }
        let _ready = ctx.producer::<u8>(1).unwrap();
        if role == "stay" {
            std::thread::sleep(Duration::from_secs(1000));
        }
        return;
    }
    let name = Name::new("forget");
    let buffer = Buffer::open(&name).unwrap();
    let mut child = common::start("forgotten_records_are_found_and_reaped", "stay", &name);
    assert!(buffer.wait_for_channel(1, Duration::from_secs(50)).unwrap());
    let audit = common::sound(&buffer);
    let owned = &audit.owned[0];
    assert_eq!(
        (audit.owned.len(), owned.records, owned.pid, owned.is_self, owned.is_alive),
        (1, 5, child.pid(), false, true)
    );
    assert_eq!(buffer.reap().unwrap().processes, 0, "it is alive");
    child.kill();
    let audit = buffer.audit().unwrap();
    assert!(!audit.is_sound() && !audit.owned[0].is_alive, "{audit:#?}");
    let reaped = buffer.reap().unwrap();
    assert_eq!((reaped.processes, reaped.records, reaped.endpoints), (1, 5, 1));
    assert_eq!(buffer.reap().unwrap(), ipc_buffer::Reaped::default());
    common::all_free(&buffer);

    // One that ends in good order without them is dead as well.
    common::start("forgotten_records_are_found_and_reaped", "leave", &name).success();
    assert_eq!(buffer.reap().unwrap().records, 5);
    work::end(buffer, &name);
}
