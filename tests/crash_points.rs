//! Kills at labelled points, each between two stores: what is left is used, reaped, reaped by a reaper that is killed too, and
//! must come out whole.
//!
//! One case: a *victim* does something and is killed at a point; maybe a *reaper* opens the buffer and is killed at a point,
//! too; the *survivor*, which was there all along, does what it does next; a *third* process opens, reaps and audits. Then
//! everything that was sent must have been delivered once and in order, everything works, and nothing is lost.
//!
//! Or the reaper is stopped (SIGSTOP) at its point: then the survivor must go on without it, wherever that may be: with its
//! traffic, with the dead one's queue and its roles, and the next process with opening. After that the reaper goes on, too.
//!
//! No harness: each case runs in processes of its own, forked off a process with one thread and no buffer. Arguments choose
//! cases by a part of their names. `IPC_BUFFER_CRASH_POINTS=full` runs every point with every operation and every reaper's
//! point; otherwise the operations, and thirds of the reaper's points, take turns in the cases with two kills.
//!
//! Needs the feature `crash-points`: `cargo test --features crash-points --test crash_points`.
#![allow(clippy::multiple_unsafe_ops_per_block)]
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // fork, _exit, waitpid, mmap

mod common;
#[path = "common/work.rs"]
mod work;

use common::Name;
use common::forked::die;
use ipc_buffer::crash_points::{ALL, arm, arm_stop};
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, Record, RecvError, Select, ThreadContext, TryRecvError,
    TrySendError, ValueChannel,
};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::forget;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const CAPACITY: u64 = 2 << 20;
/// Records, and values, the survivor has queued for the victim.
const ASKED: u64 = 20;
/// A persistent channel whose producer is killed inside a batch.
const TORN: i64 = 11;
/// A value that has a row of its own.
type Row = [u64; 7];

// ---------------------------------------------------------------------------------------------------------- processes

#[derive(PartialEq, Eq, Debug, Clone, Copy)]
enum Ended {
    Exit(i32),
    Signal(i32),
    Stopped,
}

fn quit(code: i32) -> ! {
    // SAFETY: ends the process, without destructors.
    unsafe { libc::_exit(code) }
}

/// Forks, and waits for the child, which does `work` and exits with what that says. Nothing hangs for longer than `limit_s`.
fn in_child(limit_s: u32, work: impl FnOnce() -> i32) -> Ended {
    ended(child(limit_s, work))
}

/// Forks a child that does `work` and exits with what that says.
fn child(limit_s: u32, work: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the parent has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: a timer of this process, and the parent's death.
        unsafe {
            libc::alarm(limit_s);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        std::panic::set_hook(Box::new(|info| {
            eprintln!("process {}: {info}", std::process::id());
            quit(101)
        }));
        quit(work());
    }
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    pid
}

/// Waits until a child ends or stops.
fn ended(pid: libc::pid_t) -> Ended {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
    if libc::WIFEXITED(status) {
        Ended::Exit(libc::WEXITSTATUS(status))
    } else if libc::WIFSTOPPED(status) {
        Ended::Stopped
    } else {
        Ended::Signal(libc::WTERMSIG(status))
    }
}

/// What the victim has done, outside of the buffer: raised before and after.
#[derive(Default)]
struct Ledger {
    records: Counts,
    values: Counts,
}

#[derive(Default)]
struct Counts {
    sending: AtomicU64,
    sent: AtomicU64,
    receiving: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    /// Sends the next `count` numbers.
    fn send(&self, count: u64, send: impl FnOnce(Range<u64>)) {
        let first = self.sent.load(SeqCst);
        self.sending.fetch_add(count, SeqCst);
        send(first..first + count);
        self.sent.fetch_add(count, SeqCst);
    }

    /// Receives the next `count` numbers.
    fn receive(&self, count: u64, receive: impl FnOnce() -> Vec<u64>) {
        self.receiving.fetch_add(count, SeqCst);
        let numbers = receive();
        let first = self.received.fetch_add(count, SeqCst);
        assert!(numbers.iter().copied().eq(first..first + count), "{numbers:?}");
    }

    /// Whether just these were delivered, and no others.
    fn check_heard(&self, heard: &[u64]) {
        let (sent, sending) = (self.sent.load(SeqCst), self.sending.load(SeqCst));
        let count = heard.len() as u64;
        assert!((sent..=sending).contains(&count), "{count} delivered of {sent} sent, {sending} begun");
        assert!(heard.iter().copied().eq(0..count), "{heard:?}");
    }

    /// Whether just these of `asked` are still queued, and no others.
    fn check_rest(&self, rest: &[u64], asked: u64) {
        let first = rest.first().copied().unwrap_or(asked);
        let (received, receiving) = (self.received.load(SeqCst), self.receiving.load(SeqCst));
        assert!((received..=receiving).contains(&first), "{first} is next, {received} were received of {receiving}");
        assert!(rest.iter().copied().eq(first..asked), "{rest:?}");
    }
}

fn ledger() -> &'static Ledger {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping, checked below.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Ledger>(), protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: mapped for good, zeroed, atomics only.
    unsafe { &*at.cast::<Ledger>() }
}

// ------------------------------------------------------------------------------------------------------- what they do

fn open(name: &str) -> Buffer {
    Buffer::options().capacity(CAPACITY).open(name).unwrap()
}

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

/// Of a class that nothing else here uses, several of which fill a slab.
fn middle(ctx: &ThreadContext) -> Record<[u8]> {
    ctx.slice_zeroed::<u8>(3500).unwrap()
}

/// What a victim has.
struct Victim {
    ledger: &'static Ledger,
    buffer: Buffer,
    ctx: ThreadContext,
    tx: Channel<[u64], Producer>,
    rx: Channel<[u64], Consumer>,
    third: Channel<u64, Producer>,
    values: (ValueChannel<u64, Producer>, ValueChannel<u64, Consumer>),
    kept: Vec<Record<[u64]>>,
    run: Record<[u8]>,
}

