//! Many texts at once, in several threads: the texts are cut into jobs of about equal size, which the threads take in
//! turn. Long texts are cut at places that change no word, so one long text keeps all threads busy as well.

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

/// A job whose parts hold the number of the text and the text itself.
type TextJob<'t> = Job<(usize, Text<'t>)>;

/// How many ids a part has, behind the number of its text.
type Count = (usize, usize);

/// Encode texts in at most `num_threads` threads, this one included. The result does not depend on their number.
///
/// ```
/// use rustbpe::{encode_batch, Encoder, Splitter, Text, Vocabulary};
/// let tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
/// let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+").unwrap());
/// let batch = encode_batch::<u16>(&encoder, &[Text::Str("ab"), Text::Str(""), Text::Str("c")], 2).unwrap();
/// assert_eq!((batch.ids, batch.offsets), (vec![97, 98, 99], vec![0, 2, 2, 3]));
/// ```
pub fn encode_batch<I: TokenId>(
    encoder: &Encoder,
    texts: &[Text],
    num_threads: usize,
) -> Result<EncodedBatch<I>, Error> {
    let size = texts.iter().map(Text::len).sum();
    encode_batch_with(encoder, num_threads, size, |add| {
        texts.iter().for_each(|&text| add(text));
        Ok(())
    })
}

/// Encode the texts that `feed` hands to its argument, on this thread, while others begin to work; this one joins them when
/// `feed` returns. `size` is about how many bytes they have; memory for the ids is taken by it.
pub fn encode_batch_with<'t, I: TokenId, E: From<Error>>(
    encoder: &Encoder,
    num_threads: usize,
    size: usize,
    feed: impl FnOnce(&mut dyn FnMut(Text<'t>)) -> Result<(), E>,
) -> Result<EncodedBatch<I>, E> {
    let (queue, jobs) = channel::<(usize, TextJob)>();
    let jobs = Mutex::new(jobs);
    let rows = Mutex::new(BatchAssembler::<I>::new(size));
    let failed = AtomicBool::new(false);
    let work = || {
        let outcome = encoder.with_worker(|worker| work_off(encoder, worker, &jobs, &rows, &failed));
        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    };
    let num_texts = thread::scope(|scope| {
        let mut others = Vec::new();
        let mut cutter = JobCutter::new(&encoder.splitter, MIN_JOB_BYTES);
        let (mut num_texts, mut num_jobs) = (0, 0);
        let mut send = |job| {
            // Another thread only for a second job: a little text is not worth it.
            if (1..num_threads).contains(&num_jobs) {
                others.push(scope.spawn(work));
            }
            queue.send((num_jobs, job)).expect("the receiver outlives this scope");
            num_jobs += 1;
        };
        let fed = feed(&mut |text| {
            cutter.push((num_texts, text), text.as_bytes()).for_each(&mut send);
            num_texts += 1;
        });
        failed.fetch_or(fed.is_err(), Ordering::Relaxed);
        if let Some(job) = cutter.finish() {
            queue.send((num_jobs, job)).expect("the receiver outlives this scope");
        }
        drop(queue);
        let mine = fed.and_then(|()| Ok(work()?));
        let others = others.into_iter().map(|thread| thread.join().expect("encoding does not panic"));
        let theirs: Vec<Result<(), Error>> = others.collect(); // of all of them, before an error is told
        mine?;
        theirs.into_iter().collect::<Result<(), Error>>()?;
        Ok::<_, E>(num_texts)
    })?;
    Ok(rows.into_inner().unwrap_or_else(PoisonError::into_inner).finish(num_texts))
}

/// Take jobs until there are no more, or somebody failed.
fn work_off<I: TokenId>(
    encoder: &Encoder,
    worker: &mut Worker,
    jobs: &Mutex<Receiver<(usize, TextJob)>>,
    rows: &Mutex<BatchAssembler<I>>,
    failed: &AtomicBool,
) -> Result<(), Error> {
    let (mut ids, mut counts) = (Vec::new(), Vec::new());
    loop {
        let received = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, job)) = received else { return Ok(()) };
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        ids.clear();
        counts.clear();
        if job.num_bytes >= MIN_JOB_BYTES {
            worker.prepare();
        }
        for Part { text: (index, text), range } in job.parts {
            let before = ids.len();
            worker.encode_into(encoder, text.slice(range), &mut ids)?;
            counts.push((index, ids.len() - before));
        }
        rows.lock().unwrap_or_else(PoisonError::into_inner).add(number, job.num_bytes, &ids, &counts);
    }
}

