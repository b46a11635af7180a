//! The segment: one named shared-memory file, created, checked and mapped, and the control lock on it.
//!
//! Promises: [`enter`] returns a complete segment that the name leads to, with its control lock held, or a typed error; no
//! byte of it is touched before the system has backed it; a creator may die anywhere and the next one takes over.
//!
//! # Ownership
//! The control lock (byte [`CONTROL_BYTE`] of the file, an open-file-description lock, behind a process-local mutex) owns
//! creation, the name, the process table and the directory. Whoever first holds it over an all-zero file completes the
//! file: creator or opener makes no difference, so there is nothing to time out and nobody to wait for but the holder.
//! The name is removed only by a holder, after comparing device and inode, so a holder to whom the name still leads
//! knows that it stays so.
//!
//! # If a process dies
//! | creator dies | what is left | the next opener |
//! |---|---|---|
//! | after `shm_open`, before `ftruncate` | an empty file | removes it under its lock, starts again |
//! | before the magic | zeroes of a proper size, lock free | completes it |
//! | after the magic | a complete segment | uses it |
//!
//! A slow creator whose empty file was removed under it finds, with the lock in hand, that the name leads elsewhere, and
//! starts again too.
//!
//! # Orderings
//! `SYNC(ready)`: the header's fields, then the magic with Release; openers read the magic with Acquire. The latch
//! (`raw_sync`'s busy event, Relaxed inside) only saves them from queueing for the lock meanwhile.

#![allow(unsafe_code)]

use crate::arena::Arena;
use crate::error::OpenError;
use crate::layout::{FORMAT_VERSION, Geometry, MAGIC, MAX_CAPACITY, MIN_CAPACITY, UNIT, flag};
use crate::sync::Ordering;
use crate::sys::crash::point;
use crate::sys::fork::{Descriptor, Kept, Mapping};
use crate::sys::shm::{self, Identity, Reason};
use crate::sys::{barrier, lease, memory, task};
use raw_sync::Timeout;
use raw_sync::events::{BusyEvent, EventInit, EventState};
use shared_memory::{Shmem, ShmemConf, ShmemError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

/// Held while the name, the process table or the directory change.
pub(crate) const CONTROL_BYTE: u64 = 0;
/// Held while somebody reaps.
pub(crate) const REAP_BYTE: u64 = 1;
/// Held by the one who is next to have the control lock: it looks more often, and a holder who is not in a hurry sees it.
const NEXT_BYTE: u64 = 2;
/// Held while somebody searches for memory to reclaim; see `heap::reclaim`.
pub(crate) const SEARCH_BYTE: u64 = 3;
/// Process slot `i` holds byte `LEASE_BYTES + i` as long as it lives.
pub(crate) const LEASE_BYTES: u64 = 4096;

/// How long to wait for another process to leave the control lock before giving up with `Busy`.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause between two looks at the control lock: of the many who may wait, and of the one who is next.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_NEXT: Duration = Duration::from_micros(250);
const FIRST_PAUSE: Duration = Duration::from_micros(20);
/// Enough for the one who is next to look, and to find the lock free.
pub(crate) const COURTESY: Duration = Duration::from_micros(400);
/// How long an empty file may be somebody's who is about to size it.
const EMPTY_GRACE: Duration = Duration::from_millis(20);

const NOT_A_FILE: &str = "it is not a regular file";

/// What the caller of `Buffer::open` asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) capacity: Option<u64>,
    pub(crate) create_new: bool,
    pub(crate) must_exist: bool,
    pub(crate) persist: bool,
    pub(crate) mode: u32,
}

/// One mapped segment. No reference into it may be used after its drop, which unmaps and closes.
pub(crate) struct Segment {
    name: String,
    identity: Identity,
    arena: Arena,
    /// Keeps the mapping; its own unlink-on-drop is off.
    mapping: Mapping<Shmem>,
    /// Carries the leases and nothing that could be closed by accident.
    file: Descriptor,
    /// The same file, opened once more, for a forked child to map: a mapping keeps the open file it was made from, and a
    /// forked child must not keep the one that carries the leases.
    view: Descriptor,
}

