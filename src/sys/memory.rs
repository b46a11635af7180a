//! The memory behind a file: reserving it, returning it, and taking it out of sharing.

#![allow(unsafe_code)]

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// The system has no memory left to back the range with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotBacked;

/// Reserves the memory behind `offset .. offset + len`, so that touching it can't raise SIGBUS. What is there stays.
pub(crate) fn back(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), NotBacked> {
    loop {
        match fallocate(file, FallocateFlags::empty(), offset, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => return Err(NotBacked),
        }
    }
}

/// Returns the memory behind a range to the system; it must be reserved again before it is touched. False if the system would not.
pub(crate) fn punch(file: BorrowedFd<'_>, offset: u64, len: u64) -> bool {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).is_ok()
}

/// Puts a private copy-on-write view of the file in place of a shared mapping of it.
///
/// # Safety
/// `base .. base + len` is a mapping of `file` from its start on that the caller owns.
pub(crate) unsafe fn make_private(base: NonNull<u8>, len: usize, file: BorrowedFd<'_>) {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: by the caller; every address of the range stays mapped. If it fails, the shared mapping stays.
    let _ = unsafe { mmap(base.as_ptr().cast(), len, protection, MapFlags::PRIVATE | MapFlags::FIXED, file, 0) };
}

/// Takes a mapping out of the address space.
///
/// # Safety
/// `base .. base + len` is a mapping that the caller owns, and nothing refers to it any more.
pub(crate) unsafe fn unmap(base: NonNull<u8>, len: usize) {
    // SAFETY: by the caller.
    let _ = unsafe { munmap(base.as_ptr().cast(), len) };
}
