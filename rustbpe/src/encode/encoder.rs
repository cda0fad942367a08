//! The encoder: a vocabulary with its split pattern.

use super::vocabulary::Vocabulary;
use super::worker::Worker;
use crate::{Error, Splitter, Text};
use std::sync::Mutex;

/// An integer type for token ids: `u16` for vocabularies of up to 65,536 tokens, else `u32`.
pub trait TokenId: Copy + Default + Send + Sync + 'static {
    /// Convert an id, which must fit.
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

/// A vocabulary with its split pattern. Any number of threads may use it at once.
pub struct Encoder {
    pub vocabulary: Vocabulary,
    pub splitter: Splitter,
    /// The workers of finished calls, with full caches, for the next calls.
    idle_workers: Mutex<Vec<Worker>>,
    /// A worker has several megabytes, so no more are kept than there are cores, but at least eight, the default number
    /// of threads.
    max_idle_workers: usize,
}

impl Encoder {
    pub fn new(vocabulary: Vocabulary, splitter: Splitter) -> Self {
        let max_idle_workers = std::thread::available_parallelism().map_or(1, usize::from).max(8);
        Self { vocabulary, splitter, idle_workers: Mutex::default(), max_idle_workers }
    }

    /// Return the ids of one text. Errors: the splitter fails.
    ///
    /// ```
    /// use rustbpe::{token_bytes, Encoder, Splitter, Text, Vocabulary};
    /// let tokens = token_bytes(&[(97, 98), (256, 99)]); // 256 = "ab", 257 = "abc"
    /// let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+|\W").unwrap());
    /// assert_eq!(encoder.encode(Text::Str("abcb ab")).unwrap(), [257, 98, 32, 256]);
    /// assert_eq!(encoder.encode(Text::Bytes(b"\xffab")).unwrap(), [255, 256]);
    /// ```
    pub fn encode(&self, text: Text) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        self.with_worker(|worker| worker.encode_into(self, text, &mut ids))?;
        Ok(ids)
    }

    /// Call a function with a worker that no other thread uses during the call.
    pub fn with_worker<R>(&self, function: impl FnOnce(&mut Worker) -> R) -> R {
        let idle_workers = || self.idle_workers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut worker = idle_workers().pop().unwrap_or_default();
        let result = function(&mut worker);
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
    fn a_limited_number_of_idle_workers_is_kept() {
        fn nest(encoder: &Encoder, depth: usize) {
            encoder.with_worker(|_| (0..depth.min(1)).for_each(|_| nest(encoder, depth - 1)));
        }
        let vocabulary = Vocabulary::new(&crate::token_bytes(&[]), &[]).unwrap();
        let encoder = Encoder::new(vocabulary, Splitter::new(r"\w+").unwrap());
        let num_idle_workers = || encoder.idle_workers.lock().unwrap().len();
        nest(&encoder, 2);
        assert_eq!(num_idle_workers(), 3);
        nest(&encoder, encoder.max_idle_workers + 2);
        assert_eq!(num_idle_workers(), encoder.max_idle_workers);
    }
}