impl Victim {
    /// Something of every kind: sent, received, freed, kept, cached.
    fn new(name: &str, ledger: &'static Ledger) -> Self {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let (tx, rx) = (ctx.producer::<[u64]>(1).unwrap(), ctx.consumer::<[u64]>(2).unwrap());
        let mut third = ctx.producer::<u64>(3).unwrap();
        (0..3).for_each(|i| third.send(ctx.record(i).unwrap()).unwrap());
        let run = ctx.slice_zeroed::<u8>(300_000).unwrap();
        drop((0..70).map(|i| ctx.record(i).unwrap()).collect::<Vec<_>>());
        let values = (ctx.value_producer(4).unwrap(), ctx.value_consumer(5).unwrap());
        let mut this = Self { ledger, buffer, ctx, tx, rx, third, values, kept: Vec::new(), run };
        (0..10).for_each(|_| this.send());
        (0..5).for_each(|_| this.receive());
        (0..4).for_each(|_| this.send_value());
        (0..4).for_each(|_| this.receive_value());
        this.kept.drain(..3);
        this
    }

    fn send(&mut self) {
        let (ctx, tx) = (&self.ctx, &mut self.tx);
        self.ledger.records.send(1, |mut numbers| {
            let number = numbers.next().unwrap();
            tx.send(work::numbered(ctx, number, 60)).unwrap();
        });
    }

    fn send_batch(&mut self, count: u64) {
        let (ctx, tx) = (&self.ctx, &mut self.tx);
        self.ledger.records.send(count, |numbers| {
            tx.send_batch(numbers.map(|number| work::numbered(ctx, number, 60))).unwrap();
        });
    }

    fn receive(&mut self) {
        let (rx, kept) = (&mut self.rx, &mut self.kept);
        self.ledger.records.receive(1, || {
            kept.push(rx.recv().unwrap());
            vec![work::number(&kept[kept.len() - 1])]
        });
    }

    fn receive_batch(&mut self, count: u64) {
        let (rx, kept) = (&mut self.rx, &mut self.kept);
        self.ledger.records.receive(count, || {
            let batch = rx.recv_batch(count as usize).unwrap();
            let numbers = batch.iter().map(|record| work::number(record)).collect();
            kept.extend(batch);
            numbers
        });
    }

    fn send_value(&mut self) {
        self.ledger.values.send(1, |mut numbers| self.values.0.send(numbers.next().unwrap()).unwrap());
    }

    fn receive_value(&mut self) {
        self.ledger.values.receive(1, || vec![self.values.1.recv().unwrap()]);
    }

    /// A channel of its own with records in it.
    fn own_channel(&self, id: i64) -> (Channel<u64, Producer>, Channel<u64, Consumer>) {
        let mut tx = self.ctx.producer_with::<u64>(id, &slots(8)).unwrap();
        let rx = self.ctx.consumer::<u64>(id).unwrap();
        (0..5).for_each(|i| tx.send(self.ctx.record(i).unwrap()).unwrap());
        (tx, rx)
    }

    /// Runs with one block of the middle class in use and the rest free, two slabs' blocks mixed in each magazine.
    fn mix(&self) {
        let mut all: Vec<_> = (0..34).map(|_| middle(&self.ctx)).collect();
        let (second, first) = (all.split_off(17), all);
        let mut second = second.into_iter();
        forget(second.next());
        for (one, other) in first.into_iter().zip(second.map(Some).chain(std::iter::repeat_with(|| None))) {
            drop((one, other));
        }
    }

    /// Nearly all memory into large records that stay.
    fn fill(&self) {
        for size in [500_000, 60_000] {
            while let Ok(record) = self.ctx.slice_uninit::<u8>(size) {
                forget(record);
            }
        }
    }
}

type Act = fn(Victim, &mut dyn FnMut());

