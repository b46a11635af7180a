//! Kills processes that share a buffer, for as long as you like, and proves that nothing is lost.
//!
//! ```text
//! cargo run --release --example crash_soak -- --seconds N --seed S [--processes P] [--buffer MIB]
//! ```
//!
//! Workers allocate, hold, check and free records, send, receive and forward them, attach and leave, open and close,
//! remove, trim and reap, all at random. The parent kills them: one, several at once, those that have just begun to open or
//! are about to reap, those it stopped before; and starts others in their place. What must be true is in `ledger.rs`, and it is
//! checked as it happens. Every second all are asked to pause, and the buffer's audit is compared with the ledger. Every few
//! seconds all leave or are killed: then everything must be free, the segment must go with the last handle, and the
//! next workers race to make a new one.
//!
//! The same seed makes the same choices; what they meet is up to the scheduler. Ends with 0, with 1 if a promise was
//! broken, or with 2 if it could not be run.

mod ledger;
mod rng;
mod worker;

use ipc_buffer::{Buffer, RecvError, TryRecvError};
use ledger::{Checker, Event, Log, What, is_persistent};
use rng::Rng;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use worker::{OPEN, Orders, PAUSE, QUIT, RUN};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const ROUND: Duration = Duration::from_secs(5);
const BETWEEN_AUDITS: Duration = Duration::from_secs(1);
/// Who has not come to rest by then waits for nobody, or is lost.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let result = match args.next().filter(|first| first == "--worker") {
        Some(_) => Orders::parse(args).and_then(worker::work),
        None => Options::parse().and_then(|options| Soak::new(options)?.run()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("crash_soak: {error}");
        ExitCode::from(2)
    })
}

struct Options {
    seconds: u64,
    seed: u64,
    processes: usize,
    buffer_mib: u32,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut options = Self { seconds: 10, seed: 1, processes: 8, buffer_mib: 16 };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            let number = args.next().and_then(|n| n.parse::<u64>().ok());
            let number = number.ok_or_else(|| format!("{arg} takes a number"))?;
            match &*arg {
                "--seconds" => options.seconds = number,
                "--seed" => options.seed = number,
                "--processes" => options.processes = usize::try_from(number.clamp(2, 256))?,
                "--buffer" => options.buffer_mib = u32::try_from(number.clamp(1, 1 << 16))?,
                _ => return Err("usage: crash_soak --seconds N --seed S [--processes P] [--buffer MIB]".into()),
            }
        }
        Ok(options)
    }
}

/// A worker, seen by the parent. Killed when dropped.
struct Process {
    child: Child,
    number: u32,
    /// Stopped until then, and whether it is killed then.
    stopped: Option<(Instant, bool)>,
}

