//! Records: blocks of the heap in this process's hands, as Rust values.
//!
//! # Invariants
//! 1. A record's block is `OWNED` by this process and named by no other record: made by an allocation, by receiving, or by
//!    giving back a failed send. So its payload is this record's alone, as long as every participant keeps the protocol.
//! 2. `payload` is aligned for `T`, lies inside the block, [`Record::offset`] behind its start, and the block inside the
//!    mapping; the attachment keeps the mapping while the record exists (see `attachment`).
//! 3. `T` is plain data (`Pod`): every byte pattern is a valid value, so whatever a peer wrote there is one.

#![allow(unsafe_code)]

mod within;

pub use within::Within;

use crate::error::AllocError;
use crate::format::{BLOCK_HEADER, BlockHeader, GRANULE, Handle, class};
use crate::heap;
use crate::heap::block::{self, Block, Known, MAX_COUNT, Meta};
use crate::heap::cache::Cache;
use crate::process::attachment;
use crate::process::local::{self, Local};
use crate::segment::arena::{Arena, Extent, Start};
use crate::sync::Ordering;
use bytemuck::Pod;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::{fmt, mem};

mod sealed {
    use crate::format::Handle;

    pub trait Sealed {}
    impl<T: bytemuck::Pod> Sealed for T {}
    impl<T: bytemuck::Pod> Sealed for [T] {}

    /// What a record keeps, to know its block by, beside the payload's address.
    pub trait Clue: Copy {
        fn new(handle: Handle) -> Self;
        fn handle(self) -> Option<Handle>;
    }

    impl Clue for Handle {
        fn new(handle: Handle) -> Self {
            handle
        }

        fn handle(self) -> Option<Handle> {
            Some(self)
        }
    }

    /// Nothing: the type and the address tell.
    impl Clue for () {
        fn new(_: Handle) -> Self {}

        fn handle(self) -> Option<Handle> {
            None
        }
    }
}
use sealed::Clue;

/// What a record can hold and a channel can carry: any plain-data type (`bytemuck::Pod`), or a slice of one.
///
/// Sealed: derive [`bytemuck::Pod`] for a type, and both forms work; and [`Layout`](macro@crate::Layout), so that both ends agree on its
/// fields.
///
/// ```
/// # let name = format!("doc-payload-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Payload, Record};
/// /// Bytes of an element, for records of either form.
/// fn element_bytes<T: ?Sized + Payload>(_: &Record<T>) -> usize {
///     size_of::<T::Element>()
/// }
/// assert_eq!(element_bytes(&ctx.record(5_u32)?), 4);
/// assert_eq!(element_bytes(&ctx.slice_from(&[5_u32, 6])?), 4);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub trait Payload: sealed::Sealed {
    /// The type itself, or what it is a slice of.
    type Element: Pod;
    #[doc(hidden)]
    const SLICE: bool;
    #[doc(hidden)]
    type Clue: sealed::Clue;
    #[doc(hidden)]
    fn from_raw(payload: NonNull<u8>, count: usize) -> NonNull<Self>;
    #[doc(hidden)]
    fn count(payload: NonNull<Self>) -> usize;
}

impl<T: Pod> Payload for T {
    type Element = T;
    const SLICE: bool = false;
    type Clue = ();

    fn from_raw(payload: NonNull<u8>, _count: usize) -> NonNull<Self> {
        payload.cast()
    }

    fn count(_: NonNull<Self>) -> usize {
        1
    }
}

impl<T: Pod> Payload for [T] {
    type Element = T;
    const SLICE: bool = true;
    type Clue = Handle;

    fn from_raw(payload: NonNull<u8>, count: usize) -> NonNull<Self> {
        NonNull::slice_from_raw_parts(payload.cast(), count)
    }

    fn count(payload: NonNull<Self>) -> usize {
        payload.len()
    }
}

const MAX_ALIGN: usize = 4096;

/// Why a record's block is not known to a context.
#[derive(Clone, Copy)]
pub(crate) enum NoBlock {
    /// It is another buffer's.
    Foreign,
    /// The context is closed, and its buffer may be gone.
    Closed,
}

