//! Select: which of many ends is ready, in turn, and one sleep for all of them. How a wait ends, between processes, is in
//! `waiting.rs`.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod common;
#[path = "common/peer.rs"]
mod peer;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/work.rs"]
mod work;

use common::Name;
use ipc_buffer::{
    Buffer, Channel, ChannelOptions, Consumer, Producer, RecvError, Select, ThreadContext, TryRecvError, TrySendError,
    ValueChannel, WaitStrategy,
};
use peer::{Peer, answers, falls_asleep, listen, tell, timed_out};
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(50);
const GONE: TryRecvError = TryRecvError::Recv(RecvError::Disconnected);

fn slots(capacity: usize) -> ChannelOptions {
    ChannelOptions::new().capacity(capacity)
}

#[test]
fn nothing_to_wait_for() {
    let _dog = common::watchdog();
    let name = Name::new("nothing");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut select = Select::new();
    let all_say_none = |select: &mut Select| {
        assert_eq!((select.len(), select.is_empty()), (0, true));
        assert_eq!([select.try_ready(), select.ready(), select.ready_timeout(LONG)], [None; 3]);
        assert_eq!(select.ready_deadline(Instant::now() + LONG), None);
        assert!(!select.remove(0));
    };
    all_say_none(&mut select);
    let rx = ctx.consumer::<u64>(1).unwrap();
    assert_eq!((select.recv(&rx), select.len()), (0, 1));
    assert!(select.remove(0) && !select.remove(0));
    all_say_none(&mut select);
    // Numbers are not used again; an end that is dropped is gone, as is one that was added twice.
    assert_eq!((select.recv(&rx), select.recv(&rx), select.len()), (1, 2, 2));
    drop(rx);
    all_say_none(&mut select);
    let tx = ctx.producer::<u64>(1).unwrap();
    assert_eq!(select.send(&tx), 3);
    assert_eq!((select.ready(), format!("{select:?}").contains("ends: 1")), (Some(3), true));
    drop((tx, ctx));
    work::end(buffer, &name);
}

#[test]
fn time() {
    let _dog = common::watchdog();
    let name = Name::new("time");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (rx, other) = (ctx.consumer::<u64>(1).unwrap(), ctx.consumer::<[u8]>(2).unwrap());
    for strategy in [WaitStrategy::Spin, WaitStrategy::Adaptive, WaitStrategy::Block] {
        let mut select = Select::new().wait_strategy(strategy);
        select.recv(&rx);
        select.recv(&other);
        for timeout in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(30), Duration::from_millis(260)]
        {
            let start = Instant::now();
            assert_eq!(select.ready_timeout(timeout), None);
            assert!(start.elapsed() >= timeout);
            assert_eq!(select.ready_deadline(start), None);
        }
    }
    drop((rx, other, ctx));
    work::end(buffer, &name);
}

#[test]
fn ends_of_two_buffers() {
    let _dog = common::watchdog();
    let names = [Name::new("one"), Name::new("other")];
    let buffers = names.each_ref().map(|name| Buffer::open(name).unwrap());
    let [one, two] = buffers.each_ref().map(|buffer| buffer.context().unwrap());
    let (mut rx, mut tx) = (one.consumer::<u64>(1).unwrap(), two.producer_with::<u64>(1, &slots(2)).unwrap());
    let mut select = Select::new();
    assert_eq!([select.recv(&rx), select.send(&tx)], [0, 1]);
    assert_eq!([select.ready(), select.ready()], [Some(1); 2]);
    while tx.try_send(two.record(1).unwrap()).is_ok() {}
    assert_eq!([select.try_ready(), select.ready_timeout(Duration::from_millis(1))], [None; 2]);
    one.producer::<u64>(1).unwrap().send(one.record(5).unwrap()).unwrap();
    assert_eq!([select.ready(), select.ready()], [Some(0); 2]);
    assert_eq!(*rx.try_recv().unwrap(), 5);
    // Its producer has left; then its context is closed, too; then it is gone.
    assert_eq!([select.ready(), select.ready()], [Some(0); 2]);
    drop(one);
    assert_eq!([select.ready(), select.ready()], [Some(0); 2]);
    drop(rx);
    assert_eq!((select.ready_timeout(Duration::from_millis(1)), select.len()), (None, 1));
    two.consumer::<u64>(1).unwrap().try_recv().unwrap();
    assert_eq!(select.ready(), Some(1));
    drop((tx, two));
    for (buffer, name) in buffers.into_iter().zip(&names) {
        work::end(buffer, name);
    }
}

