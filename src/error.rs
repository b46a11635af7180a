//! Errors: one narrow enum per operation, the facts in the variants, the remedy in the message.
//!
//! [`Error`] joins them for programs that pass everything up with `?`.

use crate::sys::errno;
use std::fmt;
use std::io;
use std::time::Duration;

/// Why a buffer could not be opened, created or removed.
///
/// ```
/// # let name = format!("doc-open-error-{}", std::process::id());
/// use ipc_buffer::{Buffer, OpenError};
/// let buffer = Buffer::options().capacity(1 << 20).open(&name)?;
/// let error = Buffer::options().capacity(2 << 20).open(&name).unwrap_err();
/// let OpenError::CapacityMismatch { asked, actual, .. } = error else { panic!("{error}") };
/// assert_eq!((asked, actual), (2 << 20, buffer.capacity()));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name can't be a buffer's.
    #[error("{name:?} can't name a buffer: {why}; see ipc_buffer::name_from_path for a valid one")]
    InvalidName {
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The capacity is outside what a buffer can have.
    #[error("a buffer can't have {capacity} bytes, only {min} to {max}")]
    CapacityOutOfRange {
        /// Bytes asked for.
        capacity: u64,
        /// Least bytes.
        min: u64,
        /// Most bytes.
        max: u64,
    },
    /// The buffer exists with another capacity, and somebody uses it, or it is to stay.
    #[error(
        "buffer {name:?} has {actual} bytes, not the {asked} asked for; leave the capacity out to take it as it is, or Buffer::unlink it"
    )]
    CapacityMismatch {
        /// The buffer.
        name: String,
        /// Bytes asked for, rounded up to whole units of 64 KiB.
        asked: u64,
        /// Bytes it has.
        actual: u64,
    },
    /// `create_new` was asked for, and the name is taken.
    #[error("buffer {name:?} exists already; open it without create_new, or Buffer::unlink it")]
    AlreadyExists {
        /// The buffer.
        name: String,
    },
    /// `must_exist` was asked for, or a removal, and there is no such buffer.
    #[error("there is no buffer {name:?}; opening without must_exist would create it")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Something else has this name.
    #[error("/dev/shm/{name} is not a buffer: {why}; choose another name or remove it")]
    NotASegment {
        /// The name.
        name: String,
        /// What was seen.
        why: &'static str,
    },
    /// The buffer was made by a release with another segment format, and somebody uses it, or it is to stay.
    #[error(
        "buffer {name:?} has segment format {found}, this library has {ours}; use one release on both sides, or Buffer::unlink it"
    )]
    VersionMismatch {
        /// The buffer.
        name: String,
        /// Format in its header.
        found: u64,
        /// Format of this library.
        ours: u64,
    },
    /// The file is shorter or longer than its header says.
    #[error("buffer {name:?} has {size} bytes in its file where its header promises {expected}; Buffer::unlink it")]
    Truncated {
        /// The buffer.
        name: String,
        /// Bytes of the file.
        size: u64,
        /// Bytes by its header.
        expected: u64,
    },
    /// The system denies access.
    #[error("no permission for buffer {name:?}: {call}: {source}; {}", remedy(call, source))]
    PermissionDenied {
        /// The buffer.
        name: String,
        /// The call that was refused.
        call: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The buffer belongs to another user, and its mode shares it with nobody.
    #[error(
        "buffer {name:?} belongs to user {user} and its mode {mode:o} shares it with nobody; its owner can create it with BufferOptions::mode"
    )]
    ForeignOwner {
        /// The buffer.
        name: String,
        /// The user it belongs to.
        user: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The system has no memory left for the buffer's tables.
    #[error(
        "no space left in /dev/shm for buffer {name:?}, whose tables need {needed} bytes; free some, or mount it larger"
    )]
    NoSpace {
        /// The buffer.
        name: String,
        /// Bytes of its tables before the first record.
        needed: u64,
    },
    /// Another process keeps the buffer's control lock.
    #[error("buffer {name:?} is being changed by process {pid}, which did not finish in time; is it stopped?")]
    Busy {
        /// The buffer.
        name: String,
        /// The process, in its own pid namespace; 0 if unknown.
        pid: u32,
    },
    /// The file may not become as long as the buffer's capacity and its tables: `ulimit -f`.
    #[error(
        "buffer {name:?} needs a file of {needed} bytes, and this process may make none of more than {limit} (ulimit -f); raise the limit, or choose a smaller capacity"
    )]
    FileSizeLimit {
        /// The buffer.
        name: String,
        /// Bytes of its file.
        needed: u64,
        /// Bytes that the process's limit allows.
        limit: u64,
    },
    /// The system has no locks that tell who is alive.
    #[error(
        "buffer {name:?} can't be locked: fcntl(F_OFD_SETLK): {source}; a sandbox (proot, gVisor, a seccomp filter) or a kernel without open-file-description locks can't run it"
    )]
    NoLocks {
        /// The buffer.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Every process slot is taken, by processes that live.
    #[error("buffer {name:?} has {limit} processes attached, the most it can have")]
    TooManyProcesses {
        /// The buffer.
        name: String,
        /// The limit.
        limit: u32,
    },
    /// A system call failed in a way that has no variant of its own.
    #[error("buffer {name:?}: {call}: {source}; {}", remedy(call, source))]
    Os {
        /// The buffer.
        name: String,
        /// The call that failed.
        call: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What helps against a system call's failure.
fn remedy(call: &str, error: &io::Error) -> &'static str {
    match (call, error.raw_os_error()) {
        (_, Some(errno::EPERM)) => {
            "a security policy forbids it here (a seccomp filter, a security module, another's file)"
        }
        ("shm_open", Some(errno::EACCES)) => "let this user write in /dev/shm (mode 1777)",
        ("open", Some(errno::EACCES)) => "its owner can share it with BufferOptions::mode, or Buffer::unlink it",
        (_, Some(errno::EACCES)) => "only its owner can do that",
        (_, Some(errno::ENOENT)) => "mount a tmpfs at /dev/shm",
        (_, Some(errno::EROFS)) => "mount /dev/shm writable",
        ("shm_open", Some(errno::ENOSPC)) => {
            "/dev/shm has no inode or no page left: remove files there, or mount it with more"
        }
        (_, Some(errno::EMFILE)) => "raise this process's limit of open files (ulimit -n)",
        (_, Some(errno::ENFILE)) => "raise the system's limit of open files (fs.file-max)",
        ("mmap", Some(errno::ENOMEM)) => {
            "raise this process's limit of address space (ulimit -v) or of mappings (vm.max_map_count), or choose a smaller capacity"
        }
        ("mmap", Some(errno::EAGAIN)) => {
            "mlockall counts the whole capacity as locked: raise ulimit -l, open the buffer first, or choose a smaller capacity"
        }
        ("mmap", Some(errno::ENODEV)) | (_, Some(errno::EOPNOTSUPP)) => "mount a tmpfs at /dev/shm",
        ("ftruncate", Some(errno::EFBIG | errno::EINVAL)) => "choose a smaller capacity",
        (_, Some(errno::ENOMEM)) => "the kernel has no memory for it",
        _ => "nothing is known that helps",
    }
}

/// Why a question to a [`Buffer`](crate::Buffer) has no answer.
///
/// ```
/// # let name = format!("doc-buffer-error-{}", std::process::id());
/// use ipc_buffer::{Buffer, BufferError};
/// let buffer = Buffer::open(&name)?;
/// if unsafe { libc::fork() } == 0 {
///     assert_eq!(buffer.has_channel(1), Err(BufferError::Forked));
///     unsafe { libc::_exit(0) };
/// }
/// # let mut status = -1;
/// # unsafe { libc::wait(&mut status) };
/// # assert_eq!(status, 0);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BufferError {
    /// The buffer was opened before this process was forked off.
    #[error("the buffer was opened before fork; open it anew in the child")]
    Forked,
    /// This process was taken for dead, and what it had is others' by now: its lease was lost, as when a checkpoint is restored.
    #[error("this process was taken for dead, and what it had in the buffer is gone; open the buffer anew")]
    Evicted,
    /// Another process keeps the buffer's control lock, or reaps and does not come to an end.
    #[error("the buffer is being changed by process {pid}, which did not finish in time; is it stopped?")]
    Busy {
        /// The process, in its own pid namespace; 0 if unknown.
        pid: u32,
    },
    /// Every context slot is taken.
    #[error("the buffer has {limit} contexts, the most it can have; drop those of idle threads")]
    TooManyContexts {
        /// The limit.
        limit: u32,
    },
    /// Something in this process has closed the buffer's descriptors (closefrom(3), a daemoniser), and its name leads to it no more, so
    /// nothing can be locked. What needs no lock goes on: records, and the channels there are.
    #[error(
        "this process has closed the buffer's descriptors, and the buffer has no name to open it by again; open buffers after all others are closed"
    )]
    NoDescriptor,
}

