//! Select: which of many ends is ready, in turn, and one sleep for all of them. How a wait ends, between processes, is in
//! `waiting.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::Name;
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, RecvError, Select, ThreadContext, TryRecvError, TrySendError,
    ValueChannel, WaitStrategy,
};
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(50);
const GONE: TryRecvError = TryRecvError::Recv(RecvError::Disconnected);

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

#[test]
fn nothing_to_wait_for() {
    let _dog = common::watchdog();
    let name = Name::new("nothing");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut select = Select::new();
    let all_say_none = |select: &mut Select| {
        assert_eq!((select.len(), select.is_empty()), (0, true));
        assert_eq!([select.try_ready(), select.ready(), select.ready_timeout(LONG)], [None; 3]);
        assert_eq!(select.ready_deadline(Instant::now() + LONG), None);
        assert!(!select.remove(0));
    };
    all_say_none(&mut select);
    let rx = ctx.consumer::<u64>(1).unwrap();
    assert_eq!((select.recv(&rx), select.len()), (0, 1));
    assert!(select.remove(0) && !select.remove(0));
    all_say_none(&mut select);
    // Numbers are not used again; an end that is dropped is gone, as is one that was added twice.
    assert_eq!((select.recv(&rx), select.recv(&rx), select.len()), (1, 2, 2));
    drop(rx);
    all_say_none(&mut select);
    let tx = ctx.producer::<u64>(1).unwrap();
    assert_eq!(select.send(&tx), 3);
    assert_eq!((select.ready(), format!("{select:?}").contains("ends: 1")), (Some(3), true));
    drop((tx, ctx));
    work::end(buffer, &name);
}

#[test]
fn time() {
    let _dog = common::watchdog();
    let name = Name::new("time");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (rx, other) = (ctx.consumer::<u64>(1).unwrap(), ctx.consumer::<[u8]>(2).unwrap());
    for strategy in [WaitStrategy::Spin, WaitStrategy::Adaptive, WaitStrategy::Block] {
        let mut select = Select::new().wait_strategy(strategy);
        select.recv(&rx);
        select.recv(&other);
        for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(30), Duration::from_millis(260)]
        {
            let start = Instant::now();
            assert_eq!(select.ready_timeout(timeout), None);
            assert!(start.elapsed() >= timeout);
            assert_eq!(select.ready_deadline(start), None);
        }
    }
    drop((rx, other, ctx));
    work::end(buffer, &name);
}

#[test]
fn ends_of_two_buffers() {
    let (name, other) = (Name::new("one"), Name::new("other"));
    let (one, two) = (Buffer::open(&name).unwrap(), Buffer::open(&other).unwrap());
    let contexts = (one.context().unwrap(), two.context().unwrap());
    let (rx, tx) = (contexts.0.consumer::<u64>(1).unwrap(), contexts.1.producer::<u64>(1).unwrap());
    let mut select = Select::new();
    select.recv(&rx);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| select.send(&tx)));
    assert!(refused.is_err());
    assert_eq!((select.len(), select.try_ready()), (1, None));
    // Another one may wait for them; and this one, when nothing of the first buffer is left.
    assert_eq!(
        {
            let mut other = Select::new();
            other.send(&tx);
            other.ready()
        },
        Some(0)
    );
    drop(rx);
    let number = select.send(&tx);
    assert_eq!(select.ready(), Some(number));
    drop((tx, contexts));
    work::end(one, &name);
    work::end(two, &other);
}

/// The sending end of a channel of one kind or the other.
enum Tx {
    Records(Channel<u64, Producer>),
    Values(ValueChannel<u64, Producer>),
}

impl Tx {
    fn new(ctx: &ThreadContext, id: i64) -> Self {
        match id % 2 {
            0 => Self::Records(ctx.producer_with(id, &slots(4)).unwrap()),
            _ => Self::Values(ctx.value_producer_with(id, &slots(4)).unwrap()),
        }
    }

    fn add_to(&self, select: &mut Select) -> usize {
        match self {
            Self::Records(tx) => select.send(tx),
            Self::Values(tx) => select.send(tx),
        }
    }

    fn sends(&mut self, ctx: &ThreadContext, value: u64) -> bool {
        match self {
            Self::Records(tx) => tx.try_send(ctx.record(value).unwrap()).is_ok(),
            Self::Values(tx) => tx.try_send(value).is_ok(),
        }
    }
}

