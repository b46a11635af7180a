//! Messages: what a channel can carry, and how it gets in and out of a slot.

use crate::channel::endpoint::Endpoint;
use crate::channel::tag;
use crate::directory::{Form, Kind};
use crate::format::{MAX_VALUE_BYTES, Shape};
use crate::heap::block;
use crate::queue::spsc::{At, NotPushed};
use crate::queue::value;
use crate::record::{NoBlock, Payload, Record};
use crate::sync::Ordering;
use bytemuck::Pod;
use std::mem::ManuallyDrop;

mod sealed {
    pub trait Sealed {}
    impl<T: ?Sized + crate::record::Payload> Sealed for crate::record::Record<T> {}
    impl<T: bytemuck::Pod> Sealed for T {}
}

/// What goes through a [`Channel`](crate::Channel): a [`Record`] of any [`Payload`], or a small value by value, which is any
/// [`bytemuck::Pod`] type.
///
/// A value travels in the channel's ring itself: nothing is allocated and nothing freed, and up to 56 bytes cost one cache line per
/// hand-over at most. For what is small and has no life of its own: samples, ticks, indices, commands. In all else a channel of values is
/// like one of records, with the same promises when somebody is killed.
///
/// A cache line of 64 bytes holds 7 values of up to 8 bytes, 3 of up to 16, 2 of up to 24, 1 of up to 56; a larger one has the least
/// number of lines that holds 8 bytes more than it. The limit is 1016 bytes, and more does not compile. A value of no size is a
/// signal that can be counted, and takes what one of 8 bytes does. A record's slot has 8 bytes.
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

    /// How values lie in the ring; `None` if its slots name granules.
    #[doc(hidden)]
    const SHAPE: Option<Shape>;

    /// Queues it, and then it is gone; see `End::push_granule`. `None` if it is another buffer's.
    #[doc(hidden)]
    fn push(&self, endpoint: &Endpoint) -> Option<Result<bool, NotPushed>>;

    /// Queues the first of them; see `End::push_granules`. `None` if the very first is another buffer's.
    #[doc(hidden)]
    fn push_batch(batch: &[Self], endpoint: &Endpoint) -> Option<Result<(usize, bool), NotPushed>>;

    /// Takes what is queued for this consumer, if something is, and goes on behind it; the head has yet to be moved.
    #[doc(hidden)]
    fn take(endpoint: &Endpoint, at: &mut At) -> Option<Result<Self, NoMessage>>;

    /// What is queued at `at`, if something is, left where it is: not to be dropped, and to be looked at only as long as this end is
    /// attached and has not taken it.
    #[doc(hidden)]
    fn peek(endpoint: &Endpoint, at: &At) -> Option<Result<ManuallyDrop<Self>, NoMessage>>;
}

/// What is queued is nothing that a sender of this library writes; it lies there still.
#[derive(Debug)]
pub(crate) struct NoMessage;

#[allow(private_interfaces)]
impl<T: ?Sized + Payload> Message for Record<T> {
    fn kind(tag: Option<&str>) -> Kind {
        tag::kind::<T::Element>(tag, if T::SLICE { Form::Slices } else { Form::Records })
    }

    const SHAPE: Option<Shape> = None;

    #[inline(always)]
    fn push(&self, endpoint: &Endpoint) -> Option<Result<bool, NotPushed>> {
        match self.block_in(&endpoint.local) {
            Ok(block) => Some(endpoint.end.push_granule(self.label(block))),
            // As where the ring has gone.
            Err(NoBlock::Closed) => Some(Err(NotPushed::Full)),
            Err(NoBlock::Foreign) => None,
        }
    }

    fn push_batch(batch: &[Self], endpoint: &Endpoint) -> Option<Result<(usize, bool), NotPushed>> {
        let block = |record: &Self| record.block_in(&endpoint.local);
        let ours = batch.iter().take_while(|record| !matches!(block(record), Err(NoBlock::Foreign))).count();
        // In a closed context there is no room for any.
        let granule = |record: &Self| block(record).map_or(0, |block| record.label(block));
        (ours > 0).then(|| endpoint.end.push_granules(ours, |i| granule(&batch[i])))
    }