/// Why a record could not be allocated.
///
/// ```
/// # let name = format!("doc-alloc-error-{}", std::process::id());
/// use ipc_buffer::{AllocError, Buffer};
/// let buffer = Buffer::options().capacity(1 << 20).open(&name)?;
/// let error = buffer.context()?.slice_zeroed::<u8>(2 << 20).unwrap_err();
/// let AllocError::OutOfMemory { asked, free } = error else { panic!("{error}") };
/// assert!(asked > 2 << 20 && free <= 1 << 20);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// No block of this size is free, the caches of other contexts and leftovers of dead processes included. Refusals are cheap as long as
    /// nothing changes, so dropping what is oldest and asking again is a way to go on. Others' caches are not looked into each time:
    /// after that was in vain, not before ten times as long has passed as it took.
    #[error(
        "out of memory: asked for {asked} bytes in one piece, {free} are free in all; free records, or take a larger capacity (or /dev/shm)"
    )]
    OutOfMemory {
        /// Bytes asked for, with the header.
        asked: u64,
        /// Bytes free in the whole buffer at that moment.
        free: u64,
    },
    /// The length does not fit a record.
    #[error("{count} elements of {element} bytes are more than a record can have")]
    LengthOverflow {
        /// Elements asked for.
        count: usize,
        /// Bytes of one.
        element: usize,
    },
    /// The type is aligned to more than a page.
    #[error("records can be aligned to 4096 bytes at most, not {align}")]
    Alignment {
        /// The type's alignment.
        align: usize,
    },
    /// The context was made before this process was forked off.
    #[error("the context was made before fork; open the buffer anew in the child")]
    Forked,
    /// This process was taken for dead, and what it had is others' by now: its lease was lost, as when a checkpoint is restored.
    #[error("this process was taken for dead, and what it had in the buffer is gone; open the buffer anew")]
    Evicted,
    /// The context's last `ThreadContext` was dropped.
    #[error("the context is closed; keep its ThreadContext alive")]
    ContextClosed,
}

