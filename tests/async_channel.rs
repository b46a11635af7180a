//! Awaiting channels inside one process: every way a wait can end, on tokio and on a bare executor, and that what is dropped half-way
//! loses nothing.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod common;
#[path = "common/executor.rs"]
mod executor;

use common::{Name, Watchdog, all_free, watchdog};
use executor::{Bell, block_on, tokio};
use futures_util::future::{FutureExt, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt, select_all};
use futures_util::{SinkExt, TryStreamExt};
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, RecvError, SendError, ThreadContext, TrySendError,
    WaitStrategy,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

const STRATEGIES: [WaitStrategy; 3] = [WaitStrategy::Spin, WaitStrategy::Adaptive, WaitStrategy::Block];
const SHORT: Duration = Duration::from_millis(20);

fn blocking() -> ChannelOptions {
    ChannelOptions::new().wait_strategy(WaitStrategy::Block)
}

/// Both ends of channel 1, with two slots, in one thread.
fn ends(ctx: &ThreadContext) -> (Channel<u64, Producer>, Channel<u64, Consumer>) {
    let options = blocking().capacity(2);
    (ctx.producer_with(1, &options).unwrap(), ctx.consumer_with(1, &options).unwrap())
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Runs the test in a process where sleeps have no bound but `tick_ms`, so that a lost wake-up is a hang. False if this is it.
fn elsewhere(test: &str, tick_ms: &str) -> bool {
    if common::role().is_some() {
        return false;
    }
    common::start_with(test, "elsewhere", "none", &[("IPC_BUFFER_TICK_MS", tick_ms)]).success();
    true
}

fn elsewhere_without_bounds(test: &str) -> bool {
    elsewhere(test, "3600000")
}

fn waiters() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "ipc-buffer-wait").count()
}

#[test]
fn a_record_comes_while_it_is_awaited() {
    let _dog = watchdog();
    let name = Name::new("async-recv");
    let buffer = Buffer::open(&name).unwrap();
    for strategy in STRATEGIES {
        let options = ChannelOptions::new().wait_strategy(strategy);
        let run = |run: &dyn Fn(&mut Channel<u64, Consumer>)| {
            thread::scope(|scope| {
                let ctx = buffer.context().unwrap();
                let mut rx = ctx.consumer_with::<u64>(1, &options).unwrap();
                scope.spawn(|| {
                    let ctx = buffer.context().unwrap();
                    let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
                    for i in 0..3 {
                        thread::sleep(SHORT);
                        tx.send(ctx.record(i).unwrap()).unwrap();
                    }
                });
                run(&mut rx);
            });
        };
        run(&|rx| {
            (0..3).for_each(|i| assert_eq!(*block_on(rx.recv_async()).unwrap(), i));
            assert_eq!(block_on(rx.recv_async()).unwrap_err(), RecvError::Disconnected);
        });
        run(&|rx| {
            tokio().block_on(async {
                assert_eq!(*rx.recv_async().await.unwrap(), 0);
                let rest: Vec<u64> = rx.stream().map(|record| *record).collect().await;
                assert_eq!(rest, [1, 2]);
            });
        });
    }
    all_free(&buffer);
}

#[test]
fn room_comes_while_it_is_awaited() {
    let _dog = watchdog();
    let name = Name::new("async-send");
    let buffer = Buffer::open(&name).unwrap();
    for strategy in STRATEGIES {
        let options = ChannelOptions::new().wait_strategy(strategy).capacity(2);
        let run = |run: &dyn Fn(&ThreadContext, Channel<u64, Producer>)| {
            thread::scope(|scope| {
                let ctx = buffer.context().unwrap();
                let tx = ctx.producer_with::<u64>(1, &options).unwrap();
                let all = scope.spawn(|| {
                    let ctx = buffer.context().unwrap();
                    let rx = ctx.consumer_with::<u64>(1, &options).unwrap();
                    let slowly = rx.into_iter().inspect(|_| thread::sleep(Duration::from_millis(2)));
                    slowly.map(|record| *record).collect::<Vec<_>>()
                });
                assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
                run(&ctx, tx);
                assert_eq!(all.join().unwrap(), (0..20).collect::<Vec<_>>());
            });
        };
        run(&|ctx, mut tx| {
            (0..20).for_each(|i| block_on(tx.send_async(ctx.record(i).unwrap())).unwrap());
        });
        run(&|ctx, mut tx| {
            tokio().block_on(async {
                for i in 0..10 {
                    tx.send_async(ctx.record(i).unwrap()).await.unwrap();
                }
                let rest = (10..20).map(|i| Ok(ctx.record(i).unwrap()));
                futures_util::stream::iter(rest).forward(tx.sink()).await.unwrap();
            });
        });
    }
    all_free(&buffer);
}