/// Bytes from the start of the block to the payload, where a type of known size lies in a block of another class than its own (one of
/// the next larger, when memory was short): so the address tells, by one bit, whether the type says what block it is.
const AWAY: u32 = 32;

/// One block of a buffer's heap, owned by this process: reads and writes like a `Box<T>`, goes to another process with
/// [`Channel::send`](crate::Channel::send) without being copied, and is freed when dropped.
///
/// One of a sized type is a pointer, and so is an `Option` of it; one of a slice is a slice's pointer and a word more.
///
/// It may be dropped, and moved, in any thread of the process. Nobody else reads or writes it as long as it exists:
/// sending gives it up, receiving takes it over. Its address may differ from process to process; its contents are plain data,
/// so nothing in it can dangle.
///
/// If its process is killed, the record is freed by the next one that reaps. In a child made by `fork` after it was
/// allocated, it is seen copy-on-write: writing reaches nobody, dropping does nothing, and reading works as long as the parent
/// neither changes nor frees the record; a page keeps its contents for good only once the child has written to it.
///
/// ```
/// # let name = format!("doc-record-{}", std::process::id());
/// let buffer = ipc_buffer::Buffer::open(&name)?;
/// let ctx = buffer.context()?;
/// let mut record = ctx.record(41_u64)?;
/// *record += 1;
/// assert_eq!(*record, 42);
/// assert_eq!(size_of_val(&Some(record)), size_of::<usize>());
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct Record<T: ?Sized + Payload> {
    payload: NonNull<T>,
    clue: T::Clue,
}

// SAFETY: a record is the only access to its payload (invariant 1), like a box; its drop works in any thread.
unsafe impl<T: ?Sized + Payload + Send> Send for Record<T> {}
// SAFETY: sharing a record shares `&T` and nothing else.
unsafe impl<T: ?Sized + Payload + Sync> Sync for Record<T> {}

impl<T: ?Sized + Payload> Drop for Record<T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: this record exists until this call, and never again.
        unsafe { local::free(self.address(), |extent| self.at_once(extent), || self.known()) };
    }
}

impl<T: ?Sized + Payload> Deref for Record<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: invariants 1 to 3.
        unsafe { self.payload.as_ref() }
    }
}

impl<T: ?Sized + Payload> DerefMut for Record<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: invariants 1 to 3, and the record itself is borrowed mutably.
        unsafe { self.payload.as_mut() }
    }
}

impl<T: ?Sized + Payload + fmt::Debug> fmt::Debug for Record<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: ?Sized + Payload + PartialEq> PartialEq for Record<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ?Sized + Payload> AsRef<T> for Record<T> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: ?Sized + Payload> AsMut<T> for Record<T> {
    fn as_mut(&mut self) -> &mut T {
        self
    }
}

