//! Channels: typed ends of queues, one thread each.
//!
//! # Ownership
//! An endpoint is its context's and its thread's. A queued record belongs to the channel; sending gives a record up, receiving
//! gives one out.
//!
//! # If a process dies
//! See `queue::spsc` for what happens to records, and `directory` for roles. Whoever waits looks, every 100 ms at the latest,
//! whether the peer's lease still stands. If not, the peer is gone for this end, even if nobody comes to reap it; what can be
//! reaped in a moment, this end reaps.

#![allow(unsafe_code)]

use crate::attachment::Hold;
use crate::directory::{self, ChannelRef, Kind, Refused, Side, Spec};
use crate::error::{
    AllocError, AttachError, BufferError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError,
    TrySendError,
};
use crate::heap::{self, block};
use crate::layout::{CHANNELS, DirectoryEntry, Owner};
use crate::local::{Attached, Inert, Local};
use crate::participant;
use crate::queue::spsc::{self, End, NotPushed, Ring};
use crate::record::{Payload, Record};
use crate::recovery::{self, Effort};
use crate::sync::Ordering;
use crate::sys::crash::point;
use crate::wait::{self, Bed};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

/// The sending end of a [`Channel`].
///
/// ```
/// # let name = format!("doc-producer-marker-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Channel, Producer};
/// struct Sensor {
///     readings: Channel<f32, Producer>,
/// }
/// let mut sensor = Sensor { readings: ctx.producer(1)? };
/// sensor.readings.send(ctx.record(0.5)?)?;
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Producer {}

/// The receiving end of a [`Channel`].
///
/// ```
/// # let name = format!("doc-consumer-marker-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Channel, Consumer};
/// struct Display {
///     readings: Channel<f32, Consumer>,
/// }
/// let mut display = Display { readings: ctx.consumer(1)? };
/// assert!(display.readings.try_recv().is_err(), "nothing is queued");
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Consumer {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Producer {}
    impl Sealed for super::Consumer {}
}

/// [`Producer`] or [`Consumer`].
///
/// ```
/// # let name = format!("doc-role-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Channel, Role};
/// /// Slots left, as either end sees it.
/// fn free_slots<R: Role>(channel: &Channel<u64, R>) -> usize {
///     channel.capacity() - channel.len()
/// }
/// assert_eq!(free_slots(&ctx.producer(1)?), 1024);
/// assert_eq!(free_slots(&ctx.consumer(1)?), 1024);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub trait Role: sealed::Sealed {
    #[doc(hidden)]
    const SENDS: bool;
}

impl Role for Producer {
    const SENDS: bool = true;
}

impl Role for Consumer {
    const SENDS: bool = false;
}

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
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self { capacity: 1024, persistent: false, tag: None }
    }
}

impl ChannelOptions {
    /// 1024 slots, not persistent, the type's own name as its tag.
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

    /// Records the channel can queue: a power of two from 2 to 2^24. Counts for who creates the channel; who attaches later gets
    /// what is there.
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
    /// path (`Sample`, `f64`), so that two programs may define the same type in different places. Choose a tag to tell
    /// revisions of a layout apart, or to rename a type.
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

    fn spec<T: ?Sized + Payload>(&self) -> Result<Spec, AttachError> {
        let align = align_of::<T::Element>();
        if align > 4096 {
            return Err(AttachError::Alignment { align });
        }
        if !self.capacity.is_power_of_two() || !(2..=directory::MAX_CAPACITY).contains(&self.capacity) {
            return Err(AttachError::Capacity { capacity: self.capacity, max: directory::MAX_CAPACITY });
        }
        let tag = self.tag.clone().unwrap_or_else(|| short_name(std::any::type_name::<T::Element>()));
        let tag = shorten(tag, directory::TAG_BYTES);
        let size = size_of::<T::Element>() as u64;
        let kind = Kind { size, align: u32::try_from(align).unwrap_or(0), slice: T::SLICE, tag };
        Ok(Spec { kind, capacity_log2: self.capacity.trailing_zeros(), persistent: self.persistent })
    }
}

/// At most `limit` bytes that stand for `tag`: a longer one keeps its beginning, and a hash stands for all of it.
fn shorten(tag: String, limit: usize) -> String {
    if tag.len() <= limit {
        return tag;
    }
    let hash = format!("#{:016x}", fnv(tag.as_bytes()));
    let mut short = tag;
    while short.len() + hash.len() > limit {
        short.pop();
    }
    short + &hash
}

