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
#![allow(unsafe_code)] // signals to children and to itself

#[path = "common/children.rs"]
mod children;
mod common;
#[path = "common/ledger.rs"]
mod ledger;
#[path = "common/work.rs"]
mod work;

use children::{Ended, KILLED, child, each, ended, in_child, in_segment, is_locked, shared, signal};
use common::Name;
use common::forked::die;
use ipc_buffer::crash_points::{ALL, arm, arm_stop, passed};
use ipc_buffer::{
    AttachError, Buffer, Channel, ChannelOptions, Consumer, Producer, Record, RecvError, Select, ThreadContext,
    TryRecvError, TrySendError, ValueChannel,
};
use ledger::Counts;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::forget;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

const CAPACITY: u64 = 2 << 20;
/// Records, and values, the survivor has queued for the victim.
const ASKED: u64 = 20;
/// A persistent channel whose producer is killed inside a batch.
const TORN: i64 = 11;
/// The same, of records.
const TORN_RECORDS: i64 = 13;
/// A value that has a row of its own.
type Row = [u64; 7];

/// What the victim has done, outside of the buffer.
#[derive(Default)]
struct Ledger {
    records: Counts,
    values: Counts,
}

fn ledger() -> &'static Ledger {
    // SAFETY: counts are atomics, for which zeroes are valid.
    unsafe { shared() }
}

// ------------------------------------------------------------------------------------------------------- what they do

fn open(name: &str) -> Buffer {
    Buffer::options().capacity(CAPACITY).open(name).unwrap()
}

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

/// The control lock, as somebody has it who is stopped.
fn stuck(name: &str) -> std::fs::File {
    let file = std::fs::File::options().read(true).write(true).open(format!("/dev/shm/{name}")).unwrap();
    // SAFETY: plain integers; zeroes are valid.
    let mut lock: libc::flock64 = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK.try_into().unwrap();
    lock.l_len = 1;
    // SAFETY: an open descriptor and a lock that lives as long as the call.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw mut lock) }, 0);
    file
}

/// Ids whose search begins at one cell of the directory's index.
fn same_cell() -> impl Iterator<Item = i64> {
    let cell = |id: i64| {
        let mixed = id.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) ^ (mixed >> 47)) % (1 << 15)
    };
    (1000..).filter(move |id| cell(*id) == cell(1000))
}

/// Of a class that nothing else here uses, several of which fill a slab.
fn middle(ctx: &ThreadContext) -> Record<[u8]> {
    ctx.slice_zeroed::<u8>(3500).unwrap()
}