/// The receiving end.
enum Rx {
    Records(Channel<u64, Consumer>),
    Values(ValueChannel<u64, Consumer>),
}

impl Rx {
    fn new(ctx: &ThreadContext, id: i64) -> Self {
        match id % 2 {
            0 => Self::Records(ctx.consumer_with(id, &slots(4)).unwrap()),
            _ => Self::Values(ctx.value_consumer_with(id, &slots(4)).unwrap()),
        }
    }

    fn add_to(&self, select: &mut Select) -> usize {
        match self {
            Self::Records(rx) => select.recv(rx),
            Self::Values(rx) => select.recv(rx),
        }
    }

    fn receives(&mut self) -> Option<u64> {
        match self {
            Self::Records(rx) => rx.try_recv().ok().map(|record| *record),
            Self::Values(rx) => rx.try_recv().ok(),
        }
    }
}

/// A channel as it should be.
#[derive(Default)]
struct Twin {
    queued: usize,
    sent: u64,
    received: u64,
    tx: Option<(Tx, usize)>,
    rx: Option<(Rx, usize)>,
    had_tx: bool,
    had_rx: bool,
}

impl Twin {
    fn receives(&self) -> bool {
        self.queued > 0 || self.had_tx && self.tx.is_none()
    }

    fn sends(&self) -> bool {
        self.queued < 4 || self.had_rx && self.rx.is_none()
    }
}

