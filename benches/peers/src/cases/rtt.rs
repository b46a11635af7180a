//! A message there and one back, each a fresh one: the latency of a hand-over, twice.

use crate::floor;
use crate::harness::Case;
use crate::links::{RoundTrip, processes};
use crate::rivals::{self, ours};

pub const RECORD: Case = case::<1>("rtt_record");

pub const ADAPTIVE: Case = Case {
    name: "rtt_adaptive",
    about: "round trip of 8 B, both sides busy, waiting with send and recv; against itself spinning",
    entrants: || {
        vec![processes::<RoundTrip, ours::Waiting<1>>(), processes::<RoundTrip, ours::Records<1>>().named("spinning")]
    },
    against: &[&["spinning"], &[floor::PING_PONG]],
};

pub const fn case<const W: usize>(name: &'static str) -> Case {
    Case {
        name,
        about: "spinning round trip, a fresh message each way; every byte written and read",
        entrants: rivals::all::<RoundTrip, W>,
        against: &[&[floor::PING_PONG], &["rtrb+snmalloc"], &["rtrb+mimalloc"], &["iceoryx2"]],
    }
}
