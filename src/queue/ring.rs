//! A ring in a segment: its header, and the words of its slots.

use crate::format::{Shape, SpscHeader};
use crate::sync::{AtomicU64, Ordering};

/// A ring in a segment.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) header: &'static SpscHeader,
    pub(crate) words: &'static [AtomicU64],
    /// Slots that may be in use at once: a power of two.
    pub(crate) capacity: u64,
    /// `None` if the slots name granules.
    pub(crate) shape: Option<Shape>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("capacity", &self.capacity).field("shape", &self.shape).finish_non_exhaustive()
    }
}

struct Nowhere(SpscHeader);
// SAFETY: atomics throughout.
#[allow(unsafe_code)]
unsafe impl Sync for Nowhere {}
// SAFETY: all zeroes is a valid header (`Shared`).
#[allow(unsafe_code)]
static NOWHERE: Nowhere = Nowhere(unsafe { std::mem::zeroed() });

impl Ring {
    /// No channel: full and empty at once.
    pub(crate) const NONE: Self = Self { header: &NOWHERE.0, words: &[], capacity: 0, shape: None };

    #[allow(clippy::cast_possible_truncation)] // at most `MAX_CAPACITY`
    pub(crate) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    pub(crate) fn head(&self) -> u64 {
        self.header.head.load(Ordering::Acquire)
    }
}