/// Why an endpoint could not be attached to a channel.
///
/// ```
/// # let name = format!("doc-attach-error-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{AttachError, Side};
/// let _tx = ctx.producer::<u64>(1)?;
/// let mismatch = ctx.consumer::<f32>(1).unwrap_err().to_string();
/// assert!(mismatch.starts_with("channel 1 carries u64 (8 bytes, align 8), not f32 (4 bytes, align 4)"));
/// let taken = ctx.producer::<u64>(1).unwrap_err();
/// assert!(matches!(taken, AttachError::RoleTaken { role: Side::Producer, pid, .. } if pid == std::process::id()));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The channel carries another type.
    #[error(
        "channel {id} carries {theirs}, not {ours}; agree on one type, in records or by value, and derive Layout for it at both ends or at none (if only names differ, agree on one ChannelOptions::type_tag)"
    )]
    TypeMismatch {
        /// The channel.
        id: i64,
        /// The type asked for.
        ours: String,
        /// The type it carries.
        theirs: String,
    },
    /// The channel was made with another number of slots.
    #[error("channel {id} has {actual} slots, not {asked}; leave ChannelOptions::capacity out to take it as it is")]
    CapacityMismatch {
        /// The channel.
        id: i64,
        /// Slots asked for.
        asked: usize,
        /// Slots it has.
        actual: usize,
    },
    /// The channel was made persistent, and was not to be; or the other way round.
    #[error(
        "channel {id} {}; leave ChannelOptions::persistent out to take it as it is, or remove it (Buffer::remove_channel)",
        if *asked { "goes with its last endpoint, and was to be persistent" } else { "is persistent, and was not to be" }
    )]
    PersistenceMismatch {
        /// The channel.
        id: i64,
        /// What was asked for.
        asked: bool,
    },
    /// Another endpoint has the role.
    #[error("channel {id} has a {role} already: process {pid}, thread {thread}")]
    RoleTaken {
        /// The channel.
        id: i64,
        /// Which.
        role: Side,
        /// The process that has it, in its own pid namespace.
        pid: u32,
        /// The thread that attached.
        thread: u32,
    },
    /// The number of slots asked for is no power of two in range.
    #[error("a channel can't have {capacity} slots, only a power of two from 2 to {max}")]
    Capacity {
        /// Slots asked for.
        capacity: usize,
        /// Most slots.
        max: usize,
    },
    /// The type is aligned to more than a page (and not sent by value).
    #[error("records can be aligned to 4096 bytes at most, not {align}")]
    Alignment {
        /// The type's alignment.
        align: usize,
    },
    /// The directory is full.
    #[error("the buffer has {limit} channels, the most it can have")]
    TooManyChannels {
        /// The limit.
        limit: u32,
    },
    /// There is no room for the channel's slots.
    #[error("out of memory for a new channel: asked for {asked} bytes in one piece, {free} are free in all")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes free in the whole buffer.
        free: u64,
    },
    /// Another process keeps the buffer's control lock.
    #[error("the buffer is being changed by process {pid}, which did not finish in time; is it stopped?")]
    Busy {
        /// The process, in its own pid namespace; 0 if unknown.
        pid: u32,
    },
    /// Something in this process has closed the buffer's descriptors; see [`BufferError::NoDescriptor`].
    #[error(
        "this process has closed the buffer's descriptors, and the buffer has no name to open it by again; open buffers after all others are closed"
    )]
    NoDescriptor,
    /// The channel's entry contradicts itself: a foreign hand wrote into the segment.
    #[error("the entry of channel {id} is corrupted")]
    Corrupted {
        /// The channel.
        id: i64,
    },
    /// The context was made before this process was forked off.
    #[error("the context was made before fork; open the buffer anew in the child")]
    Forked,
    /// This process was taken for dead, and what it had is others' by now: its lease was lost, as when a checkpoint is restored.
    #[error("this process was taken for dead, and what it had in the buffer is gone; open the buffer anew")]
    Evicted,
    /// The context's last `ThreadContext` was dropped.
    #[error("the context is closed; keep its ThreadContext alive")]
    ContextClosed,
}