/// Not a test: what the other processes of the tests of several buffers run. It waits for an end that receives, by channel 1, in
/// each buffer whose name it is told; and for one that sends, by channel 2, if it is told to want room.
#[test]
fn puppet() {
    let Some((role, names)) = common::role() else { return };
    let _dog = common::watchdog();
    let contexts: Vec<_> = names.split(',').map(|name| Buffer::open(name).unwrap().context().unwrap()).collect();
    if role == "sits" {
        let _txs: Vec<_> = contexts.iter().map(|ctx| ctx.producer::<u64>(1).unwrap()).collect();
        tell("ok");
        listen();
        return;
    }
    if role.contains("old kernel") {
        sandbox::forbid(libc::SYS_futex_waitv);
    }
    let mut rxs: Vec<_> = contexts.iter().map(|ctx| ctx.consumer_with::<u64>(1, &slots(2)).unwrap()).collect();
    let rooms = contexts.iter().filter(|_| role.contains("room"));
    let mut txs: Vec<_> = rooms.map(|ctx| (ctx, ctx.producer_with::<u64>(2, &slots(2)).unwrap())).collect();
    let strategy = if role.starts_with("block") { WaitStrategy::Block } else { WaitStrategy::Adaptive };
    let mut select = Select::new().wait_strategy(strategy);
    rxs.iter().for_each(|rx| _ = select.recv(rx));
    txs.iter().for_each(|(_, tx)| _ = select.send(tx));
    while let Some(line) = listen() {
        let (command, number) = line.split_once(' ').unwrap();
        let number: usize = number.parse().unwrap();
        let start = Instant::now();
        match command {
            "select" => {
                let timeout = Duration::from_millis(number as u64);
                let found = select.ready_timeout(timeout);
                tell(found.map_or_else(|| timed_out(start, timeout), |number| number.to_string()));
            }
            "recv" => {
                let received = rxs[number].try_recv();
                tell(received.map_or_else(|error| error.to_string(), |record| record.to_string()));
            }
            _ => {
                let (ctx, tx) = &mut txs[number];
                while tx.try_send(ctx.record(7).unwrap()).is_ok() {}
                tell("ok");
            }
        }
    }
}

/// Nobody looks around: only a wake-up can end a wait.
const FOREVER: (&str, &str) = ("IPC_BUFFER_TICK_MS", "3600000");

/// Two buffers, and their names.
struct Two {
    contexts: [ThreadContext; 2],
    buffers: [Buffer; 2],
    names: [Name; 2],
}

impl Two {
    fn new() -> Self {
        let names = [Name::new("one"), Name::new("two")];
        let buffers = names.each_ref().map(|name| Buffer::open(name).unwrap());
        Self { contexts: buffers.each_ref().map(|buffer| buffer.context().unwrap()), buffers, names }
    }

    fn start(&self, role: &str, environment: &[(&str, &str)]) -> Peer {
        Peer::start_with("puppet", role, &self.names.each_ref().map(|name| &**name).join(","), environment)
    }

    fn end(self) {
        drop(self.contexts);
        for (buffer, name) in self.buffers.into_iter().zip(&self.names) {
            work::end(buffer, name);
        }
    }
}

/// A process sleeps for ends of two buffers, each of which wakes it: by data, by room, by leaving. And time does.
fn each_of_two_buffers_wakes(strategy: &str, more: &[(&str, &str)]) {
    if !sandbox::knows(libc::SYS_futex_waitv) {
        // Naps, of minutes where a tick is an hour: see `two_buffers_on_an_old_kernel`.
        eprintln!("skipped: no futex_waitv, so only the first buffer wakes");
        return;
    }
    let two = Two::new();
    for role in [strategy.to_owned(), format!("{strategy} room")] {
        let mut one = two.start(&role, &[&[FOREVER], more].concat());
        let mut txs = two.contexts.each_ref().map(|ctx| Some(ctx.producer_with::<u64>(1, &slots(2)).unwrap()));
        if role.contains("room") {
            let mut rxs = two.contexts.each_ref().map(|ctx| ctx.consumer_with::<u64>(2, &slots(2)).unwrap());
            (0..2).for_each(|i| one.does(&format!("fill {i}")));
            for i in [0, 1, 1, 0] {
                falls_asleep(&mut one, "select 100000");
                assert_eq!(*rxs[i].recv().unwrap(), 7);
                answers(&mut one, &format!("{}", 2 + i));
                one.does(&format!("fill {i}"));
            }
            send_to_each(&mut one, &two, &mut txs);
            drop(rxs);
            assert_eq!([one.ask("select 100000"), one.ask("select 100000")], ["2", "3"]);
        } else {
            for wait in ["select 0", "select 30", "select 130"] {
                assert_eq!(one.ask(wait), "timeout");
            }
            send_to_each(&mut one, &two, &mut txs);
            falls_asleep(&mut one, "select 100000");
            txs[1] = None;
            answers(&mut one, "1");
        }
        one.ends();
    }
    two.end();
}