/// What a victim does in company: arms when ready, then acts. Whatever is still in its hands at the end stays there.
const ACTS: &[(&str, Act)] = &[
    ("alloc", |v, arm| {
        arm();
        forget((v.ctx.record(1_u64), v));
    }),
    ("free", |mut v, arm| {
        arm();
        v.kept.clear();
        forget(v);
    }),
    ("churn", |v, arm| {
        arm();
        for _ in 0..4 {
            drop((0..900).map(|i| v.ctx.record(i).unwrap()).collect::<Vec<_>>());
        }
        forget(v);
    }),
    ("carve", |v, arm| {
        arm();
        forget([1900, 70_000, 2300, 2700, 3100].map(|size| v.ctx.slice_zeroed::<u8>(size).unwrap()));
        forget(v);
    }),
    ("run", |v, arm| {
        arm();
        forget((v.ctx.slice_zeroed::<u8>(300_000), v));
    }),
    ("free a run", |v, arm| {
        arm();
        let Victim { run, ctx, tx, rx, third, values, kept, buffer, .. } = v;
        drop(run);
        forget((ctx, tx, rx, third, values, kept, buffer));
    }),
    ("send", |mut v, arm| {
        arm();
        (0..4).for_each(|_| v.send());
        forget(v);
    }),
    ("receive", |mut v, arm| {
        arm();
        (0..4).for_each(|_| v.receive());
        forget(v);
    }),
    ("send batches", |mut v, arm| {
        arm();
        (1..6).for_each(|count| v.send_batch(count));
        forget(v);
    }),
    ("receive batches", |mut v, arm| {
        arm();
        (1..5).for_each(|count| v.receive_batch(count));
        forget(v);
    }),
    ("send values", |mut v, arm| {
        arm();
        (0..4).for_each(|_| v.send_value());
        // Over two rows.
        v.ledger.values.send(9, |numbers| v.values.0.send_batch(numbers).unwrap());
        forget(v);
    }),
    ("receive values", |mut v, arm| {
        arm();
        (0..4).for_each(|_| v.receive_value());
        v.ledger.values.receive(5, || v.values.1.recv_batch(5).unwrap());
        forget(v);
    }),
    ("follow a torn batch", |v, arm| {
        // Of three rows, those behind the first are stamped when its producer is killed.
        let name = v.buffer.name().to_owned();
        let torn = in_child(20, || {
            let buffer = open(&name);
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.value_producer_with::<Row>(TORN, &slots(8).persistent(true)).unwrap();
            ipc_buffer::crash_points::arm("send batch: slot", 2);
            tx.send_batch((100..103).map(|i| [i; 7])).unwrap();
            0
        });
        assert_eq!(torn, KILLED);
        while v.buffer.reap().unwrap().processes > 0 {}
        arm();
        let mut tx = v.ctx.value_producer::<Row>(TORN).unwrap();
        tx.send([0; 7]).unwrap();
        forget((tx, v));
    }),
    ("wake a consumer", |v, arm| {
        let mut tx = v.ctx.producer::<u64>(10).unwrap();
        let buffer = v.buffer.clone();
        let sleeper = std::thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            let mut rx = ctx.consumer::<u64>(10).unwrap();
            while rx.recv().is_ok() {}
        });
        arm();
        // Until it is found asleep.
        for i in 0..100 {
            std::thread::sleep(Duration::from_millis(2));
            tx.send(v.ctx.record(i).unwrap()).unwrap();
        }
        forget((sleeper, v, tx));
    }),
    ("wake a producer", |v, arm| {
        let mut rx = v.ctx.consumer_with::<u64>(10, &slots(2)).unwrap();
        let buffer = v.buffer.clone();
        let sleeper = std::thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer::<u64>(10).unwrap();
            while tx.send(ctx.record(1).unwrap()).is_ok() {}
        });
        rx.recv().unwrap();
        arm();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(2));
            (0..2).for_each(|_| drop(rx.recv()));
        }
        forget((sleeper, v, rx));
    }),
    ("sleep", |mut v, arm| {
        (0..ASKED - 5).for_each(|_| v.receive());
        arm();
        (0..3).for_each(|_| assert!(v.rx.recv_timeout(Duration::from_millis(5)).is_err()));
        forget(v);
    }),
    ("select", |mut v, arm| {
        (0..ASKED - 5).for_each(|_| v.receive());
        let other = v.ctx.consumer::<u64>(10).unwrap();
        let mut select = Select::new();
        select.recv(&other);
        select.recv(&v.rx);
        arm();
        (0..3).for_each(|_| assert_eq!(select.ready_timeout(Duration::from_millis(5)), None));
        forget((v, other));
    }),
    ("create", |v, arm| {
        arm();
        forget((v.own_channel(10), v));
    }),
    ("detach", |v, arm| {
        arm();
        let Victim { run, ctx, tx, rx, third, values, kept, buffer, .. } = v;
        drop((rx, tx));
        forget((ctx, third, values, kept, buffer, run));
    }),
    ("dismantle", |v, arm| {
        let ends = v.own_channel(10);
        arm();
        drop(ends);
        forget(v);
    }),
    ("remove", |v, arm| {
        let ends = v.own_channel(10);
        arm();
        v.buffer.remove_channel(10).unwrap();
        drop(ends);
        forget(v);
    }),
    ("ask", |v, arm| {
        arm();
        v.buffer.has_channel(10).unwrap();
        forget(v);
    }),
    ("merge", |v, arm| {
        // A magazine of few entries on the depot, and another in hand.
        drop((0..5).map(|i| v.ctx.record(i).unwrap()).collect::<Vec<_>>());
        let buffer = v.buffer.clone();
        let other = move || {
            let ctx = buffer.context().unwrap();
            forget((0..25).map(|i| ctx.record(i).unwrap()).collect::<Vec<_>>());
        };
        std::thread::spawn(other).join().unwrap();
        arm();
        v.ctx.flush();
        forget(v);
    }),
    ("leave", |v, arm| {
        arm();
        drop(v);
    }),
    ("leave with records", |v, arm| {
        arm();
        let Victim { kept, run, tx, rx, third, values, ctx, buffer, .. } = v;
        drop((tx, rx, third, values, ctx, buffer));
        drop((kept, run));
    }),
    ("lose a peer", |v, arm| {
        // An entry before that of the channel that is waited in.
        let first = v.ctx.producer::<u64>(12).unwrap();
        let rx = v.ctx.consumer::<u64>(10).unwrap();
        drop(first);
        let peer = || {
            let ctx = open(v.buffer.name()).context().unwrap();
            let mut deserted = ctx.producer::<u64>(11).unwrap();
            (0..20).for_each(|i| deserted.send(ctx.record(i).unwrap()).unwrap());
            forget((ctx.producer::<u64>(10).unwrap(), deserted, ctx.record(1_u64), ctx));
            die()
        };
        assert_eq!(in_child(20, peer), KILLED);
        arm();
        // Reaps for a moment each time, which is no time here.
        assert!((0..1000).all(|_| !rx.has_producer()), "it is known to be dead, reaped or not");
        forget((rx, v));
    }),
    ("trim", |v, arm| {
        drop((0..60).map(|_| middle(&v.ctx)).collect::<Vec<_>>());
        arm();
        v.buffer.trim().unwrap();
        forget(v);
    }),
    ("trim mixed", |v, arm| {
        v.mix();
        v.ctx.flush();
        arm();
        v.buffer.trim().unwrap();
        forget(v);
    }),
    ("take from the idle", |v, arm| {
        let buffer = v.buffer.clone();
        let (done, wait) = std::sync::mpsc::channel();
        let idle = std::thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            drop((0..50).map(|_| middle(&ctx)).collect::<Vec<_>>());
            done.send(()).unwrap();
            forget(ctx);
            loop {
                std::thread::park();
            }
        });
        wait.recv().unwrap();
        arm();
        v.fill();
        forget((idle, v));
    }),
    ("free what is wanted", |v, arm| {
        let held: Vec<_> = std::iter::from_fn(|| v.ctx.slice_uninit::<u8>(60_000).ok()).collect();
        let buffer = v.buffer.clone();
        let wants = std::thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            forget((ctx.within(std::time::Duration::from_secs(60)).slice_uninit::<u8>(60_000), ctx));
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        arm();
        drop(held);
        wants.join().unwrap();
        forget(v);
    }),
    ("find it taken", |v, arm| {
        drop((0..50).map(|_| middle(&v.ctx)).collect::<Vec<_>>());
        let buffer = v.buffer.clone();
        let thief = std::thread::spawn(move || {
            let ctx = buffer.context().unwrap();
            while let Ok(record) = ctx.slice_uninit::<u8>(60_000) {
                forget(record);
            }
            forget(ctx);
        });
        thief.join().unwrap();
        arm();
        forget((v.ctx.record(1_u64), v));
    }),
];

