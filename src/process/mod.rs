//! This process's and this thread's side of a segment: what keeps it mapped, and what a fork leaves of it.

pub(crate) mod attachment;
mod fork;
pub(crate) mod local;
#[cfg(feature = "async")]
pub(crate) mod reactor;

use crate::error::OpenError;
use crate::segment::{self, Wish};
use attachment::Hold;

/// Attaches to the segment `name`, or counts one more hold on the attachment this process has.
pub(crate) fn open(name: &str, wish: &Wish) -> Result<Hold, OpenError> {
    assert!(fork::install_hooks(), "pthread_atfork has no memory");
    attachment::open(name, wish)
}

/// Removes the name of a segment.
pub(crate) fn remove(name: &str) -> Result<(), OpenError> {
    assert!(fork::install_hooks(), "pthread_atfork has no memory");
    segment::remove(name)
}