/// The ids of all jobs that are done up to the first that is not, in order. The threads' own memory for ids is used again
/// and again, since new memory is slow at first.
struct BatchAssembler<I> {
    batch: EncodedBatch<I>,
    /// The number of the job that is awaited.
    next: usize,
    /// Jobs that were done before it.
    early: BTreeMap<usize, (Vec<I>, Vec<Count>)>,
    /// Bytes that all texts have, more or less.
    size: usize,
}

impl<I: TokenId> BatchAssembler<I> {
    fn new(size: usize) -> Self {
        Self { batch: EncodedBatch { ids: Vec::new(), offsets: vec![0] }, next: 0, early: BTreeMap::new(), size }
    }

    /// Add the ids of a job of so many bytes, and how many of them each of its parts has.
    fn add(&mut self, job: usize, bytes: usize, ids: &[I], counts: &[Count]) {
        let EncodedBatch { ids: all, .. } = &mut self.batch;
        if all.is_empty() {
            // The others will have about as many ids for their bytes. Room that is not used costs next to nothing, moving
            // what is there for want of room a lot. Where there is not so much, it is taken bit by bit.
            let share = self.size as f64 / bytes.max(1) as f64;
            let _ = all.try_reserve((ids.len() as f64 * share * 1.05) as usize);
            let room: *const [_] = all.spare_capacity_mut();
            advise_huge_pages(room);
        }
        if job != self.next {
            self.early.insert(job, (ids.to_vec(), counts.to_vec()));
            return;
        }
        self.append(ids, counts);
        while let Some((ids, counts)) = self.early.remove(&self.next) {
            self.append(&ids, &counts);
        }
    }

    fn append(&mut self, ids: &[I], counts: &[Count]) {
        let EncodedBatch { ids: all, offsets } = &mut self.batch;
        let mut end = all.len() as i64;
        for &(text, count) in counts {
            offsets.resize(text + 2, end); // texts without a part, between the last one and this, are empty
            end += count as i64;
            offsets[text + 1] = end;
        }
        all.extend_from_slice(ids);
        self.next += 1;
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
    use crate::{Splitter, Vocabulary};
    use std::time::Duration;

    /// The error of an encoding that is fed a text, then jobs for an hour, then `fed`.
    fn error_of(text: String, fed: Result<(), Error>) -> Option<Error> {
        let (done, outcome) = channel();
        thread::spawn(move || {
            let tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
            // About 10 ms for the word of many x, which is just below the limit; with more of them it is an error.
            let splitter = Splitter::new(r"(?:x|xx)+(?=y)|\w+|\W").unwrap();
            let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), splitter);
            let job = "x".repeat(24) + " " + &"z".repeat(MIN_JOB_BYTES);
            let batch = encode_batch_with::<u16, _>(&encoder, 3, MIN_JOB_BYTES, |add| {
                add(Text::Str(&job));
                add(Text::Str(&text));
                (0..400_000).for_each(|_| add(Text::Str(&job)));
                fed
            });
            let _ = done.send(batch.err());
        });
        outcome.recv_timeout(Duration::from_secs(60)).expect("an error ends the work")
    }

    #[test]
    fn an_error_ends_the_work() {
        let told = Error::Text("of the feeder".into());
        assert_eq!(error_of("a".into(), Err(told.clone())), Some(told));
        assert!(matches!(error_of("x".repeat(MIN_JOB_BYTES), Ok(())), Some(Error::Split(_))));
    }

    #[test]
    fn room_that_no_machine_has_is_not_taken() {
        for size in [1 << 50, usize::MAX] {
            let mut rows = BatchAssembler::<u32>::new(size);
            rows.add(0, 1, &[1, 2, 3], &[(0, 3)]);
            assert_eq!(rows.finish(1), EncodedBatch { ids: vec![1, 2, 3], offsets: vec![0, 3] });
        }
    }

    #[test]
    fn jobs_in_any_order() {
        // Texts 1, 3 and 4 have no part; text 2 is in three jobs; job 3 has none of any text.
        let jobs: [(&[u16], &[Count]); 5] = [
            (&[1, 2], &[(0, 1), (2, 1)]),
            (&[3], &[(2, 1)]),
            (&[4, 5], &[(2, 0), (5, 2)]),
            (&[], &[]),
            (&[6], &[(6, 1)]),
        ];
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 4, 2, 3], [2, 4, 0, 3, 1]] {
            let mut rows = BatchAssembler::new(7);
            for job in order {
                rows.add(job, 1, jobs[job].0, jobs[job].1);
            }
            let batch = rows.finish(8);
            assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6]);
            assert_eq!(batch.offsets, [0, 1, 1, 3, 3, 3, 5, 6, 6]);
        }
    }
}
