//! Two processes (rivals: threads) on one size class at once, in bursts longer than any cache of free blocks.

use super::ALLOCATORS;
use crate::harness::{Case, Entry, Lab, Work};
use crate::heaps::{self, Allocator, Block, Heap, Ours, Rival};
use crate::side::{Far, Pair, Span};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;

pub const CASE: Case = Case {
    name: "alloc_two",
    about: "two sides at once, each: allocate 256 blocks of 48 B, write the first words, free them in the same order; per block",
    contenders,
    far,
    against: ALLOCATORS,
};

const BURST: usize = 256;

struct Bursts<H: Heap> {
    // Before the heap: dropped first.
    blocks: Vec<H::Fixed<6>>,
    heap: H,
}

impl<H: Heap> Bursts<H> {
    fn new(heap: H) -> Self {
        Self { blocks: Vec::with_capacity(BURST), heap }
    }
}

impl<H: Heap> Work for Bursts<H> {
    fn run(&mut self, ops: u64) -> u64 {
        let mut good = 0;
        let mut next = 0;
        while next < ops {
            let end = ops.min(next + BURST as u64);
            for i in next..end {
                let mut block = self.heap.fixed();
                block.put(i);
                self.blocks.push(block);
            }
            for (i, mut block) in (next..end).zip(self.blocks.drain(..)) {
                good += u64::from(block.get() == i);
            }
            next = end;
        }
        good
    }
}

fn contenders(lab: &Lab) -> Vec<Entry> {
    let name = lab.name();
    let ours = Ours::create(&name);
    let process = Far::process(lab.cores[1], lab.case, "ours", &name);
    ours.hide();
    heaps::check(&ours);
    vec![
        ("ours", Box::new(Pair::new(process, Box::new(Bursts::new(ours)), Span::Each))),
        threads("snmalloc", lab, SnMalloc),
        threads("mimalloc", lab, MiMalloc),
    ]
}

fn threads<A: Allocator>(name: &'static str, lab: &Lab, allocator: A) -> Entry {
    let far = Far::thread(lab.cores[1], || Box::new(Bursts::new(Rival(A::IT))));
    let heap = Rival(allocator);
    heaps::check(&heap);
    (name, Box::new(Pair::new(far, Box::new(Bursts::new(heap)), Span::Each)))
}

fn far(_contender: &str, name: &str) -> Box<dyn Work> {
    Box::new(Bursts::new(Ours::open(name)))
}