/// Dies with a record.
fn forget_and_die(name: &str) -> i32 {
    let ctx = open(name).context().unwrap();
    forget((ctx.record(1_u64).unwrap(), ctx));
    die()
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
    ("find hints stale", |v, arm| {
        // Reaping gives those a hint that are remembered beside the hints, too.
        let name = v.buffer.name().to_owned();
        assert_eq!(in_child(20, || forget_and_die(&name)), KILLED);
        while v.buffer.reap().unwrap().processes > 0 {}
        arm();
        forget(((0..900).map(|i| v.ctx.record(i).unwrap()).collect::<Vec<_>>(), v));
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
    ("follow a torn batch of records", |v, arm| {
        // Of five records, three slots behind the first are stamped when their producer is killed.
        let name = v.buffer.name().to_owned();
        let torn = in_child(20, || {
            let buffer = open(&name);
            let ctx = buffer.context().unwrap();
            let mut tx = ctx.producer_with::<u64>(TORN_RECORDS, &slots(8).persistent(true)).unwrap();
            let batch: Vec<_> = (100..105).map(|i| ctx.record(i).unwrap()).collect();
            ipc_buffer::crash_points::arm("send batch: slot", 3);
            tx.send_batch(batch).unwrap();
            0
        });
        assert_eq!(torn, KILLED);
        while v.buffer.reap().unwrap().processes > 0 {}
        arm();
        let mut tx = v.ctx.producer::<u64>(TORN_RECORDS).unwrap();
        tx.send(v.ctx.record(0).unwrap()).unwrap();
        forget((tx, v));
    }),
    ("wake one who waits for many", |v, arm| {
        let name = v.buffer.clone();
        let sleeper = std::thread::spawn(move || {
            let ctx = name.context().unwrap();
            let mut rxs: Vec<_> = (100..180).map(|id| ctx.consumer_with::<u64>(id, &slots(4)).unwrap()).collect();
            let mut select = Select::new();
            rxs.iter().for_each(|rx| _ = select.recv(rx));
            while let Some(number) = select.ready() {
                if rxs[number].try_recv().is_err() {
                    select.remove(number);
                }
            }
        });
        let mut tx = v.ctx.producer_with::<u64>(150, &slots(4)).unwrap();
        assert!(tx.wait_for_consumer(Duration::from_secs(10)).is_ok());
        arm();
        for i in 0..100 {
            std::thread::sleep(Duration::from_millis(2));
            tx.send(v.ctx.record(i).unwrap()).unwrap();
        }
        forget((sleeper, v, tx));
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
    ("hear the last", |v, arm| {
        let (mut tx, mut rx) = v.own_channel(10);
        tx.send(v.ctx.record(5).unwrap()).unwrap();
        drop(tx);
        arm();
        assert_eq!(rx.iter().count(), 6);
        forget((rx, v));
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
    ("wait for many", |v, arm| {
        let ends: Vec<_> = (100..180).map(|id| v.ctx.consumer_with::<u64>(id, &slots(2)).unwrap()).collect();
        let mut select = Select::new();
        ends.iter().for_each(|end| _ = select.recv(end));
        arm();
        (0..3).for_each(|_| assert_eq!(select.ready_timeout(Duration::from_millis(5)), None));
        forget((select, ends, v));
    }),
    ("poll", |mut v, arm| {
        (0..ASKED - 5).for_each(|_| v.receive());
        arm();
        (0..3).for_each(|_| assert_eq!(v.rx.try_recv_batch(3).unwrap_err(), TryRecvError::Empty));
        forget(v);
    }),
    ("create", |v, arm| {
        arm();
        forget((v.own_channel(10), v));
    }),
    ("create to stay", |v, arm| {
        arm();
        forget((v.ctx.producer_with::<u64>(13, &slots(8).persistent(true)).unwrap(), v));
    }),
    ("desert", |v, arm| {
        // Left as it was, for nobody could have the control lock.
        let ends = v.own_channel(10);
        let stuck = stuck(v.buffer.name());
        drop(ends);
        drop(stuck);
        arm();
        forget((v.own_channel(10), v));
    }),
    ("crowd the index", |v, arm| {
        // Ids that begin at one cell: all but the last have to move when the first goes.
        let mut ends: Vec<_> =
            same_cell().take(4).map(|id| v.ctx.value_producer_with::<u64>(id, &slots(2)).unwrap()).collect();
        arm();
        drop(ends.remove(0));
        forget((ends, v));
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
    ("trim tables", |v, arm| {
        // Memory that somebody has filled holes with, beyond all frontiers.
        let file = std::fs::File::options().write(true).open(format!("/dev/shm/{}", v.buffer.name())).unwrap();
        let data = file.metadata().unwrap().len() - CAPACITY;
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 8192], data - (2 << 20)).unwrap();
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
    ("empty slabs", |v, arm| {
        // Empty slabs of another class than what is asked for.
        drop((0..34).map(|_| middle(&v.ctx)).collect::<Vec<_>>());
        v.ctx.flush();
        arm();
        v.fill();
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
    "leave: unlisted",
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
    "leave: unlisted",
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
    ("find hints stale", "take: stale", &[1]),
    ("churn", "clear: leaf", &[1]),
    ("churn", "clear: sum", &[1]),
    ("churn", "take: claimed", &[1, 3]),
    ("churn", "put: holder", &[1, 2]),
    ("churn", "put: uncounted", &[1, 2]),
    ("churn", "gate: inside", &[1, 2, 500]),
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
    ("free a run", "give back: untold", &[1]),
    ("free a run", "give back: uncounted", &[1]),
    ("send", "send: before the slot", &[1, 3]),
    ("send", "send: slot", &[1, 3]),
    ("receive", "recv: owned", &[1, 3]),
    ("receive", "recv: head", &[1, 3]),
    ("send batches", "send batch: begun", &[1, 3]),
    ("send batches", "send batch: before a slot", &[1, 2, 4]),
    ("send batches", "send batch: slot", &[1, 2, 4, 8, 10]),
    ("receive batches", "recv batch: owned", &[1, 3, 6]),
    ("receive batches", "recv: head", &[2, 3]),
    ("send values", "send: before the slot", &[1, 3]),
    ("send values", "send: slot", &[1, 3]),
    ("send values", "send batch: begun", &[1]),
    ("send values", "send batch: before a slot", &[1, 3, 9]),
    ("send values", "send batch: slot", &[1, 2]),
    ("receive values", "recv: owned", &[1, 3]),
    ("receive values", "recv: head", &[1, 3, 5]),
    ("receive values", "recv batch: owned", &[1, 5]),
    ("follow a torn batch", "attach: cleared", &[1, 2]),
    ("follow a torn batch", "attach: role", &[1]),
    ("follow a torn batch of records", "attach: cleared", &[1, 2]),
    ("wake one who waits for many", "wake: cleared", &[1, 5]),
    ("wake one who waits for many", "wake: hinted", &[1, 5]),
    ("wake one who waits for many", "wake: changed", &[1, 5]),
    ("wait for many", "sleep: armed", &[1]),
    ("wait for many", "sleep: woken", &[1]),
    ("poll", "poll: nothing there", &[1, 3]),
    ("poll", "poll: looked", &[1]),
    ("wake a consumer", "send: before the wake", &[1]),
    ("wake a consumer", "wake: cleared", &[1]),
    ("wake a consumer", "wake: changed", &[1]),
    ("wake a producer", "recv: before the wake", &[1]),
    ("wake a producer", "wake: cleared", &[1]),
    ("hear the last", "poll: left for good", &[1]),
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
    ("create to stay", "create: block", &[1]),
    ("create to stay", "create: live", &[1]),
    ("create to stay", "create: indexed", &[1]),
    ("desert", "remove: state", &[1]),
    ("desert", "attach: role", &[1]),
    ("desert", "freeze: queued", &[1, 5]),
    ("desert", "drain: owned", &[1]),
    ("desert", "drain: head", &[2]),
    ("crowd the index", "index: moved", &[1, 2, 3]),
    ("detach", "vacate: gone", &[1]),
    ("detach", "detach: left", &[1, 2]),
    ("detach", "detach: released", &[1, 2]),
    ("detach", "tell: raised", &[1]),
    ("detach", "announce: changed", &[1, 2]),
    ("dismantle", "detach: left", &[1, 2]),
    ("dismantle", "detach: released", &[1, 2]),
    ("dismantle", "remove: state", &[1]),
    ("dismantle", "remove: unindexed", &[1]),
    ("dismantle", "freeze: queued", &[1, 4, 5]),
    ("dismantle", "freeze: noted", &[1]),
    ("dismantle", "freeze: done", &[1]),
    ("dismantle", "dismantle: busy", &[1]),
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
    ("leave with records", "leave: unlisted", &[1]),
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
    ("trim tables", "trim: limited", &[1]),
    ("trim tables", "trim: beyond", &[1]),
    ("trim mixed", "empty: heads", &[1]),
    ("trim mixed", "drop: cleared", &[1, 2]),
    ("trim mixed", "drop: owned", &[1, 2]),
    ("trim mixed", "drop: popped", &[1, 2]),
    ("trim mixed", "drop: moved", &[1, 2]),
    ("trim mixed", "empty: dropped", &[1]),
    ("trim mixed", "empty: released", &[1]),
    ("take from the idle", "revoke: marked", &[1]),
    ("take from the idle", "revoke: listed", &[1]),
    ("take from the idle", "search: begun", &[1]),
    ("take from the idle", "gate: inside", &[1, 3, 20]),
    ("take from the idle", "revoke: taken", &[1, 2]),
    ("take from the idle", "revoke: told", &[1, 2]),
    ("take from the idle", "revoke: spare", &[1, 2]),
    ("take from the idle", "revoke: emptied", &[1, 2]),
    ("take from the idle", "revoke: named", &[1, 2]),
    ("take from the idle", "revoke: put", &[1, 2]),
    ("take from the idle", "revoke: verify", &[1]),
    ("empty slabs", "empty: taken", &[1]),
    ("empty slabs", "take: listed", &[1]),
    ("empty slabs", "empty: put", &[1]),
    ("empty slabs", "empty: released", &[1]),
    ("free what is wanted", "want: cleared", &[1]),
    ("find it taken", "gate: inside", &[1, 2]),
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
    "remove: state",
    "settle: removed",
    "freeze: queued",
    "freeze: noted",
    "dismantle: busy",
    "drain: owned",
    "drain: head",
    "dismantle: owned",
    "dismantle: freed",
    "reap: vacated",
    "names: cleared",
    "reap: names done",
    "reap: met",
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
        if self.buffer.has_channel(TORN_RECORDS).unwrap() {
            let mut rx = self.ctx.consumer::<u64>(TORN_RECORDS).unwrap();
            let sent: Vec<u64> = rx.try_iter().map(|record| *record).collect();
            assert!(sent.is_empty() || sent == [0], "{sent:?}");
            let mut tx = self.ctx.producer::<u64>(TORN_RECORDS).unwrap();
            for i in 1..9 {
                tx.send(self.ctx.record(i).unwrap()).unwrap();
                let batch: Vec<u64> = rx.try_recv_batch(9).unwrap().iter().map(|record| **record).collect();
                assert_eq!(batch, [i]);
            }
            assert!(self.buffer.remove_channel(TORN_RECORDS).unwrap());
        }
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
    // What the survivor attached by itself and forgot, and what persists.
    for id in [30, 13] {
        let _ = buffer.remove_channel(id).unwrap();
    }
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
            signal(reaper, libc::SIGCONT);
            assert_eq!(ended(reaper), Ended::Exit(0));
            REAPER_STOPPED
        }
        Ended::Exit(0) => 0,
        other => panic!("the reaper ended with {other:?}"),
    }
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
    let run = |name: &Name| if case.act == "alone" { alone(case, name) } else { in_company(case, name) };
    let ended = in_segment("points", 60, run);
    if !matches!(ended, Ended::Exit(0..=7)) {
        println!("FAILED ({ended:?}): {case}");
    }
    ended
}

/// Whether a scenario ended as expected; says so if not.
fn succeeds(what: &str, expected: i32, scenario: impl FnOnce(&Name) -> i32) -> bool {
    let ended = in_segment("points-scene", 60, scenario);
    let is_so = ended == Ended::Exit(expected);
    if !is_so {
        println!("FAILED ({ended:?}): {what}");
    }
    is_so
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
    let resume = || signal(thief, libc::SIGCONT);
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

/// Where one who takes a channel out is stopped, and which times of coming there.
const ON_THE_WAY_OUT: &[(&str, &[u32])] = &[
    ("vacate: gone", &[1]),
    ("detach: left", &[1]),
    ("detach: released", &[1]),
    ("remove: state", &[1]),
    ("remove: unindexed", &[1]),
    ("freeze: queued", &[1, 7]),
    ("freeze: noted", &[1, 3]),
    ("freeze: done", &[1]),
    ("dismantle: busy", &[1]),
    ("drain: owned", &[1, 7]),
    ("drain: head", &[1, 7]),
    ("dismantle: drained", &[1]),
    ("dismantle: owned", &[1]),
    ("dismantle: freed", &[1]),
    ("dismantle: no storage", &[1]),
];

fn hundred(ctx: &ThreadContext, first: u64) -> Vec<Record<[u64]>> {
    (first..first + 100).map(|i| work::numbered(ctx, i, 30)).collect()
}

fn check_hundred(records: &[Record<[u64]>], first: u64) {
    assert!(records.iter().zip(first..).all(|(record, i)| work::number(record) == i), "somebody else has it, too");
}

/// Somebody takes out a channel, by leaving it as the last or by removing it, and is stopped on its way. Who sent what is queued there is
/// killed, and a third one reaps, and uses what that gave back. Then the first goes on, or is killed. Says whether it came by the point.
fn taken_out_while_another_reaps(name: &str, removes: bool, point: &str, count: u32, is_killed: bool) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    // SAFETY: stops this process.
    let stop = || assert_eq!(unsafe { libc::raise(libc::SIGSTOP) }, 0);
    let signal = |pid, signal| {
        // SAFETY: a child of this process, which was not waited for since it stopped.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    let options = slots(64).persistent(removes);
    let goes = child(30, || {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        let rx = (!removes).then(|| ctx.consumer_with::<[u64]>(50, &options).unwrap());
        stop();
        arm_stop(point, count);
        drop(rx);
        if removes {
            assert!(buffer.remove_channel(50).unwrap());
        }
        let mine = hundred(&ctx, 3000);
        check_hundred(&mine, 3000);
        0
    });
    assert_eq!(ended(goes), Ended::Stopped, "attached");
    let sends = child(30, || {
        let ctx = open(name).context().unwrap();
        let mut tx = ctx.producer_with::<[u64]>(50, &options).unwrap();
        hundred(&ctx, 1000).into_iter().take(60).for_each(|record| tx.send(record).unwrap());
        drop(tx);
        stop();
        forget(ctx);
        0
    });
    assert_eq!(ended(sends), Ended::Stopped, "has sent");
    signal(sends, libc::SIGKILL);
    assert_eq!(ended(sends), KILLED);
    signal(goes, libc::SIGCONT);
    let mut mine = Vec::new();
    let is_stopped = match ended(goes) {
        Ended::Stopped => true,
        Ended::Exit(0) => false,
        other => panic!("the one that goes ended with {other:?}"),
    };
    if is_stopped {
        if !is_locked(name) {
            buffer.reap().unwrap();
            mine = hundred(&ctx, 2000);
        }
        signal(goes, if is_killed { libc::SIGKILL } else { libc::SIGCONT });
        assert_eq!(ended(goes), if is_killed { KILLED } else { Ended::Exit(0) });
    }
    while buffer.reap().unwrap().processes > 0 {}
    check_hundred(&mine, 2000);
    common::sound(&buffer);
    let _ = buffer.remove_channel(50).unwrap();
    drop((mine, ctx));
    end(&buffer);
    i32::from(is_stopped)
}

/// A consumer is killed while it attaches to a channel that another one has left: the producer hears that nobody receives, before and after
/// it has sent what there is room for.
fn half_attached(name: &str, point: &str, reaps: bool) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(50, &slots(64)).unwrap();
    drop(ctx.consumer::<u64>(50).unwrap());
    assert!(matches!(tx.try_send(ctx.record(1).unwrap()), Err(TrySendError::Disconnected(_))));
    let consumer = in_child(20, || {
        let ctx = open(name).context().unwrap();
        arm(point, 1);
        forget((ctx.consumer::<u64>(50).unwrap(), ctx));
        0
    });
    assert_eq!(consumer, KILLED);
    if reaps {
        while buffer.reap().unwrap().processes > 0 {}
        assert!(matches!(tx.try_send(ctx.record(1).unwrap()), Err(TrySendError::Disconnected(_))), "at once");
    }
    loop {
        match tx.try_send(ctx.record(1).unwrap()) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => std::thread::sleep(Duration::from_millis(1)),
            Err(TrySendError::Disconnected(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!tx.has_consumer());
    // The next one gets what there is, and then all that comes.
    let mut rx = ctx.consumer::<u64>(50).unwrap();
    rx.try_iter().for_each(drop);
    tx.send(ctx.record(2).unwrap()).unwrap();
    assert_eq!(*rx.recv().unwrap(), 2);
    drop((tx, rx, ctx));
    while buffer.reap().unwrap().processes > 0 {}
    end(&buffer);
    0
}

/// One that leaves is stopped before it rings the bells, which lie in the channel's storage. The other end leaves, too, and the memory
/// is wanted: it is not had before the first is out.
fn rings_late(name: &str) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let goes = child(30, || {
        let ctx = open(name).context().unwrap();
        let rx = ctx.consumer_with::<u64>(50, &slots(64)).unwrap();
        assert!(rx.wait_for_producer(Duration::from_secs(20)).is_ok());
        arm_stop("tell: raised", 1);
        drop(rx);
        0
    });
    assert!(buffer.wait_for_channel(50, Duration::from_secs(20)).unwrap());
    let tx = ctx.producer::<u64>(50).unwrap();
    assert_eq!(ended(goes), Ended::Stopped);
    drop(tx);
    assert!(!buffer.has_channel(50).unwrap(), "nobody is in it");
    let mut all = Vec::new();
    for words in [2000, 110, 20] {
        while let Ok(record) = ctx.slice_from(&vec![!0_u64; words]) {
            all.push(record);
        }
    }
    // SAFETY: a child of this process, which was not waited for since it stopped.
    assert_eq!(unsafe { libc::kill(goes, libc::SIGCONT) }, 0);
    assert_eq!(ended(goes), Ended::Exit(0));
    assert!(all.iter().flat_map(|record| record.iter()).all(|word| *word == !0), "it has written there");
    drop((all, ctx));
    end(&buffer);
    0
}

/// One that makes a channel is stopped while it empties its ring, which may be long: it has no lock, and others are there first.
fn prepares_without_the_lock(name: &str) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let makes = child(30, || {
        let ctx = open(name).context().unwrap();
        arm_stop("create: emptied", 1);
        let made = ctx.producer_with::<u64>(50, &slots(1 << 12)).unwrap_err();
        assert_eq!(made, AttachError::CapacityMismatch { id: 50, asked: 1 << 12, actual: 8 });
        0
    });
    assert_eq!(ended(makes), Ended::Stopped);
    assert!(!is_locked(name));
    let rx = ctx.consumer_with::<u64>(50, &slots(8)).unwrap();
    // SAFETY: a child of this process, which was not waited for since it stopped.
    assert_eq!(unsafe { libc::kill(makes, libc::SIGCONT) }, 0);
    assert_eq!(ended(makes), Ended::Exit(0));
    assert_eq!(rx.capacity(), 8, "whose is first");
    drop((rx, ctx));
    while buffer.reap().unwrap().processes > 0 {}
    end(&buffer);
    0
}

/// What the cases above do not show: says how many failed.
fn three_parties(wanted: impl Fn(&str) -> bool) -> u32 {
    let mut failed = 0;
    let mut run = |what: &str, scenario: &dyn Fn(&str) -> i32, expected: i32| {
        failed += u32::from(wanted(what) && !succeeds(what, expected, |name| scenario(name)));
    };
    run("one that rings late", &rings_late, 0);
    run("one that makes a channel", &prepares_without_the_lock, 0);
    for (point, count) in ON_THE_WAY_OUT.iter().flat_map(|(point, counts)| counts.iter().map(|count| (*point, *count)))
    {
        for (removes, is_killed) in [(false, false), (false, true), (true, false), (true, true)] {
            let (who, then) =
                (if removes { "removes" } else { "leaves" }, if is_killed { "killed" } else { "goes on" });
            // Who removes has no role to give up.
            let comes_by = i32::from(!removes || !point.starts_with("detach") && !point.starts_with("vacate"));
            run(
                &format!("one that {who} / stopped at {point} ({count}) / {then}"),
                &|name| taken_out_while_another_reaps(name, removes, point, count, is_killed),
                comes_by,
            );
        }
    }
    for point in ["attach: role", "attach: seen", "attach: returned"] {
        for reaps in [false, true] {
            run(&format!("half attached / {point} / {reaps}"), &|name| half_attached(name, point, reaps), 0);
        }
    }
    failed
}

/// A process that comes to a stop where the one who forked it wants it to, and goes on when told.
struct Stepped(libc::pid_t);

impl Stepped {
    fn new(work: impl FnOnce() -> i32) -> Self {
        Self(child(40, work))
    }

    #[track_caller]
    fn stops(&self) {
        assert_eq!(ended(self.0), Ended::Stopped);
    }

    fn goes_on(&self) {
        signal(self.0, libc::SIGCONT);
    }

    #[track_caller]
    fn ends(self, how: Ended) {
        assert_eq!(ended(self.0), how);
    }
}

/// Stops until told to go on.
fn stop_here() {
    // SAFETY: stops this process.
    assert_eq!(unsafe { libc::raise(libc::SIGSTOP) }, 0);
}

/// Of a class of its own.
const STOLEN: usize = 180;

/// What a context frees stays with it, though whoever was about to take it is killed, and a third one gives back what the killed one
/// had at the moment when the owner has stepped inside its cache and not yet looked whether it may.
///
/// Symptom: two records at one address. Cause: who settled the dead thief's affairs read the spare in the owner's gate, which says
/// `INSIDE` at that moment, took it that there was none, and the header scan freed the block that bore the thief's name. Fix: the
/// thief notes the spare where no owner writes.
fn keeps_its_spare(name: &str, killed_at: &str, stopped_at: u32) -> i32 {
    let slice = |ctx: &ThreadContext, byte: u8| Some(ctx.slice_uninit::<u8>(STOLEN).ok()?.fill_with(|_| byte));
    let owner = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        let rest = slice(&ctx, b'o');
        drop(slice(&ctx, b'o'));
        stop_here();
        arm_stop("gate: inside", stopped_at);
        let mine: Vec<_> = (0..3).map(|_| slice(&ctx, b'o').unwrap()).collect();
        stop_here();
        assert!(mine.iter().chain(&rest).all(|record| record.iter().all(|byte| *byte == b'o')), "somebody else has it");
        drop((mine, rest));
        0
    });
    owner.stops();
    let thief = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm(killed_at, 1);
        forget(std::iter::from_fn(|| slice(&ctx, b't')).collect::<Vec<_>>());
        1
    });
    thief.ends(KILLED);
    owner.goes_on();
    owner.stops();
    let take = |ctx: &ThreadContext| {
        // All but a few, for the owner takes some, too.
        let mut all: Vec<_> = std::iter::from_fn(|| slice(ctx, b't')).collect();
        all.truncate(all.len() - 10);
        ctx.flush();
        all
    };
    in_turn_with_a_third(name, owner, take)
}

/// A third one reaps and takes what there is, the owner what is left; then each looks whether what it has is its own: the third one by
/// what it has filled with 't', the owner by itself.
fn in_turn_with_a_third(name: &str, owner: Stepped, take: impl Fn(&ThreadContext) -> Vec<Record<[u8]>>) -> i32 {
    let third = Stepped::new(|| {
        let buffer = open(name);
        while buffer.reap().unwrap().processes > 0 {}
        let ctx = buffer.context().unwrap();
        let mut all = take(&ctx);
        stop_here();
        assert!(all.iter().all(|record| record.iter().all(|byte| *byte == b't')), "somebody else has it");
        all.iter_mut().for_each(|record| record.fill(b'T'));
        stop_here();
        0
    });
    third.stops();
    owner.goes_on();
    owner.stops();
    third.goes_on();
    third.stops();
    owner.goes_on();
    owner.ends(Ended::Exit(0));
    third.goes_on();
    third.ends(Ended::Exit(0));
    let buffer = open(name);
    while buffer.reap().unwrap().processes > 0 {}
    end(&buffer);
    0
}

/// A theft that its thief did not live to end is settled by the owner, which is stopped when it has looked what is left. Another thief
/// takes some of that, and is killed, too. Then the owner must look again: what it has seen after the first theft does not count after
/// the second, though both were cut short and look the same.
fn looks_again_after_the_next_theft(name: &str) -> i32 {
    let fill = |ctx: &ThreadContext| {
        let mut all = Vec::new();
        for size in [60_000, 900, STOLEN] {
            all.extend(
                std::iter::from_fn(|| ctx.slice_uninit::<u8>(size).ok()).map(|record| record.fill_with(|_| b's')),
            );
        }
        all
    };
    let owner = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        // Magazines of two classes, beside the spare, and slabs that stay.
        let _kept = [STOLEN, 900].map(|size| ctx.slice_zeroed::<u8>(size).unwrap());
        for size in [STOLEN, 900, STOLEN] {
            drop((0..5).map(|_| ctx.slice_zeroed::<u8>(size).unwrap()).collect::<Vec<_>>());
        }
        stop_here();
        arm_stop("verify: checked", 1);
        let sizes = [STOLEN, 900].into_iter().cycle().take(20);
        let mine: Vec<_> =
            sizes.filter_map(|size| Some(ctx.slice_uninit::<u8>(size).ok()?.fill_with(|_| b'o'))).collect();
        stop_here();
        assert!(mine.iter().all(|record| record.iter().all(|byte| *byte == b'o')), "somebody else has it");
        0
    });
    owner.stops();
    let first = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm("revoke: named", 1);
        forget(fill(&ctx));
        1
    });
    first.ends(KILLED);
    owner.goes_on();
    owner.stops();
    let second = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm("revoke: put", 1);
        forget(fill(&ctx));
        1
    });
    second.ends(KILLED);
    // Without a theft of its own: what the dead had is enough. The owner is given some, too.
    let take = |ctx: &ThreadContext| {
        let sizes = [STOLEN, 900].into_iter().cycle().take(250);
        sizes.filter_map(|size| Some(ctx.slice_uninit::<u8>(size).ok()?.fill_with(|_| b't'))).collect()
    };
    in_turn_with_a_third(name, owner, take)
}

