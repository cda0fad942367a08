//! Many texts at once, in several threads: the texts are cut into jobs of about equal size, which the threads take in
//! turn. Long texts are cut at places that change no word, so one long text keeps all threads busy as well.

use crate::encode::{Encoder, Id, Text, Worker};
use crate::Error;
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Bytes of text in a job.
const JOB: usize = 1 << 17;

/// The ids of many texts, one after another: text `i` has `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<I> {
    pub ids: Vec<I>,
    pub offsets: Vec<i64>,
}

/// Consecutive parts of texts, each with the number of its text.
type Job<'t> = Vec<(usize, Text<'t>)>;

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
    encode_fed(encoder, num_threads, |add| {
        texts.iter().for_each(|&text| add(text));
        Ok(())
    })
}

/// Encode the texts that `feed` hands to its argument, on this thread, while others begin to work; this one joins them when
/// `feed` returns.
pub fn encode_fed<'t, I: Id, E: From<Error>>(
    encoder: &Encoder,
    num_threads: usize,
    feed: impl FnOnce(&mut dyn FnMut(Text<'t>)) -> Result<(), E>,
) -> Result<Batch<I>, E> {
    let (queue, jobs) = channel::<(usize, Job)>();
    let jobs = Mutex::new(jobs);
    let work = || encoder.with_worker(|worker| work_off::<I>(encoder, worker, &jobs));
    let (num_texts, outcomes) = thread::scope(|scope| {
        let mut others = Vec::new();
        let mut cutter = Cutter::default();
        let mut num_jobs = 0;
        let fed = feed(&mut |text| {
            cutter.add(encoder, text, |job| {
                // Another thread only for a second job: a little text is not worth it.
                if (1..num_threads).contains(&num_jobs) {
                    others.push(scope.spawn(work));
                }
                queue.send((num_jobs, job)).expect("the receiver outlives this scope");
                num_jobs += 1;
            });
        });
        queue.send((num_jobs, cutter.job)).expect("the receiver outlives this scope");
        drop(queue);
        let mine = fed.map(|()| work());
        let others = others.into_iter().map(|thread| thread.join().expect("encoding does not panic"));
        let outcomes: Vec<Result<_, Error>> = others.collect();
        mine.map(|mine| (cutter.num_texts, [vec![mine], outcomes].concat()))
    })?;
    let mut done = Vec::new();
    for outcome in outcomes {
        done.extend(outcome?);
    }
    done.sort_unstable_by_key(|done: &Done<I>| done.job);
    Ok(join(num_texts, done, num_threads))
}

/// Cuts texts into jobs.
#[derive(Default)]
struct Cutter<'t> {
    num_texts: usize,
    job: Job<'t>,
    size: usize,
}

impl<'t> Cutter<'t> {
    /// Add a text to the job; `send` those that are full.
    fn add(&mut self, encoder: &Encoder, mut text: Text<'t>, mut send: impl FnMut(Job<'t>)) {
        while !text.is_empty() {
            let room = JOB - self.size;
            let end = if text.len() > room { encoder.splitter.cut(text.bytes(), room) } else { text.len() };
            let (part, rest) = text.split_at(end);
            self.job.push((self.num_texts, part));
            self.size += end;
            if self.size >= JOB {
                send(std::mem::take(&mut self.job));
                self.size = 0;
            }
            text = rest;
        }
        self.num_texts += 1;
    }
}

/// The ids of a job, and how many of them each of its parts has, with the number of the text.
#[derive(Clone)]
struct Done<I> {
    job: usize,
    ids: Vec<I>,
    counts: Vec<(usize, usize)>,
}

/// Take jobs until there are no more. After an error the others still empty the queue.
fn work_off<I: Id>(
    encoder: &Encoder,
    worker: &mut Worker,
    jobs: &Mutex<Receiver<(usize, Job)>>,
) -> Result<Vec<Done<I>>, Error> {
    let mut all = Vec::new();
    loop {
        let received = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, job)) = received else { return Ok(all) };
        let size: usize = job.iter().map(|(_, part)| part.len()).sum();
        let mut done = Done { job: number, ids: Vec::with_capacity(size / 3), counts: Vec::with_capacity(job.len()) };
        for (text, part) in job {
            let before = done.ids.len();
            worker.encode_into(encoder, part, &mut done.ids)?;
            done.counts.push((text, done.ids.len() - before));
        }
        all.push(done);
    }
}

/// Put the results of all jobs, which are in order, together. Several threads copy, since new memory is slow at first.
fn join<I: Id>(num_texts: usize, all: Vec<Done<I>>, num_threads: usize) -> Batch<I> {
    let mut offsets = vec![0; num_texts + 1];
    for (text, count) in all.iter().flat_map(|done| &done.counts) {
        offsets[text + 1] += *count as i64;
    }
    let mut end = 0;
    for offset in &mut offsets {
        end += *offset;
        *offset = end;
    }
    let mut ids = vec![I::default(); end as usize];
    let mut rest = &mut ids[..];
    let mut pieces = Vec::with_capacity(all.len());
    for done in all {
        let (place, behind) = rest.split_at_mut(done.ids.len());
        pieces.push((place, done.ids));
        rest = behind;
    }
    let num_threads = num_threads.min(pieces.len());
    let pieces = Mutex::new(pieces.into_iter());
    let copy = || loop {
        let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((place, ids)) = piece else { break };
        place.copy_from_slice(&ids);
    };
    thread::scope(|scope| {
        (1..num_threads).for_each(|_| drop(scope.spawn(copy)));
        copy();
    });
    Batch { ids, offsets }
}