macro_rules! send_error {
    ($(#[$doc:meta])* $name:ident { $($(#[$extra_doc:meta])* $extra:ident = $text:literal,)? }
     $(#[$into_doc:meta])* into_inner) => {
        $(#[$doc])*
        #[non_exhaustive]
        pub enum $name<T> {
            $($(#[$extra_doc])* $extra(T),)?
            /// The consumer has left; a new one may attach, and sending works again.
            Disconnected(T),
            /// The record belongs to another buffer.
            ForeignRecord(T),
            /// The endpoint was made before this process was forked off.
            Forked(T),
            /// This process was taken for dead, and what it had is others' by now; see [`BufferError::Evicted`].
            Evicted(T),
            /// The endpoint's context was dropped.
            ContextClosed(T),
        }

        impl<T> $name<T> {
            $(#[$into_doc])*
            pub fn into_inner(self) -> T {
                match self {
                    $(Self::$extra(unsent) => unsent,)?
                    Self::Disconnected(unsent)
                    | Self::ForeignRecord(unsent)
                    | Self::Forked(unsent)
                    | Self::Evicted(unsent)
                    | Self::ContextClosed(unsent) => unsent,
                }
            }

            /// The same of something else.
            pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> $name<U> {
                match self {
                    $(Self::$extra(unsent) => $name::$extra(change(unsent)),)?
                    Self::Disconnected(unsent) => $name::Disconnected(change(unsent)),
                    Self::ForeignRecord(unsent) => $name::ForeignRecord(change(unsent)),
                    Self::Forked(unsent) => $name::Forked(change(unsent)),
                    Self::Evicted(unsent) => $name::Evicted(change(unsent)),
                    Self::ContextClosed(unsent) => $name::ContextClosed(change(unsent)),
                }
            }

            /// For those that [`Error`] has no variant of its own for.
            fn why(&self) -> Unsent {
                match self {
                    $(Self::$extra(_) => Unsent::$extra,)?
                    Self::ForeignRecord(_) => Unsent::ForeignRecord,
                    _ => Unsent::ContextClosed,
                }
            }

            fn text(&self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$extra(_) => (stringify!($extra), $text),)?
                    Self::Disconnected(_) => ("Disconnected", DISCONNECTED),
                    Self::ForeignRecord(_) => ("ForeignRecord", FOREIGN),
                    Self::Forked(_) => ("Forked", FORKED),
                    Self::Evicted(_) => ("Evicted", EVICTED),
                    Self::ContextClosed(_) => ("ContextClosed", CLOSED),
                }
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(self.text().0).finish_non_exhaustive()
            }
        }

        impl<T> fmt::Display for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.text().1)
            }
        }

        impl<T> std::error::Error for $name<T> {}
    };
}

const DISCONNECTED: &str = "the channel's consumer has left; what was not sent is handed back";
const FOREIGN: &str = "the record belongs to another buffer; copy its contents into one of this buffer";
const FORKED: &str = "the endpoint was made before fork; open the buffer anew in the child";
const EVICTED: &str = "this process was taken for dead, and what it had in the buffer is gone; open the buffer anew";
const CLOSED: &str = "the endpoint's context is closed; keep its ThreadContext alive";

send_error! {
    /// Why a record or value, or the rest of a batch, was not sent; each variant gives it back.
    ///
    /// ```
    /// # let name = format!("doc-send-error-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::SendError;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// drop(ctx.consumer::<u8>(1)?);
    /// let error = tx.send(ctx.record(5)?).unwrap_err();
    /// let SendError::Disconnected(record) = error else { panic!("{error}") };
    /// assert_eq!(*record, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    SendError {}
    /// What was not sent.
    ///
    /// ```
    /// # let name = format!("doc-send-error-into-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// drop(ctx.consumer::<u8>(1)?);
    /// let record = tx.send(ctx.record(5)?).unwrap_err().into_inner();
    /// assert_eq!(*record, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    into_inner
}
send_error! {
    /// Why a record or value, or the rest of a batch, was not sent at once; each variant gives it back.
    ///
    /// ```
    /// # let name = format!("doc-try-send-error-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{Buffer, TrySendError};
    /// # let other_name = format!("{name}-2");
    /// let other = Buffer::open(&other_name)?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// let error = tx.try_send(other.context()?.record(5)?).unwrap_err();
    /// let TrySendError::ForeignRecord(record) = error else { panic!("{error}") };
    /// assert_eq!(*record, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    TrySendError {
        /// Every slot is taken.
        Full = "the channel is full; what was not sent is handed back",
    }
    /// What was not sent.
    ///
    /// ```
    /// # let name = format!("doc-try-send-error-into-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// drop(ctx.consumer::<u8>(1)?);
    /// let record = tx.try_send(ctx.record(5)?).unwrap_err().into_inner();
    /// assert_eq!(*record, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    into_inner
}
send_error! {
    /// Why a record or value, or the rest of a batch, was not sent in time; each variant gives it back.
    ///
    /// ```
    /// # let name = format!("doc-send-timeout-error-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::Duration;
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// tx.send(ctx.record(1)?)?;
    /// tx.send(ctx.record(2)?)?;
    /// let error = tx.send_timeout(ctx.record(3)?, Duration::from_millis(1)).unwrap_err();
    /// let SendTimeoutError::Timeout(record) = error else { panic!("{error}") };
    /// assert_eq!(*record, 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    SendTimeoutError {
        /// Every slot was taken until the time was up.
        Timeout = "the channel stayed full until the time was up; what was not sent is handed back",
    }
    /// What was not sent.
    ///
    /// ```
    /// # let name = format!("doc-send-timeout-error-into-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// drop(ctx.consumer::<u8>(1)?);
    /// let error = tx.send_timeout(ctx.record(5)?, Duration::from_millis(1)).unwrap_err();
    /// assert_eq!(*error.into_inner(), 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    into_inner
}

