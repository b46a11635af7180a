//! How long a test may take before it counts as hung. `IPC_BUFFER_TEST_TIME_FACTOR=N` makes all of these limits N times as long, for
//! machines that are slow by nature: an emulated one is 20 to 50 times slower. No test gets slower by it. What the library gives 20 ms
//! or 5 s, tests ask for to the end there; nothing else passes by it.
#![allow(unsafe_code)]

use std::time::Duration;

/// The limit, on this machine.
pub fn scaled(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

/// A watchdog that no thread has to serve, and no fork inherits: SIGALRM after so long, on this machine.
pub fn alarm(limit_s: u32) {
    // SAFETY: sets a timer of this process.
    unsafe { libc::alarm(limit_s.saturating_mul(factor())) };
}

/// Whether this machine is slow by nature.
pub fn is_slow() -> bool {
    factor() > 1
}

fn factor() -> u32 {
    let Some(factor) = std::env::var_os("IPC_BUFFER_TEST_TIME_FACTOR") else { return 1 };
    let number = factor.to_str().and_then(|factor| factor.parse().ok());
    number.unwrap_or_else(|| panic!("IPC_BUFFER_TEST_TIME_FACTOR={factor:?} is not a whole number"))
}