/// Woken for every slot, a sender would fall asleep again after each; but it is not left waiting for more room for long.
#[test]
fn a_little_room_is_enough_in_the_end() {
    // A nap of a second, and sleeps that are longer than anybody waits here.
    let _dog = Watchdog::new(Duration::from_secs(100));
    if elsewhere("a_little_room_is_enough_in_the_end", "25000") {
        return;
    }
    let _dog = Watchdog::new(Duration::from_secs(20));
    let name = Name::new("async-little");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    // Somebody else waits, so that the waiter sleeps already, until the tick.
    let mut other = ctx.consumer_with::<u64>(2, &blocking()).unwrap();
    let mut waits = other.recv_async();
    assert!(Bell::new().settle(&mut waits).is_pending());
    let mut tx = ctx.producer_with::<u64>(1, &blocking().capacity(64)).unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    (0..64).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
    let bell = Bell::new();
    let mut sent = tx.send_async(ctx.record(64).unwrap());
    assert!(bell.settle(&mut sent).is_pending());
    assert_eq!(*rx.recv().unwrap(), 0);
    bell.wait(0);
    assert!(matches!(bell.poll(&mut sent), Poll::Ready(Ok(()))));
}

#[test]
fn values_are_awaited_like_records() {
    let _dog = watchdog();
    let name = Name::new("async-values");
    let buffer = Buffer::open(&name).unwrap();
    thread::scope(|scope| {
        let options = blocking().capacity(2);
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.value_producer_with::<u32>(1, &blocking().capacity(2)).unwrap();
            block_on(async {
                for i in 0..100 {
                    tx.send_async(i).await.unwrap();
                }
                tx.sink().send_all(&mut futures_util::stream::iter((100..200).map(Ok))).await.unwrap();
            });
            assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
        });
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.value_consumer_with::<u32>(1, &options).unwrap();
        block_on(async {
            assert_eq!(rx.recv_async().await, Ok(0));
            assert_eq!(rx.stream().map(u64::from).fold(0, async |a, b| a + b).await, 19900);
        });
    });
    all_free(&buffer);
}

#[test]
fn the_other_end_leaves() {
    let _dog = watchdog();
    let name = Name::new("async-leave");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (tx, mut rx) = ends(&ctx);
    let bell = Bell::new();
    let mut next = rx.recv_async();
    assert!(bell.settle(&mut next).is_pending());
    drop(tx);
    bell.wait(0);
    assert_eq!(bell.poll(&mut next).map(Result::unwrap_err), Poll::Ready(RecvError::Disconnected));
    drop(next);
    drop(rx);

    let (mut tx, rx) = ends(&ctx);
    tx.send(ctx.record(1).unwrap()).unwrap();
    tx.send(ctx.record(2).unwrap()).unwrap();
    let before = bell.rung();
    let mut sent = tx.send_async(ctx.record(3).unwrap());
    assert!(bell.settle(&mut sent).is_pending());
    drop(rx);
    bell.wait(before);
    let Poll::Ready(Err(SendError::Disconnected(back))) = bell.poll(&mut sent) else { panic!("nobody is there") };
    assert_eq!(*back, 3);
}

#[test]
fn the_channel_is_removed() {
    let _dog = watchdog();
    let name = Name::new("async-remove");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    let bell = Bell::new();
    let mut next = rx.recv_async();
    assert!(bell.settle(&mut next).is_pending());
    assert!(buffer.remove_channel(1).unwrap());
    bell.wait(0);
    assert_eq!(bell.poll(&mut next).map(Result::unwrap_err), Poll::Ready(RecvError::Disconnected));
}

