//! Allocation that waits for memory.

use crate::error::AllocError;
use crate::process::local::Local;
use crate::record::{self, Payload, Record, RecordUninit};
use bytemuck::Pod;
use std::time::Instant;

/// Allocates as its [`ThreadContext`](crate::ThreadContext) does, but when memory is short it waits for others to free some. Made by
/// [`ThreadContext::within`](crate::ThreadContext::within).
///
/// Whoever waits sleeps, and is woken by frees in any process. Threads that work with the buffer give back what they cache at
/// their next allocation or free; what the dead held is reaped every 125 ms at the latest, and caches of idle threads are taken then, too, unless
/// the buffer is so large that to look for them takes more than a tenth of that.
///
/// ```
/// # let name = format!("doc-within-type-{}", std::process::id());
/// use ipc_buffer::Buffer;
/// use std::time::Duration;
/// let buffer = Buffer::options().capacity(1 << 20).open(&name)?;
/// let ctx = buffer.context()?;
/// let all = ctx.slice_uninit::<u8>(900 << 10)?;
/// let consumer = std::thread::spawn(move || drop(all));
/// let next = ctx.within(Duration::from_secs(10)).slice_from(&[7_u8; 900 << 10])?;
/// assert_eq!(next[0], 7);
/// # consumer.join().unwrap();
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct Within<'a> {
    local: &'a Local,
    /// `None`: for ever.
    deadline: Option<Instant>,
}

impl<'a> Within<'a> {
    pub(crate) fn new(local: &'a Local, deadline: Option<Instant>) -> Self {
        Self { local, deadline }
    }

    fn alloc<T: ?Sized + Payload>(&self, count: usize) -> Result<RecordUninit<T>, AllocError> {
        record::alloc_or(self.local, count, |bytes| self.local.alloc_waiting(bytes, self.deadline))
    }

    /// As [`ThreadContext::record`](crate::ThreadContext::record).
    ///
    /// ```
    /// # let name = format!("doc-within-record-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// # let second = std::time::Duration::from_secs(1);
    /// assert_eq!(*ctx.within(second).record(2.5_f64)?, 2.5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there; `OutOfMemory` once the time is over, or at once if the whole buffer is too small.
    pub fn record<T: Pod>(&self, value: T) -> Result<Record<T>, AllocError> {
        Ok(self.alloc::<T>(1)?.write(value))
    }

    /// As [`ThreadContext::uninit`](crate::ThreadContext::uninit).
    ///
    /// ```
    /// # let name = format!("doc-within-uninit-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// # let second = std::time::Duration::from_secs(1);
    /// assert_eq!(ctx.within(second).uninit::<[u8; 3]>()?.write([1, 2, 3])[2], 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn uninit<T: Pod>(&self) -> Result<RecordUninit<T>, AllocError> {
        self.alloc(1)
    }

    /// As [`ThreadContext::zeroed`](crate::ThreadContext::zeroed).
    ///
    /// ```
    /// # let name = format!("doc-within-zeroed-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// # let second = std::time::Duration::from_secs(1);
    /// assert_eq!(*ctx.within(second).zeroed::<[u64; 4]>()?, [0; 4]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn zeroed<T: Pod>(&self) -> Result<Record<T>, AllocError> {
        Ok(self.alloc::<T>(1)?.zeroed())
    }

    /// As [`ThreadContext::slice_from`](crate::ThreadContext::slice_from).
    ///
    /// ```
    /// # let name = format!("doc-within-from-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// # let second = std::time::Duration::from_secs(1);
    /// assert_eq!(&*ctx.within(second).slice_from(b"text")?, b"text");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn slice_from<T: Pod>(&self, from: &[T]) -> Result<Record<[T]>, AllocError> {
        Ok(self.alloc::<[T]>(from.len())?.copy_from_slice(from))
    }

    /// As [`ThreadContext::slice_uninit`](crate::ThreadContext::slice_uninit).
    ///
    /// ```
    /// # let name = format!("doc-within-slice-uninit-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// # let second = std::time::Duration::from_secs(1);
    /// assert_eq!(ctx.within(second).slice_uninit::<u16>(3)?.fill_with(|i| i as u16)[2], 2);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn slice_uninit<T: Pod>(&self, len: usize) -> Result<RecordUninit<[T]>, AllocError> {
        self.alloc(len)
    }

    /// As [`ThreadContext::slice_zeroed`](crate::ThreadContext::slice_zeroed).
    ///
    /// ```
    /// # let name = format!("doc-within-slice-zeroed-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// # let second = std::time::Duration::from_secs(1);
    /// assert_eq!(&*ctx.within(second).slice_zeroed::<u8>(2)?, [0, 0]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn slice_zeroed<T: Pod>(&self, len: usize) -> Result<Record<[T]>, AllocError> {
        Ok(self.alloc::<[T]>(len)?.zeroed())
    }
}