impl<T> TrySendError<T> {
    /// What it is for a send that waits: the end, or something to try again.
    pub(crate) fn unless_full(self) -> Result<SendTimeoutError<T>, T> {
        match self {
            Self::Full(unsent) => Err(unsent),
            Self::Disconnected(unsent) => Ok(SendTimeoutError::Disconnected(unsent)),
            Self::ForeignRecord(unsent) => Ok(SendTimeoutError::ForeignRecord(unsent)),
            Self::Forked(unsent) => Ok(SendTimeoutError::Forked(unsent)),
            Self::Evicted(unsent) => Ok(SendTimeoutError::Evicted(unsent)),
            Self::ContextClosed(unsent) => Ok(SendTimeoutError::ContextClosed(unsent)),
        }
    }
}

impl<T> SendTimeoutError<T> {
    /// What it is for a send whose time is never up.
    pub(crate) fn without_timeout(self) -> SendError<T> {
        match self {
            Self::Timeout(unsent) | Self::Disconnected(unsent) => SendError::Disconnected(unsent),
            Self::ForeignRecord(unsent) => SendError::ForeignRecord(unsent),
            Self::Forked(unsent) => SendError::Forked(unsent),
            Self::Evicted(unsent) => SendError::Evicted(unsent),
            Self::ContextClosed(unsent) => SendError::ContextClosed(unsent),
        }
    }
}