/// A thief that has seen what the contexts hold is stopped. One of these, which was out since an earlier theft that was cut short, is
/// killed and reaped meanwhile, and another context has its magazine by now. The thief must see that, or two write the same magazine.
fn sees_that_it_is_anothers(name: &str) -> i32 {
    let slice = |ctx: &ThreadContext| Some(ctx.slice_uninit::<u8>(STOLEN).ok()?.assume_init());
    let several = |ctx: &ThreadContext, count| (0..count).filter_map(|_| slice(ctx)).collect::<Vec<_>>();
    let listed = ALL.iter().position(|point| *point == "revoke: listed").unwrap();
    let buffer = open(name);
    // It has a place for the context of the one who comes later: not that of the one who is killed.
    let first = buffer.context().unwrap();
    // All but three slabs.
    let rest = first.slice_uninit::<u8>(usize::try_from(CAPACITY).unwrap() - 3 * 65536 - 16).unwrap();
    let owner = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        drop(several(&ctx, 20));
        stop_here();
        1
    });
    owner.stops();
    let cut_short = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        // Behind the context from above.
        arm("revoke: taken", 2);
        forget(std::iter::from_fn(|| slice(&ctx)).collect::<Vec<_>>());
        1
    });
    cut_short.ends(KILLED);
    while buffer.reap().unwrap().processes > 0 {}
    let thief = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm_stop("revoke: listed", 1);
        let mut all = Vec::new();
        while passed()[listed] == 0 {
            all.extend(slice(&ctx));
        }
        // No more than there is now, for then it takes from the other one rightly.
        all.extend(several(&ctx, 9));
        stop_here();
        drop(all);
        0
    });
    thief.stops();
    drop(first);
    signal(owner.0, libc::SIGKILL);
    owner.ends(KILLED);
    let other = Stepped::new(|| {
        let buffer = open(name);
        while buffer.reap().unwrap().processes > 0 {}
        let ctx = buffer.context().unwrap();
        // The rest of one magazine stays at hand.
        let mine = several(&ctx, 100);
        stop_here();
        drop(mine);
        stop_here();
        0
    });
    other.stops();
    thief.goes_on();
    thief.stops();
    // Both free into what they have at hand.
    other.goes_on();
    other.stops();
    thief.goes_on();
    thief.ends(Ended::Exit(0));
    other.goes_on();
    other.ends(Ended::Exit(0));
    drop(rest);
    end(&buffer);
    0
}

