//! Two words that two processes share, each on a line of its own: to wake each other by, and to take turns.

#![allow(unsafe_code)]

use crate::side;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU32;

/// Zero at first. Mapped as long as this exists.
pub struct Shared {
    at: NonNull<Line>,
    file: File,
}

/// Its neighbour, which the prefetcher pulls along, included.
#[repr(C, align(128))]
struct Line(AtomicU32);

const BYTES: usize = size_of::<[Line; 2]>();

impl Shared {
    pub fn create() -> Self {
        let file = memfd_create("peers", MemfdFlags::CLOEXEC).expect("a file in memory");
        ftruncate(&file, BYTES as u64).expect("room for two lines");
        Self::map(file.into())
    }

    /// Opens the one whose [`key`](Self::key) it is.
    pub fn open(key: &str) -> Self {
        Self::map(File::options().read(true).write(true).open(key).expect("the shared file"))
    }

    /// What a process started by this one opens it by.
    pub fn key(&self) -> String {
        side::key(&self.file)
    }

    pub fn words(&self) -> [&AtomicU32; 2] {
        // SAFETY: mapped for two lines, which are only ever used as atomics, by either process.
        let lines = unsafe { self.at.cast::<[Line; 2]>().as_ref() };
        [&lines[0].0, &lines[1].0]
    }

    fn map(file: File) -> Self {
        // SAFETY: a new mapping, where the kernel likes.
        let at =
            unsafe { mmap(ptr::null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) };
        Self { at: NonNull::new(at.expect("mmap").cast()).expect("not null"), file }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; what `words` gave out can't be in use any more.
        unsafe { munmap(self.at.as_ptr().cast(), BYTES) }.expect("munmap");
    }
}
