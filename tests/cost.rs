//! What an operation costs, in instructions: the number of channels is not among the reasons, nor how many are queued, or waited for.
//!
//! No harness: the operations run in children that are forked off and traced, one instruction after the other.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]
#![allow(unsafe_code)] // fork, ptrace

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("0 passed, 0 failed (the tracer knows the registers of x86-64 only)");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod common;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kill_every_step/tracee.rs"]
mod tracee;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        println!("cost: test");
        return;
    }
    let _dog = common::Watchdog::new(std::time::Duration::from_secs(170));
    let alone = cost::of_operations(1);
    let in_company = cost::of_operations(10_000);
    println!("{}, of 1 and of 10000 channels: {alone:?} and {in_company:?} instructions", cost::OPERATIONS);
    assert_eq!(alone, in_company);
    about_the_same(cost::COUNTS, &cost::of_counts(2), &cost::of_counts(1 << 17));
    if cfg!(debug_assertions) {
        // Step by step, a minute each.
        println!("skipped without optimisation: Select and futures");
    } else {
        among_many();
    }
    println!("test cost ... ok");
}

/// Searching and trees have some steps more among many.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn about_the_same(what: &str, few: &[u64], many: &[u64]) {
    println!("{what}: {few:?} and {many:?} instructions");
    assert!(few.iter().zip(many).all(|(few, many)| *many <= 2 * few), "{what}: {few:?} and {many:?}");
}

