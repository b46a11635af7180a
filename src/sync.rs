//! The one door to atomics: every shared word in the crate comes through here.
//!
//! `clippy.toml` keeps other files from naming `core::sync::atomic`, so that a model checker's types can be put in this
//! place without touching the algorithms.

#![allow(clippy::disallowed_types)]

pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};