impl<T: ?Sized + Payload> Record<T> {
    /// Bytes the block has room for from the payload's start on: at least the payload's size, fixed at allocation.
    ///
    /// ```
    /// # let name = format!("doc-capacity-bytes-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut bytes = ctx.slice_zeroed::<u8>(100)?;
    /// let room = bytes.capacity_bytes();
    /// bytes.truncate(1);
    /// assert!(room >= 100 && bytes.capacity_bytes() == room);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn capacity_bytes(&self) -> usize {
        let behind =
            |handle: Handle, bytes: u64| bytes.checked_sub(Self::offset(handle.class(), handle.granule()).into());
        let room = match (self.clue.handle(), self.usual_class()) {
            (Some(handle), _) if !handle.is_run() => behind(handle, block::small_bytes(handle.class())),
            (None, Some(class)) => Some(block::small_bytes(class) - BLOCK_HEADER),
            _ => attachment::look(self.address(), |arena, granule| {
                let handle = self.known().find(arena, granule)?;
                behind(handle, block::bytes(arena, handle.granule(), handle.class())?)
            }),
        };
        // In a forked child nobody knows.
        room.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(size_of_val(&**self))
    }

    #[inline(always)]
    fn address(&self) -> usize {
        self.payload.cast::<u8>().addr().get()
    }

    #[inline(always)]
    fn known(&self) -> Known {
        match self.clue.handle() {
            Some(handle) => Known::all(handle),
            None => self.usual_class().map_or(Known::NOTHING, Known::class),
        }
    }

    /// The class of its block, if the type says which that is and it does not lie `AWAY`.
    #[inline(always)]
    fn usual_class(&self) -> Option<u8> {
        Self::USUAL.map(|(_, class)| class).filter(|_| self.address() & AWAY as usize == 0)
    }

    /// Its block, if it is one of a class, in the arena that is mapped at `extent`, and nothing need be looked up.
    #[inline(always)]
    fn at_once(&self, extent: Extent) -> Option<Handle> {
        match (self.clue.handle(), Self::USUAL) {
            (Some(handle), _) => extent.granule(self.address()).map(|_| handle).filter(|handle| !handle.is_run()),
            // The compiler knows the class; it lies `AWAY` if that is another.
            (None, Some((_, class))) => extent.block(class, self.address()),
            (None, None) => None,
        }
    }

    /// Its block, if it is one of the buffer's that `local` is a context of.
    #[inline(always)]
    pub(crate) fn block_in(&self, local: &Local) -> Result<Handle, NoBlock> {
        #[cold]
        fn look(local: &Local, address: usize, known: Known) -> Result<Handle, NoBlock> {
            let arena = local.cache().arena();
            let granule = arena.extent().granule(address).ok_or(NoBlock::Foreign)?;
            local.check().map_err(|_| NoBlock::Closed)?;
            known.find(arena, granule).ok_or(NoBlock::Foreign)
        }
        let at_once = self.at_once(local.cache().arena().extent());
        at_once.map_or_else(|| look(local, self.address(), self.known()), Ok)
    }

    /// Says in the header of its block what the payload is, for who receives it; `handle` is the block. Returns where that starts.
    #[inline(always)]
    pub(crate) fn label(&self, handle: Handle) -> u32 {
        let (class, offset) = (handle.class(), Self::offset(handle.class(), handle.granule()));
        // SAFETY: invariant 2: so far before the payload the block starts, with its header.
        let header = unsafe { self.payload.cast::<u8>().sub(offset as usize) };
        // SAFETY: as above; aligned to a granule, and atomics throughout.
        let header: &BlockHeader = unsafe { header.cast().as_ref() };
        let count = T::count(self.payload) as u64;
        header.meta.store(Meta { class, offset, count }.pack(), Ordering::Relaxed);
        handle.granule()
    }

    /// What the meta word of a sized record says, and its class, unless alignment or size make it a special case.
    const USUAL: Option<(u64, u8)> = {
        let size = size_of::<T::Element>() as u64;
        // In a run of units, too, it could lie `AWAY`.
        let may_lie_away = heap::run_span(size) == heap::run_span(size + BLOCK_HEADER);
        match class::for_bytes(size) {
            Some(class) if !T::SLICE && align_of::<T::Element>() as u64 <= BLOCK_HEADER && may_lie_away => {
                let class = class::index(class);
                Some((Meta { class, offset: block::payload_offset(0, 1), count: 1 }.pack(), class))
            }
            _ => None,
        }
    };

    /// Bytes from the start of a block to the payload.
    #[inline(always)]
    fn offset(class: u8, granule: u32) -> u32 {
        match Self::USUAL {
            Some((_, usual)) if usual != class => AWAY,
            _ => block::payload_offset(granule, align_of::<T::Element>() as u64),
        }
    }

    /// The record in the block at `granule`, if its header and its place say it is one of this type: then `take` is called.
    ///
    /// # Safety
    /// With `take` the block becomes `OWNED` by this process, and no record names it; or it is queued for this process, and the record is
    /// never dropped, and looked at only as long as it is. `cache` is one of this process's contexts', `start` the block's start there.
    #[inline(always)]
    pub(crate) unsafe fn from_block(cache: &Cache, granule: u32, start: Start, take: impl FnOnce()) -> Option<Self> {
        // Bounds, class and alignment: the header is shared memory, and a foreign hand may have written it.
        let word = start.header().meta.load(Ordering::Relaxed);
        match Self::USUAL {
            // Here the compiler knows the class.
            Some((usual, class)) if word == usual && cache.is_block(granule, class.into()) => {
                take();
                let payload = T::from_raw(start.payload(BLOCK_HEADER), 1);
                Some(Self { payload, clue: T::Clue::new(Handle::new(class, granule)) })
            }
            _ => Self::from_any_block(cache.arena(), granule, start, word).inspect(|_| take()),
        }
    }

    #[inline(never)]
    fn from_any_block(arena: &Arena, granule: u32, start: Start, word: u64) -> Option<Self> {
        let (offset, count, class) = Self::check(arena, granule, word)?;
        let payload = block::is_at(arena, granule, class).then(|| start.payload(offset))?;
        Some(Self { payload: T::from_raw(payload, count), clue: T::Clue::new(Handle::new(class, granule)) })
    }

    /// The payload's offset and count, and the block's class, if the meta word makes sense for this type and place.
    fn check(arena: &Arena, granule: u32, word: u64) -> Option<(u64, usize, u8)> {
        let Meta { class, offset, count } = Meta::unpack(word);
        let is_placed = offset == Self::offset(class, granule);
        let offset = u64::from(offset);
        let size = (size_of::<T::Element>() as u64).checked_mul(count)?;
        let ok = is_placed
            && size.max(1).checked_add(offset)? <= block::bytes(arena, granule, class)?
            && (T::SLICE || count == 1);
        ok.then_some((offset, usize::try_from(count).ok()?, class))
    }
}

