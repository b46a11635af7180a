//! The heaps, behind one trait.

#![allow(unsafe_code)]

use crate::snmalloc::SnMalloc;
use crate::words;
use ipc_buffer::{Buffer, Record, ThreadContext};
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout, handle_alloc_error};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;

/// Where blocks come from.
pub trait Heap: 'static {
    /// A block of `W` words, known at compile time.
    type Fixed<const W: usize>: Block;
    /// A block whose size is known at run time.
    type Sized: Block;

    fn fixed<const W: usize>(&self) -> Self::Fixed<W>;
    fn sized(&self, words: usize) -> Self::Sized;
}

/// Memory from a [`Heap`], not initialised; freed when dropped.
///
/// # Safety
/// `at` is aligned and good for `words` words as long as the block exists.
pub unsafe trait Block: 'static {
    fn at(&mut self) -> *mut u64;
    fn words(&self) -> usize;

    /// Writes the first word, for real.
    #[inline(always)]
    fn put(&mut self, value: u64) {
        // SAFETY: by the contract of `Block`; no block here has no words.
        unsafe { self.at().write(value) };
        black_box(self.at());
    }

    /// Reads the first word, which was written before.
    #[inline(always)]
    fn get(&mut self) -> u64 {
        // SAFETY: as above.
        unsafe { black_box(self.at()).read() }
    }

    /// Writes every word.
    #[inline(always)]
    fn fill(&mut self, value: u64) {
        // SAFETY: as above.
        words::fill(unsafe { slice::from_raw_parts_mut(self.at().cast::<MaybeUninit<u64>>(), self.words()) }, value);
    }

    /// Reads every word, each of which was written before; see [`words::read`].
    #[inline(always)]
    fn read(&mut self) -> u64 {
        // SAFETY: as above.
        words::read(unsafe { slice::from_raw_parts(self.at(), self.words()) })
    }
}

/// A buffer opened by this side. Its end asserts that nothing was lost.
pub struct Ours {
    pub ctx: ThreadContext,
    buffer: Rc<Audited>,
}

struct Audited {
    buffer: Buffer,
    whole: bool,
}

impl Ours {
    /// Makes the buffer `name`; to be hidden when everybody has opened it.
    pub fn create(name: &str) -> Self {
        Self::new(Buffer::options().create_new(true).open(name).expect("create the buffer"), true)
    }

    /// Opens the buffer the near side made.
    pub fn open(name: &str) -> Self {
        Self::new(Buffer::options().must_exist(true).open(name).expect("open the buffer"), false)
    }

    fn new(buffer: Buffer, whole: bool) -> Self {
        let ctx = buffer.context().expect("a context");
        Self { ctx, buffer: Rc::new(Audited { buffer, whole }) }
    }

    /// Takes the name away: nothing is left behind whatever happens to this process.
    pub fn hide(&self) {
        Buffer::unlink(self.buffer.buffer.name()).expect("unlink the buffer");
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        let audit = self.buffer.audit().expect("audit");
        assert!(audit.is_sound(), "{audit:#?}");
        assert!(!self.whole || audit.is_all_free(), "{audit:#?}");
    }
}

impl Heap for Ours {
    type Fixed<const W: usize> = Record<[u64; W]>;
    type Sized = Record<[u64]>;

    #[inline(always)]
    fn fixed<const W: usize>(&self) -> Record<[u64; W]> {
        self.ctx.uninit().expect("a record").assume_init()
    }

    #[inline(always)]
    fn sized(&self, words: usize) -> Record<[u64]> {
        self.ctx.slice_uninit(words).expect("a record").assume_init()
    }
}

// SAFETY: a record is its payload's only holder.
unsafe impl<const W: usize> Block for Record<[u64; W]> {
    #[inline(always)]
    fn at(&mut self) -> *mut u64 {
        self.as_mut_ptr()
    }

    #[inline(always)]
    fn words(&self) -> usize {
        W
    }
}

// SAFETY: as above.
unsafe impl Block for Record<[u64]> {
    #[inline(always)]
    fn at(&mut self) -> *mut u64 {
        self.as_mut_ptr()
    }

