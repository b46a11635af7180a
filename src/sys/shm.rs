//! Shared-memory objects by name: create, open, look at, change the mode of, remove; and the numbers by which this process has them
//! open.
//!
//! Promises: a number of ours is 3 or more, also when 0, 1 and 2 are closed; it is looked at before each use, so that no system call
//! that changes anything goes to a file of somebody else's who has the number now; a forked child has none of them.
//!
//! Descriptors are the process's: a daemoniser closes all of them, a double close in another thread any one, and the next
//! `open` there gets the number. So a [`File`] is a number and what it should lead to. Between the look and the call another thread could
//! still close it and open something else; that takes two calls of its within a fraction of a microsecond.
//!
//! # After fork
//! All numbers are listed, from the very call that opens them, and all mappings (`memory::Mapping`, and the pages that keep locks,
//! `memory::Pin`), under a lock that a fork waits for, and that is else held only for calls that wait for nobody: open(2), mmap(2)
//! and their reverse. The child closes and unmaps what is listed: also what another thread was about to open or to leave, which no
//! handle leads to. (What handles lead to is listed no longer by then; see `attachment`.) One that is made by a bare `clone` keeps them, and with them its parent's lease: it may act for its parent.

#![allow(unsafe_code)]
// The crate is for 64-bit targets (lib.rs).
#![allow(clippy::cast_possible_truncation)]

use crate::sys::fork::PerProcess;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use shared_memory::{ShmemConf, ShmemError};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

const DIRECTORY: &str = "/dev/shm/";
/// What [`create`] gives a new object: enough for the crate, which makes none without a size, and for nobody to fill.
pub(crate) const NEW_SIZE: u64 = 4096;

/// What tells one file from another, as long as either is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// What fstat(2) says of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) identity: Identity,
    pub(crate) size: u64,
    pub(crate) user: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Whether any memory is behind it.
    pub(crate) is_backed: bool,
    /// File type bits.
    pub(crate) is_file: bool,
}

fn facts(stat: &fs::Stat) -> Facts {
    Facts {
        identity: Identity { device: stat.st_dev, inode: stat.st_ino },
        size: u64::try_from(stat.st_size).unwrap_or(0),
        user: stat.st_uid,
        mode: stat.st_mode & 0o7777,
        is_backed: stat.st_blocks != 0,
        is_file: fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::RegularFile,
    }
}

fn path(name: &str) -> String {
    format!("{DIRECTORY}{name}")
}

/// A number of this process, and the file that it leads to as long as nobody else meddles with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Number {
    fd: RawFd,
    identity: Identity,
}

impl Number {
    /// The descriptor, if it still leads to that file.
    pub(crate) fn get(self) -> Option<BorrowedFd<'static>> {
        // SAFETY: not -1 (`File::new`). Whether it is open, and what it leads to, is asked first; that it stays so is what nobody can
        // promise in a process where anybody may close it (see the module), and the kernel checks it once more.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        stat(fd).is_ok_and(|facts| facts.identity == self.identity).then_some(fd)
    }
}

/// A file that this process has open; closed when dropped, if the number still leads to it.
#[derive(Debug)]
pub(crate) struct File(Number);

impl File {
    /// The lock of the list is held since before `fd` was opened.
    fn new(fd: OwnedFd, kept: &mut Kept) -> io::Result<Self> {
        let fd = if fd.as_raw_fd() > 2 { fd } else { rustix::io::fcntl_dupfd_cloexec(&fd, 3)? };
        let number = Number { identity: stat(&fd)?.identity, fd: fd.into_raw_fd() };
        kept.numbers.push(number);
        Ok(Self(number))
    }

    pub(crate) fn number(&self) -> Number {
        self.0
    }

    pub(crate) fn identity(&self) -> Identity {
        self.0.identity
    }

    /// See [`Number::get`].
    pub(crate) fn get(&self) -> Option<BorrowedFd<'static>> {
        self.0.get()
    }

    /// As [`get`](Self::get), for those who have just opened it.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'static>> {
        self.get().ok_or_else(|| Errno::BADF.into())
    }

    /// Leaves the number to whoever has it now.
    pub(crate) fn forget(self) {
        let this = ManuallyDrop::new(self);
        kept().numbers.retain(|number| *number != this.0);
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let numbers = &mut kept().numbers;
        if let Some(fd) = self.get() {
            // SAFETY: it is this file's, and this was its owner.
            unsafe { rustix::io::close(fd.as_raw_fd()) };
        }
        numbers.retain(|number| *number != self.0);
    }
}

/// What a forked child must not keep.
#[derive(Default)]
pub(crate) struct Kept {
    numbers: Vec<Number>,
    /// Where they start, and their bytes: views of segments, and pages that keep locks.
    pub(crate) mappings: Vec<(usize, usize)>,
}

static KEPT: PerProcess<Mutex<Kept>> = PerProcess::new();

/// The list of all that is kept, locked: nothing is opened, mapped, closed or unmapped without it, and nobody forks meanwhile. Never held
/// across a wait.
pub(crate) fn kept() -> MutexGuard<'static, Kept> {
    KEPT.get().lock()
}