/// FNV-1a: fixed for ever, unlike the standard library's hashers.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A type's name without the paths: `my_crate::geo::Grid<other::Cell>` is `Grid<Cell>`.
fn short_name(full: &str) -> String {
    let mut short = String::new();
    let mut word_start = 0;
    for c in full.chars() {
        short.push(c);
        if c == ':' {
            short.truncate(word_start);
        } else if !(c.is_alphanumeric() || c == '_') {
            word_start = short.len();
        }
    }
    short
}

/// The untyped part of a channel's end; its context detaches it when it closes.
struct Endpoint {
    end: End,
    local: Rc<Local>,
    id: i64,
    side: Side,
    channel: ChannelRef,
    attached: Cell<bool>,
    /// Who had the other end when it was found dead.
    dead: Cell<Option<Owner>>,
    /// Polls that found nothing.
    idle: Cell<u32>,
    /// When polling last looked whether the peer lives.
    looked: Cell<Instant>,
    /// See [`Bed`].
    slept: Cell<Duration>,
}

impl Attached for Endpoint {
    fn abandon(&self) {
        self.attached.set(false);
        self.end.abandon();
    }

    fn detach(&self) {
        if !self.attached.replace(false) {
            return;
        }
        self.end.abandon();
        let Some(hold) = self.local.hold() else { return };
        if let Ok(control) = hold.control() {
            directory::detach(control, self.local.cache(), self.channel, self.side);
        }
        // Else somebody sits on the lock: the role stays ours until the process goes.
    }
}

impl Endpoint {
    /// Why nothing works any more, if nothing does.
    fn check(&self) -> Result<(), Inert> {
        self.local.check()?;
        if self.attached.get() { Ok(()) } else { Err(Inert::Closed) }
    }

    fn entry(&self) -> Option<&DirectoryEntry> {
        self.local.cache().arena().directory_entry(self.channel.index)
    }

    fn is_dead(&self, who: Owner) -> bool {
        self.local.hold().is_some_and(|hold| !participant::is_alive(hold.segment(), hold.me(), who))
    }

    /// Whether somebody holds the other end who is not known to be dead.
    fn has_peer(&self) -> bool {
        let holder = self.entry().and_then(|entry| directory::holder(entry, self.side.other()));
        // Asked again: a process that takes over a dead one's slot has its name.
        holder.is_some_and(|who| self.dead.get() != Some(who) || !self.is_dead(who))
    }

    /// Whether the other end has left for good: it was here, or it can't come any more because the id is gone. A producer of a
    /// persistent channel does not lose its consumers: it queues for the next.
    fn has_lost_peer(&self) -> bool {
        self.entry().is_none_or(|entry| {
            let queues_on = self.side == Side::Producer && directory::is_persistent(entry);
            let was_here = entry.seen.load(Ordering::Acquire) & self.side.other().seen() != 0 && !queues_on;
            (was_here || directory::is_removed(entry)) && !self.has_peer()
        })
    }

    /// Looks whether the other end's process lives; if not, knows it from then on, whoever reaps, and lends a hand with that.
    fn check_peer(&self) {
        let peer = self.entry().and_then(|entry| directory::holder(entry, self.side.other()));
        if let Some(peer) = peer
            && self.is_dead(peer)
            && let Some(hold) = self.local.hold()
        {
            self.dead.set(Some(peer));
            recovery::reap(&hold, Effort::A_MOMENT);
        }
    }

    /// For those who poll and never wait: sees now and then if the peer lives. The clock is cheap, but not for each poll.
    fn polled_in_vain(&self) {
        let idle = self.idle.get().wrapping_add(1);
        self.idle.set(idle);
        if idle.is_multiple_of(16) && self.looked.get().elapsed() >= wait::TICK {
            self.looked.set(Instant::now());
            self.check_peer();
        }
    }
}