/// A context that is inside its cache keeps it, however long that takes: it is stopped while it names what it is about to pop.
fn is_left_alone_inside(name: &str) -> i32 {
    let owner = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        let kept = ctx.slice_zeroed::<u8>(STOLEN).unwrap();
        drop((0..20).map(|_| ctx.slice_zeroed::<u8>(STOLEN).unwrap()).collect::<Vec<_>>());
        // Now they are anybody's, so they are named once more.
        ctx.flush();
        arm_stop("name: owned", 1);
        let mut mine: Vec<_> = (0..10).map(|_| ctx.slice_uninit::<u8>(STOLEN).unwrap().fill_with(|_| b'o')).collect();
        stop_here();
        assert!(mine.iter().all(|record| record.iter().all(|byte| *byte == b'o')), "somebody else has it");
        mine.push(kept);
        drop(mine);
        0
    });
    owner.stops();
    let thief = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        let mut all = Vec::new();
        for size in [60_000, STOLEN] {
            all.extend(
                std::iter::from_fn(|| ctx.slice_uninit::<u8>(size).ok()).map(|record| record.fill_with(|_| b't')),
            );
        }
        stop_here();
        assert!(all.iter().all(|record| record.iter().all(|byte| *byte == b't')), "somebody else has it");
        0
    });
    thief.stops();
    owner.goes_on();
    owner.stops();
    thief.goes_on();
    thief.ends(Ended::Exit(0));
    owner.goes_on();
    owner.ends(Ended::Exit(0));
    end(&open(name));
    0
}

