//! Endpoints: what the ends of all channels have in common, whatever they carry.
//!
//! # If a process dies
//! See `directory` for roles. Whoever waits looks, every 125 ms at the latest, whether the peer's lease still stands. If not, the
//! peer is gone for this end, even if nobody comes to reap it; what can be reaped in a moment, this end reaps.

use crate::channel::ready::Ready;
use crate::directory::{self, ChannelRef, Form, Refused, Settled, Side, Spec};
use crate::error::{
    AllocError, AttachError, BufferError, PeerError, RecvError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::format::{CHANNELS, DirectoryEntry, Owner};
use crate::heap;
use crate::heap::block::{self, Block};
use crate::membership::Control;
use crate::membership::participant;
use crate::process::attachment::Hold;
use crate::process::local::{Attached, Inert, Local};
use crate::queue::ring::Ring;
use crate::queue::spsc::{End, NotPushed};
use crate::queue::window;
use crate::recovery::{self, Effort};
use crate::segment::PATIENCE;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::crash::point;
use crate::sys::task;
use crate::wait::{self, Bed, EndKey, Wait, WaitStrategy, Waitable, Waits};
use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::task::Waker;
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
// In this order: what every operation needs comes first, and the end has an address of its own. (Where the two have the same, the
// compiler keeps it in a register of its own from the start: three instructions more in each send.)
#[repr(C)]
pub(crate) struct Endpoint {
    pub(crate) local: Rc<Local>,
    pub(crate) end: End,
    pub(crate) id: i64,
    pub(crate) side: Side,
    pub(crate) channel: ChannelRef,
    attached: Cell<bool>,
    /// Where `end` stood when it was attached, if the channel carries records.
    from: Option<u64>,
    /// Messages that a consumer has gone past, because they were none.
    pub(crate) skipped: Cell<u64>,
    /// Who had the other end when it was found dead.
    dead: Cell<Option<Owner>>,
    /// The directory's version when polling last asked whether the other end has left, and it had not. None once this end is
    /// detached.
    calm_at: Cell<Option<u32>>,
    /// By the coarse clock: when this end last looked whether the peer lives.
    looked: Cell<Duration>,
    pub(crate) waits: Waits,
    pub(crate) strategy: WaitStrategy,
    /// Looks before anything is set up for a wait.
    pub(crate) looks: u32,
    /// Whether a future waits for this end, and is to be woken; see `future`.
    #[cfg(feature = "async")]
    pub(crate) parked: Cell<bool>,
}

impl Attached for Endpoint {
    fn is_rung(&self) {
        self.waits.disarm();
    }

    fn look_at_bell(&self, bed: Bed<'_>) {
        if !bed.is_on(self.own_bell()) {
            self.waits.disarm();
        }
    }

    /// By where it stands now and where it stood at first, whatever the channel's words say.
    fn records(&self) -> i64 {
        let Some(from) = self.from else { return 0 };
        let moved = self.end.position().wrapping_sub(from).cast_signed();
        match self.side {
            Side::Producer => moved.wrapping_neg(),
            Side::Consumer => moved.wrapping_sub(self.skipped.get().cast_signed()),
        }
    }

    fn abandon(&self) {
        self.attached.set(false);
        self.look_again();
        self.waits.disarm();
        #[cfg(feature = "async")]
        self.parked.set(false);
        self.end.abandon();
    }

    fn evict(&self) -> Option<Waker> {
        // Not with its bell, which is others' by now.
        #[cfg(feature = "async")]
        let waker = self.unlist();
        #[cfg(not(feature = "async"))]
        let waker = None;
        self.abandon();
        waker
    }

    fn detach(&self) -> Option<Waker> {
        if !self.attached.get() {
            return None;
        }
        self.local.forget(self.key());
        let Some(hold) = self.local.hold_to_the_end().filter(|hold| hold.check().is_ok()) else {
            return self.evict();
        };
        self.attached.set(false);
        self.waits.disarm();
        // As long as the bell is its own. The future will answer that the context is closed.
        #[cfg(feature = "async")]
        let waker = self.unpark();
        #[cfg(not(feature = "async"))]
        let waker = None;
        self.end.abandon();
        self.look_again();
        self.local.cache().count(self.records());
        if directory::release(hold.arena(), hold.me(), self.channel, self.side) {
            take_out(&hold, &self.local, self.channel.index, None);
        }
        sweep_what_was_left(&hold);
        waker
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
            Inert::Evicted => AttachError::Evicted,
            Inert::Closed => AttachError::ContextClosed,
        })?;
        let hold = local.hold().ok_or(AttachError::ContextClosed)?;
        let side = if R::SENDS { Side::Producer } else { Side::Consumer };
        let (channel, ring) = attach(&hold, local, id, side, spec)?;
        if R::SENDS {
            // What one that was killed inside a batch has left. The role is ours by now, so nobody else is at it.
            window::clear_beyond(ring);
        }
        let end = if R::SENDS { End::producer(ring) } else { End::consumer(ring) };
        let endpoint = Rc::new(Self {
            from: (spec.kind.form != Form::Values).then(|| end.position()),
            skipped: Cell::new(0),
            end,
            local: Rc::clone(local),
            id,
            side,
            channel,
            attached: Cell::new(true),
            dead: Cell::new(None),
            calm_at: Cell::new(None),
            looked: Cell::new(task::coarse_clock()),
            waits: Waits::default(),
            strategy,
            looks: strategy.first_looks(),
            #[cfg(feature = "async")]
            parked: Cell::new(false),
        });
        if endpoint.looks == 0 {
            endpoint.end.never_hesitate();
        }
        let weak: Weak<Self> = Rc::downgrade(&endpoint);
        local.register(endpoint.key(), weak);
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
        self.look_after_peer();
        self.has_peer()
    }

    fn look_after_peer(&self) {
        if !self.check_peer() {
            self.lend_a_hand();
        }
    }

    /// Waits until the other end is attached.
    pub(crate) fn wait_for_peer(&self, timeout: Duration) -> Result<(), PeerError> {
        let inert = |inert| match inert {
            Inert::Forked => PeerError::Forked,
            Inert::Evicted => PeerError::Evicted,
            Inert::Closed => PeerError::ContextClosed,
        };
        self.check().map_err(inert)?;
        let hold = self.local.hold().ok_or(PeerError::ContextClosed)?;
        let version = &hold.arena().header().directory_version;
        let deadline = deadline(timeout);
        let ready = || {
            if let Err(why) = self.check() {
                return Some(Err(inert(why)));
            }
            if !self.check_peer() {
                let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
                recovery::reap(&hold, Effort::A_MOMENT.within(left));
            }
            if self.has_peer() {
                return Some(Ok(()));
            }
            // To a removed channel nobody comes.
            self.entry().is_none_or(directory::is_removed).then_some(Err(PeerError::Removed { id: self.id }))
        };
        let (id, missing) = (self.id, self.side.other().into());
        wait::for_change(version, deadline, ready).unwrap_or(Err(PeerError::Timeout { id, missing, timeout }))
    }

    /// Whether the other end has left for good: it was here, or it can't come any more because the id is gone. A producer of a
    /// persistent channel does not lose its consumers: it queues for the next.
    pub(crate) fn has_lost_peer(&self) -> bool {
        self.entry().is_none_or(|entry| {
            let queues_on = self.side == Side::Producer && directory::is_persistent(entry);
            let was_here = entry.seen.load(Ordering::Acquire) & self.side.other().seen() != 0 && !queues_on;
            let is_lost = (was_here || directory::is_removed(entry)) && !self.has_peer();
            if is_lost {
                self.look_again();
            }
            is_lost
        })
    }

    /// Whether the channel stays without endpoints.
    pub(crate) fn is_persistent(&self) -> bool {
        self.check().is_ok() && self.entry().is_some_and(directory::is_persistent)
    }

    /// Whether somebody holds the other end who is not known to be dead.
    fn has_peer(&self) -> bool {
        // Asked again: a process that takes over a dead one's slot has its name.
        self.peer().is_some_and(|who| self.dead.get() != Some(who) || !self.is_dead(who))
    }

    fn entry(&self) -> Option<&DirectoryEntry> {
        self.local.cache().arena().directory_entry(self.channel.index)
    }

    fn is_dead(&self, who: Owner) -> bool {
        self.local.hold().is_some_and(|hold| !participant::is_alive(hold.segment(), hold.me(), who))
    }

    /// How many are queued.
    pub(crate) fn len(&self) -> usize {
        match self.side {
            Side::Producer => self.end.not_taken(),
            Side::Consumer => self.end.ring().len(),
        }
    }

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        match self.side {
            Side::Producer => self.end.not_taken() == 0,
            Side::Consumer => !self.end.has_queued(),
        }
    }

    /// The bell that this side looks at after each operation, to wake the other.
    fn other_bell(&self) -> &'static AtomicU32 {
        let header = self.end.ring().header;
        match self.side {
            Side::Producer => &header.to_producer,
            Side::Consumer => &header.to_consumer,
        }
    }

    /// Wakes the other side, if it sleeps and has reason to wake up, after so many messages.
    #[cold]
    #[inline(never)]
    pub(crate) fn answer(&self, count: usize) {
        let is_due = || self.side == Side::Producer || self.end.has_freed_much(count);
        let other = EndKey::new(self.channel.index, self.side == Side::Consumer);
        wait::answer(self.local.cache().arena(), self.other_bell(), other, &self.waits, is_due);
    }

    /// Breaths between two glances at this end.
    pub(crate) fn pace(&self) -> u32 {
        // The line that a full channel's producer looks at is the one that the consumer writes.
        if self.side == Side::Producer { 16 } else { 1 }
    }

    /// For those who found nothing: whether the other end is as it was when it was last looked at, and that was not so long ago.
    #[inline(always)]
    pub(crate) fn is_calm(&self) -> bool {
        // SYNC(directory)
        self.calm_at.get().is_some_and(|at| self.version() == at) && !wait::is_due(self.looked.get())
    }

    #[inline(always)]
    fn version(&self) -> u32 {
        self.local.cache().arena().header().directory_version.load(Ordering::Acquire)
    }

    /// Whether the other end has left for good, for those who found nothing: each poll, and each look of one who waits. By time, not
    /// by count, it is seen whether the peer lives; the poll that finds it dead says so.
    pub(crate) fn polled_in_vain(&self) -> bool {
        !self.is_calm() && self.is_lost_to_polls()
    }

    #[cold]
    fn is_lost_to_polls(&self) -> bool {
        if wait::is_due(self.looked.get()) {
            self.looked.set(task::coarse_clock());
            self.look_after_peer();
        }
        // SYNC(directory): before the look, so that what changes behind it is looked at again.
        let version = self.version();
        let is_lost = self.has_lost_peer();
        point!("poll: looked");
        if is_lost {
            return true;
        }
        self.calm_at.set(Some(version));
        false
    }

    /// Why nothing was pushed, with what was not.
    #[cold]
    #[inline(never)]
    pub(crate) fn not_pushed<I>(&self, unsent: I, why: NotPushed) -> TrySendError<I> {
        match (self.check(), why) {
            (Err(Inert::Forked), _) => TrySendError::Forked(unsent),
            (Err(Inert::Evicted), _) => TrySendError::Evicted(unsent),
            (Err(Inert::Closed), _) => TrySendError::ContextClosed(unsent),
            (Ok(()), NotPushed::Gone) => TrySendError::Disconnected(unsent),
            (Ok(()), NotPushed::Full) if self.polled_in_vain() => TrySendError::Disconnected(unsent),
            (Ok(()), NotPushed::Full) => TrySendError::Full(unsent),
        }
    }

    /// Why nothing is queued. If there is no reason, the producer has left, having sent all it will.
    pub(crate) fn nothing_queued(&self) -> Result<(), TryRecvError> {
        self.check().map_err(|inert| match inert {
            Inert::Forked => RecvError::Forked,
            Inert::Evicted => RecvError::Evicted,
            Inert::Closed => RecvError::ContextClosed,
        })?;
        point!("poll: nothing there");
        if self.polled_in_vain() {
            point!("poll: left for good");
            Ok(())
        } else {
            Err(TryRecvError::Empty)
        }
    }

    /// Tries to send what was refused again and again, until `deadline`.
    pub(crate) fn wait_to_send<I>(
        self: &Rc<Self>,
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
        match self.wait_until(deadline, || self.end.has_room(), ready) {
            Some(result) => result,
            None => unsent.map_or(Ok(()), |unsent| Err(SendTimeoutError::Timeout(unsent))),
        }
    }

    /// Tries to receive again and again, until `deadline`.
    pub(crate) fn wait_to_recv<I>(
        self: &Rc<Self>,
        deadline: Option<Instant>,
        mut try_recv: impl FnMut() -> Result<I, TryRecvError>,
    ) -> Option<Result<I, RecvError>> {
        let ready = || match try_recv() {
            Ok(received) => Some(Ok(received)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Recv(error)) => Some(Err(error)),
        };
        self.wait_until(deadline, || self.end.has_queued(), ready)
    }

    /// Waits until `ready` gives something or `deadline` has passed; `glance` is cheap and says whether `ready` is worth a try.
    fn wait_until<R>(
        self: &Rc<Self>,
        deadline: Option<Instant>,
        glance: impl Fn() -> bool,
        ready: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let ends = [Rc::clone(self) as Rc<dyn Ready>];
        let wait = Wait { strategy: self.strategy, deadline, pace: self.pace() };
        wait::until(wait, &ends, glance, ready)
    }

    /// What hints call it.
    pub(crate) fn key(&self) -> EndKey {
        EndKey::new(self.channel.index, self.side == Side::Producer)
    }

    /// The bell by which the other side wakes this one.
    pub(crate) fn own_bell(&self) -> &'static AtomicU32 {
        let header = self.end.ring().header;
        match self.side {
            Side::Producer => &header.to_consumer,
            Side::Consumer => &header.to_producer,
        }
    }
}

