//! A message there and one back, each a fresh one, spinning: the latency of a hand-over, twice.

use crate::floor;
use crate::harness::{Case, Entry, Lab, Work};
use crate::heaps::{Allocator, Ours};
use crate::queues::{IceRx, IceTx, OurRx, OurTx, Rx, Tx, echo, ice_node, rtrb};
use crate::side::{Far, Pair, Span};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;
use std::rc::Rc;
use std::time::Instant;

pub const CASE: Case = Case {
    name: "rtt_record",
    about: "spinning round trip of 8 B, a fresh record each way",
    contenders,
    far,
    against: &[&[floor::NAME], &["rtrb+snmalloc"], &["rtrb+mimalloc"], &["iceoryx2"]],
};

const WORDS: usize = 1;
const THERE: i64 = 1;
const BACK: i64 = 2;

struct Trips<T: Tx, R: Rx> {
    tx: T,
    rx: R,
}

impl<T: Tx, R: Rx> Trips<T, R> {
    #[inline(always)]
    fn one(&mut self, i: u64) -> u64 {
        self.tx.send(i);
        u64::from(self.rx.recv() == i)
    }
}

impl<T: Tx, R: Rx> Work for Trips<T, R> {
    fn run(&mut self, ops: u64) -> u64 {
        (0..ops).map(|i| self.one(i)).sum()
    }

    fn makes_trips(&self) -> bool {
        true
    }

    fn trips(&mut self, ops: u64, each_ns: &mut Vec<u64>) -> u64 {
        let mut before = Instant::now();
        let timed = |i| {
            let good = self.one(i);
            let now = Instant::now();
            each_ns.push((now - before).as_nanos() as u64);
            before = now;
            good
        };
        (0..ops).map(timed).sum()
    }
}

fn contenders(lab: &Lab) -> Vec<Entry> {
    vec![ours(lab), rival::<SnMalloc>("rtrb+snmalloc", lab), rival::<MiMalloc>("rtrb+mimalloc", lab), ice(lab)]
}

fn pair(far: Far, tx: impl Tx, rx: impl Rx) -> Box<Pair> {
    Box::new(Pair::new(far, Box::new(Trips { tx, rx }), Span::Flow))
}

fn ours(lab: &Lab) -> Entry {
    let name = lab.name();
    let ours = Rc::new(Ours::create(&name));
    let (tx, rx) = (OurTx::<WORDS>::new(&ours, THERE), OurRx::<WORDS>::new(&ours, BACK));
    let far = Far::process(lab.cores[1], lab.case, "ours", &name);
    ours.hide();
    ("ours", pair(far, tx, rx))
}

fn rival<A: Allocator>(name: &'static str, lab: &Lab) -> Entry {
    let (tx, far_rx) = rtrb::<A, WORDS>();
    let (far_tx, rx) = rtrb::<A, WORDS>();
    let far = Far::thread(lab.cores[1], move || Box::new(echo(far_rx, far_tx)));
    (name, pair(far, tx, rx))
}

fn ice(lab: &Lab) -> Entry {
    let name = lab.name();
    let node = ice_node();
    let tx = IceTx::<WORDS>::new(&node, &format!("{name}-there"));
    let rx = IceRx::<WORDS>::new(&node, &format!("{name}-back"));
    let far = Far::process(lab.cores[1], lab.case, "iceoryx2", &name);
    ("iceoryx2", pair(far, tx, rx))
}

fn far(contender: &str, name: &str) -> Box<dyn Work> {
    match contender {
        "ours" => {
            let ours = Rc::new(Ours::open(name));
            Box::new(echo(OurRx::<WORDS>::new(&ours, THERE), OurTx::<WORDS>::new(&ours, BACK)))
        }
        _ => {
            let node = ice_node();
            let rx = IceRx::<WORDS>::new(&node, &format!("{name}-there"));
            let tx = IceTx::<WORDS>::new(&node, &format!("{name}-back"));
            Box::new(echo(rx, tx))
        }
    }
}
