//! What each process does.

use crate::Outcome;
use ipc_buffer::{Buffer, ChannelOptions, ThreadContext};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io::stdin;
use std::mem::forget;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

/// The victim's channel with all those records.
pub(crate) const LOADED: i64 = 1;
/// The victim's channel with a peer that waits.
const PEER: i64 = 2;
const TO: i64 = 3;
const BACK: i64 = 4;
/// Of 64 MiB, how much the victim leaves to others.
const SPARE: u64 = 8;

type Value = [u8; 40];

/// The monotonic clock, the same in every process.
#[allow(unsafe_code)]
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the time to where it is told.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

pub(crate) fn play(args: &[String]) -> Outcome {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let [role, name, core, more @ ..] = args else { return Err("--role is not for you".into()) };
    let mut cores = CpuSet::new();
    cores.set(core.parse()?);
    sched_setaffinity(None, &cores)?;
    let more = more.first().map_or("", String::as_str);
    match role.as_str() {
        "victim" => victim(name, more),
        "reaper" => reaper(name),
        "neighbour" => neighbour(more.parse()?),
        "sender" => sender(name),
        "echo" => echo(name),
        "observer" => observer(name, more),
        "peer" => peer(name),
        _ => Err("there is no such role".into()),
    }
}

fn hear() -> Outcome<String> {
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn stay() -> ! {
    loop {
        thread::park();
    }
}

fn victim(name: &str, load: &str) -> Outcome {
    let buffer = Buffer::open(name)?;
    let ctx = buffer.context()?;
    let waited_for = ctx.producer::<u64>(PEER)?;
    let count = buffer.capacity() / 64 * (64 - SPARE) / 64;
    let one = || ctx.record::<Value>([1; 40]);
    match load {
        "queued" | "deserted" => {
            let slots = usize::try_from(count.next_power_of_two() / 2)?.min(1 << 24);
            let mut tx = ctx.producer_with(LOADED, &ChannelOptions::new().capacity(slots))?;
            (0..slots).try_for_each(|_| Ok::<(), ipc_buffer::Error>(tx.try_send(one()?)?))?;
            forget(tx);
        }
        "channels" => {
            for id in 100..8100 {
                let mut tx = ctx.producer::<Value>(id)?;
                (0..(count / 2 / 8000).min(1024))
                    .try_for_each(|_| Ok::<(), ipc_buffer::Error>(tx.try_send(one()?)?))?;
                forget(tx);
            }
        }
        _ => {
            for _ in 0..count {
                forget(one()?);
            }
        }
    }
    println!("ready");
    forget(waited_for);
    stay()
}

fn reaper(name: &str) -> Outcome {
    let buffer = Buffer::open(name)?;
    println!("ready");
    hear()?;
    let start = now_ns();
    let reaped = buffer.reap()?;
    println!("{start} {} {}", now_ns(), reaped.records);
    stay()
}

/// Walks through as much memory as the buffer has.
fn neighbour(mib: usize) -> Outcome {
    println!("ready");
    hear()?;
    let start = now_ns();
    let memory = vec![1_u64; mib << 17];
    let mut sum = 0;
    while now_ns() - start < 500_000_000 {
        sum += memory.iter().step_by(8).sum::<u64>();
    }
    println!("{start} {} {sum}", now_ns());
    drop(memory);
    stay()
}

fn sender(name: &str) -> Outcome {
    let ctx = Buffer::open(name)?.context()?;
    let mut tx = ctx.producer::<Value>(TO)?;
    println!("ready");
    while tx.send(ctx.record([2; 40])?).is_ok() {}
    Ok(())
}

fn echo(name: &str) -> Outcome {
    let ctx = Buffer::open(name)?.context()?;
    let mut rx = ctx.consumer::<Value>(TO)?;
    let mut tx = ctx.producer::<Value>(BACK)?;
    println!("ready");
    while let Ok(record) = rx.recv() {
        drop(record);
        tx.send(ctx.record([3; 40])?)?;
    }
    Ok(())
}

fn peer(name: &str) -> Outcome {
    let ctx = Buffer::open(name)?.context()?;
    let mut rx = ctx.consumer::<u64>(PEER)?;
    println!("ready");
    let Err(_) = rx.recv() else { return Err("nobody sends".into()) };
    println!("{}", now_ns());
    stay()
}

fn observer(name: &str, thing: &str) -> Outcome {
    let (asked, questions) = channel();
    thread::spawn(move || {
        while let Ok(line) = hear()
            && asked.send(line).is_ok()
        {}
    });
    if thing == "open" {
        println!("ready");
        return watch(&questions, || Ok(Buffer::open(name)?));
    }
    let buffer = Buffer::open(name)?;
    let ctx = buffer.context()?;
    println!("ready");
    match thing {
        "stream" => {
            let mut rx = ctx.consumer::<Value>(TO)?;
            watch(&questions, || Ok(rx.recv()?))
        }
        "echo" => {
            let (mut tx, mut rx) = (ctx.producer::<Value>(TO)?, ctx.consumer::<Value>(BACK)?);
            watch(&questions, || {
                tx.send(ctx.record([4; 40])?)?;
                Ok(rx.recv()?)
            })
        }
        "alloc" => watch(&questions, allocate(&ctx)),
        "attach" => watch(&questions, || Ok(ctx.producer::<Value>(9000)?)),
        "ask" => watch(&questions, || Ok(buffer.has_channel(9001)?)),
        _ => watch(&questions, || Ok(())),
    }
}

/// Through the cache to the depot and back.
fn allocate(ctx: &ThreadContext) -> impl FnMut() -> Outcome {
    let mut held = Vec::new();
    move || {
        held.push(ctx.record::<Value>([5; 40])?);
        if held.len() == 500 {
            held.clear();
        }
        Ok(())
    }
}

/// Does something until asked, and says for each window that is asked for: the longest it took, how often it took more than a
/// millisecond, and how often it was done.
fn watch<R>(questions: &Receiver<String>, mut what: impl FnMut() -> Outcome<R>) -> Outcome {
    /// Shorter ones are counted only, by the millisecond.
    const NOTED_NS: u64 = 20_000;
    let mut noted: Vec<(u64, u64)> = Vec::with_capacity(1 << 20);
    let mut done: Vec<u64> = Vec::new();
    let first = now_ns();
    let mut last = first;
    let question = loop {
        for _ in 0..64 {
            drop(what()?);
            let now = now_ns();
            if now - last > NOTED_NS {
                noted.push((last, now));
            }
            last = now;
            let millisecond = usize::try_from((now - first) / 1_000_000)?;
            if done.len() <= millisecond {
                done.resize(millisecond + 1, 0);
            }
            done[millisecond] += 1;
        }
        match questions.try_recv() {
            Ok(question) => break question,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    };
    let moments = question.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let answer = moments.chunks(2).map(|window| {
        let (start, end) = (window[0], window[1]);
        let inside = noted.iter().filter(|(from, to)| *to > start && *from < end).map(|(from, to)| to - from);
        let (longest, over) = inside.fold((0, 0), |(most, over), ns| (ns.max(most), over + u32::from(ns > 1_000_000)));
        let milliseconds = |ns: u64| usize::try_from(ns.saturating_sub(first) / 1_000_000).unwrap_or(0).min(done.len());
        let times: u64 = done[milliseconds(start)..milliseconds(end)].iter().sum();
        format!("{longest} {over} {times}")
    });
    println!("{}", answer.collect::<Vec<_>>().join(" "));
    thread::sleep(Duration::from_secs(60));
    Ok(())
}
