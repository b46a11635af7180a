//! A stream of messages from one side to the other: allocate, write, send, receive, read, free.

use crate::floor;
use crate::harness::{Case, Entrant};
use crate::links::Stream;
use crate::rivals;

pub const B8: Case = case::<1>("stream_8B");
pub const KIB1: Case = case::<128>("stream_1KiB");
pub const KIB64: Case = case::<8192>("stream_64KiB");

pub const fn case<const W: usize>(name: &'static str) -> Case {
    Case {
        name,
        about: "allocate, write, send, receive, read, free; every byte",
        entrants: entrants::<W>,
        against: &[&["rtrb+snmalloc"], &["rtrb+mimalloc"], &["iceoryx2"]],
    }
}

fn entrants<const W: usize>() -> Vec<Entrant> {
    let mut entrants = rivals::all::<Stream, W>();
    entrants.push(floor::memcpy::<W>());
    entrants
}