#[test]
fn the_context_is_closed() {
    let _dog = watchdog();
    let name = Name::new("async-closed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = ends(&ctx);
    let (bell, other) = (Bell::new(), Bell::new());
    let mut next = rx.recv_async();
    assert!(bell.settle(&mut next).is_pending());
    tx.send(ctx.record(1).unwrap()).unwrap();
    tx.send(ctx.record(2).unwrap()).unwrap();
    let mut sent = tx.send_async(ctx.record(3).unwrap());
    assert!(other.settle(&mut sent).is_pending());
    // The record just sent counts too.
    bell.wait(0);
    drop(ctx);
    assert_eq!(other.rung(), 1, "told at once");
    assert_eq!(bell.poll(&mut next).map(Result::unwrap_err), Poll::Ready(RecvError::ContextClosed));
    assert!(matches!(other.poll(&mut sent), Poll::Ready(Err(SendError::ContextClosed(back))) if *back == 3));
    drop((sent, next));

    // The same with nothing to tell but that.
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(2, &blocking()).unwrap();
    let bell = Bell::new();
    let mut next = rx.recv_async();
    assert!(bell.settle(&mut next).is_pending());
    drop(ctx);
    assert_eq!(bell.rung(), 1);
    assert_eq!(bell.poll(&mut next).map(Result::unwrap_err), Poll::Ready(RecvError::ContextClosed));
}

#[test]
fn the_last_waker_counts() {
    let _dog = watchdog();
    let name = Name::new("async-wakers");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = ends(&ctx);
    let (first, last) = (Bell::new(), Bell::new());
    for i in 0..100 {
        let before = (first.rung(), last.rung());
        let mut next = rx.recv_async();
        assert!(first.poll(&mut next).is_pending());
        assert!(last.poll(&mut next).is_pending());
        assert_eq!((first.rung(), last.rung()), before, "a name that was on the bell stays there");
        tx.send(ctx.record(i).unwrap()).unwrap();
        last.wait(before.1);
        assert_eq!(first.rung(), before.0);
        assert!(matches!(first.poll(&mut next), Poll::Ready(Ok(record)) if *record == i));
    }
}

#[test]
fn a_waker_that_panics_stops_nobody() {
    struct Panics(AtomicBool);
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
            panic!("this panic is part of the test");
        }
    }
    let _dog = watchdog();
    let name = Name::new("async-panic");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = ends(&ctx);
    let mut next = rx.recv_async();
    let panics = Arc::new(Panics(AtomicBool::new(false)));
    assert!(next.poll_unpin(&mut Context::from_waker(&Waker::from(Arc::clone(&panics)))).is_pending());
    tx.send(ctx.record(1).unwrap()).unwrap();
    while !panics.0.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    drop(next);
    assert_eq!(*block_on(rx.recv_async()).unwrap(), 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            let ctx = buffer.context().unwrap();
            drop(ctx.producer_with::<u64>(2, &blocking()).unwrap());
        });
        let mut rx = ctx.consumer_with::<u64>(2, &blocking()).unwrap();
        assert_eq!(block_on(rx.recv_async()).unwrap_err(), RecvError::Disconnected);
    });
}

#[test]
fn a_future_that_was_leaked_is_forgotten_with_its_end() {
    let _dog = watchdog();
    let name = Name::new("async-leak");
    let buffer = Buffer::open(&name).unwrap();
    let bell = Bell::new();
    for _ in 0..3 {
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
        let mut next = rx.recv_async();
        assert!(bell.settle(&mut next).is_pending());
        std::mem::forget(next);
        // It goes on with the same end, and with others.
        let mut next = rx.recv_async();
        assert!(bell.settle(&mut next).is_pending());
        std::mem::forget(next);
        drop(rx);
        let (mut tx, mut rx) = ends(&ctx);
        tx.send(ctx.record(1).unwrap()).unwrap();
        assert_eq!(*block_on(rx.recv_async()).unwrap(), 1);
    }
    all_free(&buffer);
    drop(buffer);
    assert!(!name.exists(), "what is leaked keeps no buffer open");
}

/// Futures are dropped after some polls, whatever they wait for: no record is lost, none comes twice.
#[test]
fn what_is_dropped_half_way_loses_nothing() {
    let _dog = watchdog();
    const COUNT: u64 = 3000;
    let name = Name::new("async-cancel");
    let buffer = Buffer::open(&name).unwrap();
    for strategy in [WaitStrategy::Adaptive, WaitStrategy::Block] {
        let options = ChannelOptions::new().wait_strategy(strategy).capacity(4);
        thread::scope(|scope| {
            scope.spawn(|| {
                let ctx = buffer.context().unwrap();
                let mut tx = ctx.producer_with::<u64>(1, &options).unwrap();
                let mut dice = Dice(7);
                tokio().block_on(async {
                    let mut next = 0;
                    while next < COUNT {
                        let patience = Duration::from_micros(dice.below(200));
                        let sent = tx.send_async(ctx.record(next).unwrap());
                        // Not sent if it was dropped in time: the same once more.
                        if let Ok(sent) = tokio::time::timeout(patience, sent).await {
                            sent.unwrap();
                            next += 1;
                        }
                    }
                });
                assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
            });
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer_with::<u64>(1, &options).unwrap();
            let mut dice = Dice(11);
            tokio().block_on(async {
                let mut expected = 0;
                loop {
                    let patience = Duration::from_micros(dice.below(200));
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(patience) => {}
                        received = rx.recv_async() => match received {
                            Ok(record) => {
                                assert_eq!(*record, expected);
                                expected += 1;
                            }
                            Err(error) => {
                                assert_eq!((error, expected), (RecvError::Disconnected, COUNT));
                                break;
                            }
                        },
                    }
                }
            });
        });
        all_free(&buffer);
    }
}

