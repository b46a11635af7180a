//! Asking the core for a cache line before it is needed.

/// Asks for the line at `address` for writing, which takes it away from all other cores. The address need not be valid.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn for_writing<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // The intrinsic would compile to a prefetch for reading unless the build names a newer processor; this encoding is a no-op
    // where it isn't known.
    // SAFETY: a prefetch reads and writes nothing and can't fault, whatever the address.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the line at `address` for reading. The address need not be valid.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn for_reading<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads and writes nothing and can't fault, whatever the address.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