/// What is moved from one magazine to another is its mover's meanwhile: killed there, it leaves nothing in the name of one who lives.
fn moves_in_its_own_name(name: &str, point: &'static str, count: u32) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let kept = [middle(&ctx), ctx.slice_zeroed::<u8>(STOLEN).unwrap()];
    // Two slabs' blocks mixed in each magazine, one slab's all of them; and some of another class: all bear the living one's name.
    let mut all: Vec<_> = (0..34).map(|_| middle(&ctx)).collect();
    let mut second = all.split_off(17).into_iter();
    for one in all {
        drop((one, second.next()));
    }
    let few: Vec<_> = (0..5).map(|_| ctx.slice_zeroed::<u8>(STOLEN).unwrap()).collect();
    drop((0..40).map(|_| ctx.slice_zeroed::<u8>(STOLEN).unwrap()).collect::<Vec<_>>());
    ctx.flush();
    let mover = Stepped::new(|| {
        let buffer = open(name);
        let ctx = buffer.context().unwrap();
        if point.starts_with("merge") {
            forget(ctx.slice_zeroed::<u8>(STOLEN).unwrap());
        }
        stop_here();
        arm(point, count);
        ctx.flush();
        buffer.trim().unwrap();
        1
    });
    mover.stops();
    // Another magazine of few entries, to merge with.
    drop(few);
    ctx.flush();
    mover.goes_on();
    mover.ends(KILLED);
    while buffer.reap().unwrap().processes > 0 {}
    let owned: u64 = common::sound(&buffer).owned.iter().map(|owned| owned.records).sum();
    assert_eq!(owned, kept.len() as u64, "what was being moved is nobody's");
    drop((kept, ctx));
    end(&buffer);
    0
}