/// One end of a named, typed queue with one producer and one consumer: [`Channel<T, Producer>`](Producer) or
/// [`Channel<T, Consumer>`](Consumer).
///
/// Made by [`ThreadContext::producer`](crate::ThreadContext::producer) and
/// [`consumer`](crate::ThreadContext::consumer); stays in that thread, and works as long as that context is open. Dropping it
/// releases the role: the peer then gets `Disconnected` (a consumer after it has received everything queued), and another
/// endpoint may take the role and go on. When both ends have left, the channel and what is queued in it are freed, unless it is
/// [`persistent`](ChannelOptions::persistent). So what a producer sends before any consumer has come is gone if it leaves, or is killed,
/// before one does: [wait for it](Channel::wait_for_consumer), or make the channel persistent.
///
/// If the process of one end is killed, the other end sees a peer that has left, within 250 ms if it waits; records that were
/// sent are still received, in order and once.
///
/// ```
/// # let name = format!("doc-channel-{}", std::process::id());
/// let buffer = ipc_buffer::Buffer::open(&name)?;
/// let ctx = buffer.context()?;
/// let mut tx = ctx.producer::<u64>(7)?;
/// let mut rx = ctx.consumer::<u64>(7)?;
/// tx.send(ctx.record(1)?)?;
/// tx.send(ctx.record(2)?)?;
/// drop(tx);
/// let all: Vec<u64> = rx.iter().map(|record| *record).collect();
/// assert_eq!(all, [1, 2]);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct Channel<T: ?Sized + Payload, R: Role> {
    endpoint: Rc<Endpoint>,
    role: PhantomData<R>,
    carries: PhantomData<Record<T>>,
}

impl<T: ?Sized + Payload, R: Role> fmt::Debug for Channel<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { id, side, attached, .. } = &*self.endpoint;
        f.debug_struct("Channel").field("id", id).field("side", side).field("attached", &attached.get()).finish()
    }
}

impl<T: ?Sized + Payload, R: Role> Drop for Channel<T, R> {
    fn drop(&mut self) {
        self.endpoint.detach();
    }
}

impl<T: ?Sized + Payload, R: Role> Channel<T, R> {
    pub(crate) fn attach(local: &Rc<Local>, id: i64, options: &ChannelOptions) -> Result<Self, AttachError> {
        let spec = options.spec::<T>()?;
        local.check().map_err(|inert| match inert {
            Inert::Forked => AttachError::Forked,
            Inert::Closed => AttachError::ContextClosed,
        })?;
        let hold = local.hold().ok_or(AttachError::ContextClosed)?;
        let side = if R::SENDS { Side::Producer } else { Side::Consumer };
        let (channel, ring) = attach(&hold, local, id, side, &spec)?;
        let endpoint = Rc::new(Endpoint {
            end: if R::SENDS { End::producer(ring) } else { End::consumer(ring) },
            local: Rc::clone(local),
            id,
            side,
            channel,
            attached: Cell::new(true),
            dead: Cell::new(None),
            idle: Cell::new(0),
            looked: Cell::new(Instant::now()),
            slept: Cell::new(Duration::ZERO),
        });
        let weak: Weak<Endpoint> = Rc::downgrade(&endpoint);
        local.register(weak);
        Ok(Self { endpoint, role: PhantomData, carries: PhantomData })
    }

    /// The channel's id.
    ///
    /// ```
    /// # let name = format!("doc-chan-id-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// assert_eq!(ctx.producer::<u8>(i64::MIN)?.id(), i64::MIN);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn id(&self) -> i64 {
        self.endpoint.id
    }

    /// Records it can queue; fixed when the channel was created. 0 once the endpoint is detached.
    ///
    /// ```
    /// # let name = format!("doc-chan-capacity-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let tx = ctx.producer::<u8>(1)?;
    /// assert_eq!(tx.capacity(), 1024);
    /// drop(ctx);
    /// assert_eq!(tx.capacity(), 0, "its context has closed");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn capacity(&self) -> usize {
        self.endpoint.end.ring().slots.len()
    }

    /// Records queued. The other end may change it at any time: what the producer sees can only shrink meanwhile, what the
    /// consumer sees only grow. Looks at every queued slot.
    ///
    /// ```
    /// # let name = format!("doc-chan-len-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// tx.send(ctx.record(1)?)?;
    /// tx.send(ctx.record(2)?)?;
    /// assert_eq!((tx.len(), rx.len()), (2, 2));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn len(&self) -> usize {
        spsc::window(self.endpoint.end.ring()).count()
    }

    /// Whether nothing is queued; see [`len`](Self::len).
    ///
    /// ```
    /// # let name = format!("doc-chan-empty-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// assert!(tx.is_empty());
    /// tx.send(ctx.record(1)?)?;
    /// assert!(!tx.is_empty());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has_peer(&self) -> bool {
        if self.endpoint.check().is_err() {
            return false;
        }
        self.endpoint.check_peer();
        self.endpoint.has_peer()
    }

    fn wait_for_peer(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let Some(hold) = self.endpoint.local.hold() else { return false };
        let version = &hold.arena().header().directory_version;
        let ready = || (self.endpoint.check().is_err() || self.has_peer()).then_some(());
        wait::for_change(version, deadline, ready);
        self.has_peer()
    }
}

