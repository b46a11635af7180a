//! A million live blocks: one picked at random is freed and another one allocated, so nothing is in the core's caches.

use super::{ALLOCATORS, HeapWork, solos};
use crate::harness::{Case, Work};
use crate::heaps::{Block, Heap, Random};
use std::mem;

pub const CASE: Case = Case {
    name: "alloc_live_1e6",
    about: "one thread: free a random one of 10^6 live blocks of 48 B, allocate one, write the first word",
    entrants: solos::<Live>,
    against: ALLOCATORS,
};

const LIVE: usize = 1_000_000;

struct Live;

struct Slots<H: Heap> {
    // Before the heap: dropped first.
    blocks: Vec<H::Fixed<6>>,
    heap: H,
    random: Random,
}

impl HeapWork for Live {
    fn on<H: Heap>(heap: H) -> impl Work + 'static {
        let first = |i: usize| {
            let mut block = heap.fixed();
            block.put(i as u64);
            block
        };
        let blocks = (0..LIVE).map(first).collect();
        let mut slots = Slots { blocks, heap, random: Random::new() };
        // Old age: every block has moved about three times.
        slots.run(3 * LIVE as u64);
        slots
    }
}

impl<H: Heap> Work for Slots<H> {
    fn run(&mut self, ops: u64) -> u64 {
        let mut good = 0;
        for _ in 0..ops {
            let i = self.random.below(LIVE);
            let mut block = self.heap.fixed();
            block.put(i as u64);
            let mut old = mem::replace(&mut self.blocks[i], block);
            good += u64::from(old.get() == i as u64);
        }
        good
    }
}
