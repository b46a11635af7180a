//! A stream of messages from one side to the other: allocate, write, send, receive, read, free.

use crate::harness::{Case, Entry, Lab, Work};
use crate::heaps::{Allocator, Ours};
use crate::queues::{IceRx, IceTx, OurRx, OurTx, consume, ice_node, produce, rtrb};
use crate::side::{Far, Pair, Span};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;
use std::rc::Rc;

pub const B8: Case = Case {
    name: "stream_8B",
    about: "allocate, write, send, receive, read, free; every byte",
    contenders: contenders::<1>,
    far: far::<1>,
    against: &[&["rtrb+snmalloc"], &["rtrb+mimalloc"], &["iceoryx2"]],
};

fn contenders<const W: usize>(lab: &Lab) -> Vec<Entry> {
    vec![
        flow_of_ours::<W>(lab),
        flow_of_rtrb::<SnMalloc, W>("rtrb+snmalloc", lab),
        flow_of_rtrb::<MiMalloc, W>("rtrb+mimalloc", lab),
        flow_of_ice::<W>(lab),
    ]
}

/// Our channel, between processes.
pub fn flow_of_ours<const W: usize>(lab: &Lab) -> Entry {
    let name = lab.name();
    let ours = Rc::new(Ours::create(&name));
    let tx = OurTx::<W>::new(&ours, 1);
    let far = Far::process(lab.cores[1], lab.case, "ours", &name);
    ours.hide();
    ("ours", Box::new(Pair::new(far, Box::new(produce(tx)), Span::Flow)))
}

/// Boxes through an rtrb ring, between threads.
pub fn flow_of_rtrb<A: Allocator, const W: usize>(name: &'static str, lab: &Lab) -> Entry {
    let (tx, rx) = rtrb::<A, W>();
    let far = Far::thread(lab.cores[1], move || Box::new(consume(rx)));
    (name, Box::new(Pair::new(far, Box::new(produce(tx)), Span::Flow)))
}

/// iceoryx2's publish-subscribe, between processes.
fn flow_of_ice<const W: usize>(lab: &Lab) -> Entry {
    let name = lab.name();
    let tx = IceTx::<W>::new(&ice_node(), &name);
    let far = Far::process(lab.cores[1], lab.case, "iceoryx2", &name);
    ("iceoryx2", Box::new(Pair::new(far, Box::new(produce(tx)), Span::Flow)))
}

pub fn far<const W: usize>(contender: &str, name: &str) -> Box<dyn Work> {
    match contender {
        "ours" => Box::new(consume(OurRx::<W>::new(&Rc::new(Ours::open(name)), 1))),
        _ => Box::new(consume(IceRx::<W>::new(&ice_node(), name))),
    }
}
