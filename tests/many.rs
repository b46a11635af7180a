//! Many channels: what they take, and that they work, both ends in different processes.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::{Name, Watchdog};
use ipc_buffer::{Buffer, ChannelOptions};
use std::time::Duration;

/// Bytes in use by one channel that `attach` makes.
fn footprint<E>(buffer: &Buffer, attach: impl FnOnce() -> E) -> u64 {
    let used = || buffer.stats().unwrap().used_bytes;
    let before = used();
    let _end = attach();
    used() - before
}

#[test]
fn a_channel_is_small() {
    let name = Name::new("footprint");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let slots = |n| ChannelOptions::new().capacity(n);
    let bytes = [
        footprint(&buffer, || ctx.producer::<u64>(1).unwrap()),
        footprint(&buffer, || ctx.producer::<[u8]>(1).unwrap()),
        footprint(&buffer, || ctx.producer::<[u64; 1 << 20]>(1).unwrap()),
    ];
    assert!(bytes.iter().all(|bytes| *bytes < 16 << 10), "{bytes:?}");
    // Seven to a line, a line more, and at most 25 % and 1 KiB more.
    let values = footprint(&buffer, || ctx.value_producer::<u64>(1).unwrap());
    assert!((148 * 64..=148 * 80 + 1024).contains(&values) && values < 16 << 10, "{values}");
    // Three to a line.
    let values = footprint(&buffer, || ctx.value_producer::<[u64; 2]>(1).unwrap());
    assert!((342 * 64..=342 * 80 + 1024).contains(&values), "{values}");
    let least = footprint(&buffer, || ctx.producer_with::<u64>(1, &slots(2)).unwrap());
    assert!(least <= 640, "{least}");
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn ten_thousand_channels() {
    let _dog = Watchdog::new(Duration::from_secs(170));
    const CHANNELS: i64 = 10_000;
    const ROUNDS: u64 = 5;
    // Any order will do, as long as both sides find the same channels.
    let id = |i: i64| (i * 7919 % CHANNELS - 5000) << 20;
    let slots = ChannelOptions::new().capacity(8);
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut records: Vec<_> =
            (0..CHANNELS).step_by(2).map(|i| ctx.producer_with::<u64>(id(i), &slots).unwrap()).collect();
        let mut values: Vec<_> =
            (1..CHANNELS).step_by(2).map(|i| ctx.value_producer_with::<u64>(id(i), &slots).unwrap()).collect();
        for round in 0..ROUNDS {
            for tx in &mut records {
                let number = tx.id().cast_unsigned() + round;
                tx.send(ctx.record(number).unwrap()).unwrap();
            }
            for tx in &mut values {
                tx.send(tx.id().cast_unsigned() + round).unwrap();
            }
        }
        assert!(records.iter().all(|tx| tx.wait_for_consumer(Duration::MAX).is_ok()));
        assert!(values.iter().all(|tx| tx.wait_for_consumer(Duration::MAX).is_ok()));
        return;
    }
    let name = Name::new("10000");
    let buffer = Buffer::options().capacity(64 << 20).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    // Attached meanwhile: either side may be first at a channel.
    let child = common::start("ten_thousand_channels", "sends", &name);
    let mut records: Vec<_> =
        (0..CHANNELS).rev().step_by(2).map(|i| ctx.consumer_with::<u64>(id(i - 1), &slots).unwrap()).collect();
    let mut values: Vec<_> =
        (0..CHANNELS).rev().step_by(2).map(|i| ctx.value_consumer_with::<u64>(id(i), &slots).unwrap()).collect();
    for round in 0..ROUNDS {
        for rx in &mut records {
            assert_eq!(*rx.recv().unwrap(), rx.id().cast_unsigned() + round);
        }
        for rx in &mut values {
            assert_eq!(rx.recv(), Ok(rx.id().cast_unsigned() + round));
        }
    }
    child.success();
    let channels = buffer.channels().unwrap();
    assert_eq!(channels.len(), CHANNELS as usize);
    assert!(channels.iter().all(|info| info.queued == 0 && info.producer.is_none() && info.consumer.is_some()));
    common::sound(&buffer);
    drop((records, values));
    assert!(buffer.channels().unwrap().is_empty());
    drop(ctx);
    work::end(buffer, &name);
}
