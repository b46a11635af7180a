//! Messages: what a channel can carry, and how it gets in and out of a slot.

use crate::directory::{Form, Kind};
use crate::endpoint::Endpoint;
use crate::heap::block;
use crate::options;
use crate::queue::spsc::Queued;
use crate::queue::value;
use crate::record::{Payload, Record};
use crate::sync::{AtomicU64, Ordering};
use bytemuck::Pod;

mod sealed {
    pub trait Sealed {}
    impl<T: ?Sized + crate::record::Payload> Sealed for crate::record::Record<T> {}
    impl<T: bytemuck::Pod> Sealed for T {}
}

/// What goes through a [`Channel`](crate::Channel): a [`Record`] of any [`Payload`], or a small value by value, which is any
/// [`bytemuck::Pod`] type.
///
/// A value travels in the channel's slot itself: nothing is allocated and nothing freed, and up to 56 bytes cost one cache line per
/// hand-over. For what is small and has no life of its own: samples, ticks, indices, commands. In all else a channel of values is
/// like one of records, with the same promises when somebody is killed.
///
/// The slot of a value is 16, 32 or 64 bytes, the least that holds 8 more than the value, or else whole cache lines; the limit is
/// 1016 bytes, and more does not compile. A value of no size is a signal that can be counted, in slots of 8 bytes. A record's
/// slot has 8 bytes.
///
/// Sealed.
///
/// ```
/// # let name = format!("doc-message-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Channel, Consumer, Message, Payload};
/// /// All that is queued now, whatever it is.
/// fn all<T: ?Sized + Payload, M: Message>(channel: &mut Channel<T, Consumer, M>) -> Vec<M> {
///     channel.try_iter().collect()
/// }
/// let (mut tx, mut rx) = (ctx.producer::<u32>(1)?, ctx.consumer::<u32>(1)?);
/// tx.send(ctx.record(5)?)?;
/// assert_eq!(*all(&mut rx)[0], 5);
/// let (mut tx, mut rx) = (ctx.value_producer::<u32>(2)?, ctx.value_consumer::<u32>(2)?);
/// tx.send(6)?;
/// assert_eq!(all(&mut rx), [6]);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
/// ```compile_fail,E0080
/// # fn main() -> Result<(), ipc_buffer::Error> {
/// # let ctx = ipc_buffer::Buffer::open("doc-message-too-large")?.context()?;
/// let too_large = ctx.value_producer::<[u8; 1017]>(1)?;
/// # Ok(()) }
/// ```
/// ```
/// # let name = format!("doc-message-large-{}", std::process::id());
/// # let ctx = ipc_buffer::Buffer::open(&name)?.context()?;
/// let large = ctx.value_producer::<[u8; 1016]>(1)?;
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[allow(private_interfaces)] // what is hidden is nobody else's
pub trait Message: sealed::Sealed + Sized {
    /// What both ends must agree on.
    #[doc(hidden)]
    fn kind(tag: Option<&str>) -> Kind;

    /// Words of a slot.
    #[doc(hidden)]
    const SLOT_WORDS: usize;

    /// Whether slots name granules, else they hold values.
    #[doc(hidden)]
    const NAMES_GRANULES: bool;

    /// Whether it belongs to another buffer.
    #[doc(hidden)]
    fn is_foreign(&self, endpoint: &Endpoint) -> bool;

    /// Writes what goes behind a slot's word, and says what the word names. Once the slot is queued, the message is gone.
    #[doc(hidden)]
    fn put(&self, body: &[AtomicU64]) -> u32;

    /// Takes what is queued for this consumer; the head has yet to be moved beyond it. `None`, and nothing is done, if it is nothing
    /// that a sender of this library writes.
    #[doc(hidden)]
    fn take(endpoint: &Endpoint, queued: Queued) -> Option<Self>;
}

#[allow(private_interfaces)]
impl<T: ?Sized + Payload> Message for Record<T> {
    fn kind(tag: Option<&str>) -> Kind {
        options::kind::<T::Element>(tag, if T::SLICE { Form::Slices } else { Form::Records })
    }

    const SLOT_WORDS: usize = 1;
    const NAMES_GRANULES: bool = true;

    #[inline(always)]
    fn is_foreign(&self, endpoint: &Endpoint) -> bool {
        !self.belongs_to(endpoint.local.cache().tag())
    }

    #[inline(always)]
    fn put(&self, _: &[AtomicU64]) -> u32 {
        self.granule()
    }

    #[inline(always)]
    fn take(endpoint: &Endpoint, Queued { what: granule, .. }: Queued) -> Option<Self> {
        let cache = endpoint.local.cache();
        let arena = cache.arena();
        // A header that says neither "somebody's" nor "the channel's" was not queued by this library.
        let start = arena.start(granule).filter(|start| block::is_sendable(start.header()))?;
        // SAFETY: queued for us: nobody else writes it. If it is no record, it is left to whoever it is.
        #[allow(unsafe_code)]
        unsafe {
            // SYNC(take)
            Self::from_block(cache, granule, start, || start.header().state.store(cache.owned().0, Ordering::Relaxed))
        }
    }
}

#[allow(private_interfaces)]
impl<T: Pod> Message for T {
    fn kind(tag: Option<&str>) -> Kind {
        options::kind::<T>(tag, Form::Values)
    }

    const SLOT_WORDS: usize = {
        assert!(size_of::<T>() <= value::MAX_BYTES, "a value has at most 1016 bytes; send records of larger types");
        value::slot_words(size_of::<T>())
    };
    const NAMES_GRANULES: bool = false;

    #[inline(always)]
    fn is_foreign(&self, _: &Endpoint) -> bool {
        false
    }

    #[inline(always)]
    fn put(&self, body: &[AtomicU64]) -> u32 {
        value::store(bytemuck::bytes_of(self), body);
        value::HERE
    }

    #[inline(always)]
    fn take(_: &Endpoint, queued: Queued) -> Option<T> {
        let mut value = T::zeroed();
        value::load(bytemuck::bytes_of_mut(&mut value), queued.body);
        (queued.what == value::HERE).then_some(value)
    }
}