/// Whose waker is kept would be woken for nothing, and its task kept alive.
#[test]
fn what_is_dropped_is_forgotten() {
    let _dog = watchdog();
    let name = Name::new("async-forgotten");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = ends(&ctx);
    let bell = Bell::new();
    let wakers = || Arc::strong_count(&bell) - 1;
    let mut next = rx.recv_async();
    assert!(bell.settle(&mut next).is_pending());
    assert_eq!(wakers(), 1);
    drop(next);
    assert_eq!(wakers(), 0);
    let mut stream = rx.stream();
    assert!(bell.settle(&mut stream.next()).is_pending());
    assert_eq!(wakers(), 1, "it is the stream that waits");
    drop(stream);
    assert_eq!(wakers(), 0);
    tx.send(ctx.record(1).unwrap()).unwrap();
    tx.send(ctx.record(2).unwrap()).unwrap();
    assert_eq!(bell.rung(), 0);
    let mut sent = tx.send_async(ctx.record(3).unwrap());
    assert!(bell.settle(&mut sent).is_pending());
    drop(sent);
    assert_eq!(wakers(), 0);
    let mut sink = tx.sink();
    assert!(bell.settle(&mut sink.feed(ctx.record(3).unwrap())).is_pending());
    drop(sink);
    assert_eq!(wakers(), 0);
}

/// Two rings at about the same time, again and again, while the waiter has a lot to look at: if it overslept one, nothing would go on.
#[test]
fn a_ring_while_the_waiter_looks_is_heard() {
    let _dog = watchdog();
    if elsewhere_without_bounds("a_ring_while_the_waiter_looks_is_heard") {
        return;
    }
    let name = Name::new("async-rings");
    let buffer = Buffer::open(&name).unwrap();
    let options = blocking().capacity(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let [mut one, mut two] = [1, 2].map(|id| ctx.value_producer_with::<u64>(id, &options).unwrap());
            let mut back = ctx.value_consumer_with::<u64>(3, &ChannelOptions::new().capacity(2)).unwrap();
            let mut dice = Dice(5);
            for i in 0..5000 {
                one.send(i).unwrap();
                (0..dice.below(5000)).for_each(|_| std::hint::spin_loop());
                two.send(i).unwrap();
                assert_eq!(back.recv(), Ok(i));
            }
        });
        let ctx = buffer.context().unwrap();
        let mut quiet: Vec<_> = (10..210).map(|id| ctx.value_consumer_with::<u64>(id, &options).unwrap()).collect();
        let bell = Bell::new();
        let mut quiet: Vec<_> = quiet.iter_mut().map(Channel::recv_async).collect();
        assert!(quiet.iter_mut().all(|next| bell.settle(next).is_pending()));
        let [mut one, mut two] = [1, 2].map(|id| ctx.value_consumer_with::<u64>(id, &options).unwrap());
        let mut back = ctx.value_producer_with::<u64>(3, &options).unwrap();
        block_on(async {
            for i in 0..5000 {
                assert_eq!(futures_util::join!(one.recv_async(), two.recv_async()), (Ok(i), Ok(i)));
                back.send_async(i).await.unwrap();
            }
        });
        assert_eq!(bell.rung(), 0);
    });
}

#[test]
fn a_send_that_is_dropped_was_not_sent() {
    let _dog = watchdog();
    let name = Name::new("async-unsent");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = ends(&ctx);
    for _ in 0..10 {
        tx.send(ctx.record(1).unwrap()).unwrap();
        tx.send(ctx.record(2).unwrap()).unwrap();
        tokio().block_on(async {
            let late = tokio::time::timeout(Duration::from_millis(6), tx.send_async(ctx.record(3).unwrap())).await;
            assert!(late.is_err());
        });
        assert_eq!(rx.try_iter().map(|record| *record).collect::<Vec<_>>(), [1, 2]);
        // Nor does its name stay on the bell: nobody is woken for it.
        tx.send_async(ctx.record(4).unwrap()).now_or_never().unwrap().unwrap();
        assert_eq!(*rx.recv_async().now_or_never().unwrap().unwrap(), 4);
    }
    drop((tx, rx, ctx));
    all_free(&buffer);
}