impl<T: Pod> Record<[T]> {
    /// Shortens the slice to its first `len` elements; longer lengths change nothing. The block keeps its size.
    ///
    /// ```
    /// # let name = format!("doc-truncate-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut bytes = ctx.slice_from(b"abcdef")?;
    /// bytes.truncate(3);
    /// assert_eq!(&*bytes, b"abc");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn truncate(&mut self, len: usize) {
        if len >= self.payload.len() {
            return;
        }
        self.payload = NonNull::slice_from_raw_parts(self.payload.cast(), len);
    }
}

/// A record whose contents are not yet chosen: what it holds is whatever lay there before, possibly another record's bytes.
///
/// Dropping it early frees the block.
///
/// ```
/// # let name = format!("doc-uninit-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use std::io::Read;
/// let mut record = ctx.slice_uninit::<u8>(5)?;
/// let mut source = &b"hello world"[..];
/// source.read_exact(record.as_mut()).expect("five bytes");
/// assert_eq!(&*record.assume_init(), b"hello");
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct RecordUninit<T: ?Sized + Payload>(Record<T>);

impl<T: ?Sized + Payload> fmt::Debug for RecordUninit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordUninit").finish_non_exhaustive()
    }
}

impl<T: Pod> RecordUninit<T> {
    /// Writes the value.
    ///
    /// ```
    /// # let name = format!("doc-uninit-write-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let room = ctx.uninit::<[u32; 2]>()?;
    /// let record = room.write([1, 2]);
    /// assert_eq!(record[1], 2);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[inline(always)]
    pub fn write(mut self, value: T) -> Record<T> {
        *self.0 = value;
        self.0
    }
}

impl<T: Pod> RecordUninit<[T]> {
    /// Copies `from` into the slice, element by element.
    ///
    /// ```
    /// # let name = format!("doc-uninit-copy-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let room = ctx.slice_uninit::<u16>(3)?;
    /// let record = room.copy_from_slice(&[7, 8, 9]);
    /// assert_eq!(&*record, [7, 8, 9]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy_from_slice(mut self, from: &[T]) -> Record<[T]> {
        self.0.copy_from_slice(from);
        self.0
    }

    /// Sets element `i` to `element(i)`, for each.
    ///
    /// ```
    /// # let name = format!("doc-uninit-fill-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let room = ctx.slice_uninit::<u32>(4)?;
    /// let record = room.fill_with(|i| 1 << i);
    /// assert_eq!(&*record, [1, 2, 4, 8]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn fill_with(mut self, mut element: impl FnMut(usize) -> T) -> Record<[T]> {
        for (i, slot) in self.0.iter_mut().enumerate() {
            *slot = element(i);
        }
        self.0
    }
}

