//! Processes that are killed: what they had sent arrives, what they held is free again, and their roles can be taken.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::{Name, Process};
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, Reaped, Record, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, ThreadContext,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(50);
/// The channel on which a child says that it has come so far.
const READY: i64 = 99;

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

/// In a child: says so, and waits to be killed.
fn ready_and_wait(ctx: &ThreadContext) -> ! {
    let mut ready = ctx.producer::<u64>(READY).unwrap();
    ready.send(ctx.record(1).unwrap()).unwrap();
    loop {
        std::thread::sleep(LONG);
    }
}

fn start_and_wait(test: &str, role: &str, buffer: &Buffer, name: &Name) -> Process {
    let child = common::start(test, role, name);
    let ctx = buffer.context().unwrap();
    let mut ready = ctx.consumer::<u64>(READY).unwrap();
    assert_eq!(*ready.recv_timeout(LONG).unwrap(), 1);
    child
}

/// Reaps until nobody dead is left (a waiting end may have done it before), and finds the heap sound.
fn reap(buffer: &Buffer) {
    while buffer.reap().unwrap().processes > 0 {}
    assert_eq!(buffer.reap().unwrap(), Reaped::default());
    common::sound(buffer);
}

#[test]
fn a_killed_producer() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut tx = ctx.producer::<[u64]>(1).unwrap();
        (0..1000).for_each(|i| tx.send(work::numbered(&ctx, i, 200)).unwrap());
        // Never sent: freed by the reaper, whatever class, in use or cached.
        let kept: Vec<_> = (0..300).map(|i| work::numbered(&ctx, i, 20_000)).collect();
        std::mem::forget(kept);
        drop(work::numbered(&ctx, 0, 5000));
        ready_and_wait(&ctx);
    }
    let name = Name::new("producer");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<[u64]>(1).unwrap();
    let mut child = start_and_wait("a_killed_producer", "producer", &buffer, &name);
    for i in 0..10 {
        assert_eq!(work::number(&rx.recv().unwrap()), i);
    }
    child.kill();
    // What is queued names its dead sender; reaped now, it must stay, and stay as it is while others allocate.
    reap(&buffer);
    assert_eq!(common::sound(&buffer).queued[0].records, 990);
    let noise: Vec<_> = (0..2000).map(|i| work::numbered(&ctx, i, 200)).collect();
    for i in 10..1000 {
        assert_eq!(work::number(&rx.recv().unwrap()), i);
    }
    assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected, "after everything that was sent");
    assert!(!rx.has_producer());
    assert!(noise.iter().zip(0..).all(|(record, i)| work::number(record) == i));
    drop(noise);
    assert_eq!(common::sound(&buffer).owned_bytes(), 0);
    let mut tx = ctx.producer::<[u64]>(1).unwrap();
    tx.send(work::numbered(&ctx, 7, 50)).unwrap();
    assert_eq!(work::number(&rx.recv().unwrap()), 7);
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_killed_consumer() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut rx = ctx.consumer::<[u64]>(1).unwrap();
        // Received, and neither freed nor sent on: gone with the process.
        let kept: Vec<_> = (0..3).map(|_| rx.recv().unwrap()).collect();
        std::mem::forget(kept);
        ready_and_wait(&ctx);
    }
    let name = Name::new("consumer");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<[u64]>(1, &slots(8)).unwrap();
    for i in 0..8 {
        tx.send(work::numbered(&ctx, i, 100)).unwrap();
    }
    let mut child = start_and_wait("a_killed_consumer", "consumer", &buffer, &name);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(120));
        child.kill();
    });
    // Three were received, so three fit; the next one waits for the dead.
    for i in 8..11 {
        tx.send(work::numbered(&ctx, i, 100)).unwrap();
    }
    let Err(SendError::Disconnected(record)) = tx.send(work::numbered(&ctx, 11, 100)) else { panic!() };
    assert_eq!(work::number(&record), 11);
    killer.join().unwrap();
    reap(&buffer);
    let audit = common::sound(&buffer);
    assert_eq!((audit.owned[0].records, audit.owned.len(), audit.queued[0].records), (1, 1, 8));
    // The next one goes on where the dead one was.
    let mut rx = ctx.consumer::<[u64]>(1).unwrap();
    tx.send_timeout(record, Duration::ZERO).unwrap_err();
    for i in 3..11 {
        assert_eq!(work::number(&rx.recv().unwrap()), i);
    }
    assert!(rx.is_empty());
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn waiting_in_short_steps_finds_the_dead_too() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _tx = ctx.producer::<u64>(1).unwrap();
        ready_and_wait(&ctx);
    }
    let name = Name::new("short");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut child = start_and_wait("waiting_in_short_steps_finds_the_dead_too", "producer", &buffer, &name);
    assert!(matches!(rx.recv_timeout(Duration::from_millis(10)), Err(RecvTimeoutError::Timeout(_))));
    child.kill();
    // No sleep of ours is long enough to be a look around by itself.
    let timeouts =
        (0..).take_while(|_| rx.recv_timeout(Duration::from_millis(40)) != Err(RecvError::Disconnected.into()));
    let count = timeouts.count();
    assert!(count < 100, "{count} waits of 40 ms went by");
    drop((rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn polling_without_waiting_finds_the_dead_too() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _ends = (ctx.producer::<u64>(1).unwrap(), ctx.consumer_with::<u64>(2, &slots(2)).unwrap());
        ready_and_wait(&ctx);
    }
    let name = Name::new("poll");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut tx = ctx.producer_with::<u64>(2, &slots(2)).unwrap();
    for send in [false, true] {
        let mut child = start_and_wait("polling_without_waiting_finds_the_dead_too", "ends", &buffer, &name);
        child.kill();
        if send {
            while !matches!(tx.try_send(ctx.record(1).unwrap()), Err(ipc_buffer::TrySendError::Disconnected(_))) {}
        } else {
            while rx.try_recv().unwrap_err() != RecvError::Disconnected.into() {}
        }
        common::sound(&buffer);
    }
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

/// The parts of `killed_at_any_moment`: each runs until it is killed, and says when its ends are there.
fn play(role: &str, ctx: &ThreadContext, seed: u64) {
    let ready = || ctx.producer::<u64>(READY).unwrap();
    match role {
        // Sends 0, 1, 2, ... for ever.
        "producer" => {
            let mut tx = ctx.producer_with::<[u64]>(1, &slots(64)).unwrap();
            let _ready = ready();
            for i in 0.. {
                let Ok(()) = tx.send(work::numbered(ctx, i, 300)) else { return };
            }
        }
        "consumer" => {
            let rx = ctx.consumer_with::<[u64]>(1, &slots(64)).unwrap();
            let _ready = ready();
            for record in rx {
                work::number(&record);
            }
        }
        // Sends on what it receives.
        "echo" => {
            let mut back = ctx.producer_with::<[u64]>(2, &slots(64)).unwrap();
            let rx = ctx.consumer_with::<[u64]>(1, &slots(64)).unwrap();
            let _ready = ready();
            for record in rx {
                let Ok(()) = back.send(record) else { return };
            }
        }
        // Makes, fills and drops channels and contexts; holds records of every size meanwhile.
        _ => {
            let mut rng = work::Rng::new(seed);
            let mut held = Vec::new();
            let _ready = ready();
            loop {
                let id = rng.below(20) as i64 + 100;
                let mut tx = ctx.producer_with::<[u64]>(id, &slots(4)).unwrap();
                for i in 0..rng.below(4) {
                    tx.send(work::numbered(ctx, i, 300)).unwrap();
                }
                let _rx = ctx.consumer::<[u64]>(id).unwrap();
                held.push(work::wait_for_memory(|| ctx.slice_uninit::<u8>(rng.size(1, 300_000))));
                if held.len() > 8 {
                    held.swap_remove(rng.below(8) as usize);
                }
                if rng.below(4) == 0 {
                    ctx.flush();
                }
            }
        }
    }
}

/// Sends; false if the child has gone. Where it was killed and reaped before this end came, its channel has gone with it: this one waits for
/// nobody, and nobody tells it so.
fn send(tx: &mut Channel<[u64], Producer>, record: Record<[u64]>, is_over: &AtomicBool) -> bool {
    let mut unsent = record;
    loop {
        let was_over = is_over.load(Ordering::SeqCst);
        match tx.send_timeout(unsent, Duration::from_millis(50)) {
            Err(SendTimeoutError::Timeout(back)) if !was_over || tx.has_consumer() => unsent = back,
            result => return result.is_ok(),
        }
    }
}

/// As [`send`]: what is received, until the child has gone.
fn recv(rx: &mut Channel<[u64], Consumer>, is_over: &AtomicBool) -> Option<Record<[u64]>> {
    loop {
        let was_over = is_over.load(Ordering::SeqCst);
        match rx.recv_timeout(Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout(_)) if !was_over || rx.has_producer() => {}
            result => return result.ok(),
        }
    }
}