/// Attaches `side`; brings storage if the channel must be made; takes the role from a dead process if it has it.
fn attach(hold: &Hold, local: &Local, id: i64, side: Side, spec: &Spec) -> Result<(ChannelRef, Ring), AttachError> {
    let is_dead = |who| !participant::is_alive(hold.segment(), hold.me(), who);
    let mut storage = None;
    let mut met_the_dead = false;
    let result = loop {
        let control = match hold.control() {
            Ok(control) => control,
            Err(BufferError::Busy { pid }) => break Err(AttachError::Busy { pid }),
            Err(_) => break Err(AttachError::Forked),
        };
        match directory::attach(&control, hold.me(), id, side, spec, &mut storage) {
            Ok(attached) => break Ok(attached),
            Err(Refused::Missing) => {
                // Not under the lock: making room may need it.
                drop(control);
                match local.alloc(spec.storage_bytes()) {
                    Ok(block) => {
                        let meta = block::Meta { class: block.class, offset: 64, count: 0 };
                        block.header.meta.store(meta.pack(), Ordering::Relaxed);
                        storage = Some(block);
                    }
                    Err(AllocError::OutOfMemory { asked, free }) => {
                        break Err(AttachError::OutOfMemory { asked, free });
                    }
                    Err(AllocError::ContextClosed) => break Err(AttachError::ContextClosed),
                    Err(_) => break Err(AttachError::Forked),
                }
            }
            Err(Refused::Taken { channel, holder, .. }) if is_dead(holder) => {
                directory::bereave(control, local.cache(), channel, is_dead);
                met_the_dead = true;
            }
            Err(Refused::Taken { holder, thread, .. }) => {
                let pid = participant::pid(hold.arena(), holder);
                break Err(AttachError::RoleTaken { id, role: side.name(), pid, thread });
            }
            Err(Refused::Kind(theirs)) => {
                let (ours, theirs) = (spec.kind.to_string(), theirs.to_string());
                break Err(AttachError::TypeMismatch { id, ours, theirs });
            }
            Err(Refused::NotBacked) => {
                let free = heap::free_bytes(hold.arena(), heap::unit::NoUnits::NotBacked);
                break Err(AttachError::OutOfMemory { asked: crate::layout::PAGE, free });
            }
            Err(Refused::Full) => break Err(AttachError::TooManyChannels { limit: CHANNELS }),
            Err(Refused::Corrupted) => break Err(AttachError::Corrupted { id }),
        }
    };
    if let Some(block) = storage {
        heap::free(local.cache(), block.granule, block.class);
    }
    if met_the_dead {
        // What else they had.
        recovery::reap(hold, Effort::A_MOMENT);
    }
    result
}

fn deadline(timeout: Duration) -> Option<Instant> {
    // Later than the clock can say is never.
    Instant::now().checked_add(timeout)
}

