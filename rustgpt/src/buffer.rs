//! Memory for weights and cached keys and values.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const HUGE_PAGE_LEN: usize = 1 << 21;
const CACHE_LINE_LEN: usize = 64;

/// An array of numbers, zero at first, that begins at a cache line and stands in huge pages where the system has them.
///
/// With pages of 4 KB, reading the weights misses the processor's table of addresses (TLB) every 64 cache lines.
pub struct Buffer<T: Copy> {
    start: NonNull<T>,
    len: usize,
    allocated: NonNull<u8>,
    layout: Layout,
    of: PhantomData<T>,
}

// SAFETY: it owns its numbers, as a Vec does.
unsafe impl<T: Copy + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Buffer<T> {}

impl<T: Copy> Buffer<T> {
    /// Allocate `len` numbers, whose bits are all zero. `T` must be a type of integers or floating-point numbers.
    pub fn zeroed(len: usize) -> Buffer<T> {
        let num_bytes = len.checked_mul(size_of::<T>()).expect("the size of a buffer overflows");
        let align = if num_bytes >= HUGE_PAGE_LEN { HUGE_PAGE_LEN } else { CACHE_LINE_LEN };
        // The alignment is made here: asked for an aligned block of zeros, the allocator writes them, and a cache would
        // take all of its memory at once. Without, it gives pages that are zero until they are used.
        let layout = num_bytes.checked_add(align).and_then(|total| Layout::array::<u8>(total).ok());
        let layout = layout.expect("the size of a buffer overflows");
        // SAFETY: the layout has a size of at least 64.
        let Some(allocated) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let offset = allocated.as_ptr().align_offset(align);
        assert!(offset <= align, "no alignment to {align} bytes");
        // SAFETY: at most `align` bytes were allocated more than the numbers need.
        let start = unsafe { allocated.add(offset) };
        #[cfg(target_os = "linux")]
        if align == HUGE_PAGE_LEN {
            // SAFETY: the range is ours, and MADV_HUGEPAGE changes how it is backed, never its contents. A failure has
            // no effect.
            unsafe { libc::madvise(start.as_ptr().cast(), num_bytes, libc::MADV_HUGEPAGE) };
        }
        Buffer { start: start.cast(), len, allocated, layout, of: PhantomData }
    }
}

impl<T: Copy> Default for Buffer<T> {
    fn default() -> Self {
        Buffer::zeroed(0)
    }
}

impl<T: Copy> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.allocated.as_ptr(), self.layout) }
    }
}

impl<T: Copy> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` numbers are allocated, and bits of zero are a number.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