    #[inline(always)]
    fn words(&self) -> usize {
        self.len()
    }
}

/// An allocator of one process, as a `Box` would use it.
pub trait Allocator: GlobalAlloc + Send + 'static {
    const IT: Self;
    /// Their name when they compete together.
    const WITH_RTRB: &'static str;
}

impl Allocator for SnMalloc {
    const IT: Self = Self;
    const WITH_RTRB: &'static str = "rtrb+snmalloc";
}

impl Allocator for MiMalloc {
    const IT: Self = Self;
    const WITH_RTRB: &'static str = "rtrb+mimalloc";
}

/// The heap of allocator `A`.
pub struct Rival<A>(pub A);

/// A box on `A` of `W` words.
pub struct RivalFixed<A: Allocator, const W: usize> {
    at: NonNull<u64>,
    allocator: A,
}

/// A boxed slice on `A`.
pub struct RivalSized<A: Allocator> {
    at: NonNull<u64>,
    words: usize,
    allocator: A,
}

#[inline(always)]
fn layout(words: usize) -> Layout {
    Layout::array::<u64>(words).expect("a size that exists")
}

#[inline(always)]
fn allocate<A: Allocator>(allocator: &A, layout: Layout) -> NonNull<u64> {
    // SAFETY: no layout here is empty.
    let at = unsafe { allocator.alloc(layout) };
    NonNull::new(at.cast()).unwrap_or_else(|| handle_alloc_error(layout))
}

impl<A: Allocator> Heap for Rival<A> {
    type Fixed<const W: usize> = RivalFixed<A, W>;
    type Sized = RivalSized<A>;

    #[inline(always)]
    fn fixed<const W: usize>(&self) -> RivalFixed<A, W> {
        RivalFixed { at: allocate(&A::IT, layout(W)), allocator: A::IT }
    }

    #[inline(always)]
    fn sized(&self, count: usize) -> RivalSized<A> {
        RivalSized { at: allocate(&A::IT, layout(count)), words: count, allocator: A::IT }
    }
}

impl<A: Allocator, const W: usize> Drop for RivalFixed<A, W> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout, and freed here only.
        unsafe { self.allocator.dealloc(self.at.as_ptr().cast(), layout(W)) };
    }
}

impl<A: Allocator> Drop for RivalSized<A> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { self.allocator.dealloc(self.at.as_ptr().cast(), layout(self.words)) };
    }
}

// SAFETY: the block is its memory's only holder, and the allocators free from any thread.
unsafe impl<A: Allocator, const W: usize> Send for RivalFixed<A, W> {}

// SAFETY: allocated for `W` words, freed by drop.
unsafe impl<A: Allocator, const W: usize> Block for RivalFixed<A, W> {
    #[inline(always)]
    fn at(&mut self) -> *mut u64 {
        self.at.as_ptr()
    }

    #[inline(always)]
    fn words(&self) -> usize {
        W
    }
}

// SAFETY: allocated for that many words, freed by drop.
unsafe impl<A: Allocator> Block for RivalSized<A> {
    #[inline(always)]
    fn at(&mut self) -> *mut u64 {
        self.at.as_ptr()
    }

    #[inline(always)]
    fn words(&self) -> usize {
        self.words
    }
}

/// Two thousand blocks of 8 bytes to 64 KiB at once, every word written and read: none may touch another. Then a heap may compete.
pub fn check<H: Heap>(heap: &H) {
    let mut random = Random::new();
    let mut blocks: Vec<H::Sized> = (0..2_000).map(|_| heap.sized(1 + random.below(8_192))).collect();
    for round in 0..2 {
        for (i, block) in blocks.iter_mut().enumerate() {
            block.fill(i as u64 + round);
        }
        for (i, block) in blocks.iter_mut().enumerate() {
            assert_eq!(block.read(), i as u64 + round, "blocks overlap");
        }
        for i in 0..1_000 {
            blocks[random.below(2_000)] = heap.sized(1 + i);
        }
    }
}

/// Random numbers: xorshift64*, the same for everybody.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`, which is below 2^32.
    #[inline(always)]
    pub fn below(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }
}
