//! Threads that work through the pieces of one computation after another.
//!
//! A step of a model is some hundred short computations. Between two of them the threads spin for a moment, because
//! waking a sleeping thread takes longer than many a computation; then they sleep. While they spin they fetch what the
//! next product reads first, so that memory is not idle.

use crate::matrix::prefetch_for_later;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(60);
/// Time until which it then still looks for work, but lets others have its core: from one step of a row to the next. (With
/// 2 ms, a server with 64 clients got a sixth fewer tokens: a thread that yields has its share of the cores.)
const YIELD: Duration = Duration::from_micros(500);
/// Bytes that a thread fetches ahead at most: a part of its second cache.
const MAX_FETCHED: usize = 256 << 10;
/// Bytes that it fetches before it looks for work again.
const FETCHED_AT_ONCE: usize = 512;
const CACHE_LINE: usize = 64;

type Work<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A pool of threads. The thread that calls `run` works along.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The number of the computation.
    number: AtomicU64,
    /// The pieces that are left to each thread. It takes them from the first on, so that it reads memory in one run;
    /// one that has none left takes the last piece of another.
    parts: Vec<Part>,
    done: AtomicUsize,
    /// The two words of a `Work`. They change only while all pieces are done.
    work: [AtomicUsize; 2],
    /// Address and length of what the next product reads, cut into a part for each thread.
    ahead: [AtomicUsize; 2],
    has_panicked: AtomicBool,
    is_closed: AtomicBool,
    num_asleep: Mutex<usize>,
    wake: Condvar,
}

/// The number of a computation, the end of a thread's pieces, and the first of them (`unpack`), on a cache line of its
/// own. A piece belongs to the thread that replaced this by what is left: the number keeps a thread that was late from a
/// piece of a later computation.
#[repr(align(128))]
struct Part(AtomicU64);

const PIECE_BITS: u32 = 20;
const MAX_PIECES: usize = (1 << PIECE_BITS) - 1;
const NUMBER_MASK: u64 = (1 << (64 - 2 * PIECE_BITS)) - 1;

/// Return the value of a `Part`.
fn pack(number: u64, end: usize, first: usize) -> u64 {
    number << (2 * PIECE_BITS) | (end as u64) << PIECE_BITS | first as u64
}

/// Return the end and the first piece, from the value of a `Part`.
fn unpack(part: u64) -> (usize, usize) {
    ((part >> PIECE_BITS) as usize & MAX_PIECES, part as usize & MAX_PIECES)
}

impl Pool {
    /// Start `num_threads - 1` threads.
    pub fn new(num_threads: usize) -> Pool {
        let num_threads = num_threads.max(1);
        let shared = Arc::new(Shared {
            number: AtomicU64::new(0),
            parts: (0..num_threads).map(|_| Part(AtomicU64::new(0))).collect(),
            done: AtomicUsize::new(0),
            work: [AtomicUsize::new(0), AtomicUsize::new(0)],
            ahead: [AtomicUsize::new(0), AtomicUsize::new(0)],
            has_panicked: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            num_asleep: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..num_threads)
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

    /// Name the memory that the next product will read, so that idle threads fetch the beginning of their part of it.
    pub fn fetch_ahead(&mut self, memory: &[u8]) {
        self.shared.ahead[0].store(memory.as_ptr() as usize, Relaxed);
        self.shared.ahead[1].store(memory.len(), Relaxed);
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
        let number = (shared.number.load(Relaxed) + 1) & NUMBER_MASK; // it starts again after 17 million
        let num_threads = self.num_threads();
        for (thread, part) in shared.parts.iter().enumerate() {
            let (first, end) = (count * thread / num_threads, count * (thread + 1) / num_threads);
            part.0.store(pack(number, end, first), Release);
        }
        // SeqCst: either a thread that goes to sleep sees the new number, or this thread sees that it sleeps.
        shared.number.store(number, SeqCst);
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
    /// Take pieces of the present computation until none is left: those of the thread, then those of others.
    fn work_on(&self, thread: usize) {
        for other in 0..self.parts.len() {
            let part = &self.parts[(thread + other) % self.parts.len()].0;
            loop {
                let left = part.load(Acquire);
                let (end, first) = unpack(left);
                if first >= end {
                    break;
                }
                let words = [self.work[0].load(Relaxed), self.work[1].load(Relaxed)];
                let (piece, rest) = if other == 0 { (first, left + 1) } else { (end - 1, left - (1 << PIECE_BITS)) };
                if part.compare_exchange(left, rest, AcqRel, Relaxed).is_err() {
                    continue;
                }
                // SAFETY: the exchange shows that `words` was read while this piece was not yet taken, so they are
                // those of its computation (see `run`), which lasts until `done` is increased below.
                let work: Work = unsafe { std::mem::transmute::<[usize; 2], Work>(words) };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(piece, thread))).is_err() {
                    self.has_panicked.store(true, Relaxed);
                }
                self.done.fetch_add(1, Release);
            }
        }
    }

    /// Work on one computation after another, until the pool is closed.
    fn serve(&self, thread: usize) {
        let mut seen = 0;
        let mut fetched = (0, 0); // an address, and the bytes that were fetched from there on
        loop {
            self.work_on(thread);
            let idle_since = Instant::now();
            loop {
                let number = self.number.load(SeqCst);
                if number != seen {
                    seen = number;
                    break;
                }
                if self.is_closed.load(SeqCst) {
                    return;
                }
                if self.fetch(thread, &mut fetched) {
                    continue;
                }
                let idle = idle_since.elapsed();
                if idle < SPIN {
                    for _ in 0..50 {
                        std::hint::spin_loop();
                    }
                    continue;
                }
                if idle < YIELD {
                    std::thread::yield_now();
                    continue;
                }
                let mut num_asleep = self.num_asleep.lock().unwrap();
                *num_asleep += 1;
                while self.number.load(SeqCst) == seen && !self.is_closed.load(SeqCst) {
                    num_asleep = self.wake.wait(num_asleep).unwrap();
                }
                *num_asleep -= 1;
            }
        }
    }

    /// Fetch some of what the next product will read. Returns false if enough is fetched.
    fn fetch(&self, thread: usize, fetched: &mut (usize, usize)) -> bool {
        let (address, len) = (self.ahead[0].load(Relaxed), self.ahead[1].load(Relaxed));
        if fetched.0 != address {
            *fetched = (address, 0);
        }
        let num_threads = self.parts.len();
        let (first, end) = (len * thread / num_threads, len * (thread + 1) / num_threads);
        if fetched.1 >= MAX_FETCHED.min(end - first) {
            return false;
        }
        for line in (0..FETCHED_AT_ONCE).step_by(CACHE_LINE) {
            prefetch_for_later((address + first + fetched.1 + line) as *const u8);
        }
        fetched.1 += FETCHED_AT_ONCE;
        true
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
