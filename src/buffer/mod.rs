//! The buffer: a named segment as a user holds it.

mod context;

pub use context::ThreadContext;

use crate::channel::tag::fnv;
use crate::directory;
use crate::error::{BufferError, OpenError};
use crate::format::{UNIT, flag};
use crate::heap::{reclaim, unit};
use crate::inspect::audit::{self, Audit};
use crate::inspect::stats::{self, Stats};
use crate::membership::Turns;
use crate::membership::participant;
use crate::process;
use crate::process::attachment::Hold;
use crate::recovery::{self, Effort, End, Reaped};
use crate::segment::{COURTESY, PATIENCE, Wish};
use crate::sync::Ordering;
use crate::wait;
use std::path::Path;
use std::time::{Duration, Instant};

/// A heap and its channels in one named segment of shared memory, opened by this process.
///
/// Opened by name, from any process, any number of times; within a process all of them share one mapping. Clones, and opening
/// again, are cheap. When the last `Buffer`, [`ThreadContext`] and [`Record`](crate::Record) of a process are gone, the process
/// is detached; the last process out removes the segment, unless it is [`persist`](BufferOptions::persist)ent.
///
/// A process that is killed is detached by the kernel; what it held is given back by whoever opens, waits, runs short of
/// memory, or calls [`reap`](Self::reap). No signal handler is installed, and none is needed. If the last process is killed (or ends
/// without dropping its handles), nobody is left to remove the segment: it stays until somebody opens it and leaves in good order, or
/// calls [`unlink`](Self::unlink). A program that must leave nothing behind whatever happens unlinks the name as soon as everybody
/// is in.
///
/// In a child made by `fork`, a buffer opened before answers `Forked`; open it anew there.
///
/// ```
/// # let name = format!("doc-buffer-{}", std::process::id());
/// use ipc_buffer::Buffer;
/// let buffer = Buffer::open(&name)?;
/// let same = Buffer::open(&name)?;
/// assert_eq!(buffer.capacity(), same.capacity());
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Clone)]
pub struct Buffer {
    hold: Hold,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("name", &self.name()).field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// How to open a [`Buffer`].
///
/// ```
/// # let name = format!("doc-options-{}", std::process::id());
/// use ipc_buffer::Buffer;
/// let buffer = Buffer::options().capacity(64 << 20).create_new(true).mode(0o660).open(&name)?;
/// assert_eq!(buffer.capacity(), 64 << 20);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BufferOptions {
    wish: Wish,
}

impl Default for BufferOptions {
    fn default() -> Self {
        let wish =
            Wish { capacity: None, create_new: false, must_exist: false, persist: false, mode: 0o600, dumped: false };
        Self { wish }
    }
}