/// What a process does that comes by, in company or not.
fn visit(name: &str, leave: bool) {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(20, &slots(4)).unwrap();
    let mut rx = ctx.consumer::<u64>(20).unwrap();
    (0..4).for_each(|i| tx.send(ctx.record(i).unwrap()).unwrap());
    assert_eq!(*rx.recv().unwrap(), 0);
    if !leave {
        forget((tx, rx, ctx, buffer));
    }
}

/// Points of a victim that comes by: it opens, works, and leaves.
const VISIT: &[&str] = &[
    "enter: opened",
    "enter: locked",
    "enter: mapped",
    "join: lease",
    "join: epoch",
    "join: alive",
    "open: entered",
    "open: joined",
    "open: unlocked",
    "context: owner",
    "context: epoch",
    "control: locked",
    "control: named",
    "attach: role",
    "close: detached",
    "close: flushed",
    "close: forgotten",
    "leave: disowned",
    "leave: flushed",
    "leave: locked",
    "leave: slot",
];

/// Points of a victim that is alone.
const ALONE: &[&str] = &[
    "enter: created",
    "enter: opened",
    "enter: locked",
    "enter: empty file removed",
    "enter: obsolete removed",
    "enter: sized",
    "enter: mapped",
    "complete: backed",
    "complete: nonce",
    "complete: mode",
    "complete: header",
    "complete: magic",
    "complete: latch",
    "join: lease",
    "join: epoch",
    "join: alive",
    "open: entered",
    "open: joined",
    "open: unlocked",
    "context: owner",
    "frontier: backed",
    "frontier: raised",
    "grow: raised",
    "carve: published",
    "create: live",
    "recv: owned",
    "leave: disowned",
    "leave: flushed",
    "leave: locked",
    "leave: unlinked",
    "leave: slot",
    "unlink: locked",
    "unlink: done",
];

/// Act, point, and which times of coming there.
const KILLS: &[(&str, &str, &[u32])] = &[
    ("alloc", "pop: taken", &[1]),
    ("free", "push: listed", &[1, 2]),
    ("churn", "name: owned", &[1, 15, 16, 900]),
    ("churn", "pop: taken", &[777]),
    ("churn", "push: listed", &[252, 253, 1000]),
    ("churn", "refill: taken", &[1, 9]),
    ("churn", "make room: taken", &[1, 9]),
    ("churn", "take: recalled", &[1, 2]),
    ("churn", "take: found", &[1, 2]),
    ("churn", "take: claimed", &[1, 3]),
    ("churn", "put: holder", &[1, 2]),
    ("carve", "grow: raised", &[1]),
    ("carve", "frontier: backed", &[1]),
    ("carve", "frontier: raised", &[1]),
    ("carve", "claim: head", &[1, 2]),
    ("carve", "claim: body", &[1]),
    ("carve", "claim: backed", &[1]),
    ("carve", "claim: marked", &[1, 2]),
    ("carve", "claim: uncounted", &[1]),
    ("carve", "carve: claimed", &[1]),
    ("carve", "carve: header", &[1, 30]),
    ("carve", "carve: provided", &[1]),
    ("carve", "carve: published", &[1, 2]),
    ("carve", "carve: pushed", &[1, 30]),
    ("carve", "push: listed", &[20]),
    ("run", "claim: head", &[1]),
    ("run", "claim: body", &[1, 4]),
    ("run", "claim: backed", &[1]),
    ("run", "claim: marked", &[1]),
    ("run", "run: claimed", &[1]),
    ("run", "run: header", &[1]),
    ("run", "run: published", &[1]),
    ("free a run", "give back: taken", &[1]),
    ("free a run", "give back: unit", &[1, 2]),
    ("free a run", "give back: uncounted", &[1]),
    ("send", "send: before the slot", &[1, 3]),
    ("send", "send: slot", &[1, 3]),
    ("receive", "recv: owned", &[1, 3]),
    ("receive", "recv: head", &[1, 3]),
    ("send batches", "send batch: before a slot", &[1, 2, 4]),
    ("send batches", "send batch: slot", &[1, 2, 4, 8, 10]),
    ("receive batches", "recv batch: owned", &[1, 3, 6]),
    ("receive batches", "recv: head", &[2, 3]),
    ("send values", "send: before the slot", &[1, 3]),
    ("send values", "send: slot", &[1, 3]),
    ("send values", "send batch: before a slot", &[1, 3, 9]),
    ("send values", "send batch: slot", &[1, 2]),
    ("receive values", "recv: owned", &[1, 3]),
    ("receive values", "recv: head", &[1, 3, 5]),
    ("receive values", "recv batch: owned", &[1, 5]),
    ("follow a torn batch", "attach: cleared", &[1, 2]),
    ("follow a torn batch", "attach: role", &[1]),
    ("wake a consumer", "send: before the wake", &[1]),
    ("wake a consumer", "wake: cleared", &[1]),
    ("wake a consumer", "announce: changed", &[1]),
    ("wake a producer", "recv: before the wake", &[1]),
    ("wake a producer", "wake: cleared", &[1]),
    ("sleep", "sleep: named", &[1, 2]),
    ("sleep", "sleep: woken", &[1, 2]),
    ("select", "sleep: named", &[1]),
    ("select", "sleep: woken", &[1]),
    ("create", "control: locked", &[1]),
    ("create", "control: named", &[1, 2]),
    ("create", "control: cleared", &[1]),
    ("create", "create: busy", &[1]),
    ("create", "create: written", &[1]),
    ("create", "create: storage", &[1]),
    ("create", "create: emptied", &[1]),
    ("create", "create: block", &[1]),
    ("create", "create: live", &[1]),
    ("create", "create: indexed", &[1]),
    ("create", "attach: returned", &[1]),
    ("create", "attach: role", &[1, 2]),
    ("create", "attach: seen", &[1, 2]),
    ("create", "tell: raised", &[1]),
    ("create", "announce: changed", &[1, 2]),
    ("detach", "vacate: gone", &[1]),
    ("detach", "vacate: cell", &[1, 2]),
    ("detach", "tell: raised", &[1]),
    ("detach", "announce: changed", &[1, 2]),
    ("detach", "control: cleared", &[1]),
    ("dismantle", "vacate: cell", &[1, 2]),
    ("dismantle", "dismantle: busy", &[1]),
    ("dismantle", "dismantle: unindexed", &[1]),
    ("dismantle", "drain: owned", &[1, 3]),
    ("dismantle", "drain: head", &[1, 3]),
    ("dismantle", "push: listed", &[2]),
    ("dismantle", "dismantle: drained", &[1]),
    ("dismantle", "dismantle: owned", &[1]),
    ("dismantle", "dismantle: freed", &[1]),
    ("dismantle", "dismantle: no storage", &[1]),
    ("remove", "remove: state", &[1]),
    ("remove", "remove: unindexed", &[1]),
    ("remove", "dismantle: busy", &[1]),
    ("remove", "drain: head", &[2]),
    ("ask", "control: locked", &[1]),
    ("ask", "control: named", &[1]),
    ("ask", "control: cleared", &[1]),
    ("merge", "merge: owned", &[1, 2]),
    ("merge", "merge: popped", &[1, 2]),
    ("merge", "merge: listed", &[1, 2]),
    ("merge", "put: holder", &[1]),
    ("leave", "flush: no spare", &[1]),
    ("leave", "close: detached", &[1]),
    ("leave", "close: flushed", &[1]),
    ("leave", "close: forgotten", &[1]),
    ("leave", "put: holder", &[2]),
    ("leave with records", "leave: disowned", &[1]),
    ("leave with records", "reap: queued", &[1, 5]),
    ("leave with records", "leave: flushed", &[1]),
    ("leave with records", "leave: locked", &[1]),
    ("leave with records", "leave: slot", &[1]),
    ("leave with records", "push: listed", &[1]),
    ("lose a peer", "reap: noted", &[1, 2, 9]),
    ("lose a peer", "dismantle: left", &[1, 2]),
    ("trim", "empty: taken", &[1]),
    ("trim", "empty: heads", &[1]),
    ("trim", "drop: cleared", &[1, 5]),
    ("trim", "empty: dropped", &[1]),
    ("trim", "empty: put", &[1]),
    ("trim", "give back: unit", &[1]),
    ("trim", "empty: released", &[1]),
    ("trim", "trim: claimed", &[1, 2]),
    ("trim", "trim: unmarked", &[1]),
    ("trim", "trim: punched", &[1]),
    ("trim mixed", "empty: heads", &[1]),
    ("trim mixed", "drop: cleared", &[1, 2]),
    ("trim mixed", "drop: owned", &[1, 2]),
    ("trim mixed", "drop: popped", &[1, 2]),
    ("trim mixed", "drop: moved", &[1, 2]),
    ("trim mixed", "empty: dropped", &[1]),
    ("trim mixed", "empty: released", &[1]),
    ("take from the idle", "revoke: marked", &[1]),
    ("take from the idle", "revoke: taken", &[1, 2]),
    ("take from the idle", "revoke: spare", &[1, 2]),
    ("take from the idle", "revoke: emptied", &[1, 2]),
    ("take from the idle", "revoke: put", &[1, 2]),
    ("take from the idle", "revoke: verify", &[1]),
    ("free what is wanted", "want: cleared", &[1]),
    ("find it taken", "verify: checked", &[1]),
    ("find it taken", "verify: settled", &[1]),
];

