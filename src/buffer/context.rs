//! A thread's handle on a buffer: where records and endpoints come from.

use crate::channel::endpoint::{Consumer, Producer};
use crate::channel::{Channel, ChannelOptions, ValueChannel};
use crate::error::{AllocError, AttachError, BufferError};
use crate::process::attachment::Hold;
use crate::process::local::{self, Local};
use crate::record::{self, Payload, Record, RecordUninit, Within};
use bytemuck::Pod;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One thread's caches of free blocks and its endpoints in one buffer. Made by [`Buffer::context`](crate::Buffer::context).
///
/// Stays in its thread (`!Send`, checked at compile time). There is one per thread and buffer: asking again gives another
/// handle to the same. When the last handle is dropped, every cached block goes back to the buffer and every endpoint made from
/// it is detached: operations on those then answer `ContextClosed`. Records live on. Futures that wait for such an endpoint are woken
/// when all of that is done, so a waker may do what it likes with the buffer; if one panics, that ends there.
///
/// ```
/// # let name = format!("doc-context-{}", std::process::id());
/// let buffer = ipc_buffer::Buffer::open(&name)?;
/// let ctx = buffer.context()?;
/// let pair = ctx.record([1_u32, 2])?;
/// let text = ctx.slice_from(b"any length")?;
/// assert_eq!((pair[1], text.len()), (2, 10));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct ThreadContext {
    pub(crate) local: Rc<Local>,
}

impl Clone for ThreadContext {
    fn clone(&self) -> Self {
        self.local.add_handle();
        Self { local: Rc::clone(&self.local) }
    }
}

impl Drop for ThreadContext {
    fn drop(&mut self) {
        self.local.drop_handle();
    }
}

impl ThreadContext {
    pub(crate) fn new(hold: &Hold) -> Result<Self, BufferError> {
        Ok(Self { local: local::enter(hold)? })
    }

    /// Allocates a record and moves `value` into it.
    ///
    /// ```
    /// # let name = format!("doc-ctx-record-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// assert_eq!(*ctx.record(2.5_f64)?, 2.5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `OutOfMemory` with the size asked for and what is free; `Alignment` above 4096; `Forked`, `ContextClosed`.
    #[inline]
    pub fn record<T: Pod>(&self, value: T) -> Result<Record<T>, AllocError> {
        Ok(self.uninit::<T>()?.write(value))
    }

