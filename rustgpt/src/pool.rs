//! Threads that work through the pieces of one computation after another.
//!
//! A step of a model is some hundred short computations. Between two of them the threads spin for a moment, because
//! waking a sleeping thread takes longer than many a computation; then they sleep.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(60);

type Work<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A pool of threads. The thread that calls `run` works along.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The number of the computation, its pieces, and the next of them (`unpack`). A piece belongs to the thread that
    /// replaced this by its successor: the number keeps a thread that was late from a piece of a later computation.
    next: AtomicU64,
    done: AtomicUsize,
    /// The two words of a `Work`. They change only while all pieces are done.
    work: [AtomicUsize; 2],
    has_panicked: AtomicBool,
    is_closed: AtomicBool,
    num_asleep: Mutex<usize>,
    wake: Condvar,
}

const PIECE_BITS: u32 = 20;
const MAX_PIECES: usize = (1 << PIECE_BITS) - 1;

/// Return the number of the computation, its pieces and the next one, from the value of `Shared::next`.
fn unpack(next: u64) -> (u64, usize, usize) {
    (next >> (2 * PIECE_BITS), (next >> PIECE_BITS) as usize & MAX_PIECES, next as usize & MAX_PIECES)
}

impl Pool {
    /// Start `num_threads - 1` threads.
    pub fn new(num_threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            work: [AtomicUsize::new(0), AtomicUsize::new(0)],
            has_panicked: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            num_asleep: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..num_threads.max(1))
            .map(|thread| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(thread))
            })
            .collect();
        Pool { shared, workers }
    }

    /// Number of threads, the caller's included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Call `work(piece, thread)` for each piece below `count`, and return when all calls have.
    ///
    /// `&mut`: one computation at a time.
    pub fn run(&mut self, count: usize, work: Work) {
        assert!(count <= MAX_PIECES, "{count} pieces are too many");
        if self.workers.is_empty() || count <= 1 {
            (0..count).for_each(|piece| work(piece, 0));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: a reference to a trait object has two words. They are read again only for a piece of this
        // computation, and this function returns only when all its pieces are done, so the reference is still valid.
        let words: [usize; 2] = unsafe { std::mem::transmute::<Work, [usize; 2]>(work) };
        shared.work[0].store(words[0], Relaxed);
        shared.work[1].store(words[1], Relaxed);
        shared.done.store(0, Relaxed);
        let number = unpack(shared.next.load(Relaxed)).0 + 1; // in 24 bits: it starts again after 17 million
                                                              // SeqCst: either a thread that goes to sleep sees the new number, or this thread sees that it sleeps.
        shared.next.store(number << (2 * PIECE_BITS) | (count as u64) << PIECE_BITS, SeqCst);
        if *shared.num_asleep.lock().unwrap() > 0 {
            shared.wake.notify_all();
        }
        shared.work_on(0);
        while shared.done.load(Acquire) < count {
            std::hint::spin_loop();
        }
        assert!(!shared.has_panicked.swap(false, Relaxed), "a computation failed in another thread");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, SeqCst);
        drop(self.shared.num_asleep.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Take pieces of the present computation until none is left.
    fn work_on(&self, thread: usize) {
        loop {
            let next = self.next.load(Acquire);
            let (_, count, piece) = unpack(next);
            if piece >= count {
                return;
            }
            let words = [self.work[0].load(Relaxed), self.work[1].load(Relaxed)];
            if self.next.compare_exchange(next, next + 1, AcqRel, Relaxed).is_err() {
                continue;
            }
            // SAFETY: the exchange shows that `words` was read while this piece was not yet taken, so they are those of
            // its computation (see `run`), which lasts until `done` is increased below.
            let work: Work = unsafe { std::mem::transmute::<[usize; 2], Work>(words) };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(piece, thread))).is_err() {
                self.has_panicked.store(true, Relaxed);
            }
            self.done.fetch_add(1, Release);
        }
    }

    /// Work on one computation after another, until the pool is closed.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            self.work_on(thread);
            let idle_since = Instant::now();
            loop {
                let next = self.next.load(SeqCst);
                if unpack(next).0 != seen {
                    seen = unpack(next).0;
                    break;
                }
                if self.is_closed.load(SeqCst) {
                    return;
                }
                if idle_since.elapsed() < SPIN {
                    for _ in 0..50 {
                        std::hint::spin_loop();
                    }
                    continue;
                }
                let mut num_asleep = self.num_asleep.lock().unwrap();
                *num_asleep += 1;
                while unpack(self.next.load(SeqCst)).0 == seen && !self.is_closed.load(SeqCst) {
                    num_asleep = self.wake.wait(num_asleep).unwrap();
                }
                *num_asleep -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_computed_once() {
        for num_threads in [1, 2, 5] {
            let mut pool = Pool::new(num_threads);
            for round in 0..3000 {
                let counts: Vec<AtomicUsize> = (0..round % 37).map(|_| AtomicUsize::new(0)).collect();
                pool.run(counts.len(), &|piece, thread| {
                    assert!(thread < num_threads);
                    counts[piece].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
                if round % 1000 == 0 {
                    std::thread::sleep(3 * SPIN); // the threads go to sleep, and are woken
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a computation failed")]
    fn a_panic_reaches_the_caller() {
        Pool::new(3).run(100, &|piece, _| assert!(piece != 50));
    }
}