/// No tick: what is looked at once a tick is everything.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn among_many() {
    // SAFETY: no other thread reads the environment; the watchdog only sleeps.
    unsafe { std::env::set_var("IPC_BUFFER_TICK_MS", "3600000") };
    println!("{} of 10: {:?} instructions", cost::OF_MANY, cost::of_many(10));
    about_the_same(cost::OF_MANY, &cost::of_many(100), &cost::of_many(10_000));
    #[cfg(feature = "async")]
    {
        let few = cost::of_futures(100);
        about_the_same(cost::OF_FUTURES, &few, &cost::of_futures(10_000));
        // No name is left where nobody waits any more, to be rung.
        assert!(few[3] < few[1], "{few:?}");
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cost {
    use crate::common::Name;
    use crate::tracee::{Tracee, stop};
    use ipc_buffer::{
        Buffer, Channel, ChannelOptions, Consumer, Producer, Record, Select, ThreadContext, ValueChannel, WaitStrategy,
    };
    use std::time::Duration;

    pub const OPERATIONS: &str = "send, recv, drop, value send, value recv";

    /// Instructions of each of [`OPERATIONS`], in the middle one of so many channels.
    pub fn of_operations(channels: i64) -> [u64; 5] {
        let name = Name::new("cost");
        let part = || {
            let buffer = Buffer::open(&name).unwrap();
            let ctx = buffer.context().unwrap();
            let others = (0..channels - 1).map(|id| ends(&ctx, id)).collect::<Vec<_>>();
            let (mut tx, mut rx) = ends(&ctx, channels);
            let mut vtx = ctx.value_producer::<u64>(-1).unwrap();
            let mut vrx = ctx.value_consumer::<u64>(-1).unwrap();
            // Twice: the first time, what is done once in a process is done.
            for _ in 0..2 {
                let record = ctx.record(5_u64).unwrap();
                stop();
                stop();
                send(&mut tx, record);
                stop();
                let record = recv(&mut rx);
                stop();
                free(record);
                stop();
                send_value(&mut vtx, 5);
                stop();
                let value = recv_value(&mut vrx);
                stop();
                assert_eq!(value, 5);
            }
            drop(others);
        };
        let mut child = Tracee::fork(&name.path(), part);
        (0..7).for_each(|_| child.run());
        child.run();
        let mut next = || {
            let mut steps = 0;
            while child.step() {
                steps += 1;
            }
            steps
        };
        let nothing: u64 = next();
        std::array::from_fn(|_| next() - nothing)
    }

    /// Instructions of what the child does between its stops, but for those of a stop; of the cheapest of so many times that it does all.
    fn of_parts<const N: usize>(name: &Name, times: usize, part: impl FnOnce()) -> [u64; N] {
        let mut child = Tracee::fork(&name.path(), part);
        child.run();
        let mut least = [u64::MAX; N];
        for _ in 0..times {
            let mut next = || {
                let mut steps = 0;
                while child.step() {
                    steps += 1;
                }
                steps
            };
            let nothing: u64 = next();
            for least in &mut least {
                *least = (*least).min(next() - nothing);
            }
        }
        least
    }

    pub const COUNTS: &str =
        "len of a producer, is_empty; len of a consumer, is_empty; the same of values; 2 and 131072 queued";

    pub fn of_counts(queued: u64) -> [u64; 8] {
        let name = Name::new("cost-counts");
        of_parts(&name, 2, || {
            let ctx = Buffer::open(&name).unwrap().context().unwrap();
            let options = ChannelOptions::new().capacity(1 << 17);
            let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
            let mut vtx = ctx.value_producer_with::<u64>(2, &options).unwrap();
            let (rx, vrx) = (ctx.consumer::<u64>(1).unwrap(), ctx.value_consumer::<u64>(2).unwrap());
            (0..queued).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
            vtx.send_batch(0..queued).unwrap();
            stop();
            loop {
                stop();
                assert_eq!(tx.len() as u64, queued);
                stop();
                assert!(!tx.is_empty());
                stop();
                assert_eq!(rx.len() as u64, queued);
                stop();
                assert!(!rx.is_empty());
                stop();
                assert_eq!(vtx.len() as u64, queued);
                stop();
                assert!(!vtx.is_empty());
                stop();
                assert_eq!(vrx.len() as u64, queued);
                stop();
                assert!(!vrx.is_empty());
                stop();
            }
        })
    }

    pub const OF_MANY: &str =
        "a message by a Select, a wait in vain, a look in vain, the drop of an end and a look; of 100 and of 10000";

    pub fn of_many(channels: i64) -> [u64; 4] {
        let name = Name::new("cost-many");
        of_parts(&name, 3, || {
            let ctx = Buffer::open(&name).unwrap().context().unwrap();
            let mut ends: Vec<Option<Ends>> = (0..channels).map(|id| Some(self::ends(&ctx, id))).collect();
            let mut select = Select::new().wait_strategy(WaitStrategy::Block);
            for (_, rx) in ends.iter().flatten() {
                select.recv(rx);
            }
            let i = usize::try_from(channels / 2).unwrap();
            let mut last = ends.len();
            assert_eq!(select.ready_timeout(Duration::from_millis(1)), None);
            stop();
            loop {
                stop();
                let (tx, rx) = ends[i].as_mut().unwrap();
                tx.try_send(ctx.record(5).unwrap()).unwrap();
                assert_eq!(select.ready(), Some(i));
                drop(rx.try_recv().unwrap());
                stop();
                assert_eq!(select.ready_timeout(Duration::from_millis(1)), None);
                stop();
                assert_eq!(select.try_ready(), None);
                stop();
                last -= 1;
                drop(ends[last].take());
                assert_eq!(select.try_ready(), None);
                stop();
            }
        })
    }

    #[cfg(feature = "async")]
    pub const OF_FUTURES: &str =
        "a poll that parks, a send, a poll that receives, a send for nobody; of 100 futures and of 10000";

    #[cfg(feature = "async")]
    pub fn of_futures(channels: i64) -> [u64; 4] {
        use std::future::Future;
        use std::pin::pin;
        use std::task::{Context, Poll, Waker};
        let name = Name::new("cost-futures");
        of_parts(&name, 5, || {
            let ctx = Buffer::open(&name).unwrap().context().unwrap();
            let options = ChannelOptions::new().capacity(16).wait_strategy(WaitStrategy::Block);
            let mut txs: Vec<_> = (0..channels).map(|id| ctx.producer_with::<u64>(id, &options).unwrap()).collect();
            let mut rxs: Vec<_> = (0..channels).map(|id| ctx.consumer_with::<u64>(id, &options).unwrap()).collect();
            let i = usize::try_from(channels / 2).unwrap();
            let (before, after) = rxs.split_at_mut(i);
            let (rx, after) = after.split_first_mut().unwrap();
            let mut waiting: Vec<_> = before.iter_mut().chain(after).map(|rx| rx.recv_async()).collect();
            let mut cx = Context::from_waker(Waker::noop());
            waiting.iter_mut().for_each(|future| assert!(pin!(future).poll(&mut cx).is_pending()));
            stop();
            loop {
                let mut future = rx.recv_async();
                stop();
                assert!(pin!(&mut future).poll(&mut cx).is_pending());
                stop();
                txs[i].try_send(ctx.record(5).unwrap()).unwrap();
                stop();
                assert!(matches!(pin!(&mut future).poll(&mut cx), Poll::Ready(Ok(_))));
                stop();
                drop(future);
                txs[i].try_send(ctx.record(5).unwrap()).unwrap();
                stop();
                drop(rx.try_recv().unwrap());
            }
        })
    }

    // Each by itself: what the caller keeps in registers is none of their business.

    #[inline(never)]
    fn send(tx: &mut Channel<u64, Producer>, record: Record<u64>) {
        tx.try_send(record).unwrap();
    }

    #[inline(never)]
    fn recv(rx: &mut Channel<u64, Consumer>) -> Record<u64> {
        rx.try_recv().unwrap()
    }

    #[inline(never)]
    fn free(record: Record<u64>) {
        drop(record);
    }

    #[inline(never)]
    fn send_value(tx: &mut ValueChannel<u64, Producer>, value: u64) {
        tx.try_send(value).unwrap();
    }

    #[inline(never)]
    fn recv_value(rx: &mut ValueChannel<u64, Consumer>) -> u64 {
        rx.try_recv().unwrap()
    }

    type Ends = (Channel<u64, Producer>, Channel<u64, Consumer>);

    fn ends(ctx: &ThreadContext, id: i64) -> Ends {
        let options = ChannelOptions::new().capacity(16);
        (ctx.producer_with(id, &options).unwrap(), ctx.consumer(id).unwrap())
    }
}
