//! How a channel is made, and what both ends must agree on.

use crate::directory::{self, Form, Kind, Spec};
use crate::error::AttachError;
use crate::message::Message;
use crate::tag;
use crate::wait::WaitStrategy;

/// How to attach to a channel; see [`ThreadContext::producer_with`](crate::ThreadContext::producer_with).
///
/// ```
/// let options = ipc_buffer::ChannelOptions::new().capacity(64).persistent(true).type_tag("reading/2");
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    capacity: usize,
    persistent: bool,
    tag: Option<String>,
    pub(crate) strategy: WaitStrategy,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self { capacity: 1024, persistent: false, tag: None, strategy: WaitStrategy::Adaptive }
    }
}

impl ChannelOptions {
    /// 1024 slots, not persistent, the type's own name, with the fields if it derives [`Layout`](macro@crate::Layout), as its tag.
    ///
    /// ```
    /// # let name = format!("doc-chan-options-new-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let tx = ctx.producer_with::<u64>(1, &ChannelOptions::new())?;
    /// let info = &buffer.channels()?[0];
    /// assert_eq!((info.capacity, info.persistent), (1024, false));
    /// assert_eq!(info.carries, "u64 (8 bytes, align 8)");
    /// # drop(tx);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records, or values, the channel can queue: a power of two from 2 to 2^24. Counts for who creates the channel; who attaches
    /// later gets what is there. Each takes a slot of 8 bytes, or what [its value needs](crate::Message); 0.5 KiB come on top.
    ///
    /// ```
    /// # let name = format!("doc-chan-options-cap-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{AttachError, ChannelOptions};
    /// let slots = |n| ChannelOptions::new().capacity(n);
    /// assert!(matches!(ctx.producer_with::<u8>(1, &slots(3)), Err(AttachError::Capacity { capacity: 3, .. })));
    /// let tx = ctx.producer_with::<u8>(1, &slots(4))?;
    /// let rx = ctx.consumer_with::<u8>(1, &slots(64))?;
    /// assert_eq!((tx.capacity(), rx.capacity()), (4, 4));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn capacity(mut self, slots: usize) -> Self {
        self.capacity = slots;
        self
    }

    /// Keeps the channel, with what is queued in it, when its last endpoint leaves; and a consumer that leaves is not missed:
    /// sending goes on, and waits when the channel is full, until the next one comes. The channel goes with
    /// [`Buffer::remove_channel`](crate::Buffer::remove_channel), or with the buffer. Counts for who creates the channel.
    ///
    /// ```
    /// # let name = format!("doc-chan-options-persist-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().persistent(true))?;
    /// tx.send(ctx.record(5)?)?;
    /// drop(tx);
    /// assert_eq!(*ctx.consumer::<u64>(1)?.recv()?, 5);
    /// assert!(buffer.remove_channel(1)?);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn persistent(mut self, yes: bool) -> Self {
        self.persistent = yes;
        self
    }

    /// What both ends must agree on besides size and alignment. The default is the type's name without its
    /// path (`Sample`, `f64`), so that two programs may define the same type in different places; and the fields of a struct
    /// that derives [`Layout`](macro@crate::Layout) (`Sample{t_ns:u64@0,value:f64@8}`), so that they define the same one. Without the derive,
    /// nobody compares fields. Choose a tag to tell revisions of such a layout apart, or to rename a type or a field.
    ///
    /// ```
    /// # let name = format!("doc-chan-options-tag-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{AttachError, ChannelOptions};
    /// let tag = |tag| ChannelOptions::new().type_tag(tag);
    /// let _tx = ctx.producer_with::<[f32; 2]>(1, &tag("point/2"))?;
    /// let old = ctx.consumer_with::<[f32; 2]>(1, &tag("point/1"));
    /// assert!(matches!(old, Err(AttachError::TypeMismatch { .. })));
    /// assert!(ctx.consumer_with::<[f32; 2]>(1, &tag("point/2")).is_ok());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn type_tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// How this end waits: [`Adaptive`](WaitStrategy::Adaptive) unless told otherwise. Each end has its own; the other one need not
    /// know.
    ///
    /// ```
    /// # let name = format!("doc-chan-options-wait-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, WaitStrategy};
    /// let waits = |strategy| ChannelOptions::new().wait_strategy(strategy);
    /// let mut tx = ctx.producer_with::<u64>(1, &waits(WaitStrategy::Block))?;
    /// # let receiver = std::thread::spawn({ let buffer = buffer.clone(); move || -> Result<u64, ipc_buffer::Error> {
    /// #     let (ctx, waits) = (buffer.context()?, |strategy| ChannelOptions::new().wait_strategy(strategy));
    /// let mut rx = ctx.consumer_with::<u64>(1, &waits(WaitStrategy::Spin))?; // elsewhere, on a core of its own
    /// #     Ok(*rx.recv()?)
    /// # } });
    /// tx.send(ctx.record(5)?)?;
    /// # assert_eq!(receiver.join().unwrap()?, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn wait_strategy(mut self, strategy: WaitStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    pub(crate) fn spec<M: Message>(&self) -> Result<Spec, AttachError> {
        // Too large a value does not compile, here already.
        let _ = M::SHAPE;
        let kind = M::kind(self.tag.as_deref());
        if kind.form != Form::Values && kind.align > 4096 {
            return Err(AttachError::Alignment { align: kind.align as usize });
        }
        if !self.capacity.is_power_of_two() || !(2..=directory::MAX_CAPACITY).contains(&self.capacity) {
            return Err(AttachError::Capacity { capacity: self.capacity, max: directory::MAX_CAPACITY });
        }
        Ok(Spec { kind, capacity_log2: self.capacity.trailing_zeros(), persistent: self.persistent })
    }
}

/// What a channel of `T`s in this form says it carries.
pub(crate) fn kind<T: 'static>(tag: Option<&str>, form: Form) -> Kind {
    let tag = tag.map_or_else(tag::of::<T>, str::to_owned);
    let align = u32::try_from(align_of::<T>()).unwrap_or(u32::MAX);
    Kind { size: size_of::<T>() as u64, align, form, tag: tag::shorten(tag, directory::TAG_BYTES) }
}
