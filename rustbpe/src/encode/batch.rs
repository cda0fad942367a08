//! Encode many texts in several threads.
//!
//! The calling thread cuts the texts into numbered jobs and queues them. It starts further threads as jobs arrive, and
//! becomes a worker itself when all texts are queued. Workers finish jobs in any order, and a [`BatchAssembler`] joins
//! the ids in the order of the jobs.

use super::encoder::{Encoder, TokenId};
use super::worker::Worker;
use crate::huge_pages::advise_huge_pages;
use crate::jobs::{Job, JobCutter, Part};
use crate::{Error, Text};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Bytes of text in a job.
const MIN_JOB_BYTES: usize = 1 << 17;

/// The ids of many texts, one after another: text `i` has `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, PartialEq, Eq)]
pub struct EncodedBatch<I> {
    pub ids: Vec<I>,
    pub offsets: Vec<i64>,
}

/// The number of a job, and the job. Its parts hold the index of the text and the text itself.
type NumberedJob<'t> = (usize, Job<(usize, Text<'t>)>);

/// The index of a text, and the number of ids of one of its parts.
type PartCount = (usize, usize);

/// Encode texts in at most `num_threads` threads, the calling one included. The ids do not depend on their number.
///
/// ```
/// use rustbpe::{encode_batch, token_bytes, Encoder, Splitter, Text, Vocabulary};
/// let vocabulary = Vocabulary::new(&token_bytes(&[]), &[]).unwrap();
/// let encoder = Encoder::new(vocabulary, Splitter::new(r"\w+").unwrap());
/// let batch = encode_batch::<u16>(&encoder, &[Text::Str("ab"), Text::Str(""), Text::Str("c")], 2).unwrap();
/// assert_eq!((batch.ids, batch.offsets), (vec![97, 98, 99], vec![0, 2, 2, 3]));
/// ```
///
/// Errors: the splitter fails on a text.
pub fn encode_batch<I: TokenId>(
    encoder: &Encoder,
    texts: &[Text],
    num_threads: usize,
) -> Result<EncodedBatch<I>, Error> {
    let num_bytes = texts.iter().map(Text::len).sum();
    encode_batch_with(encoder, num_threads, num_bytes, |push| {
        texts.iter().for_each(|&text| push(text));
        Ok(())
    })
}

/// Encode the texts that `produce` passes to its argument, and start to encode them in other threads while `produce` runs.
///
/// `produce` runs on the calling thread. `expected_bytes` is the approximate number of bytes of all texts, by which
/// memory for the ids is reserved. Errors: those of `produce` and of the splitter.
pub fn encode_batch_with<'t, I: TokenId, E: From<Error>>(
    encoder: &Encoder,
    num_threads: usize,
    expected_bytes: usize,
    produce: impl FnOnce(&mut dyn FnMut(Text<'t>)) -> Result<(), E>,
) -> Result<EncodedBatch<I>, E> {
    let (job_sender, job_receiver) = channel::<NumberedJob>();
    let job_receiver = Mutex::new(job_receiver);
    let assembler = Mutex::new(BatchAssembler::<I>::new(expected_bytes));
    let stop = AtomicBool::new(false);
    let work = || {
        let outcome = encoder.with_worker(|worker| encode_jobs(encoder, worker, &job_receiver, &assembler, &stop));
        stop.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    };
    let num_texts = thread::scope(|scope| {
        let mut other_threads = Vec::new();
        let mut cutter = JobCutter::new(&encoder.splitter, MIN_JOB_BYTES);
        let (mut num_texts, mut num_jobs) = (0, 0);
        let mut send = |job| {
            // The first job needs no other thread: starting one takes longer than encoding a short text.
            if (1..num_threads).contains(&num_jobs) {
                other_threads.push(scope.spawn(work));
            }
            job_sender.send((num_jobs, job)).expect("the receiver outlives the threads");
            num_jobs += 1;
        };
        let produced = produce(&mut |text| {
            cutter.push((num_texts, text), text.as_bytes()).for_each(&mut send);
            num_texts += 1;
        });
        stop.fetch_or(produced.is_err(), Ordering::Relaxed);
        if let Some(job) = cutter.finish() {
            job_sender.send((num_jobs, job)).expect("the receiver outlives the threads");
        }
        drop(job_sender);

        let own_outcome = produced.and_then(|()| Ok(work()?));
        // Join all threads before an error is returned.
        let other_outcomes: Vec<Result<(), Error>> =
            other_threads.into_iter().map(|thread| thread.join().expect("encoding does not panic")).collect();
        own_outcome?;
        other_outcomes.into_iter().collect::<Result<(), Error>>()?;
        Ok::<_, E>(num_texts)
    })?;
    Ok(assembler.into_inner().unwrap_or_else(PoisonError::into_inner).finish(num_texts))
}

/// Encode jobs until the queue is closed or `stop` is set.
fn encode_jobs<I: TokenId>(
    encoder: &Encoder,
    worker: &mut Worker,
    job_receiver: &Mutex<Receiver<NumberedJob>>,
    assembler: &Mutex<BatchAssembler<I>>,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let mut ids = Vec::new();
    let mut part_counts = Vec::new();
    loop {
        let received = job_receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, job)) = received else { return Ok(()) };
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        ids.clear();
        part_counts.clear();
        if job.num_bytes >= MIN_JOB_BYTES {
            worker.prepare();
        }
        for Part { text: (index, text), range } in job.parts {
            let num_ids_before = ids.len();
            worker.encode_into(encoder, text.slice(range), &mut ids)?;
            part_counts.push((index, ids.len() - num_ids_before));
        }
        let mut assembler = assembler.lock().unwrap_or_else(PoisonError::into_inner);
        assembler.add(number, job.num_bytes, &ids, &part_counts);
    }
}