/// Why a wait for a record or value ended without one.
///
/// ```
/// # let name = format!("doc-recv-error-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::RecvError;
/// let mut rx = ctx.consumer::<u8>(1)?;
/// drop(ctx.producer::<u8>(1)?);
/// assert_eq!(rx.recv().unwrap_err(), RecvError::Disconnected);
/// ctx.producer(1)?.send(ctx.record(5_u8)?)?;
/// assert_eq!(*rx.recv()?, 5);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Everything queued was received and the producer has left; a new one may attach, and receiving works again.
    #[error("the channel is drained and its producer has left")]
    Disconnected,
    /// A slot held what no sender of this library writes; it was skipped.
    #[error("the channel handed over something that is no record of its type; it was skipped")]
    Corrupted,
    /// The endpoint was made before this process was forked off.
    #[error("the endpoint was made before fork; open the buffer anew in the child")]
    Forked,
    /// This process was taken for dead, and what it had is others' by now: its lease was lost, as when a checkpoint is restored.
    #[error("this process was taken for dead, and what it had in the buffer is gone; open the buffer anew")]
    Evicted,
    /// The endpoint's context was dropped.
    #[error("the endpoint's context is closed; keep its ThreadContext alive")]
    ContextClosed,
}

/// Why there is no record or value now.
///
/// ```
/// # let name = format!("doc-try-recv-error-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{RecvError, TryRecvError};
/// let mut rx = ctx.consumer::<u8>(1)?;
/// assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
/// drop(ctx);
/// assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::ContextClosed));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// Nothing is queued.
    #[error("the channel is empty")]
    Empty,
    /// See [`RecvError`].
    #[error(transparent)]
    Recv(#[from] RecvError),
}

