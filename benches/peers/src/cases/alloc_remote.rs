//! One side allocates, the other frees, so that every block must find its way home.
//!
//! Pointers need a way across, and it should cost everybody alike. The rivals pass them through an rtrb ring, the leanest there
//! is; ours through our own channel, the only way a record changes process. So ours pays for the channel's checks and the change of
//! owner, which rivals don't have: nothing is subtracted. Same capacity, same way of waiting.

use super::ALLOCATORS;
use super::stream::{self, flow_of_ours, flow_of_rtrb};
use crate::harness::{Case, Entry, Lab};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;

pub const CASE: Case = Case {
    name: "alloc_remote",
    about: "one side allocates and writes 48 B, the other reads and frees",
    contenders,
    far: stream::far::<WORDS>,
    against: ALLOCATORS,
};

const WORDS: usize = 6;

fn contenders(lab: &Lab) -> Vec<Entry> {
    vec![
        flow_of_ours::<WORDS>(lab),
        flow_of_rtrb::<SnMalloc, WORDS>("snmalloc", lab),
        flow_of_rtrb::<MiMalloc, WORDS>("mimalloc", lab),
    ]
}
