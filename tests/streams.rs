//! Long streams between processes: everything arrives, once, in order, undamaged, in a heap far smaller than the traffic.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::{Name, Watchdog};
use ipc_buffer::{Buffer, Channel, ChannelOptions, Consumer, Producer, ThreadContext};
use std::time::Duration;

const WORDS: usize = 60;

fn ends(
    ctx: &ThreadContext,
    from: i64,
    to: i64,
    capacity: usize,
) -> (Channel<[u64], Consumer>, Channel<[u64], Producer>) {
    let options = ChannelOptions::new().capacity(capacity);
    (ctx.consumer_with(from, &options).unwrap(), ctx.producer_with(to, &options).unwrap())
}

/// Sends on what comes, until nothing comes any more.
fn forward(buffer: &Buffer, from: i64, to: i64, capacity: usize) {
    let ctx = buffer.context().unwrap();
    let (rx, mut tx) = ends(&ctx, from, to, capacity);
    for record in rx {
        work::number(&record);
        tx.send(record).unwrap();
    }
}

/// One thread sends `count` numbered records on channel `to`, another expects them on `from`.
fn send_and_expect(buffer: &Buffer, to: i64, from: i64, capacity: usize, count: u64) {
    let options = ChannelOptions::new().capacity(capacity);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<[u64]>(to, &options).unwrap();
            for i in 0..count {
                tx.send(work::numbered(&ctx, i, WORDS)).unwrap();
            }
            // Its end is the news that it was all: not before somebody is there to hear it.
            assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
        });
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.consumer_with::<[u64]>(from, &options).unwrap();
        let mut expected = 0;
        for record in rx.iter() {
            assert_eq!(work::number(&record), expected, "on channel {from}");
            expected += 1;
        }
        assert_eq!(expected, count, "on channel {from}");
    });
}

#[test]
fn there_and_back_a_million_times() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    if let Some((_, buffer)) = common::role() {
        return forward(&Buffer::open(&buffer).unwrap(), 1, 2, 256);
    }
    let name = Name::new("million");
    // 2^20 records of up to 480 bytes through 1 MiB.
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let child = common::start("there_and_back_a_million_times", "forward", &name);
    send_and_expect(&buffer, 1, 2, 256, 1 << 20);
    child.success();
    work::end(buffer, &name);
}

#[test]
fn several_threads_and_channels() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    const PAIRS: i64 = 3;
    let capacity = |pair: i64| 2 << (pair * 3);
    if let Some((_, buffer)) = common::role() {
        let buffer = Buffer::open(&buffer).unwrap();
        std::thread::scope(|scope| {
            for pair in 0..PAIRS {
                let buffer = &buffer;
                scope.spawn(move || forward(buffer, pair, -1 - pair, capacity(pair)));
            }
        });
        return;
    }
    let name = Name::new("threads");
    let buffer = Buffer::options().capacity(4 << 20).open(&name).unwrap();
    let child = common::start("several_threads_and_channels", "forward", &name);
    std::thread::scope(|scope| {
        for pair in 0..PAIRS {
            let buffer = &buffer;
            scope.spawn(move || send_and_expect(buffer, pair, -1 - pair, capacity(pair), 8000));
        }
    });
    child.success();
    work::end(buffer, &name);
}

#[test]
fn one_thread_serves_many_channels() {
    let _dog = common::watchdog();
    const CHANNELS: i64 = 16;
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut txs: Vec<_> = (0..CHANNELS).map(|id| ctx.producer::<[u64]>(id).unwrap()).collect();
        for i in 0..1000 {
            for tx in &mut txs {
                tx.send(work::numbered(&ctx, i, WORDS)).unwrap();
            }
        }
        assert!(txs.iter().all(|tx| tx.wait_for_consumer(Duration::MAX).is_ok()));
        return;
    }
    let name = Name::new("many");
    let buffer = Buffer::options().capacity(16 << 20).open(&name).unwrap();
    let child = common::start("one_thread_serves_many_channels", "sends", &name);
    let ctx = buffer.context().unwrap();
    let mut rxs: Vec<_> = (0..CHANNELS).map(|id| (ctx.consumer::<[u64]>(id).unwrap(), 0)).collect();
    while rxs.iter().any(|(_, next)| *next < 1000) {
        for (rx, next) in &mut rxs {
            for record in rx.try_iter() {
                assert_eq!(work::number(&record), *next);
                *next += 1;
            }
        }
        std::thread::yield_now();
    }
    child.success();
    drop((rxs, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_ring_of_three_processes() {
    let _dog = Watchdog::new(Duration::from_secs(150));
    if let Some((role, buffer)) = common::role() {
        let from: i64 = role.parse().unwrap();
        return forward(&Buffer::open(&buffer).unwrap(), from, from + 1, 32);
    }
    let name = Name::new("ring");
    let buffer = Buffer::options().capacity(1 << 20).open(&name).unwrap();
    let children = ["1", "2"].map(|from| common::start("a_ring_of_three_processes", from, &name));
    send_and_expect(&buffer, 1, 3, 32, 50_000);
    children.into_iter().for_each(common::Process::success);
    work::end(buffer, &name);
}

/// Where a place of this process is in the segment's file.
fn file_offset(name: &str, address: *const u64) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let address = address.addr() as u64;
    let found = maps.lines().filter(|line| line.ends_with(name)).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = number(fields.nth(1)?);
        (number(start)..number(end)).contains(&address).then(|| address - number(start) + offset)
    });
    found.expect("the record lies in the segment")
}

/// Bytes of shared memory that this process has touched.
fn touched() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).expect("RssShmem");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// 64 MiB go through five processes: each finds the same block at the same place of the file, and looks at its first words only.
#[test]
fn a_huge_record_is_handed_on_and_not_copied() {
    let _dog = common::watchdog();
    const HOPS: usize = 4;
    const WORDS: usize = (64 << 20) / 8;
    if let Some((role, name)) = common::role() {
        let hop: usize = role.parse().unwrap();
        let ctx = Buffer::open(&name).unwrap().context().unwrap();
        let mut tx = ctx.producer::<[u64]>(hop as i64 + 1).unwrap();
        for mut record in ctx.consumer::<[u64]>(hop as i64).unwrap() {
            assert_eq!(record.len(), WORDS);
            record[hop] = file_offset(&name, record.as_ptr());
            tx.send(record).unwrap();
        }
        assert!(touched() < 8 << 20, "{} bytes were touched", touched());
        return;
    }
    let name = Name::new("huge");
    // Room for one.
    let buffer = Buffer::options().capacity(100 << 20).open(&name).unwrap();
    let children: Vec<_> = (0..HOPS)
        .map(|hop| common::start("a_huge_record_is_handed_on_and_not_copied", &hop.to_string(), &name))
        .collect();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = (ctx.producer::<[u64]>(0).unwrap(), ctx.consumer::<[u64]>(HOPS as i64).unwrap());
    let mut record = ctx.slice_uninit::<u64>(WORDS).unwrap().assume_init();
    let here = file_offset(&name, record.as_ptr());
    for round in 0..20 {
        record[..HOPS].fill(0);
        record[WORDS - 1] = round;
        tx.send(record).unwrap();
        record = rx.recv().unwrap();
        assert!(record[..HOPS].iter().all(|seen| *seen == here), "{here}: {:?}", &record[..HOPS]);
        assert_eq!((file_offset(&name, record.as_ptr()), record[WORDS - 1]), (here, round));
    }
    drop((tx, record));
    children.into_iter().for_each(common::Process::success);
    drop((rx, ctx));
    work::end(buffer, &name);
}
