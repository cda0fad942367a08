//! Counts distinct words, in as many threads as asked for. Long texts are cut at places that change no word, so one
//! long text keeps all threads busy as well.

use crate::jobs::{Job, JobCutter, Part};
use crate::{Error, Splitter, Text, WordCounts};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel, Receiver, RecvTimeoutError, Sender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

/// Bytes of text that a thread takes at a time.
const MIN_JOB_BYTES: usize = 1 << 18;

/// `progress` is called at least this often, however long a job takes.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Texts that come together, and are read by several threads.
pub trait TextBatch: Send + Sync {
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

/// Count the words of all texts, which must be UTF-8. The counts do not depend on `num_threads`.
///
/// `next_batch` is called on this thread until it gives `None`; the counting goes on meanwhile in other threads. It is
/// handed the batches that are done with, so that the caller decides where they are dropped (Python's objects want
/// Python's lock). `progress` is called on this thread too, again and again, with the bytes that were handed out since
/// the last time. An error of either, of a text or of the splitter ends the counting, in the middle of a text as well.
///
/// ```
/// let splitter = rustbpe::Splitter::new(r"\w+").unwrap();
/// let mut batches = vec![vec!["a b"], vec!["b"]].into_iter();
/// let counts = rustbpe::count_words::<_, rustbpe::Error>(&splitter, 2, |_| Ok(batches.next()), |_| Ok(())).unwrap();
/// let mut counts: Vec<_> = counts.iter().collect();
/// counts.sort();
/// assert_eq!(counts, [(b"a".to_vec(), 1), (b"b".to_vec(), 2)]);
/// ```
pub fn count_words<T: TextBatch, E: From<Error>>(
    splitter: &Splitter,
    num_threads: usize,
    mut next_batch: impl FnMut(Vec<Arc<T>>) -> Result<Option<T>, E>,
    mut progress: impl FnMut(usize) -> Result<(), E>,
) -> Result<WordCounts, E> {
    let num_threads = num_threads.max(1);
    let (to_worker, inbox) = sync_channel::<BatchJob<T>>(num_threads);
    let inbox = Mutex::new(inbox);
    let (done, spent) = channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<ScopedJoinHandle<Result<WordCounts, Error>>> = (0..num_threads)
            .map(|_| {
                let (inbox, done, stop) = (&inbox, done.clone(), &stop);
                scope.spawn(move || count_jobs(splitter, inbox, &done, stop))
            })
            .collect();
        let mut feed = || -> Result<(), E> {
            let mut back = Vec::new();
            let mut cutter = JobCutter::new(splitter, MIN_JOB_BYTES);
            while let Some(batch) = next_batch(std::mem::take(&mut back))?.map(Arc::new) {
                let mut send = |job: Job<usize>| {
                    let num_bytes = job.num_bytes;
                    let mut job = (batch.clone(), job);
                    while let Err(TrySendError::Full(again)) = to_worker.try_send(job) {
                        job = again;
                        // A worker ends before the queue does only if it panics, which is told where it is joined.
                        if workers.iter().any(ScopedJoinHandle::is_finished) {
                            break;
                        }
                        back.extend(spent.recv_timeout(POLL_INTERVAL)); // there is room when a job is done
                        progress(0)?;
                    }
                    progress(num_bytes)
                };
                for index in 0..batch.len() {
                    for job in cutter.push(index, batch.get(index)?.as_bytes()) {
                        send(job)?;
                    }
                }
                cutter.finish().map_or(Ok(()), send)?;
                done.send(batch).expect("the other end is in this function");
                back.extend(spent.try_iter());
                progress(0)?; // there may be no job in a batch
                if stop.load(Ordering::Relaxed) || workers.iter().any(ScopedJoinHandle::is_finished) {
                    break;
                }
            }
            Ok(())
        };
        let mut outcome: Result<(), E> = feed();
        drop((to_worker, done));
        loop {
            if outcome.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            match spent.recv_timeout(POLL_INTERVAL) {
                Err(RecvTimeoutError::Disconnected) => break, // all workers are done
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

fn count_jobs<T: TextBatch>(
    splitter: &Splitter,
    inbox: &Mutex<Receiver<BatchJob<T>>>,
    done: &Sender<Arc<T>>,
    stop: &AtomicBool,
) -> Result<WordCounts, Error> {
    let mut counts = WordCounts::default();
    let mut outcome = Ok(());
    loop {
        let received = inbox.lock().expect("no worker panics while it holds the queue").recv();
        let Ok((batch, job)) = received else { break };
        for Part { text, range } in job.parts {
            if !stop.load(Ordering::Relaxed) {
                let part = batch.get(text).map(|text| text.slice(range));
                outcome = part.and_then(|part| count(splitter, part, &mut counts, stop));
            }
            if outcome.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let _ = done.send(batch); // nobody listens once the input has ended
    }
    outcome.map(|()| counts)
}

fn count(splitter: &Splitter, text: Text, counts: &mut WordCounts, stop: &AtomicBool) -> Result<(), Error> {
    let text = match text {
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

    const OURS: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

    #[test]
    fn one_long_text_is_counted_like_its_words() {
        let splitter = Splitter::new(OURS).unwrap();
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
            let mut told = 0;
            let progress = |size| {
                told += size;
                Ok(())
            };
            let counts = count_words::<_, Error>(&splitter, num_threads, |_| Ok(batches.next()), progress).unwrap();
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort();
            assert!(counts == expected, "{num_threads} threads");
            assert_eq!(told, text.len());
        }
    }

    struct Raw(Vec<Vec<u8>>);

    impl TextBatch for Raw {
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
            let mut batches = [Raw(texts)].into_iter();
            count_words::<_, Error>(&splitter, 2, |_| Ok(batches.next()), |_| Ok(())).map(|counts| counts.len())
        };
        assert_eq!(count(vec!["été x".into(), b"x y".to_vec()]), Ok(3));
        assert!(matches!(count(vec![b"x\xff".to_vec()]), Err(Error::Text(_))));
        assert!(matches!(count(vec![[vec![b'x'; MIN_JOB_BYTES], vec![0xC3]].concat()]), Err(Error::Text(_))));
    }

    /// Texts of which a worker gets one only when the caller was told again meanwhile.
    struct Slow<'t>(&'t AtomicUsize, thread::ThreadId);

    impl TextBatch for Slow<'_> {
        fn len(&self) -> usize {
            6
        }

        fn get(&self, _: usize) -> Result<Text<'_>, Error> {
            let (before, end) = (self.0.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(30));
            while thread::current().id() != self.1 && self.0.load(Ordering::Relaxed) == before {
                assert!(Instant::now() < end, "nobody is told while a worker is busy");
            }
            Ok(Text::Bytes(&[b'x'; MIN_JOB_BYTES])) // so that the queue is full for a while, too
        }
    }

    #[test]
    fn progress_is_called_while_workers_are_busy() {
        let told = AtomicUsize::new(0);
        let mut batches = [Slow(&told, thread::current().id())].into_iter();
        let progress = |_| {
            told.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let splitter = Splitter::new(OURS).unwrap();
        let counts = count_words::<_, Error>(&splitter, 1, |_| Ok(batches.next()), progress).unwrap();
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 6);
    }

    #[test]
    fn counting_stops_within_a_text() {
        let text = "1 ".repeat(1000);
        for (pattern, most) in [(OURS, crate::split::MAX_BOUNDS), (r"\w+|\W", 1)] {
            let (mut counts, stop) = (WordCounts::default(), AtomicBool::new(true));
            count(&Splitter::new(pattern).unwrap(), Text::Str(&text), &mut counts, &stop).unwrap();
            let counted: u64 = counts.iter().map(|(_, count)| count).sum();
            assert!(counted > 0 && counted <= most as u64, "{counted} by {pattern}");
        }
    }

    #[test]
    fn spent_batches_come_back_once_each() {
        let splitter = Splitter::new(r"\w+").unwrap();
        let mut back = 0;
        let mut given = 0;
        let next = |spent: Vec<Arc<Vec<String>>>| {
            back += spent.into_iter().filter_map(Arc::into_inner).count();
            given += 1;
            Ok((given <= 300).then(|| vec!["a b".to_string(); 3]))
        };
        count_words::<_, Error>(&splitter, 3, next, |_| Ok(())).unwrap();
        assert!(back > 200 && back <= 300, "{back}");
    }
}