fn send_to_each(one: &mut Peer, two: &Two, txs: &mut [Option<Channel<u64, Producer>>; 2]) {
    for (value, i) in [0, 1, 1, 0, 1, 0].into_iter().enumerate() {
        falls_asleep(one, "select 100000");
        txs[i].as_mut().unwrap().send(two.contexts[i].record(value as u64).unwrap()).unwrap();
        answers(one, &i.to_string());
        assert_eq!(one.ask(&format!("recv {i}")), value.to_string());
    }
}

#[test]
fn two_buffers_asleep_at_once() {
    let _dog = common::watchdog();
    each_of_two_buffers_wakes("block", &[]);
}

#[test]
fn two_buffers_adaptive() {
    let _dog = common::watchdog();
    each_of_two_buffers_wakes("adaptive", &[]);
}

/// What comes in the second buffer goes unnoticed for a nap, which is 2 s here, and not for a tick: the watchdog bites at four.
#[test]
fn two_buffers_on_an_old_kernel() {
    let _dog = common::watchdog();
    let two = Two::new();
    let mut one = two.start("block old kernel", &[("IPC_BUFFER_TICK_MS", "50000")]);
    let mut txs = two.contexts.each_ref().map(|ctx| ctx.producer_with::<u64>(1, &slots(2)).unwrap());
    assert_eq!([one.ask("select 0"), one.ask("select 1200")], ["timeout"; 2]);
    // A tick that has begun may end soon; the next ones last.
    for i in [1, 1, 1, 1, 1, 0] {
        falls_asleep(&mut one, "select 100000");
        txs[i].send(two.contexts[i].record(5).unwrap()).unwrap();
        answers(&mut one, &i.to_string());
        assert_eq!(one.ask(&format!("recv {i}")), "5");
    }
    drop(txs);
    one.ends();
    two.end();
}

/// The other ends are held by processes that were the third in their buffers: there they have the same names.
#[test]
fn the_peer_in_one_of_two_buffers_is_killed() {
    let _dog = common::watchdog();
    for role in ["block", "adaptive", "block old kernel"] {
        for dead in [0, 1] {
            let two = Two::new();
            let mut one = two.start(role, &[]);
            assert_eq!(one.ask("select 0"), "timeout");
            let mut others = two.names.each_ref().map(|name| {
                let mut other = Peer::start("puppet", "sits", name);
                assert_eq!(other.hear().as_deref(), Some("ok"));
                Some(other)
            });
            assert_eq!(one.ask("select 300"), "timeout");
            falls_asleep(&mut one, "select 100000");
            others[dead].take().unwrap().process.kill();
            answers(&mut one, &dead.to_string());
            assert_eq!(one.ask(&format!("recv {dead}")), GONE.to_string());
            assert_eq!(one.ask(&format!("recv {}", 1 - dead)), TryRecvError::Empty.to_string());
            // The other one is waited for still, and may die as well.
            others[1 - dead].take().unwrap().process.kill();
            while one.ask("select 100000") != (1 - dead).to_string() {}
            one.ends();
            two.end();
        }
    }
}

/// The system watches 128 at most.
#[test]
fn more_buffers_than_can_be_watched() {
    let _dog = common::watchdog();
    let names: Vec<Name> = (0..130).map(|_| Name::new("many")).collect();
    let buffers: Vec<Buffer> =
        names.iter().map(|name| Buffer::options().capacity(1 << 20).open(name).unwrap()).collect();
    for count in [127, 128, 129, 130] {
        let ready = Barrier::new(2);
        std::thread::scope(|scope| {
            let (buffers, ready) = (&buffers[..count], &ready);
            scope.spawn(move || {
                let contexts: Vec<_> = buffers.iter().map(|buffer| buffer.context().unwrap()).collect();
                let mut rxs: Vec<_> = contexts.iter().map(|ctx| ctx.consumer::<u64>(1).unwrap()).collect();
                let mut select = Select::new().wait_strategy(WaitStrategy::Block);
                rxs.iter().for_each(|rx| _ = select.recv(rx));
                assert_eq!(select.ready_timeout(Duration::from_millis(20)), None);
                for i in [0, 1, count / 2, count - 1] {
                    ready.wait();
                    assert_eq!(select.ready(), Some(i));
                    assert_eq!(*rxs[i].try_recv().unwrap(), 5);
                    assert_eq!((select.ready(), select.ready()), (Some(i), Some(i)), "its producer has left");
                    select.remove(i);
                }
            });
            for i in [0, 1, count / 2, count - 1] {
                let ctx = buffers[i].context().unwrap();
                let mut tx = ctx.producer::<u64>(1).unwrap();
                ready.wait();
                std::thread::sleep(Duration::from_millis(10));
                tx.send(ctx.record(5).unwrap()).unwrap();
            }
        });
    }
    for (buffer, name) in buffers.into_iter().zip(&names) {
        work::end(buffer, name);
    }
}