/// A unit says that it has memory only if it has, wherever the one is killed who returns that to the system: where there is no
/// other memory, whoever uses the unit would be killed, too.
fn promises_no_memory(name: &str, point: &'static str) -> i32 {
    use std::os::unix::fs::MetadataExt;
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    drop(ctx.slice_zeroed::<u8>(1 << 20).unwrap());
    ctx.flush();
    // What is there beside the units.
    let rest = || {
        let there = std::fs::metadata(format!("/dev/shm/{name}")).unwrap().blocks() * 512;
        there.checked_sub(buffer.stats().unwrap().reserved_bytes).expect("all that is promised is there")
    };
    let before = rest();
    let trims = Stepped::new(|| {
        let buffer = open(name);
        arm(point, 3);
        buffer.trim().unwrap();
        1
    });
    trims.ends(KILLED);
    assert!(rest() >= before, "{} bytes beside the units, {before} before", rest());
    while buffer.reap().unwrap().processes > 0 {}
    assert!(rest() >= before, "{} bytes beside the units, {before} before", rest());
    drop(ctx);
    end(&buffer);
    0
}

/// One who takes a magazine out of the depot is stopped while it clears the hint, half-way up the tree; another magazine comes whose hint
/// lies beside: in the same word, or in another one `far` away below the same sum. When the first one has gone on, that is found all
/// the same.
fn restores_hints(name: &str, point: &'static str, far: bool) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    // Magazines of this class have four entries in a buffer of this size, two of them are remembered beside the tree, so
    // twelve blocks put one into the tree.
    let mut all: Vec<_> = (0..24).map(|_| middle(&ctx)).collect();
    let later = all.split_off(12);
    // More of another class than fill 64 magazines, with some in use in each slab.
    let mut others: Vec<_> = (0..if far { 1300 } else { 0 }).map(|_| ctx.slice_zeroed::<u8>(900).unwrap()).collect();
    let rest: Vec<_> = [60_000, 3500, 900, 40]
        .into_iter()
        .flat_map(|size| std::iter::from_fn(|| ctx.slice_uninit::<u8>(size).ok()).collect::<Vec<_>>())
        .collect();
    drop(all);
    ctx.flush();
    let mut number = 0;
    others.retain(|_| {
        number += 1;
        number % 20 == 0
    });
    let taker = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm_stop(point, 1);
        let mine: Vec<_> = (0..9).map(|_| middle(&ctx)).collect();
        stop_here();
        drop(mine);
        0
    });
    taker.stops();
    drop(later);
    ctx.flush();
    taker.goes_on();
    taker.stops();
    let found: Vec<_> = std::iter::from_fn(|| Some(ctx.slice_uninit::<u8>(3500).ok()?.assume_init())).collect();
    let of_class = found.iter().filter(|record| record.capacity_bytes() < 4000).count();
    assert!(of_class >= 12, "{of_class} of 12 blocks are found");
    drop(found);
    taker.goes_on();
    taker.ends(Ended::Exit(0));
    drop((rest, others, ctx));
    end(&buffer);
    0
}