impl BufferOptions {
    /// Create or attach; 1 GiB of address space if it must be created, for this user alone.
    ///
    /// ```
    /// # let name = format!("doc-options-new-{}", std::process::id());
    /// use ipc_buffer::BufferOptions;
    /// let buffer = BufferOptions::new().open(&name)?;
    /// assert_eq!(buffer.capacity(), 1 << 30);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes for records, from 256 KiB to 224 GiB, rounded up to whole units of 64 KiB. Address space, not memory: pages are
    /// reserved as they are first used. Opening a buffer of another capacity is an error; leave this out to take it as it is.
    ///
    /// ```
    /// # let name = format!("doc-options-capacity-{}", std::process::id());
    /// use ipc_buffer::{Buffer, OpenError};
    /// let buffer = Buffer::options().capacity(1_000_000).open(&name)?;
    /// assert_eq!(buffer.capacity(), 1_048_576);
    /// let other = Buffer::options().capacity(2_000_000).open(&name);
    /// assert!(matches!(other, Err(OpenError::CapacityMismatch { actual: 1_048_576, .. })));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.wish.capacity = Some(bytes);
        self
    }

    /// Fails with `AlreadyExists` if the name is taken.
    ///
    /// ```
    /// # let name = format!("doc-options-new-only-{}", std::process::id());
    /// use ipc_buffer::{Buffer, OpenError};
    /// let first = Buffer::options().create_new(true).open(&name)?;
    /// let second = Buffer::options().create_new(true).open(&name);
    /// assert!(matches!(second, Err(OpenError::AlreadyExists { .. })));
    /// # drop(first);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn create_new(mut self, yes: bool) -> Self {
        self.wish.create_new = yes;
        self
    }

    /// Whether a core dump of this process contains the buffer. By default it does not: where the buffer's name is unlinked, the kernel
    /// would read every hole of it, and so fill `/dev/shm` with all of the capacity. Counts for the whole process, from when it is first
    /// asked for.
    ///
    /// ```
    /// # let name = format!("doc-options-dump-{}", std::process::id());
    /// use ipc_buffer::Buffer;
    /// let buffer = Buffer::options().core_dumps(true).open(&name)?;
    /// # let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    /// # let ours = smaps.split(&name).nth(1).unwrap();
    /// # assert!(!ours.lines().find(|line| line.starts_with("VmFlags")).unwrap().contains(" dd"));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn core_dumps(mut self, yes: bool) -> Self {
        self.wish.dumped = yes;
        self
    }

    /// Fails with `NotFound` if there is no such buffer. Together with `create_new` it always fails.
    ///
    /// ```
    /// # let name = format!("doc-options-must-{}", std::process::id());
    /// use ipc_buffer::{Buffer, OpenError};
    /// let too_early = Buffer::options().must_exist(true).open(&name);
    /// assert!(matches!(too_early, Err(OpenError::NotFound { .. })));
    /// let buffer = Buffer::open(&name)?;
    /// assert!(Buffer::options().must_exist(true).open(&name).is_ok());
    /// # drop(buffer);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn must_exist(mut self, yes: bool) -> Self {
        self.wish.must_exist = yes;
        self
    }

    /// Keeps the segment when the last process leaves, until [`Buffer::unlink`]. Sticky: one opener who wants it is enough.
    ///
    /// ```
    /// # let name = format!("doc-options-persist-{}", std::process::id());
    /// use ipc_buffer::Buffer;
    /// drop(Buffer::options().persist(true).open(&name)?);
    /// let same = Buffer::options().must_exist(true).open(&name)?;
    /// assert!(same.is_persistent());
    /// Buffer::unlink(&name)?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn persist(mut self, yes: bool) -> Self {
        self.wish.persist = yes;
        self
    }

    /// Permission bits of the segment if this call creates it, whatever the umask; 0o600 unless said. A buffer of another user
    /// is refused unless its mode gives somebody else access: 0o660 or 0o666 says that it is meant for sharing. Bits above 0o777 are
    /// ignored. `/dev/shm` is sticky: only the owner's processes can remove the segment, so if another user's is the last one out,
    /// it stays.
    ///
    /// ```
    /// # let name = format!("doc-options-mode-{}", std::process::id());
    /// use std::os::unix::fs::PermissionsExt;
    /// let shared = ipc_buffer::Buffer::options().mode(0o660).open(&name)?;
    /// let file = std::fs::metadata(format!("/dev/shm/{name}")).unwrap();
    /// assert_eq!(file.permissions().mode() & 0o777, 0o660);
    /// # drop(shared);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        self.wish.mode = bits & 0o777;
        self
    }

    /// Opens the buffer `name`: 1 to 200 bytes without slash and NUL.
    ///
    /// ```
    /// # let name = format!("doc-options-open-{}", std::process::id());
    /// use ipc_buffer::{BufferOptions, OpenError};
    /// let options = BufferOptions::new().capacity(1 << 20);
    /// let buffer = options.open(&name)?;
    /// assert_eq!(buffer.name(), name);
    /// assert!(matches!(options.open("a/b"), Err(OpenError::InvalidName { .. })));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is created or changed when one is returned, except that a segment left unfinished by a creator
    /// that died may be completed or removed.
    pub fn open(&self, name: &str) -> Result<Buffer, OpenError> {
        Ok(Buffer { hold: process::open(name, &self.wish)? })
    }
}

/// A channel, as [`Buffer::channels`] found it.
///
/// ```
/// # let name = format!("doc-channel-info-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let tx = ctx.producer::<f32>(-3)?;
/// let info = &buffer.channels()?[0];
/// assert_eq!((info.id, info.kind, info.capacity, info.queued), (-3, "spsc", 1024, 0));
/// assert_eq!((info.producer, info.consumer), (Some(std::process::id()), None));
/// # drop(tx);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelInfo {
    /// Its id.
    pub id: i64,
    /// Its kind; `"spsc"`.
    pub kind: &'static str,
    /// What it carries, with size and alignment.
    pub carries: String,
    /// Slots.
    pub capacity: usize,
    /// Records, or values, queued.
    pub queued: usize,
    /// Records, or values, ever sent, counted from 0 when the channel was made.
    pub sent: u64,
    /// Records, or values, ever received.
    pub received: u64,
    /// Process id of the producer's process, if there is one.
    pub producer: Option<u32>,
    /// Process id of the consumer's process, if there is one.
    pub consumer: Option<u32>,
    /// Whether it stays without endpoints.
    pub persistent: bool,
}