// SAFETY: `Shmem` is an address, a descriptor and a name, used here only to unmap once; the arena is Send and Sync.
unsafe impl Send for Segment {}
// SAFETY: as above; no method of `Shmem` is called through a shared reference.
unsafe impl Sync for Segment {}

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

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
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

    /// Takes the control lock among processes, waiting until `deadline`.
    pub(crate) fn lock(&self, deadline: Instant) -> Result<(), Busy> {
        lock(self.file(), deadline, || true)?;
        Ok(())
    }

    pub(crate) fn unlock(&self) {
        lease::release(self.file(), CONTROL_BYTE);
    }

    /// Whether another process waits for the control lock.
    pub(crate) fn is_wanted(&self) -> bool {
        lease::held_elsewhere(self.file(), NEXT_BYTE)
    }

    /// In a forked child: puts a copy-on-write view in place of the shared pages, so that nothing the child does through old handles
    /// reaches the segment. The descriptors are the fork hooks' to close.
    pub(crate) fn abandon(&self, kept: &mut Kept) {
        // SAFETY: the mapping is this segment's, of this very file; the child is single-threaded here.
        unsafe { memory::make_private(self.mapping.start(), self.mapping.len(), self.view.as_fd()) };
        kept.except(self.mapping.start());
    }
}

/// Somebody else kept the control lock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Busy;

/// Polls for the control lock: Linux has no timed byte lock, and a stopped holder must not stop us for ever. Gives up early,
/// with false, when `go_on` says so.
fn lock(file: BorrowedFd<'_>, deadline: Instant, go_on: impl FnMut() -> bool) -> Result<bool, Busy> {
    let mut is_next = false;
    let locked = poll(file, deadline, go_on, &mut is_next);
    if is_next {
        lease::release(file, NEXT_BYTE);
    }
    locked
}

