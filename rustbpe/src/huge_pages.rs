//! Large pages for much memory at once.

/// Ask the system to back `memory`, which need not have been written yet, with large pages. With small ones (4 KB) the first
/// write to each costs more than filling it, and scattered reads cost more. Where the system has none, nothing happens.
pub fn ask_for_large<T>(memory: *const [T]) {
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 1 << 21;
        let (begin, bytes) = (memory.cast::<u8>() as usize, memory.len() * size_of::<T>());
        let (first, end) = (begin.next_multiple_of(LARGE), (begin + bytes) / LARGE * LARGE);
        if first < end {
            // SAFETY: this advice changes nothing that is in memory, whatever the range.
            unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