/// Where a reaper may be killed; not every victim leaves something for each.
const REAPER: &[&str] = &[
    "open: unlocked",
    "reap: locked",
    "settle: spare",
    "reap: magazine put",
    "reap: magazines done",
    "reap: contexts done",
    "drop: cleared",
    "drop: owned",
    "drop: popped",
    "drop: moved",
    "put: holder",
    "control: named",
    "index: zeroed",
    "index: rebuilt",
    "reap: queued",
    "vacate: gone",
    "vacate: cell",
    "dismantle: busy",
    "drain: owned",
    "drain: head",
    "dismantle: owned",
    "dismantle: freed",
    "reap: vacated",
    "names: cleared",
    "reap: names done",
    "reap: record taken",
    "push: listed",
    "reap: record freed",
    "reap: records done",
    "control: cleared",
    "give back: unit",
    "reap: unit released",
    "reap: units done",
    "merge: popped",
    "reap: hints",
    "reap: counted",
    "reap: buried",
    "reap: done",
];

// ---------------------------------------------------------------------------------------------------- who is left over

/// What the survivor does next.
const NEXT: &[&str] =
    &["alloc", "free", "send", "receive", "attach", "detach", "open anew", "reap", "audit", "trim", "allocate all"];

/// Who was there all along.
struct Survivor {
    name: String,
    buffer: Buffer,
    ctx: ThreadContext,
    rx: Channel<[u64], Consumer>,
    tx: Channel<[u64], Producer>,
    third: Option<Channel<u64, Consumer>>,
    /// Of a channel that nobody else is in.
    own: Option<(Channel<u64, Producer>, Channel<u64, Consumer>)>,
    values: (ValueChannel<u64, Producer>, ValueChannel<u64, Consumer>),
    kept: Vec<Record<[u64]>>,
    heard: Vec<u64>,
    heard_values: Vec<u64>,
    asked: u64,
}

impl Survivor {
    fn new(name: &str) -> Self {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let rx = ctx.consumer::<[u64]>(1).unwrap();
        let mut tx = ctx.producer::<[u64]>(2).unwrap();
        (0..ASKED).for_each(|i| tx.send(work::numbered(&ctx, i, 60)).unwrap());
        let third = Some(ctx.consumer::<u64>(3).unwrap());
        let mut values = (ctx.value_producer(5).unwrap(), ctx.value_consumer(4).unwrap());
        values.0.send_batch(0..ASKED).unwrap();
        let kept = (1000..1020).map(|i| work::numbered(&ctx, i, 200)).collect();
        drop((0..50).map(|i| work::numbered(&ctx, i, 60)).collect::<Vec<_>>());
        let (heard, heard_values) = (Vec::new(), Vec::new());
        Self {
            name: name.into(),
            buffer,
            ctx,
            rx,
            tx,
            third,
            own: None,
            values,
            kept,
            heard,
            heard_values,
            asked: ASKED,
        }
    }

    /// Prepares for [`goes_on`](Self::goes_on).
    fn with_traffic(mut self) -> Self {
        self.own = Some((self.ctx.producer::<u64>(40).unwrap(), self.ctx.consumer::<u64>(40).unwrap()));
        self
    }

