//! System calls, each behind a function that says what it promises, and what of the core the language has no word for. Nothing above
//! this folder names the kernel.

pub(crate) mod barrier;
pub(crate) mod crash;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod lease;
pub(crate) mod memory;
pub(crate) mod prefetch;
pub(crate) mod shm;
pub(crate) mod task;
