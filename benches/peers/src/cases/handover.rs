//! One record sent there and back, again and again: what it costs to hand over 64 MiB, against 64 bytes.
//!
//! The first word is read and written on each side; all of the record once, before anything is timed. memcpy is what one copy
//! of it would cost.

use crate::floor;
use crate::harness::{Case, Contender, Entrant, Lab, Trips, Work};
use crate::heaps::{Block, Heap, Ours};
use crate::side::{Pair, Span};
use crate::words;
use ipc_buffer::{Channel, Consumer, Producer, Record, TryRecvError};
use std::hint::spin_loop;

pub const CASE: Case = Case {
    name: "handover_64MiB",
    about: "one record of 64 MiB there and back, not copied; against one of 64 B",
    entrants: || {
        vec![
            Entrant::new("ours", near::<LARGE>).with_far(far),
            Entrant::new("64 B record", near::<SMALL>).with_far(far),
            floor::memcpy::<LARGE>(),
        ]
    },
    against: &[&["64 B record"], &[floor::PING_PONG]],
};

const LARGE: usize = (64 << 20) / size_of::<u64>();
const SMALL: usize = 64 / size_of::<u64>();
const THERE: i64 = 1;
const BACK: i64 = 2;
/// In all words but the first.
const FILLING: u64 = 0x0123_4567_89ab_cdef;

/// One side.
struct Side {
    // Before the buffer: dropped first.
    tx: Channel<[u64], Producer>,
    rx: Channel<[u64], Consumer>,
    ours: Ours,
    has_checked: bool,
}

impl Side {
    fn new(ours: Ours, there: i64, back: i64) -> Self {
        let tx = ours.ctx.producer(there).expect("the producer's role");
        let rx = ours.ctx.consumer(back).expect("the consumer's role");
        Self { tx, rx, ours, has_checked: false }
    }

    #[inline(always)]
    fn send(&mut self, record: Record<[u64]>) {
        self.tx.try_send(record).expect("a free slot");
    }

    /// The record; the first time, with all its words looked at.
    #[inline(always)]
    fn recv(&mut self) -> Record<[u64]> {
        let record = loop {
            match self.rx.try_recv() {
                Ok(record) => break record,
                Err(TryRecvError::Empty) => spin_loop(),
                Err(error) => panic!("{error}"),
            }
        };
        if !self.has_checked {
            assert_eq!(words::read(&record[1..]), FILLING, "the record is not what was sent");
            self.has_checked = true;
        }
        record
    }
}

fn near<const W: usize>(lab: &Lab) -> Box<dyn Contender> {
    let name = lab.name();
    let ours = Ours::create(&name);
    let mut record = ours.sized(W);
    record.fill(FILLING);
    let mut side = Side::new(ours, THERE, BACK);
    let far = lab.far_process(&name);
    side.ours.hide();
    // Before the side: dropped first.
    let mut home = Some(record);
    let there_and_back = move |i| {
        let mut record = home.take().expect("it came back");
        record[0] = i;
        side.send(record);
        home.insert(side.recv())[0] == i + 1
    };
    Box::new(Pair::new(far, Box::new(Trips(there_and_back)), Span::Flow))
}

/// Adds one to the first word.
fn far(key: &str) -> Box<dyn Work> {
    let mut side = Side::new(Ours::open(key), BACK, THERE);
    Box::new(move |ops: u64| {
        for _ in 0..ops {
            let mut record = side.recv();
            record[0] += 1;
            side.send(record);
        }
        ops
    })
}
