//! crossbeam-channel: boxes on snmalloc through a bounded channel, between threads.

use crate::heaps::{Block, Heap, Rival, RivalFixed};
use crate::links::{Queue, Rx, Tx, capacity};
use crate::snmalloc::SnMalloc;
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use std::hint::spin_loop;

/// Boxes of `W` words.
pub struct Boxes<const W: usize>;

pub struct BoxTx<const W: usize>(Sender<RivalFixed<SnMalloc, W>>);

pub struct BoxRx<const W: usize>(Receiver<RivalFixed<SnMalloc, W>>);

impl<const W: usize> Queue for Boxes<W> {
    const NAME: &'static str = "crossbeam";
    type Tx = BoxTx<W>;
    type Rx = BoxRx<W>;

    fn new() -> (BoxTx<W>, BoxRx<W>) {
        let (tx, rx) = bounded(capacity::<W>());
        (BoxTx(tx), BoxRx(rx))
    }
}

impl<const W: usize> Tx for BoxTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let mut block = Rival(SnMalloc).fixed::<W>();
        block.fill(value);
        while let Err(refused) = self.0.try_send(block) {
            let TrySendError::Full(back) = refused else { panic!("{refused}") };
            block = back;
            spin_loop();
        }
    }
}

impl<const W: usize> Rx for BoxRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        loop {
            match self.0.try_recv() {
                Ok(mut block) => return block.read(),
                Err(TryRecvError::Empty) => spin_loop(),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