/// The other side of [`play`], until the child is dead.
fn attend(role: &str, ctx: &ThreadContext, round: u64, is_over: &AtomicBool) {
    match role {
        "producer" => {
            let mut rx = ctx.consumer_with::<[u64]>(1, &slots(64)).unwrap();
            for (next, record) in (0..).zip(std::iter::from_fn(|| recv(&mut rx, is_over))) {
                assert_eq!(work::number(&record), next, "round {round}");
                if round.is_multiple_of(8) {
                    // So that much is queued when the producer dies.
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
        "consumer" => {
            let mut tx = ctx.producer_with::<[u64]>(1, &slots(64)).unwrap();
            let sent = (0..).find(|i| !send(&mut tx, work::numbered(ctx, *i, 300), is_over)).unwrap_or(0);
            let mut rx = ctx.consumer::<[u64]>(1).unwrap();
            let left: Vec<u64> = rx.try_iter().map(|record| work::number(&record)).collect();
            let first = sent - left.len() as u64;
            assert!(left.iter().copied().eq(first..sent), "round {round}: {sent} were sent, {left:?} are left");
        }
        "echo" => {
            let mut tx = ctx.producer_with::<[u64]>(1, &slots(64)).unwrap();
            let mut rx = ctx.consumer_with::<[u64]>(2, &slots(64)).unwrap();
            let (mut sent, mut received) = (0, 0);
            let mut take = |record: &[u64]| {
                assert_eq!(work::number(record), received, "round {round}");
                received += 1;
            };
            while send(&mut tx, work::numbered(ctx, sent, 300), is_over) {
                sent += 1;
                while let Ok(record) = rx.try_recv() {
                    take(&record);
                }
            }
            while let Some(record) = recv(&mut rx, is_over) {
                take(&record);
            }
            let mut rest = ctx.consumer::<[u64]>(1).unwrap();
            let left: Vec<u64> = rest.try_iter().map(|record| work::number(&record)).collect();
            let first = sent - left.len() as u64;
            assert!(left.iter().copied().eq(first..sent), "round {round}: {sent} were sent, {left:?} are left");
            // At most the one that the child had in its hands is gone.
            assert!(first - received <= 1, "round {round}: {received} came back, {first} were taken");
        }
        _ => {}
    }
}

#[test]
fn killed_at_any_moment() {
    let _dog = common::Watchdog::new(Duration::from_secs(150));
    if let Some((role, buffer)) = common::role() {
        let (role, seed) = role.split_once(' ').unwrap();
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        return play(role, &ctx, seed.parse().unwrap());
    }
    let name = Name::new("moment");
    let buffer = Buffer::options().capacity(4 << 20).open(&name).unwrap();
    let mut rng = work::Rng::new(3);
    for round in 0..100 {
        let role = ["producer", "consumer", "echo", "churn"][round as usize % 4];
        let mut child = common::start("killed_at_any_moment", &format!("{role} {round}"), &name);
        let delay = Duration::from_micros(rng.below(12_000));
        assert!(buffer.wait_for_channel(READY, LONG).unwrap());
        // So that the parent's own context can be the one that is short of something.
        let ctx = buffer.context().unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(delay);
                child.kill();
                buffer.reap().unwrap();
                is_over.store(true, Ordering::SeqCst);
            });
            attend(role, &ctx, round, &is_over);
        });
        reap(&buffer);
        assert!(buffer.channels().unwrap().is_empty(), "round {round}");
        drop(ctx);
        common::all_free(&buffer);
    }
    work::end(buffer, &name);
}

