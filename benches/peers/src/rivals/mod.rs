//! Who competes: ours and the rivals, one file for each crate, behind the traits of [`links`](crate::links).

pub mod bytes;
#[cfg(feature = "crossbeam")]
pub mod crossbeam;
pub mod ice;
#[cfg(feature = "ipc-channel")]
pub mod ipc_channel;
pub mod ours;
pub mod rtrb;
#[cfg(feature = "shaq")]
pub mod shaq;
#[cfg(feature = "tokio")]
pub mod tokio;

use crate::harness::Entrant;
use crate::links::{Task, processes, threads};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;

/// Who can do `T` with `W` words in the queue's own slots: for small ones.
pub fn by_value<T: Task, const W: usize>() -> [Entrant; 2] {
    [processes::<T, ours::Values<W>>(), threads::<T, rtrb::Values<W>>()]
}

/// All who can do `T` with messages of `W` words.
pub fn all<T: Task, const W: usize>() -> Vec<Entrant> {
    let entrants = [
        Some(processes::<T, ours::Records<W>>()),
        Some(threads::<T, rtrb::Boxes<SnMalloc, W>>()),
        Some(threads::<T, rtrb::Boxes<MiMalloc, W>>()),
        #[cfg(feature = "crossbeam")]
        Some(threads::<T, crossbeam::Boxes<W>>()),
        Some(processes::<T, ice::Samples<W>>()),
        #[cfg(feature = "shaq")]
        shaq::Offsets::<W>::FIT.then(processes::<T, shaq::Offsets<W>>),
        #[cfg(feature = "ipc-channel")]
        Some(processes::<T, ipc_channel::Bytes<W>>()),
        Some(processes::<T, bytes::Socket<W, false>>()),
        Some(processes::<T, bytes::Pipe<W, false>>()),
    ];
    entrants.into_iter().flatten().collect()
}
