//! Count the distinct words of a corpus in several threads.
//!
//! The calling thread reads batches of texts, cuts them into jobs and puts these into a short queue. Each worker takes
//! jobs from the queue and counts into a separate table. At the end the tables are added up.

use crate::jobs::{Job, JobCutter, Part};
use crate::{Error, Splitter, Text, WordCounts};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel, Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

/// Bytes of text in a job.
const MIN_JOB_BYTES: usize = 1 << 18;

/// Longest time between two calls of `progress`, however long a job takes.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Texts that several threads read by index.
pub trait TextBatch: Send + Sync {
    /// Number of texts.
    fn len(&self) -> usize;

    fn get(&self, index: usize) -> Result<Text<'_>, Error>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: AsRef<str> + Send + Sync> TextBatch for Vec<T> {
    fn len(&self) -> usize {
        self.len()
    }

    fn get(&self, index: usize) -> Result<Text<'_>, Error> {
        Ok(Text::Str(self[index].as_ref()))
    }
}

/// A job with the batch that its parts index.
type BatchJob<T> = (Arc<T>, Job<usize>);

type WorkerHandle<'scope> = ScopedJoinHandle<'scope, Result<WordCounts, Error>>;

/// Count the words of all texts. The counts do not depend on `num_threads`.
///
/// Both callbacks run on the calling thread:
///
/// - `next_batch` returns the next batch, or `None` at the end of the corpus. Its argument contains the batches that
///   all workers have finished: the caller decides when to drop them (Python objects are freed under Python's lock).
/// - `progress` gets the number of bytes queued since its last call, which may be 0. It is called at least every 10 ms.
///
/// Errors of a callback, a text that is not UTF-8, and errors of the splitter stop the counting, within a text as well.
///
/// ```
/// let splitter = rustbpe::Splitter::new(r"\w+").unwrap();
/// let mut batches = [vec!["a b"], vec!["b"]].into_iter();
/// let counts = rustbpe::count_words::<_, rustbpe::Error>(&splitter, 2, |_| Ok(batches.next()), |_| Ok(())).unwrap();
/// let mut counts: Vec<_> = counts.iter().collect();
/// counts.sort();
/// assert_eq!(counts, [(b"a".to_vec(), 1), (b"b".to_vec(), 2)]);
/// ```
pub fn count_words<T: TextBatch, E: From<Error>>(
    splitter: &Splitter,
    num_threads: usize,
    next_batch: impl FnMut(Vec<Arc<T>>) -> Result<Option<T>, E>,
    mut progress: impl FnMut(usize) -> Result<(), E>,
) -> Result<WordCounts, E> {
    let num_threads = num_threads.max(1);
    let (job_sender, job_receiver) = sync_channel(num_threads);
    let job_receiver = Mutex::new(job_receiver);
    let (done_sender, done_receiver) = channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<WorkerHandle> = (0..num_threads)
            .map(|_| {
                let (job_receiver, done_sender, stop) = (&job_receiver, done_sender.clone(), &stop);
                scope.spawn(move || count_jobs(splitter, job_receiver, &done_sender, stop))
            })
            .collect();
        let feeder = Feeder {
            splitter,
            job_sender,
            done_sender,
            done_receiver: &done_receiver,
            done_batches: Vec::new(),
            workers: &workers,
            stop: &stop,
        };
        let mut outcome = feeder.feed(next_batch, &mut progress);
        loop {
            if outcome.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            match done_receiver.recv_timeout(POLL_INTERVAL) {
                Err(RecvTimeoutError::Disconnected) => break, // all workers have finished
                _ => outcome = outcome.and_then(|()| progress(0)),
            }
        }
        let mut total = WordCounts::default();
        for worker in workers {
            match worker.join().expect("a worker does not panic") {
                Ok(_) if outcome.is_err() => {}
                Ok(counts) if total.is_empty() => total = counts,
                Ok(counts) => {
                    total.merge(counts);
                    outcome = progress(0);
                }
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        outcome.map(|()| total)
    })
}

/// The calling thread's side of the queue.
struct Feeder<'a, 'scope, T> {
    splitter: &'a Splitter,
    job_sender: SyncSender<BatchJob<T>>,
    done_sender: Sender<Arc<T>>,
    done_receiver: &'a Receiver<Arc<T>>,
    /// References to batches, each returned with a finished job.
    done_batches: Vec<Arc<T>>,
    workers: &'a [WorkerHandle<'scope>],
    stop: &'a AtomicBool,
}

