//! Channels of values: every size, what is refused, waiting, and streams between processes.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use bytemuck::{Pod, Zeroable};
use common::{Name, Watchdog};
use ipc_buffer::{
    AttachError, Buffer, ChannelOptions, Consumer, Producer, RecvError, RecvTimeoutError, SendError, SendTimeoutError,
    ThreadContext, TryRecvError, TrySendError, ValueChannel,
};
use std::time::{Duration, Instant};

const GONE: TryRecvError = TryRecvError::Recv(RecvError::Disconnected);
const LONG: Duration = Duration::from_secs(50);

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

/// Both ends of a channel.
fn pair<T: Pod>(
    ctx: &ThreadContext,
    id: i64,
    capacity: usize,
) -> (ValueChannel<T, Producer>, ValueChannel<T, Consumer>) {
    (ctx.value_producer_with(id, &slots(capacity)).unwrap(), ctx.value_consumer(id).unwrap())
}

#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C, align(128))]
struct Aligned([u64; 16]);

#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
struct Tick {
    t_ns: u64,
    price: f32,
    size: [u8; 3],
    side: u8,
}

/// Through a small ring several times, at every fill level.
fn round_trips<T: Pod + PartialEq + std::fmt::Debug>(ctx: &ThreadContext, make: impl Fn(u8) -> T) {
    let (mut tx, mut rx) = pair::<T>(ctx, 1, 4);
    let (mut sent, mut received) = (0_u8, 0_u8);
    for round in 0..60 {
        while tx.try_send(make(sent)).is_ok() {
            sent = sent.wrapping_add(1);
        }
        assert_eq!((tx.len(), rx.len()), (4, 4));
        for _ in 0..=round % 4 {
            assert_eq!(rx.try_recv().unwrap(), make(received), "{}", std::any::type_name::<T>());
            received = received.wrapping_add(1);
        }
    }
}