#[test]
fn what_is_ready_is_what_a_twin_says() {
    let _dog = common::watchdog();
    let name = Name::new("twin");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rng = work::Rng::new(1);
    let mut select = Select::new();
    let mut twins: Vec<Twin> = (0..5).map(|_| Twin::default()).collect();
    for _ in 0..20_000 {
        let id = rng.below(5);
        let twin = &mut twins[id as usize];
        match rng.below(12) {
            0 if twin.tx.is_none() => {
                let tx = Tx::new(&ctx, id as i64);
                let number = tx.add_to(&mut select);
                (twin.tx, twin.had_tx) = (Some((tx, number)), true);
            }
            1 if twin.rx.is_none() => {
                let rx = Rx::new(&ctx, id as i64);
                let number = rx.add_to(&mut select);
                (twin.rx, twin.had_rx) = (Some((rx, number)), true);
            }
            2 => twin.tx = None,
            3 => twin.rx = None,
            4..=7 => {
                if let Some((tx, _)) = &mut twin.tx {
                    let could = twin.queued < 4 && !(twin.had_rx && twin.rx.is_none());
                    assert_eq!(tx.sends(&ctx, twin.sent), could);
                    (twin.queued, twin.sent) = (twin.queued + usize::from(could), twin.sent + u64::from(could));
                }
            }
            _ => {
                if let Some((rx, _)) = &mut twin.rx {
                    assert_eq!(rx.receives(), (twin.queued > 0).then_some(twin.received));
                    let one = twin.queued > 0;
                    (twin.queued, twin.received) = (twin.queued - usize::from(one), twin.received + u64::from(one));
                }
            }
        }
        if twin.tx.is_none() && twin.rx.is_none() {
            // The channel is gone, with all that was in it.
            *twin = Twin::default();
        }
        let ready = twins.iter().flat_map(|twin| {
            let tx = twin.tx.as_ref().filter(|_| twin.sends()).map(|(_, number)| *number);
            let rx = twin.rx.as_ref().filter(|_| twin.receives()).map(|(_, number)| *number);
            [tx, rx].into_iter().flatten()
        });
        let ready: BTreeSet<usize> = ready.collect();
        // Each of them once, and then all over again.
        let told: Vec<usize> = (0..2 * ready.len()).map(|_| select.ready_timeout(LONG).unwrap()).collect();
        assert_eq!(told[..ready.len()].iter().copied().collect::<BTreeSet<_>>(), ready);
        assert_eq!(told[..ready.len()], told[ready.len()..]);
        assert_eq!(select.try_ready().is_none(), ready.is_empty());
    }
    drop((twins, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_busy_end_starves_no_other() {
    let name = Name::new("fair");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let ends: Vec<_> = (0..4).map(|id| (ctx.producer::<u64>(id).unwrap(), ctx.consumer::<u64>(id).unwrap())).collect();
    let (mut outputs, mut inputs): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    let mut select = Select::new();
    for rx in &inputs {
        select.recv(rx);
    }
    // Always full, but for one that has something now and then.
    let mut told = [0_u32; 4];
    for round in 0..3000 {
        for (id, tx) in outputs.iter_mut().enumerate() {
            if tx.is_empty() && (id != 2 || round % 10 == 0) {
                tx.send(ctx.record(round).unwrap()).unwrap();
            }
        }
        let number = select.ready().unwrap();
        told[number] += 1;
        if number == 2 {
            assert_eq!(
                *inputs[2].try_recv().unwrap() / 10,
                round / 10,
                "in the same ten, so after all others at most once"
            );
        }
    }
    assert_eq!(told[2], 300);
    assert!([0, 1, 3].iter().all(|i| told[*i].abs_diff(900) <= 1), "{told:?}");
    drop((outputs, inputs, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_thousand_ends_are_one_sleep() {
    let _dog = common::watchdog();
    let name = Name::new("thousand");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for (ends, strategy) in [(128, WaitStrategy::Block), (1000, WaitStrategy::Block), (1000, WaitStrategy::Adaptive)] {
        let ready = Barrier::new(2);
        std::thread::scope(|scope| {
            let (buffer, ready) = (&buffer, &ready);
            let other = scope.spawn(move || {
                let ctx = buffer.context().unwrap();
                let mut inputs: Vec<_> = (0..ends).map(|id| ctx.consumer_with::<u64>(id, &slots(2)).unwrap()).collect();
                let mut full: Vec<_> =
                    (0..ends).map(|id| ctx.producer_with::<u64>(ends + id, &slots(2)).unwrap()).collect();
                let mut select = Select::new().wait_strategy(strategy);
                for tx in &mut full {
                    while tx.try_send(ctx.record(1).unwrap()).is_ok() {}
                    select.send(tx);
                }
                for rx in &inputs {
                    select.recv(rx);
                }
                ready.wait();
                let (mut received, mut sent) = (0, 0);
                while let Some(number) = select.ready() {
                    let end = number % ends as usize;
                    if number < ends as usize {
                        match full[end].try_send(ctx.record(1).unwrap()) {
                            Ok(()) => sent += 1,
                            Err(TrySendError::Disconnected(_)) => drop(select.remove(number)),
                            Err(error) => panic!("{error}"),
                        }
                    } else {
                        match inputs[end].try_recv() {
                            Ok(record) => {
                                assert_eq!(*record, end as u64);
                                received += 1;
                            }
                            Err(error) => {
                                assert_eq!(error, GONE);
                                select.remove(number);
                            }
                        }
                    }
                }
                (received, sent)
            });
            ready.wait();
            let mut outputs: Vec<_> = (0..ends).map(|id| ctx.producer_with::<u64>(id, &slots(2)).unwrap()).collect();
            let mut room: Vec<_> = (0..ends).map(|id| ctx.consumer::<u64>(ends + id).unwrap()).collect();
            let mut rng = work::Rng::new(1);
            for i in 0..300_u64 {
                let end = rng.below(ends as u64);
                if i % 2 == 0 {
                    outputs[end as usize].send(ctx.record(end).unwrap()).unwrap();
                } else {
                    room[end as usize].recv().unwrap();
                }
                if i % 8 == 0 {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
            // What was freed has been filled again, before it hears that nobody will ever free more.
            while room.iter().any(|rx| rx.len() < 2) {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop((outputs, room));
            assert_eq!(other.join().unwrap(), (150, 150));
        });
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn many_threads_sleep_over_several_ends() {
    let _dog = common::watchdog();
    let name = Name::new("threads");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    const THREADS: i64 = 150;
    let ready = Barrier::new(THREADS as usize + 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (buffer, ready) = (&buffer, &ready);
            scope.spawn(move || {
                let ctx = buffer.context().unwrap();
                let mut ends: Vec<_> =
                    (0..3).map(|i| ctx.consumer_with::<i64>(thread * 3 + i, &slots(2)).unwrap()).collect();
                let mut select = Select::new().wait_strategy(WaitStrategy::Block);
                ends.iter().for_each(|rx| _ = select.recv(rx));
                ready.wait();
                for round in 0..3 {
                    let number = select.ready().unwrap();
                    assert_eq!(number as i64, (thread + round) % 3);
                    assert_eq!(*ends[number].try_recv().unwrap(), thread);
                }
            });
        }
        ready.wait();
        let mut outputs: Vec<_> = (0..3 * THREADS).map(|id| ctx.producer_with::<i64>(id, &slots(2)).unwrap()).collect();
        for round in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            for thread in 0..THREADS {
                let id = thread * 3 + (thread + round) % 3;
                outputs[id as usize].send(ctx.record(thread).unwrap()).unwrap();
            }
            // In the order they were sent, for who has not come yet.
            while outputs.iter().any(|tx| !tx.is_empty()) {
                std::thread::yield_now();
            }
        }
    });
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn a_closed_context() {
    let _dog = common::watchdog();
    let name = Name::new("closed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut rx, mut tx) = (ctx.consumer::<u64>(1).unwrap(), ctx.producer::<u64>(2).unwrap());
    let record = ctx.record(1).unwrap();
    let mut select = Select::new();
    select.recv(&rx);
    drop(ctx);
    assert_eq!(select.ready(), Some(0));
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::ContextClosed));
    select.send(&tx);
    assert_eq!([select.ready(), select.ready()], [Some(1), Some(0)]);
    assert!(matches!(tx.try_send(record), Err(TrySendError::ContextClosed(_))));
    // A new context's ends go with them.
    let ctx = buffer.context().unwrap();
    let mut rx3 = ctx.consumer::<u64>(3).unwrap();
    assert_eq!(select.recv(&rx3), 2);
    ctx.producer::<u64>(3).unwrap().send(ctx.record(5).unwrap()).unwrap();
    assert_eq!((0..3).filter_map(|_| select.ready()).sum::<usize>(), 3);
    assert_eq!(*rx3.try_recv().unwrap(), 5);
    drop((rx, tx, rx3, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_busy_end_hides_no_dead_peer() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _tx = ctx.producer::<u64>(1).unwrap();
        std::thread::sleep(LONG);
        return;
    }
    let name = Name::new("busy");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let (mut tx, mut busy) = (ctx.producer::<u64>(2).unwrap(), ctx.consumer::<u64>(2).unwrap());
    let mut select = Select::new();
    let (dead, busy_number) = (select.recv(&rx), select.recv(&busy));
    for wait in [Duration::ZERO, Duration::from_millis(20)] {
        let mut child = common::start("a_busy_end_hides_no_dead_peer", "victim", &name);
        assert!(rx.wait_for_producer(LONG));
        child.kill();
        // Always something there, or always soon.
        loop {
            tx.send(ctx.record(1).unwrap()).unwrap();
            match select.ready_timeout(LONG).unwrap() {
                number if number == busy_number => drop(busy.try_recv().unwrap()),
                number => break assert_eq!(number, dead),
            }
            std::thread::sleep(wait);
        }
        assert_eq!(rx.try_recv().unwrap_err(), GONE);
        assert_eq!(busy.try_iter().count(), 1);
    }
    drop((rx, tx, busy, ctx));
    work::end(buffer, &name);
}

#[test]
fn polling_and_short_waits_see_the_killed() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _ends = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(2).unwrap());
        let mut ready = ctx.producer::<u64>(3).unwrap();
        ready.send(ctx.record(1).unwrap()).unwrap();
        std::thread::sleep(LONG);
        return;
    }
    let name = Name::new("killed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut tx = ctx.producer_with::<u64>(2, &slots(2)).unwrap();
    let mut select = Select::new();
    select.recv(&rx);
    select.send(&tx);
    for round in 0..3 {
        while tx.len() < 2 {
            tx.try_send(ctx.record(1).unwrap()).unwrap();
        }
        let mut child = common::start("polling_and_short_waits_see_the_killed", "victim", &name);
        let mut ready = ctx.consumer::<u64>(3).unwrap();
        assert_eq!(*ready.recv_timeout(LONG).unwrap(), 1);
        assert_eq!(select.ready_timeout(Duration::from_millis(300)), None);
        child.kill();
        let number = loop {
            let found = match round {
                0 => select.try_ready(),
                1 => select.ready_timeout(Duration::from_millis(20)),
                _ => select.ready(),
            };
            if let Some(number) = found {
                break number;
            }
        };
        // Both are, now that it is reaped.
        assert!(number < 2 && select.try_ready() == Some(1 - number));
        assert_eq!(rx.try_recv().unwrap_err(), GONE);
        assert!(matches!(tx.try_send(ctx.record(1).unwrap()), Err(TrySendError::Disconnected(_))));
    }
    drop((rx, tx, ctx));
    work::end(buffer, &name);
}