impl<T: ?Sized + Payload> Channel<T, Producer> {
    /// Queues the record if a slot is free, and never waits.
    ///
    /// ```
    /// # let name = format!("doc-try-send-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, TrySendError};
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// tx.try_send(ctx.record(1)?)?;
    /// tx.try_send(ctx.record(2)?)?;
    /// let Err(TrySendError::Full(record)) = tx.try_send(ctx.record(3)?) else { panic!("it has two slots") };
    /// assert_eq!(*record, 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// Each gives the record back: `Full`, `Disconnected` if the consumer has left (not before the first has come),
    /// `ForeignRecord` if it is another buffer's, `Forked`, `ContextClosed`.
    #[inline(always)]
    pub fn try_send(&mut self, record: Record<T>) -> Result<(), TrySendError<T>> {
        let endpoint = &*self.endpoint;
        if record.attachment() != endpoint.local.attachment() {
            return Err(TrySendError::ForeignRecord(record));
        }
        match endpoint.end.push(record.granule()) {
            Ok(wake) => {
                record.into_granule();
                if wake {
                    point!("send: before the wake");
                    let header = endpoint.end.ring().header;
                    wait::wake(&header.to_producer, &header.consumer_futex);
                }
                Ok(())
            }
            Err(why) => Err(self.not_pushed(record, why)),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_pushed(&self, record: Record<T>, why: NotPushed) -> TrySendError<T> {
        match (self.endpoint.check(), why) {
            (Err(Inert::Forked), _) => TrySendError::Forked(record),
            (Err(Inert::Closed), _) => TrySendError::ContextClosed(record),
            (Ok(()), NotPushed::Gone) => TrySendError::Disconnected(record),
            (Ok(()), NotPushed::Full) if self.endpoint.has_lost_peer() => TrySendError::Disconnected(record),
            (Ok(()), NotPushed::Full) => {
                self.endpoint.polled_in_vain();
                TrySendError::Full(record)
            }
        }
    }

    /// Queues the record, waiting for a free slot.
    ///
    /// ```
    /// # let name = format!("doc-send-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::ChannelOptions;
    /// let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().capacity(2))?;
    /// # let receiver = std::thread::spawn({ let buffer = buffer.clone(); move || -> Result<u64, ipc_buffer::Error> {
    /// #     let ctx = buffer.context()?;
    /// #     Ok(ctx.consumer::<u64>(1)?.iter().map(|record| *record).sum())
    /// # } });
    /// for i in 0..100 {
    ///     tx.send(ctx.record(i)?)?; // waits for a receiver in another thread, which frees the two slots
    /// }
    /// # drop(tx);
    /// # assert_eq!(receiver.join().unwrap()?, 4950);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send) without `Full`. A consumer whose process is killed counts as one that has left: within 250 ms
    /// for a sender that waits, and for others when the channel is full, or anybody reaps (as [`has_consumer`](Self::has_consumer)
    /// does). What was sent meanwhile stays queued for the next consumer.
    #[inline(always)]
    pub fn send(&mut self, record: Record<T>) -> Result<(), SendError<T>> {
        match self.try_send(record) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(record)) => self.send_slow(record, None).map_err(|error| match error {
                SendTimeoutError::Timeout(record) | SendTimeoutError::Disconnected(record) => {
                    SendError::Disconnected(record)
                }
                SendTimeoutError::ForeignRecord(record) => SendError::ForeignRecord(record),
                SendTimeoutError::Forked(record) => SendError::Forked(record),
                SendTimeoutError::ContextClosed(record) => SendError::ContextClosed(record),
            }),
            Err(TrySendError::Disconnected(record)) => Err(SendError::Disconnected(record)),
            Err(TrySendError::ForeignRecord(record)) => Err(SendError::ForeignRecord(record)),
            Err(TrySendError::Forked(record)) => Err(SendError::Forked(record)),
            Err(TrySendError::ContextClosed(record)) => Err(SendError::ContextClosed(record)),
        }
    }

    /// Queues the record, waiting for a free slot up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-send-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::Duration;
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// tx.send_timeout(ctx.record(1)?, Duration::from_millis(1))?;
    /// tx.send_timeout(ctx.record(2)?, Duration::from_millis(1))?;
    /// let late = tx.send_timeout(ctx.record(3)?, Duration::from_millis(1));
    /// let Err(SendTimeoutError::Timeout(record)) = late else { panic!("it has two slots") };
    /// assert_eq!(*record, 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and `Timeout`.
    pub fn send_timeout(&mut self, record: Record<T>, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_slow(record, deadline(timeout))
    }

    /// Queues the record, waiting for a free slot until `deadline`.
    ///
    /// ```
    /// # let name = format!("doc-send-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::{Duration, Instant};
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// let deadline = Instant::now() + Duration::from_millis(1);
    /// tx.send_deadline(ctx.record(1)?, deadline)?;
    /// tx.send_deadline(ctx.record(2)?, deadline)?;
    /// let late = tx.send_deadline(ctx.record(3)?, deadline);
    /// assert!(matches!(late, Err(SendTimeoutError::Timeout(_))));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and `Timeout`.
    pub fn send_deadline(&mut self, record: Record<T>, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_slow(record, Some(deadline))
    }

