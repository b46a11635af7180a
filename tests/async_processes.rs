//! Awaiting channels between real processes: both ends awake or asleep, with and without heavy barriers; an end that is stopped,
//! killed, or forked off.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // fork, _exit, waitpid

mod common;
#[path = "common/executor.rs"]
mod executor;
#[path = "common/sandbox.rs"]
mod sandbox;

use common::{Name, all_free, start_with, watchdog};
use executor::{Bell, block_on, tokio};
use futures_util::future::join;
use ipc_buffer::{Buffer, ChannelOptions, RecvError, SendError, WaitStrategy};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::task::Poll;
use std::thread;
use std::time::Duration;

const BLOCK: WaitStrategy = WaitStrategy::Block;
const ADAPTIVE: WaitStrategy = WaitStrategy::Adaptive;

fn options(strategy: WaitStrategy) -> ChannelOptions {
    ChannelOptions::new().wait_strategy(strategy).capacity(4)
}

/// Sends back what comes on channel 1 by channel 2, one up.
async fn answer(buffer: &str, strategy: WaitStrategy) {
    let ctx = Buffer::open(buffer).unwrap().context().unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &options(strategy)).unwrap();
    let mut tx = ctx.producer_with::<u64>(2, &options(strategy)).unwrap();
    while let Ok(mut record) = rx.recv_async().await {
        *record += 1;
        tx.send_async(record).await.unwrap();
    }
}

/// Sends `count` records, up to `ahead` before their answers; pauses now and then, so that each side falls asleep at any moment
/// of the other's.
async fn ask(buffer: &str, strategy: WaitStrategy, count: u64, ahead: u64) {
    let ctx = Buffer::open(buffer).unwrap().context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &options(strategy)).unwrap();
    let mut rx = ctx.consumer_with::<u64>(2, &options(strategy)).unwrap();
    let mut random = 1_u64;
    for i in 0..count + ahead {
        if i < count {
            tx.send_async(ctx.record(i).unwrap()).await.unwrap();
        }
        if i >= ahead {
            assert_eq!(*rx.recv_async().await.unwrap(), i - ahead + 1);
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if random >> 61 == 0 {
            (0..random >> 40 & 0xfff).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// No sleep has a bound here, but for the naps of those without heavy barriers: a lost wake-up is a hang.
#[test]
fn there_and_back() {
    let _dog = watchdog();
    const TEST: &str = "there_and_back";
    if let Some((role, buffer)) = common::role() {
        return match role.as_str() {
            "answer on tokio" => tokio().block_on(answer(&buffer, BLOCK)),
            "answer on nothing" => block_on(answer(&buffer, BLOCK)),
            "answer adaptively" => block_on(answer(&buffer, WaitStrategy::Adaptive)),
            "ask" => tokio().block_on(ask(&buffer, BLOCK, 5000, 1)),
            "ask ahead" => tokio().block_on(ask(&buffer, BLOCK, 5000, 6)),
            _ => tokio().block_on(ask(&buffer, WaitStrategy::Adaptive, 5000, 6)),
        };
    }
    let forever = ("IPC_BUFFER_TICK_MS", "3600000");
    let heavy = &[forever][..];
    let fenced = &[forever, ("IPC_BUFFER_NO_MEMBARRIER", "1")][..];
    let all = [
        (("answer on tokio", heavy), ("ask", heavy)),
        (("answer on nothing", heavy), ("ask ahead", heavy)),
        (("answer adaptively", heavy), ("ask adaptively", heavy)),
        (("answer on nothing", fenced), ("ask", heavy)),
        (("answer on tokio", heavy), ("ask ahead", fenced)),
        (("answer on nothing", fenced), ("ask ahead", fenced)),
    ];
    for ((answers, its), (asks, theirs)) in all {
        let name = Name::new("async-there");
        let buffer = Buffer::open(&name).unwrap();
        let answers = start_with(TEST, answers, &name, its);
        start_with(TEST, asks, &name, theirs).success();
        answers.success();
        all_free(&buffer);
    }
}

/// Where nobody can sleep on two words, the second buffer's news comes late, but it comes; the cores are left alone meanwhile.
#[test]
fn two_buffers_on_an_old_kernel() {
    let _dog = watchdog();
    if common::role().is_none() {
        return common::start("two_buffers_on_an_old_kernel", "alone", "none").success();
    }
    sandbox::forbid(libc::SYS_futex_waitv);
    two_buffers();
}

#[test]
fn two_buffers_on_a_new_one() {
    let _dog = watchdog();
    if common::role().is_none() {
        return common::start("two_buffers_on_a_new_one", "alone", "none").success();
    }
    two_buffers();
}

/// What this process has used of the processors.
fn cpu_time() -> Duration {
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time to where it may.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut used) }, 0);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap())
}

