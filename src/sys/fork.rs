//! Hooks around fork(2).
//!
//! Covers every `fork` of the C library. A child made by a bare `clone` system call is not seen; one made by
//! `std::process::Command` either runs these hooks or execs at once, and all our descriptors are close-on-exec.

#![allow(unsafe_code)]

use std::sync::Once;

static ONCE: Once = Once::new();

/// Installs the hooks, once per process image.
pub(crate) fn install(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    ONCE.call_once(|| {
        // SAFETY: the three functions live as long as the program and never unwind (each is a plain `extern "C"`).
        let failed = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        assert!(failed == 0, "pthread_atfork failed with {failed}: out of memory");
    });
}
