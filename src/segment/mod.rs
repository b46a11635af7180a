//! The segment: one named shared-memory file, created, checked and mapped, and the control lock on it.
//!
//! Promises: [`enter`] returns a complete segment that the name leads to, with its control lock held, or a typed error; no
//! byte of it is touched before the system has backed it; a creator may die anywhere and the next one takes over.
//!
//! # Ownership
//! The control lock (byte [`CONTROL_BYTE`] of the file, an open-file-description lock, behind a process-local mutex) owns
//! creation, the name, the process table and the directory. Whoever first holds it over an all-zero file sizes and completes the
//! file: creator or opener makes no difference, so there is nothing to time out and nobody to wait for but the holder.
//! The name is removed only by a holder, after comparing device and inode, so a holder to whom the name still leads
//! knows that it stays so.
//!
//! # If a process dies
//! | creator dies | what is left | the next opener |
//! |---|---|---|
//! | after `shm_open`, before the crate's `ftruncate` | an empty file, maybe with a mode that keeps everybody out | removes it under its lock, starts again |
//! | after that | a file of a page | completes it, in the size it wants |
//! | before the magic | zeroes of a proper size, lock free | completes it, likewise |
//! | after the magic | a complete segment | uses it |
//!
//! A slow creator whose empty file was removed under it finds, with the lock in hand, that the name leads elsewhere, and
//! starts again too. An empty file is not completed: its creator may be about to give it the size of a page.
//!
//! A complete one that nobody uses, and that is not to stay, but has another capacity or format than is wanted: the next opener
//! removes its name, and starts again.
//!
//! # Descriptors
//! The process may lose any descriptor at any time, and its number may lead to a log file then (see `sys::shm`). So:
//! - The **lease** hangs on a page mapped through its description ([`Pin`]); its descriptor is closed as soon as the lease is taken.
//! - The **control lock**, and the others that are given up again, have a description of their own, pinned likewise ([`Locks`]). When
//!   its number is lost, what is locked stays locked until it is to be given up, which then is done by taking the pin away; and a new
//!   one is opened by the other number, or by name. If neither leads to the file any more, locks can't be taken, or asked for:
//!   operations that need them say so, and who can't be judged is alive.
//! - The **view** bears no lock. The segment is mapped through it, in a forked child too; and it serves where an old kernel wants a
//!   descriptor.
//!
//! # Orderings
//! `SYNC(ready)`: the header's fields, then the magic with Release; openers read the magic with Acquire. The latch
//! (`raw_sync`'s busy event, Relaxed inside) only saves them from queueing for the lock meanwhile.

#![allow(unsafe_code)]

pub(crate) mod arena;

use crate::error::OpenError;
use crate::format::{FORMAT_VERSION, Geometry, Header, MAGIC, MAX_CAPACITY, MIN_CAPACITY, UNIT, flag};
use crate::segment::arena::Arena;
use crate::sync::Ordering;
use crate::sys::crash::point;
use crate::sys::memory::{Mapping, Pin};
use crate::sys::shm::{self, Facts, File, Identity, Kept, NEW_SIZE, Number};
use crate::sys::{barrier, errno, lease, task};
use parking_lot::Mutex;
use raw_sync::Timeout;
use raw_sync::events::{BusyEvent, EventInit, EventState};
use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Held while the name, the process table or the directory change.
pub(crate) const CONTROL_BYTE: u64 = 0;
/// Held while somebody reaps.
pub(crate) const REAP_BYTE: u64 = 1;
/// Held by the one who is next to have the control lock: it looks more often, and a holder who is not in a hurry sees it.
const NEXT_BYTE: u64 = 2;
/// Held while somebody searches for memory to reclaim; see `heap::reclaim`.
const SEARCH_BYTE: u64 = 3;
/// From here on, all that is held is held by somebody attached, in every format there was.
const FIRST_LEASE: u64 = SEARCH_BYTE;
/// Process slot `i` holds byte `LEASE_BYTES + i` as long as it lives.
pub(crate) const LEASE_BYTES: u64 = 4096;