/// One who looks for a magazine is stopped when it has seen that the one which a hint leads to is somebody's: somebody's who was stopped
/// before it cleared that hint. That one puts it back, and the hint is there still. Whoever clears it now leaves another.
fn leaves_a_hint_where_it_came_back(name: &str) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut all: Vec<_> = (0..24).map(|_| middle(&ctx)).collect();
    let later = all.split_off(12);
    let rest: Vec<_> = [60_000, 3500, 900, 40]
        .into_iter()
        .flat_map(|size| std::iter::from_fn(|| ctx.slice_uninit::<u8>(size).ok()).collect::<Vec<_>>())
        .collect();
    drop(all);
    ctx.flush();
    let taker = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm_stop("take: found", 1);
        // The last one by the hint.
        let mine: Vec<_> = (0..9).map(|_| middle(&ctx)).collect();
        stop_here();
        drop(mine);
        drop(ctx);
        0
    });
    taker.stops();
    let late = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        arm_stop("take: stale", 1);
        drop(middle(&ctx));
        0
    });
    late.stops();
    taker.goes_on();
    taker.stops();
    // So many that no other one is remembered beside the hints.
    drop(later);
    ctx.flush();
    taker.goes_on();
    taker.ends(Ended::Exit(0));
    late.goes_on();
    late.ends(Ended::Exit(0));
    let found: Vec<_> = std::iter::from_fn(|| Some(ctx.slice_uninit::<u8>(3500).ok()?.assume_init())).collect();
    let of_class = found.iter().filter(|record| record.capacity_bytes() < 4000).count();
    assert!(of_class >= 24, "{of_class} of 24 blocks are found");
    drop((found, rest, ctx));
    end(&buffer);
    0
}

/// A reaper is stopped when it has read that a large record begins at a unit. The record is freed, and the unit is the middle of another,
/// whose payload reads like a header of the dead one's. Then it is no record of the dead one's.
fn looks_at_the_head_again(name: &str) -> i32 {
    const MARK: u64 = 0x6d61_726b_6d61_726b;
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    // The first five units, the second five.
    let runs = [(); 2].map(|()| ctx.slice_zeroed::<u8>(300_000).unwrap());
    let dead = Stepped::new(|| {
        let ctx = open(name).context().unwrap();
        forget((ctx.record([MARK; 20]).unwrap(), ctx));
        die()
    });
    dead.ends(KILLED);
    // What the header of its record says.
    let bytes = std::fs::read(format!("/dev/shm/{name}")).unwrap();
    let words: Vec<u64> = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let at = words.windows(20).position(|words| words.iter().all(|word| *word == MARK)).unwrap();
    let owned = words[at - 2];
    let reaper = Stepped::new(|| {
        arm_stop("reap: met", 2);
        let buffer = open(name);
        buffer.reap().unwrap();
        forget(buffer);
        0
    });
    reaper.stops();
    drop(runs);
    let other = ctx.slice_uninit::<u64>(600_000 / 8).unwrap().fill_with(|_| owned);
    reaper.goes_on();
    reaper.ends(Ended::Exit(0));
    assert!(other.iter().all(|word| *word == owned), "a reaper wrote into a record");
    while buffer.reap().unwrap().processes > 0 {}
    let audit = common::sound(&buffer);
    assert_eq!(audit.owned.iter().map(|owned| owned.records).sum::<u64>(), 1, "{audit:#?}");
    drop((other, ctx));
    end(&buffer);
    0
}

type Scene = fn(&str) -> i32;

