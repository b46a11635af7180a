//! One side allocates, the other frees, so that every block must find its way home.
//!
//! Pointers need a way across, and it should cost everybody alike. The rivals pass them through an rtrb ring, the leanest there
//! is; ours through our own channel, the only way a record changes process. So ours pays for the channel's checks and the change of
//! owner, which rivals don't have: nothing is subtracted. Same capacity, same way of waiting.

use super::ALLOCATORS;
use crate::harness::Case;
use crate::links::{Stream, processes, threads};
use crate::rivals::{ours, rtrb};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;

pub const CASE: Case = Case {
    name: "alloc_remote",
    about: "one side allocates and writes 48 B, the other reads and frees",
    entrants: || {
        vec![
            processes::<Stream, ours::Records<WORDS>>(),
            threads::<Stream, rtrb::Boxes<SnMalloc, WORDS>>().named("snmalloc"),
            threads::<Stream, rtrb::Boxes<MiMalloc, WORDS>>().named("mimalloc"),
        ]
    },
    against: ALLOCATORS,
};

const WORDS: usize = 6;