impl Waitable for Endpoint {
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
        self.own_bell()
    }

    fn waits(&self) -> &Waits {
        &self.waits
    }
}

impl Ready for Endpoint {
    #[inline(always)]
    fn has_work(&self) -> bool {
        match self.side {
            Side::Producer => self.end.has_room(),
            Side::Consumer => self.end.has_queued(),
        }
    }

    fn is_refused(&self) -> bool {
        self.check().is_err() || self.side == Side::Producer && self.end.is_gone() || self.has_lost_peer()
    }

    fn local(&self) -> &Rc<Local> {
        &self.local
    }

    fn peer(&self) -> Option<Owner> {
        self.check().ok()?;
        directory::holder(self.entry()?, self.side.other())
    }

    fn check_peer(&self) -> bool {
        let dead = self.peer().filter(|peer| self.is_dead(*peer));
        if dead.is_some() {
            self.dead.set(dead);
            self.look_again();
        }
        dead.is_none()
    }

    fn look_again(&self) {
        self.calm_at.set(None);
    }

    fn lend_a_hand(&self) {
        if let Some(hold) = self.local.hold() {
            recovery::reap(&hold, Effort::A_MOMENT);
        }
    }
}

/// How long the drop of an endpoint waits for the control lock, to take out a channel that nobody is in any more. A holder in good order
/// has it for a fifth of a millisecond, and some milliseconds if it has to wait for a core. Who keeps it longer is stopped, or in
/// distress, and nothing is lost but the memory of one channel, until somebody has the lock again. Waited for once: as long as such a
/// channel is left, the next drop only tries, so that a thousand drops take no longer than one.
const DROP_PATIENCE: Duration = Duration::from_millis(20);