impl<T: TextBatch> Feeder<'_, '_, T> {
    /// Queue all batches, then close the queue.
    fn feed<E: From<Error>>(
        mut self,
        mut next_batch: impl FnMut(Vec<Arc<T>>) -> Result<Option<T>, E>,
        progress: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut cutter = JobCutter::new(self.splitter, MIN_JOB_BYTES);
        while let Some(batch) = next_batch(std::mem::take(&mut self.done_batches))?.map(Arc::new) {
            for index in 0..batch.len() {
                for job in cutter.push(index, batch.get(index)?.as_bytes()) {
                    self.send(&batch, job, progress)?;
                }
            }
            if let Some(job) = cutter.finish() {
                self.send(&batch, job, progress)?;
            }
            self.done_sender.send(batch).expect("the receiver outlives the threads");
            self.done_batches.extend(self.done_receiver.try_iter());
            progress(0)?; // a batch without text has no job
            if self.stop.load(Ordering::Relaxed) || self.has_finished_worker() {
                break;
            }
        }
        Ok(())
    }

    /// Queue one job. While the queue is full, wait for finished jobs and call `progress`.
    fn send<E>(
        &mut self,
        batch: &Arc<T>,
        job: Job<usize>,
        progress: &mut impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let num_bytes = job.num_bytes;
        let mut batch_job = (batch.clone(), job);
        while let Err(TrySendError::Full(unsent)) = self.job_sender.try_send(batch_job) {
            batch_job = unsent;
            if self.has_finished_worker() {
                break;
            }
            self.done_batches.extend(self.done_receiver.recv_timeout(POLL_INTERVAL));
            progress(0)?;
        }
        progress(num_bytes)
    }

    /// Return true if a worker has panicked: no other worker ends before the queue is closed. `count_words` reports it.
    fn has_finished_worker(&self) -> bool {
        self.workers.iter().any(ScopedJoinHandle::is_finished)
    }
}

