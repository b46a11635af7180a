//! The memory behind a file: mapping it, reserving it, returning it, and taking it out of sharing.
//!
//! Promises: what is mapped takes no memory before it is asked for, whatever the process has locked (mlockall(2)); what was asked for
//! is there, so touching it can't raise SIGBUS; nobody waits for another's request, and a signal undoes nothing of it.
//!
//! Memory is asked for, and returned, by address (`MADV_POPULATE_WRITE`, Linux 5.14; `MADV_REMOVE`), which needs no
//! descriptor that somebody else may have closed. On a full mount the first says EFAULT where a touch would be SIGBUS. Older
//! kernels have fallocate(2), which allows one call at a time for each file, and undoes all of it for a signal on some; so it is
//! called for a piece at a time.

#![allow(unsafe_code)]
// The crate is for 64-bit targets (lib.rs).
#![allow(clippy::cast_possible_truncation)]

use crate::sync::{AtomicU32, Ordering};
use crate::sys::shm::{self, Kept, Number};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags, madvise, mlock_with, mmap, mmap_anonymous, mprotect,
    munlock, munmap,
};
use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

/// The system has no memory left to back the range with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotBacked;

const PAGE: usize = 4096;
/// How much is asked for at a time: a fraction of a millisecond.
const PIECE: u64 = 1 << 20;

/// A shared mapping of a file from its start on, which a forked child takes away, unless it [puts another in its
/// place](Self::make_private). Nobody drops one in a child that has inherited it.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address; nothing is read or written through it here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of the file. In a core dump only if `dumped`: of a file without a name, that reads every hole, and so fills
    /// it.
    pub(crate) fn new(file: BorrowedFd<'_>, len: usize, dumped: bool) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let is_filled = locks_what_it_maps();
        let mut kept = shm::kept();
        // Inaccessible at first: nothing is filled then, though the process may lock all that it maps.
        // SAFETY: at an address that the system chooses.
        let base = unsafe { mmap(ptr::null_mut(), len, ProtFlags::empty(), flags, file, 0) }?;
        kept.mappings.push((base.addr(), len));
        // Not under the lock, which a fork waits for.
        drop(kept);
        let this = Self { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?, len };
        if is_filled {
            // Locked as it is filled, as the process wants it, or not locked where it may not lock so much.
            // SAFETY: mapped just now.
            let on_fault = unsafe { mlock_with(base, len, MlockFlags::ONFAULT) };
            // SAFETY: as above.
            on_fault.or_else(|_| unsafe { munlock(base, len) })?;
        }
        // SAFETY: as above; nobody has a reference into it yet.
        unsafe { mprotect(base, len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        // SAFETY: as above.
        unsafe { set_dumped(this.base, len, dumped) };
        Ok(this)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.base
    }

    /// Has it in core dumps.
    pub(crate) fn set_dumped(&self) {
        // SAFETY: mapped as long as this is there.
        unsafe { set_dumped(self.base, self.len, true) };
    }

    /// In a forked child, which has it among what was `kept`: puts a private copy-on-write view of the file in its place. If the system
    /// refuses to promise so much memory, the view can't be written to, and without a file nothing can be seen; shared it is no
    /// more, and the addresses stay taken.
    ///
    /// # Safety
    /// The mapping is of `file`, and no other thread is there.
    pub(crate) unsafe fn make_private(&self, file: Option<BorrowedFd<'_>>, kept: &mut Kept) {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let at = self.base.as_ptr().cast();
        let view = |protection| {
            // SAFETY: by the caller; the next attempt fills what a failed one leaves empty.
            file.is_some_and(|file| unsafe { mmap(at, self.len, protection, flags, file, 0) }.is_ok())
        };
        if view(ProtFlags::READ | ProtFlags::WRITE) || view(ProtFlags::READ) {
            // SAFETY: mapped just now.
            unsafe { set_dumped(self.base, self.len, false) };
        } else {
            // SAFETY: as above. Inaccessible, it costs nothing, so it can't be refused.
            let _ = unsafe { mmap_anonymous(at, self.len, ProtFlags::empty(), flags) };
        }
        kept.mappings.retain(|(start, _)| *start != self.base.addr().get());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut kept = shm::kept();
        let start = self.base.addr().get();
        kept.mappings.retain(|(other, _)| *other != start);
        // Under the lock: a child must not take away what is mapped there next.
        unmap(start, self.len);
    }
}

/// Takes away a mapping that is listed, and is used by nobody.
pub(crate) fn unmap(start: usize, len: usize) {
    // SAFETY: mapped by `Mapping::new` or `Pin::new`, and referred to by nobody.
    let _ = unsafe { munmap(ptr::without_provenance_mut(start), len) };
}

/// Whether a mapping is part of a core dump.
///
/// # Safety
/// `base .. base + len` is a mapping of the caller's.
unsafe fn set_dumped(base: NonNull<u8>, len: usize, dumped: bool) {
    let advice = if dumped { Advice::LinuxDoDump } else { Advice::LinuxDontDump };
    // SAFETY: by the caller; changes no contents. A kernel that refuses it dumps as it likes.
    let _ = unsafe { madvise(base.as_ptr().cast(), len, advice) };
}

/// Whether every new mapping is filled at once: mlockall(2) with `MCL_FUTURE`, and without `MCL_ONFAULT`.
fn locks_what_it_maps() -> bool {
    on_a_page(is_resident)
}

/// Whether this kernel backs by address. Tried, because an emulator may take advice it doesn't know for good advice.
fn populates() -> bool {
    const UNKNOWN: u32 = 0;
    const YES: u32 = 1;
    const NO: u32 = 2;
    static KNOWN: AtomicU32 = AtomicU32::new(UNKNOWN);
    if KNOWN.load(Ordering::Relaxed) == UNKNOWN {
        // SAFETY: the page is this call's.
        let yes =
            on_a_page(|page| unsafe { madvise(page, PAGE, Advice::LinuxPopulateWrite) }.is_ok() && is_resident(page))
                && std::env::var_os("IPC_BUFFER_NO_POPULATE").is_none();
        KNOWN.store(if yes { YES } else { NO }, Ordering::Relaxed);
    }
    KNOWN.load(Ordering::Relaxed) == YES
}

/// Asks about a new page of private memory.
fn on_a_page(ask: impl FnOnce(*mut c_void) -> bool) -> bool {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: at an address that the system chooses.
    let Ok(page) = (unsafe { mmap_anonymous(ptr::null_mut(), PAGE, protection, MapFlags::PRIVATE) }) else {
        return false;
    };
    let answer = ask(page);
    // SAFETY: mapped above.
    let _ = unsafe { munmap(page, PAGE) };
    answer
}

fn is_resident(page: *mut c_void) -> bool {
    let mut flags = 0_u8;
    // SAFETY: one page is asked about, one byte is written.
    unsafe { libc::mincore(page, PAGE, &raw mut flags) == 0 && flags & 1 != 0 }
}

/// Reserves the memory of `len` bytes at `at`, which are mapped from `offset` on from `file`, so that touching them can't raise SIGBUS.
/// What is there stays. A part of it may be reserved if it fails.
///
/// # Safety
/// The range is a shared mapping of that file that the caller owns.
pub(crate) unsafe fn back(at: NonNull<u8>, file: Number, offset: u64, len: u64) -> Result<(), NotBacked> {
    let pieces = (0..len).step_by(PIECE as usize).map(|start| (start, PIECE.min(len - start)));
    if populates() {
        for (start, len) in pieces {
            // SAFETY: inside the range.
            let piece = unsafe { at.add(start as usize) };
            // SAFETY: mapped, by the caller; changes no contents.
            let populate = || unsafe { madvise(piece.as_ptr().cast(), len as usize, Advice::LinuxPopulateWrite) };
            until_done(populate)?;
        }
        return Ok(());
    }
    for (start, len) in pieces {
        let fd = file.get().ok_or(NotBacked)?;
        until_done(|| fallocate(fd, FallocateFlags::empty(), offset + start, len))?;
    }
    Ok(())
}

/// Again and again, as long as signals interrupt it. What was done of a piece is kept, or it is small enough to come through between two
/// signals.
fn until_done(mut call: impl FnMut() -> rustix::io::Result<()>) -> Result<(), NotBacked> {
    loop {
        match call() {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => return Err(NotBacked),
        }
    }
}

/// Returns the memory of a range, given as for [`back`], to the system; it must be reserved again before it is touched. False if the
/// system would not.
///
/// # Safety
/// As [`back`].
pub(crate) unsafe fn punch(at: NonNull<u8>, file: Number, offset: u64, len: u64) -> bool {
    // SAFETY: by the caller: what lies there is not in use.
    let removed = unsafe { madvise(at.as_ptr().cast(), len as usize, Advice::LinuxRemove) };
    // Refused for memory that is locked.
    removed.is_ok()
        || file.get().is_some_and(|fd| {
            fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).is_ok()
        })
}