/// How long to wait for another process to leave the control lock before giving up with `Busy`.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two looks at a lock: of the many who may wait, and of the one who is next to have the control lock.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_NEXT: Duration = Duration::from_micros(250);
const FIRST_PAUSE: Duration = Duration::from_micros(20);
/// Enough for the one who is next to look, and to find the lock free.
pub(crate) const COURTESY: Duration = Duration::from_micros(400);
/// How long a file may be empty, or not to be opened by its owner, because another one is about to give it its size and mode.
const GRACE: Duration = Duration::from_millis(20);

const NOT_A_FILE: &str = "it is not a regular file";

/// What the caller of `Buffer::open` asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) capacity: Option<u64>,
    pub(crate) create_new: bool,
    pub(crate) must_exist: bool,
    pub(crate) persist: bool,
    pub(crate) mode: u32,
    pub(crate) dumped: bool,
}

/// One mapped segment. No reference into it may be used after its drop, which unmaps and closes, and so gives up every lock.
pub(crate) struct Segment {
    name: String,
    identity: Identity,
    arena: Arena,
    /// Where the arena is.
    mapping: Mapping,
    open: Open,
}

/// What this process has open of a segment; see the module.
struct Open {
    lease: Mutex<Option<Lease>>,
    locks: Locks,
    view: File,
}

struct Lease {
    /// Until the lease is taken.
    file: Option<File>,
    _pin: Pin,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("name", &self.name).field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Segment {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Whether the name leads to this segment now.
    pub(crate) fn is_named(&self) -> bool {
        shm::stat_name(&self.name).is_ok_and(|facts| facts.identity == self.identity)
    }

    /// Removes the name if it still leads here. The caller holds the control lock.
    pub(crate) fn unlink(&self) {
        if self.is_named() {
            let _ = shm::unlink(&self.name);
        }
    }

    /// Has it in core dumps.
    pub(crate) fn set_dumped(&self) {
        self.mapping.set_dumped();
    }

    /// Takes the control lock among processes, waiting until `deadline`.
    pub(crate) fn lock(&self, deadline: Instant) -> Result<(), Unlocked> {
        lock(&self.open.locks, deadline, || true)?;
        Ok(())
    }

    pub(crate) fn unlock(&self) {
        self.open.locks.release(CONTROL_BYTE);
    }

    /// Whether another process waits for the control lock.
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_held_elsewhere(NEXT_BYTE)
    }

    /// Takes the lock that the one reaper holds, unless another process has it. The caller is the one thread here that does.
    pub(crate) fn try_lock_reaping(&self) -> bool {
        self.open.locks.try_take(REAP_BYTE).unwrap_or(false)
    }

    pub(crate) fn unlock_reaping(&self) {
        self.open.locks.release(REAP_BYTE);
    }

    /// Takes the lock that the one who searches holds, waiting until `deadline`; as for [`try_lock_reaping`](Self::try_lock_reaping).
    pub(crate) fn lock_searching(&self, deadline: Instant) -> Result<(), Unlocked> {
        poll(&self.open.locks, SEARCH_BYTE, deadline, || Ok(Some(PAUSE)))?;
        Ok(())
    }

    pub(crate) fn unlock_searching(&self) {
        self.open.locks.release(SEARCH_BYTE);
    }

    /// Whether another description holds `byte`, this process's lease among them: true if it can't be told.
    pub(crate) fn is_held_elsewhere(&self, byte: u64) -> bool {
        self.open.locks.is_held_elsewhere(byte)
    }

    /// Takes the lease of a process slot, if nobody has it. Not after [`keep_lease`](Self::keep_lease).
    pub(crate) fn try_take_lease(&self, slot: u32) -> bool {
        let lease = self.open.lease.lock();
        let fd = lease.as_ref().and_then(|lease| lease.file.as_ref()?.get());
        fd.is_some_and(|fd| lease::try_take(fd, LEASE_BYTES + u64::from(slot)).unwrap_or(false))
    }

    /// The lease that was taken stays until [`drop_lease`](Self::drop_lease), or the end of the process.
    pub(crate) fn keep_lease(&self) {
        if let Some(lease) = &mut *self.open.lease.lock() {
            lease.file = None;
        }
    }

    pub(crate) fn drop_lease(&self) {
        *self.open.lease.lock() = None;
    }

    /// In a forked child that has [abandoned](Self::abandon) it, when nobody leads here any more: takes the view away. The rest went at the
    /// fork, and what is left of it says nothing: its numbers and addresses may be another's.
    pub(crate) fn let_go(self) {
        let Self { mapping, open, .. } = self;
        std::mem::forget(open);
        drop(mapping);
    }

