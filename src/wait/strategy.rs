//! Whether to look or to sleep.

use crate::sync::{AtomicU32, Ordering};
use crate::sys::task;
use std::time::Duration;
#[cfg(feature = "async")]
use std::time::Instant;

/// What an end does while it has nothing to receive, or no room to send.
///
/// ```
/// # let name = format!("doc-wait-strategy-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{ChannelOptions, WaitStrategy};
/// use std::time::Duration;
/// let options = ChannelOptions::new().wait_strategy(WaitStrategy::Block);
/// let mut rx = ctx.consumer_with::<u64>(1, &options)?;
/// assert!(rx.recv_timeout(Duration::from_millis(1)).is_err(), "slept at once, and came back in time");
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// Never sleeps: the quickest answer, for one core that does nothing else.
    Spin,
    /// Spins for about as long as falling asleep and being woken would take, then sleeps. Does not spin on a single core.
    #[default]
    Adaptive,
    /// Sleeps at once: leaves the core to others.
    Block,
}

/// How long to look before sleeping: about what falling asleep and being woken costs, so that at worst waiting costs twice what
/// the better choice would have.
pub(super) const SPIN: Duration = Duration::from_micros(20);
/// Looks between two readings of the clock, or questions that cost more than a look.
pub(super) const LOOKS: u32 = 64;
/// Whether the other side can run while this one looks.
pub(super) fn has_other_cores() -> bool {
    static CORES: AtomicU32 = AtomicU32::new(0);
    let mut cores = CORES.load(Ordering::Relaxed);
    if cores == 0 {
        cores = task::cores();
        CORES.store(cores, Ordering::Relaxed);
    }
    cores > 1
}

impl WaitStrategy {
    /// Looks that a wait begins with, before anything is set up for it: none where the other side can't run meanwhile.
    pub(crate) fn first_looks(self) -> u32 {
        if self == WaitStrategy::Block || !has_other_cores() { 0 } else { LOOKS }
    }

    /// Whether a future that began to wait at `since` looks again at once, instead of leaving it to the reactor to wake it.
    #[cfg(feature = "async")]
    pub(crate) fn looks_on(self, since: Instant) -> bool {
        match self {
            WaitStrategy::Spin => true,
            WaitStrategy::Adaptive => has_other_cores() && since.elapsed() < SPIN,
            WaitStrategy::Block => false,
        }
    }
}
