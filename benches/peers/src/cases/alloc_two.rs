//! Two processes (rivals: threads) on one size class at once, in bursts longer than any cache of free blocks.

use super::ALLOCATORS;
use crate::harness::{Case, Contender, Entrant, Lab, Work};
use crate::heaps::{self, Allocator, Block, Heap, Ours, Rival};
use crate::side::{Far, Pair, Span};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;

pub const CASE: Case = Case {
    name: "alloc_two",
    about: "two sides at once, each: allocate 256 blocks of 48 B, write the first words, free them in the same order; per block",
    entrants: || {
        vec![
            Entrant::new("ours", processes).with_far(|key| Box::new(Bursts::new(Ours::open(key)))),
            Entrant::new("snmalloc", threads::<SnMalloc>),
            Entrant::new("mimalloc", threads::<MiMalloc>),
        ]
    },
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

fn processes(lab: &Lab) -> Box<dyn Contender> {
    let name = lab.name();
    let ours = Ours::create(&name);
    let far = lab.far_process(&name);
    ours.hide();
    heaps::check(&ours);
    Box::new(Pair::new(far, Box::new(Bursts::new(ours)), Span::Each))
}

fn threads<A: Allocator>(lab: &Lab) -> Box<dyn Contender> {
    let far = Far::thread(lab.cores[1], || Box::new(Bursts::new(Rival(A::IT))));
    let heap = Rival(A::IT);
    heaps::check(&heap);
    Box::new(Pair::new(far, Box::new(Bursts::new(heap)), Span::Each))
}