impl Process {
    fn signal(&self, signal: Signal) {
        // Its own child, and not waited for yet: the id is its.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Soak {
    options: Options,
    rng: Rng,
    name: String,
    log: Log,
    control: File,
    checker: Checker,
    processes: Vec<Process>,
    /// Number of the next worker; the parent is worker 0.
    next: u32,
    pauses: u64,
    audits: u64,
    rounds: u64,
    kills: u64,
    restarts: u64,
    start: Instant,
}

impl Drop for Soak {
    fn drop(&mut self) {
        self.processes.clear();
        let _ = Buffer::unlink(&self.name);
    }
}

impl Soak {
    fn new(options: Options) -> Outcome<Self> {
        let control = rustix::fs::memfd_create("control", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(Self {
            rng: Rng::new(options.seed),
            options,
            name: format!("crash_soak-{}", std::process::id()),
            log: Log::create()?,
            control: control.into(),
            checker: Checker::default(),
            processes: Vec::new(),
            next: 1,
            pauses: 0,
            audits: 0,
            rounds: 0,
            kills: 0,
            restarts: 0,
            start: Instant::now(),
        })
    }

    fn run(mut self) -> Outcome<ExitCode> {
        let end = self.start + Duration::from_secs(self.options.seconds);
        while self.checker.violations == 0 && (Instant::now() < end || self.rounds == 0) {
            self.round(end)?;
        }
        self.say("crash_soak:");
        Ok(ExitCode::from(u8::from(self.checker.violations > 0)))
    }

    fn say(&self, head: &str) {
        let Self { kills, restarts, audits, rounds, .. } = self;
        let Checker { sent, received, taken_along, not_made, violations, .. } = self.checker;
        let ambiguous = taken_along + not_made;
        let (seconds, seed) = (self.start.elapsed().as_secs(), self.options.seed);
        println!(
            "{head} seed {seed}, {seconds} s, {rounds} rounds, {audits} audits, {kills} kills, {restarts} restarts, \
             {sent} sent, {received} received, {ambiguous} ambiguous ({taken_along} taken along, {not_made} not made), {violations} violations"
        );
    }

    fn order(&self, phase: u64, number: u64) -> Outcome {
        Ok(self.control.write_all_at(&(phase | number << 8).to_le_bytes(), 0)?)
    }

    /// From an absent segment to an absent segment.
    fn round(&mut self, end: Instant) -> Outcome {
        self.order(OPEN, 0)?;
        let round_end = end.min(Instant::now() + ROUND);
        while self.processes.len() < self.options.processes {
            let process = self.start()?;
            self.processes.push(process);
        }
        // They create it, and are killed meanwhile.
        let open_for = Duration::from_millis(self.rng.below(100));
        self.rage(Instant::now() + open_for, None)?;
        // Who is stopped may have the lock that opening needs.
        self.go_on();
        let capacity = u64::from(self.options.buffer_mib) << 20;
        let buffer = Buffer::options().capacity(capacity).open(&self.name)?;
        while self.checker.violations == 0 {
            self.order(RUN, 0)?;
            self.rage(round_end.min(Instant::now() + BETWEEN_AUDITS), Some(&buffer))?;
            self.audit(&buffer)?;
            if Instant::now() >= round_end {
                break;
            }
        }
        self.finish(buffer)
    }

    fn start(&mut self) -> Outcome<Process> {
        let number = self.next;
        self.next += 1;
        let capacity = u64::from(self.options.buffer_mib) << 20;
        let orders = Orders {
            name: self.name.clone(),
            number,
            seed: self.rng.next(),
            parent: std::process::id(),
            channels: u32::try_from(self.options.processes)? * 2,
            buffer_mib: self.options.buffer_mib,
            // All together as much as there is, so that memory is short at times.
            share: capacity / 8 / self.options.processes as u64,
        };
        let child = Command::new(env::current_exe()?)
            .args(orders.to_args())
            .stdin(self.control.try_clone()?)
            .stdout(self.log.file()?)
            .process_group(0) // Ctrl-C is for the parent; they die with it
            .spawn()?;
        Ok(Process { child, number, stopped: None })
    }

    fn read(&mut self) -> Outcome {
        loop {
            let events = self.log.read()?;
            if events.is_empty() {
                return Ok(());
            }
            events.into_iter().for_each(|event| self.checker.apply(event));
        }
    }

    /// Kills the process at `place`, noting it first; it is waited for later.
    fn kill(&mut self, place: usize) {
        let Some(process) = self.processes.get_mut(place) else { return };
        self.log.note(Event::new(What::Doomed, process.number));
        process.stopped = None;
        process.signal(Signal::KILL);
        self.kills += 1;
    }

    fn ended(&mut self, number: u32, status: ExitStatus) -> Outcome {
        self.log.note(Event::new(What::Dead, number));
        self.read()?;
        let doomed = self.checker.workers.get(&number).is_some_and(|worker| worker.doomed);
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        if !(status.success() || doomed && killed) {
            self.checker.violation(format_args!("worker {number} ended with {status}"));
        }
        Ok(())
    }

    /// Reads the ledger, waits for the dead, goes on with the stopped; starts others in place of the dead if `restart`.
    fn attend(&mut self, restart: bool) -> Outcome {
        self.read()?;
        let mut place = 0;
        while place < self.processes.len() {
            let process = &mut self.processes[place];
            if let Some(status) = process.child.try_wait()? {
                let number = process.number;
                self.processes.swap_remove(place);
                self.ended(number, status)?;
                continue;
            }
            match process.stopped {
                Some((until, true)) if until <= Instant::now() => self.kill(place),
                Some((until, false)) if until <= Instant::now() => {
                    process.stopped = None;
                    process.signal(Signal::CONT);
                }
                _ => {}
            }
            place += 1;
        }
        while restart && self.processes.len() < self.options.processes {
            let process = self.start()?;
            self.processes.push(process);
            self.restarts += 1;
        }
        Ok(())
    }

    /// Nobody is stopped any more.
    fn go_on(&mut self) {
        for process in &mut self.processes {
            if process.stopped.take().is_some() {
                process.signal(Signal::CONT);
            }
        }
    }

    /// Kills and starts workers until then. `buffer`: once it is there.
    fn rage(&mut self, until: Instant, buffer: Option<&Buffer>) -> Outcome {
        while Instant::now() < until && self.checker.violations == 0 {
            self.attend(true)?;
            let place = self.rng.below(self.processes.len() as u64) as usize;
            match self.rng.below(100) {
                0..35 => self.kill(place),
                // Several, and each while others begin to reap those before.
                35..50 => {
                    let gap = self.rng.below(3) * self.rng.below(400);
                    for place in 0..2 + self.rng.below(self.processes.len() as u64 - 1) as usize {
                        self.kill(place);
                        thread::sleep(Duration::from_micros(gap));
                    }
                }
                // One that has just been started, to open and to reap.
                50..70 => {
                    self.kill(place);
                    let process = self.start()?;
                    self.processes.push(process);
                    self.restarts += 1;
                    thread::sleep(Duration::from_micros(self.rng.below(6000)));
                    self.kill(self.processes.len() - 1);
                }
                70..90 => {
                    let process = &mut self.processes[place];
                    if process.stopped.is_none() {
                        let pause = Duration::from_millis(self.rng.below(40));
                        process.stopped = Some((Instant::now() + pause, self.rng.below(2) == 0));
                        process.signal(Signal::STOP);
                    }
                }
                _ => {
                    self.go_on();
                    buffer.map(Buffer::reap).transpose()?;
                }
            }
            thread::sleep(Duration::from_micros(self.rng.below(25_000)));
        }
        Ok(())
    }

    /// Whether the worker waits for one who is there and at rest, or for one who need not come.
    fn waits_rightly(&self, process: &Process, buffer: &Buffer) -> bool {
        let waits = self.checker.workers.get(&process.number).and_then(|worker| worker.waits);
        let (Some((channel, sends)), Ok(channels)) = (waits, buffer.channels()) else { return false };
        let Some(info) = channels.iter().find(|info| info.id == i64::from(channel)) else { return true };
        let (own, peer) = if sends { (info.producer, info.consumer) } else { (info.consumer, info.producer) };
        let is_alive = |pid: u32| self.processes.iter().any(|process| process.child.id() == pid);
        // Removed, and the id is another channel's; or a persistent one, which may be full.
        own != Some(process.child.id()) || sends && is_persistent(channel) || peer.is_some_and(is_alive)
    }

    /// Waits until every worker is in the last pause, or has left. Those who wait for somebody who is in it are killed.
    fn settle(&mut self, buffer: &Buffer) -> Outcome {
        self.go_on();
        let start = Instant::now();
        loop {
            self.attend(false)?;
            let state = |process: &Process| self.checker.workers.get(&process.number);
            let is_paused = |process: &Process| {
                state(process).is_some_and(|w| !w.doomed && w.paused.is_some_and(|(number, _)| number == self.pauses))
            };
            let late: Vec<usize> =
                (0..self.processes.len()).filter(|place| !is_paused(&self.processes[*place])).collect();
            if late.is_empty() || self.checker.violations > 0 {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                for place in late {
                    let number = self.processes[place].number;
                    let waits = self.checker.workers.get(&number).and_then(|worker| worker.waits);
                    self.checker
                        .violation(format_args!("worker {number} hangs, waiting at (channel, sends) {waits:?}"));
                }
                return Ok(());
            }
            if start.elapsed() > Duration::from_millis(300) {
                for place in late {
                    let process = &self.processes[place];
                    let is_doomed = self.checker.workers.get(&process.number).is_some_and(|worker| worker.doomed);
                    if !is_doomed && self.waits_rightly(process, buffer) {
                        self.kill(place);
                    }
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The world stands still, and is compared with the ledger.
    fn audit(&mut self, buffer: &Buffer) -> Outcome {
        self.pauses += 1;
        self.order(PAUSE, self.pauses)?;
        self.settle(buffer)?;
        if self.checker.violations == 0 {
            buffer.reap()?;
            let living: HashMap<u32, u32> =
                self.processes.iter().map(|process| (process.child.id(), process.number)).collect();
            self.audits += 1;
            self.checker.compare(&buffer.audit()?, &living);
            self.log.forget()?;
        }
        self.say(" ");
        Ok(())
    }

    /// Everybody leaves or is killed; what is queued for good is received; then nothing may be left.
    fn finish(&mut self, buffer: Buffer) -> Outcome {
        if self.rng.below(2) == 0 && self.checker.violations == 0 {
            self.pauses += 1;
            self.order(QUIT, self.pauses)?;
            self.settle(&buffer)?;
        }
        (0..self.processes.len()).for_each(|place| self.kill(place));
        while !self.processes.is_empty() {
            self.attend(false)?;
            thread::sleep(Duration::from_millis(1));
        }
        if self.checker.violations > 0 {
            return Ok(());
        }
        buffer.reap()?;
        self.drain(&buffer)?;
        let audit = buffer.audit()?;
        if !audit.is_all_free() || !audit.owned.is_empty() || !audit.queued.is_empty() {
            self.checker.violation(format_args!("all have left, and not all is free: {audit:#?}"));
        }
        drop(buffer);
        if fs::symlink_metadata(format!("/dev/shm/{}", self.name)).is_ok() {
            self.checker.violation("the last handle is gone, and the segment is not");
        }
        self.checker.close();
        self.log.forget()?;
        self.rounds += 1;
        Ok(())
    }

    fn drain(&mut self, buffer: &Buffer) -> Outcome {
        let ctx = buffer.context()?;
        for info in buffer.channels()? {
            let channel = u32::try_from(info.id)?;
            if !is_persistent(channel) {
                self.checker.violation(format_args!("all have left a channel, which stays: {info:?}"));
                continue;
            }
            let end = info.id.cast_unsigned() + 1;
            let event = |what| Event { channel, end, ..Event::new(what, 0) };
            let mut rx = ctx.consumer::<[u64]>(info.id)?;
            self.checker.apply(event(What::Consumes));
            loop {
                match rx.try_recv() {
                    Ok(record) => {
                        let [peer, seq] = [3, 4].map(|i| record.get(i).copied().unwrap_or(0));
                        self.checker.apply(Event { peer, seq, ..event(What::Received) });
                        if let Err(error) = worker::check(&record) {
                            self.checker.violation(format_args!("left in channel {channel}: {error}"));
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Recv(RecvError::Disconnected)) => {
                        self.checker.apply(event(What::Drained));
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            self.checker.apply(event(What::Leaves));
            buffer.remove_channel(info.id)?;
        }
        Ok(())
    }
}
