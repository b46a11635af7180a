//! What is to be seen of a segment: counts, and a walk that checks that everything has one owner.

pub(crate) mod audit;
pub(crate) mod stats;

pub use audit::{Audit, Owned, Queued};
pub use stats::{ClassStats, Stats};
