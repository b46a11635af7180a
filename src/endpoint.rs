//! Endpoints: what the ends of all channels have in common, whatever they carry.
//!
//! # If a process dies
//! See `directory` for roles. Whoever waits looks, every 125 ms at the latest, whether the peer's lease still stands, and reaps
//! it if not.

use crate::attachment::Hold;
use crate::directory::{self, ChannelRef, Refused, Side, Spec};
use crate::error::{AllocError, AttachError, BufferError};
use crate::heap::{self, block};
use crate::layout::{CHANNELS, Owner};
use crate::local::{Attached, Inert, Local};
use crate::participant;
use crate::queue::spsc::{End, Ring};
use crate::ready::Ready;
use crate::recovery;
use crate::sync::{AtomicU32, Ordering};
use crate::wait::{self, Bed, Wait, WaitStrategy, Waits};
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
    waits: Waits,
    strategy: WaitStrategy,
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
    pub(crate) fn attach<R: Role>(
        local: &Rc<Local>,
        id: i64,
        spec: &Spec,
        strategy: WaitStrategy,
    ) -> Result<Rc<Self>, AttachError> {
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
            waits: Waits::default(),
            strategy,
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

    /// Whether the other end is attached and alive.
    pub(crate) fn has_live_peer(&self) -> bool {
        self.check_peer();
        self.peer().is_some()
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

    /// For those who poll and never wait: sees now and then if the peer lives. The clock is cheap, but not for each poll.
    pub(crate) fn polled_in_vain(&self) {
        let idle = self.idle.get().wrapping_add(1);
        self.idle.set(idle);
        if idle.is_multiple_of(16) && self.looked.get().elapsed() >= wait::tick() {
            self.looked.set(Instant::now());
            self.check_peer();
        }
    }

    /// Waits for `ready` as [`wait::until`] does.
    pub(crate) fn wait_until<R>(
        self: &Rc<Self>,
        deadline: Option<Instant>,
        pace: u32,
        glance: impl Fn() -> bool,
        ready: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let ends = [Rc::clone(self) as Rc<dyn Ready>];
        wait::until(Wait { bed: self.bed(), strategy: self.strategy, deadline, pace }, &ends, glance, ready)
    }

    /// Answers the other end's bell, on which there was something after an operation: wakes it if it sleeps and has reason to
    /// get up.
    #[cold]
    #[inline(never)]
    pub(crate) fn answer(&self) {
        let header = self.end.ring().header;
        let bell = match self.side {
            Side::Producer => &header.to_producer,
            Side::Consumer => &header.to_consumer,
        };
        let is_due = || self.side == Side::Producer || self.end.has_freed_much();
        wait::answer(self.local.cache().arena(), bell, &self.waits, is_due);
    }
}

impl Ready for Endpoint {
    fn has_work(&self) -> bool {
        match self.side {
            Side::Producer => self.end.has_room(),
            Side::Consumer => self.end.peek().is_some(),
        }
    }

    fn is_refused(&self) -> bool {
        self.check().is_err() || self.side == Side::Producer && self.end.is_gone() || self.has_lost_peer()
    }

    fn is_patient(&self) -> bool {
        self.side == Side::Producer
    }

    fn position(&self) -> u64 {
        self.end.position()
    }

    fn bed(&self) -> Option<Bed<'_>> {
        self.local.bed()
    }

    fn bell(&self) -> &AtomicU32 {
        let header = self.end.ring().header;
        match self.side {
            Side::Producer => &header.to_consumer,
            Side::Consumer => &header.to_producer,
        }
    }

    fn waits(&self) -> &Waits {
        &self.waits
    }

    fn peer(&self) -> Option<Owner> {
        self.check().ok()?;
        let entry = self.local.cache().arena().directory_entry(self.channel.index)?;
        directory::holder(entry, self.side.other())
    }

    fn check_peer(&self) {
        let Some(peer) = self.peer() else { return };
        let Some(hold) = self.local.hold() else { return };
        if !participant::is_alive(hold.segment(), hold.me(), peer) {
            recovery::reap(&hold);
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
            Err(Refused::Missing) => match local.alloc(spec.storage_bytes()) {
                Ok(block) => {
                    let meta = block::Meta { class: block.class, offset: 64, count: 0 };
                    block.header.meta.store(meta.pack(), Ordering::Relaxed);
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
        heap::free(local.cache(), block.granule, block.class);
    }
    result
}

/// The end of a wait that starts now; `None` if that is later than the clock can say.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