fn two_buffers() {
    let names = [Name::new("async-old-one"), Name::new("async-old-two")];
    let ctxs = names.each_ref().map(|name| Buffer::open(name).unwrap().context().unwrap());
    let mut txs = ctxs.each_ref().map(|ctx| ctx.producer_with::<u64>(1, &options(BLOCK)).unwrap());
    let mut rxs = ctxs.each_ref().map(|ctx| ctx.consumer_with::<u64>(1, &options(BLOCK)).unwrap());
    for order in [[0, 1], [1, 0]] {
        let bells = [Bell::new(), Bell::new()];
        let mut next = rxs.each_mut().map(|rx| rx.recv_async());
        assert!(next.iter_mut().zip(&bells).all(|(next, bell)| bell.settle(next).is_pending()));
        let before = cpu_time();
        thread::sleep(Duration::from_millis(500));
        let used = cpu_time() - before;
        // Half of the time at most, where the processors are slow: who looks on all the time uses all of it.
        let most = common::limits::scaled(Duration::from_millis(50)).min(Duration::from_millis(250));
        assert!(used < most, "{used:?} of the processors while nothing happened");
        for i in order {
            txs[i].send(ctxs[i].record(7).unwrap()).unwrap();
            bells[i].wait(0);
            assert!(matches!(bells[i].poll(&mut next[i]), Poll::Ready(Ok(record)) if *record == 7));
        }
    }
}

/// Nothing of a future that just waited keeps the process attached: it may end at once.
#[test]
fn the_last_one_out_removes_the_segment() {
    let _dog = watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut rx = ctx.consumer_with::<u64>(1, &options(BLOCK)).unwrap();
        assert!(Bell::new().settle(&mut rx.recv_async()).is_pending());
        drop((rx, ctx));
        std::process::exit(0);
    }
    for _ in 0..20 {
        let name = Name::new("async-last");
        common::start("the_last_one_out_removes_the_segment", "only", &name).success();
        assert!(!name.exists());
    }
}