    #[cold]
    fn send_slow(&mut self, record: Record<T>, deadline: Option<Instant>) -> Result<(), SendTimeoutError<T>> {
        let endpoint = Rc::clone(&self.endpoint);
        let header = endpoint.end.ring().header;
        let mut record = Some(record);
        let ready = || match self.try_send(record.take()?) {
            Ok(()) => Some(Ok(())),
            Err(TrySendError::Full(back)) => {
                record = Some(back);
                None
            }
            Err(TrySendError::Disconnected(back)) => Some(Err(SendTimeoutError::Disconnected(back))),
            Err(TrySendError::ForeignRecord(back)) => Some(Err(SendTimeoutError::ForeignRecord(back))),
            Err(TrySendError::Forked(back)) => Some(Err(SendTimeoutError::Forked(back))),
            Err(TrySendError::ContextClosed(back)) => Some(Err(SendTimeoutError::ContextClosed(back))),
        };
        let tick = || endpoint.check_peer();
        let slept = &endpoint.slept;
        let bed = Bed { asleep_in: &header.to_consumer, futex_word: &header.producer_futex, slept };
        let full_at = endpoint.end.ring().head();
        let glance = || endpoint.end.ring().head() != full_at;
        match wait::until(bed, deadline, 16, glance, ready, tick) {
            Some(result) => result,
            None => record.map_or(Ok(()), |record| Err(SendTimeoutError::Timeout(record))),
        }
    }

    /// Whether a consumer is attached and alive now.
    ///
    /// ```
    /// # let name = format!("doc-has-consumer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let tx = ctx.producer::<u8>(1)?;
    /// assert!(!tx.has_consumer());
    /// let _rx = ctx.consumer::<u8>(1)?;
    /// assert!(tx.has_consumer());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn has_consumer(&self) -> bool {
        self.has_peer()
    }

    /// Waits until a consumer is attached; false if none came in time.
    ///
    /// ```
    /// # let name = format!("doc-wait-consumer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let tx = ctx.producer::<u8>(1)?;
    /// assert!(!tx.wait_for_consumer(Duration::from_millis(1)));
    /// let _rx = ctx.consumer::<u8>(1)?;
    /// assert!(tx.wait_for_consumer(Duration::from_millis(1)));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn wait_for_consumer(&self, timeout: Duration) -> bool {
        self.wait_for_peer(timeout)
    }
}

impl<T: ?Sized + Payload> Channel<T, Consumer> {
    /// Receives the next record if one is queued, and never waits.
    ///
    /// ```
    /// # let name = format!("doc-try-recv-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{RecvError, TryRecvError};
    /// let mut rx = ctx.consumer::<u8>(1)?;
    /// assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
    /// drop(ctx.producer::<u8>(1)?);
    /// assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::Disconnected));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Empty`; `Disconnected` if everything queued was received and the producer has left (not before the first has come);
    /// `Corrupted` if a slot held what no sender writes; `Forked`, `ContextClosed`.
    #[inline(always)]
    pub fn try_recv(&mut self) -> Result<Record<T>, TryRecvError> {
        let endpoint = &*self.endpoint;
        match endpoint.end.peek() {
            Some(granule) => self.take(granule).map_err(TryRecvError::Recv),
            None => self.nothing_queued(),
        }
    }

    #[inline(always)]
    fn take(&self, granule: u32) -> Result<Record<T>, RecvError> {
        let endpoint = &*self.endpoint;
        let cache = endpoint.local.cache();
        let arena = cache.arena();
        // A header that says neither "somebody's" nor "the channel's" was not queued by this library.
        let header = arena.block(granule).filter(|header| block::is_sendable(header));
        // SAFETY: not ours yet, but queued for us: nobody else writes it. If it is no record, it is left to whoever it is.
        let record = header
            .and_then(|header| unsafe { Record::from_block(endpoint.local.attachment(), arena, granule, header) });
        let wake = endpoint.end.take(arena, cache.me(), record.is_some().then_some(header).flatten());
        if wake {
            point!("recv: before the wake");
            let header = endpoint.end.ring().header;
            wait::wake(&header.to_consumer, &header.producer_futex);
        }
        record.ok_or(RecvError::Corrupted)
    }

    #[cold]
    #[inline(never)]
    fn nothing_queued(&self) -> Result<Record<T>, TryRecvError> {
        let endpoint = &*self.endpoint;
        endpoint.check().map_err(|inert| match inert {
            Inert::Forked => RecvError::Forked,
            Inert::Closed => RecvError::ContextClosed,
        })?;
        if endpoint.has_lost_peer() {
            // It may have sent and left since we looked.
            return match endpoint.end.peek() {
                Some(granule) => self.take(granule).map_err(TryRecvError::Recv),
                None => Err(RecvError::Disconnected.into()),
            };
        }
        endpoint.polled_in_vain();
        Err(TryRecvError::Empty)
    }

