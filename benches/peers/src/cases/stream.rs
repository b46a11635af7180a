//! A stream of messages from one side to the other: allocate, write, send, receive, read, free.

use crate::floor;
use crate::harness::{Case, Entrant};
use crate::links::{Stream, processes, threads};
use crate::rivals::{self, ours, rtrb};

pub const B8: Case = small::<1>("stream_8B");
pub const KIB1: Case = case::<128>("stream_1KiB");
pub const KIB64: Case = case::<8192>("stream_64KiB");

pub const INLINE_8B: Case = Case {
    name: "stream_inline_8B",
    about: "a stream of 8 B by value, nothing allocated",
    entrants: || {
        vec![
            processes::<Stream, ours::Values<1>>().named("ours"),
            threads::<Stream, rtrb::Values<1>>(),
            processes::<Stream, ours::Records<1>>().named("ours, records"),
        ]
    },
    against: &[&["rtrb by value"]],
};

pub const fn case<const W: usize>(name: &'static str) -> Case {
    Case {
        name,
        about: "allocate, write, send, receive, read, free; every byte",
        entrants: entrants::<W>,
        against: &[&["rtrb+snmalloc"], &["rtrb+mimalloc"], &["iceoryx2"]],
    }
}

/// The same, with those who can do it by value as well.
pub const fn small<const W: usize>(name: &'static str) -> Case {
    Case {
        entrants: || entrants::<W>().into_iter().chain(rivals::by_value::<Stream, W>()).collect(),
        ..case::<W>(name)
    }
}

fn entrants<const W: usize>() -> Vec<Entrant> {
    let mut entrants = rivals::all::<Stream, W>();
    entrants.push(floor::memcpy::<W>());
    entrants
}