/// Three processes step by step.
const SCENES: &[(&str, Scene)] = &[
    ("a thief that was refused", refuses_a_thief),
    ("scene: thief killed when told, owner inside", |name| keeps_its_spare(name, "revoke: told", 1)),
    ("scene: thief killed with the spare, owner inside", |name| keeps_its_spare(name, "revoke: spare", 1)),
    ("scene: thief killed when emptied, owner inside", |name| keeps_its_spare(name, "revoke: emptied", 1)),
    ("scene: thief killed when named, owner inside", |name| keeps_its_spare(name, "revoke: named", 1)),
    ("scene: thief killed with the spare, owner inside again", |name| keeps_its_spare(name, "revoke: spare", 2)),
    ("scene: the next thief while the owner looks", looks_again_after_the_next_theft),
    ("scene: a thief while the owner is inside", is_left_alone_inside),
    ("scene: a thief whose victim is reaped", sees_that_it_is_anothers),
    ("scene: hints below the leaf", |name| restores_hints(name, "clear: leaf", false)),
    ("scene: hints below the sum", |name| restores_hints(name, "clear: sum", false)),
    ("scene: hints below the sum, far", |name| restores_hints(name, "clear: sum", true)),
    ("scene: hints where it came back", leaves_a_hint_where_it_came_back),
    ("scene: a record where the dead one's was", looks_at_the_head_again),
    ("scene: killed moving, merge", |name| moves_in_its_own_name(name, "merge: popped", 20)),
    ("scene: killed moving, drop", |name| moves_in_its_own_name(name, "drop: popped", 1)),
    ("scene: killed trimming, claimed", |name| promises_no_memory(name, "trim: claimed")),
    ("scene: killed trimming, unmarked", |name| promises_no_memory(name, "trim: unmarked")),
    ("scene: killed trimming, punched", |name| promises_no_memory(name, "trim: punched")),
];

/// A poll that receives a number.
type Poll = fn(&mut Ends) -> Result<u64, TryRecvError>;
type Ends = (Channel<u64, Consumer>, ValueChannel<u64, Consumer>);

const POLLS: &[(&str, Poll)] = &[
    ("try_recv", |ends| ends.0.try_recv().map(|record| *record)),
    ("try_recv_batch", |ends| ends.0.try_recv_batch(9).map(|batch| *batch[0])),
    ("try_recv of values", |ends| ends.1.try_recv()),
    ("try_recv_batch of values", |ends| ends.1.try_recv_batch(9).map(|batch| batch[0])),
];

/// A poll that found nothing is stopped at `point`; meanwhile the producers send something, or not, and leave. It must hear of both, in
/// this order and soon: it looks neither at the clock nor at leases here.
fn hears_all_before_the_end(name: &str, poll: Poll, point: &str, sends: bool) -> i32 {
    let buffer = open(name);
    let ctx = buffer.context().unwrap();
    let mut txs = (ctx.producer::<u64>(1).unwrap(), ctx.value_producer::<u64>(2).unwrap());
    let poller = child(30, || {
        let ctx = open(name).context().unwrap();
        let mut ends = (ctx.consumer::<u64>(1).unwrap(), ctx.value_consumer::<u64>(2).unwrap());
        arm_stop(point, 1);
        let mut polls = (0..3).map(|_| poll(&mut ends));
        if sends {
            let number = polls.find(|result| *result != Err(TryRecvError::Empty));
            assert_eq!(number, Some(Ok(5)));
        }
        let then = polls.find(|result| *result != Err(TryRecvError::Empty));
        assert_eq!(then, Some(Err(TryRecvError::Recv(RecvError::Disconnected))));
        0
    });
    assert_eq!(ended(poller), Ended::Stopped);
    if sends {
        txs.0.send(ctx.record(5).unwrap()).unwrap();
        txs.1.send(5).unwrap();
    }
    drop(txs);
    signal(poller, libc::SIGCONT);
    assert_eq!(ended(poller), Ended::Exit(0));
    drop(ctx);
    end(&buffer);
    0
}

fn cases(full: bool) -> Vec<Case> {
    let company = KILLS.iter().flat_map(|(act, point, counts)| counts.iter().map(|count| (*act, *point, *count)));
    let visits = VISIT.iter().map(|point| ("visit", *point, 1));
    let firsts: Vec<_> = company.chain(visits).collect();
    let mut cases = Vec::new();
    // Every third, another third for each point; and that which one victim alone leads to.
    let reapers = |turn: usize, point: &'static str| {
        let only = move |reaper| reaper == "settle: spare" && point == "revoke: spare";
        let chosen = REAPER.iter().enumerate().filter(move |(i, reaper)| full || i % 3 == turn % 3 || only(**reaper));
        chosen.map(|(_, reaper)| *reaper)
    };
    for (turn, (act, point, count)) in firsts.iter().enumerate() {
        let case = |reaper, next| Case { act, point, count: *count, reaper, stops: false, next };
        cases.extend(NEXT.iter().map(|next| case(None, *next)));
        for (number, reaper) in reapers(turn, point).enumerate() {
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
        cases.extend(reapers(turn, point).map(|reaper| case(Some((reaper, 1)))));
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
    for (case, ended) in cases.iter().zip(each(&cases, |case| run(*case))) {
        match ended {
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
    failed += three_parties(|what| filters.iter().all(|filter| what.contains(filter.as_str())));
    for (what, test) in SCENES {
        let is_wanted = filters.iter().all(|filter| what.contains(filter.as_str()));
        failed += u32::from(is_wanted && !succeeds(what, 0, |name| test(name)));
    }
    for (what, poll) in POLLS {
        for (point, sends) in [("poll: nothing there", true), ("poll: looked", true), ("poll: looked", false)] {
            let what = format!("{what}, stopped at {point:?}, while something was sent: {sends}");
            let hears = |name: &Name| {
                // SAFETY: one thread.
                unsafe { std::env::set_var("IPC_BUFFER_TICK_MS", "3600000") };
                hears_all_before_the_end(name, *poll, point, sends)
            };
            failed += u32::from(!succeeds(&what, 0, hears));
        }
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