    /// Receives the next record, waiting for it. Before the first producer has come nobody is disconnected, so this waits for one
    /// to come, if need be for ever.
    ///
    /// ```
    /// # let name = format!("doc-recv-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut rx = ctx.consumer::<u64>(1)?;
    /// # let sender = std::thread::spawn({ let buffer = buffer.clone(); move || -> Result<(), ipc_buffer::Error> {
    /// #     let ctx = buffer.context()?;
    /// #     Ok(ctx.producer(1)?.send(ctx.record(5_u64)?)?)
    /// # } });
    /// // Another thread sends one record and leaves.
    /// assert_eq!(*rx.recv()?, 5);
    /// assert_eq!(rx.recv().unwrap_err(), ipc_buffer::RecvError::Disconnected);
    /// # sender.join().unwrap()?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv) without `Empty`. A producer whose process is killed counts as one that has left, within
    /// 250 ms.
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Record<T>, RecvError> {
        match self.try_recv() {
            Ok(record) => Ok(record),
            Err(TryRecvError::Recv(error)) => Err(error),
            Err(TryRecvError::Empty) => self.recv_slow(None).unwrap_or(Err(RecvError::Disconnected)),
        }
    }

    /// Receives the next record, waiting for it up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-recv-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::Duration;
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// let wait = Duration::from_millis(1);
    /// assert_eq!(rx.recv_timeout(wait).unwrap_err(), RecvTimeoutError::Timeout(wait));
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(*rx.recv_timeout(wait)?, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Record<T>, RecvTimeoutError> {
        let result = self.recv_slow(deadline(timeout)).ok_or(RecvTimeoutError::Timeout(timeout))?;
        Ok(result?)
    }

    /// Receives the next record, waiting for it until `deadline`.
    ///
    /// ```
    /// # let name = format!("doc-recv-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::{Duration, Instant};
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// let deadline = Instant::now() + Duration::from_millis(1);
    /// assert_eq!(*rx.recv_deadline(deadline)?, 5);
    /// assert!(matches!(rx.recv_deadline(deadline), Err(RecvTimeoutError::Timeout(_))));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn recv_deadline(&mut self, deadline: Instant) -> Result<Record<T>, RecvTimeoutError> {
        let waited = deadline.saturating_duration_since(Instant::now());
        let result = self.recv_slow(Some(deadline)).ok_or(RecvTimeoutError::Timeout(waited))?;
        Ok(result?)
    }

    #[cold]
    fn recv_slow(&mut self, deadline: Option<Instant>) -> Option<Result<Record<T>, RecvError>> {
        let endpoint = Rc::clone(&self.endpoint);
        let header = endpoint.end.ring().header;
        let ready = || match self.try_recv() {
            Ok(record) => Some(Ok(record)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Recv(error)) => Some(Err(error)),
        };
        let tick = || endpoint.check_peer();
        let slept = &endpoint.slept;
        let bed = Bed { asleep_in: &header.to_producer, futex_word: &header.consumer_futex, slept };
        wait::until(bed, deadline, 1, || endpoint.end.peek().is_some(), ready, tick)
    }

    /// Receives until the producer has left and everything is drained, waiting for each record. Skips what is
    /// [`Corrupted`](RecvError::Corrupted).
    ///
    /// # Panics
    /// The iterator panics if the endpoint's context is closed, or was made before this process was forked off: that is not the end
    /// of the records. Mind `buffer.context()?.consumer(1)?` in one expression: its context is closed at the end of it.
    ///
    /// ```
    /// # let name = format!("doc-chan-iter-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// drop(tx);
    /// let all: Vec<u8> = rx.iter().map(|record| *record).collect();
    /// assert_eq!(all, [5]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn iter(&mut self) -> Iter<'_, T> {
        Iter(self)
    }

    /// Receives what is queued now, without waiting.
    ///
    /// ```
    /// # let name = format!("doc-chan-try-iter-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(rx.try_iter().count(), 1);
    /// assert_eq!(rx.try_iter().count(), 0, "and the producer is still there");
    /// # drop(tx);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn try_iter(&mut self) -> TryIter<'_, T> {
        TryIter(self)
    }

    /// Whether a producer is attached and alive now.
    ///
    /// ```
    /// # let name = format!("doc-has-producer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// assert!(!rx.has_producer());
    /// let _tx = ctx.producer::<u8>(1)?;
    /// assert!(rx.has_producer());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn has_producer(&self) -> bool {
        self.has_peer()
    }

    /// Waits until a producer is attached; false if none came in time.
    ///
    /// ```
    /// # let name = format!("doc-wait-producer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// assert!(!rx.wait_for_producer(Duration::from_millis(1)));
    /// let _tx = ctx.producer::<u8>(1)?;
    /// assert!(rx.wait_for_producer(Duration::from_millis(1)));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn wait_for_producer(&self, timeout: Duration) -> bool {
        self.wait_for_peer(timeout)
    }
}

