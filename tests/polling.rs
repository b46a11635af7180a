//! Polling: who looks now and then, and never waits, hears of a dead peer by time, however seldom it looks.
//!
//! A poll that comes 100 ms after the last look at the peer's lease looks again, and says what it sees. So who polls every 50 ms hears
//! with the third poll at the latest, and who polls more seldom with the next one. Counted in polls, for a busy machine makes
//! pauses longer, and so polls fewer. Each way to poll has a buffer and a peer of its own: who hears reaps, and that is news to others.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::Name;
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, RecvError, RecvTimeoutError, Select, SendTimeoutError,
    ThreadContext, TryRecvError, TrySendError, ValueChannel,
};
use std::fmt::Debug;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(100);
const GONE: TryRecvError = TryRecvError::Recv(RecvError::Disconnected);

/// The peer's ends: a producer of each kind, a consumer of each kind, and the word that all are there.
const RECORDS_IN: i64 = 1;
const VALUES_IN: i64 = 2;
const RECORDS_OUT: i64 = 3;
const VALUES_OUT: i64 = 4;
const READY: i64 = 5;

fn options() -> ChannelOptions {
    ChannelOptions::new().capacity(2)
}

fn play_the_peer(name: &str) {
    let ctx = Buffer::open(name).unwrap().context().unwrap();
    let options = options();
    let senders = (ctx.producer_with::<u64>(RECORDS_IN, &options), ctx.value_producer_with::<u64>(VALUES_IN, &options));
    let receivers =
        (ctx.consumer_with::<u64>(RECORDS_OUT, &options), ctx.value_consumer_with::<u64>(VALUES_OUT, &options));
    assert!(senders.0.is_ok() && senders.1.is_ok() && receivers.0.is_ok() && receivers.1.is_ok());
    let mut ready = ctx.producer::<u64>(READY).unwrap();
    ready.send(ctx.record(1).unwrap()).unwrap();
    std::thread::sleep(LONG);
}

/// Polls that say whether the peer is gone, made with what they need and given to who makes them.
type Way = fn(&ThreadContext, &mut dyn FnMut(&mut dyn FnMut() -> bool));

fn inbox(ctx: &ThreadContext) -> Channel<u64, Consumer> {
    ctx.consumer(RECORDS_IN).unwrap()
}

fn values(ctx: &ThreadContext) -> ValueChannel<u64, Consumer> {
    ctx.value_consumer(VALUES_IN).unwrap()
}

fn full(ctx: &ThreadContext) -> Channel<u64, Producer> {
    let mut tx = ctx.producer(RECORDS_OUT).unwrap();
    tx.send_batch([1, 2].map(|i| ctx.record(i).unwrap())).unwrap();
    tx
}

fn full_of_values(ctx: &ThreadContext) -> ValueChannel<u64, Producer> {
    let mut tx = ctx.value_producer(VALUES_OUT).unwrap();
    tx.send_batch([1, 2]).unwrap();
    tx
}

/// Whether it is `gone`; if not, it must be `empty`.
fn said<T: Debug, E: PartialEq + Debug>(result: Result<T, E>, gone: E, empty: E) -> bool {
    let error = result.unwrap_err();
    assert!(error == gone || error == empty, "{error:?}");
    error == gone
}

fn refused<M: Debug>(result: Result<(), TrySendError<M>>) -> bool {
    match result.unwrap_err() {
        TrySendError::Disconnected(_) => true,
        TrySendError::Full(_) => false,
        other => panic!("{other:?}"),
    }
}

fn recv_for(rx: &mut Channel<u64, Consumer>, timeout: Duration) -> bool {
    said(rx.recv_timeout(timeout), RecvError::Disconnected.into(), RecvTimeoutError::Timeout(timeout))
}

/// A Select over this end and so many others that nobody is at.
fn select_among(ctx: &ThreadContext, others: i64, run: &mut dyn FnMut(&mut dyn FnMut() -> bool)) {
    let rx = inbox(ctx);
    let more: Vec<Channel<u64, Consumer>> = (1000..1000 + others).map(|id| ctx.consumer(id).unwrap()).collect();
    let mut select = Select::new();
    more.iter().for_each(|rx| _ = select.recv(rx));
    let dead = select.recv(&rx);
    run(&mut || select.try_ready().inspect(|number| assert_eq!(*number, dead)).is_some());
}