/// The sending end of a channel of one kind or the other.
enum Tx {
    Records(Channel<u64, Producer>),
    Values(ValueChannel<u64, Producer>),
}

impl Tx {
    fn new(ctx: &ThreadContext, id: i64) -> Self {
        match id % 2 {
            0 => Self::Records(ctx.producer_with(id, &slots(4)).unwrap()),
            _ => Self::Values(ctx.value_producer_with(id, &slots(4)).unwrap()),
        }
    }

    fn add_to(&self, select: &mut Select) -> usize {
        match self {
            Self::Records(tx) => select.send(tx),
            Self::Values(tx) => select.send(tx),
        }
    }

    fn sends(&mut self, ctx: &ThreadContext, value: u64) -> bool {
        match self {
            Self::Records(tx) => tx.try_send(ctx.record(value).unwrap()).is_ok(),
            Self::Values(tx) => tx.try_send(value).is_ok(),
        }
    }
}

/// The receiving end.
enum Rx {
    Records(Channel<u64, Consumer>),
    Values(ValueChannel<u64, Consumer>),
}

impl Rx {
    fn new(ctx: &ThreadContext, id: i64) -> Self {
        match id % 2 {
            0 => Self::Records(ctx.consumer_with(id, &slots(4)).unwrap()),
            _ => Self::Values(ctx.value_consumer_with(id, &slots(4)).unwrap()),
        }
    }

    fn add_to(&self, select: &mut Select) -> usize {
        match self {
            Self::Records(rx) => select.recv(rx),
            Self::Values(rx) => select.recv(rx),
        }
    }

    fn receives(&mut self) -> Option<u64> {
        match self {
            Self::Records(rx) => rx.try_recv().ok().map(|record| *record),
            Self::Values(rx) => rx.try_recv().ok(),
        }
    }
}

/// A channel as it should be.
#[derive(Default)]
struct Twin {
    queued: usize,
    sent: u64,
    received: u64,
    tx: Option<(Tx, usize)>,
    rx: Option<(Rx, usize)>,
    had_tx: bool,
    had_rx: bool,
}

impl Twin {
    fn receives(&self) -> bool {
        self.queued > 0 || self.had_tx && self.tx.is_none()
    }

    fn sends(&self) -> bool {
        self.queued < 4 || self.had_rx && self.rx.is_none()
    }
}

