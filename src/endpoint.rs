//! Endpoints: what the ends of all channels have in common, whatever they carry.
//!
//! # If a process dies
//! See `directory` for roles. Whoever waits looks, every 100 ms at the latest, whether the peer's lease still stands, and reaps
//! it if not.

use crate::attachment::Hold;
use crate::directory::{self, ChannelRef, Refused, Side, Spec};
use crate::error::{AllocError, AttachError, BufferError, RecvError, SendTimeoutError, TryRecvError, TrySendError};
use crate::heap::{self, block};
use crate::layout::CHANNELS;
use crate::local::{Attached, Inert, Local};
use crate::participant;
use crate::queue::spsc::{End, NotPushed, Ring};
use crate::recovery;
use crate::sync::Ordering;
use crate::wait::{self, Bed};
use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

/// The sending end of a [`Channel`](crate::Channel).
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

/// The receiving end of a [`Channel`](crate::Channel).
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
/// One end of a channel, whatever it carries; its context detaches it when it closes.
pub(crate) struct Endpoint {
    pub(crate) end: End,
    pub(crate) local: Rc<Local>,
    pub(crate) id: i64,
    pub(crate) side: Side,
    channel: ChannelRef,
    attached: Cell<bool>,
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
            directory::detach(&control, self.local.cache(), self.channel, self.side);
        }
        // Else somebody sits on the lock: the role stays ours until the process goes.
    }
}

impl Endpoint {
    /// Takes the role of `R` in channel `id`, which is made if there is none.
    pub(crate) fn attach<R: Role>(local: &Rc<Local>, id: i64, spec: &Spec) -> Result<Rc<Self>, AttachError> {
        local.check().map_err(|inert| match inert {
            Inert::Forked => AttachError::Forked,
            Inert::Closed => AttachError::ContextClosed,
        })?;
        let hold = local.hold().ok_or(AttachError::ContextClosed)?;
        let side = if R::SENDS { Side::Producer } else { Side::Consumer };
        let (channel, ring) = attach(&hold, local, id, side, spec)?;
        let endpoint = Rc::new(Self {
            end: if R::SENDS { End::producer(ring) } else { End::consumer(ring) },
            local: Rc::clone(local),
            id,
            side,
            channel,
            attached: Cell::new(true),
            idle: Cell::new(0),
            looked: Cell::new(Instant::now()),
            slept: Cell::new(Duration::ZERO),
        });
        let weak: Weak<Self> = Rc::downgrade(&endpoint);
        local.register(weak);
        Ok(endpoint)
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.attached.get()
    }

    /// Why nothing works any more, if nothing does.
    pub(crate) fn check(&self) -> Result<(), Inert> {
        self.local.check()?;
        if self.attached.get() { Ok(()) } else { Err(Inert::Closed) }
    }