    /// Somebody dead is there, and a reaper that was stopped over it: nothing waits for either.
    fn goes_on(&mut self, ledger: &Ledger) {
        // Traffic, through the cache and the depot and back.
        let (tx, rx) = self.own.as_mut().expect("prepared");
        let mut all = Vec::new();
        for i in 0..500 {
            tx.send(self.ctx.record(i).unwrap()).unwrap();
            all.push(rx.recv().unwrap());
        }
        assert!(all.drain(..).zip(0..).all(|(record, i)| *record == i));
        // The peer of the dead.
        assert!(!self.rx.has_producer() && !self.tx.has_consumer());
        self.receive_all(ledger);
        if !is_locked(&self.name) {
            // Who takes the place of the dead, and who comes by.
            drop((self.ctx.producer::<[u64]>(1).unwrap(), self.ctx.consumer::<[u64]>(2).unwrap()));
            self.next("open anew");
        }
    }

    /// What was sent and not received, once and in order.
    fn receive_all(&mut self, ledger: &Ledger) {
        let gone = loop {
            match self.rx.try_recv() {
                Ok(record) => self.heard.push(work::number(&record)),
                Err(error) => break error,
            }
        };
        if ledger.records.sending.load(SeqCst) > 0 {
            assert_eq!(gone, TryRecvError::Recv(RecvError::Disconnected));
        }
        ledger.records.check_heard(&self.heard);
        self.heard_values.extend(self.values.1.try_iter());
        ledger.values.check_heard(&self.heard_values);
    }

    fn next(&mut self, what: &str) {
        match what {
            "alloc" => {
                for size in [8, 900, 3500, 28_000, 300_000] {
                    drop(self.ctx.slice_zeroed::<u8>(size).unwrap());
                }
            }
            "free" => {
                self.kept.drain(..10);
            }
            "send" => match self.tx.try_send(work::numbered(&self.ctx, self.asked, 60)) {
                Ok(()) => self.asked += 1,
                Err(TrySendError::Disconnected(_)) => {}
                Err(error) => panic!("{error}"),
            },
            "receive" => {
                if let Ok(record) = self.rx.try_recv() {
                    self.heard.push(work::number(&record));
                }
                if let Ok(batch) = self.values.1.try_recv_batch(3) {
                    self.heard_values.extend(batch);
                }
            }
            "attach" => forget((self.ctx.producer::<u64>(30).unwrap(), self.ctx.consumer::<u64>(30).unwrap())),
            "detach" => self.third = None,
            "open anew" => {
                let name = self.name.clone();
                assert_eq!(in_child(20, || (visit(&name, true), 0).1), Ended::Exit(0));
            }
            "reap" => drop(self.buffer.reap().unwrap()),
            // Not sound before somebody reaped, but nothing worse either.
            "audit" => drop(self.buffer.audit().unwrap()),
            "trim" => drop(self.buffer.trim().unwrap()),
            "allocate all" => {
                let mut all = Vec::new();
                for size in [60_000, 3500, 900, 200] {
                    while let Ok(record) = self.ctx.slice_uninit::<u8>(size) {
                        all.push((size, record));
                    }
                }
                // The dead had no claim to any of it.
                let sum = all.iter().map(|(size, _)| *size as u64).sum::<u64>();
                assert!(sum > CAPACITY / 4, "{sum} of {CAPACITY}: {:#?}", self.buffer.audit());
            }
            other => panic!("{other}"),
        }
    }

    /// Everything is whole, and was delivered once and in order.
    fn ends(mut self, ledger: &Ledger) {
        while self.buffer.reap().unwrap().processes > 0 {}
        let audit = common::sound(&self.buffer);
        assert_eq!(audit.unaccounted_bytes, 0);
        assert!(audit.owned.iter().all(|owner| owner.is_self), "{audit:#?}");
        assert_eq!(audit.owned.iter().map(|owner| owner.records).sum::<u64>(), self.kept.len() as u64, "{audit:#?}");
        assert!(self.kept.iter().all(|record| (1000..1020).contains(&work::number(record))));

        self.own = None;
        self.receive_all(ledger);
        let mut rx = self.ctx.consumer::<[u64]>(2).unwrap();
        let rest: Vec<u64> = rx.try_iter().map(|record| work::number(&record)).collect();
        ledger.records.check_rest(&rest, self.asked);
        let mut vrx = self.ctx.value_consumer::<u64>(5).unwrap();
        ledger.values.check_rest(&vrx.try_iter().collect::<Vec<_>>(), ASKED);

        // It works on, both ways, and through every size.
        let mut tx = self.ctx.producer::<[u64]>(1).unwrap();
        let mut vtx = self.ctx.value_producer::<u64>(4).unwrap();
        for i in 0..30 {
            tx.send(work::numbered(&self.ctx, i, 60)).unwrap();
            assert_eq!(work::number(&self.rx.recv().unwrap()), i);
            // Nor is there anything of a torn batch.
            assert_eq!(self.rx.try_recv().unwrap_err(), TryRecvError::Empty);
            self.tx.send(work::numbered(&self.ctx, i, 60)).unwrap();
            assert_eq!(work::number(&rx.recv().unwrap()), i);
            vtx.send(i).unwrap();
            assert_eq!(self.values.1.try_recv_batch(9), Ok(vec![i]));
            self.values.0.send(i).unwrap();
            assert_eq!(vrx.recv(), Ok(i));
        }
        self.follow_torn_batches();
        drop([8, 900, 3500, 28_000, 300_000].map(|size| self.ctx.slice_zeroed::<u8>(size).unwrap()));
        let Self { buffer, ctx, rx: rx1, tx: tx2, third, values, kept, own: _, .. } = self;
        drop((rx, tx, rx1, tx2, third, values, vtx, vrx, kept));
        common::sound(&buffer);
        drop(ctx);
        end(&buffer);
    }
}

