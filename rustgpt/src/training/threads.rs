//! The pieces of a computation on several threads: those that torch computes with, where they can be had.
//!
//! torch's threads (OpenMP) spin for some milliseconds after each operation. Threads of our own beside them would have
//! no core for that long, so the same threads are asked to work, by the function that compiled OpenMP code calls.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

struct Work<'a> {
    next: AtomicUsize,
    count: usize,
    thread: AtomicUsize,
    has_panicked: AtomicBool,
    piece: &'a (dyn Fn(usize, usize) + Sync),
}

impl Work<'_> {
    /// Take pieces until none is left.
    fn run(&self) {
        let thread = self.thread.fetch_add(1, Relaxed);
        let pieces = || loop {
            let piece = self.next.fetch_add(1, Relaxed);
            if piece >= self.count {
                return;
            }
            (self.piece)(piece, thread);
        };
        if catch_unwind(AssertUnwindSafe(pieces)).is_err() {
            self.has_panicked.store(true, Relaxed);
        }
    }
}

/// Places for the working memory of each thread of `run`, which makes it when it needs it.
pub fn scratch<T>(num_threads: usize) -> Vec<Option<T>> {
    (0..num_threads.max(1)).map(|_| None).collect()
}

/// Call `piece(number, thread)` for each number below `count` on up to `num_threads` threads, counted from 0.
pub fn run(num_threads: usize, count: usize, piece: &(dyn Fn(usize, usize) + Sync)) {
    let work = Work {
        next: AtomicUsize::new(0),
        count,
        thread: AtomicUsize::new(0),
        has_panicked: AtomicBool::new(false),
        piece,
    };
    let num_threads = num_threads.min(count);
    if num_threads <= 1 {
        work.run();
    } else if !run_by_openmp(num_threads, &work) {
        std::thread::scope(|scope| {
            (1..num_threads).for_each(|_| drop(scope.spawn(|| work.run())));
            work.run();
        });
    }
    assert!(!work.has_panicked.load(Relaxed), "a computation failed");
}

/// Run the work on the threads of this process's GNU OpenMP library. Returns false if it has none.
#[cfg(target_os = "linux")]
fn run_by_openmp(num_threads: usize, work: &Work) -> bool {
    use std::ffi::{c_uint, c_void};
    type Parallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

    unsafe extern "C" fn run(work: *mut c_void) {
        // SAFETY: the pointer given below, to what lives until all threads are done.
        unsafe { (*work.cast::<Work>()).run() }
    }

    // SAFETY: a name that ends with 0.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
    if symbol.is_null() {
        return false;
    }
    // SAFETY: the signature of this function in every version of the library since that of GCC 4.9. It returns when
    // all threads have returned from `run`.
    unsafe {
        let parallel = std::mem::transmute::<*mut c_void, Parallel>(symbol);
        parallel(run, std::ptr::from_ref(work).cast_mut().cast(), num_threads as c_uint, 0);
    }
    true
}

#[cfg(not(target_os = "linux"))]
fn run_by_openmp(_: usize, _: &Work) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_computed_once() {
        for num_threads in [1, 2, 5] {
            for count in [0, 1, 2, 37] {
                let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                run(num_threads, count, &|piece, thread| {
                    assert!(thread < num_threads);
                    counts[piece].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    #[should_panic(expected = "a computation failed")]
    fn a_panic_reaches_the_caller() {
        run(3, 100, &|piece, _| assert!(piece != 50));
    }
}
