//! SPSC channels: attaching, sending, receiving, leaving, and everything that is refused.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::Name;
use ipc_buffer::{
    AttachError, Buffer, ChannelOptions, PeerError, RecvError, RecvTimeoutError, SendError, SendTimeoutError,
    TryRecvError, TrySendError,
};
use std::time::{Duration, Instant};

const GONE: TryRecvError = TryRecvError::Recv(RecvError::Disconnected);
const LONG: Duration = Duration::from_secs(50);

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

#[test]
fn either_side_first() {
    let name = Name::new("first");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for producer_first in [true, false] {
        let (mut tx, mut rx) = if producer_first {
            let mut tx = ctx.producer::<u64>(1).unwrap();
            tx.send(ctx.record(0).unwrap()).unwrap();
            (tx, ctx.consumer::<u64>(1).unwrap())
        } else {
            let rx = ctx.consumer::<u64>(1).unwrap();
            let mut tx = ctx.producer::<u64>(1).unwrap();
            tx.send(ctx.record(0).unwrap()).unwrap();
            (tx, rx)
        };
        tx.send(ctx.record(1).unwrap()).unwrap();
        assert_eq!((*rx.recv().unwrap(), *rx.recv().unwrap()), (0, 1));
        assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn any_id() {
    let name = Name::new("id");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let ids = [i64::MIN, i64::MIN + 1, -1, 0, 1, 1 << 32, i64::MAX];
    let mut ends: Vec<_> =
        ids.iter().map(|id| (ctx.producer::<i64>(*id).unwrap(), ctx.consumer::<i64>(*id).unwrap())).collect();
    for (tx, _) in &mut ends {
        let id = tx.id();
        tx.send(ctx.record(id).unwrap()).unwrap();
    }
    assert_eq!(buffer.channels().unwrap().iter().map(|info| info.id).collect::<Vec<_>>(), ids);
    for (id, (_, rx)) in ids.iter().zip(&mut ends) {
        assert!(buffer.has_channel(*id).unwrap());
        assert_eq!((rx.id(), *rx.recv().unwrap()), (*id, *id));
    }
    drop((ends, ctx));
    assert!(ids.iter().all(|id| !buffer.has_channel(*id).unwrap()));
    work::end(buffer, &name);
}

#[test]
fn thousands_of_channels_come_and_go() {
    let _dog = common::watchdog();
    let name = Name::new("many");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut open = Vec::new();
    for round in 0..3_i64 {
        for id in 0..1000 {
            let mut tx = ctx.producer_with::<i64>(id * 7 - 3000, &slots(2)).unwrap();
            tx.send(ctx.record(id + round).unwrap()).unwrap();
            open.push(tx);
        }
        // In an order of their own, so that the directory gets holes everywhere.
        let mut rng = work::Rng::new(round as u64);
        while open.len() > 100 {
            let tx = open.swap_remove(rng.below(open.len() as u64) as usize);
            let mut rx = ctx.consumer::<i64>(tx.id()).unwrap();
            assert_eq!(*rx.recv().unwrap(), (tx.id() + 3000) / 7 + round);
        }
        assert_eq!(buffer.channels().unwrap().len(), 100);
        open.clear();
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn capacities() {
    let name = Name::new("capacity");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let max = 1 << 24;
    for capacity in [0, 1, 3, 1000, max - 1, max + 1, max * 2, usize::MAX] {
        let error = ctx.producer_with::<u8>(1, &slots(capacity)).unwrap_err();
        assert_eq!(error, AttachError::Capacity { capacity, max });
    }
    assert!(!buffer.has_channel(1).unwrap());
    assert_eq!(ctx.producer::<u8>(1).unwrap().capacity(), 1024);
    for capacity in [2, 64, max] {
        let tx = ctx.producer_with::<u8>(1, &slots(capacity)).unwrap();
        let asked = AttachError::CapacityMismatch { id: 1, asked: 16, actual: capacity };
        assert_eq!(ctx.consumer_with::<u8>(1, &slots(16)).unwrap_err(), asked);
        drop(ctx.consumer_with::<u8>(1, &slots(capacity)).unwrap());
        // Who comes later and does not ask gets what is there.
        let rx = ctx.consumer::<u8>(1).unwrap();
        assert_eq!(
            (tx.capacity(), rx.capacity(), buffer.channels().unwrap()[0].capacity),
            (capacity, capacity, capacity)
        );
    }
    // A queue that the buffer has no room for.
    let little = Name::new("little");
    let other = Buffer::options().capacity(256 << 10).open(&little).unwrap();
    let there = other.context().unwrap();
    let error = there.consumer_with::<u8>(1, &slots(max)).unwrap_err();
    assert!(
        matches!(error, AttachError::OutOfMemory { asked, free } if asked > 128 << 20 && free == 256 << 10),
        "{error}"
    );
    drop((ctx, there));
    work::end(other, &little);
    work::end(buffer, &name);
}

#[test]
fn full_gives_the_record_back() {
    let name = Name::new("full");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(2)).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let (mut sent, mut received) = (0_u64, 0_u64);
    // Around the ring many times, at every fill level.
    for round in 0..3000_u64 {
        while sent - received < 2 {
            tx.try_send(ctx.record(sent).unwrap()).unwrap();
            sent += 1;
        }
        let record = ctx.record(sent).unwrap();
        let address = std::ptr::from_ref(&*record);
        let Err(TrySendError::Full(record)) = tx.try_send(record) else { panic!("two slots hold two records") };
        assert_eq!((std::ptr::from_ref(&*record), *record, tx.len(), rx.len()), (address, sent, 2, 2));
        for _ in 0..=round % 2 {
            assert_eq!(*rx.try_recv().unwrap(), received);
            received += 1;
        }
    }
    let error = TrySendError::Full(ctx.record(9_u64).unwrap());
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!(*error.into_inner(), 9);
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn blocking_ends_wait_for_each_other() {
    let _dog = common::watchdog();
    let name = Name::new("block");
    let buffer = Buffer::open(&name).unwrap();
    let open = buffer.clone();
    let consumer = std::thread::spawn(move || {
        let ctx = open.context().unwrap();
        let mut rng = work::Rng::new(2);
        let mut expected = 0_u64;
        for record in ctx.consumer_with::<u64>(1, &slots(2)).unwrap() {
            assert_eq!(*record, expected);
            expected += 1;
            if rng.below(500) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        expected
    });
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(2)).unwrap();
    let mut rng = work::Rng::new(1);
    for i in 0..20_000 {
        tx.send(ctx.record(i).unwrap()).unwrap();
        if rng.below(500) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // So that it surely has come before we leave.
    assert!(tx.wait_for_consumer(LONG).is_ok());
    drop((tx, ctx));
    assert_eq!(consumer.join().unwrap(), 20_000);
    work::end(buffer, &name);
}

#[test]
fn timeouts_and_deadlines() {
    let _dog = common::watchdog();
    let name = Name::new("timeout");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(2)).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let past = Instant::now();
    let (none, some) = (Duration::ZERO, Duration::from_millis(30));

    // Empty: each waits as long as it was told, and no less.
    for timeout in [none, Duration::from_nanos(1), some, Duration::from_millis(250)] {
        let start = Instant::now();
        assert_eq!(rx.recv_timeout(timeout).unwrap_err(), RecvTimeoutError::Timeout(timeout));
        assert!(start.elapsed() >= timeout);
    }
    assert!(matches!(rx.recv_deadline(past), Err(RecvTimeoutError::Timeout(_))));
    let soon = Instant::now() + some;
    assert!(matches!(rx.recv_deadline(soon), Err(RecvTimeoutError::Timeout(_))));
    assert!(Instant::now() >= soon);

    // Something is there, or there is room: no time is needed.
    tx.send_timeout(ctx.record(1).unwrap(), none).unwrap();
    tx.send_deadline(ctx.record(2).unwrap(), past).unwrap();
    let Err(SendTimeoutError::Timeout(three)) = tx.send_timeout(ctx.record(3).unwrap(), none) else { panic!() };
    let start = Instant::now();
    let Err(SendTimeoutError::Timeout(three)) = tx.send_timeout(three, some) else { panic!() };
    assert!(start.elapsed() >= some);
    let Err(SendTimeoutError::Timeout(three)) = tx.send_deadline(three, past) else { panic!() };
    assert_eq!(*rx.recv_timeout(none).unwrap(), 1);
    assert_eq!(*rx.recv_deadline(past).unwrap(), 2);
    tx.send_timeout(three, Duration::MAX).unwrap();
    assert_eq!(*rx.recv_timeout(Duration::MAX).unwrap(), 3);

    // For ever means until something happens.
    let open = buffer.clone();
    let helper = std::thread::spawn(move || {
        let ctx = open.context().unwrap();
        let mut back = ctx.producer::<u64>(2).unwrap();
        std::thread::sleep(Duration::from_millis(150));
        back.send(ctx.record(4).unwrap()).unwrap();
        assert!(back.wait_for_consumer(Duration::MAX).is_ok());
        let mut rx = ctx.consumer::<u64>(3).unwrap();
        std::thread::sleep(Duration::from_millis(150));
        (0..3).map(|_| *rx.recv_timeout(Duration::MAX).unwrap()).collect::<Vec<_>>()
    });
    let mut back = ctx.consumer::<u64>(2).unwrap();
    assert_eq!(*back.recv_timeout(Duration::MAX).unwrap(), 4);
    let mut tx3 = ctx.producer::<u64>(3).unwrap();
    for i in 0..3 {
        tx3.send_timeout(ctx.record(i).unwrap(), Duration::MAX).unwrap();
    }
    assert_eq!(helper.join().unwrap(), [0, 1, 2]);
    assert!(!buffer.wait_for_channel(77, none).unwrap());
    assert!(buffer.wait_for_channel(1, Duration::MAX).unwrap());
    drop((tx, rx, tx3, back, ctx));
    work::end(buffer, &name);
}

#[test]
fn nobody_is_disconnected_before_the_first_peer_came() {
    let _dog = common::watchdog();
    let name = Name::new("before");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(2)).unwrap();
    let mut rx = ctx.consumer::<u64>(2).unwrap();
    assert!(!tx.has_consumer() && !rx.has_producer());
    assert!(tx.wait_for_consumer(Duration::ZERO).is_err() && rx.wait_for_producer(Duration::from_millis(10)).is_err());
    tx.send(ctx.record(1).unwrap()).unwrap();
    tx.try_send(ctx.record(2).unwrap()).unwrap();
    assert!(matches!(tx.try_send(ctx.record(3).unwrap()), Err(TrySendError::Full(_))));
    let more_than_a_tick = Duration::from_millis(250);
    assert!(matches!(tx.send_timeout(ctx.record(3).unwrap(), more_than_a_tick), Err(SendTimeoutError::Timeout(_))));
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
    assert_eq!(rx.recv_timeout(more_than_a_tick).unwrap_err(), RecvTimeoutError::Timeout(more_than_a_tick));
    // Nor because somebody else was in another channel.
    drop(ctx.producer::<u64>(3).unwrap());
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_producer_that_leaves_and_the_next_one() {
    let _dog = common::watchdog();
    let name = Name::new("producers");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &slots(4)).unwrap();
    let mut next = 0;
    // Each finds its place behind what the last one left, at every position of the ring.
    for round in 0..50 {
        let mut tx = ctx.producer::<u64>(1).unwrap();
        assert_eq!(tx.len(), 0);
        for i in 0..=round % 4 {
            tx.send(ctx.record(next + i).unwrap()).unwrap();
        }
        assert!(rx.has_producer());
        drop(tx);
        assert!(!rx.has_producer());
        if round % 3 == 0 && round % 4 < 3 {
            // Behind queued records.
            let mut tx = ctx.producer::<u64>(1).unwrap();
            assert_eq!(tx.len(), round as usize % 4 + 1);
            tx.send(ctx.record(next + round % 4 + 1).unwrap()).unwrap();
            drop(tx);
            assert_eq!(*rx.recv().unwrap(), next);
            next += 1;
        }
        for _ in 0..=round % 4 {
            assert_eq!(*rx.recv().unwrap(), next, "what is queued comes before the news that its sender left");
            next += 1;
        }
        assert_eq!(rx.try_recv().unwrap_err(), GONE);
        assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
        assert_eq!(rx.recv_timeout(LONG).unwrap_err(), RecvTimeoutError::Recv(RecvError::Disconnected));
    }
    drop((rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_consumer_that_leaves_and_the_next_one() {
    let _dog = common::watchdog();
    let name = Name::new("consumers");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(4)).unwrap();
    let (mut sent, mut received) = (0, 0);
    for round in 0..50 {
        let mut rx = ctx.consumer::<u64>(1).unwrap();
        assert_eq!(rx.len() as u64, sent - received, "what the last one did not take is still there");
        while let Err(TrySendError::Full(_)) = tx.try_send(ctx.record(sent).unwrap()).map(|()| sent += 1) {
            assert_eq!(*rx.recv().unwrap(), received);
            received += 1;
        }
        for _ in 0..round % 3 {
            tx.try_send(ctx.record(sent).unwrap()).map(|()| sent += 1).ok();
            assert_eq!(*rx.recv().unwrap(), received);
            received += 1;
        }
        assert!(tx.has_consumer());
        drop(rx);
        assert!(!tx.has_consumer());
        let record = ctx.record(1000).unwrap();
        let Err(TrySendError::Disconnected(record)) = tx.try_send(record) else { panic!() };
        let Err(SendError::Disconnected(record)) = tx.send(record) else { panic!() };
        let Err(SendTimeoutError::Disconnected(record)) = tx.send_timeout(record, LONG) else { panic!() };
        assert_eq!(*record, 1000);
    }
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    while let Ok(record) = rx.try_recv() {
        assert_eq!(*record, received);
        received += 1;
    }
    assert_eq!(sent, received);
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn leaving_wakes_who_waits() {
    let _dog = common::watchdog();
    let name = Name::new("wakes");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for _ in 0..5 {
        let (tx, rx) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer_with::<u64>(2, &slots(2)).unwrap());
        let open = buffer.clone();
        let other = std::thread::spawn(move || {
            let ctx = open.context().unwrap();
            let mut rx = ctx.consumer::<u64>(1).unwrap();
            let mut tx = ctx.producer::<u64>(2).unwrap();
            let received = rx.recv().unwrap_err();
            let error = (0..3).find_map(|i| tx.send(ctx.record(i).unwrap()).err());
            (received, matches!(error, Some(SendError::Disconnected(_))))
        });
        assert!(tx.wait_for_consumer(LONG).is_ok() && rx.wait_for_producer(LONG).is_ok());
        std::thread::sleep(Duration::from_millis(20));
        drop(tx);
        std::thread::sleep(Duration::from_millis(20));
        drop(rx);
        assert_eq!(other.join().unwrap(), (RecvError::Disconnected, true));
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn a_second_end_is_refused_with_who_has_the_role() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _rx = ctx.consumer::<u64>(1).unwrap();
        let _tx = ctx.producer::<u64>(2).unwrap();
        assert_eq!(*ctx.consumer::<u64>(3).unwrap().recv().unwrap(), 1, "told to go");
        return;
    }
    let name = Name::new("taken");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut stop = ctx.producer::<u64>(3).unwrap();
    let error = ctx.producer::<u64>(3).unwrap_err();
    let AttachError::RoleTaken { id: 3, role: ipc_buffer::Side::Producer, pid, thread } = error else {
        panic!("{error}")
    };
    assert_eq!(pid, std::process::id());
    let other_thread =
        std::thread::scope(|scope| scope.spawn(|| buffer.context().unwrap().producer::<u64>(3).unwrap_err()).join());
    assert_eq!(other_thread.unwrap(), AttachError::RoleTaken { id: 3, role: ipc_buffer::Side::Producer, pid, thread });

    let child = common::start("a_second_end_is_refused_with_who_has_the_role", "holder", &name);
    assert!(stop.wait_for_consumer(LONG).is_ok());
    for (error, role) in
        [(ctx.consumer::<u64>(1).unwrap_err(), "consumer"), (ctx.producer::<u64>(2).unwrap_err(), "producer")]
    {
        assert!(matches!(error, AttachError::RoleTaken { pid, .. } if pid == child.pid()), "{error}");
        let message = error.to_string();
        assert!(message.contains(role) && message.contains(&format!("process {}", child.pid())), "{message}");
    }
    let info = &buffer.channels().unwrap()[1];
    assert_eq!((info.id, info.producer, info.consumer), (2, Some(child.pid()), None));
    stop.send(ctx.record(1).unwrap()).unwrap();
    child.success();
    let _tx = ctx.producer::<u64>(2).unwrap();
    drop(_tx);
    drop((stop, ctx));
    work::end(buffer, &name);
}

mod here {
    #[repr(C)]
    #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
    pub(crate) struct Sample {
        pub(crate) t_ns: u64,
        pub(crate) value: f64,
    }
}

mod there {
    #[repr(C)]
    #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
    pub(crate) struct Sample {
        pub(crate) t_ns: u64,
        pub(crate) value: f64,
    }

    pub(crate) mod smaller {
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct Sample(pub(crate) u64);
    }
}

#[test]
fn types_must_agree() {
    let name = Name::new("types");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<here::Sample>(1).unwrap();
    // The same type from another place.
    let mut rx = ctx.consumer::<there::Sample>(1).unwrap();
    tx.send(ctx.record(here::Sample { t_ns: 7, value: 1.5 }).unwrap()).unwrap();
    let got = rx.recv().unwrap();
    assert_eq!((got.t_ns, got.value), (7, 1.5));
    drop(rx);

    let refused = |error: AttachError, ours: &str| {
        let AttachError::TypeMismatch { id: 1, ours: o, theirs } = &error else { panic!("{error}") };
        assert_eq!((o.as_str(), theirs.as_str()), (ours, "Sample (16 bytes, align 8)"));
        let message = error.to_string();
        assert!(message.contains(ours) && message.contains("Sample (16 bytes, align 8)"), "{message}");
    };
    refused(ctx.consumer::<[u64; 2]>(1).unwrap_err(), "[u64; 2] (16 bytes, align 8)");
    refused(ctx.consumer::<there::smaller::Sample>(1).unwrap_err(), "Sample (8 bytes, align 8)");
    refused(ctx.consumer::<[there::Sample]>(1).unwrap_err(), "[Sample] (16 bytes, align 8)");
    refused(ctx.producer::<u8>(1).unwrap_err(), "u8 (1 bytes, align 1)");
    let tagged = ChannelOptions::new().type_tag("sample/2");
    refused(ctx.consumer_with::<here::Sample>(1, &tagged).unwrap_err(), "sample/2 (16 bytes, align 8)");
    // No refusal has cost anything: the type fits, so it attaches.
    drop(ctx.consumer::<here::Sample>(1).unwrap());

    // A tag stands for the name, not for size and form.
    let _a = ctx.producer_with::<here::Sample>(2, &tagged).unwrap();
    let _b = ctx.consumer_with::<[u64; 2]>(2, &tagged).unwrap();
    assert_eq!(buffer.channels().unwrap()[1].carries, "sample/2 (16 bytes, align 8)");
    let _c = ctx.producer_with::<here::Sample>(3, &tagged).unwrap();
    assert!(matches!(ctx.consumer_with::<u64>(3, &tagged), Err(AttachError::TypeMismatch { .. })));
    assert!(matches!(ctx.consumer_with::<[here::Sample]>(3, &tagged), Err(AttachError::TypeMismatch { .. })));
    assert!(matches!(ctx.consumer::<here::Sample>(3), Err(AttachError::TypeMismatch { .. })));

    // Of a long tag the beginning is kept, in whole characters; all of it counts.
    let long = |end: &str| ChannelOptions::new().type_tag(format!("{}{end}", "x".repeat(110) + &"\u{e4}".repeat(20)));
    let _d = ctx.producer_with::<u8>(4, &long("1")).unwrap();
    let _e = ctx.consumer_with::<u8>(4, &long("1")).unwrap();
    assert!(buffer.channels().unwrap()[3].carries.starts_with(&("x".repeat(110) + "#")));
    assert!(matches!(ctx.consumer_with::<u8>(4, &long("2")), Err(AttachError::TypeMismatch { .. })));
    let _f = ctx.producer_with::<u8>(5, &ChannelOptions::new().type_tag("")).unwrap();
    assert!(matches!(ctx.consumer::<u8>(5), Err(AttachError::TypeMismatch { .. })));
    drop((tx, got, _a, _b, _c, _d, _e, _f, ctx));
    work::end(buffer, &name);
}

#[test]
fn empty_payloads_travel() {
    let name = Name::new("empty");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = (ctx.producer::<()>(1).unwrap(), ctx.consumer::<()>(1).unwrap());
    tx.send(ctx.record(()).unwrap()).unwrap();
    rx.recv().unwrap();
    let (mut txs, mut rxs) = (ctx.producer::<[u64]>(2).unwrap(), ctx.consumer::<[u64]>(2).unwrap());
    for len in [0, 1, 0, 40_000] {
        txs.send(ctx.slice_zeroed(len).unwrap()).unwrap();
        assert_eq!(rxs.recv().unwrap().len(), len);
    }
    let (mut txz, mut rxz) = (ctx.producer::<[()]>(3).unwrap(), ctx.consumer::<[()]>(3).unwrap());
    txz.send(ctx.slice_zeroed((1 << 40) - 1).unwrap()).unwrap();
    assert_eq!(rxz.recv().unwrap().len(), (1 << 40) - 1);
    drop((tx, rx, txs, rxs, txz, rxz, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_record_of_another_buffer_is_handed_back() {
    let (name, elsewhere) = (Name::new("own"), Name::new("foreign"));
    let (buffer, other) = (Buffer::open(&name).unwrap(), Buffer::open(&elsewhere).unwrap());
    let (ctx, there) = (buffer.context().unwrap(), other.context().unwrap());
    let (mut tx, rx) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(1).unwrap());
    let foreign = there.record(5).unwrap();
    let Err(TrySendError::ForeignRecord(foreign)) = tx.try_send(foreign) else { panic!() };
    let Err(SendError::ForeignRecord(foreign)) = tx.send(foreign) else { panic!() };
    let Err(SendTimeoutError::ForeignRecord(foreign)) = tx.send_timeout(foreign, LONG) else { panic!() };
    assert_eq!((*foreign, rx.len()), (5, 0));
    // It still goes where it belongs.
    let (mut tx2, mut rx2) = (there.producer::<u64>(1).unwrap(), there.consumer::<u64>(1).unwrap());
    tx2.send(foreign).unwrap();
    assert_eq!(*rx2.recv().unwrap(), 5);
    drop((tx, rx, tx2, rx2, ctx, there));
    work::end(buffer, &name);
    work::end(other, &elsewhere);
}

#[test]
fn forwarding_copies_nothing() {
    let name = Name::new("forward");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut a, mut b) = (ctx.producer::<[u32]>(1).unwrap(), ctx.consumer::<[u32]>(1).unwrap());
    let (mut c, mut d) = (ctx.producer::<[u32]>(2).unwrap(), ctx.consumer::<[u32]>(2).unwrap());
    let record = ctx.slice_uninit(50_000).unwrap().fill_with(|i| i as u32);
    let address = record.as_ptr();
    a.send(record).unwrap();
    let mut record = b.recv().unwrap();
    assert_eq!(record.as_ptr(), address);
    record[49_999] = 1;
    c.send(record).unwrap();
    let record = d.recv().unwrap();
    assert_eq!((record.as_ptr(), record[49_998], record[49_999]), (address, 49_998, 1));
    // Back to where it came from, too.
    a.send(record).unwrap();
    assert_eq!(b.recv().unwrap().as_ptr(), address);
    drop((a, b, c, d, ctx));
    work::end(buffer, &name);
}

#[test]
fn removal_takes_the_id_at_once_and_the_rest_later() {
    let _dog = common::watchdog();
    let name = Name::new("remove");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    assert!(!buffer.remove_channel(1).unwrap(), "there is none");
    let (mut tx, mut rx) = (ctx.producer_with::<u64>(1, &slots(4)).unwrap(), ctx.consumer::<u64>(1).unwrap());
    assert!(buffer.remove_channel(1).unwrap());
    assert!(!buffer.remove_channel(1).unwrap() && !buffer.has_channel(1).unwrap());
    assert!(buffer.channels().unwrap().is_empty());
    // The pair goes on, beside a new channel with the id and another type.
    let (mut tx2, mut rx2) = (ctx.producer::<f32>(1).unwrap(), ctx.consumer::<f32>(1).unwrap());
    tx.send(ctx.record(1).unwrap()).unwrap();
    tx2.send(ctx.record(2.0).unwrap()).unwrap();
    assert_eq!((*rx.recv().unwrap(), *rx2.recv().unwrap()), (1, 2.0));
    tx.send(ctx.record(3).unwrap()).unwrap();
    drop(rx);
    assert!(matches!(tx.try_send(ctx.record(4).unwrap()), Err(TrySendError::Disconnected(_))));
    assert_eq!(common::sound(&buffer).queued.iter().map(|queued| queued.records).sum::<u64>(), 1);
    drop(tx);
    assert_eq!(common::sound(&buffer).queued_bytes(), 0, "its last end took what was queued along");
    assert!(buffer.has_channel(1).unwrap(), "the new one is not touched");
    drop((tx2, rx2));

    // Who waits for a first peer that can't come any more is told.
    let open = buffer.clone();
    let waiter = std::thread::spawn(move || {
        let ctx = open.context().unwrap();
        ctx.consumer::<u64>(5).unwrap().recv().unwrap_err()
    });
    assert!(buffer.wait_for_channel(5, LONG).unwrap());
    std::thread::sleep(Duration::from_millis(20));
    assert!(buffer.remove_channel(5).unwrap());
    assert_eq!(waiter.join().unwrap(), RecvError::Disconnected);
    let mut tx = ctx.producer_with::<u64>(6, &slots(2)).unwrap();
    buffer.remove_channel(6).unwrap();
    let error = (0..3).find_map(|i| tx.send(ctx.record(i).unwrap()).err());
    assert!(matches!(error, Some(SendError::Disconnected(_))));
    drop((error, tx, ctx));
    work::end(buffer, &name);
}

#[test]
fn what_is_queued_goes_with_the_last_end() {
    let name = Name::new("queued");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for consumer_first in [true, false] {
        let (mut tx, rx) = (ctx.producer::<[u8]>(1).unwrap(), ctx.consumer::<[u8]>(1).unwrap());
        for i in 0..100 {
            tx.send(ctx.slice_zeroed(i * 7000).unwrap()).unwrap();
        }
        let audit = common::sound(&buffer);
        assert_eq!((audit.queued[0].channel, audit.queued[0].records, audit.owned.len()), (1, 100, 0));
        if consumer_first {
            drop(rx);
            assert_eq!(tx.len(), 100);
            drop(tx);
        } else {
            drop(tx);
            assert_eq!(rx.len(), 100);
            drop(rx);
        }
        common::all_free(&buffer);
    }
    // Nobody ever received here.
    let mut tx = ctx.producer::<[u8]>(1).unwrap();
    tx.send(ctx.slice_zeroed(7).unwrap()).unwrap();
    drop((tx, ctx));
    work::end(buffer, &name);
}

#[test]
fn persistent_channels_outlive_their_ends() {
    let name = Name::new("persistent");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let keep = slots(8).persistent(true);
    let mut tx = ctx.producer_with::<u64>(1, &keep).unwrap();
    (0..5).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
    drop((tx, ctx));
    let info = &buffer.channels().unwrap()[0];
    assert!(info.persistent && info.queued == 5 && info.producer.is_none() && info.consumer.is_none());
    assert!(!buffer.has_active_channels().unwrap());
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    assert_eq!((*rx.recv().unwrap(), *rx.recv().unwrap(), rx.len(), rx.capacity()), (0, 1, 3, 8));
    drop(rx);
    let mut tx = ctx.producer::<u64>(1).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    tx.send(ctx.record(5).unwrap()).unwrap();
    drop(tx);
    assert_eq!(rx.try_iter().map(|record| *record).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(rx.try_recv().unwrap_err(), GONE);
    let mut tx = ctx.producer::<u64>(1).unwrap();
    tx.send(ctx.record(6).unwrap()).unwrap();
    drop((tx, rx));
    assert_eq!(common::sound(&buffer).queued[0].records, 1);
    assert!(buffer.remove_channel(1).unwrap(), "at once, as nobody is there");
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn persistent_channels_outlive_all_processes() {
    let _dog = common::watchdog();
    let keep = slots(128).persistent(true);
    if let Some((role, buffer)) = common::role() {
        let buffer = Buffer::options().persist(true).open(&buffer).unwrap();
        let ctx = buffer.context().unwrap();
        let first = role.parse::<u64>().unwrap();
        let mut tx = ctx.producer_with::<[u64]>(1, &keep).unwrap();
        (first..first + 50).for_each(|i| tx.send(work::numbered(&ctx, i, 5000)).unwrap());
        return;
    }
    let name = Name::new("processes");
    for first in ["0", "50"] {
        common::start("persistent_channels_outlive_all_processes", first, &name).success();
        assert!(name.exists());
    }
    let buffer = Buffer::options().must_exist(true).open(&name).unwrap();
    assert!(buffer.is_persistent());
    assert_eq!(common::sound(&buffer).queued[0].records, 100);
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<[u64]>(1).unwrap();
    for i in 0..100 {
        assert_eq!(work::number(&rx.recv().unwrap()), i);
    }
    assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
    buffer.remove_channel(1).unwrap();
    drop((rx, ctx));
    common::all_free(&buffer);
    drop(buffer);
    assert!(name.exists());
    Buffer::unlink(&name).unwrap();
    assert!(!name.exists());
}

#[test]
fn lengths_and_iterators() {
    let name = Name::new("len");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(4)).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    assert!(tx.is_empty() && rx.is_empty());
    for i in 1..=4_usize {
        tx.send(ctx.record(i as u64).unwrap()).unwrap();
        assert_eq!((tx.len(), rx.len(), tx.is_empty(), rx.is_empty()), (i, i, false, false));
    }
    assert_eq!(rx.try_iter().take(2).map(|record| *record).sum::<u64>(), 3);
    assert_eq!((tx.len(), rx.len()), (2, 2));
    assert_eq!(rx.try_iter().map(|record| *record).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(rx.try_iter().count(), 0);
    tx.send(ctx.record(5).unwrap()).unwrap();
    tx.send(ctx.record(6).unwrap()).unwrap();
    drop(tx);
    assert_eq!(rx.iter().next().map(|record| *record), Some(5));
    for record in &mut rx {
        assert_eq!(*record, 6);
    }
    assert_eq!(rx.iter().count(), 0);
    let mut tx = ctx.producer::<u64>(1).unwrap();
    tx.send(ctx.record(7).unwrap()).unwrap();
    drop(tx);
    let mut all = rx.into_iter();
    assert_eq!((all.next().map(|record| *record), all.next().is_none(), all.next().is_none()), (Some(7), true, true));
    assert!(buffer.has_channel(1).unwrap(), "the iterator is the endpoint");
    drop((all, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_closed_context_closes_its_ends() {
    let _dog = common::watchdog();
    let name = Name::new("closed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &slots(2)).unwrap();
    let mut rx = ctx.consumer_with::<u64>(2, &slots(2)).unwrap();
    let mut peer = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let ctx = buffer.context().unwrap();
                let mut tx = ctx.producer::<u64>(2).unwrap();
                tx.send(ctx.record(9).unwrap()).unwrap();
            })
            .join()
            .unwrap();
        vec![ctx.record(1_u64).unwrap(), ctx.record(2).unwrap(), ctx.record(3).unwrap(), ctx.record(4).unwrap()]
    });
    tx.send(peer.pop().unwrap()).unwrap();
    drop(ctx);
    let Err(TrySendError::ContextClosed(record)) = tx.try_send(peer.pop().unwrap()) else { panic!() };
    let Err(SendError::ContextClosed(record)) = tx.send(record) else { panic!() };
    let Err(SendTimeoutError::ContextClosed(record)) = tx.send_timeout(record, Duration::MAX) else { panic!() };
    let Err(SendTimeoutError::ContextClosed(record)) = tx.send_deadline(record, Instant::now()) else { panic!() };
    assert_eq!(*record, 3);
    let closed = RecvError::ContextClosed;
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(closed));
    assert_eq!(rx.recv().unwrap_err(), closed);
    assert_eq!(rx.recv_timeout(Duration::MAX).unwrap_err(), RecvTimeoutError::Recv(closed));
    assert!(common::iterating_panics(&mut rx), "that is not the end of the records");
    assert_eq!((rx.try_iter().count(), rx.len(), rx.capacity(), tx.len(), tx.capacity()), (0, 0, 0, 0, 0));
    assert!(!tx.has_consumer() && !rx.has_producer());
    assert_eq!(tx.wait_for_consumer(Duration::MAX), Err(PeerError::ContextClosed));
    assert_eq!(rx.wait_for_producer(Duration::MAX), Err(PeerError::ContextClosed));
    assert!(buffer.channels().unwrap().is_empty(), "what was queued went along");
    // A new context takes the same roles while the old ends are still there, and their drops take nothing away.
    let ctx = buffer.context().unwrap();
    let again = ctx.producer::<u64>(1).unwrap();
    drop((tx, rx));
    assert!(buffer.has_channel(1).unwrap());
    drop((again, record, peer, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_persistent_channel_queues_for_the_next_consumer() {
    let _dog = common::watchdog();
    let name = Name::new("queues-on");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let options = ChannelOptions::new().capacity(2).persistent(true);
    let mut tx = ctx.producer_with::<u32>(1, &options).unwrap();
    drop(ctx.consumer::<u32>(1).unwrap());
    tx.send(ctx.record(1).unwrap()).unwrap();
    tx.send(ctx.record(2).unwrap()).unwrap();
    assert!(matches!(tx.try_send(ctx.record(3).unwrap()), Err(TrySendError::Full(_))), "full, not disconnected");
    let mut rx = ctx.consumer::<u32>(1).unwrap();
    assert_eq!(rx.try_iter().map(|record| *record).collect::<Vec<_>>(), [1, 2]);
    drop((tx, rx));
    assert!(buffer.remove_channel(1).unwrap());
    common::all_free(&buffer);
}

/// Symptom: who waits for the other end of a channel that is removed meanwhile waits out its time, or for ever.
#[test]
fn who_waits_for_an_end_that_cannot_come_is_told() {
    let _dog = common::watchdog();
    let name = Name::new("removed-meanwhile");
    let buffer = Buffer::open(&name).unwrap();
    let waits = |sends: bool| {
        let buffer = buffer.clone();
        std::thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            if sends {
                let mut tx = ctx.producer::<u64>(1).unwrap();
                assert_eq!(tx.wait_for_consumer(Duration::MAX), Err(PeerError::Removed { id: 1 }));
                let refused = (0..).find_map(|i| tx.try_send(ctx.record(i).unwrap()).err()).unwrap();
                assert!(matches!(refused, TrySendError::Disconnected(_)), "{refused:?}");
            } else {
                let mut rx = ctx.consumer::<u64>(2).unwrap();
                assert_eq!(rx.wait_for_producer(Duration::MAX), Err(PeerError::Removed { id: 2 }));
                assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::Disconnected));
            }
        })
    };
    let threads = [waits(true), waits(false)];
    for id in [1, 2] {
        assert!(buffer.wait_for_channel(id, Duration::MAX).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(buffer.remove_channel(id).unwrap());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    common::all_free(&buffer);
}