#[test]
fn what_is_ready_is_what_a_twin_says() {
    let _dog = common::watchdog();
    let name = Name::new("twin");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rng = work::Rng::new(1);
    let mut select = Select::new();
    let mut twins: Vec<Twin> = (0..5).map(|_| Twin::default()).collect();
    for _ in 0..20_000 {
        let id = rng.below(5);
        let twin = &mut twins[id as usize];
        match rng.below(12) {
            0 if twin.tx.is_none() => {
                let tx = Tx::new(&ctx, id as i64);
                let number = tx.add_to(&mut select);
                (twin.tx, twin.had_tx) = (Some((tx, number)), true);
            }
            1 if twin.rx.is_none() => {
                let rx = Rx::new(&ctx, id as i64);
                let number = rx.add_to(&mut select);
                (twin.rx, twin.had_rx) = (Some((rx, number)), true);
            }
            2 => twin.tx = None,
            3 => twin.rx = None,
            4..=7 => {
                if let Some((tx, _)) = &mut twin.tx {
                    let could = twin.queued < 4 && !(twin.had_rx && twin.rx.is_none());
                    assert_eq!(tx.sends(&ctx, twin.sent), could);
                    (twin.queued, twin.sent) = (twin.queued + usize::from(could), twin.sent + u64::from(could));
                }
            }
            _ => {
                if let Some((rx, _)) = &mut twin.rx {
                    assert_eq!(rx.receives(), (twin.queued > 0).then_some(twin.received));
                    let one = twin.queued > 0;
                    (twin.queued, twin.received) = (twin.queued - usize::from(one), twin.received + u64::from(one));
                }
            }
        }
        if twin.tx.is_none() && twin.rx.is_none() {
            // The channel is gone, with all that was in it.
            *twin = Twin::default();
        }
        let ready = twins.iter().flat_map(|twin| {
            let tx = twin.tx.as_ref().filter(|_| twin.sends()).map(|(_, number)| *number);
            let rx = twin.rx.as_ref().filter(|_| twin.receives()).map(|(_, number)| *number);
            [tx, rx].into_iter().flatten()
        });
        let ready: BTreeSet<usize> = ready.collect();
        // Each of them once, and then all over again.
        let told: Vec<usize> = (0..2 * ready.len()).map(|_| select.ready_timeout(LONG).unwrap()).collect();
        assert_eq!(told[..ready.len()].iter().copied().collect::<BTreeSet<_>>(), ready);
        assert_eq!(told[..ready.len()], told[ready.len()..]);
        assert_eq!(select.try_ready().is_none(), ready.is_empty());
    }
    drop((twins, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_busy_end_starves_no_other() {
    let name = Name::new("fair");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let ends: Vec<_> = (0..4).map(|id| (ctx.producer::<u64>(id).unwrap(), ctx.consumer::<u64>(id).unwrap())).collect();
    let (mut outputs, mut inputs): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    let mut select = Select::new();
    for rx in &inputs {
        select.recv(rx);
    }
    // Always full, but for one that has something now and then.
    let mut told = [0_u32; 4];
    for round in 0..3000 {
        for (id, tx) in outputs.iter_mut().enumerate() {
            if tx.is_empty() && (id != 2 || round % 10 == 0) {
                tx.send(ctx.record(round).unwrap()).unwrap();
            }
        }
        let number = select.ready().unwrap();
        told[number] += 1;
        if number == 2 {
            assert_eq!(
                *inputs[2].try_recv().unwrap() / 10,
                round / 10,
                "in the same ten, so after all others at most once"
            );
        }
    }
    assert_eq!(told[2], 300);
    assert!([0, 1, 3].iter().all(|i| told[*i].abs_diff(900) <= 1), "{told:?}");
    drop((outputs, inputs, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_thousand_ends_are_one_sleep() {
    let _dog = common::watchdog();
    let name = Name::new("thousand");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    for (ends, strategy) in [(128, WaitStrategy::Block), (1000, WaitStrategy::Block), (1000, WaitStrategy::Adaptive)] {
        let ready = Barrier::new(2);
        std::thread::scope(|scope| {
            let (buffer, ready) = (&buffer, &ready);
            let other = scope.spawn(move || {
                let ctx = buffer.context().unwrap();
                let mut inputs: Vec<_> = (0..ends).map(|id| ctx.consumer_with::<u64>(id, &slots(2)).unwrap()).collect();
                let mut full: Vec<_> =
                    (0..ends).map(|id| ctx.producer_with::<u64>(ends + id, &slots(2)).unwrap()).collect();
                let mut select = Select::new().wait_strategy(strategy);
                for tx in &mut full {
                    while tx.try_send(ctx.record(1).unwrap()).is_ok() {}
                    select.send(tx);
                }
                for rx in &inputs {
                    select.recv(rx);
                }
                ready.wait();
                let (mut received, mut sent) = (0, 0);
                while let Some(number) = select.ready() {
                    let end = number % ends as usize;
                    if number < ends as usize {
                        match full[end].try_send(ctx.record(1).unwrap()) {
                            Ok(()) => sent += 1,
                            Err(TrySendError::Disconnected(_)) => drop(select.remove(number)),
                            Err(error) => panic!("{error}"),
                        }
                    } else {
                        match inputs[end].try_recv() {
                            Ok(record) => {
                                assert_eq!(*record, end as u64);
                                received += 1;
                            }
                            Err(error) => {
                                assert_eq!(error, GONE);
                                select.remove(number);
                            }
                        }
                    }
                }
                (received, sent)
            });
            ready.wait();
            let mut outputs: Vec<_> = (0..ends).map(|id| ctx.producer_with::<u64>(id, &slots(2)).unwrap()).collect();
            let mut room: Vec<_> = (0..ends).map(|id| ctx.consumer::<u64>(ends + id).unwrap()).collect();
            let mut rng = work::Rng::new(1);
            for i in 0..300_u64 {
                let end = rng.below(ends as u64);
                if i % 2 == 0 {
                    outputs[end as usize].send(ctx.record(end).unwrap()).unwrap();
                } else {
                    room[end as usize].recv().unwrap();
                }
                if i % 8 == 0 {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
            // What was freed has been filled again, before it hears that nobody will ever free more.
            while room.iter().any(|rx| rx.len() < 2) {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop((outputs, room));
            assert_eq!(other.join().unwrap(), (150, 150));
        });
    }
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn many_threads_sleep_over_several_ends() {
    let _dog = common::watchdog();
    let name = Name::new("threads");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    const THREADS: i64 = 150;
    let ready = Barrier::new(THREADS as usize + 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (buffer, ready) = (&buffer, &ready);
            scope.spawn(move || {
                let ctx = buffer.context().unwrap();
                let mut ends: Vec<_> =
                    (0..3).map(|i| ctx.consumer_with::<i64>(thread * 3 + i, &slots(2)).unwrap()).collect();
                let mut select = Select::new().wait_strategy(WaitStrategy::Block);
                ends.iter().for_each(|rx| _ = select.recv(rx));
                ready.wait();
                for round in 0..3 {
                    let number = select.ready().unwrap();
                    assert_eq!(number as i64, (thread + round) % 3);
                    assert_eq!(*ends[number].try_recv().unwrap(), thread);
                }
            });
        }
        ready.wait();
        let mut outputs: Vec<_> = (0..3 * THREADS).map(|id| ctx.producer_with::<i64>(id, &slots(2)).unwrap()).collect();
        for round in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            for thread in 0..THREADS {
                let id = thread * 3 + (thread + round) % 3;
                outputs[id as usize].send(ctx.record(thread).unwrap()).unwrap();
            }
            // In the order they were sent, for who has not come yet.
            while outputs.iter().any(|tx| !tx.is_empty()) {
                std::thread::yield_now();
            }
        }
    });
    drop(ctx);
    work::end(buffer, &name);
}

#[test]
fn a_closed_context() {
    let _dog = common::watchdog();
    let name = Name::new("closed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut rx, mut tx) = (ctx.consumer::<u64>(1).unwrap(), ctx.producer::<u64>(2).unwrap());
    let record = ctx.record(1).unwrap();
    let mut select = Select::new();
    select.recv(&rx);
    drop(ctx);
    assert_eq!(select.ready(), Some(0));
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::ContextClosed));
    select.send(&tx);
    assert_eq!([select.ready(), select.ready()], [Some(1), Some(0)]);
    assert!(matches!(tx.try_send(record), Err(TrySendError::ContextClosed(_))));
    // A new context's ends go with them.
    let ctx = buffer.context().unwrap();
    let mut rx3 = ctx.consumer::<u64>(3).unwrap();
    assert_eq!(select.recv(&rx3), 2);
    ctx.producer::<u64>(3).unwrap().send(ctx.record(5).unwrap()).unwrap();
    assert_eq!((0..3).filter_map(|_| select.ready()).sum::<usize>(), 3);
    assert_eq!(*rx3.try_recv().unwrap(), 5);
    drop((rx, tx, rx3, ctx));
    work::end(buffer, &name);
}

#[test]
fn a_busy_end_hides_no_dead_peer() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _tx = ctx.producer::<u64>(1).unwrap();
        std::thread::sleep(LONG);
        return;
    }
    let name = Name::new("busy");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let (mut tx, mut busy) = (ctx.producer::<u64>(2).unwrap(), ctx.consumer::<u64>(2).unwrap());
    let mut select = Select::new();
    let (dead, busy_number) = (select.recv(&rx), select.recv(&busy));
    for wait in [Duration::ZERO, Duration::from_millis(20)] {
        let mut child = common::start("a_busy_end_hides_no_dead_peer", "victim", &name);
        assert!(rx.wait_for_producer(LONG).is_ok());
        child.kill();
        // Always something there, or always soon.
        loop {
            tx.send(ctx.record(1).unwrap()).unwrap();
            match select.ready_timeout(LONG).unwrap() {
                number if number == busy_number => drop(busy.try_recv().unwrap()),
                number => break assert_eq!(number, dead),
            }
            std::thread::sleep(wait);
        }
        assert_eq!(rx.try_recv().unwrap_err(), GONE);
        assert_eq!(busy.try_iter().count(), 1);
    }
    drop((rx, tx, busy, ctx));
    work::end(buffer, &name);
}

#[test]
fn polling_and_short_waits_see_the_killed() {
    let _dog = common::watchdog();
    if let Some((_, buffer)) = common::role() {
        let ctx = Buffer::open(&buffer).unwrap().context().unwrap();
        let _ends = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(2).unwrap());
        let mut ready = ctx.producer::<u64>(3).unwrap();
        ready.send(ctx.record(1).unwrap()).unwrap();
        std::thread::sleep(LONG);
        return;
    }
    let name = Name::new("killed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let mut tx = ctx.producer_with::<u64>(2, &slots(2)).unwrap();
    let mut select = Select::new();
    select.recv(&rx);
    select.send(&tx);
    for round in 0..3 {
        while tx.len() < 2 {
            tx.try_send(ctx.record(1).unwrap()).unwrap();
        }
        let mut child = common::start("polling_and_short_waits_see_the_killed", "victim", &name);
        let mut ready = ctx.consumer::<u64>(3).unwrap();
        assert_eq!(*ready.recv_timeout(LONG).unwrap(), 1);
        assert_eq!(select.ready_timeout(Duration::from_millis(300)), None);
        child.kill();
        let number = loop {
            let found = match round {
                0 => select.try_ready(),
                1 => select.ready_timeout(Duration::from_millis(20)),
                _ => select.ready(),
            };
            if let Some(number) = found {
                break number;
            }
        };
        // Both are, now that it is reaped.
        common::give_back_the_rest(&buffer);
        assert!(number < 2 && select.try_ready() == Some(1 - number));
        assert_eq!(rx.try_recv().unwrap_err(), GONE);
        assert!(matches!(tx.try_send(ctx.record(1).unwrap()), Err(TrySendError::Disconnected(_))));
    }
    drop((rx, tx, ctx));
    work::end(buffer, &name);
}

/// A Select that knows which channel has which number.
struct Numbered {
    select: Select,
    ids: std::collections::BTreeMap<usize, usize>,
}

impl Numbered {
    fn over(rxs: &[Channel<u64, Consumer>], ids: impl Iterator<Item = usize>, strategy: WaitStrategy) -> Self {
        let mut this = Self { select: Select::new().wait_strategy(strategy), ids: Default::default() };
        ids.for_each(|id| this.add(id, &rxs[id]));
        this
    }

    fn add(&mut self, id: usize, rx: &Channel<u64, Consumer>) {
        self.ids.insert(self.select.recv(rx), id);
    }
}

/// More ends than a Select looks at each time are used in every other way between its waits: waited for alone, by a second Select, by one
/// of few ends, by a short-lived one, by a future, dropped and attached again. Each takes the Select's name off some bells, or finds
/// hints that are the Select's. Nobody looks around here, so what is not told is never seen.
fn many_used_in_every_way(test: &str, fenced: bool) {
    const ENDS: usize = 150;
    const DONE: u64 = u64::MAX;
    let _dog = common::watchdog();
    let slow = if cfg!(debug_assertions) { 1 } else { 3 };
    if let Some((role, name)) = common::role() {
        let ctx = Buffer::open(&name).unwrap().context().unwrap();
        let mut acks = ctx.producer::<u64>(1000).unwrap();
        let mut rxs: Vec<_> = (0..ENDS as i64).map(|id| ctx.consumer_with::<u64>(id, &slots(2)).unwrap()).collect();
        let mut rng = work::Rng::new(role.len() as u64);
        let mut all = Numbered::over(&rxs, 0..ENDS, WaitStrategy::Adaptive);
        let mut odd = Numbered::over(&rxs, (0..ENDS).filter(|id| id % 2 == 1), WaitStrategy::Block);
        let mut few = Numbered::over(&rxs, 0..20, WaitStrategy::Block);
        let short = |rng: &mut work::Rng| Duration::from_micros(rng.below(300));
        loop {
            let end = rng.below(ENDS as u64) as usize;
            let mut pass_on = |record: ipc_buffer::Record<u64>| {
                let number = if *record == DONE { DONE - 1 } else { *record };
                acks.send(ctx.record(number).unwrap()).unwrap();
            };
            let found = match rng.below(14) {
                0..5 => all.select.ready().map(|number| all.ids[&number]),
                5 => all.select.ready_timeout(short(&mut rng)).map(|number| all.ids[&number]),
                6 => odd.select.ready_timeout(short(&mut rng)).map(|number| odd.ids[&number]),
                7 => few.select.ready_timeout(short(&mut rng)).map(|number| few.ids[&number]),
                8 => {
                    let mut passing = Numbered::over(&rxs, 0..ENDS, WaitStrategy::Block);
                    passing.select.ready_timeout(short(&mut rng)).map(|number| passing.ids[&number])
                }
                9 => match rxs[end].recv_timeout(short(&mut rng)) {
                    Ok(record) => {
                        pass_on(record);
                        None
                    }
                    Err(_) => None,
                },
                10 => all.select.try_ready().map(|number| all.ids[&number]),
                11 => {
                    // Its number is the next one's, which is at once the same end.
                    let options = slots(2);
                    let id = end as i64;
                    drop(std::mem::replace(&mut rxs[end], ctx.consumer_with::<u64>(2000, &options).unwrap()));
                    rxs[end] = ctx.consumer_with::<u64>(id, &options).unwrap();
                    all.add(end, &rxs[end]);
                    if end % 2 == 1 {
                        odd.add(end, &rxs[end]);
                    }
                    if end < 20 {
                        few.add(end, &rxs[end]);
                    }
                    None
                }
                #[cfg(feature = "async")]
                12 => {
                    let mut future = rxs[end].recv_async();
                    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                    let mut polled = None;
                    for _ in 0..rng.below(4) {
                        match std::future::Future::poll(std::pin::Pin::new(&mut future), &mut cx) {
                            std::task::Poll::Ready(record) => polled = Some(record.unwrap()),
                            std::task::Poll::Pending => std::thread::sleep(short(&mut rng)),
                        }
                        if polled.is_some() {
                            break;
                        }
                    }
                    drop(future);
                    if let Some(record) = polled {
                        pass_on(record);
                    }
                    None
                }
                _ => {
                    let number = all.ids.iter().find(|(_, id)| **id == end).map(|(number, _)| *number).unwrap();
                    if rng.below(2) == 0 {
                        all.select.remove(number);
                        all.ids.remove(&number);
                        all.add(end, &rxs[end]);
                    }
                    None
                }
            };
            let Some(record) = found.and_then(|id| rxs[id].try_recv().ok()) else { continue };
            if *record == DONE {
                return acks.send(record).unwrap();
            }
            acks.send(record).unwrap();
        }
    }
    let name = Name::new("every-way");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let fenced = fenced.then_some(("IPC_BUFFER_NO_MEMBARRIER", "1"));
    let environment: Vec<_> = [Some(("IPC_BUFFER_TICK_MS", "3600000")), fenced].into_iter().flatten().collect();
    let child = common::start_with(test, "one", &name, &environment);
    let mut txs: Vec<_> = (0..ENDS as i64).map(|id| ctx.producer_with::<u64>(id, &slots(2)).unwrap()).collect();
    let mut acks = ctx.consumer::<u64>(1000).unwrap();
    assert!(txs.iter().all(|tx| tx.wait_for_consumer(LONG).is_ok()));
    let mut rng = work::Rng::new(7);
    let mut send = |end: usize, number: u64| {
        let mut record = ctx.record(number).unwrap();
        // Whose consumer is just away.
        while let Err(error) = txs[end].send(record) {
            record = match error {
                ipc_buffer::SendError::Disconnected(back) => back,
                other => panic!("{other}"),
            };
        }
    };
    for round in 0..700 * slow {
        // More than there is room for hints, now and then.
        let burst = if round % 50 == 0 { 40 } else { 1 + rng.below(3) };
        let mut sent = std::collections::BTreeSet::new();
        for number in 0..burst {
            send(rng.below(ENDS as u64) as usize, round * 100 + number);
            sent.insert(round * 100 + number);
            while let Ok(record) = acks.try_recv() {
                assert!(sent.remove(&*record));
            }
        }
        while !sent.is_empty() {
            let ack = acks.recv_timeout(Duration::from_secs(20)).expect("a lost wake-up");
            assert!(sent.remove(&*ack));
        }
        if rng.below(8) == 0 {
            std::thread::sleep(Duration::from_micros(rng.below(400)));
        }
    }
    // Taken by a Select, or the other side says so.
    loop {
        send(0, DONE);
        if *acks.recv_timeout(Duration::from_secs(20)).expect("a lost wake-up") == DONE {
            break;
        }
    }
    child.success();
    drop((txs, acks, ctx));
    work::end(buffer, &name);
}

#[test]
fn many_used_in_every_way_with_heavy_barriers() {
    many_used_in_every_way("many_used_in_every_way_with_heavy_barriers", false);
}

#[test]
fn many_used_in_every_way_with_fences() {
    many_used_in_every_way("many_used_in_every_way_with_fences", true);
}
