//! A message there and one back, each a fresh one: the latency of a hand-over, twice.

use crate::floor;
use crate::harness::Case;
use crate::links::{RoundTrip, processes, threads};
#[cfg(feature = "ipc-channel")]
use crate::rivals::ipc_channel;
#[cfg(feature = "tokio")]
use crate::rivals::tokio;
use crate::rivals::{self, bytes, ice, ours, rtrb};

pub const RECORD: Case = small::<1>("rtt_record");

pub const INLINE: Case = Case {
    name: "rtt_inline",
    about: "spinning round trip of 16 B by value, nothing allocated",
    entrants: || {
        vec![
            processes::<RoundTrip, ours::Values<2>>().named("ours"),
            threads::<RoundTrip, rtrb::Values<2>>(),
            processes::<RoundTrip, ours::Records<2>>().named("ours, records"),
        ]
    },
    against: &[&[floor::PING_PONG], &["rtrb by value"]],
};

pub const ADAPTIVE: Case = Case {
    name: "rtt_adaptive",
    about: "round trip of 8 B, both sides busy, waiting as each library does by default; against itself spinning",
    entrants: || {
        vec![
            processes::<RoundTrip, ours::Waiting<1, false>>(),
            processes::<RoundTrip, ours::Records<1>>().named("spinning"),
            processes::<RoundTrip, ice::Events<1>>(),
        ]
    },
    against: &[&["spinning"], &[floor::PING_PONG], &["iceoryx2 event"]],
};

pub const BLOCKING: Case = Case {
    name: "rtt_blocking",
    about: "round trip of 8 B, each side sleeps in the kernel at once while it waits",
    entrants: || {
        vec![
            processes::<RoundTrip, ours::Waiting<1, true>>(),
            floor::futex(),
            processes::<RoundTrip, ice::Events<1>>(),
            #[cfg(feature = "ipc-channel")]
            processes::<RoundTrip, ipc_channel::Bytes<1>>(),
            processes::<RoundTrip, bytes::Socket<1, true>>(),
            processes::<RoundTrip, bytes::Pipe<1, true>>(),
        ]
    },
    against: &[&[floor::FUTEX], &["iceoryx2 event"]],
};

#[cfg(feature = "tokio")]
pub const ASYNC: Case = Case {
    name: "rtt_async",
    about: "round trip of 8 B by await, each side on a tokio runtime of one thread",
    entrants: || {
        vec![
            tokio::processes::<ours::Waiting<1, false>>(),
            tokio::processes::<ours::Waiting<1, true>>().named("ours, asleep"),
            tokio::mpsc(),
        ]
    },
    against: &[&["tokio mpsc"]],
};

pub const fn case<const W: usize>(name: &'static str) -> Case {
    Case {
        name,
        about: "spinning round trip, a fresh message each way; every byte written and read",
        entrants: rivals::all::<RoundTrip, W>,
        against: &[&[floor::PING_PONG], &["rtrb+snmalloc"], &["rtrb+mimalloc"], &["iceoryx2"]],
    }
}

/// The same, with those who can do it by value as well.
pub const fn small<const W: usize>(name: &'static str) -> Case {
    Case {
        entrants: || rivals::all::<RoundTrip, W>().into_iter().chain(rivals::by_value::<RoundTrip, W>()).collect(),
        ..case::<W>(name)
    }
}