/// How long an attach spends on taking out a deserted channel that its id led to.
const OUT_OF_THE_WAY: Duration = Duration::from_millis(20);

/// Takes out a channel that this process has found deserted, within `work` if that is said; else it is noted as left behind.
fn take_out(hold: &Hold, local: &Local, index: u32, work: Option<Duration>) {
    let patience = if hold.has_left_behind() { Duration::ZERO } else { DROP_PATIENCE };
    let until = work.map(|work| Instant::now() + work);
    let has_time = || until.is_none_or(|until| Instant::now() < until);
    let taken_out = hold
        .control_within(patience)
        .is_ok_and(|control| directory::take_out(control, local.cache(), index, patience, has_time));
    if !taken_out {
        hold.leave_behind(true);
        // For those who have looked since the role was given up.
        directory::announce(hold.arena());
    }
}

/// What a drop has left behind, when the control lock was not to be had, is taken out by the next one here that has it.
fn sweep_what_was_left(hold: &Hold) {
    if hold.has_left_behind() && hold.control_within(Duration::ZERO).is_ok() {
        recovery::sweep(hold, Effort::A_MOMENT);
    }
}

/// Attaches `side`; brings storage if the channel must be made; takes the role from a dead process if it has it, and takes out a channel
/// of the dead that is in the way.
fn attach(hold: &Hold, local: &Local, id: i64, side: Side, spec: &Spec) -> Result<(ChannelRef, Ring), AttachError> {
    let is_dead = |who| !participant::is_alive(hold.segment(), hold.me(), who);
    let mut storage = None;
    let (mut met_the_dead, mut has_swept) = (false, false);
    let mut deserted = Vec::new();
    // For the control lock, and for who is on the way out, in all.
    let mut patience = PATIENCE;
    let result = loop {
        let before = Instant::now();
        let control = match hold.control_within(patience) {
            Ok(control) => control,
            Err(BufferError::Busy { pid }) => break Err(AttachError::Busy { pid }),
            Err(BufferError::NoDescriptor) => break Err(AttachError::NoDescriptor),
            Err(BufferError::Evicted) => break Err(AttachError::Evicted),
            Err(_) => break Err(AttachError::Forked),
        };
        patience = patience.saturating_sub(before.elapsed());
        match directory::attach(&control, hold.me(), id, side, spec, &mut storage, &mut deserted) {
            Ok(attached) => break Ok(attached),
            Err(Refused::Missing) => {
                // Not under the lock: making room may need it, and emptying a long ring takes its time.
                drop(control);
                if let Err(error) = bring_storage(hold, local, spec, &mut storage) {
                    break Err(error);
                }
            }
            Err(
                Refused::Taken { channel, .. }
                | Refused::Kind { channel, .. }
                | Refused::Capacity { channel, .. }
                | Refused::Persistence { channel },
            ) if directory::occupants(hold.arena(), channel).any(is_dead) => {
                bereave(control, local, channel, &is_dead);
                met_the_dead = true;
            }
            Err(Refused::Taken { is_leaving: true, .. }) if !patience.is_zero() => {
                drop(control);
                let pause = Duration::from_micros(50).min(patience);
                std::thread::sleep(pause);
                patience = patience.saturating_sub(pause);
            }
            Err(Refused::Taken { holder, thread, .. }) => {
                let pid = participant::pid(hold.arena(), holder);
                break Err(AttachError::RoleTaken { id, role: side.into(), pid, thread });
            }
            Err(Refused::Kind { theirs, .. }) => {
                let (ours, theirs) = (spec.kind.to_string(), theirs.to_string());
                break Err(AttachError::TypeMismatch { id, ours, theirs });
            }
            Err(Refused::Capacity { theirs, .. }) => {
                let asked = spec.capacity_log2.map_or(0, |log2| 1 << log2);
                let actual = usize::try_from(theirs).unwrap_or(usize::MAX);
                break Err(AttachError::CapacityMismatch { id, asked, actual });
            }
            Err(Refused::Persistence { .. }) => {
                break Err(AttachError::PersistenceMismatch { id, asked: spec.persistent == Some(true) });
            }
            Err(Refused::NotBacked) => {
                let free = local.free_bytes(heap::unit::NoUnits::NotBacked);
                break Err(AttachError::OutOfMemory { asked: crate::format::PAGE, free });
            }
            Err(Refused::Full) if !has_swept => {
                // The channels of the dead, and those that nobody is in: reaped or not.
                drop(control);
                recovery::sweep(hold, Effort::ALL);
                (has_swept, met_the_dead) = (true, true);
            }
            Err(Refused::Full) => break Err(AttachError::TooManyChannels { limit: CHANNELS }),
            Err(Refused::Corrupted) => break Err(AttachError::Corrupted { id }),
        }
    };
    if let Some(block) = storage
        && hold.check().is_ok()
    {
        heap::free_found(local.cache(), block.handle);
    }
    deserted.into_iter().for_each(|index| take_out(hold, local, index, Some(OUT_OF_THE_WAY)));
    if met_the_dead {
        // What else they had.
        recovery::reap(hold, Effort::A_MOMENT);
    }
    sweep_what_was_left(hold);
    result
}

