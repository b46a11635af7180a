//! What a consumer hears from a producer that leaves, or is killed: all that was sent, once and in order, and then that it has left.
//!
//! - The consumer is stopped when it has found nothing and before it asks whether the producer has left; meanwhile the producer
//!   sends and leaves. Symptom before the second look was there: `Disconnected`, and behind it messages that nobody received.
//! - A producer is killed at each place inside a batch of records; so is the next one, while it clears what was left of it.
//! - Somebody who polls now and then hears of a killed peer in a handful of polls, however rare they are. Symptom: it took some 27
//!   polls, that is 5.4 s for one each 200 ms.
//!
//! Needs the feature `crash-points`: `cargo test --features crash-points,async --test leaving`.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "common/children.rs"]
mod children;
mod common;
#[cfg(feature = "async")]
#[path = "common/executor.rs"]
mod executor;
#[path = "common/scenarios.rs"]
mod scenarios;

use children::{Baton, Ended, KILLED, child, ended, in_child, signal};
use common::Name;
use common::forked::die;
use ipc_buffer::crash_points::{arm, arm_stop, disarm};
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Message, Payload, Producer, Record, RecvError, Select, ThreadContext,
    TryRecvError, TrySendError, ValueChannel,
};
use scenarios::Scenario;
use std::time::Duration;

const LIMIT_S: u32 = 50;

fn main() {
    let scenarios: &[(&str, Scenario)] = &[
        ("a record sent before leaving is received", |name| last_records(name)),
        ("a value sent before leaving is received", |name| last_values(name)),
        ("a batch of records is torn at each place", torn_batches),
        ("a poller hears of a killed producer", |name| producer_killed(name)),
        ("a poller hears of a killed consumer", |name| consumer_killed(name)),
    ];
    scenarios::main("leaving", scenarios);
}

// ------------------------------------------------------------------------------------------------- sent before leaving

/// One way to receive: the numbers received until the producer was found to have left.
type Way<T, M> = fn(&mut Channel<T, Consumer, M>, fn(M) -> u64) -> Vec<u64>;

fn disconnected(error: TryRecvError) {
    assert_eq!(error, TryRecvError::Recv(RecvError::Disconnected));
}

/// Asks again while it is told that there is nothing yet.
fn polled<M, I>(mut ask: impl FnMut() -> Result<I, TryRecvError>, mut got: impl FnMut(I) -> Vec<M>) -> Vec<M> {
    let mut all = Vec::new();
    loop {
        match ask() {
            Ok(it) => all.extend(got(it)),
            Err(TryRecvError::Empty) => {}
            Err(error) => {
                disconnected(error);
                return all;
            }
        }
    }
}

fn ways<T: ?Sized + Payload, M: Message>() -> Vec<(&'static str, Way<T, M>)> {
    vec![
        ("try_recv", |rx, number| polled(|| rx.try_recv(), |it| vec![number(it)])),
        ("try_recv_batch", |rx, number| {
            polled(|| rx.try_recv_batch(2), |batch| batch.into_iter().map(number).collect())
        }),
        ("recv", |rx, number| std::iter::from_fn(|| rx.recv().ok()).map(number).collect()),
        ("recv_batch", |rx, number| std::iter::from_fn(|| rx.recv_batch(2).ok()).flatten().map(number).collect()),
        ("recv_timeout", |rx, number| {
            std::iter::from_fn(|| rx.recv_timeout(Duration::from_secs(20)).ok()).map(number).collect()
        }),
        ("iter", |rx, number| rx.iter().map(number).collect()),
        #[cfg(feature = "async")]
        ("recv_async", |rx, number| {
            std::iter::from_fn(|| executor::block_on(rx.recv_async()).ok()).map(number).collect()
        }),
        #[cfg(feature = "async")]
        ("stream", |rx, number| {
            use futures_util::StreamExt;
            executor::block_on(rx.stream().map(number).collect())
        }),
    ]
}

fn last_records(name: &Name) {
    let number = |record: Record<u64>| *record;
    hears_the_last(
        name,
        |ctx| ctx.consumer(1).unwrap(),
        number,
        |ctx| {
            let mut tx = ctx.producer::<u64>(1).unwrap();
            Box::new(move |ctx| (0..3).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap()))
        },
    );
}

