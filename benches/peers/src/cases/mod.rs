//! The cases, one file each, in the order they run. A new one: its file, its line here.

mod alloc_free;
mod alloc_live;
mod alloc_mix;
mod alloc_remote;
mod alloc_two;
mod handover;
mod open_attach;
mod rtt;
mod stream;

use crate::harness::{Case, Entrant, Work, solo};
use crate::heaps::{self, Allocator, Heap, Ours, Rival};
use crate::snmalloc::SnMalloc;
use mimalloc::MiMalloc;

pub const ALL: &[Case] = &[
    alloc_free::B48,
    alloc_free::KIB1,
    alloc_free::KIB64,
    alloc_mix::CASE,
    alloc_remote::CASE,
    alloc_live::CASE,
    alloc_two::CASE,
    stream::B8,
    stream::KIB1,
    stream::KIB64,
    stream::INLINE_8B,
    rtt::RECORD,
    rtt::INLINE,
    rtt::ADAPTIVE,
    rtt::BLOCKING,
    #[cfg(feature = "tokio")]
    rtt::ASYNC,
    handover::CASE,
    open_attach::CASE,
];

/// Streams and round trips of payloads of all sizes: their bytes, and the two cases.
pub const SIZES: &[(usize, Case, Case)] = &[
    small::<1>("stream_8B", "rtt_8B"),
    small::<8>("stream_64B", "rtt_64B"),
    small::<32>("stream_256B", "rtt_256B"),
    size::<128>("stream_1KiB", "rtt_1KiB"),
    size::<512>("stream_4KiB", "rtt_4KiB"),
    size::<2_048>("stream_16KiB", "rtt_16KiB"),
    size::<8_192>("stream_64KiB", "rtt_64KiB"),
    size::<32_768>("stream_256KiB", "rtt_256KiB"),
    size::<131_072>("stream_1MiB", "rtt_1MiB"),
];

const fn size<const W: usize>(stream: &'static str, rtt: &'static str) -> (usize, Case, Case) {
    (W * size_of::<u64>(), stream::case::<W>(stream), rtt::case::<W>(rtt))
}

const fn small<const W: usize>(stream: &'static str, rtt: &'static str) -> (usize, Case, Case) {
    (W * size_of::<u64>(), stream::small::<W>(stream), rtt::small::<W>(rtt))
}

pub fn find(name: &str) -> Option<&'static Case> {
    let of_sizes = SIZES.iter().flat_map(|(_, stream, rtt)| [stream, rtt]);
    ALL.iter().chain(of_sizes).find(|case| case.name == name)
}

/// Whom the heap is compared with: the better one.
const ALLOCATORS: &[&[&str]] = &[&["snmalloc", "mimalloc"]];

/// Work that needs a heap only.
trait HeapWork {
    fn on<H: Heap>(heap: H) -> impl Work + 'static;
}

/// The heaps, each checked, with one thread each.
fn solos<W: HeapWork>() -> Vec<Entrant> {
    let ours = Entrant::new("ours", |lab| {
        let name = lab.name();
        let ours = Ours::create(&name);
        ours.hide();
        heaps::check(&ours);
        solo(W::on(ours))
    });
    vec![ours, on::<W, SnMalloc>("snmalloc"), on::<W, MiMalloc>("mimalloc")]
}

fn on<W: HeapWork, A: Allocator>(name: &'static str) -> Entrant {
    Entrant::new(name, |_| {
        let heap = Rival(A::IT);
        heaps::check(&heap);
        solo(W::on(heap))
    })
}