fn poll(
    file: BorrowedFd<'_>,
    deadline: Instant,
    mut go_on: impl FnMut() -> bool,
    is_next: &mut bool,
) -> Result<bool, Busy> {
    let mut pause = FIRST_PAUSE;
    loop {
        let taken = lease::try_take(file, CONTROL_BYTE).map_err(|_| Busy)?;
        if taken {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Busy);
        }
        if !go_on() {
            return Ok(false);
        }
        if !*is_next && lease::try_take(file, NEXT_BYTE).unwrap_or(false) {
            *is_next = true;
            pause = FIRST_PAUSE;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(if *is_next { PAUSE_NEXT } else { PAUSE });
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

fn os_error(name: &str, what: &'static str, source: io::Error) -> OpenError {
    let name = name.to_owned();
    match shm::reason(&source) {
        Reason::Denied => OpenError::PermissionDenied { name },
        Reason::Link => OpenError::NotASegment { name, why: "it is a symbolic link" },
        Reason::Directory => OpenError::NotASegment { name, why: "it is a directory" },
        Reason::Special => OpenError::NotASegment { name, why: "it is a socket or a pipe" },
        Reason::NoSpace => OpenError::NoSpace { name, needed: Geometry::TABLES },
        Reason::Other => OpenError::Os { name, what, source },
    }
}

fn map_error(name: &str, error: &ShmemError) -> OpenError {
    let code = match error {
        ShmemError::MapCreateFailed(code) | ShmemError::MapOpenFailed(code) | ShmemError::UnknownOsError(code) => *code,
        _ => 0,
    };
    os_error(name, "map", io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(0)))
}

/// One try: a complete segment with its control lock held, or `None` if another party changed the name under us.
fn attempt(
    name: &str,
    wish: &Wish,
    units: u32,
    start: Instant,
    give_up: Instant,
) -> Result<Option<Segment>, OpenError> {
    let os_name = format!("/{name}");
    let conf = || ShmemConf::new().os_id(&os_name);
    // Its unlink-on-drop goes by name and could hit another's segment; ours compares first.
    let disown = |mut mapping: Shmem| {
        mapping.set_owner(false);
        mapping
    };
    let place = |mapping: &Shmem| (NonNull::new(mapping.as_ptr()).unwrap_or(NonNull::dangling()), mapping.len());
    let open = || Descriptor::open(|| shm::open(name));
    let mut created = None;
    let file = match open() {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if wish.must_exist {
                return Err(OpenError::NotFound { name: name.into() });
            }
            let size = usize::try_from(Geometry::for_units(units).total).unwrap_or(usize::MAX);
            match Mapping::make(|| conf().size(size).create().map(disown), place) {
                Ok(mapping) => {
                    created = Some(mapping);
                    point!("enter: created");
                }
                Err(ShmemError::MappingIdExists) => return Ok(None),
                Err(e) => return Err(map_error(name, &e)),
            }
            match open() {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(os_error(name, "open", e)),
            }
        }
        Err(e) => return Err(os_error(name, "open", e)),
    };
    point!("enter: opened");
    let before = shm::stat(&file).map_err(|e| os_error(name, "stat", e))?;
    if !before.is_file {
        return Err(OpenError::NotASegment { name: name.into(), why: NOT_A_FILE });
    }
    if before.user != task::user() && before.mode & 0o066 == 0 {
        return Err(OpenError::ForeignOwner { name: name.into(), user: before.user, mode: before.mode });
    }
    if before.size == 0 && start.elapsed() < EMPTY_GRACE {
        return Ok(None);
    }
    if wish.create_new && created.is_none() && before.size != 0 {
        return Err(OpenError::AlreadyExists { name: name.into() });
    }
    let still_named = || shm::stat_name(name).is_ok_and(|facts| facts.identity == before.identity);
    match lock(file.as_fd(), give_up, still_named) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(Busy) => {
            let words = shm::read_words::<32>(&file).unwrap_or([0; 32]);
            let pid = words[std::mem::offset_of!(crate::layout::Header, control_pid) / 8];
            return Err(OpenError::Busy { name: name.into(), pid: u32::try_from(pid).unwrap_or(0) });
        }
    }
    // From here on the lock is dropped with `file` on every way out but the last.
    point!("enter: locked");
    if !still_named() {
        return Ok(None);
    }
    let size = shm::stat(&file).map_err(|e| os_error(name, "stat", e))?.size;
    if size == 0 {
        // Left by a creator that died at once, or one that is slow: it will notice (see the module).
        shm::unlink(name).map_err(|e| os_error(name, "unlink", e))?;
        point!("enter: empty file removed");
        return Ok(None);
    }
    let geometry = check_header(name, &file, size)?;
    let view = match open() {
        Ok(view) if shm::stat(&view).is_ok_and(|facts| facts.identity == before.identity) => view,
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(os_error(name, "open", e)),
    };
    let mapping = match created {
        Some(mapping) => mapping,
        None => match Mapping::make(|| conf().open().map(disown), place) {
            Ok(mapping) => mapping,
            Err(_) if !still_named() => return Ok(None),
            Err(e) => return Err(map_error(name, &e)),
        },
    };
    let base = mapping.start();
    if mapping.len() as u64 != geometry.total || !base.as_ptr().addr().is_multiple_of(4096) {
        return Ok(None);
    }
    // SAFETY: mapped in full by `mapping`, which lives in the same `Segment` as the arena; `file` likewise.
    let arena = unsafe { Arena::new(base, geometry, file.as_fd().as_raw_fd()) };
    let segment = Segment { name: name.to_owned(), identity: before.identity, arena, mapping, file, view };
    point!("enter: mapped");
    let done = complete(&segment, wish)?;
    if !done {
        return Ok(None);
    }
    let capacity = u64::from(geometry.units) * UNIT;
    if wish.capacity.is_some() && geometry.units != units {
        return Err(OpenError::CapacityMismatch {
            name: name.into(),
            asked: u64::from(units) * UNIT,
            actual: capacity,
        });
    }
    Ok(Some(segment))
}

