//! After Larson and Krishnan's server: ten thousand live blocks, one picked at random is freed and another one allocated.
//!
//! Sizes are from 16 B to 64 KiB with every size's logarithm as likely as another's, so that small and large classes all get
//! their share (uniform sizes would be 32 KiB on average, and nothing but large ones).

use super::{ALLOCATORS, HeapWork, solos};
use crate::harness::{Case, Work};
use crate::heaps::{Block, Heap, Random};
use std::mem;

pub const CASE: Case = Case {
    name: "alloc_mix",
    about: "one thread: free a random one of 10^4 live blocks, allocate one of 16 B to 64 KiB, write the first word",
    entrants: solos::<Mix>,
    against: ALLOCATORS,
};

const LIVE: usize = 10_000;
const SIZES: usize = 4_096;

struct Mix;

struct Slots<H: Heap> {
    // Before the heap: dropped first.
    blocks: Vec<H::Sized>,
    heap: H,
    words: Vec<usize>,
    random: Random,
}

impl HeapWork for Mix {
    fn on<H: Heap>(heap: H) -> impl Work + 'static {
        let mut random = Random::new();
        let word_count = |_| {
            let part = random.below(1 << 20) as f64 / f64::from(1 << 20);
            let bytes = 16.0 * 4096_f64.powf(part);
            (bytes as usize).div_ceil(8)
        };
        let words: Vec<usize> = (0..SIZES).map(word_count).collect();
        let first = |i: usize| {
            let mut block = heap.sized(words[i % SIZES]);
            block.put(i as u64);
            block
        };
        let blocks = (0..LIVE).map(first).collect();
        Slots { blocks, heap, words, random }
    }
}

impl<H: Heap> Work for Slots<H> {
    fn run(&mut self, ops: u64) -> u64 {
        let mut good = 0;
        for _ in 0..ops {
            let words = self.words[self.random.next() as usize % SIZES];
            let i = self.random.below(LIVE);
            let mut block = self.heap.sized(words);
            block.put(i as u64);
            let mut old = mem::replace(&mut self.blocks[i], block);
            good += u64::from(old.get() == i as u64);
        }
        good
    }
}