    /// In a forked child, which has the descriptors still: puts a copy-on-write view in place of the shared pages, so that nothing the
    /// child does through old handles reaches the segment. The rest of what was `kept` is the fork hooks' to take away.
    pub(crate) fn abandon(&self, kept: &mut Kept) {
        let named = || shm::open(&self.name).ok().filter(|file| file.identity() == self.identity);
        let view = self.open.view.get();
        let file = if view.is_none() { named() } else { None };
        // SAFETY: the mapping is of this very file; the child is single-threaded here.
        unsafe { self.mapping.make_private(view.or_else(|| file.as_ref()?.get()), kept) };
    }
}

/// Why the control lock was not to be had.
#[derive(Debug)]
pub(crate) enum Unlocked {
    /// Somebody else kept it.
    Busy,
    /// There is no descriptor of the file any more, and no way to open it.
    Lost,
    /// The system has no such locks.
    Refused(io::Error),
}

/// The locks of a segment that are given up again, whoever closes descriptors; see the module.
struct Locks {
    name: String,
    view: Mutex<Option<Number>>,
    state: Mutex<LockState>,
}

struct LockState {
    identity: Identity,
    /// Gone when it was found lost, and no other could be opened yet.
    bearer: Option<Bearer>,
    /// Those whose numbers were lost while they bore a lock that is still in use.
    lost: Vec<Bearer>,
}

/// A description that bears locks, of bytes 0 to 7.
struct Bearer {
    file: Option<File>,
    _pin: Pin,
    /// Locked, one bit a byte.
    held: u8,
    /// Of those, in use here. All of them as long as the number is there.
    used: u8,
}

impl Bearer {
    fn new(file: File) -> io::Result<Self> {
        Ok(Self { _pin: Pin::new(file.fd()?)?, file: Some(file), held: 0, used: 0 })
    }
}

const fn bit(byte: u64) -> u8 {
    1 << byte
}

impl Locks {
    fn new(name: &str, file: File) -> io::Result<Self> {
        let identity = file.identity();
        let state = LockState { identity, bearer: Some(Bearer::new(file)?), lost: Vec::new() };
        Ok(Self { name: name.into(), view: Mutex::new(None), state: Mutex::new(state) })
    }

    /// The descriptor that takes, and asks for, locks.
    fn fd(&self, state: &mut LockState) -> Option<BorrowedFd<'static>> {
        if let Some(fd) = state.bearer.as_ref().and_then(|bearer| bearer.file.as_ref()?.get()) {
            return Some(fd);
        }
        state.lose();
        let identity = state.identity;
        let is_it = |file: &File| file.identity() == identity;
        let again = self.view.lock().and_then(|view| shm::open_again(view).ok()).filter(is_it);
        let file = again.or_else(|| shm::open(&self.name).ok().filter(is_it))?;
        let bearer = state.bearer.insert(Bearer::new(file).ok()?);
        bearer.file.as_ref()?.get()
    }

    /// Takes `byte`, or says false at once if another process holds it. Among the threads here, only one at a time wants it.
    fn try_take(&self, byte: u64) -> Result<bool, Unlocked> {
        let state = &mut *self.state.lock();
        // Still locked, because something else was when the number was lost.
        if let Some(lost) = state.lost.iter_mut().find(|lost| lost.held & !lost.used & bit(byte) != 0) {
            lost.used |= bit(byte);
            return Ok(true);
        }
        let fd = self.fd(state).ok_or(Unlocked::Lost)?;
        let taken = lease::try_take(fd, byte).map_err(Unlocked::Refused)?;
        if let Some(bearer) = state.bearer.as_mut().filter(|_| taken) {
            bearer.held |= bit(byte);
            bearer.used |= bit(byte);
        }
        Ok(taken)
    }

    /// Gives `byte` back, which this process has taken.
    fn release(&self, byte: u64) {
        let state = &mut *self.state.lock();
        if let Some(lost) = state.lost.iter_mut().find(|lost| lost.used & bit(byte) != 0) {
            lost.used &= !bit(byte);
            state.lost.retain(|lost| lost.used != 0);
            return;
        }
        let Some(bearer) = &mut state.bearer else { return };
        bearer.used &= !bit(byte);
        // Held by another description, it is another one that the number leads to by now, of the same file.
        match bearer.file.as_ref().and_then(File::get).filter(|fd| !lease::known_elsewhere(*fd, byte)) {
            Some(fd) => {
                lease::release(fd, byte);
                bearer.held &= !bit(byte);
            }
            None => state.lose(),
        }
    }

    /// Whether another description holds `byte`: true if it can't be told.
    fn is_held_elsewhere(&self, byte: u64) -> bool {
        let state = &mut *self.state.lock();
        self.fd(state).is_none_or(|fd| lease::held_elsewhere(fd, byte))
    }

    /// Whether anybody else has a lease; true if it can't be told.
    fn is_attended(&self) -> bool {
        let state = &mut *self.state.lock();
        self.fd(state).is_none_or(|fd| lease::any_held_elsewhere(fd, FIRST_LEASE))
    }
}

