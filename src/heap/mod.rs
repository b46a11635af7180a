//! The heap: blocks of any size out of one segment, owned by processes, cached by contexts.
//!
//! ```text
//! alloc    from the fast path down to units; frees
//! reclaim  what is free in the wrong place
//! cache    a context's magazines: pop, push          (fast path)
//! depot    magazines that nobody holds               (one CAS per up to 252 blocks)
//! gate     whether a cache's owner is inside, and who takes it away
//! block    header words
//! unit     64 KiB pieces: slabs and large records    (a CAS per unit)
//! want     waiting for memory
//! ```
//!
//! Each knows those below it; size classes are the `format`'s. Knows nothing of types, channels or of who is alive: what may be freed on behalf of the dead is `recovery`'s business.

pub(crate) mod alloc;
pub(crate) mod block;
pub(crate) mod cache;
pub(crate) mod depot;
pub(crate) mod gate;
pub(crate) mod reclaim;
#[cfg(test)]
mod tests;
pub(crate) mod unit;
pub(crate) mod want;

pub(crate) use alloc::{
    Counted, alloc, alloc_fast, alloc_larger, alloc_near, free, free_bytes, free_found, free_run, run_span,
};
