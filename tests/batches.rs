//! Batches: many records or values for one publication, received by one store, whoever is killed meanwhile.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::{Name, Watchdog};
use ipc_buffer::{
    Buffer, ChannelOptions, Record, RecvError, SendError, SendTimeoutError, ThreadContext, TryRecvError, TrySendError,
    WaitStrategy,
};
use std::collections::VecDeque;
use std::time::Duration;

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

fn records(ctx: &ThreadContext, numbers: std::ops::Range<u64>) -> Vec<Record<u64>> {
    numbers.map(|number| ctx.record(number).unwrap()).collect()
}

fn numbers(records: Vec<Record<u64>>) -> Vec<u64> {
    records.into_iter().map(|record| *record).collect()
}

#[test]
fn what_does_not_fit_comes_back() {
    let name = Name::new("fit");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(8)).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    tx.try_send_batch(records(&ctx, 0..5)).unwrap();
    tx.try_send_batch(Vec::new()).unwrap();
    let Err(TrySendError::Full(rest)) = tx.try_send_batch(records(&ctx, 5..12)) else { panic!() };
    assert_eq!((tx.len(), numbers(rest)), (8, vec![8, 9, 10, 11]));
    let Err(TrySendError::Full(rest)) = tx.try_send_batch(records(&ctx, 8..9)) else { panic!() };
    assert_eq!(numbers(rest), [8]);
    tx.try_send_batch(Vec::new()).unwrap();
    let Err(SendTimeoutError::Timeout(rest)) = tx.send_batch_timeout(records(&ctx, 8..10), Duration::ZERO) else {
        panic!()
    };
    assert_eq!(numbers(rest), [8, 9]);
    assert!(rx.try_recv_batch(0).unwrap().is_empty() && rx.recv_batch(0).unwrap().is_empty());
    assert_eq!(numbers(rx.try_recv_batch(3).unwrap()), [0, 1, 2]);
    // A batch that is dropped is received, and freed; an iterator that is dropped leaves the rest where it is.
    drop(rx.recv_batch(2).unwrap());
    assert_eq!(rx.try_iter().take(1).map(|record| *record).collect::<Vec<_>>(), [5]);
    assert_eq!((rx.len(), numbers(rx.recv_batch(usize::MAX).unwrap())), (2, vec![6, 7]));
    assert_eq!(rx.try_recv_batch(1).unwrap_err(), TryRecvError::Empty);
    drop(rx);
    let Err(SendError::Disconnected(rest)) = tx.send_batch(records(&ctx, 0..3)) else { panic!() };
    assert_eq!(numbers(rest), [0, 1, 2]);
    drop((tx, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_foreign_record_ends_the_batch() {
    let (name, other_name) = (Name::new("own"), Name::new("foreign"));
    let (buffer, other) = (Buffer::open(&name).unwrap(), Buffer::open(&other_name).unwrap());
    let (ctx, there) = (buffer.context().unwrap(), other.context().unwrap());
    let mut tx = ctx.producer::<u64>(1).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut batch = records(&ctx, 0..5);
    batch[2] = there.record(77).unwrap();
    let Err(TrySendError::ForeignRecord(rest)) = tx.try_send_batch(batch) else { panic!() };
    assert_eq!(numbers(rest), [77, 3, 4]);
    assert_eq!(numbers(rx.recv_batch(10).unwrap()), [0, 1]);
    let Err(SendError::ForeignRecord(rest)) = tx.send_batch([there.record(78).unwrap()]) else { panic!() };
    assert_eq!((numbers(rest), rx.is_empty()), (vec![78], true));
    drop((tx, rx, ctx, there));
    work::end(buffer, &name);
    work::end(other, &other_name);
}

/// The caller's code does what it likes before the first is queued, and never in between.
#[test]
fn iterators_with_a_will_of_their_own() {
    let name = Name::new("will");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<u64>(1).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let panics = (0..3).map(|i| if i < 2 { ctx.record(i).unwrap() } else { panic!("enough") });
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tx.try_send_batch(panics)));
    assert!(ended.is_err() && tx.is_empty());
    let other = buffer.context().unwrap();
    drop(ctx);
    let mut last = Some(other);
    // The context goes while the batch is put together.
    let closes = (0..2_u64).map(|i| {
        let ctx = buffer.context().unwrap();
        let record = ctx.record(i).unwrap();
        last = None;
        record
    });
    let Err(TrySendError::ContextClosed(rest)) = tx.try_send_batch(closes) else { panic!() };
    assert_eq!((numbers(rest), rx.try_recv().unwrap_err()), (vec![0, 1], RecvError::ContextClosed.into()));
    drop((tx, rx, last));
    work::end(buffer, &name);
}