impl LockState {
    /// The number is not ours any more. The kernel gives its locks up when the pin goes, which is as soon as none is in use.
    fn lose(&mut self) {
        let Some(mut bearer) = self.bearer.take() else { return };
        if let Some(file) = bearer.file.take() {
            file.forget();
        }
        if bearer.used != 0 {
            self.lost.push(bearer);
        }
    }
}

/// Waits for the control lock. Gives up early, with false, when `go_on` says so.
fn lock(locks: &Locks, deadline: Instant, mut go_on: impl FnMut() -> bool) -> Result<bool, Unlocked> {
    let mut is_next = false;
    let locked = poll(locks, CONTROL_BYTE, deadline, || {
        if !go_on() {
            return Ok(None);
        }
        is_next = is_next || locks.try_take(NEXT_BYTE)?;
        Ok(Some(if is_next { PAUSE_NEXT } else { PAUSE }))
    });
    if is_next {
        locks.release(NEXT_BYTE);
    }
    locked
}

/// Polls for a byte: Linux has no timed byte lock, and a stopped holder must not stop us for ever. Between two looks it pauses, longer and
/// longer, up to what `longest` says; gives up early, with false, when that says `None`.
fn poll(
    locks: &Locks,
    byte: u64,
    deadline: Instant,
    mut longest: impl FnMut() -> Result<Option<Duration>, Unlocked>,
) -> Result<bool, Unlocked> {
    let mut pause = FIRST_PAUSE;
    loop {
        if locks.try_take(byte)? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Unlocked::Busy);
        }
        let Some(longest) = longest()? else { return Ok(false) };
        std::thread::sleep(pause.min(longest).min(left));
        pause = (pause * 2).min(longest);
    }
}

/// Checks a name: 1 to 200 bytes, no slash, no NUL, not a dot name.
pub(crate) fn check_name(name: &str) -> Result<(), OpenError> {
    let why = match name {
        "" => "it is empty",
        "." | ".." => "it is a directory",
        _ if name.len() > 200 => "it is longer than 200 bytes",
        _ if name.contains('/') => "it contains a slash",
        _ if name.contains('\0') => "it contains a NUL",
        _ => return Ok(()),
    };
    let name = name.chars().take(40).collect();
    Err(OpenError::InvalidName { name, why })
}

/// The number of units for a capacity in bytes.
pub(crate) fn units_for(capacity: u64) -> Result<u32, OpenError> {
    if (MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity) {
        Ok(u32::try_from(capacity.div_ceil(UNIT)).unwrap_or(u32::MAX))
    } else {
        Err(OpenError::CapacityOutOfRange { capacity, min: MIN_CAPACITY, max: MAX_CAPACITY })
    }
}

/// Opens or creates the segment `name` and returns it with its control lock held. Waits until `give_up` at most.
pub(crate) fn enter(name: &str, wish: &Wish, give_up: Instant) -> Result<Segment, OpenError> {
    check_name(name)?;
    let units = units_for(wish.capacity.unwrap_or(1 << 30))?;
    let start = Instant::now();
    let mut tries = 0_u32;
    loop {
        if let Some(segment) = attempt(name, wish, units, start, give_up)? {
            return Ok(segment);
        }
        tries += 1;
        if Instant::now() > give_up {
            return Err(OpenError::Busy { name: name.into(), pid: 0 });
        }
        std::thread::sleep(Duration::from_micros(u64::from(20 * tries.min(50))));
    }
}