/// In a forked child: from here on it has a list of its own. The parent's stays locked, by whoever has forked.
pub(crate) fn leave() {
    KEPT.leave();
}

impl Kept {
    /// In a forked child: closes and unmaps all that is listed, which no handle there leads to any more.
    pub(crate) fn let_go(&mut self) {
        for fd in self.numbers.drain(..).filter_map(Number::get) {
            // SAFETY: it is one of ours; what is left of the parent's `File`s is never dropped here (`Segment::let_go`).
            unsafe { rustix::io::close(fd.as_raw_fd()) };
        }
        for (start, len) in self.mappings.drain(..) {
            unmap(start, len);
        }
    }
}

/// Takes away a mapping that is listed, and is used by nobody.
pub(crate) fn unmap(start: usize, len: usize) {
    // SAFETY: mapped by `memory`, and referred to by nobody.
    let _ = unsafe { rustix::mm::munmap(std::ptr::without_provenance_mut(start), len) };
}

/// Takes the place of the descriptors 0, 1 and 2 where they are closed, so that nothing else does: what somebody prints there then
/// fails as it did before.
struct Stdio {
    _places: Vec<OwnedFd>,
}

impl Stdio {
    fn occupy() -> io::Result<Self> {
        let mut places = Vec::new();
        // SAFETY: only asks whether it is open.
        let is_closed = |fd| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_err();
        if (0..3).any(is_closed) {
            loop {
                let place = fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                if place.as_raw_fd() > 2 {
                    break;
                }
                places.push(place);
            }
        }
        Ok(Self { _places: places })
    }
}

/// Opens an existing object for reading and writing; never follows a link, never waits for a pipe.
pub(crate) fn open(name: &str) -> io::Result<File> {
    open_path(&path(name), OFlags::NOFOLLOW)
}

/// Opens the file behind a number of this process's once more, as a description of its own. Where there is no /proc, it fails.
pub(crate) fn open_again(number: Number) -> io::Result<File> {
    let fd = number.get().ok_or(Errno::BADF)?;
    open_path(&format!("/proc/self/fd/{}", fd.as_raw_fd()), OFlags::empty())
}

fn open_path(path: &str, more: OFlags) -> io::Result<File> {
    let mut kept = kept();
    let _stdio = Stdio::occupy()?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY | more;
    File::new(fs::open(path, flags, Mode::empty())?, &mut kept)
}

/// Makes a new object of [`NEW_SIZE`] bytes.
///
/// Only this is `shared_memory`'s part. A mapping of the crate's would be filled with memory at once under mlockall(2), and the number that
/// it keeps is closed in the end whatever it leads to by then (and never if it is 0). So the mapping goes at once, and with
/// it the number, and the unlink-on-drop, which goes by name and could hit another's object.
pub(crate) fn create(name: &str) -> io::Result<()> {
    // Nobody forks while the crate has its number.
    let _kept = kept();
    let _stdio = Stdio::occupy()?;
    match ShmemConf::new().os_id(format!("/{name}")).size(NEW_SIZE as usize).create() {
        Ok(mut mapping) => {
            mapping.set_owner(false);
            Ok(())
        }
        Err(ShmemError::MappingIdExists) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(ShmemError::MapCreateFailed(code) | ShmemError::MapOpenFailed(code) | ShmemError::UnknownOsError(code)) => {
            Err(io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(0)))
        }
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// What is open behind `fd`.
pub(crate) fn stat(fd: impl AsFd) -> io::Result<Facts> {
    Ok(facts(&fs::fstat(fd)?))
}

/// What the name leads to now, without following a link.
pub(crate) fn stat_name(name: &str) -> io::Result<Facts> {
    Ok(facts(&fs::statat(CWD, path(name), AtFlags::SYMLINK_NOFOLLOW)?))
}

/// Removes the name.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    Ok(fs::unlink(path(name))?)
}

/// Sets the permission bits, whatever the umask.
pub(crate) fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

/// Sets the permission bits of what the name leads to, which is no link: for its owner, whom they may keep from opening it.
pub(crate) fn set_mode_of_name(name: &str, mode: u32) -> io::Result<()> {
    Ok(fs::chmod(path(name), Mode::from_raw_mode(mode))?)
}

/// Makes the file `size` bytes long. A file cannot be made longer than the limit `ulimit -f`, which would be a signal: see
/// [`size_limit`].
pub(crate) fn set_size(fd: impl AsFd, size: u64) -> io::Result<()> {
    Ok(fs::ftruncate(fd, size)?)
}

/// The longest file that this process may make.
pub(crate) fn size_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current
}

/// Reads the eight-byte words at the start of the file, as far as it has them.
pub(crate) fn read_words<const N: usize>(fd: impl AsFd) -> io::Result<[u64; N]> {
    let mut words = [0_u64; N];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pread(fd.as_fd(), &mut bytes[at..], at as u64) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(words)
}
