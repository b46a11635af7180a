//! rtrb: boxes or values through a ring, between threads. The hardest rival: nothing is shared but the process.

use crate::heaps::{Allocator, Block, Heap, Rival, RivalFixed};
use crate::links::{Queue, Rx, Tx, capacity};
use crate::words;
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

/// `W` words by value, in the ring's own slots.
pub struct Values<const W: usize>;

pub struct ValueTx<const W: usize>(rtrb::Producer<[u64; W]>);

pub struct ValueRx<const W: usize>(rtrb::Consumer<[u64; W]>);

impl<const W: usize> Queue for Values<W> {
    const NAME: &'static str = "rtrb by value";
    type Tx = ValueTx<W>;
    type Rx = ValueRx<W>;

    fn new() -> (ValueTx<W>, ValueRx<W>) {
        let (tx, rx) = rtrb::RingBuffer::new(capacity::<W>());
        (ValueTx(tx), ValueRx(rx))
    }
}

impl<const W: usize> Tx for ValueTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        while self.0.push([value; W]).is_err() {
            spin_loop();
        }
    }
}

impl<const W: usize> Rx for ValueRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.pop() {
                Ok(value) => return words::read(&value),
                Err(_) => spin_loop(),
            }
        }
    }
}