impl Survivor {
    /// Nothing of a torn batch comes behind what the next producer sends.
    fn follow_torn_batches(&self) {
        if !self.buffer.has_channel(TORN).unwrap() {
            return;
        }
        let mut rx = self.ctx.value_consumer::<Row>(TORN).unwrap();
        let sent: Vec<Row> = rx.try_iter().collect();
        assert!(sent.is_empty() || sent == [[0; 7]], "{sent:?}");
        let mut tx = self.ctx.value_producer::<Row>(TORN).unwrap();
        for i in 1..9 {
            tx.send([i; 7]).unwrap();
            assert_eq!(rx.try_recv_batch(9), Ok(vec![[i; 7]]));
        }
        assert!(self.buffer.remove_channel(TORN).unwrap());
    }
}

/// All of it is free, and can be had in the largest pieces.
fn end(buffer: &Buffer) {
    // What the survivor attached by itself and forgot.
    let _ = buffer.remove_channel(30).unwrap();
    assert!(buffer.channels().unwrap().is_empty(), "{:?}", buffer.channels());
    common::all_free(buffer);
    buffer.trim().unwrap();
    common::all_free(buffer);
    let ctx = buffer.context().unwrap();
    drop(ctx.slice_zeroed::<u8>(usize::try_from(buffer.capacity()).unwrap() * 9 / 10).unwrap());
}

// ------------------------------------------------------------------------------------------------------------ the cases

#[derive(Clone, Copy)]
struct Case {
    /// An act in company, "visit", or "alone".
    act: &'static str,
    point: &'static str,
    count: u32,
    reaper: Option<(&'static str, u32)>,
    /// The reaper is not killed at its point, but stopped.
    stops: bool,
    next: &'static str,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} / {} ({})", self.act, self.point, self.count)?;
        if let Some((point, count)) = self.reaper {
            write!(f, " / reaper {}{point} ({count})", if self.stops { "stopped at " } else { "" })?;
        }
        write!(f, " / {}", self.next)
    }
}

const VICTIM_KILLED: i32 = 1;
const REAPER_KILLED: i32 = 2;
const REAPER_STOPPED: i32 = 4;
const KILLED: Ended = Ended::Signal(libc::SIGKILL);

/// Whether it was killed at its point; it must not have ended in any other way than by going past it.
fn killed(who: &str, ended: Ended) -> bool {
    match ended {
        KILLED => true,
        Ended::Exit(0) => false,
        other => panic!("the {who} ended with {other:?}"),
    }
}

fn run_reaper(case: Case, name: &str) -> i32 {
    let Some((point, count)) = case.reaper else { return 0 };
    let reaper = || {
        arm(point, count);
        let buffer = open(name);
        buffer.reap().unwrap();
        forget(buffer);
        0
    };
    i32::from(killed("reaper", in_child(20, reaper))) * REAPER_KILLED
}

/// Stops a reaper on its way, and lets it end when the survivor has shown that nobody needs it.
fn stop_reaper(case: Case, name: &str, survivor: &mut Survivor, ledger: &Ledger) -> i32 {
    let Some((point, count)) = case.reaper else { return 0 };
    let reaper = child(30, || {
        arm_stop(point, count);
        let buffer = open(name);
        buffer.reap().unwrap();
        forget(buffer);
        0
    });
    match ended(reaper) {
        Ended::Stopped => {
            survivor.goes_on(ledger);
            // SAFETY: a child of this process, which was not waited for since it stopped.
            unsafe { libc::kill(reaper, libc::SIGCONT) };
            assert_eq!(ended(reaper), Ended::Exit(0));
            REAPER_STOPPED
        }
        Ended::Exit(0) => 0,
        other => panic!("the reaper ended with {other:?}"),
    }
}

/// Whether anybody has the control lock.
fn is_locked(name: &str) -> bool {
    let file = std::fs::File::options().read(true).write(true).open(format!("/dev/shm/{name}")).unwrap();
    // SAFETY: plain integers; zeroes are valid.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK.try_into().unwrap();
    lock.l_len = 1;
    // SAFETY: an open descriptor and a lock that lives as long as the call.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }, 0);
    i32::from(lock.l_type) != libc::F_UNLCK
}

/// Opens, reaps and looks.
fn run_third(name: &str) {
    let third = || {
        let buffer = open(name);
        while buffer.reap().unwrap().processes > 0 {}
        let audit = common::sound(&buffer);
        assert!(audit.owned.iter().all(|owner| owner.is_alive), "{audit:#?}");
        visit(name, true);
        common::sound(&buffer);
        0
    };
    assert_eq!(in_child(20, third), Ended::Exit(0));
}

fn in_company(case: Case, name: &str) -> i32 {
    let survivor = Survivor::new(name);
    let mut survivor = if case.stops { survivor.with_traffic() } else { survivor };
    let ledger = ledger();
    let victim = || {
        if case.act == "visit" {
            arm(case.point, case.count);
            visit(name, true);
        } else {
            let (_, act) = ACTS.iter().find(|(name, _)| *name == case.act).expect("an act of that name");
            act(Victim::new(name, ledger), &mut || arm(case.point, case.count));
        }
        0
    };
    let mut hit = i32::from(killed("victim", in_child(20, victim))) * VICTIM_KILLED;
    hit |= if case.stops { stop_reaper(case, name, &mut survivor, ledger) } else { run_reaper(case, name) };
    survivor.next(case.next);
    run_third(name);
    survivor.ends(ledger);
    hit
}

fn alone(case: Case, name: &str) -> i32 {
    let path = format!("/dev/shm/{name}");
    let victim = || {
        if case.point == "enter: empty file removed" {
            std::fs::write(&path, "").unwrap();
        }
        if case.point == "enter: obsolete removed" {
            in_child(20, || {
                forget(Buffer::options().capacity(256 << 10).open(name).unwrap());
                0
            });
        }
        if case.point.starts_with("unlink") {
            visit(name, false);
        }
        arm(case.point, case.count);
        if case.point.starts_with("unlink") {
            Buffer::unlink(name).unwrap();
        }
        // Works, and leaves as the last one.
        visit(name, true);
        0
    };
    let ended = in_child(20, victim);
    let mut hit = i32::from(killed("victim", ended)) * VICTIM_KILLED;
    hit |= run_reaper(case, name);
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    drop([8, 900, 3500, 28_000, 300_000].map(|size| ctx.slice_zeroed::<u8>(size).unwrap()));
    drop(ctx);
    run_third(name);
    while buffer.reap().unwrap().processes > 0 {}
    end(&buffer);
    hit
}