#[test]
fn a_sink_gives_every_record_back() {
    let _dog = watchdog();
    let name = Name::new("async-sink");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, rx) = ends(&ctx);
    block_on(tx.sink().send(ctx.record(1).unwrap())).unwrap();
    block_on(tx.sink().feed(ctx.record(2).unwrap())).unwrap();
    assert_eq!(rx.len(), 2, "nothing is kept back");
    drop(rx);
    let Err(SendError::Disconnected(back)) = block_on(tx.sink().send(ctx.record(3).unwrap())) else {
        panic!("nobody is there")
    };
    assert_eq!(*back, 3);
    // A new consumer may come after the sink was ready to say so.
    let mut sink = tx.sink();
    assert!(futures_util::future::poll_fn(|cx| sink.poll_ready_unpin(cx)).now_or_never().unwrap().is_ok());
    let rx = ctx.consumer::<u64>(1).unwrap();
    assert!(matches!(sink.start_send_unpin(back), Err(SendError::Disconnected(back)) if *back == 3));
    drop((sink, rx));
    let foreign = Name::new("async-foreign");
    let foreign = Buffer::open(&foreign).unwrap().context().unwrap();
    let rx = ctx.consumer::<u64>(1).unwrap();
    drop(rx.into_iter().take(1).collect::<Vec<_>>());
    let rx = ctx.consumer::<u64>(1).unwrap();
    let refused = block_on(tx.sink().send(foreign.record(5).unwrap()));
    assert!(matches!(refused, Err(SendError::ForeignRecord(back)) if *back == 5));
    drop(ctx);
    let closed = tx.try_send(foreign.record(6).unwrap());
    assert!(matches!(closed, Err(TrySendError::ForeignRecord(_))));
    drop(rx);
}

/// Three stages in one thread, with two slots between each two.
#[test]
fn streams_and_sinks_make_pipelines() {
    let _dog = watchdog();
    let name = Name::new("async-pipeline");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let options = ChannelOptions::new().capacity(2);
    let producer = |id| ctx.producer_with::<u64>(id, &options).unwrap();
    let consumer = |id| ctx.consumer_with::<u64>(id, &options).unwrap();
    let mut txs = [producer(1), producer(2)];
    let middle =
        select_all([consumer(1), consumer(2)].map(Channel::into_stream)).map(Ok).forward(producer(3).into_sink());
    let mut end = consumer(3);
    let sum = tokio().block_on(async {
        let sources = async {
            for i in 0..500 {
                let (one, two) = (ctx.record(i).unwrap(), ctx.record(1000 + i).unwrap());
                let [tx1, tx2] = &mut txs;
                tokio::try_join!(tx1.send_async(one), tx2.send_async(two)).unwrap();
            }
            drop(txs);
        };
        let sum = end.stream().map(|record| *record).map(Ok::<u64, RecvError>).try_fold(0, async |a, b| Ok(a + b));
        let ((), forwarded, sum) = tokio::join!(sources, middle, sum);
        forwarded.unwrap();
        sum.unwrap()
    });
    assert_eq!(sum, (0..500).chain(1000..1500).sum());
    drop((end, ctx));
    all_free(&buffer);
}

#[test]
fn a_thousand_wait_at_once() {
    let _dog = watchdog();
    if elsewhere_without_bounds("a_thousand_wait_at_once") {
        return;
    }
    const CHANNELS: i64 = 1000;
    let name = Name::new("async-thousand");
    let buffer = Buffer::open(&name).unwrap();
    let options = blocking().capacity(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut txs: Vec<_> = (0..CHANNELS).map(|id| ctx.producer_with::<u64>(id, &options).unwrap()).collect();
            assert!(txs.iter().all(|tx| tx.wait_for_consumer(Duration::MAX).is_ok()));
            let mut dice = Dice(3);
            let mut sent = vec![0; txs.len()];
            for _ in 0..20_000 {
                let at = usize::try_from(dice.below(1000)).unwrap();
                let room = txs[at].try_send(ctx.record(sent[at]).unwrap());
                sent[at] += u64::from(room.is_ok());
                if dice.below(100) == 0 {
                    thread::sleep(Duration::from_micros(dice.below(500)));
                }
            }
            // Then all of them, each waiting in its turn.
            block_on(join_all(txs.iter_mut().zip(sent).map(|(tx, sent)| {
                let ctx = &ctx;
                async move {
                    for i in sent..sent + 5 {
                        tx.send_async(ctx.record(i).unwrap()).await.unwrap();
                    }
                }
            })));
        });
        let ctx = buffer.context().unwrap();
        let rxs: Vec<_> = (0..CHANNELS).map(|id| ctx.consumer_with::<u64>(id, &options).unwrap()).collect();
        let all: FuturesUnordered<_> = rxs
            .into_iter()
            .map(|mut rx| async move {
                let mut expected = 0;
                while let Ok(record) = rx.recv_async().await {
                    assert_eq!(*record, expected);
                    expected += 1;
                }
                expected
            })
            .collect();
        let received: Vec<u64> = tokio().block_on(all.collect());
        assert_eq!(received.len(), 1000);
        assert!(received.iter().all(|count| *count >= 5), "nobody is left out");
        assert!(waiters() <= 1);
    });
    all_free(&buffer);
}

