//! rtrb: boxes through a ring, between threads. The hardest rival: nothing is shared but the process.

use crate::heaps::{Allocator, Block, Heap, Rival, RivalFixed};
use crate::links::{Queue, Rx, Tx, capacity};
use std::hint::spin_loop;
use std::marker::PhantomData;

/// Boxes of `W` words on allocator `A`.
pub struct Boxes<A: Allocator, const W: usize>(PhantomData<A>);

pub struct BoxTx<A: Allocator, const W: usize>(rtrb::Producer<RivalFixed<A, W>>);

pub struct BoxRx<A: Allocator, const W: usize>(rtrb::Consumer<RivalFixed<A, W>>);

impl<A: Allocator, const W: usize> Queue for Boxes<A, W> {
    const NAME: &'static str = A::WITH_RTRB;
    type Tx = BoxTx<A, W>;
    type Rx = BoxRx<A, W>;

    fn new() -> (BoxTx<A, W>, BoxRx<A, W>) {
        let (tx, rx) = rtrb::RingBuffer::new(capacity::<W>());
        (BoxTx(tx), BoxRx(rx))
    }
}

impl<A: Allocator, const W: usize> Tx for BoxTx<A, W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let mut block = Rival(A::IT).fixed::<W>();
        block.fill(value);
        while let Err(rtrb::PushError::Full(back)) = self.0.push(block) {
            block = back;
            spin_loop();
        }
    }
}

impl<A: Allocator, const W: usize> Rx for BoxRx<A, W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.pop() {
                Ok(mut block) => return block.read(),
                Err(_) => spin_loop(),
            }
        }
    }
}