#[test]
fn every_size_comes_out_as_it_went_in() {
    let name = Name::new("sizes");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    macro_rules! bytes {
        ($($n:literal)*) => { $(round_trips(&ctx, |seed| {
            let bytes: [u8; $n] = std::array::from_fn(|i| seed.wrapping_add((i as u8).wrapping_mul(7)));
            bytes
        });)* };
    }
    bytes!(1 2 3 4 5 7 8 9 12 15 16 17 23 24 25 31 32 33 47 48 49 55 56 57 63 64 65 119 120 121 127 128);
    round_trips(&ctx, |seed| [seed; 1016]);
    round_trips(&ctx, |seed| Aligned([seed.into(); 16]));
    round_trips(&ctx, |seed| Tick { t_ns: seed.into(), price: 1.5, size: [seed; 3], side: !seed });
    round_trips(&ctx, f64::from);
    round_trips(&ctx, |seed| u128::from(seed) << 100);
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn a_value_of_no_size_is_a_signal() {
    let name = Name::new("unit");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = pair::<()>(&ctx, 1, 8);
    assert_eq!(buffer.channels().unwrap()[0].carries, "() by value (0 bytes, align 1)");
    for _ in 0..50 {
        (0..8).for_each(|_| tx.try_send(()).unwrap());
        assert!(matches!(tx.try_send(()), Err(TrySendError::Full(()))));
        assert_eq!((rx.len(), rx.try_recv_batch(5).unwrap().len(), rx.try_iter().count()), (8, 5, 3));
        assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
        assert!(matches!(tx.try_send_batch([(); 9]), Err(TrySendError::Full(rest)) if rest == [()]));
        assert_eq!(rx.recv_batch(usize::MAX).unwrap().len(), 8);
    }
    drop((tx, rx));
    round_trips::<[u64; 0]>(&ctx, |_| []);
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn records_and_values_are_not_taken_for_each_other() {
    let name = Name::new("kinds");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let _records = ctx.producer::<u64>(1).unwrap();
    let _values = ctx.value_producer::<u64>(2).unwrap();
    let _slices = ctx.producer::<[u64]>(3).unwrap();
    let says = |error: AttachError, words: [&str; 2]| {
        assert!(matches!(error, AttachError::TypeMismatch { .. }), "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let records = "u64 (8 bytes, align 8)";
    let values = "u64 by value (8 bytes, align 8)";
    let carries = |theirs: &str, ours: &str| [format!("carries {theirs}, not {ours};"), "or by value".into()];
    let check = |error, theirs, ours| says(error, carries(theirs, ours).each_ref().map(String::as_str));
    check(ctx.value_consumer::<u64>(1).unwrap_err(), records, values);
    check(ctx.consumer::<u64>(2).unwrap_err(), values, records);
    check(ctx.value_consumer::<u64>(3).unwrap_err(), "[u64] (8 bytes, align 8)", values);
    check(ctx.value_consumer::<i64>(2).unwrap_err(), values, "i64 by value (8 bytes, align 8)");
    let other = ctx.value_consumer_with::<u64>(2, &ChannelOptions::new().type_tag("clock"));
    check(other.unwrap_err(), values, "clock by value (8 bytes, align 8)");
    assert!(matches!(
        ctx.value_producer::<u64>(2).unwrap_err(),
        AttachError::RoleTaken { role: ipc_buffer::Side::Producer, .. }
    ));
    let max = 1 << 24;
    for capacity in [0, 1, 3, max + 1, usize::MAX] {
        let error = ctx.value_producer_with::<u8>(9, &slots(capacity)).unwrap_err();
        assert_eq!(error, AttachError::Capacity { capacity, max });
    }
    // 16 GiB of slots.
    let error = ctx.value_producer_with::<[u8; 1016]>(9, &slots(max)).unwrap_err();
    assert!(matches!(error, AttachError::OutOfMemory { asked, .. } if asked > 16 << 30), "{error}");
    assert!(!buffer.has_channel(9).unwrap());
    drop((_records, _values, _slices, ctx));
    work::end(buffer, &name);
}

#[test]
fn nothing_of_it_is_on_the_heap() {
    let name = Name::new("heapless");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = pair::<[u64; 7]>(&ctx, 1, 64);
    ctx.flush();
    let before = buffer.stats().unwrap();
    for i in 0..1000 {
        tx.send([i; 7]).unwrap();
        assert_eq!(rx.recv().unwrap(), [i; 7]);
    }
    (0..64).for_each(|i| tx.send([i; 7]).unwrap());
    assert_eq!(buffer.stats().unwrap(), before);
    let audit = common::sound(&buffer);
    assert_eq!((audit.queued[0].records, audit.owned.len()), (0, 0), "values are no records");
    assert_eq!(buffer.channels().unwrap()[0].queued, 64);
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn timeouts_and_deadlines() {
    let _dog = common::watchdog();
    let name = Name::new("timeout");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = pair::<u64>(&ctx, 1, 2);
    let past = Instant::now();
    let (none, some) = (Duration::ZERO, Duration::from_millis(30));
    for timeout in [none, Duration::from_nanos(1), some] {
        let start = Instant::now();
        assert_eq!(rx.recv_timeout(timeout), Err(RecvTimeoutError::Timeout(timeout)));
        assert_eq!(rx.recv_batch_timeout(5, timeout), Err(RecvTimeoutError::Timeout(timeout)));
        assert!(start.elapsed() >= 2 * timeout);
    }
    assert!(matches!(rx.recv_deadline(past), Err(RecvTimeoutError::Timeout(_))));
    assert!(matches!(rx.recv_batch_deadline(5, past), Err(RecvTimeoutError::Timeout(_))));
    tx.send_timeout(1, none).unwrap();
    tx.send_deadline(2, past).unwrap();
    let start = Instant::now();
    assert!(matches!(tx.send_timeout(3, some), Err(SendTimeoutError::Timeout(3))));
    assert!(matches!(tx.send_batch_timeout([3, 4], some), Err(SendTimeoutError::Timeout(rest)) if rest == [3, 4]));
    assert!(start.elapsed() >= 2 * some);
    assert!(matches!(tx.send_deadline(3, past), Err(SendTimeoutError::Timeout(3))));
    assert!(matches!(tx.send_batch_deadline([3], past), Err(SendTimeoutError::Timeout(rest)) if rest == [3]));
    assert_eq!((rx.recv_timeout(none), rx.recv_deadline(past)), (Ok(1), Ok(2)));
    // Half of a batch in time, the other half comes back.
    let late = tx.send_batch_timeout(3..7, some);
    assert!(matches!(late, Err(SendTimeoutError::Timeout(rest)) if rest == [5, 6]));
    assert_eq!(rx.recv_batch_timeout(9, Duration::MAX), Ok(vec![3, 4]));
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn leaving_and_coming_back() {
    let _dog = common::watchdog();
    let name = Name::new("leave");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.value_consumer_with::<u64>(1, &slots(4)).unwrap();
    let mut next = 0;
    for round in 0..50 {
        let mut tx = ctx.value_producer::<u64>(1).unwrap();
        assert!(rx.has_producer() && tx.has_consumer());
        (0..=round % 4).for_each(|i| tx.try_send(next + i).unwrap());
        drop(tx);
        // The next one finds its place behind what is queued.
        let mut tx = ctx.value_producer::<u64>(1).unwrap();
        assert_eq!(tx.len() as u64, round % 4 + 1);
        let more = tx.try_send(next + round % 4 + 1).is_ok();
        assert_eq!(more, round % 4 < 3);
        drop(tx);
        let count = round % 4 + 1 + u64::from(more);
        assert!(rx.iter().eq(next..next + count), "what is queued comes before the news that its sender left");
        next += count;
        assert_eq!((rx.try_recv(), rx.recv()), (Err(GONE), Err(RecvError::Disconnected)));
        assert_eq!((rx.try_recv_batch(3), rx.recv_batch(3)), (Err(GONE), Err(RecvError::Disconnected)));
        assert_eq!(rx.recv_timeout(LONG), Err(RecvError::Disconnected.into()));
    }
    let mut tx = ctx.value_producer::<u64>(1).unwrap();
    (0..3).for_each(|i| tx.send(i).unwrap());
    assert_eq!(rx.recv(), Ok(0));
    drop(rx);
    assert!(matches!(tx.try_send(5), Err(TrySendError::Disconnected(5))));
    assert!(matches!(tx.send(5), Err(SendError::Disconnected(5))));
    assert!(matches!(tx.send_timeout(5, LONG), Err(SendTimeoutError::Disconnected(5))));
    assert!(matches!(tx.send_batch([5, 6]), Err(SendError::Disconnected(rest)) if rest == [5, 6]));
    let rx = ctx.value_consumer::<u64>(1).unwrap();
    tx.try_send(3).unwrap();
    drop(tx);
    assert!(rx.into_iter().eq(1..4));
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn a_closed_context_says_so() {
    let name = Name::new("closed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = pair::<u64>(&ctx, 1, 8);
    tx.send(1).unwrap();
    drop(ctx);
    assert!(matches!(tx.send(2), Err(SendError::ContextClosed(2))));
    assert!(matches!(tx.try_send_batch(0..3), Err(TrySendError::ContextClosed(rest)) if rest == [0, 1, 2]));
    assert_eq!(rx.recv(), Err(RecvError::ContextClosed));
    assert_eq!(rx.recv_batch(3), Err(RecvError::ContextClosed));
    assert_eq!((tx.capacity(), rx.len(), tx.has_consumer()), (0, 0, false));
    work::end(buffer, &name);
}

#[test]
fn what_is_queued_persists() {
    let name = Name::new("persist");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.value_producer_with::<[u8; 24]>(1, &slots(8).persistent(true)).unwrap();
    (0..5).for_each(|i| tx.send([i; 24]).unwrap());
    drop(tx);
    common::sound(&buffer);
    let mut rx = ctx.value_consumer::<[u8; 24]>(1).unwrap();
    assert_eq!(rx.recv(), Ok([0; 24]));
    drop(rx);
    let mut tx = ctx.value_producer::<[u8; 24]>(1).unwrap();
    tx.send([5; 24]).unwrap();
    drop((tx, ctx));
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.value_consumer::<[u8; 24]>(1).unwrap();
    assert!(rx.try_iter().eq((1..6).map(|i| [i; 24])));
    assert!(buffer.remove_channel(1).unwrap());
    drop((rx, ctx));
    work::end(buffer, &name);
}

/// A value that shows if any of its words is another one's.
type Wide = [u64; 7];

fn wide(number: u64) -> Wide {
    std::array::from_fn(|i| number.wrapping_mul(i as u64 * 2 + 1))
}

/// Values by ones and in batches, with pauses now and then.
fn stream(ctx: &ThreadContext, count: u64) {
    let mut tx = ctx.value_producer_with::<Wide>(1, &slots(32)).unwrap();
    let mut rng = work::Rng::new(1);
    let mut next = 0;
    while next < count {
        match rng.below(40) {
            0 => std::thread::sleep(Duration::from_micros(rng.below(300))),
            1..10 => {
                let end = count.min(next + rng.below(60));
                tx.send_batch((next..end).map(wide)).unwrap();
                next = end;
            }
            _ => {
                tx.send(wide(next)).unwrap();
                next += 1;
            }
        }
    }
    assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
}

#[test]
fn streams_between_processes() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    const COUNT: u64 = 200_000;
    if let Some((_, buffer)) = common::role() {
        return stream(&Buffer::open(&buffer).unwrap().context().unwrap(), COUNT);
    }
    let name = Name::new("stream");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let child = common::start("streams_between_processes", "sends", &name);
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.value_consumer_with::<Wide>(1, &slots(32)).unwrap();
    let mut rng = work::Rng::new(2);
    let mut next = 0;
    let mut expect = |value: Wide| {
        assert_eq!(value, wide(next));
        next += 1;
    };
    loop {
        let received = match rng.below(40) {
            0 => {
                std::thread::sleep(Duration::from_micros(rng.below(300)));
                continue;
            }
            1..10 => rx.recv_batch(1 + rng.below(60) as usize).map(|batch| batch.into_iter().for_each(&mut expect)),
            10..12 => {
                rx.try_iter().take(3).for_each(&mut expect);
                continue;
            }
            _ => rx.recv().map(&mut expect),
        };
        match received {
            Ok(()) => {}
            Err(RecvError::Disconnected) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(next, COUNT);
    child.success();
    drop((rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn there_and_back() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    const COUNT: u64 = 20_000;
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut back = ctx.value_producer_with::<[u64; 2]>(2, &slots(2)).unwrap();
        for [number, twice] in ctx.value_consumer_with::<[u64; 2]>(1, &slots(2)).unwrap() {
            back.send([number + 1, twice + 2]).unwrap();
        }
        return;
    }
    let name = Name::new("back");
    let buffer = Buffer::open(&name).unwrap();
    let child = common::start("there_and_back", "echo", &name);
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.value_producer_with::<[u64; 2]>(1, &slots(2)).unwrap();
    let mut rx = ctx.value_consumer_with::<[u64; 2]>(2, &slots(2)).unwrap();
    for i in 0..COUNT {
        tx.send([i, 2 * i]).unwrap();
        assert_eq!(rx.recv(), Ok([i + 1, 2 * i + 2]));
    }
    drop(tx);
    child.success();
    drop((rx, ctx));
    work::end(buffer, &name);
}
