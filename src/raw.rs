//! The hand-over by bare block numbers, to see what handles cost: the same heap, ring and orders, and none of the checks that a type,
//! a record that is dropped, or a channel that may be gone needs.
//!
//! A measurement, for a quiet machine:
//! ```text
//! cargo test --release --lib -- --ignored --nocapture what_handles_cost
//! ```

#![allow(unsafe_code)]

use crate::format::{Handle, BLOCK_HEADER};
use crate::heap;
use crate::format::class;
use crate::sync::Ordering;
use crate::{Buffer, Channel, Consumer, Producer, ThreadContext, TryRecvError, TrySendError};
use std::hint::spin_loop;
use std::time::Instant;

const MESSAGES: u64 = 2_000_000;
const ROUNDS: usize = 15;

/// One way to send a number, and to receive it.
trait Way {
    fn send(ctx: &ThreadContext, tx: &mut Channel<u64, Producer>, number: u64);
    fn recv(ctx: &ThreadContext, rx: &mut Channel<u64, Consumer>) -> u64;
}

struct Handles;

impl Way for Handles {
    #[inline(always)]
    fn send(ctx: &ThreadContext, tx: &mut Channel<u64, Producer>, number: u64) {
        let mut record = ctx.record(number).unwrap();
        while let Err(TrySendError::Full(back)) = tx.try_send(record) {
            record = back;
            spin_loop();
        }
    }

    #[inline(always)]
    fn recv(_: &ThreadContext, rx: &mut Channel<u64, Consumer>) -> u64 {
        loop {
            match rx.try_recv() {
                Ok(record) => return *record,
                Err(TryRecvError::Empty) => spin_loop(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

struct Numbers;

impl Way for Numbers {
    #[inline(always)]
    fn send(ctx: &ThreadContext, tx: &mut Channel<u64, Producer>, number: u64) {
        let cache = ctx.local.cache();
        let block = heap::alloc_fast(cache, 8).map_or_else(|| heap::alloc(cache, 8).unwrap(), |(_, block)| block);
        // SAFETY: the block is this thread's, and has 8 bytes behind its header.
        unsafe { block.start.payload(BLOCK_HEADER).cast::<u64>().write(number) };
        while tx.endpoint.end.push_granule(block.handle.granule()).is_err() {
            spin_loop();
        }
    }

    #[inline(always)]
    fn recv(ctx: &ThreadContext, rx: &mut Channel<u64, Consumer>) -> u64 {
        let (end, cache) = (&rx.endpoint.end, ctx.local.cache());
        let mut at = end.at();
        let granule = loop {
            match at.next_granule() {
                Some(granule) => break granule,
                None => spin_loop(),
            }
        };
        cache.arena().prefetch(end.note_granule(granule));
        let start = cache.arena().start(granule).unwrap();
        start.header().state.store(cache.owned().0, Ordering::Relaxed);
        // SAFETY: received just now, and sent by `send`.
        let number = unsafe { start.payload(BLOCK_HEADER).cast::<u64>().read() };
        at.glimpse().for_each(|granule| cache.arena().prefetch(granule));
        at.step();
        end.receive(at);
        let class = class::for_bytes(8).unwrap();
        let handle = Handle::new(class::index(class), granule);
        if !cache.front().push(handle) {
            cache.push(handle);
        }
        number
    }
}

/// Nanoseconds a message, between two threads.
fn stream<W: Way>(buffer: &Buffer, id: i64) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer::<u64>(id).unwrap();
            (0..MESSAGES).for_each(|number| W::send(&ctx, &mut tx, number));
            // Not before it is empty.
            while !tx.is_empty() {
                spin_loop();
            }
        });
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer::<u64>(id).unwrap();
            (0..MESSAGES).for_each(|number| assert_eq!(W::recv(&ctx, &mut rx), number));
        });
    });
    start.elapsed().as_secs_f64() * 1e9 / MESSAGES as f64
}

#[test]
#[ignore = "a measurement, for a quiet machine and a release build"]
fn what_handles_cost() {
    let name = format!("ipc-buffer-test-raw-{}", std::process::id());
    let buffer = Buffer::open(&name).unwrap();
    let mut rounds: Vec<[f64; 2]> = (0..ROUNDS)
        .map(|i| [stream::<Handles>(&buffer, 2 * i as i64), stream::<Numbers>(&buffer, 2 * i as i64 + 1)])
        .collect();
    let mut median = |of: fn(&[f64; 2]) -> f64| {
        rounds.sort_by(|a, b| of(a).total_cmp(&of(b)));
        [of(&rounds[0]), of(&rounds[ROUNDS / 2]), of(&rounds[ROUNDS - 1])]
    };
    println!("handles        {:.2?} ns a message: least, median, most", median(|[handles, _]| *handles));
    println!("block numbers  {:.2?}", median(|[_, numbers]| *numbers));
    println!("ratio          {:.3?}", median(|[handles, numbers]| handles / numbers));
}