/// Where in `from .. to` the first memory lies behind the file, if there is any and this can be told.
pub(crate) fn next_backed(file: Number, from: u64, to: u64) -> Option<u64> {
    seek(file.get()?, SeekFrom::Data(from)).ok().filter(|at| *at < to)
}

/// Keeps an open file description, and with it the locks that it bears, until it is dropped, or the process ends, whoever closes the
/// descriptors: by a page mapped through it, which nobody can access, and which a forked child takes away.
#[derive(Debug)]
pub(crate) struct Pin(NonNull<c_void>);

// SAFETY: an address; nothing is read or written through it.
unsafe impl Send for Pin {}
// SAFETY: as above.
unsafe impl Sync for Pin {}

impl Pin {
    pub(crate) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        let mut kept = shm::kept();
        // SAFETY: at an address that the system chooses.
        let page = unsafe { mmap(ptr::null_mut(), PAGE, ProtFlags::empty(), MapFlags::SHARED, file, 0) }?;
        // SAFETY: mapped just now; without contents.
        let _ = unsafe { madvise(page, PAGE, Advice::LinuxDontDump) };
        kept.mappings.push((page.addr(), PAGE));
        NonNull::new(page).map(Self).ok_or_else(|| Errno::NOMEM.into())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut kept = shm::kept();
        let address = self.0.addr().get();
        kept.mappings.retain(|(other, _)| *other != address);
        unmap(address, PAGE);
    }
}