/// Why a wait with an end gave no record or value.
///
/// ```
/// # let name = format!("doc-recv-timeout-error-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{RecvError, RecvTimeoutError};
/// use std::time::Duration;
/// let mut rx = ctx.consumer::<u8>(1)?;
/// let error = rx.recv_timeout(Duration::from_millis(2)).unwrap_err();
/// assert_eq!(error.to_string(), "nothing was received within 2ms");
/// drop(ctx.producer::<u8>(1)?);
/// let error = rx.recv_timeout(Duration::from_millis(2)).unwrap_err();
/// assert_eq!(error, RecvTimeoutError::Recv(RecvError::Disconnected));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// Nothing came before the time was up.
    #[error("nothing was received within {0:?}")]
    Timeout(Duration),
    /// See [`RecvError`].
    #[error(transparent)]
    Recv(#[from] RecvError),
}

/// Why no end came to the other side of a channel.
///
/// ```
/// # let name = format!("doc-peer-error-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::PeerError;
/// use std::time::Duration;
/// let tx = ctx.producer::<u8>(1)?;
/// assert!(matches!(tx.wait_for_consumer(Duration::ZERO), Err(PeerError::Timeout { id: 1, .. })));
/// buffer.remove_channel(1)?;
/// assert_eq!(tx.wait_for_consumer(Duration::MAX), Err(PeerError::Removed { id: 1 }));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// None came before the time was up.
    #[error("channel {id} got no {missing} within {timeout:?}")]
    Timeout {
        /// The channel.
        id: i64,
        /// Which end was waited for.
        missing: Side,
        /// How long.
        timeout: Duration,
    },
    /// The channel was removed: its id leads to another one, or to none.
    #[error("channel {id} was removed, so nobody can come; attach to it anew")]
    Removed {
        /// The channel.
        id: i64,
    },
    /// The endpoint was made before this process was forked off.
    #[error("the endpoint was made before fork; open the buffer anew in the child")]
    Forked,
    /// This process was taken for dead, and what it had is others' by now; see [`BufferError::Evicted`].
    #[error("this process was taken for dead, and what it had in the buffer is gone; open the buffer anew")]
    Evicted,
    /// The endpoint's context was dropped.
    #[error("the endpoint's context is closed; keep its ThreadContext alive")]
    ContextClosed,
}

/// An end of a channel.
///
/// ```
/// # let name = format!("doc-side-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{AttachError, Side};
/// let _tx = ctx.producer::<u64>(1)?;
/// let taken = ctx.producer::<u64>(1).unwrap_err();
/// assert!(matches!(taken, AttachError::RoleTaken { role: Side::Producer, .. }));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Side {
    /// It sends.
    Producer,
    /// It receives.
    Consumer,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        })
    }
}

/// Why something was not sent, in [`Error::Send`], where what it was is given up.
///
/// ```
/// # let name = format!("doc-unsent-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{ChannelOptions, Error, Unsent};
/// let mut tx = ctx.value_producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
/// let mut send = || Ok::<(), Error>(tx.try_send(0)?);
/// assert!(send().is_ok() && send().is_ok());
/// assert!(matches!(send(), Err(Error::Send(Unsent::Full))));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsent {
    /// Every slot is taken.
    #[error("the channel is full")]
    Full,
    /// Every slot was taken until the time was up.
    #[error("the channel stayed full until the time was up")]
    Timeout,
    /// The record belongs to another buffer.
    #[error("the record belongs to another buffer; copy its contents into one of this buffer")]
    ForeignRecord,
    /// The endpoint's context was dropped.
    #[error("the endpoint's context is closed; keep its ThreadContext alive")]
    ContextClosed,
}