#[test]
fn many_threads_reap_at_once() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        // Full caches of many classes.
        for size in 0..60_u64 {
            drop((0..70).map(|i| work::numbered(&ctx, i, 3 + size as usize * 8)).collect::<Vec<_>>());
        }
        ready_and_wait(&ctx);
    }
    let name = Name::new("reapers");
    // Room for what all threads have at the end, in slabs of some twenty classes: else they could wait for each other's memory for good.
    let buffer = Buffer::options().capacity(16 << 20).open(&name).unwrap();
    for _ in 0..25 {
        let mut child = start_and_wait("many_threads_reap_at_once", "cache", &buffer, &name);
        child.kill();
        let go = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..6_u64 {
                let (buffer, go) = (&buffer, &go);
                scope.spawn(move || {
                    while !go.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    // What the reapers put back is in use at once, and must not be put back again.
                    let ctx = buffer.context().unwrap();
                    {
                        buffer.reap().unwrap();
                    }
                    let mut records = Vec::new();
                    for i in 0..1500 {
                        records.push(work::numbered(&ctx, thread << 32 | i, 3 + (i as usize * 7) % 480));
                        if i % 4 == 0 {
                            records.swap_remove((i as usize * 13) % records.len());
                        }
                    }
                    assert!(records.iter().all(|record| work::number(record) >> 32 == thread));
                });
            }
            go.store(true, Ordering::Relaxed);
        });
        reap(&buffer);
        common::all_free(&buffer);
    }
    work::end(buffer, &name);
}