/// Records until the producer has left; see [`Channel::iter`].
///
/// ```
/// # let name = format!("doc-iter-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
/// tx.send(ctx.record(5)?)?;
/// drop(tx);
/// for record in &mut rx {
///     assert_eq!(*record, 5);
/// }
/// // The endpoint is still ours: the next producer can come.
/// assert!(!rx.has_producer());
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a, T: ?Sized + Payload>(&'a mut Channel<T, Consumer>);

/// Records queued now; see [`Channel::try_iter`].
///
/// ```
/// # let name = format!("doc-try-iter-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
/// for i in 0..10 {
///     tx.send(ctx.record(i)?)?;
/// }
/// let first: Vec<u8> = rx.try_iter().take(3).map(|record| *record).collect();
/// assert_eq!((first.as_slice(), rx.len()), (&[0, 1, 2][..], 7));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct TryIter<'a, T: ?Sized + Payload>(&'a mut Channel<T, Consumer>);

/// Records until the producer has left; owns the endpoint.
///
/// ```
/// # let name = format!("doc-into-iter-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let mut tx = ctx.producer::<u8>(1)?;
/// let mut records: ipc_buffer::IntoIter<u8> = ctx.consumer(1)?.into_iter();
/// tx.send(ctx.record(5)?)?;
/// assert_eq!(records.next().as_deref(), Some(&5));
/// drop(records);
/// assert!(!tx.has_consumer(), "the endpoint went with it");
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct IntoIter<T: ?Sized + Payload>(Channel<T, Consumer>);

impl<T: ?Sized + Payload> Iterator for Iter<'_, T> {
    type Item = Record<T>;
    fn next(&mut self) -> Option<Record<T>> {
        next(self.0)
    }
}

impl<T: ?Sized + Payload> Iterator for TryIter<'_, T> {
    type Item = Record<T>;
    fn next(&mut self) -> Option<Record<T>> {
        self.0.try_recv().ok()
    }
}

impl<T: ?Sized + Payload> Iterator for IntoIter<T> {
    type Item = Record<T>;
    fn next(&mut self) -> Option<Record<T>> {
        next(&mut self.0)
    }
}

/// The next record; what is corrupted is skipped.
fn next<T: ?Sized + Payload>(channel: &mut Channel<T, Consumer>) -> Option<Record<T>> {
    loop {
        match channel.recv() {
            Ok(record) => return Some(record),
            Err(RecvError::Corrupted) => {}
            Err(RecvError::Disconnected) => return None,
            // Not "no more records": the loop would end as if all were well.
            Err(error @ (RecvError::ContextClosed | RecvError::Forked)) => {
                panic!("iterating channel {}: {error}", channel.id())
            }
        }
    }
}

impl<T: ?Sized + Payload> IntoIterator for Channel<T, Consumer> {
    type Item = Record<T>;
    type IntoIter = IntoIter<T>;
    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

impl<'a, T: ?Sized + Payload> IntoIterator for &'a mut Channel<T, Consumer> {
    type Item = Record<T>;
    type IntoIter = Iter<'a, T>;
    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{short_name, shorten};

    #[test]
    fn long_tags_stay_apart() {
        assert_eq!(shorten("a".repeat(128), 128), "a".repeat(128));
        let (one, two) = (shorten("a".repeat(129), 128), shorten("a".repeat(130), 128));
        assert!(one.len() == 128 && two.len() == 128 && one != two && one.starts_with("aaa"));
    }

    #[test]
    fn names_lose_their_paths() {
        assert_eq!(short_name("f64"), "f64");
        assert_eq!(short_name("a::b::Sample"), "Sample");
        assert_eq!(short_name("a::Grid<b::c::Cell, [d::E; 4]>"), "Grid<Cell, [E; 4]>");
        assert_eq!(short_name("(a::B, &'static c::D)"), "(B, &'static D)");
    }
}