#[test]
fn like_a_deque() {
    let _dog = common::watchdog();
    let name = Name::new("deque");
    let buffer = Buffer::options().capacity(2 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for (seed, capacity) in (0..).zip([2, 4, 16, 64]) {
        let mut tx = ctx.producer_with::<u64>(1, &slots(capacity)).unwrap();
        let mut rx = ctx.consumer::<u64>(1).unwrap();
        let mut vtx = ctx.value_producer_with::<u64>(2, &slots(capacity)).unwrap();
        let mut vrx = ctx.value_consumer::<u64>(2).unwrap();
        let mut twin: VecDeque<u64> = VecDeque::new();
        let mut rng = work::Rng::new(seed);
        let mut next = 0;
        for _ in 0..3000 {
            let some = 1 + rng.below(2 * capacity as u64);
            match rng.below(5) {
                0 => {
                    let sent = tx.try_send(ctx.record(next).unwrap()).is_ok();
                    assert_eq!((sent, vtx.try_send(next).is_ok()), (twin.len() < capacity, sent));
                    twin.extend(sent.then_some(next));
                    next += u64::from(sent);
                }
                1 => {
                    let end = next + some;
                    let rest = tx.try_send_batch(records(&ctx, next..end)).map_err(|error| numbers(error.into_inner()));
                    let rest = rest.err().unwrap_or_default();
                    assert_eq!(
                        vtx.try_send_batch(next..end).map_err(TrySendError::into_inner).err().unwrap_or_default(),
                        rest
                    );
                    let sent = (some as usize).min(capacity - twin.len()) as u64;
                    assert!(rest.into_iter().eq(next + sent..end));
                    twin.extend(next..next + sent);
                    next += sent;
                }
                2 => {
                    let expected = twin.pop_front().ok_or(TryRecvError::Empty);
                    assert_eq!(rx.try_recv().map(|record| *record), expected);
                    assert_eq!(vrx.try_recv(), expected);
                }
                3 => {
                    let count = twin.len().min(some as usize);
                    let expected =
                        if count == 0 { Err(TryRecvError::Empty) } else { Ok(twin.drain(..count).collect::<Vec<_>>()) };
                    assert_eq!(rx.try_recv_batch(some as usize).map(numbers), expected);
                    assert_eq!(vrx.try_recv_batch(some as usize), expected);
                }
                _ if rng.below(8) == 0 => {
                    drop((tx, vtx));
                    tx = ctx.producer(1).unwrap();
                    vtx = ctx.value_producer(2).unwrap();
                    drop((rx, vrx));
                    rx = ctx.consumer(1).unwrap();
                    vrx = ctx.value_consumer(2).unwrap();
                }
                _ => {}
            }
            assert_eq!([tx.len(), vtx.len(), rx.len(), vrx.len()], [twin.len(); 4]);
        }
    }
    drop(ctx);
    work::end(buffer, &name);
}

/// The other side sees none of a batch, or all.
#[test]
fn a_batch_appears_at_once() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    const ROUNDS: u64 = 30_000;
    const SIZE: u64 = 7;
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut tx = ctx.value_producer_with::<u64>(1, &slots(256)).unwrap();
        for round in 0..ROUNDS {
            // Room for all of it, or it would be sent in parts.
            while tx.len() as u64 + SIZE > 256 {
                std::thread::yield_now();
            }
            tx.try_send_batch(round * SIZE..(round + 1) * SIZE).unwrap();
        }
        assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
        return;
    }
    let name = Name::new("once");
    let buffer = Buffer::open(&name).unwrap();
    let child = common::start("a_batch_appears_at_once", "sends", &name);
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.value_consumer_with::<u64>(1, &slots(256)).unwrap();
    let mut next = 0;
    while let Ok(batch) = rx.recv_batch(usize::MAX) {
        assert!((batch.len() as u64).is_multiple_of(SIZE), "{} of batches of {SIZE}", batch.len());
        assert!(batch.iter().copied().eq(next..next + batch.len() as u64));
        next += batch.len() as u64;
    }
    assert_eq!(next, ROUNDS * SIZE);
    child.success();
    drop((rx, ctx));
    work::end(buffer, &name);
}