fn last_values(name: &Name) {
    hears_the_last(
        name,
        |ctx| ctx.value_consumer(1).unwrap(),
        |value: u64| value,
        |ctx| {
            let mut tx: ValueChannel<u64, Producer> = ctx.value_producer(1).unwrap();
            Box::new(move |_| (0..3).for_each(|i| tx.send(i).unwrap()))
        },
    );
}

/// What a producer that has attached does when it is told to.
type Sends = Box<dyn FnOnce(&ThreadContext)>;

fn hears_the_last<T: ?Sized + Payload, M: Message>(
    name: &str,
    consumer: fn(&ThreadContext) -> Channel<T, Consumer, M>,
    number: fn(M) -> u64,
    producer: fn(&ThreadContext) -> Sends,
) {
    for (way, receive) in ways::<T, M>() {
        for is_killed in [false, true] {
            let (to_receiver, to_sender, done) = (Baton::new(), Baton::new(), Baton::new());
            let receiver = child(LIMIT_S, || {
                let ctx = Buffer::open(name).unwrap().context().unwrap();
                let mut rx = consumer(&ctx);
                done.pass();
                to_receiver.wait();
                arm_stop("poll: nothing there", 1);
                let got = receive(&mut rx, number);
                disarm();
                assert_eq!(got, [0, 1, 2], "{way}, the producer killed: {is_killed}");
                assert_eq!(rx.len(), 0, "behind `Disconnected`");
                0
            });
            done.wait();
            let buffer = Buffer::open(name).unwrap();
            let sender = child(LIMIT_S, || {
                let ctx = Buffer::open(name).unwrap().context().unwrap();
                let send = producer(&ctx);
                done.pass();
                to_sender.wait();
                send(&ctx);
                if is_killed {
                    die();
                }
                0
            });
            done.wait();
            to_receiver.pass();
            assert_eq!(ended(receiver), Ended::Stopped, "{way}: it has found nothing");
            to_sender.pass();
            assert_eq!(ended(sender), if is_killed { KILLED } else { Ended::Exit(0) });
            while buffer.reap().unwrap().processes > 0 {}
            signal(receiver, libc::SIGCONT);
            assert_eq!(ended(receiver), Ended::Exit(0), "{way}, the producer killed: {is_killed}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------- torn batches

const TORN: i64 = 2;
/// Of the batch that is torn.
const BATCH: u64 = 6;

fn torn(ctx: &ThreadContext) -> Channel<u64, Producer> {
    ctx.producer_with(TORN, &ChannelOptions::new().capacity(8).persistent(true)).unwrap()
}

/// A process that attaches as the producer, sends some records, and dies of its own if it is not killed before.
fn producer_of(name: &str, point: &str, count: u32, numbers: std::ops::Range<u64>) {
    let ended = in_child(LIMIT_S, || {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        arm(point, count);
        let mut tx = torn(&ctx);
        tx.send_batch(numbers.map(|n| ctx.record(n).unwrap())).unwrap();
        die()
    });
    assert_eq!(ended, KILLED);
}

fn torn_batches(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut cases = 0;
    for start in [0, 5] {
        for point in ["send batch: before a slot", "send batch: slot"] {
            for count in 1..=u32::try_from(BATCH).unwrap() {
                // How often the next one comes to a slot that it clears: as many as were written of the others.
                let written = u64::from(count) - u64::from(point == "send batch: before a slot");
                for killed_clearing in 0..=u32::try_from(written.min(BATCH - 1)).unwrap() {
                    torn_batch(name, &buffer, &ctx, start, (point, count), killed_clearing);
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 70, "{cases}");
    common::all_free(&buffer);
}

/// The batch begins at position `start` of a ring of 8; the producer is killed inside, the next one maybe while it clears.
fn torn_batch(name: &str, buffer: &Buffer, ctx: &ThreadContext, start: u64, at: (&str, u32), killed_clearing: u32) {
    let (point, count) = at;
    let what = format!("from {start}, {point} ({count}), cleared {killed_clearing}");
    let mut rx = {
        let mut tx = torn(ctx);
        let rx = ctx.consumer::<u64>(TORN).unwrap();
        (0..start).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
        rx
    };
    assert_eq!(rx.try_iter().count() as u64, start);
    producer_of(name, point, count, 100..100 + BATCH);
    while buffer.reap().unwrap().processes > 0 {}
    let is_sent = point == "send batch: slot" && u64::from(count) == BATCH;
    let expected: Vec<u64> = if is_sent { (100..100 + BATCH).collect() } else { vec![] };
    let got = |rx: &mut Channel<u64, Consumer>| rx.try_iter().map(|record| *record).collect::<Vec<u64>>();
    if killed_clearing > 0 && !is_sent {
        producer_of(name, "attach: cleared", killed_clearing, 0..0);
        while buffer.reap().unwrap().processes > 0 {}
    }
    let mut tx = torn(ctx);
    assert_eq!(got(&mut rx), expected, "{what}");
    // One at a time, over more than a lap.
    for i in 200..220 {
        tx.send(ctx.record(i).unwrap()).unwrap();
        assert_eq!(got(&mut rx), [i], "{what}");
    }
    drop(tx);
    assert!(buffer.remove_channel(TORN).unwrap());
    drop(rx);
    common::sound(buffer);
}

// ------------------------------------------------------------------------------------------------------- pollers

/// Polls each `pause` until `is_told`; how often.
fn polls(pause: Duration, mut is_told: impl FnMut() -> bool) -> u32 {
    (1..100)
        .find(|_| {
            std::thread::sleep(pause);
            is_told()
        })
        .expect("it is told at all")
}

/// 250 ms are promised: so many pauses, and a few more.
fn most(pause: Duration) -> u32 {
    u32::try_from(250 / pause.as_millis()).unwrap() + 4
}

const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];

/// Whether this says that the other end has left.
fn has_left<I>(result: Result<I, TryRecvError>) -> bool {
    match result {
        Ok(_) => panic!("nothing was sent"),
        Err(error) => error == TryRecvError::Recv(RecvError::Disconnected),
    }
}

/// Kills a process that has attached by `attach`, while `polls` looks at it.
fn after_a_kill(
    name: &str,
    attach: impl FnOnce(&ThreadContext),
    mut poll: impl FnMut() -> bool,
    pause: Duration,
    what: &str,
) {
    let ready = Baton::new();
    let peer = child(LIMIT_S, || {
        let ctx = Buffer::open(name).unwrap().context().unwrap();
        attach(&ctx);
        ready.pass();
        scenarios::stay()
    });
    ready.wait();
    // As long as it is there, nothing is said: and the polls are past those that look closer.
    for _ in 0..30 {
        assert!(!poll(), "{what}: it is there");
    }
    signal(peer, libc::SIGKILL);
    assert_eq!(ended(peer), KILLED);
    let count = polls(pause, poll);
    assert!(count <= most(pause), "{what}: {count} polls, one each {pause:?}");
}

fn producer_killed(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    for pause in PAUSES {
        let mut rx = ctx.consumer::<u64>(1).unwrap();
        let attach = |ctx: &ThreadContext| std::mem::forget(ctx.producer::<u64>(1).unwrap());
        after_a_kill(name, attach, || has_left(rx.try_recv()), pause, "try_recv");
        drop(rx);

        let mut rx = ctx.consumer::<u64>(2).unwrap();
        let attach = |ctx: &ThreadContext| std::mem::forget(ctx.producer::<u64>(2).unwrap());
        after_a_kill(name, attach, || has_left(rx.try_recv_batch(9)), pause, "try_recv_batch");
        drop(rx);

        let mut rx = ctx.value_consumer::<u64>(3).unwrap();
        let attach = |ctx: &ThreadContext| std::mem::forget(ctx.value_producer::<u64>(3).unwrap());
        after_a_kill(name, attach, || has_left(rx.try_recv()), pause, "try_recv of values");
        drop(rx);

        let rx = ctx.value_consumer::<u64>(4).unwrap();
        let mut select = Select::new();
        select.recv(&rx);
        let attach = |ctx: &ThreadContext| std::mem::forget(ctx.value_producer::<u64>(4).unwrap());
        after_a_kill(name, attach, || select.try_ready().is_some(), pause, "try_ready");
    }
}

fn consumer_killed(name: &Name) {
    let buffer = Buffer::open(name).unwrap();
    let ctx = buffer.context().unwrap();
    for pause in PAUSES {
        let mut tx = ctx.value_producer_with::<u64>(1, &ChannelOptions::new().capacity(2)).unwrap();
        let attach = |ctx: &ThreadContext| std::mem::forget(ctx.value_consumer::<u64>(1).unwrap());
        let poll = || loop {
            match tx.try_send(1) {
                Ok(()) => {}
                Err(error) => break matches!(error, TrySendError::Disconnected(_)),
            }
        };
        after_a_kill(name, attach, poll, pause, "try_send");
    }
}
