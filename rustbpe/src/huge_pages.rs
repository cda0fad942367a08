//! Huge memory pages for large tables.

/// Advise the operating system to back `memory` with huge pages (2 MB instead of 4 KB each).
///
/// Without them the first write to each small page costs more than filling it, and scattered reads miss the processor's
/// table of addresses (TLB). Call this before the memory is written for the first time. Does nothing on systems other
/// than Linux, and where the kernel refuses.
pub fn advise_huge_pages<T>(memory: *const [T]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE_PAGE_LEN: usize = 1 << 21;
        let start = memory.cast::<u8>() as usize;
        let end = start + memory.len() * size_of::<T>();
        // Only whole huge pages inside the memory.
        let first = start.next_multiple_of(HUGE_PAGE_LEN);
        let last = end / HUGE_PAGE_LEN * HUGE_PAGE_LEN;
        if first < last {
            // SAFETY: MADV_HUGEPAGE changes how memory is backed, never its contents or whether it is mapped. An
            // invalid range makes the call fail without an effect, and the result is ignored.
            unsafe { libc::madvise(first as *mut _, last - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
