//! Allocate, write the first word, drop: the same block again and again.

use super::{ALLOCATORS, HeapWork, solos};
use crate::harness::{Case, Work};
use crate::heaps::{Block, Heap};

pub const B48: Case = case::<6>("alloc_free_48B");
pub const KIB1: Case = case::<128>("alloc_free_1KiB");
pub const KIB64: Case = case::<8192>("alloc_free_64KiB");

const fn case<const W: usize>(name: &'static str) -> Case {
    Case {
        name,
        about: "one thread: allocate, write the first word, drop",
        entrants: solos::<AllocFree<W>>,
        against: ALLOCATORS,
    }
}

struct AllocFree<const W: usize>;

impl<const W: usize> HeapWork for AllocFree<W> {
    fn on<H: Heap>(heap: H) -> impl Work + 'static {
        move |ops: u64| {
            let one = |i| {
                let mut block = heap.fixed::<W>();
                block.put(i);
                u64::from(block.get() == i)
            };
            (0..ops).map(one).sum()
        }
    }
}