/// Joins the ids of jobs in the order of the jobs.
///
/// Workers pass slices of their buffers, which they use again for the next job: memory is slow when it is used for the
/// first time. Only the ids of jobs that are finished early are copied twice.
struct BatchAssembler<I> {
    batch: EncodedBatch<I>,
    /// The number of the next job to append.
    next_job: usize,
    /// Finished jobs after the next one.
    early_jobs: BTreeMap<usize, (Vec<I>, Vec<PartCount>)>,
    /// The approximate number of bytes of all texts.
    expected_bytes: usize,
}

impl<I: TokenId> BatchAssembler<I> {
    fn new(expected_bytes: usize) -> Self {
        Self {
            batch: EncodedBatch { ids: Vec::new(), offsets: vec![0] },
            next_job: 0,
            early_jobs: BTreeMap::new(),
            expected_bytes,
        }
    }

    /// Add the ids of one finished job of `num_bytes` bytes, in any order of jobs.
    fn add(&mut self, job: usize, num_bytes: usize, ids: &[I], part_counts: &[PartCount]) {
        if self.batch.ids.is_empty() {
            self.reserve(num_bytes, ids.len());
        }
        if job != self.next_job {
            self.early_jobs.insert(job, (ids.to_vec(), part_counts.to_vec()));
            return;
        }
        self.append(ids, part_counts);
        while let Some((ids, part_counts)) = self.early_jobs.remove(&self.next_job) {
            self.append(&ids, &part_counts);
        }
    }

    /// Reserve memory for all ids, on the assumption that all texts have as many ids per byte as one job.
    ///
    /// Unused memory costs almost nothing, but moving the ids to a larger block is slow. If the memory is not
    /// available, the list of ids grows step by step.
    fn reserve(&mut self, job_bytes: usize, job_ids: usize) {
        let num_jobs = self.expected_bytes as f64 / job_bytes.max(1) as f64;
        let _ = self.batch.ids.try_reserve((job_ids as f64 * num_jobs * 1.05) as usize);
        let reserved: *const [_] = self.batch.ids.spare_capacity_mut();
        advise_huge_pages(reserved);
    }

    fn append(&mut self, ids: &[I], part_counts: &[PartCount]) {
        let EncodedBatch { ids: all_ids, offsets } = &mut self.batch;
        let mut end = all_ids.len() as i64;
        for &(text, count) in part_counts {
            offsets.resize(text + 2, end); // texts without a part, between the last text and this one, are empty
            end += count as i64;
            offsets[text + 1] = end;
        }
        all_ids.extend_from_slice(ids);
        self.next_job += 1;
    }

    fn finish(mut self, num_texts: usize) -> EncodedBatch<I> {
        let end = self.batch.ids.len() as i64;
        self.batch.offsets.resize(num_texts + 1, end);
        self.batch.ids.shrink_to_fit();
        self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{token_bytes, Splitter, Vocabulary};
    use std::time::Duration;

    /// Encode a job, a text, and jobs that would take an hour, then return `produced`. Return the error of the
    /// encoding.
    fn error_of_encoding(text: String, produced: Result<(), Error>) -> Option<Error> {
        let (error_sender, error_receiver) = channel();
        thread::spawn(move || {
            // The word of 24 x takes about 10 ms, just below the backtracking limit. Many more x are an error.
            let splitter = Splitter::new(r"(?:x|xx)+(?=y)|\w+|\W").unwrap();
            let encoder = Encoder::new(Vocabulary::new(&token_bytes(&[]), &[]).unwrap(), splitter);
            let job = "x".repeat(24) + " " + &"z".repeat(MIN_JOB_BYTES);
            let batch = encode_batch_with::<u16, _>(&encoder, 3, MIN_JOB_BYTES, |push| {
                push(Text::Str(&job));
                push(Text::Str(&text));
                (0..400_000).for_each(|_| push(Text::Str(&job)));
                produced
            });
            let _ = error_sender.send(batch.err());
        });
        error_receiver.recv_timeout(Duration::from_secs(60)).expect("an error stops the encoding")
    }

    #[test]
    fn an_error_stops_the_encoding() {
        let error = Error::Text("of `produce`".into());
        assert_eq!(error_of_encoding("a".into(), Err(error.clone())), Some(error));
        assert!(matches!(error_of_encoding("x".repeat(MIN_JOB_BYTES), Ok(())), Some(Error::Split(_))));
    }

    #[test]
    fn memory_that_is_not_available_is_not_reserved() {
        for expected_bytes in [1 << 50, usize::MAX] {
            let mut assembler = BatchAssembler::<u32>::new(expected_bytes);
            assembler.add(0, 1, &[1, 2, 3], &[(0, 3)]);
            assert_eq!(assembler.finish(1), EncodedBatch { ids: vec![1, 2, 3], offsets: vec![0, 3] });
        }
    }

    #[test]
    fn jobs_in_any_order() {
        // Texts 1, 3 and 4 have no part; text 2 is in three jobs; job 3 has no part of any text.
        let jobs: [(&[u16], &[PartCount]); 5] = [
            (&[1, 2], &[(0, 1), (2, 1)]),
            (&[3], &[(2, 1)]),
            (&[4, 5], &[(2, 0), (5, 2)]),
            (&[], &[]),
            (&[6], &[(6, 1)]),
        ];
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 4, 2, 3], [2, 4, 0, 3, 1]] {
            let mut assembler = BatchAssembler::new(7);
            for job in order {
                assembler.add(job, 1, jobs[job].0, jobs[job].1);
            }
            let batch = assembler.finish(8);
            assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6]);
            assert_eq!(batch.offsets, [0, 1, 1, 3, 3, 3, 5, 6, 6]);
        }
    }
}