impl<T: ?Sized + Payload> RecordUninit<T> {
    /// Makes every byte zero, in place: `T` may be far too large for the stack.
    pub(crate) fn zeroed(self) -> Record<T> {
        let bytes = size_of_val::<T>(&self.0);
        // SAFETY: invariants 1 to 3: the payload is this record's, of that many bytes, and zeroes are a value of plain data.
        unsafe { self.0.payload.cast::<u8>().write_bytes(0, bytes) };
        self.0
    }

    /// Takes the contents as they are. Safe, because every byte pattern is a value of plain data; which one is unspecified.
    ///
    /// ```
    /// # let name = format!("doc-uninit-assume-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut room = ctx.slice_uninit::<u8>(3)?;
    /// room.as_mut().fill(b'x');
    /// assert_eq!(&*room.assume_init(), b"xxx");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn assume_init(self) -> Record<T> {
        self.0
    }
}

/// Where the contents go, for reading from a file or a socket straight into the record.
impl<T: ?Sized + Payload> AsMut<T> for RecordUninit<T> {
    fn as_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Allocates a record of `count` elements.
#[inline(always)]
pub(crate) fn alloc<T: ?Sized + Payload>(local: &Local, count: usize) -> Result<RecordUninit<T>, AllocError> {
    alloc_or(local, count, |bytes| local.alloc_slow(bytes))
}

/// Allocates a record of `count` elements; by `slow` if there is no block at hand.
#[inline(always)]
pub(crate) fn alloc_or<T: ?Sized + Payload>(
    local: &Local,
    count: usize,
    slow: impl FnOnce(u64) -> Result<Block, AllocError>,
) -> Result<RecordUninit<T>, AllocError> {
    let element = size_of::<T::Element>();
    let align = const { mem::align_of::<T::Element>() };
    if align > MAX_ALIGN {
        return Err(AllocError::Alignment { align });
    }
    let need = (count as u64 <= MAX_COUNT)
        .then(|| (count as u64).checked_mul(element as u64))
        .flatten()
        .and_then(|bytes| block::need(bytes, align as u64))
        .filter(|bytes| *bytes <= crate::format::MAX_CAPACITY);
    let Some(bytes) = need else { return Err(AllocError::LengthOverflow { count, element }) };
    match local.alloc_fast(bytes) {
        Some((class, block)) => Ok(fill_in(class, block, count)),
        None => {
            let block = slow(bytes)?;
            Ok(fill_in(block.handle.class(), block, count))
        }
    }
}

/// Makes a record of a block just allocated.
#[inline(always)]
fn fill_in<T: ?Sized + Payload>(class: u8, block: Block, count: usize) -> RecordUninit<T> {
    let offset = Record::<T>::offset(class, block.handle.granule());
    let payload = T::from_raw(block.start.payload(u64::from(offset)), count);
    RecordUninit(Record { payload, clue: T::Clue::new(block.handle) })
}

const _: () = {
    assert!(class::RUN == u8::MAX);
    assert!(size_of::<Record<u64>>() == 8 && size_of::<Option<Record<u64>>>() == 8);
    assert!(AWAY as u64 == 2 * BLOCK_HEADER && (AWAY as u64) < GRANULE && BLOCK_HEADER & AWAY as u64 == 0);
};

#[cfg(doctest)]
/// Records go to other threads, contexts and endpoints don't.
///
/// ```
/// fn is_send<T: Send + Sync>() {}
/// is_send::<ipc_buffer::Record<u64>>();
/// is_send::<ipc_buffer::Buffer>();
/// ```
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<ipc_buffer::ThreadContext>();
/// ```
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<ipc_buffer::Channel<u64, ipc_buffer::Producer>>();
/// ```
struct SendClaims;