/// An end that always finds something does not keep others from being woken.
#[test]
fn a_busy_channel_starves_no_other() {
    let _dog = watchdog();
    let name = Name::new("async-fair");
    let buffer = Buffer::open(&name).unwrap();
    thread::scope(|scope| {
        let ctx = buffer.context().unwrap();
        let mut busy = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
        let mut quiet = ctx.consumer_with::<u64>(2, &blocking()).unwrap();
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut busy = ctx.producer_with::<u64>(1, &blocking()).unwrap();
            let mut quiet = ctx.producer_with::<u64>(2, &blocking()).unwrap();
            for i in 0..5000 {
                busy.send(ctx.record(i).unwrap()).unwrap();
            }
            quiet.send(ctx.record(1).unwrap()).unwrap();
            while busy.send(ctx.record(1).unwrap()).is_ok() {}
        });
        tokio().block_on(async {
            let stream = async {
                while busy.recv_async().await.is_ok() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = stream => panic!("it never ends"),
                record = quiet.recv_async() => assert_eq!(*record.unwrap(), 1),
            }
        });
        drop(busy);
    });
}

/// Tasks of many threads wait, in two buffers: one thread sleeps for all of them, and goes when none is left.
#[test]
fn one_thread_sleeps_for_all() {
    let _dog = watchdog();
    if common::role().is_none() {
        // Where no other tests wait.
        return common::start("one_thread_sleeps_for_all", "alone", "none").success();
    }
    let names = [Name::new("async-one"), Name::new("async-two")];
    let buffers = names.each_ref().map(|name| Buffer::open(name).unwrap());
    assert_eq!(waiters(), 0, "nobody has waited yet");
    let wait = |of: usize, id| {
        let buffer = buffers[of].clone();
        thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer_with::<u64>(id, &blocking()).unwrap();
            *block_on(rx.recv_async()).unwrap()
        })
    };
    let waits: Vec<_> = (0..6).map(|i| wait(i % 2, i64::try_from(i).unwrap())).collect();
    let ctxs = buffers.each_ref().map(|buffer| buffer.context().unwrap());
    for (i, wait) in waits.into_iter().enumerate() {
        let ctx = &ctxs[i % 2];
        let mut tx = ctx.producer_with::<u64>(i64::try_from(i).unwrap(), &blocking()).unwrap();
        assert!(tx.wait_for_consumer(Duration::MAX).is_ok());
        while waiters() == 0 {
            thread::yield_now();
        }
        assert_eq!(waiters(), 1);
        tx.send(ctx.record(i as u64).unwrap()).unwrap();
        assert_eq!(wait.join().unwrap(), i as u64);
    }
    drop(ctxs);
    // A buffer goes at once, not when the waiter looks next.
    drop(buffers);
    assert!(names.iter().all(|name| !name.exists()));
    while waiters() > 0 {
        thread::sleep(SHORT);
    }
    // And it comes again.
    let buffer = Buffer::open(&names[0]).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    let bell = Bell::new();
    let mut next = rx.recv_async();
    assert!(bell.settle(&mut next).is_pending());
    while waiters() != 1 {
        thread::yield_now();
    }
}

/// The waiter gets up for a buffer that is closed, however often that is.
#[test]
fn buffers_come_and_go_while_others_are_waited_for() {
    let _dog = watchdog();
    if elsewhere_without_bounds("buffers_come_and_go_while_others_are_waited_for") {
        return;
    }
    let name = Name::new("async-stays");
    let buffer = Buffer::open(&name).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
            assert_eq!(*block_on(rx.recv_async()).unwrap(), 1);
        });
        for round in 0..200 {
            let name = Name::new("async-goes");
            let buffer = Buffer::open(&name).unwrap();
            let ctx = buffer.context().unwrap();
            let (mut tx, mut rx) = ends(&ctx);
            let bell = Bell::new();
            let mut next = rx.recv_async();
            assert!(bell.settle(&mut next).is_pending());
            if round % 2 == 0 {
                tx.send(ctx.record(2).unwrap()).unwrap();
                bell.wait(0);
                assert!(matches!(bell.poll(&mut next), Poll::Ready(Ok(record)) if *record == 2));
            }
            drop(next);
            drop((tx, rx, ctx, buffer));
            assert!(!name.exists());
        }
        let ctx = buffer.context().unwrap();
        let mut tx = ctx.producer_with::<u64>(1, &blocking()).unwrap();
        tx.send(ctx.record(1).unwrap()).unwrap();
    });
}