    /// Allocates a record of zeroes.
    ///
    /// ```
    /// # let name = format!("doc-ctx-zeroed-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// assert_eq!(ctx.zeroed::<[u64; 512]>()?[511], 0);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn zeroed<T: Pod>(&self) -> Result<Record<T>, AllocError> {
        Ok(self.uninit::<T>()?.zeroed())
    }

    /// Allocates a record and leaves its contents to be chosen.
    ///
    /// ```
    /// # let name = format!("doc-ctx-uninit-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// let record = ctx.uninit::<u64>()?.write(9);
    /// assert_eq!(*record, 9);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record).
    #[inline]
    pub fn uninit<T: Pod>(&self) -> Result<RecordUninit<T>, AllocError> {
        record::alloc(&self.local, 1)
    }

    /// Allocates a record and copies the slice into it.
    ///
    /// ```
    /// # let name = format!("doc-ctx-slice-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// assert_eq!(&*ctx.slice_from(&[1_u8, 2, 3])?, [1, 2, 3]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`record`](Self::record), and `LengthOverflow`.
    pub fn slice_from<T: Pod>(&self, from: &[T]) -> Result<Record<[T]>, AllocError> {
        Ok(self.slice_uninit(from.len())?.copy_from_slice(from))
    }

    /// Allocates a record of `len` zeroes. `len` may be 0.
    ///
    /// ```
    /// # let name = format!("doc-ctx-slice0-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// assert_eq!(&*ctx.slice_zeroed::<u16>(3)?, [0, 0, 0]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`slice_from`](Self::slice_from).
    pub fn slice_zeroed<T: Pod>(&self, len: usize) -> Result<Record<[T]>, AllocError> {
        Ok(self.slice_uninit::<T>(len)?.zeroed())
    }

    /// Allocates a record of `len` elements and leaves its contents to be chosen.
    ///
    /// ```
    /// # let name = format!("doc-ctx-sliceu-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// let squares = ctx.slice_uninit::<u64>(4)?.fill_with(|i| (i * i) as u64);
    /// assert_eq!(&*squares, [0, 1, 4, 9]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`slice_from`](Self::slice_from).
    #[inline]
    pub fn slice_uninit<T: Pod>(&self, len: usize) -> Result<RecordUninit<[T]>, AllocError> {
        record::alloc(&self.local, len)
    }

    /// Allocates like this context, but waits up to `timeout` when memory is short, as long as it takes if that is beyond what
    /// the clock can say.
    ///
    /// ```
    /// # let name = format!("doc-ctx-within-{}", std::process::id());
    /// use ipc_buffer::{AllocError, Buffer};
    /// use std::time::Duration;
    /// let buffer = Buffer::options().capacity(1 << 20).open(&name)?;
    /// let ctx = buffer.context()?;
    /// let kept = ctx.slice_uninit::<u8>(600 << 10)?;
    /// let error = ctx.within(Duration::from_millis(5)).slice_zeroed::<u8>(600 << 10).unwrap_err();
    /// assert!(matches!(error, AllocError::OutOfMemory { .. }), "nobody freed anything");
    /// # drop(kept);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn within(&self, timeout: Duration) -> Within<'_> {
        Within::new(&self.local, Instant::now().checked_add(timeout))
    }

    /// Attaches to channel `id` as its producer; creates it if there is none. Either end may come first, and any `i64` will do.
    ///
    /// ```
    /// # let name = format!("doc-ctx-producer-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// let mut readings = ctx.producer::<f32>(1)?;
    /// readings.send(ctx.record(0.5)?)?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `TypeMismatch` if it carries another type, `RoleTaken` if it has a producer (with who that is), `OutOfMemory`,
    /// `TooManyChannels`, `Busy` if another process stopped inside a change of the directory, `Forked`, `ContextClosed`.
    pub fn producer<T: ?Sized + Payload>(&self, id: i64) -> Result<Channel<T, Producer>, AttachError> {
        self.producer_with(id, &ChannelOptions::new())
    }

    /// Attaches to channel `id` as its consumer; creates it if there is none.
    ///
    /// ```
    /// # let name = format!("doc-ctx-consumer-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// let mut readings = ctx.consumer::<f32>(1)?;
    /// assert!(readings.try_recv().is_err());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`producer`](Self::producer).
    pub fn consumer<T: ?Sized + Payload>(&self, id: i64) -> Result<Channel<T, Consumer>, AttachError> {
        self.consumer_with(id, &ChannelOptions::new())
    }

    /// [`producer`](Self::producer) with options; those of capacity and persistence count if this call creates the channel.
    ///
    /// ```
    /// # let name = format!("doc-ctx-producerw-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let readings = ctx.producer_with::<f32>(1, &ChannelOptions::new().capacity(16))?;
    /// assert_eq!(readings.capacity(), 16);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`producer`](Self::producer), and `Capacity` for a capacity that can't be had.
    pub fn producer_with<T: ?Sized + Payload>(
        &self,
        id: i64,
        options: &ChannelOptions,
    ) -> Result<Channel<T, Producer>, AttachError> {
        Channel::attach(&self.local, id, options)
    }

    /// [`consumer`](Self::consumer) with options.
    ///
    /// ```
    /// # let name = format!("doc-ctx-consumerw-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let readings = ctx.consumer_with::<f32>(1, &ChannelOptions::new().capacity(2))?;
    /// assert_eq!(readings.capacity(), 2);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`producer_with`](Self::producer_with).
    pub fn consumer_with<T: ?Sized + Payload>(
        &self,
        id: i64,
        options: &ChannelOptions,
    ) -> Result<Channel<T, Consumer>, AttachError> {
        Channel::attach(&self.local, id, options)
    }

    /// Attaches to channel `id` as its producer, to send values of `T` by value: they travel in the channel's slots, and no record
    /// is allocated. For small ones: more than 1016 bytes do not compile; see [`Message`](crate::Message).
    ///
    /// ```
    /// # let name = format!("doc-ctx-value-producer-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// let mut ticks = ctx.value_producer::<u64>(1)?;
    /// ticks.send(7)?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`producer`](Self::producer). `TypeMismatch` also if the channel carries records of this type.
    pub fn value_producer<T: Pod>(&self, id: i64) -> Result<ValueChannel<T, Producer>, AttachError> {
        self.value_producer_with(id, &ChannelOptions::new())
    }

    /// Attaches to channel `id` as its consumer, to receive values of `T` by value.
    ///
    /// ```
    /// # let name = format!("doc-ctx-value-consumer-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// let mut ticks = ctx.value_consumer::<u64>(1)?;
    /// ctx.value_producer::<u64>(1)?.send(7)?;
    /// assert_eq!(ticks.recv()?, 7);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`value_producer`](Self::value_producer).
    pub fn value_consumer<T: Pod>(&self, id: i64) -> Result<ValueChannel<T, Consumer>, AttachError> {
        self.value_consumer_with(id, &ChannelOptions::new())
    }

    /// [`value_producer`](Self::value_producer) with options; those of capacity and persistence count if this call creates the
    /// channel.
    ///
    /// ```
    /// # let name = format!("doc-ctx-value-producerw-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let ticks = ctx.value_producer_with::<u64>(1, &ChannelOptions::new().capacity(16))?;
    /// assert_eq!(ticks.capacity(), 16);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`value_producer`](Self::value_producer), and `Capacity` for a capacity that can't be had.
    pub fn value_producer_with<T: Pod>(
        &self,
        id: i64,
        options: &ChannelOptions,
    ) -> Result<ValueChannel<T, Producer>, AttachError> {
        Channel::attach(&self.local, id, options)
    }

    /// [`value_consumer`](Self::value_consumer) with options.
    ///
    /// ```
    /// # let name = format!("doc-ctx-value-consumerw-{}", std::process::id());
    /// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let ticks = ctx.value_consumer_with::<u64>(1, &ChannelOptions::new().capacity(2))?;
    /// assert_eq!(ticks.capacity(), 2);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`value_producer_with`](Self::value_producer_with).
    pub fn value_consumer_with<T: Pod>(
        &self,
        id: i64,
        options: &ChannelOptions,
    ) -> Result<ValueChannel<T, Consumer>, AttachError> {
        Channel::attach(&self.local, id, options)
    }

    /// Gives the cached free blocks back to the buffer now. They come back one magazine at a time as they are needed.
    ///
    /// ```
    /// # let name = format!("doc-ctx-flush-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// drop(ctx.record(1_u8)?);
    /// ctx.flush();
    /// assert_eq!(buffer.audit()?.cached_bytes, 0);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn flush(&self) {
        self.local.flush();
    }
}