    #[inline(always)]
    fn take(endpoint: &Endpoint, at: &mut At) -> Option<Result<Self, NoMessage>> {
        let granule = at.next_granule()?;
        let cache = endpoint.local.cache();
        let arena = cache.arena();
        // In a dialogue it is the same block, time and again. A core that foresees that something will be queued here asks for that
        // block's line now, and not when the slot's has come; any other was this side's just now, and is here already.
        arena.prefetch(endpoint.end.note_granule(granule));
        // A header that says neither "somebody's" nor "the channel's" was not queued by this library.
        let Some(start) = arena.start(granule).filter(|start| block::is_sendable(start.header())) else {
            return Some(Err(NoMessage));
        };
        // SAFETY: queued for us: nobody else writes it. If it is no record, it is left to whoever it is.
        #[allow(unsafe_code)]
        let record = unsafe {
            // SYNC(take)
            Self::from_block(cache, granule, start, || start.header().state.store(cache.owned().0, Ordering::Relaxed))
        };
        let Some(record) = record else { return Some(Err(NoMessage)) };
        // The slots of a line arrive together; what they name is far away still.
        at.glimpse().for_each(|granule| arena.prefetch(granule));
        at.step();
        Some(Ok(record))
    }

    fn peek(endpoint: &Endpoint, at: &At) -> Option<Result<ManuallyDrop<Self>, NoMessage>> {
        let granule = at.next_granule()?;
        let cache = endpoint.local.cache();
        let start = cache.arena().start(granule).filter(|start| block::is_sendable(start.header()));
        // SAFETY: it stays queued: nobody drops it, and whoever looks at it knows by the caller that it does.
        #[allow(unsafe_code)]
        let record = start.and_then(|start| unsafe { Self::from_block(cache, granule, start, || ()) });
        Some(record.map(ManuallyDrop::new).ok_or(NoMessage))
    }
}

#[allow(private_interfaces)]
impl<T: Pod> Message for T {
    fn kind(tag: Option<&str>) -> Kind {
        tag::kind::<T>(tag, Form::Values)
    }

    const SHAPE: Option<Shape> = Some(shape::<T>());

    #[inline(always)]
    fn push(&self, endpoint: &Endpoint) -> Option<Result<bool, NotPushed>> {
        let put = |words: &[_]| value::store(bytemuck::bytes_of(self), words);
        Some(endpoint.end.push_value(const { shape::<T>() }, put))
    }

    fn push_batch(batch: &[Self], endpoint: &Endpoint) -> Option<Result<(usize, bool), NotPushed>> {
        let put = |i: usize, words: &[_]| value::store(bytemuck::bytes_of(&batch[i]), words);
        Some(endpoint.end.push_values(const { shape::<T>() }, batch.len(), put))
    }

    #[inline(always)]
    fn take(endpoint: &Endpoint, at: &mut At) -> Option<Result<T, NoMessage>> {
        let words = endpoint.end.next_value(at, const { shape::<T>() })?;
        let mut value = T::zeroed();
        value::load(bytemuck::bytes_of_mut(&mut value), words);
        Some(Ok(value))
    }

    fn peek(_: &Endpoint, at: &At) -> Option<Result<ManuallyDrop<T>, NoMessage>> {
        let words = at.look_at_value(const { shape::<T>() })?;
        let mut value = T::zeroed();
        value::load(bytemuck::bytes_of_mut(&mut value), words);
        Some(Ok(ManuallyDrop::new(value)))
    }
}

const fn shape<T>() -> Shape {
    assert!(size_of::<T>() <= MAX_VALUE_BYTES, "a value has at most 1016 bytes; send records of larger types");
    Shape::of(size_of::<T>())
}