/// What went wrong in `call` with the segment `name`.
fn os_error(name: &str, call: &'static str, source: io::Error) -> OpenError {
    let name = name.to_owned();
    let not = |why| OpenError::NotASegment { name: name.clone(), why };
    match source.raw_os_error() {
        Some(errno::EACCES | errno::EPERM) => OpenError::PermissionDenied { name, call, source },
        Some(errno::ELOOP) => not("it is a symbolic link"),
        Some(errno::EISDIR) => not("it is a directory"),
        Some(errno::ENXIO) => not("it is a socket or a pipe"),
        _ => OpenError::Os { name, call, source },
    }
}

fn unlocked(name: &str, why: Unlocked, pid: u64) -> OpenError {
    match why {
        Unlocked::Busy => OpenError::Busy { name: name.into(), pid: u32::try_from(pid).unwrap_or(0) },
        Unlocked::Lost => os_error(name, "fstat", io::Error::from_raw_os_error(errno::EBADF)),
        Unlocked::Refused(source) => OpenError::NoLocks { name: name.into(), source },
    }
}

/// One try: a complete segment with its control lock held, or `None` if another party changed the name under us.
fn attempt(
    name: &str,
    wish: &Wish,
    units: u32,
    start: Instant,
    give_up: Instant,
) -> Result<Option<Segment>, OpenError> {
    let mut created = false;
    let file = match shm::open(name) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if wish.must_exist {
                return Err(OpenError::NotFound { name: name.into() });
            }
            check_size_limit(name, Geometry::for_units(units).total)?;
            match shm::create(name) {
                Ok(()) => created = true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                Err(e) => return Err(os_error(name, "shm_open", e)),
            }
            point!("enter: created");
            match shm::open(name).or_else(|e| open_up(name, e, true)) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => {
                    discard(name, None);
                    return Err(os_error(name, "open", e));
                }
            }
        }
        Err(e) => match open_up(name, e, start.elapsed() > GRACE) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(os_error(name, "open", e)),
        },
    };
    point!("enter: opened");
    let identity = file.identity();
    let mut unfinished = created;
    let at = At { created, is_overdue: start.elapsed() > GRACE, give_up };
    let result = take_up(name, wish, units, file, &at, &mut unfinished);
    if result.is_err() && unfinished {
        discard(name, Some(identity));
    }
    result
}