    /// Asks the core for the block at `granule`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, granule: u32) {
        self.local.cache().arena().prefetch(granule);
    }

    fn has_peer(&self) -> bool {
        let entry = self.local.cache().arena().directory_entry(self.channel.index);
        entry.is_some_and(|entry| directory::holder(entry, self.side.other()).is_some())
    }

    /// Whether the other end is attached and alive.
    pub(crate) fn has_live_peer(&self) -> bool {
        if self.check().is_err() {
            return false;
        }
        self.check_peer();
        self.has_peer()
    }

    /// Waits until the other end is attached; false if it did not come in time.
    pub(crate) fn wait_for_peer(&self, timeout: Duration) -> bool {
        let Some(hold) = self.local.hold() else { return false };
        let version = &hold.arena().header().directory_version;
        let ready = || (self.check().is_err() || self.has_live_peer()).then_some(());
        wait::for_change(version, deadline(timeout), ready);
        self.has_live_peer()
    }

    /// Whether the other end has left for good: it was here, or it can't come any more because the id is gone. A producer of a
    /// persistent channel does not lose its consumers: it queues for the next.
    pub(crate) fn has_lost_peer(&self) -> bool {
        let entry = self.local.cache().arena().directory_entry(self.channel.index);
        entry.is_none_or(|entry| {
            let queues_on = self.side == Side::Producer && directory::is_persistent(entry);
            let was_here = entry.seen.load(Ordering::Acquire) & self.side.other().seen() != 0 && !queues_on;
            (was_here || directory::is_removed(entry)) && directory::holder(entry, self.side.other()).is_none()
        })
    }

    /// Whether the other end's process lives; reaps it if not.
    fn check_peer(&self) {
        let Some(hold) = self.local.hold() else { return };
        let peer = hold
            .arena()
            .directory_entry(self.channel.index)
            .and_then(|entry| directory::holder(entry, self.side.other()));
        if peer.is_some_and(|peer| !participant::is_alive(hold.segment(), hold.me(), peer)) {
            recovery::reap(&hold);
        }
    }

    /// For those who poll and never wait: sees now and then if the peer lives. The clock is cheap, but not for each poll.
    pub(crate) fn polled_in_vain(&self) {
        let idle = self.idle.get().wrapping_add(1);
        self.idle.set(idle);
        if idle.is_multiple_of(16) && self.looked.get().elapsed() >= wait::TICK {
            self.looked.set(Instant::now());
            self.check_peer();
        }
    }

    /// Why nothing was pushed, with what was not.
    #[cold]
    #[inline(never)]
    pub(crate) fn not_pushed<I>(&self, unsent: I, why: NotPushed) -> TrySendError<I> {
        match (self.check(), why) {
            (Err(Inert::Forked), _) => TrySendError::Forked(unsent),
            (Err(Inert::Closed), _) => TrySendError::ContextClosed(unsent),
            (Ok(()), NotPushed::Gone) => TrySendError::Disconnected(unsent),
            (Ok(()), NotPushed::Full) if self.has_lost_peer() => TrySendError::Disconnected(unsent),
            (Ok(()), NotPushed::Full) => {
                self.polled_in_vain();
                TrySendError::Full(unsent)
            }
        }
    }

    /// Why nothing is queued; nothing more will be if there is no reason.
    pub(crate) fn nothing_queued(&self) -> Result<(), TryRecvError> {
        self.check().map_err(|inert| match inert {
            Inert::Forked => RecvError::Forked,
            Inert::Closed => RecvError::ContextClosed,
        })?;
        if self.has_lost_peer() {
            return Ok(());
        }
        self.polled_in_vain();
        Err(TryRecvError::Empty)
    }

    /// Tries to send what was refused again and again, until `deadline`.
    pub(crate) fn wait_to_send<I>(
        &self,
        refused: TrySendError<I>,
        deadline: Option<Instant>,
        mut try_send: impl FnMut(I) -> Result<(), TrySendError<I>>,
    ) -> Result<(), SendTimeoutError<I>> {
        let mut unsent = match refused.unless_full() {
            Ok(error) => return Err(error),
            Err(unsent) => Some(unsent),
        };
        let ready = || match try_send(unsent.take()?) {
            Ok(()) => Some(Ok(())),
            Err(refused) => match refused.unless_full() {
                Ok(error) => Some(Err(error)),
                Err(back) => {
                    unsent = Some(back);
                    None
                }
            },
        };
        let full_at = self.end.ring().head();
        let glance = || self.end.ring().head() != full_at;
        match self.wait_until(deadline, 16, glance, ready) {
            Some(result) => result,
            None => unsent.map_or(Ok(()), |unsent| Err(SendTimeoutError::Timeout(unsent))),
        }
    }

    /// Tries to receive again and again, until `deadline`.
    pub(crate) fn wait_to_recv<I>(
        &self,
        deadline: Option<Instant>,
        mut try_recv: impl FnMut() -> Result<I, TryRecvError>,
    ) -> Option<Result<I, RecvError>> {
        let ready = || match try_recv() {
            Ok(received) => Some(Ok(received)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Recv(error)) => Some(Err(error)),
        };
        self.wait_until(deadline, 1, || self.end.has_queued(), ready)
    }

    /// Waits for `ready` as [`wait::until`] does, asleep where the other end looks.
    fn wait_until<R>(
        &self,
        deadline: Option<Instant>,
        pace: u32,
        glance: impl Fn() -> bool,
        ready: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let header = self.end.ring().header;
        let (asleep_in, futex_word) = match self.side {
            Side::Producer => (&header.to_consumer, &header.producer_futex),
            Side::Consumer => (&header.to_producer, &header.consumer_futex),
        };
        let bed = Bed { asleep_in, futex_word, slept: &self.slept };
        wait::until(bed, deadline, pace, glance, ready, || self.check_peer())
    }

    /// Wakes the other end, which was seen to sleep.
    #[cold]
    pub(crate) fn wake_peer(&self) {
        let header = self.end.ring().header;
        match self.side {
            Side::Producer => wait::wake(&header.to_producer, &header.consumer_futex),
            Side::Consumer => wait::wake(&header.to_consumer, &header.producer_futex),
        }
    }
}

/// How long to wait for another process to finish with a dead one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Attaches `side`; brings storage if the channel must be made; reaps if a dead process has the role.
fn attach(hold: &Hold, local: &Local, id: i64, side: Side, spec: &Spec) -> Result<(ChannelRef, Ring), AttachError> {
    let mut storage = None;
    let give_up = Instant::now() + PATIENCE;
    let result = loop {
        // Allocated before the control lock is taken: making room may need it.
        let attached = match hold.control() {
            Ok(control) => directory::attach(&control, hold.me(), id, side, spec, &mut storage),
            Err(BufferError::Busy { pid }) => break Err(AttachError::Busy { pid }),
            Err(_) => break Err(AttachError::Forked),
        };
        match attached {
            Ok(attached) => break Ok(attached),
            Err(Refused::Missing) => match local.alloc_slow(spec.storage_bytes()) {
                Ok(block) => {
                    let meta = block::Meta { class: block.handle.class(), offset: 64, count: 0 };
                    block.header().meta.store(meta.pack(), Ordering::Relaxed);
                    storage = Some(block);
                }
                Err(AllocError::OutOfMemory { asked, free }) => break Err(AttachError::OutOfMemory { asked, free }),
                Err(AllocError::ContextClosed) => break Err(AttachError::ContextClosed),
                Err(_) => break Err(AttachError::Forked),
            },
            Err(Refused::Taken { holder, thread }) => {
                if !participant::is_alive(hold.segment(), hold.me(), holder) && Instant::now() < give_up {
                    // Somebody else may be reaping it, or have done so by now: then there is nothing for us to reap.
                    if recovery::reap(hold).processes == 0 {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    continue;
                }
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
        heap::free(local.cache(), block.handle);
    }
    result
}

/// The end of a wait that starts now; `None` if that is later than the clock can say.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