/// When the last buffer with futures was left, the thread that slept for them kept looking for beds until the next tick, without
/// a pause: nothing was left to sleep in. It goes with the last one.
#[test]
fn the_waiter_goes_with_the_last_buffer() {
    let _dog = watchdog();
    if common::role().is_none() {
        let forever = [("IPC_BUFFER_TICK_MS", "3600000")];
        return start_with("the_waiter_goes_with_the_last_buffer", "alone", "none", &forever).success();
    }
    let has_waiter = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.into_iter().any(|name| name.starts_with("ipc-buffer-wait"))
    };
    for _ in 0..3 {
        let name = Name::new("async-goes");
        let ctx = Buffer::open(&name).unwrap().context().unwrap();
        let mut rx = ctx.consumer_with::<u64>(1, &options(BLOCK)).unwrap();
        assert!(Bell::new().settle(&mut rx.recv_async()).is_pending());
        while !has_waiter() {
            thread::yield_now();
        }
        drop((rx, ctx));
        while has_waiter() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Attaches to both channels and does nothing with them, until it is killed.
fn sit(buffer: &str) -> ! {
    let ctx = Buffer::open(buffer).unwrap().context().unwrap();
    let _rx = ctx.consumer_with::<u64>(1, &options(BLOCK)).unwrap();
    let _tx = ctx.producer_with::<u64>(2, &options(BLOCK)).unwrap();
    loop {
        thread::park();
    }
}

#[test]
fn the_other_process_is_killed() {
    let _dog = watchdog();
    if let Some((_, buffer)) = common::role() {
        sit(&buffer);
    }
    let name = Name::new("async-killed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for _ in 0..5 {
        let mut tx = ctx.producer_with::<u64>(1, &options(BLOCK)).unwrap();
        let mut rx = ctx.consumer_with::<u64>(2, &options(BLOCK)).unwrap();
        let mut other = common::start("the_other_process_is_killed", "sits", &name);
        assert!(tx.wait_for_consumer(Duration::MAX).is_ok() && rx.wait_for_producer(Duration::MAX).is_ok());
        (0..4).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
        let bells = [Bell::new(), Bell::new()];
        let mut sent = tx.send_async(ctx.record(4).unwrap());
        let mut received = rx.recv_async();
        assert!(bells[0].settle(&mut sent).is_pending() && bells[1].settle(&mut received).is_pending());
        // The nap of one that may have to wait for more room.
        bells[0].wait(0);
        assert!(bells[0].settle(&mut sent).is_pending());
        other.kill();
        bells[0].wait(1);
        assert!(matches!(bells[0].poll(&mut sent), Poll::Ready(Err(SendError::Disconnected(back))) if *back == 4));
        bells[1].wait(0);
        assert_eq!(bells[1].poll(&mut received).map(Result::unwrap_err), Poll::Ready(RecvError::Disconnected));
    }
    drop(ctx);
    all_free(&buffer);
}

/// Both futures at once, in a thread that sleeps in its executor when the other process is killed.
#[test]
fn an_executor_asleep_hears_of_a_death() {
    let _dog = watchdog();
    if let Some((_, buffer)) = common::role() {
        sit(&buffer);
    }
    let name = Name::new("async-death");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for (on_tokio, strategy) in [(true, BLOCK), (false, BLOCK), (true, ADAPTIVE), (false, ADAPTIVE)] {
        let mut tx = ctx.producer_with::<u64>(1, &options(strategy)).unwrap();
        let mut rx = ctx.consumer_with::<u64>(2, &options(strategy)).unwrap();
        let mut other = common::start("an_executor_asleep_hears_of_a_death", "sits", &name);
        assert!(tx.wait_for_consumer(Duration::MAX).is_ok() && rx.wait_for_producer(Duration::MAX).is_ok());
        (0..4).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
        let killer = thread::spawn(move || {
            // After a nap, and after a look around that found it alive.
            thread::sleep(Duration::from_millis(300));
            other.kill();
        });
        let both = join(tx.send_async(ctx.record(4).unwrap()), rx.recv_async());
        let (sent, received) = if on_tokio { tokio().block_on(both) } else { block_on(both) };
        killer.join().unwrap();
        assert!(matches!(sent, Err(SendError::Disconnected(back)) if *back == 4));
        assert!(matches!(received, Err(RecvError::Disconnected)));
    }
    drop(ctx);
    all_free(&buffer);
}

#[test]
fn a_stopped_process_is_waited_for() {
    let _dog = watchdog();
    if let Some((_, buffer)) = common::role() {
        return block_on(answer(&buffer, BLOCK));
    }
    let name = Name::new("async-stopped");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &options(BLOCK)).unwrap();
    let mut rx = ctx.consumer_with::<u64>(2, &options(BLOCK)).unwrap();
    let other = common::start("a_stopped_process_is_waited_for", "answers", &name);
    assert!(tx.wait_for_consumer(Duration::MAX).is_ok() && rx.wait_for_producer(Duration::MAX).is_ok());
    let pid = Pid::from_raw(other.pid().cast_signed()).unwrap();
    tokio().block_on(async {
        kill_process(pid, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
        tx.send_async(ctx.record(1).unwrap()).await.unwrap();
        let mut answer = rx.recv_async();
        // Longer than a dead one would be taken for alive.
        assert!(tokio::time::timeout(Duration::from_millis(400), &mut answer).await.is_err());
        kill_process(pid, Signal::CONT).unwrap();
        assert_eq!(*answer.await.unwrap(), 2);
    });
    drop((tx, rx));
    other.success();
}

/// Runs `part` in a forked child, which must get through it.
fn in_a_child(part: impl FnOnce()) {
    // SAFETY: the child runs `part` and ends; it has the C library's locks, which are safe across a fork, and ours.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(part));
        // SAFETY: ends the process, without what the parent wants to be done at its end.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
}

#[test]
fn a_forked_child_begins_anew() {
    let _dog = watchdog();
    if common::role().is_none() {
        // Where no other thread is in a lock while it forks.
        return common::start("a_forked_child_begins_anew", "alone", "none").success();
    }
    let name = Name::new("async-fork");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &options(BLOCK)).unwrap();
    let mut rx = ctx.consumer_with::<u64>(1, &options(BLOCK)).unwrap();
    let bell = Bell::new();
    let mut next = Some(rx.recv_async());
    assert!(bell.settle(next.as_mut().unwrap()).is_pending());
    in_a_child(|| {
        let mut next = next.take().unwrap();
        assert_eq!(bell.poll(&mut next).map(Result::unwrap_err), Poll::Ready(RecvError::Forked));
        assert_eq!(bell.poll(&mut next).map(Result::unwrap_err), Poll::Ready(RecvError::Forked));
    });
    in_a_child(|| drop(next.take()));
    in_a_child(|| {
        let buffer = Buffer::open(&name).unwrap();
        let ctx = buffer.context().unwrap();
        let mut rx = ctx.consumer_with::<u64>(2, &options(BLOCK)).unwrap();
        let sends = thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<u64>(2, &options(BLOCK)).unwrap();
            thread::sleep(Duration::from_millis(5));
            tx.send(ctx.record(7).unwrap()).unwrap();
        });
        assert_eq!(*block_on(rx.recv_async()).unwrap(), 7);
        sends.join().unwrap();
        // What is inherited is inert even so.
        drop(next.take());
    });
    // The parent has noticed nothing.
    assert!(bell.settle(next.as_mut().unwrap()).is_pending());
    let before = bell.rung();
    tx.send(ctx.record(8).unwrap()).unwrap();
    bell.wait(before);
    assert!(matches!(bell.poll(next.as_mut().unwrap()), Poll::Ready(Ok(record)) if *record == 8));
    drop(next);
    drop((tx, rx, ctx));
    all_free(&buffer);
}