/// Opens an object that `refused` to be opened, if it is this user's, not yet complete, and will not get its mode from another: an odd
/// umask has made it so.
fn open_up(name: &str, refused: io::Error, now: bool) -> io::Result<File> {
    let is_unfinished = |facts: &Facts| facts.is_file && facts.user == task::user() && !facts.is_backed;
    if refused.kind() != io::ErrorKind::PermissionDenied || !shm::stat_name(name).is_ok_and(|it| is_unfinished(&it)) {
        return Err(refused);
    }
    if !now {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    shm::set_mode_of_name(name, 0o600)?;
    shm::open(name)
}

/// Removes an object that was created in vain, or that nobody could complete, unless somebody else is at it.
fn discard(name: &str, identity: Option<Identity>) {
    let Ok(facts) = shm::stat_name(name) else { return };
    let is_same = identity.is_none_or(|identity| identity == facts.identity) && facts.is_file;
    let is_idle = match shm::open(name) {
        Ok(file) => file.get().is_some_and(|fd| {
            // If the system refuses locks, nobody has any.
            lease::try_take(fd, CONTROL_BYTE).unwrap_or(true)
                && shm::read_words::<1>(fd).is_ok_and(|[magic]| magic == 0)
        }),
        Err(_) => facts.size <= NEW_SIZE && !facts.is_backed && facts.user == task::user(),
    };
    if is_same && is_idle {
        let _ = shm::unlink(name);
    }
}

fn check_size_limit(name: &str, needed: u64) -> Result<(), OpenError> {
    match shm::size_limit() {
        Some(limit) if limit < needed => Err(OpenError::FileSizeLimit { name: name.into(), needed, limit }),
        _ => Ok(()),
    }
}

/// What lies in a file, by its size and first words.
enum Found {
    /// Nobody has completed it. It may have been sized.
    Unfinished(Option<Geometry>),
    Complete(Geometry),
}

/// How far an [`attempt`] has come.
struct At {
    /// The file is this process's making.
    created: bool,
    /// Its creator has had the time to give it its size.
    is_overdue: bool,
    give_up: Instant,
}

/// As [`attempt`], with the file that was opened. Says whether it is unfinished.
fn take_up(
    name: &str,
    wish: &Wish,
    units: u32,
    file: File,
    at: &At,
    unfinished: &mut bool,
) -> Result<Option<Segment>, OpenError> {
    let fd = file.fd().map_err(|e| os_error(name, "fstat", e))?;
    let stat = || shm::stat(fd).map_err(|e| os_error(name, "fstat", e));
    let before = stat()?;
    if !before.is_file {
        return Err(OpenError::NotASegment { name: name.into(), why: NOT_A_FILE });
    }
    if before.user != task::user() && before.mode & 0o066 == 0 {
        return Err(OpenError::ForeignOwner { name: name.into(), user: before.user, mode: before.mode });
    }
    let words = || shm::read_words::<32>(fd).map_err(|e| os_error(name, "read", e));
    let taken = || OpenError::AlreadyExists { name: name.into() };
    if before.size == 0 && !at.is_overdue {
        return Ok(None);
    }
    if wish.create_new && !at.created && words()?[0] != 0 {
        return Err(taken());
    }
    let identity = before.identity;
    let still_named = || shm::stat_name(name).is_ok_and(|facts| facts.identity == identity);
    let locks = Locks::new(name, file).map_err(|e| os_error(name, "mmap", e))?;
    match lock(&locks, at.give_up, still_named) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(why) => return Err(unlocked(name, why, words()?[offset_of!(Header, control_pid) / 8])),
    }
    // From here on the lock is dropped with `locks` on every way out but the last.
    point!("enter: locked");
    if !still_named() {
        return Ok(None);
    }
    let size = stat()?.size;
    if size == 0 {
        // Left by a creator that died at once, or one that is slow: it will notice (see the module).
        shm::unlink(name).map_err(|e| os_error(name, "unlink", e))?;
        point!("enter: empty file removed");
        return Ok(None);
    }
    let words = words()?;
    // Left by the dead, and not to stay.
    let is_obsolete = || {
        let persists = words[offset_of!(Header, flags) / 8] & flag::PERSIST != 0;
        let has_header = size >= size_of::<Header>() as u64;
        has_header && !wish.must_exist && !wish.create_new && !persists && !locks.is_attended()
    };
    let found = check_header(name, &words, size).and_then(|found| match found {
        Found::Complete(_) if wish.create_new => Err(taken()),
        Found::Complete(geometry) if wish.capacity.is_some() && geometry.units != units => {
            let (asked, actual) = (u64::from(units) * UNIT, u64::from(geometry.units) * UNIT);
            Err(OpenError::CapacityMismatch { name: name.into(), asked, actual })
        }
        found => Ok(found),
    });
    let (geometry, fresh) = match found {
        Ok(Found::Complete(geometry)) => (geometry, false),
        Ok(Found::Unfinished(sized)) => {
            *unfinished = true;
            let wanted = Geometry::for_units(units);
            let geometry = sized.filter(|_| wish.capacity.is_none()).unwrap_or(wanted);
            if sized != Some(geometry) {
                check_size_limit(name, geometry.total)?;
                shm::set_size(fd, geometry.total).map_err(|e| os_error(name, "ftruncate", e))?;
            }
            point!("enter: sized");
            (geometry, true)
        }
        Err(OpenError::NotASegment { why, .. }) if why != OTHER_TABLES => {
            return Err(OpenError::NotASegment { name: name.into(), why });
        }
        Err(error @ OpenError::AlreadyExists { .. }) => return Err(error),
        Err(_) if is_obsolete() => {
            shm::unlink(name).map_err(|e| os_error(name, "unlink", e))?;
            point!("enter: obsolete removed");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let again = || match shm::open(name) {
        Ok(file) if file.identity() == identity => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(os_error(name, "open", e)),
    };
    let (Some(view), Some(file)) = (again()?, again()?) else { return Ok(None) };
    let pin = file.fd().and_then(Pin::new).map_err(|e| os_error(name, "mmap", e))?;
    *locks.view.lock() = Some(view.number());
    let len = usize::try_from(geometry.total).unwrap_or(usize::MAX);
    // A mapping keeps what it was made through, locks and all.
    let mapping = view.fd().and_then(|fd| Mapping::new(fd, len, wish.dumped)).map_err(|e| os_error(name, "mmap", e))?;
    // SAFETY: mapped in full by `mapping`, which lives in the same `Segment` as the arena.
    let arena = unsafe { Arena::new(mapping.start(), geometry, Some(view.number())) };
    let lease = Mutex::new(Some(Lease { file: Some(file), _pin: pin }));
    let open = Open { lease, locks, view };
    let segment = Segment { name: name.to_owned(), identity, arena, mapping, open };
    point!("enter: mapped");
    complete(&segment, fd, fresh, wish)?;
    if fresh && !still_named() {
        return Ok(None);
    }
    *unfinished = false;
    Ok(Some(segment))
}

const OTHER_TABLES: &str = "its layout was made by a build with other table sizes";

/// Judges the file by its size and first words, before anything is mapped.
fn check_header(name: &str, words: &[u64; 32], size: u64) -> Result<Found, OpenError> {
    let not = |why| OpenError::NotASegment { name: name.into(), why };
    let [magic, version, hash, capacity, ..] = *words;
    if magic == 0 {
        // Zeroes in a size that only we give a file: a segment nobody has completed.
        return match Geometry::for_total(size) {
            None if size != NEW_SIZE => Err(not("it is all zeroes, in a size that no buffer has")),
            sized => Ok(Found::Unfinished(sized)),
        };
    }
    if magic != MAGIC {
        return Err(not("it does not start with the magic number"));
    }
    if version != FORMAT_VERSION {
        return Err(OpenError::VersionMismatch { name: name.into(), found: version, ours: FORMAT_VERSION });
    }
    if hash != Geometry::layout_hash() {
        return Err(not(OTHER_TABLES));
    }
    let units = units_for(capacity).map_err(|_| not("its header gives an impossible capacity"))?;
    let geometry = Geometry::for_units(units);
    if geometry.total == size {
        Ok(Found::Complete(geometry))
    } else {
        Err(OpenError::Truncated { name: name.into(), size, expected: geometry.total })
    }
}

/// Makes the segment complete if it is `fresh`. The caller holds the control lock.
fn complete(segment: &Segment, fd: BorrowedFd<'_>, fresh: bool, wish: &Wish) -> Result<(), OpenError> {
    let (arena, name) = (&segment.arena, &segment.name);
    if fresh {
        let needed = arena.geometry().fixed();
        arena.back_fixed().map_err(|_| OpenError::NoSpace { name: name.clone(), needed })?;
        point!("complete: backed");
    }
    let header = arena.header();
    let latch = std::ptr::from_ref(&header.latch).cast_mut().cast::<u8>();
    // SAFETY: two bytes inside the header, mapped as long as the segment; the event only touches them as bytes.
    let (make, find) = (|| unsafe { BusyEvent::new(latch, false) }, || unsafe { BusyEvent::from_existing(latch) });
    let latch = if fresh { make() } else { find() };
    if fresh {
        header.nonce.store(task::nonce(), Ordering::Relaxed);
        point!("complete: nonce");
        shm::set_mode(fd, wish.mode).map_err(|e| os_error(name, "fchmod", e))?;
        point!("complete: mode");
        header.version.store(FORMAT_VERSION, Ordering::Relaxed);
        header.layout_hash.store(Geometry::layout_hash(), Ordering::Relaxed);
        header.capacity.store(u64::from(arena.geometry().units) * UNIT, Ordering::Relaxed);
        point!("complete: header");
        // SYNC(ready)
        header.magic.store(MAGIC, Ordering::Release);
        point!("complete: magic");
        if let Ok((latch, _)) = &latch {
            let _ = latch.set(EventState::Signaled);
        }
        point!("complete: latch");
    } else {
        // Signalled long ago, unless its creator died right before; the lock is ours, so nobody will any more.
        if let Ok((latch, _)) = &latch
            && latch.wait(Timeout::Val(Duration::ZERO)).is_err()
        {
            let _ = latch.set(EventState::Signaled);
        }
        // SYNC(ready)
        let _ = header.magic.load(Ordering::Acquire);
    }
    header.control_pid.store(std::process::id().into(), Ordering::Relaxed);
    if wish.persist {
        header.flags.fetch_or(flag::PERSIST, Ordering::AcqRel);
    }
    barrier::register();
    Ok(())
}

/// Removes the name of a segment, if it leads to one.
pub(crate) fn remove(name: &str) -> Result<(), OpenError> {
    check_name(name)?;
    let file = shm::open(name).or_else(|e| open_for_removal(name, e)).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { name: name.into() },
        _ => os_error(name, "open", e),
    })?;
    let fd = file.fd().map_err(|e| os_error(name, "fstat", e))?;
    let facts = shm::stat(fd).map_err(|e| os_error(name, "fstat", e))?;
    if !facts.is_file {
        return Err(OpenError::NotASegment { name: name.into(), why: NOT_A_FILE });
    }
    let [magic, ..] = shm::read_words::<1>(fd).map_err(|e| os_error(name, "read", e))?;
    let is_unfinished = matches!(facts.size, 0 | NEW_SIZE) || Geometry::for_total(facts.size).is_some();
    if magic != MAGIC && !(magic == 0 && is_unfinished) {
        return Err(OpenError::NotASegment { name: name.into(), why: "it does not start with the magic number" });
    }
    let locks = Locks::new(name, file).map_err(|e| os_error(name, "mmap", e))?;
    match lock(&locks, Instant::now() + PATIENCE, || true) {
        // Where there are no locks, nobody holds one.
        Ok(_) | Err(Unlocked::Refused(_)) => {}
        Err(why) => return Err(unlocked(name, why, 0)),
    }
    point!("unlink: locked");
    if shm::stat_name(name).is_ok_and(|now| now.identity == facts.identity) {
        shm::unlink(name).map_err(|e| os_error(name, "unlink", e))?;
    }
    point!("unlink: done");
    Ok(())
}