/// Any error of this crate, for `?`. What a failed send gave back is dropped, which frees it.
///
/// ```
/// # let name = format!("doc-error-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Error, ThreadContext};
/// fn next(ctx: &ThreadContext) -> Result<u64, Error> {
///     let mut rx = ctx.consumer::<u64>(1)?;
///     Ok(*rx.try_recv()?)
/// }
/// assert!(matches!(next(&ctx), Err(Error::Empty)));
/// let _tx = ctx.producer::<f32>(1)?;
/// assert!(matches!(next(&ctx), Err(Error::Attach(_))));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A handle made before this process was forked off.
    #[error("the handle was made before fork; open the buffer anew in the child")]
    Forked,
    /// This process was taken for dead, and what it had is others' by now: its lease was lost, as when a checkpoint is restored.
    #[error("this process was taken for dead, and what it had in the buffer is gone; open the buffer anew")]
    Evicted,
    /// No memory for a record or a channel.
    #[error("out of memory: asked for {asked} bytes in one piece, {free} are free in all")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes free in the whole buffer at that moment.
        free: u64,
    },
    /// The peer has left.
    #[error("the channel's other end has left")]
    Disconnected,
    /// See [`OpenError`].
    #[error(transparent)]
    Open(OpenError),
    /// See [`BufferError`].
    #[error(transparent)]
    Buffer(BufferError),
    /// See [`AllocError`].
    #[error(transparent)]
    Alloc(AllocError),
    /// See [`AttachError`].
    #[error(transparent)]
    Attach(AttachError),
    /// See [`PeerError`].
    #[error(transparent)]
    Peer(PeerError),
    /// See [`Unsent`].
    #[error(transparent)]
    Send(Unsent),
    /// See [`RecvTimeoutError`].
    #[error(transparent)]
    Recv(RecvTimeoutError),
    /// Nothing is queued.
    #[error("the channel is empty")]
    Empty,
}

/// As [`Display`](fmt::Display): it is what `main` shows if it returns one.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<BufferError> for Error {
    fn from(error: BufferError) -> Self {
        match error {
            BufferError::Forked => Self::Forked,
            BufferError::Evicted => Self::Evicted,
            other => Self::Buffer(other),
        }
    }
}

impl From<AllocError> for Error {
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::Forked => Self::Forked,
            AllocError::Evicted => Self::Evicted,
            AllocError::OutOfMemory { asked, free } => Self::OutOfMemory { asked, free },
            other => Self::Alloc(other),
        }
    }
}

impl From<AttachError> for Error {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Forked => Self::Forked,
            AttachError::Evicted => Self::Evicted,
            AttachError::OutOfMemory { asked, free } => Self::OutOfMemory { asked, free },
            other => Self::Attach(other),
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Forked => Self::Forked,
            PeerError::Evicted => Self::Evicted,
            other => Self::Peer(other),
        }
    }
}

macro_rules! from_send {
    ($($name:ident),*) => { $(
        impl<T> From<$name<T>> for Error {
            fn from(error: $name<T>) -> Self {
                match error {
                    $name::Disconnected(_) => Self::Disconnected,
                    $name::Forked(_) => Self::Forked,
                    $name::Evicted(_) => Self::Evicted,
                    other => Self::Send(other.why()),
                }
            }
        }
    )* };
}
from_send!(SendError, TrySendError, SendTimeoutError);

impl From<RecvError> for Error {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Disconnected => Self::Disconnected,
            RecvError::Forked => Self::Forked,
            RecvError::Evicted => Self::Evicted,
            other => Self::Recv(RecvTimeoutError::Recv(other)),
        }
    }
}

impl From<TryRecvError> for Error {
    fn from(error: TryRecvError) -> Self {
        match error {
            TryRecvError::Empty => Self::Empty,
            TryRecvError::Recv(error) => error.into(),
        }
    }
}

impl From<RecvTimeoutError> for Error {
    fn from(error: RecvTimeoutError) -> Self {
        match error {
            RecvTimeoutError::Recv(error) => error.into(),
            timeout @ RecvTimeoutError::Timeout(_) => Self::Recv(timeout),
        }
    }
}
