//! From text to ids: cut into words, look each up among those seen before, else among the tokens, else merge it.

use super::vocabulary::Vocabulary;
use super::worker::Worker;
use crate::{Error, Splitter, Text};
use std::sync::Mutex;

/// How ids are stored: in 16 bits where the vocabulary allows, else in 32.
pub trait TokenId: Copy + Default + Send + Sync + 'static {
    fn new(id: u32) -> Self;
}

impl TokenId for u16 {
    fn new(id: u32) -> Self {
        id as u16
    }
}

impl TokenId for u32 {
    fn new(id: u32) -> Self {
        id
    }
}

/// A vocabulary with its split pattern, ready to encode in any number of threads.
pub struct Encoder {
    pub vocabulary: Vocabulary,
    pub splitter: Splitter,
    /// Memories of threads that are done, for the next ones.
    idle_workers: Mutex<Vec<Worker>>,
    /// They are some megabytes each, so no more of them are kept than there are cores; or eight, the number of threads
    /// that is asked for by default.
    max_idle_workers: usize,
}

impl Encoder {
    pub fn new(vocabulary: Vocabulary, splitter: Splitter) -> Self {
        let max_idle_workers = std::thread::available_parallelism().map_or(1, usize::from).max(8);
        Self { vocabulary, splitter, idle_workers: Mutex::default(), max_idle_workers }
    }

    /// The ids of one text.
    ///
    /// ```
    /// use rustbpe::{Encoder, Splitter, Text, Vocabulary};
    /// let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    /// tokens.extend([b"ab".to_vec(), b"abc".to_vec()]);
    /// let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+|\W").unwrap());
    /// assert_eq!(encoder.encode(Text::Str("abcb ab")).unwrap(), [257, 98, 32, 256]);
    /// ```
    pub fn encode(&self, text: Text) -> Result<Vec<u32>, Error> {
        let mut out = Vec::new();
        self.with_worker(|worker| worker.encode_into(self, text, &mut out))?;
        Ok(out)
    }

    /// Lend a worker's memory to `work`.
    pub fn with_worker<R>(&self, work: impl FnOnce(&mut Worker) -> R) -> R {
        let idle_workers = || self.idle_workers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut worker = idle_workers().pop().unwrap_or_default();
        let result = work(&mut worker);
        let mut idle_workers = idle_workers();
        if idle_workers.len() < self.max_idle_workers {
            idle_workers.push(worker);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_memories_of_many_threads_are_kept() {
        fn nest(encoder: &Encoder, depth: usize) {
            encoder.with_worker(|_| (0..depth.min(1)).for_each(|_| nest(encoder, depth - 1)));
        }
        let tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+").unwrap());
        let idle_workers = || encoder.idle_workers.lock().unwrap().len();
        nest(&encoder, 2);
        assert_eq!(idle_workers(), 3);
        nest(&encoder, encoder.max_idle_workers + 2);
        assert_eq!(idle_workers(), encoder.max_idle_workers);
    }
}