// -------------------------------------------------------------------------------------- wakers that do what they like

/// What a waker may do when it is woken, cloned or dropped: anything. With an argument that its thread has at hand.
mod others {
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;
    use std::task::{RawWaker, RawWakerVTable, Wake, Waker};

    type Act = Box<dyn FnOnce()>;

    thread_local! {
        static ON_WAKE: RefCell<Option<Act>> = const { RefCell::new(None) };
        static ON_DROP: RefCell<Option<Act>> = const { RefCell::new(None) };
        static ON_CLONE: RefCell<Option<Act>> = const { RefCell::new(None) };
        static WOKEN: Cell<usize> = const { Cell::new(0) };
    }

    struct Code;

    impl Wake for Code {
        fn wake(self: Arc<Self>) {
            WOKEN.set(WOKEN.get() + 1);
            if let Some(act) = ON_WAKE.take() {
                act();
            }
        }
    }

    impl Drop for Code {
        fn drop(&mut self) {
            if let Some(act) = ON_DROP.take() {
                act();
            }
        }
    }

    pub fn on_wake(act: impl FnOnce() + 'static) {
        ON_WAKE.set(Some(Box::new(act)));
    }

    pub fn on_drop(act: impl FnOnce() + 'static) {
        ON_DROP.set(Some(Box::new(act)));
    }

    pub fn woken() -> usize {
        WOKEN.get()
    }

    /// One for each call, so that the end of each is noticed.
    pub fn waker() -> Waker {
        Waker::from(Arc::new(Code))
    }

    /// Its clones do nothing, but the first cloning does.
    pub fn cloned(act: impl FnOnce() + 'static) -> Waker {
        static NOTHING: RawWakerVTable = RawWakerVTable::new(|_| still(), |_| (), |_| (), |_| ());
        static CLONED: RawWakerVTable = RawWakerVTable::new(
            |_| {
                if let Some(act) = ON_CLONE.take() {
                    act();
                }
                still()
            },
            |_| (),
            |_| (),
            |_| (),
        );
        fn still() -> RawWaker {
            RawWaker::new(std::ptr::null(), &NOTHING)
        }
        ON_CLONE.set(Some(Box::new(act)));
        // SAFETY: the functions touch no data.
        #[allow(unsafe_code)]
        unsafe {
            Waker::from_raw(RawWaker::new(std::ptr::null(), &CLONED))
        }
    }
}

fn is_mapped(name: &Name) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(&name.0)
}

fn parks<F: Future + Unpin>(future: &mut F) {
    assert!(future.poll_unpin(&mut Context::from_waker(&others::waker())).is_pending());
}

/// Symptom: an endpoint read unmapped memory. Cause: a waker that was woken while its context closed got that very context, and attached
/// an end which nobody detached. Fix: a context that closes is found by nobody, and wakers are woken last.
#[test]
fn a_waker_asks_for_the_context_that_closes() {
    let _dog = watchdog();
    let name = Name::new("async-asks");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    let late = std::rc::Rc::new(std::cell::RefCell::new(None));
    let mut next = rx.recv_async();
    parks(&mut next);
    others::on_wake({
        let late = std::rc::Rc::clone(&late);
        move || {
            let ctx = buffer.context().unwrap();
            let tx = ctx.producer::<u64>(2).unwrap();
            let rx = ctx.consumer::<u64>(2).unwrap();
            *late.borrow_mut() = Some((tx, rx, ctx));
        }
    });
    drop(ctx);
    drop(next);
    assert_eq!(rx.try_recv().unwrap_err(), RecvError::ContextClosed.into());
    drop(rx);
    assert!(is_mapped(&name));
    let (mut tx, mut rx, ctx) = late.take().unwrap();
    tx.send(ctx.record(5).unwrap()).unwrap();
    assert_eq!(*rx.try_recv().unwrap(), 5);
    drop((tx, rx, ctx));
    assert!(!is_mapped(&name) && !name.exists());
}