/// A block for the queue of a channel to be made, emptied.
fn bring_storage(hold: &Hold, local: &Local, spec: &Spec, storage: &mut Option<Block>) -> Result<(), AttachError> {
    match local.alloc_slow(spec.storage_bytes()) {
        Ok(block) => {
            let meta = block::Meta { class: block.handle.class(), offset: 64, count: 0 };
            block.header().meta.store(meta.pack(), Ordering::Relaxed);
            directory::prepare(hold.arena(), &block, spec);
            // It is no record.
            local.cache().count(-1);
            *storage = Some(block);
            Ok(())
        }
        Err(AllocError::OutOfMemory { asked, free }) => Err(AttachError::OutOfMemory { asked, free }),
        Err(AllocError::Evicted) => Err(AttachError::Evicted),
        Err(AllocError::ContextClosed) => Err(AttachError::ContextClosed),
        Err(_) => Err(AttachError::Forked),
    }
}

/// Vacates the roles of the dead in one channel, for one who wants to come in, and takes it out if nobody is left.
fn bereave(control: Control<'_>, local: &Local, channel: ChannelRef, is_dead: &dyn Fn(Owner) -> bool) {
    let cache = local.cache();
    let settled = directory::relieve(&control, cache.me(), channel.index, is_dead, &mut 0);
    directory::announce(control.arena());
    match settled {
        Settled::Done => {}
        Settled::Seized(seized) => {
            drop(control);
            directory::dismantle(cache, seized, || true);
        }
        Settled::Partly(_) => {
            directory::take_out(control, cache, channel.index, PATIENCE, || true);
        }
    }
}

/// The end of a wait that starts now; `None` if that is later than the clock can say.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