const WAYS: &[(&str, Way)] = &[
    ("try_recv", |ctx, run| {
        let mut rx = inbox(ctx);
        run(&mut || said(rx.try_recv(), GONE, TryRecvError::Empty));
    }),
    ("try_recv_batch", |ctx, run| {
        let mut rx = inbox(ctx);
        run(&mut || said(rx.try_recv_batch(3), GONE, TryRecvError::Empty));
    }),
    ("try_recv of values", |ctx, run| {
        let mut rx = values(ctx);
        run(&mut || said(rx.try_recv(), GONE, TryRecvError::Empty));
    }),
    ("try_recv_batch of values", |ctx, run| {
        let mut rx = values(ctx);
        run(&mut || said(rx.try_recv_batch(3), GONE, TryRecvError::Empty));
    }),
    ("recv_timeout of nothing", |ctx, run| {
        let mut rx = inbox(ctx);
        run(&mut || recv_for(&mut rx, Duration::ZERO));
    }),
    ("recv_timeout", |ctx, run| {
        let mut rx = inbox(ctx);
        run(&mut || recv_for(&mut rx, Duration::from_millis(1)));
    }),
    ("try_send", |ctx, run| {
        let mut tx = full(ctx);
        run(&mut || refused(tx.try_send(ctx.record(1).unwrap())));
    }),
    ("try_send_batch", |ctx, run| {
        let mut tx = full(ctx);
        run(&mut || refused(tx.try_send_batch([ctx.record(1).unwrap()])));
    }),
    ("try_send of values", |ctx, run| {
        let mut tx = full_of_values(ctx);
        run(&mut || refused(tx.try_send(1)));
    }),
    ("try_send_batch of values", |ctx, run| {
        let mut tx = full_of_values(ctx);
        run(&mut || refused(tx.try_send_batch([1])));
    }),
    ("send_timeout", |ctx, run| {
        let mut tx = full(ctx);
        run(&mut || match tx.send_timeout(ctx.record(1).unwrap(), Duration::from_millis(1)).unwrap_err() {
            SendTimeoutError::Disconnected(_) => true,
            SendTimeoutError::Timeout(_) => false,
            other => panic!("{other}"),
        });
    }),
    ("a Select of one", |ctx, run| select_among(ctx, 0, run)),
    ("a Select of few", |ctx, run| select_among(ctx, 10, run)),
    ("a Select of many", |ctx, run| select_among(ctx, 100, run)),
    ("a Select of one that sends", |ctx, run| {
        let tx = full(ctx);
        let mut select = Select::new();
        select.send(&tx);
        run(&mut || select.try_ready().is_some());
    }),
    #[cfg(feature = "async")]
    ("a future each time", |ctx, run| {
        let mut rx = inbox(ctx);
        run(&mut || {
            by_hand::poll(&mut rx.recv_async()).is_some_and(|result| result.unwrap_err() == RecvError::Disconnected)
        });
    }),
    #[cfg(feature = "async")]
    ("one future", |ctx, run| {
        let mut rx = inbox(ctx);
        let mut future = rx.recv_async();
        run(&mut || by_hand::poll(&mut future).is_some_and(|result| result.unwrap_err() == RecvError::Disconnected));
    }),
    #[cfg(feature = "async")]
    ("a stream", |ctx, run| {
        let mut stream = inbox(ctx).into_stream();
        run(&mut || by_hand::poll(&mut futures_util::StreamExt::next(&mut stream)).is_some_and(|next| next.is_none()));
    }),
    #[cfg(feature = "async")]
    ("a future that sends", |ctx, run| {
        let mut tx = full(ctx);
        run(&mut || match by_hand::poll(&mut tx.send_async(ctx.record(1).unwrap())) {
            Some(result) => matches!(result, Err(ipc_buffer::SendError::Disconnected(_))),
            None => false,
        });
    }),
    #[cfg(feature = "async")]
    ("a sink", |ctx, run| {
        let mut sink = full(ctx).into_sink();
        run(&mut || {
            let mut ready =
                std::future::poll_fn(|cx| futures_util::Sink::poll_ready(std::pin::Pin::new(&mut sink), cx));
            by_hand::poll(&mut ready).is_some()
        });
    }),
];

#[cfg(feature = "async")]
mod by_hand {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    /// One poll, by nobody who could be woken.
    pub(crate) fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}

/// Whether each way hears with the poll number `most`, at the latest, after the peer's death.
fn hears_by_time(test: &str, period: Duration, most: usize) {
    let _dog = common::watchdog();
    if let Some((_, name)) = common::role() {
        return play_the_peer(&name);
    }
    std::thread::scope(|scope| {
        for &(what, way) in WAYS {
            scope.spawn(move || {
                let name = Name::new("polling");
                let buffer = Buffer::open(&name).unwrap();
                let ctx = buffer.context().unwrap();
                let mut child = common::start(test, "peer", &name);
                let mut ready = ctx.consumer::<u64>(READY).unwrap();
                assert_eq!(*ready.recv_timeout(LONG).unwrap(), 1);
                way(&ctx, &mut |poll| {
                    // Some before, as one does.
                    for _ in 0..4 {
                        assert!(!poll(), "{what}: it lives");
                        std::thread::sleep(period);
                    }
                    child.kill();
                    for number in 1.. {
                        if poll() {
                            break;
                        }
                        assert!(number < most, "{what}: not heard of by poll {number}, every {period:?}");
                        std::thread::sleep(period);
                    }
                });
                drop((ready, ctx));
                work::end(buffer, &name);
            });
        }
    });
}

#[test]
fn every_50_ms() {
    hears_by_time("every_50_ms", Duration::from_millis(50), 3);
}

#[test]
fn every_200_ms() {
    hears_by_time("every_200_ms", Duration::from_millis(200), 1);
}

#[test]
fn every_500_ms() {
    hears_by_time("every_500_ms", Duration::from_millis(500), 1);
}