impl Buffer {
    /// Opens the buffer `name`, creating it if there is none, with default [`BufferOptions`].
    ///
    /// ```
    /// # let name = format!("doc-open-{}", std::process::id());
    /// use ipc_buffer::Buffer;
    /// let buffer = Buffer::open(&name)?;
    /// assert_eq!((buffer.name(), buffer.capacity()), (name.as_str(), 1 << 30));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`BufferOptions::open`].
    pub fn open(name: &str) -> Result<Self, OpenError> {
        BufferOptions::new().open(name)
    }

    /// Options to open a buffer with.
    ///
    /// ```
    /// # let name = format!("doc-options-fn-{}", std::process::id());
    /// use ipc_buffer::Buffer;
    /// let buffer = Buffer::options().capacity(1 << 20).open(&name)?;
    /// assert_eq!(buffer.capacity(), 1 << 20);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn options() -> BufferOptions {
        BufferOptions::new()
    }

    /// Removes the name at once. Who has the buffer open goes on; whoever opens the name next makes a new buffer.
    ///
    /// ```
    /// # let name = format!("doc-unlink-{}", std::process::id());
    /// use ipc_buffer::Buffer;
    /// drop(Buffer::options().persist(true).open(&name)?);
    /// Buffer::unlink(&name)?;
    /// assert!(Buffer::options().must_exist(true).open(&name).is_err());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidName`, `NotFound`, `NotASegment` (it is left alone), `PermissionDenied`, `Busy`, `Os`.
    pub fn unlink(name: &str) -> Result<(), OpenError> {
        process::remove(name)
    }

    /// This thread's context: made by the first call, the same one for every later call as long as it is open.
    ///
    /// ```
    /// # let name = format!("doc-buffer-context-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// let ctx = buffer.context()?;
    /// let here = ctx.producer::<u8>(1)?;
    /// drop(ctx);
    /// assert!(!buffer.has_active_channels()?, "its last handle is gone, and so are its endpoints");
    /// # drop(here);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `TooManyContexts`, `Forked`, `Evicted`.
    pub fn context(&self) -> Result<ThreadContext, BufferError> {
        ThreadContext::new(&self.hold)
    }

    /// The name it was opened by.
    ///
    /// ```
    /// # let name = format!("doc-name-{}", std::process::id());
    /// let buffer = ipc_buffer::Buffer::open(&name)?;
    /// assert_eq!(buffer.name(), name);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        self.hold.segment().name()
    }

    /// Bytes for records.
    ///
    /// ```
    /// # let name = format!("doc-capacity-{}", std::process::id());
    /// let buffer = ipc_buffer::Buffer::options().capacity(1).open(&name);
    /// assert!(buffer.is_err(), "256 KiB is the least");
    /// let buffer = ipc_buffer::Buffer::options().capacity(256 << 10).open(&name)?;
    /// assert_eq!(buffer.capacity(), 256 << 10);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn capacity(&self) -> u64 {
        u64::from(self.hold.arena().geometry().units) * UNIT
    }

    /// Whether the segment stays when the last process leaves.
    ///
    /// ```
    /// # let name = format!("doc-persistent-{}", std::process::id());
    /// use ipc_buffer::Buffer;
    /// let buffer = Buffer::open(&name)?;
    /// assert!(!buffer.is_persistent());
    /// let same = Buffer::options().persist(true).open(&name)?;
    /// assert!(buffer.is_persistent());
    /// Buffer::unlink(&name)?;
    /// # drop(same);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn is_persistent(&self) -> bool {
        self.hold.arena().header().flags.load(Ordering::Acquire) & flag::PERSIST != 0
    }

    /// Whether channel `id` exists now.
    ///
    /// ```
    /// # let name = format!("doc-has-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let _tx = ctx.producer::<u8>(-5)?;
    /// assert!(buffer.has_channel(-5)? && !buffer.has_channel(5)?);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Busy`, `Forked`, `Evicted`, `NoDescriptor`.
    pub fn has_channel(&self, id: i64) -> Result<bool, BufferError> {
        self.has_channel_within(id, PATIENCE)
    }

    fn has_channel_within(&self, id: i64, patience: Duration) -> Result<bool, BufferError> {
        let control = self.hold.control_within(patience)?;
        Ok(directory::find(&control, id).is_some())
    }

    /// Waits until channel `id` exists; false if it did not in time.
    ///
    /// ```
    /// # let name = format!("doc-wait-channel-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// assert!(!buffer.wait_for_channel(1, Duration::from_millis(1))?);
    /// let _tx = ctx.producer::<u8>(1)?;
    /// assert!(buffer.wait_for_channel(1, Duration::from_millis(1))?);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Forked`, `Evicted`, `NoDescriptor`; `Busy` if somebody kept the directory from being looked at, for all of the time or for 5
    /// seconds of it.
    pub fn wait_for_channel(&self, id: i64, timeout: Duration) -> Result<bool, BufferError> {
        let deadline = Instant::now().checked_add(timeout);
        let mut result = None;
        let look = || {
            let left = deadline.map_or(PATIENCE, |deadline| deadline.saturating_duration_since(Instant::now()));
            // A holder in good order is not in the way of one who has no time.
            let patience = left.clamp(COURTESY, PATIENCE);
            let begun = Instant::now();
            match self.has_channel_within(id, patience) {
                Ok(false) => result = Some(Ok(false)),
                // Not in its time; what was seen before counts.
                Err(busy @ BufferError::Busy { .. }) if begun.elapsed() < PATIENCE => {
                    _ = result.get_or_insert(Err(busy))
                }
                other => return Some(other),
            }
            None
        };
        let found = wait::for_change(&self.hold.arena().header().directory_version, deadline, look);
        found.or(result).unwrap_or(Ok(false))
    }

    /// Whether any channel has an endpoint attached, removed ones included.
    ///
    /// ```
    /// # let name = format!("doc-active-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::ChannelOptions;
    /// let tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().persistent(true))?;
    /// assert!(buffer.has_active_channels()?);
    /// drop(tx);
    /// assert!(buffer.has_channel(1)? && !buffer.has_active_channels()?);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Busy`, `Forked`, `Evicted`, `NoDescriptor`.
    pub fn has_active_channels(&self) -> Result<bool, BufferError> {
        let control = self.hold.control()?;
        let active = directory::list(&control).any(|facts| facts.producer.is_some() || facts.consumer.is_some());
        Ok(active)
    }

    /// Every channel that its id leads to, ordered by id.
    ///
    /// ```
    /// # let name = format!("doc-list-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u64>(3)?;
    /// tx.send(ctx.record(1)?)?;
    /// let list = buffer.channels()?;
    /// assert_eq!((list[0].id, list[0].queued, list[0].consumer), (3, 1, None));
    /// assert_eq!(list[0].carries, "u64 (8 bytes, align 8)");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Busy`, `Forked`, `Evicted`, `NoDescriptor`.
    pub fn channels(&self) -> Result<Vec<ChannelInfo>, BufferError> {
        let control = self.hold.control()?;
        let pid = |who| participant::pid(self.hold.arena(), who);
        let mut list: Vec<ChannelInfo> = directory::list(&control)
            .filter(|facts| facts.live)
            .map(|facts| {
                let received = facts.ring.map_or(0, |ring| ring.head());
                let queued = facts.ring.map_or(0, |ring| ring.len_from(received));
                ChannelInfo {
                    id: facts.id,
                    kind: "spsc",
                    carries: facts.kind.map_or_else(|| "corrupted".into(), |kind| kind.to_string()),
                    capacity: facts.ring.map_or(0, |ring| ring.capacity()),
                    queued,
                    sent: received.saturating_add(queued as u64),
                    received,
                    producer: facts.producer.map(pid),
                    consumer: facts.consumer.map(pid),
                    persistent: facts.persistent,
                }
            })
            .collect();
        list.sort_by_key(|info| info.id);
        Ok(list)
    }

    /// Takes the id away from channel `id` at once: the next attach creates a new channel. Its storage, and what is queued, is
    /// freed when its last endpoint leaves. False if there was none.
    ///
    /// ```
    /// # let name = format!("doc-remove-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut old = ctx.producer::<u64>(3)?;
    /// assert!(buffer.remove_channel(3)?);
    /// let new = ctx.consumer::<f32>(3)?;
    /// old.send(ctx.record(1)?)?;
    /// assert!(new.is_empty());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Busy`, `Forked`, `Evicted`, `NoDescriptor`.
    pub fn remove_channel(&self, id: i64) -> Result<bool, BufferError> {
        let (deserted, was_there) = directory::remove(&self.hold.control()?, id);
        if let Some(index) = deserted {
            recovery::take_out(&self.hold, index);
        }
        Ok(was_there)
    }

    /// Gives back what dead processes held, and says what that was. Opening, waiting and running short of memory do it anyway.
    ///
    /// Once it returns, nothing is left of who was dead when it was called. What others have given back already, or give back
    /// meanwhile, is not counted again.
    ///
    /// ```
    /// # let name = format!("doc-reap-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// assert_eq!(buffer.reap()?.processes, 0);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Forked`, `Evicted`; `Busy` if another process reaps, or has the control lock, and is not done with it in 5 seconds;
    /// `TooManyContexts`.
    pub fn reap(&self) -> Result<Reaped, BufferError> {
        self.hold.check()?;
        match recovery::reap(&self.hold, Effort::THOROUGH) {
            (_, End::Stuck(error)) => Err(error),
            (reaped, _) => Ok(reaped),
        }
    }

    /// Returns the memory of free units to the system, after turning empty slabs into free units; says how many bytes that were.
    /// Slower next time: what was returned must be reserved again. Records keep their memory; that of free blocks goes even where it was
    /// locked, or registered with a device or with io_uring.
    ///
    /// ```
    /// # let name = format!("doc-trim-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// drop(ctx.slice_zeroed::<u8>(10 << 20)?);
    /// assert!(buffer.trim()? >= 10 << 20);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Busy` if another process keeps the control lock, or searches for memory, for 5 seconds; `Forked`, `Evicted`, `NoDescriptor`,
    /// `TooManyContexts`.
    pub fn trim(&self) -> Result<u64, BufferError> {
        self.hold.check()?;
        let _searching = self.hold.searching(PATIENCE)?;
        let mut turns = Turns::new(&self.hold);
        let mut stuck = None;
        let mut turn = || turns.turn().map_err(|error| stuck = Some(error)).is_ok();
        let returned = self.hold.with_cache(|cache| {
            reclaim::collect_loose(cache);
            // What the walk has just freed sits in this cache; what others cache keeps its slabs.
            cache.flush();
            reclaim::empty_slabs(cache, &mut turn);
            unit::trim(cache.arena(), cache.me(), &mut turn)
        })?;
        stuck.map_or(Ok(returned), Err)
    }

    /// How the memory is used, in total and per size class. Costs the fast paths nothing; walks the tables of units and
    /// magazines.
    ///
    /// ```
    /// # let name = format!("doc-stats-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let record = ctx.record(5_u64)?;
    /// assert_eq!(buffer.stats()?.used_bytes, 64);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Forked`, `Evicted`.
    pub fn stats(&self) -> Result<Stats, BufferError> {
        self.hold.check()?;
        Ok(stats::stats(self.hold.arena()))
    }

    /// Accounts for every byte. Walks the whole heap: for tests, tools and doubts, not for hot loops.
    ///
    /// ```
    /// # let name = format!("doc-audit-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// let audit = buffer.audit()?;
    /// assert!(audit.is_sound() && audit.is_all_free());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Busy`, `Forked`, `Evicted`, `NoDescriptor`.
    pub fn audit(&self) -> Result<Audit, BufferError> {
        audit::audit(&self.hold)
    }
}

/// A valid buffer name for a path and a project number: the same for everyone who means the same existing file or directory by
/// it, whatever way they write the path. A file made anew under the path gives the same name.
///
/// ```
/// # let name = format!("doc-open-from-path-{}", std::process::id());
/// let name = ipc_buffer::name_from_path("/tmp", 7)?;
/// assert_eq!(name, ipc_buffer::name_from_path("/tmp/../tmp", 7)?);
/// assert_ne!(name, ipc_buffer::name_from_path("/tmp", 8)?);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// What the system says if the path can't be resolved.
pub fn name_from_path(path: impl AsRef<Path>, project: u32) -> std::io::Result<String> {
    let full = path.as_ref().canonicalize()?;
    let hash = fnv(full.as_os_str().as_encoded_bytes());
    Ok(format!("ipc-buffer-{hash:016x}-{project}"))
}
