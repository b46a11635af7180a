//! snmalloc, as build.rs built it; the calls are those of `snmalloc-rs`.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;

// SAFETY: the signatures of snmalloc's override/rust.cc.
unsafe extern "C" {
    fn sn_rust_alloc(alignment: usize, size: usize) -> *mut c_void;
    fn sn_rust_dealloc(at: *mut c_void, alignment: usize, size: usize);
}

#[derive(Debug, Clone, Copy)]
pub struct SnMalloc;

// SAFETY: snmalloc keeps the contract: it was written for this trait.
unsafe impl GlobalAlloc for SnMalloc {
    #[inline(always)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller, the layout is not empty.
        unsafe { sn_rust_alloc(layout.align(), layout.size()) }.cast()
    }

    #[inline(always)]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller, allocated here with this layout.
        unsafe { sn_rust_dealloc(at.cast(), layout.align(), layout.size()) };
    }
}
