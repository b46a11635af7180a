//! shaq and rts-alloc: offsets of blocks of a shared heap, through a shared ring, between processes.
//!
//! Used as they are meant to be: frees go back to their owner in batches, and the owner collects them now and then.

#![allow(unsafe_code)]

use crate::links::{Link, Rx, Tx, capacity};
use crate::side::{self, Far};
use crate::words;
use rts_alloc::{Allocator, MAX_ALLOC_SIZE, RemoteFreeBatch};
use rustix::fs::{MemfdFlags, memfd_create};
use shaq::spsc::{Consumer, Producer, minimum_file_size};
use std::fs::File;
use std::hint::spin_loop;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;

/// Blocks of `W` words.
pub struct Offsets<const W: usize>;

impl<const W: usize> Offsets<W> {
    /// The heap has no larger blocks than 4 KiB.
    pub const FIT: bool = bytes::<W>() as usize <= MAX_ALLOC_SIZE;
}

pub struct OffsetTx<const W: usize> {
    heap: &'static Allocator,
    queue: Producer<usize>,
    sent: usize,
}

pub struct OffsetRx<const W: usize> {
    heap: &'static Allocator,
    queue: Consumer<usize>,
    freed: RemoteFreeBatch<'static>,
    received: usize,
}

const fn bytes<const W: usize>() -> u32 {
    (W * size_of::<u64>()) as u32
}

/// Sparse: for all blocks that can be queued, several times.
const HEAP_BYTES: usize = 64 << 20;
const SLAB_BYTES: u32 = 64 << 10;
/// Messages between looks at what came back, or what is to go back.
const BATCH: usize = 64;

impl<const W: usize> OffsetTx<W> {
    fn new(heap: &'static Allocator, queue: Producer<usize>) -> Self {
        Self { heap, queue, sent: 0 }
    }
}

impl<const W: usize> OffsetRx<W> {
    fn new(heap: &'static Allocator, queue: Consumer<usize>) -> Self {
        Self { heap, queue, freed: heap.remote_free_batch(), received: 0 }
    }
}

fn shared_file() -> File {
    memfd_create("peers", MemfdFlags::CLOEXEC).expect("a file in memory").into()
}

/// For the rest of the process: batches borrow it.
fn keep(heap: Result<Allocator, rts_alloc::error::Error>) -> &'static Allocator {
    Box::leak(Box::new(heap.expect("a shared heap")))
}

impl<const W: usize> Link for Offsets<W> {
    const NAME: &'static str = "shaq+rts-alloc";
    type Tx = OffsetTx<W>;
    type Rx = OffsetRx<W>;

    fn near(_name: &str, start: impl FnOnce(&str) -> Far) -> (Far, OffsetTx<W>, OffsetRx<W>) {
        let files = [shared_file(), shared_file(), shared_file()];
        let [heap, there, back] = &files;
        let ring_bytes = minimum_file_size::<usize>(capacity::<W>()).next_multiple_of(4096);
        // SAFETY: the file is new, and nobody else's yet.
        let heap = keep(unsafe { Allocator::create(heap, HEAP_BYTES, 2, SLAB_BYTES) });
        // SAFETY: as above, and this is its only producer.
        let tx = OffsetTx::new(heap, unsafe { Producer::create(there, ring_bytes) }.expect("a ring"));
        // SAFETY: as above, and this is its only consumer.
        let rx = OffsetRx::new(heap, unsafe { Consumer::create(back, ring_bytes) }.expect("a ring"));
        let keys = files.each_ref().map(side::key);
        (start(&keys.join(" ")), tx, rx)
    }

    fn far(key: &str) -> (OffsetRx<W>, OffsetTx<W>) {
        let open = |path| File::options().read(true).write(true).open(path).expect("open what is shared");
        let files: Vec<File> = key.split(' ').map(open).collect();
        let [heap, there, back] = &files[..] else { panic!("not three keys: {key}") };
        let heap = keep(Allocator::join(heap));
        // SAFETY: this is the ring's only consumer.
        let rx = OffsetRx::new(heap, unsafe { Consumer::join(there) }.expect("a ring"));
        // SAFETY: this is the ring's only producer.
        let tx = OffsetTx::new(heap, unsafe { Producer::join(back) }.expect("a ring"));
        (rx, tx)
    }
}

impl<const W: usize> OffsetTx<W> {
    #[inline(always)]
    fn allocate(&mut self) -> NonNull<u8> {
        self.sent += 1;
        if self.sent.is_multiple_of(BATCH) {
            self.heap.clean_remote_frees();
        }
        loop {
            match self.heap.allocate(bytes::<W>()) {
                Some(block) => return block,
                None => self.heap.clean_remote_frees(),
            }
        }
    }
}

impl<const W: usize> Tx for OffsetTx<W> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let block = self.allocate();
        // SAFETY: fresh memory for `W` words, aligned to 256 bytes.
        let payload = unsafe { slice::from_raw_parts_mut(block.cast::<MaybeUninit<u64>>().as_ptr(), W) };
        words::fill(payload, value);
        // SAFETY: the block is the heap's.
        let mut offset = unsafe { self.heap.offset(block) };
        while let Err(back) = self.queue.try_write(offset) {
            offset = back;
            spin_loop();
        }
    }
}

impl<const W: usize> Rx for OffsetRx<W> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        let offset = loop {
            match self.queue.try_read() {
                Some(offset) => break offset,
                None => spin_loop(),
            }
        };
        // SAFETY: the sender's offset of a block of `W` words, given to us.
        let block = unsafe { self.heap.ptr_from_offset(offset) };
        // SAFETY: as above, all of it written.
        let value = words::read(unsafe { slice::from_raw_parts(block.cast::<u64>().as_ptr(), W) });
        // SAFETY: as above; freed here only.
        unsafe { self.freed.free_offset(offset) };
        self.received += 1;
        if self.received.is_multiple_of(BATCH) {
            self.freed.flush();
        }
        value
    }
}
