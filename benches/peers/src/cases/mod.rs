//! The cases, one file each, in the order they run. A new one: its file, its line here.

mod alloc_free;
mod alloc_live;
mod alloc_mix;
mod alloc_remote;
mod alloc_two;
mod rtt_record;
mod stream;

use crate::harness::{Case, Entry, Lab, Work, solo};
use crate::heaps::{self, Heap, Ours, Rival};
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
    rtt_record::CASE,
];

/// Whom the heap is compared with: the better one.
const ALLOCATORS: &[&[&str]] = &[&["snmalloc", "mimalloc"]];

/// Work that needs a heap only.
trait HeapWork {
    fn on<H: Heap>(heap: H) -> impl Work + 'static;
}

/// The heaps, each checked, with one thread each.
fn solos<W: HeapWork>(lab: &Lab) -> Vec<Entry> {
    let name = lab.name();
    let ours = Ours::create(&name);
    ours.hide();
    heaps::check(&ours);
    heaps::check(&Rival(SnMalloc));
    heaps::check(&Rival(MiMalloc));
    vec![solo("ours", W::on(ours)), solo("snmalloc", W::on(Rival(SnMalloc))), solo("mimalloc", W::on(Rival(MiMalloc)))]
}