/// Symptom: a role that stayed taken by its own process. Cause: a waker that was woken by the drop of an end dropped the last context, and
/// with it what the end needed to leave. Fix: the role is released first.
#[test]
fn a_waker_drops_the_last_context() {
    let _dog = watchdog();
    let name = Name::new("async-last");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    let mut next = rx.recv_async();
    parks(&mut next);
    std::mem::forget(next);
    others::on_wake(move || drop(ctx));
    drop(rx);
    assert_eq!(others::woken(), 1);
    assert!(!buffer.has_channel(1).unwrap());
    drop(buffer.context().unwrap().consumer::<u64>(1).unwrap());
    all_free(&buffer);
}

/// Symptom: the mapping went while ends were still to be detached. Cause: a waker asked for the context that was closing, dropped it, and so
/// closed it once more. Fix: as above.
#[test]
fn a_waker_makes_and_closes_a_context_while_one_closes() {
    let _dog = watchdog();
    for keep in [true, false] {
        let name = Name::new("async-nested");
        let buffer = Buffer::open(&name).unwrap();
        let other = keep.then(|| buffer.clone());
        let ctx = buffer.context().unwrap();
        let mut rxs: Vec<_> = (0..3).map(|id| ctx.consumer_with::<u64>(id, &blocking()).unwrap()).collect();
        let before = others::woken();
        {
            let mut all: Vec<_> = rxs.iter_mut().map(Channel::recv_async).collect();
            all.iter_mut().for_each(parks);
            others::on_wake(move || drop(buffer.context().unwrap()));
            drop(ctx);
        }
        assert_eq!(others::woken() - before, 3);
        drop(rxs);
        assert_eq!(is_mapped(&name), keep);
        if let Some(buffer) = other {
            let ctx = buffer.context().unwrap();
            (0..3).for_each(|id| drop(ctx.consumer::<u64>(id).unwrap()));
            drop(ctx);
            all_free(&buffer);
        }
        assert!(!is_mapped(&name) && !name.exists());
    }
}

/// Symptom: two live records at one address. Cause: a waker's panic left a context half closed, and the thread took it for its own still.
/// Fix: wakers are woken last, and their panics end there.
#[test]
fn a_waker_panics_while_its_context_closes() {
    let _dog = watchdog();
    let name = Name::new("async-panics");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rxs: Vec<_> = (0..3).map(|id| ctx.consumer_with::<u64>(id, &blocking()).unwrap()).collect();
    let record = ctx.record(5_u64).unwrap();
    {
        let mut all: Vec<_> = rxs.iter_mut().map(Channel::recv_async).collect();
        all.iter_mut().for_each(parks);
        others::on_wake(|| panic!("this panic is part of the test"));
        drop(ctx);
        assert_eq!(others::woken(), 3, "the others are woken all the same");
    }
    // One end's drop, likewise.
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    let mut next = rx.recv_async();
    parks(&mut next);
    std::mem::forget(next);
    others::on_wake(|| panic!("this panic is part of the test"));
    drop(rx);
    assert_eq!(others::woken(), 4);
    drop((rxs, ctx));
    assert_eq!(*record, 5);
    drop(record);
    all_free(&buffer);
    drop(buffer);
    assert!(!is_mapped(&name) && !name.exists());
}

/// The waker that is dropped when a future answers may panic: the answer is given.
#[test]
fn a_waker_whose_drop_panics_costs_no_message() {
    let _dog = watchdog();
    let name = Name::new("async-drops");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (tx, mut rx) = ends(&ctx);
    let mut next = rx.recv_async();
    // Woken by nobody, so that it is dropped.
    parks(&mut next);
    let again = others::waker();
    others::on_drop(|| panic!("this panic is part of the test"));
    assert!(next.poll_unpin(&mut Context::from_waker(&again)).is_pending(), "the first one is replaced by another");
    others::on_drop(move || drop(ctx));
    drop(next);
    drop(again);
    assert!(tx.is_empty() && rx.try_recv().is_err());
    drop((tx, rx));
    drop(buffer);
    assert!(!is_mapped(&name) && !name.exists());
}

/// A waker that closes the context while it is cloned: the future says that it is closed.
#[test]
fn a_waker_closes_the_context_while_it_is_cloned() {
    let _dog = watchdog();
    let name = Name::new("async-clones");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &blocking()).unwrap();
    let mut next = rx.recv_async();
    let waker = others::cloned(move || drop((ctx, buffer)));
    let polled = next.poll_unpin(&mut Context::from_waker(&waker));
    assert_eq!(polled.map(Result::unwrap_err), Poll::Ready(RecvError::ContextClosed));
    drop(next);
    assert!(!is_mapped(&name) && !name.exists());
    drop(rx);
}
