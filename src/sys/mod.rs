//! System calls, each behind a function that says what it promises, and what of the core the language has no word for. Nothing above
//! this folder names the kernel.

pub(crate) mod barrier;
pub(crate) mod crash;
/// The system's answers, by name.
pub(crate) mod errno {
    pub(crate) use libc::{
        EACCES, EAGAIN, EBADF, EFBIG, EINVAL, EISDIR, ELOOP, EMFILE, ENFILE, ENODEV, ENOENT, ENOMEM, ENOSPC, ENXIO,
        EOPNOTSUPP, EPERM, EROFS,
    };
}
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod lease;
pub(crate) mod memory;
pub(crate) mod prefetch;
pub(crate) mod shm;
pub(crate) mod task;