/// Batches larger than the channel, both sides asleep now and then. A wake-up that is lost is a hang: sleeps have no end.
#[test]
fn nobody_sleeps_through_a_batch() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    const COUNT: u64 = 40_000;
    const TICK: (&str, &str) = ("IPC_BUFFER_TICK_MS", "100000000");
    if let Some((role, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let options = slots(64).wait_strategy(WaitStrategy::Block);
        let mut rng = work::Rng::new(role.len() as u64);
        let mut pause = move || {
            if rng.below(100) == 0 {
                std::thread::sleep(Duration::from_micros(rng.below(1000)));
            }
            rng.below(200)
        };
        let mut next = 0;
        if role == "sends" {
            let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
            while next < COUNT {
                let end = COUNT.min(next + pause());
                tx.send_batch(records(&ctx, next..end)).unwrap();
                next = end;
            }
            assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
        } else {
            let mut rx = ctx.consumer_with::<u64>(1, &options).unwrap();
            while let Ok(batch) = rx.recv_batch(1 + pause() as usize).map(numbers) {
                assert!(batch.iter().copied().eq(next..next + batch.len() as u64));
                next += batch.len() as u64;
            }
            assert_eq!(next, COUNT);
        }
        return;
    }
    let name = Name::new("asleep");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let start = |role| common::start_with("nobody_sleeps_through_a_batch", role, &name, &[TICK]);
    let children = [start("sends"), start("receives")];
    children.into_iter().for_each(common::Process::success);
    work::end(buffer, &name);
}

/// What a killed producer had stored of a batch, behind a first one that it had not, must not be received behind what the next
/// producer sends.
#[test]
fn producers_killed_inside_batches() {
    const READY: i64 = 9;
    const SLOTS: u64 = 1024;
    let _dog = Watchdog::new(Duration::from_secs(150));
    let options = slots(SLOTS as usize).persistent(true);
    if let Some((role, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        // Batches from one hand to the other, most of the time inside one.
        let batches = (0_u64..).step_by(900).map(|first| first..first + 900);
        if role == "values" {
            let mut tx = ctx.value_producer_with::<u64>(1, &options).unwrap();
            let mut rx = ctx.value_consumer::<u64>(1).unwrap();
            let _ready = ctx.value_producer::<()>(READY).unwrap();
            batches.for_each(|batch| {
                tx.try_send_batch(batch).unwrap();
                assert_eq!(rx.recv_batch(usize::MAX).unwrap().len(), 900);
            });
        } else {
            let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
            let mut rx = ctx.consumer::<u64>(1).unwrap();
            let _ready = ctx.value_producer::<()>(READY).unwrap();
            batches.for_each(|batch| {
                tx.try_send_batch(records(&ctx, batch)).unwrap();
                assert_eq!(rx.recv_batch(usize::MAX).unwrap().len(), 900);
            });
        }
    }
    let name = Name::new("torn");
    let buffer = Buffer::options().capacity(4 << 20).open(&name).unwrap();
    let mut rng = work::Rng::new(5);
    for round in 0..60 {
        let role = ["values", "records"][round % 2];
        let mut child = common::start("producers_killed_inside_batches", role, &name);
        assert!(buffer.wait_for_channel(READY, Duration::MAX).unwrap());
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        child.kill();
        while buffer.reap().unwrap().processes > 0 {}
        common::sound(&buffer);
        let ctx = buffer.context().unwrap();
        // What was sent is all there; what was not is not, now and for a lap to come.
        let goes_on = |left: Vec<u64>, after: Vec<u64>| {
            assert!([0, 900].contains(&left.len()) && left.windows(2).all(|two| two[1] == two[0] + 1), "{left:?}");
            assert!(after.iter().copied().eq(0..SLOTS), "round {round}: {after:?}");
        };
        if role == "values" {
            let mut rx = ctx.value_consumer::<u64>(1).unwrap();
            let left = rx.try_iter().collect();
            let mut tx = ctx.value_producer::<u64>(1).unwrap();
            let after = (0..SLOTS).flat_map(|number| {
                tx.try_send(number).unwrap();
                rx.try_iter().collect::<Vec<_>>()
            });
            goes_on(left, after.collect());
        } else {
            let mut rx = ctx.consumer::<u64>(1).unwrap();
            let left = rx.try_iter().map(|record| *record).collect();
            let mut tx = ctx.producer::<u64>(1).unwrap();
            let after = (0..SLOTS).flat_map(|number| {
                tx.try_send(ctx.record(number).unwrap()).unwrap();
                rx.try_iter().map(|record| *record).collect::<Vec<_>>()
            });
            goes_on(left, after.collect());
        }
        assert!(buffer.remove_channel(1).unwrap());
        drop(ctx);
        common::all_free(&buffer);
    }
    work::end(buffer, &name);
}
