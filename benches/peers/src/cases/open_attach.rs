//! From nothing to the first message, under a fresh name each time. Both processes run already, and take turns: the far side
//! opens and attaches its consumer, then the near one opens, attaches its producer and sends. Leaving again is not timed.

use crate::harness::{Case, Contender, Entrant, Lab, TimedTrips, Work};
use crate::links::{Rx, Tx};
use crate::rivals::ice;
use crate::shared::Shared;
use crate::side::{Pair, Span};
use ipc_buffer::{Buffer, Channel, Consumer, Producer, ThreadContext};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

pub const CASE: Case = Case {
    name: "open_attach",
    about: "open, attach one channel on both sides, first message of 8 B; iceoryx2: node, service, ports",
    entrants: || vec![entrant::<Ours>(), entrant::<Iceoryx>()],
    against: &[&["iceoryx2"]],
};

/// Opens and attaches one side of what is called `name`, from nothing.
trait Door: 'static {
    const NAME: &'static str;
    fn rx(name: &str) -> impl Rx;
    fn tx(name: &str) -> impl Tx;
}

struct Ours;

struct Iceoryx;

/// One side of ours. Drops its endpoint before the context and the buffer.
struct End<R: ipc_buffer::Role>(Channel<u64, R>, ThreadContext, #[allow(dead_code)] Buffer);

impl Tx for End<Producer> {
    fn send(&mut self, value: u64) {
        self.0.send(self.1.record(value).expect("a record")).expect("a send");
    }
}

impl Rx for End<Consumer> {
    fn recv(&mut self) -> u64 {
        loop {
            if let Ok(record) = self.0.try_recv() {
                return *record;
            }
            spin_loop();
        }
    }
}

impl Door for Ours {
    const NAME: &'static str = "ours";

    fn rx(name: &str) -> impl Rx {
        let buffer = Buffer::open(name).expect("the buffer");
        let ctx = buffer.context().expect("a context");
        End(ctx.consumer(1).expect("the consumer's role"), ctx, buffer)
    }

    fn tx(name: &str) -> impl Tx {
        let buffer = Buffer::open(name).expect("the buffer");
        let ctx = buffer.context().expect("a context");
        End(ctx.producer(1).expect("the producer's role"), ctx, buffer)
    }
}

impl Door for Iceoryx {
    const NAME: &'static str = "iceoryx2";

    fn rx(name: &str) -> impl Rx {
        ice::SampleRx::<1>::new(&ice::node(), name)
    }

    fn tx(name: &str) -> impl Tx {
        ice::SampleTx::<1>::new(&ice::node(), name)
    }
}

fn entrant<D: Door>() -> Entrant {
    Entrant::new(D::NAME, near::<D>).with_far(far::<D>)
}

/// Where the far side is in a turn; its word counts these, three a turn.
#[derive(Debug, Clone, Copy)]
enum Step {
    Attached = 1,
    Received = 2,
    Left = 3,
}

/// What step `step` of the turn numbered `turn` (the first is 0) leaves in the far side's word.
fn count(turn: u32, step: Step) -> u32 {
    turn.wrapping_mul(3).wrapping_add(step as u32)
}

/// Until `word` has come to `value`, or gone on from there.
fn wait(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire).wrapping_sub(value) > u32::MAX / 2 {
        spin_loop();
    }
}

fn name_of(base: &str, turn: u32) -> String {
    format!("{base}-{turn}")
}

struct Near<D> {
    /// Its words: turns begun, by the near side; steps done, by the far one.
    shared: Shared,
    base: String,
    turn: u32,
    counted_ns: u64,
    door: std::marker::PhantomData<D>,
}

impl<D: Door> Near<D> {
    /// One turn; how long it took.
    fn one(&mut self) -> u64 {
        let [begun, done] = self.shared.words();
        let turn = self.turn;
        self.turn = turn.wrapping_add(1);
        let name = name_of(&self.base, turn);
        let start = Instant::now();
        begun.store(self.turn, Ordering::Release);
        wait(done, count(turn, Step::Attached));
        let mut tx = D::tx(&name);
        tx.send(u64::from(turn));
        wait(done, count(turn, Step::Received));
        let ns = start.elapsed().as_nanos() as u64;
        drop(tx);
        wait(done, count(turn, Step::Left));
        ns
    }
}

impl<D: Door> Work for Near<D> {
    fn run(&mut self, ops: u64) -> u64 {
        self.counted_ns = (0..ops).map(|_| self.one()).sum();
        ops
    }

    fn counted_ns(&self) -> Option<u64> {
        Some(self.counted_ns)
    }

    fn trips(&mut self) -> Option<&mut dyn TimedTrips> {
        Some(self)
    }
}

impl<D: Door> TimedTrips for Near<D> {
    fn run_timed(&mut self, ops: u64, each_ns: &mut Vec<u64>) -> u64 {
        each_ns.extend((0..ops).map(|_| self.one()));
        ops
    }
}

fn near<D: Door>(lab: &Lab) -> Box<dyn Contender> {
    let (shared, base) = (Shared::create(), lab.name());
    let far = lab.far_process(&format!("{} {base}", shared.key()));
    let near = Near::<D> { shared, base, turn: 0, counted_ns: 0, door: std::marker::PhantomData };
    Box::new(Pair::new(far, Box::new(near), Span::Near))
}

fn far<D: Door>(key: &str) -> Box<dyn Work> {
    let (shared, base) = key.split_once(' ').expect("a key and a name");
    let (shared, base) = (Shared::open(shared), base.to_owned());
    let mut turn = 0_u32;
    let mut one = move || {
        let [begun, done] = shared.words();
        let name = name_of(&base, turn);
        wait(begun, turn.wrapping_add(1));
        let mut rx = D::rx(&name);
        done.store(count(turn, Step::Attached), Ordering::Release);
        let good = rx.recv() == u64::from(turn);
        done.store(count(turn, Step::Received), Ordering::Release);
        drop(rx);
        done.store(count(turn, Step::Left), Ordering::Release);
        turn = turn.wrapping_add(1);
        u64::from(good)
    };
    Box::new(move |ops: u64| (0..ops).map(|_| one()).sum())
}