/// Count the words of jobs until the queue is closed. After an error the jobs are taken, but not read.
fn count_jobs<T: TextBatch>(
    splitter: &Splitter,
    job_receiver: &Mutex<Receiver<BatchJob<T>>>,
    done_sender: &Sender<Arc<T>>,
    stop: &AtomicBool,
) -> Result<WordCounts, Error> {
    let mut counts = WordCounts::default();
    let mut outcome = Ok(());
    loop {
        let received = job_receiver.lock().expect("no worker panics while it holds the queue").recv();
        let Ok((batch, job)) = received else { break };
        for Part { text: index, range } in job.parts {
            if !stop.load(Ordering::Relaxed) {
                let part = batch.get(index).map(|text| text.slice(range));
                outcome = part.and_then(|part| count_part(splitter, part, &mut counts, stop));
            }
            if outcome.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        done_sender.send(batch).expect("the receiver outlives the threads");
    }
    outcome.map(|()| counts)
}

/// Count the words of one part, until `stop` is set. Errors: it is not UTF-8, or the splitter fails.
fn count_part(splitter: &Splitter, part: Text, counts: &mut WordCounts, stop: &AtomicBool) -> Result<(), Error> {
    let text = match part {
        Text::Str(text) => text,
        Text::Bytes(bytes) => simdutf8::compat::from_utf8(bytes).map_err(|error| Error::Text(error.to_string()))?,
    };
    splitter.split_while(text, |bounds| {
        bounds.windows(2).for_each(|word| counts.add(text.as_bytes(), word[0], word[1], 1));
        !stop.load(Ordering::Relaxed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    const PATTERN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

    #[test]
    fn one_long_text_is_counted_like_its_words() {
        let splitter = Splitter::new(PATTERN).unwrap();
        let lines: Vec<String> = (0..60_000).map(|i| format!("It's {i}  and\t{}!\n\n \n", i % 7)).collect();
        let text = lines.concat();
        assert!(text.len() > 4 * MIN_JOB_BYTES);
        let mut expected = WordCounts::default();
        let words = |bounds: &[usize]| {
            bounds.windows(2).for_each(|word| expected.add(text.as_bytes(), word[0], word[1], 1));
        };
        splitter.split(&text, words).unwrap();
        let mut expected: Vec<_> = expected.iter().collect();
        expected.sort();
        for num_threads in [1, 2, 7] {
            let mut batches = [vec![text.clone()]].into_iter();
            let mut total_bytes = 0;
            let progress = |num_bytes| {
                total_bytes += num_bytes;
                Ok(())
            };
            let counts = count_words::<_, Error>(&splitter, num_threads, |_| Ok(batches.next()), progress).unwrap();
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort();
            assert!(counts == expected, "{num_threads} threads");
            assert_eq!(total_bytes, text.len());
        }
    }

    struct ByteTexts(Vec<Vec<u8>>);

    impl TextBatch for ByteTexts {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn get(&self, index: usize) -> Result<Text<'_>, Error> {
            Ok(Text::Bytes(&self.0[index]))
        }
    }

    #[test]
    fn bytes_must_be_utf8() {
        let splitter = Splitter::new(r"\w+").unwrap();
        let count = |texts: Vec<Vec<u8>>| {
            let mut batches = [ByteTexts(texts)].into_iter();
            count_words::<_, Error>(&splitter, 2, |_| Ok(batches.next()), |_| Ok(())).map(|counts| counts.len())
        };
        assert_eq!(count(vec!["été x".into(), b"x y".to_vec()]), Ok(3));
        assert!(matches!(count(vec![b"x\xff".to_vec()]), Err(Error::Text(_))));
        assert!(matches!(count(vec![[vec![b'x'; MIN_JOB_BYTES], vec![0xC3]].concat()]), Err(Error::Text(_))));
    }

    /// Texts that a worker can read only after another call of `progress`.
    struct SlowTexts<'t> {
        num_progress_calls: &'t AtomicUsize,
        caller: thread::ThreadId,
    }

    impl TextBatch for SlowTexts<'_> {
        fn len(&self) -> usize {
            6
        }

        fn get(&self, _: usize) -> Result<Text<'_>, Error> {
            let before = self.num_progress_calls.load(Ordering::Relaxed);
            let deadline = Instant::now() + Duration::from_secs(30);
            let is_worker = thread::current().id() != self.caller;
            while is_worker && self.num_progress_calls.load(Ordering::Relaxed) == before {
                assert!(Instant::now() < deadline, "`progress` is not called while a worker is busy");
            }
            Ok(Text::Bytes(&[b'x'; MIN_JOB_BYTES])) // a job each: the queue is full for a while
        }
    }

    #[test]
    fn progress_is_called_while_workers_are_busy() {
        let num_progress_calls = AtomicUsize::new(0);
        let texts = SlowTexts { num_progress_calls: &num_progress_calls, caller: thread::current().id() };
        let mut batches = [texts].into_iter();
        let progress = |_| {
            num_progress_calls.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let splitter = Splitter::new(PATTERN).unwrap();
        let counts = count_words::<_, Error>(&splitter, 1, |_| Ok(batches.next()), progress).unwrap();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 6);
    }

    #[test]
    fn counting_stops_within_a_text() {
        let text = "1 ".repeat(1000);
        for (pattern, max_words) in [(PATTERN, crate::split::MAX_BOUNDS), (r"\w+|\W", 1)] {
            let (mut counts, stop) = (WordCounts::default(), AtomicBool::new(true));
            count_part(&Splitter::new(pattern).unwrap(), Text::Str(&text), &mut counts, &stop).unwrap();
            let counted: u64 = counts.iter().map(|(_, count)| count).sum();
            assert!(counted > 0 && counted <= max_words as u64, "{counted} by {pattern}");
        }
    }

    #[test]
    fn finished_batches_are_returned_once_each() {
        let splitter = Splitter::new(r"\w+").unwrap();
        let mut num_returned = 0;
        let mut num_batches = 0;
        let next_batch = |done: Vec<Arc<Vec<String>>>| {
            num_returned += done.into_iter().filter_map(Arc::into_inner).count();
            num_batches += 1;
            Ok((num_batches <= 300).then(|| vec!["a b".to_string(); 3]))
        };
        count_words::<_, Error>(&splitter, 3, next_batch, |_| Ok(())).unwrap();
        assert!(num_returned > 200 && num_returned <= 300, "{num_returned}");
    }
}