fn run(case: Case) -> Ended {
    let name = Name::new("points");
    let ended = in_child(60, || {
        let hit = if case.act == "alone" { alone(case, &name) } else { in_company(case, &name) };
        assert!(!name.exists(), "the segment is left behind");
        hit
    });
    match ended {
        Ended::Exit(0..=7) => {}
        _ => println!("FAILED ({ended:?}): {case}"),
    }
    ended
}

/// A thief that has marked its victims is stopped; the one there is refuses meanwhile. When the thief goes on, it takes nothing.
fn refuses_a_thief(name: &str) -> i32 {
    extern "C" fn go_on(_: libc::c_int) {
        arm_stop("revoke: taken", 1);
    }
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let kept: Vec<_> = (0..3).map(|_| middle(&ctx)).collect();
    let thief = child(30, || {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let full: Vec<_> = std::iter::from_fn(|| ctx.slice_uninit::<u8>(3500).ok()).collect();
        arm_stop("revoke: marked", 1);
        // SAFETY: stops this process; what the handler does is a few stores.
        unsafe {
            libc::raise(libc::SIGSTOP);
            libc::signal(libc::SIGCONT, go_on as extern "C" fn(libc::c_int) as libc::sighandler_t);
        }
        ctx.slice_uninit::<u8>(3500).unwrap_err();
        drop((full, ctx));
        0
    });
    // SAFETY: a child of this process, which is waited for only after this.
    let resume = || assert_eq!(unsafe { libc::kill(thief, libc::SIGCONT) }, 0);
    assert_eq!(ended(thief), Ended::Stopped, "when all is taken");
    drop(kept);
    resume();
    assert_eq!(ended(thief), Ended::Stopped, "when it has marked its victim");
    drop(middle(&ctx));
    resume();
    assert_eq!(ended(thief), Ended::Exit(0), "it has been refused");
    drop(ctx);
    end(&buffer);
    0
}

fn cases(full: bool) -> Vec<Case> {
    let company = KILLS.iter().flat_map(|(act, point, counts)| counts.iter().map(|count| (*act, *point, *count)));
    let visits = VISIT.iter().map(|point| ("visit", *point, 1));
    let firsts: Vec<_> = company.chain(visits).collect();
    let mut cases = Vec::new();
    // Every third, another third for each point.
    let reapers =
        |turn: usize| REAPER.iter().enumerate().filter(move |(i, _)| full || i % 3 == turn % 3).map(|(_, r)| *r);
    for (turn, (act, point, count)) in firsts.iter().enumerate() {
        let case = |reaper, next| Case { act, point, count: *count, reaper, stops: false, next };
        cases.extend(NEXT.iter().map(|next| case(None, *next)));
        for (number, reaper) in reapers(turn).enumerate() {
            let of_these: Vec<&str> = if full { NEXT.to_vec() } else { vec![NEXT[cases.len() % NEXT.len()]] };
            cases.extend(of_these.into_iter().map(|next| case(Some((reaper, 1)), next)));
            // Every fourth of these, another fourth when that third comes round again; and those that few victims lead to.
            let is_rare = reaper.starts_with("drop: ") || reaper == "settle: spare";
            if full || (turn + number).is_multiple_of(4) || is_rare {
                cases.push(Case { stops: true, ..case(Some((reaper, 1)), NEXT[cases.len() % NEXT.len()]) });
            }
        }
    }
    for (turn, point) in ALONE.iter().enumerate() {
        let case = |reaper| Case { act: "alone", point, count: 1, reaper, stops: false, next: "open anew" };
        cases.push(case(None));
        cases.extend(reapers(turn).map(|reaper| case(Some((reaper, 1)))));
    }
    cases
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("crash_points: test");
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let full = std::env::var("IPC_BUFFER_CRASH_POINTS").is_ok_and(|value| value == "full");
    let wanted = |case: &Case| filters.iter().all(|filter| case.to_string().contains(filter.as_str()));
    let cases: Vec<Case> = cases(full).into_iter().filter(wanted).collect();
    let start = Instant::now();
    let (mut failed, mut kills, mut second) = (0, 0, 0);
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let (mut stops, mut stopped) = (0, BTreeSet::new());
    let mut passed_by: BTreeMap<String, u32> = BTreeMap::new();
    for case in &cases {
        match run(*case) {
            Ended::Exit(hit @ 0..=7) => {
                if hit & VICTIM_KILLED != 0 {
                    reached.insert(case.point);
                    kills += 1;
                } else {
                    *passed_by.entry(format!("{} / {} ({})", case.act, case.point, case.count)).or_default() += 1;
                }
                if hit & REAPER_KILLED != 0 {
                    reached.extend(case.reaper.map(|(point, _)| point));
                    (kills, second) = (kills + 1, second + 1);
                }
                if hit & REAPER_STOPPED != 0 {
                    stopped.extend(case.reaper.map(|(point, _)| point));
                    stops += 1;
                }
            }
            _ => failed += 1,
        }
    }
    let refused = Name::new("points-refused");
    let refused = in_child(60, || refuses_a_thief(&refused));
    if refused != Ended::Exit(0) {
        println!("FAILED ({refused:?}): a thief that was refused");
        failed += 1;
    }
    let missed: Vec<&&str> = ALL.iter().filter(|point| !reached.contains(**point)).collect();
    println!(
        "{} points, {} of them reached; {} combinations, {kills} kills, {second} of them of reapers; {stops} reapers stopped at {} points; {failed} failed; {:.0?}",
        ALL.len(),
        reached.len(),
        cases.len(),
        stopped.len(),
        start.elapsed()
    );
    passed_by.iter().for_each(|(what, times)| println!("never came there: {what}, in {times} cases"));
    let is_all = filters.is_empty();
    let not_stopped: Vec<&&str> = REAPER.iter().filter(|point| !stopped.contains(**point)).collect();
    if is_all {
        missed.iter().for_each(|point| println!("never reached: {point}"));
        not_stopped.iter().for_each(|point| println!("no reaper was stopped at: {point}"));
    }
    let ok = failed == 0 && passed_by.is_empty() && (!is_all || missed.is_empty() && not_stopped.is_empty());
    println!("test crash_points ... {}", if ok { "ok" } else { "FAILED" });
    std::process::exit(i32::from(!ok));
}
