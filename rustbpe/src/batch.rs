//! Many texts at once, in several threads: the texts are cut into jobs of about equal size, which the threads take in
//! turn. Long texts are cut at places that change no word, so one long text keeps all threads busy as well.

use crate::encode::{Encoder, Id, Text, Worker};
use crate::Error;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Bytes of text in a job.
const JOB: usize = 1 << 17;

/// The ids of many texts, one after another: text `i` has `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<I> {
    pub ids: Vec<I>,
    pub offsets: Vec<i64>,
}

/// Consecutive parts of texts: (number of the text, range of its bytes).
type Job = Vec<(usize, Range<usize>)>;

/// Encode texts in at most `num_threads` threads, this one included. The result does not depend on their number.
///
/// ```
/// use rustbpe::{encode_batch, Encoder, Splitter, Text, Vocabulary};
/// let tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
/// let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+").unwrap());
/// let batch = encode_batch::<u16>(&encoder, &[Text::Str("ab"), Text::Str(""), Text::Str("c")], 2).unwrap();
/// assert_eq!((batch.ids, batch.offsets), (vec![97, 98, 99], vec![0, 2, 2, 3]));
/// ```
pub fn encode_batch<I: Id>(encoder: &Encoder, texts: &[Text], num_threads: usize) -> Result<Batch<I>, Error> {
    let jobs = jobs(encoder, texts);
    let num_threads = num_threads.clamp(1, jobs.len().max(1));
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        let mut done = Vec::new();
        encoder.with_worker(|worker| {
            while !failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else { break };
                match run::<I>(encoder, worker, texts, job) {
                    Ok(result) => done.push((index, result)),
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(())
        })?;
        Ok(done)
    };
    let outcomes: Vec<Result<_, Error>> = thread::scope(|scope| {
        let others: Vec<_> = (1..num_threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let others = others.into_iter().map(|thread| thread.join().expect("encoding does not panic"));
        std::iter::once(mine).chain(others).collect()
    });
    let mut done = Vec::with_capacity(jobs.len());
    for outcome in outcomes {
        done.extend(outcome?);
    }
    done.sort_unstable_by_key(|(index, _)| *index);
    let done: Vec<Done<I>> = done.into_iter().map(|(_, result)| result).collect();
    Ok(join(texts.len(), &jobs, &done))
}

/// The ids of a job, and how many of them each of its parts has.
type Done<I> = (Vec<I>, Vec<usize>);

fn run<I: Id>(encoder: &Encoder, worker: &mut Worker, texts: &[Text], job: &Job) -> Result<Done<I>, Error> {
    let mut ids = Vec::with_capacity(job.iter().map(|(_, range)| range.len()).sum::<usize>() / 3);
    let mut counts = Vec::with_capacity(job.len());
    for (index, range) in job {
        let before = ids.len();
        let part = match texts[*index] {
            Text::Str(text) => Text::Str(&text[range.clone()]),
            Text::Bytes(bytes) => Text::Bytes(&bytes[range.clone()]),
        };
        worker.encode_into(encoder, part, &mut ids)?;
        counts.push(ids.len() - before);
    }
    Ok((ids, counts))
}

fn jobs(encoder: &Encoder, texts: &[Text]) -> Vec<Job> {
    let mut jobs = Vec::new();
    let (mut job, mut size) = (Job::new(), 0);
    for (index, text) in texts.iter().enumerate() {
        let mut start = 0;
        while start < text.len() || (start == 0 && text.is_empty()) {
            let end = match text {
                Text::Str(text) if text.len() - start > JOB - size => encoder.splitter.cut(text, start + JOB - size),
                _ => text.len(),
            };
            job.push((index, start..end));
            size += end - start;
            if size >= JOB {
                jobs.push(std::mem::take(&mut job));
                size = 0;
            }
            if text.is_empty() {
                break;
            }
            start = end;
        }
    }
    jobs.push(job);
    jobs
}

fn join<I: Id>(num_texts: usize, jobs: &[Job], done: &[Done<I>]) -> Batch<I> {
    let mut ids = Vec::with_capacity(done.iter().map(|(ids, _)| ids.len()).sum());
    let mut lengths = vec![0; num_texts + 1];
    for (job, (part, counts)) in jobs.iter().zip(done) {
        ids.extend_from_slice(part);
        for ((index, _), count) in job.iter().zip(counts) {
            lengths[index + 1] += *count as i64;
        }
    }
    let mut end = 0;
    for length in &mut lengths {
        end += *length;
        *length = end;
    }
    Batch { ids, offsets: lengths }
}