/// Opens an object that its owner, this user, has kept itself from opening.
fn open_for_removal(name: &str, refused: io::Error) -> io::Result<File> {
    let is_own = |facts: &Facts| facts.is_file && facts.user == task::user() && facts.mode & 0o600 != 0o600;
    match shm::stat_name(name) {
        Ok(facts) if refused.kind() == io::ErrorKind::PermissionDenied && is_own(&facts) => {
            shm::set_mode_of_name(name, facts.mode | 0o600)?;
            shm::open(name)
        }
        _ => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    /// A lock whose number was closed meanwhile is given up all the same, and not before.
    #[test]
    fn what_is_locked_by_a_lost_number() {
        let name = format!("ipc-buffer-test-lost-number-{}", std::process::id());
        let wish = Wish {
            capacity: Some(1 << 20),
            create_new: false,
            must_exist: false,
            persist: false,
            mode: 0o600,
            dumped: false,
        };
        let segment = enter(&name, &wish, Instant::now() + PATIENCE).unwrap();
        let other = Locks::new(&name, shm::open(&name).unwrap()).unwrap();
        segment.unlink();
        let lose = || {
            let state = segment.open.locks.state.lock();
            let fd = state.bearer.as_ref().and_then(|bearer| bearer.file.as_ref()?.get()).unwrap();
            // SAFETY: open; that its owner does not know of this is what the test is about.
            drop(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) });
        };
        // Entered with the control lock.
        segment.lock_searching(Instant::now()).unwrap();
        assert!(segment.try_lock_reaping());
        lose();
        for byte in [CONTROL_BYTE, SEARCH_BYTE, REAP_BYTE] {
            assert!(other.is_held_elsewhere(byte));
        }
        segment.unlock();
        segment.unlock_searching();
        assert!(other.is_held_elsewhere(REAP_BYTE));
        segment.unlock_reaping();
        for byte in [CONTROL_BYTE, SEARCH_BYTE, REAP_BYTE] {
            assert!(other.try_take(byte).unwrap(), "byte {byte} stays locked");
            other.release(byte);
        }
        // The next one is another number's.
        segment.lock(Instant::now() + PATIENCE).unwrap();
        assert!(other.is_held_elsewhere(CONTROL_BYTE));
        drop(segment);
        assert!(!other.is_held_elsewhere(CONTROL_BYTE));
    }
}