/// Judges the file by its size and first words, before anything is mapped.
fn check_header(name: &str, file: &Descriptor, size: u64) -> Result<Geometry, OpenError> {
    let not = |why| OpenError::NotASegment { name: name.into(), why };
    let [magic, version, hash, capacity, ..] = shm::read_words::<8>(file).map_err(|e| os_error(name, "read", e))?;
    if magic == 0 {
        // Zeroes in a size that only we give a file: a segment nobody has completed.
        return Geometry::for_total(size).ok_or(not("it is all zeroes, in a size that no buffer has"));
    }
    if magic != MAGIC {
        return Err(not("it does not start with the magic number"));
    }
    if version != FORMAT_VERSION {
        return Err(OpenError::VersionMismatch { name: name.into(), found: version, ours: FORMAT_VERSION });
    }
    if hash != Geometry::layout_hash() {
        return Err(not("its layout was made by a build with other table sizes"));
    }
    let units = units_for(capacity).map_err(|_| not("its header gives an impossible capacity"))?;
    let geometry = Geometry::for_units(units);
    if geometry.total == size {
        Ok(geometry)
    } else {
        Err(OpenError::Truncated { name: name.into(), size, expected: geometry.total })
    }
}

/// Makes the segment complete if it is not. False if mapping and descriptor turn out to be two different files.
fn complete(segment: &Segment, wish: &Wish) -> Result<bool, OpenError> {
    let arena = &segment.arena;
    let no_space = || OpenError::NoSpace { name: segment.name.clone(), needed: arena.geometry().fixed() };
    let [magic, ..] = shm::read_words::<1>(segment.file()).map_err(|e| os_error(&segment.name, "read", e))?;
    let fresh = magic == 0;
    if fresh && arena.back_fixed().is_err() {
        // Nobody can have used it; better no file than one that can't be used.
        segment.unlink();
        return Err(no_space());
    }
    let header = arena.header();
    if fresh {
        point!("complete: backed");
        header.nonce.store(task::nonce(), Ordering::Relaxed);
        point!("complete: nonce");
    }
    // The mapping was made by name, the descriptor too: the same file only if both show the same nonce.
    let nonce = std::mem::offset_of!(crate::layout::Header, nonce) / 8;
    let words = shm::read_words::<8>(segment.file()).map_err(|e| os_error(&segment.name, "read", e))?;
    if words[nonce] != header.nonce.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let latch = std::ptr::from_ref(&header.latch).cast_mut().cast::<u8>();
    // SAFETY: two bytes inside the header, mapped as long as the segment; the event only touches them as bytes.
    let (make, find) = (|| unsafe { BusyEvent::new(latch, false) }, || unsafe { BusyEvent::from_existing(latch) });
    let latch = if fresh { make() } else { find() };
    if fresh {
        shm::set_mode(segment.file(), wish.mode).map_err(|e| os_error(&segment.name, "set the mode of", e))?;
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
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Ok(false);
        }
    }
    header.control_pid.store(std::process::id().into(), Ordering::Relaxed);
    if wish.persist {
        header.flags.fetch_or(flag::PERSIST, Ordering::AcqRel);
    }
    barrier::register();
    Ok(true)
}

/// Removes the name of a segment, if it leads to one.
pub(crate) fn remove(name: &str) -> Result<(), OpenError> {
    check_name(name)?;
    let file = Descriptor::open(|| shm::open(name)).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { name: name.into() },
        _ => os_error(name, "open", e),
    })?;
    let facts = shm::stat(&file).map_err(|e| os_error(name, "stat", e))?;
    if !facts.is_file {
        return Err(OpenError::NotASegment { name: name.into(), why: NOT_A_FILE });
    }
    let [magic, ..] = shm::read_words::<1>(&file).map_err(|e| os_error(name, "read", e))?;
    let ours = magic == MAGIC || facts.size == 0 || magic == 0 && Geometry::for_total(facts.size).is_some();
    if !ours {
        return Err(OpenError::NotASegment { name: name.into(), why: "it does not start with the magic number" });
    }
    if !matches!(lock(file.as_fd(), Instant::now() + PATIENCE, || true), Ok(true)) {
        return Err(OpenError::Busy { name: name.into(), pid: 0 });
    }
    point!("unlink: locked");
    if shm::stat_name(name).is_ok_and(|now| now.identity == facts.identity) {
        shm::unlink(name).map_err(|e| os_error(name, "unlink", e))?;
    }
    point!("unlink: done");
    Ok(())
}