#[test]
fn a_reaper_is_killed() {
    let _dog = common::watchdog();
    if let Some((role, buffer)) = common::role() {
        let buffer = Buffer::open(&buffer).unwrap();
        let ctx = buffer.context().unwrap();
        if role == "victim" {
            let mut tx = ctx.producer::<[u64]>(1).unwrap();
            (0..200).for_each(|i| tx.send(work::numbered(&ctx, i, 50)).unwrap());
            std::mem::forget((0..3000).map(|i| work::numbered(&ctx, i, 50)).collect::<Vec<_>>());
            ready_and_wait(&ctx);
        }
        let _ready = ctx.producer::<u64>(READY + 1).unwrap();
        loop {
            buffer.reap().unwrap();
        }
    }
    let name = Name::new("reaper");
    let buffer = Buffer::options().capacity(8 << 20).open(&name).unwrap();
    let mut rng = work::Rng::new(4);
    let mut undone = 0;
    for round in 0..25 {
        let mut victim = start_and_wait("a_reaper_is_killed", "victim", &buffer, &name);
        let mut reaper = common::start("a_reaper_is_killed", "reaper", &name);
        assert!(buffer.wait_for_channel(READY + 1, LONG).unwrap());
        victim.kill();
        std::thread::sleep(Duration::from_micros(rng.below(5000)));
        reaper.kill();
        undone += buffer.reap().unwrap().processes - 1;
        reap(&buffer);
        let ctx = buffer.context().unwrap();
        let audit = common::sound(&buffer);
        // The victim's channel had no other end, so it went with the victim.
        assert!(audit.owned.is_empty() && audit.queued.is_empty(), "round {round}: {audit:#?}");
        drop(ctx);
        common::all_free(&buffer);
    }
    println!("in {undone} of 25 rounds the reaper was killed before it was done");
    work::end(buffer, &name);
}

#[test]
fn the_last_process_is_killed() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut tx = ctx.producer_with::<[u64]>(1, &slots(64).persistent(true)).unwrap();
        (0..50).for_each(|i| tx.send(work::numbered(&ctx, i, 5000)).unwrap());
        std::mem::forget(work::numbered(&ctx, 0, 5000));
        std::process::abort();
    }
    let name = Name::new("lastone");
    assert!(!common::start("the_last_process_is_killed", "last", &name).wait().success());
    assert!(name.exists(), "nobody was left to remove it");
    let buffer = Buffer::options().must_exist(true).open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<[u64]>(1).unwrap();
    assert!(rx.iter().map(|record| work::number(&record)).eq(0..50));
    assert!(buffer.remove_channel(1).unwrap());
    drop((rx, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_stopped_process_is_alive() {
    use rustix::process::{Pid, Signal, kill_process};
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let mut tx = ctx.producer::<u64>(1).unwrap();
        let mut ask = ctx.consumer::<u64>(2).unwrap();
        while let Ok(question) = ask.recv() {
            tx.send(question).unwrap();
        }
        return;
    }
    let name = Name::new("stopped");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut rx, mut ask) = (ctx.consumer::<u64>(1).unwrap(), ctx.producer::<u64>(2).unwrap());
    let child = common::start("a_stopped_process_is_alive", "answers", &name);
    ask.send(ctx.record(1).unwrap()).unwrap();
    assert_eq!(*rx.recv().unwrap(), 1);
    let pid = Pid::from_raw(i32::try_from(child.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    while state() != 'T' {
        std::thread::sleep(Duration::from_millis(1));
    }
    ask.send(ctx.record(2).unwrap()).unwrap();
    // Several looks around, none of which may take it for dead.
    let timeout = Duration::from_millis(350);
    assert_eq!(rx.recv_timeout(timeout).unwrap_err(), RecvTimeoutError::Timeout(timeout));
    assert_eq!(buffer.reap().unwrap(), Reaped::default());
    assert!(rx.has_producer() && ask.has_consumer());
    assert!(ctx.producer::<u64>(1).is_err(), "its role is its own");
    common::sound(&buffer);
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(*rx.recv().unwrap(), 2);
    drop(ask);
    child.success();
    drop((rx, ctx));
    work::end(buffer, &name);
}
