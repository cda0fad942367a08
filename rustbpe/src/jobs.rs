//! Cut texts into jobs of about equal size for the threads of the trainer and of the encoder.
//!
//! Short texts share a job. A long text is cut into several jobs, between words, so that a single long text keeps all
//! threads busy. With jobs of 8 bytes:
//!
//! ```text
//! texts  "to be or not"       "to"           "be"
//! jobs   [ "to be or" ]  [ " not", "to", "be" ]
//! ```

use crate::Splitter;
use std::ops::Range;

/// A byte range of one text. `text` identifies the text: an index, a reference, or both.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<T> {
    pub text: T,
    pub range: Range<usize>,
}

/// Consecutive parts of consecutive texts: the work that a thread takes at a time.
#[derive(Debug, PartialEq, Eq)]
pub struct Job<T> {
    pub parts: Vec<Part<T>>,
    /// Bytes of all parts together.
    pub num_bytes: usize,
}

impl<T> Job<T> {
    fn empty() -> Self {
        Self { parts: Vec::new(), num_bytes: 0 }
    }
}

/// Collects texts and cuts them into jobs of at least `min_bytes` bytes each, except for the last one.
///
/// A job exceeds `min_bytes` by the distance to the next position at which its last text can be cut.
pub struct JobCutter<'s, T> {
    splitter: &'s Splitter,
    min_bytes: usize,
    job: Job<T>,
}

impl<'s, T: Copy> JobCutter<'s, T> {
    pub fn new(splitter: &'s Splitter, min_bytes: usize) -> Self {
        Self { splitter, min_bytes, job: Job::empty() }
    }

    /// Add a text and yield the jobs that it completes. The text is added as far as the iterator is consumed.
    pub fn push<'a>(&'a mut self, text: T, bytes: &'a [u8]) -> impl Iterator<Item = Job<T>> + use<'a, 's, T> {
        let mut start = 0;
        std::iter::from_fn(move || {
            while start < bytes.len() {
                let rest = &bytes[start..];
                let missing = self.min_bytes - self.job.num_bytes;
                let len = if rest.len() > missing { self.splitter.next_safe_cut(rest, missing) } else { rest.len() };
                self.job.parts.push(Part { text, range: start..start + len });
                self.job.num_bytes += len;
                start += len;
                if self.job.num_bytes >= self.min_bytes {
                    return Some(std::mem::replace(&mut self.job, Job::empty()));
                }
            }
            None
        })
    }

    /// Return the last job, or `None` if every text is in a job already.
    pub fn finish(&mut self) -> Option<Job<T>> {
        let job = std::mem::replace(&mut self.job, Job::empty());
        (!job.parts.is_empty()).then_some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

    fn cut(texts: &[&str], splitter: &Splitter, min_bytes: usize) -> Vec<Job<usize>> {
        let mut cutter = JobCutter::new(splitter, min_bytes);
        let mut jobs = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            jobs.extend(cutter.push(index, text.as_bytes()));
        }
        jobs.extend(cutter.finish());
        jobs
    }

    #[test]
    fn the_example_above() {
        let texts = ["to be or not", "to", "be"];
        let jobs = cut(&texts, &Splitter::new(PATTERN).unwrap(), 8);
        let parts = |job: &Job<usize>| -> Vec<&str> {
            job.parts.iter().map(|part| &texts[part.text][part.range.clone()]).collect()
        };
        assert_eq!(jobs.iter().map(parts).collect::<Vec<_>>(), [vec!["to be or"], vec![" not", "to", "be"]]);
    }

    #[test]
    fn jobs_hold_all_texts_and_have_about_the_wanted_size() {
        const MIN_BYTES: usize = 1 << 16;
        let texts = [0, 1, 10_000, 100_000, 3, 17_000, 0].map(|count| "été 12 ".repeat(count));
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let jobs = cut(&texts, &Splitter::new(PATTERN).unwrap(), MIN_BYTES);
        let mut joined = vec![String::new(); texts.len()];
        for job in &jobs {
            assert!(job.num_bytes < MIN_BYTES + 20, "{}", job.num_bytes);
            assert_eq!(job.num_bytes, job.parts.iter().map(|part| part.range.len()).sum::<usize>());
            for part in &job.parts {
                joined[part.text].push_str(&texts[part.text][part.range.clone()]);
            }
        }
        assert!(jobs[..jobs.len() - 1].iter().all(|job| job.num_bytes >= MIN_BYTES));
        assert_eq!(joined, texts);
    }

    #[test]
    fn a_regex_keeps_texts_whole() {
        let splitter = Splitter::with_regex(PATTERN).unwrap();
        let texts = ["to be or not to be", "a"];
        let lens: Vec<usize> = cut(&texts, &splitter, 8).iter().map(|job| job.num_bytes).collect();
        assert_eq!(lens, [18, 1]);
    }

    #[test]
    fn no_text_is_no_job() {
        assert_eq!(cut(&["", ""], &Splitter::new(PATTERN).unwrap(), 8), []);
    }
}
