//! How a channel is made, and what both ends must agree on.

use crate::channel::message::Message;
use crate::directory::{self, Form, Spec};
use crate::error::AttachError;
use crate::wait::WaitStrategy;

/// How to attach to a channel; see [`ThreadContext::producer_with`](crate::ThreadContext::producer_with).
///
/// ```
/// let options = ipc_buffer::ChannelOptions::new().capacity(64).persistent(true).type_tag("reading/2");
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    capacity: Option<usize>,
    persistent: Option<bool>,
    tag: Option<String>,
    pub(crate) strategy: WaitStrategy,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self { capacity: None, persistent: None, tag: None, strategy: WaitStrategy::Adaptive }
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

    /// Records, or values, the channel can queue: a power of two from 2 to 2^24. If it is left out, the channel is made with 1024, or is
    /// taken as it is; a channel that has another number is refused. Each takes a slot of 8 bytes, or what [its value needs](crate::Message); 0.5 KiB come on top.
    ///
    /// ```
    /// # let name = format!("doc-chan-options-cap-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{AttachError, ChannelOptions};
    /// let slots = |n| ChannelOptions::new().capacity(n);
    /// assert!(matches!(ctx.producer_with::<u8>(1, &slots(3)), Err(AttachError::Capacity { capacity: 3, .. })));
    /// let tx = ctx.producer_with::<u8>(1, &slots(4))?;
    /// let other = ctx.consumer_with::<u8>(1, &slots(64));
    /// assert!(matches!(other, Err(AttachError::CapacityMismatch { asked: 64, actual: 4, .. })));
    /// let rx = ctx.consumer::<u8>(1)?;
    /// assert_eq!((tx.capacity(), rx.capacity()), (4, 4));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn capacity(mut self, slots: usize) -> Self {
        self.capacity = Some(slots);
        self
    }

    /// Keeps the channel, with what is queued in it, when its last endpoint leaves; and a consumer that leaves is not missed:
    /// sending goes on, and waits when the channel is full, until the next one comes. The channel goes with
    /// [`Buffer::remove_channel`](crate::Buffer::remove_channel), or with the buffer. If it is left out, the channel is made without, or is
    /// taken as it is; a channel that differs is refused.
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
        self.persistent = Some(yes);
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
        let is_possible = |slots: &usize| slots.is_power_of_two() && (2..=directory::MAX_CAPACITY).contains(slots);
        if let Some(capacity) = self.capacity.filter(|slots| !is_possible(slots)) {
            return Err(AttachError::Capacity { capacity, max: directory::MAX_CAPACITY });
        }
        Ok(Spec { kind, capacity_log2: self.capacity.map(usize::trailing_zeros), persistent: self.persistent })
    }
}
